"""The example notebooks run as they stand, and what they say is true of the run."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import exitlens as xl

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
NEEDS = {"pretrained_vit": ["transformers"], "serving": ["onnxruntime", "onnxscript", "starlette", "uvicorn"]}

# A cell that is run after those of the notebook, and asks its variables whether what its words say was so.
TRUE = {
    "tour": """
assert len(why.exits) == 4
""",
    "own_images": """
assert len(data.bad) == 1 and "broken.png" in data.bad[0]
assert len(answers) == 1000 and {row["label"] for row in answers} == set(data.classes)
assert sum(row["label"] in row["file"] for row in answers) > 700  # in the folder of that name
assert not policy.calibration.certification.reason  # there is a promise
assert report.accuracy > 0.65 and report.accuracy_drop < 0.05 and report.cost < 0.6
assert why.inputs.shape == (3, 32, 32) and len(why.exits) == 4
""",
    "pretrained_vit": """
assert not net.has_self_attention or len(attention) == 4
right, from_scratch = trace.correct.float().mean(0), scratch.correct.float().mean(0)
assert right[-1] > 0.8 and right.mean() > from_scratch.mean() + 0.1
assert relevance[-1] > attention[-1] + 0.25 and sum(relevance) > sum(attention) + 1
assert trace.similarity["cc"][:, :-1].mean() > 0.8  # maps that agree
assert sum(taught) > sum(attention) + 0.3
assert guided_trace.correct[:, -1].float().mean() > right[-1] - 0.05
assert not policy.calibration.certification.reason and report.accuracy_drop < 0.05 and report.cost < 0.9
""",
    "guarantees": """
assert broken["empirical"] > 2 * 4 and broken["delta=0.1"] <= 8  # of 40: four are expected at most; 9 have a chance of 1.5 %
assert broken["empirical"] > broken["folds=5"] > broken["delta=0.1"]
assert cost["empirical"] < cost["delta=0.1"] and by_delta[0.3] < by_delta[0.01]
assert few.calibration.certification.reason and named.calibration.certification.reason
assert not unnamed.calibration.certification.reason
not_named, *with_names = broken_videos.values()
assert not_named > 6 and max(with_names) <= 6
assert not calm.alarm and alarmed.alarm
assert dimmed.accuracy_drop > LIMIT
""",
    "spurious_background": """
assert len(rows) >= 20 and in_list > 3 * overall  # the list finds them
assert min(without_egt[1:]) > without_egt[0] + 0.2  # exit 0 looks elsewhere
assert on_kept.min() > 0.85 and on_moved[0] < 0.3 and on_moved[-1] > 0.75
assert today.accuracy_drop < 0.06 and changed.accuracy_drop > today.accuracy_drop + 0.1
assert repaired.accuracy_drop < changed.accuracy_drop / 2
assert today.cost < repaired.cost
assert with_egt[0] > without_egt[0] + 0.1
""",
    "serving": """
assert answer["class"] == test.classes[here.labels[0]] and answer["exit"] == here.exits[0].item()
mine = xl.predict(net, inputs, policy)
assert outputs["label"] == mine.labels.tolist() == small.labels.tolist()
assert outputs["exit"] == mine.exits.tolist() == small.exits.tolist()
assert len(set(outputs["exit"])) > 1
assert refused[0] == 400 and "cannot be read as an image" in refused[1]
counted = [float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("exitlens_answers_total{")]
assert sum(counted) >= 66
assert server.poll() is not None
""",
}
QUICKEST = ("tour",)
MAPS = {"tour": 4, "own_images": 8, "pretrained_vit": 10, "guarantees": 0, "spurious_background": 4, "serving": 0}


def read_notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def run_notebook(name, tmp_path, monkeypatch):
    """The notebook with its outputs, run on one thread, with a last cell that raises where its words are not true."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests need the other core
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = read_notebook(name)
    notebook.cells.append(nbformat.v4.new_code_cell(TRUE[name]))
    return NotebookClient(notebook, timeout=240, kernel_name="python3").execute()


def test_each_notebook_is_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(TRUE)


@pytest.mark.parametrize("name", TRUE)
def test_it_uses_names_that_exist_and_is_committed_without_outputs(name):
    for cell in read_notebook(name).cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xl":
                    assert node.attr in xl.__all__


@pytest.mark.parametrize("name", TRUE)
def test_it_says_what_to_install_and_links_to_what_is_there(name):
    words = [cell.source for cell in read_notebook(name).cells if cell.cell_type == "markdown"]
    assert words[0].startswith("# ")
    assert "pip install" in words[0]
    for target in re.findall(r"\]\(([^)#]+)", "\n".join(words)):
        assert (FOLDER / target).exists(), target


@pytest.mark.filterwarnings("ignore")  # of the client's own libraries
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in QUICKEST else pytest.mark.long) for name in TRUE]
)
def test_it_runs_and_what_it_says_is_true(name, tmp_path, monkeypatch):
    for module in NEEDS.get(name, []):
        pytest.importorskip(module)
    done = run_notebook(name, tmp_path, monkeypatch)
    found = [out["data"] for cell in done.cells for out in cell.get("outputs", []) if "data" in out]
    shown = "".join(data.get("text/html", "") for data in found)
    assert shown.count("<svg") == MAPS[name]
    assert "<table>" in shown
    if name == "tour":
        words = ("ExitNet(small, 4 exits", "Trace(400 labelled samples", "threshold (max_probability)", "routed: accuracy")
        assert all(word in shown for word in words)
