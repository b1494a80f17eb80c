"""The example notebook runs as it stands, and its values show themselves."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import exitlens as xl

NOTEBOOK = Path(__file__).parent.parent / "examples" / "tour.ipynb"


def test_the_tour_uses_names_that_exist():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    for cell in cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xl":
                    assert node.attr in xl.__all__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the client's own libraries
def test_the_tour_runs(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests need the other core
    done = NotebookClient(nbformat.read(NOTEBOOK, as_version=4), timeout=240, kernel_name="python3").execute()
    pages = [out["data"].get("text/html", "") for cell in done.cells for out in cell.get("outputs", []) if "data" in out]
    shown = "".join(pages)
    for word in ("ExitNet(small, 4 exits", "Trace(400 labelled samples", "threshold (max_probability)", "routed: accuracy"):
        assert word in shown
    assert shown.count("<svg") == 4  # a map for every exit
