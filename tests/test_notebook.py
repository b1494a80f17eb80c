"""The example notebook runs as it stands, and its values show themselves."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "examples" / "tour.ipynb"


@pytest.mark.filterwarnings("ignore")  # of the client's own libraries
def test_the_tour_runs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without
    done = NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    pages = [out["data"].get("text/html", "") for cell in done.cells for out in cell.get("outputs", []) if "data" in out]
    shown = "".join(pages)
    for word in ("ExitNet(small, 4 exits", "Trace(400 labelled samples", "threshold (max_probability)", "routed: accuracy"):
        assert word in shown
    assert shown.count("<svg") == 4  # a map for every exit
