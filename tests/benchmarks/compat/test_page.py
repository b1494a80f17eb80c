"""The table of compatibility, from made-up figures and from those that are committed."""

from benchmarks.compat.cells import CELLS, COMPAT
from benchmarks.compat.page import HEAD, write_part
from benchmarks.markdown import ROOT, fill

GOOD = {"tests": 5, "failed": 0}
RUNS = {
    CELLS[0].name: {
        "installed": {"torch": "2.9.1+cpu", "torchvision": "0.24.1", "timm": "1.0.9", "transformers": "4.50.0"},
        "readme": {"tests": 1, "failed": 0},
        **dict.fromkeys(("private", "cutting", "backbones"), GOOD),
        "onnx": {"tests": 5, "failed": 2, "fault": "test_a: no"},
    },
    CELLS[1].name: {"fault": "no wheel of torch"},
}


def read_rows(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_a_row_for_every_cell_run_or_not():
    lines = write_part(RUNS)
    head, _, *rows = read_rows(lines)
    assert head == list(HEAD)
    assert len(rows) == len(CELLS)
    assert rows[0][1:6] == ["2.9.1", "0.24.1", "1.0.9", "4.50.0", "newest"]
    assert rows[0][6:] == ["work", "5 pass", "5 pass", "5 pass", "**2 of 5 fail**"]
    assert rows[1][6:] == ["not installed"] * 5
    assert rows[2][6:] == ["not run"] * 5
    assert "**Not complete**: 2 of 11 runs" in lines[0]
    assert lines[-2:] == [
        f"- {CELLS[0].name}, export: `test_a: no`",
        f"- {CELLS[1].name}, installing: `no wheel of torch`",
    ]


def test_nothing_failed():
    runs = {cell.name: {"installed": {}, "readme": GOOD} for cell in CELLS}
    assert write_part(runs)[-1] == "Nothing that was run failed."


def test_the_committed_page_is_made_from_the_committed_results(tmp_path):
    page = ROOT / "docs" / "project" / "compatibility.md"
    copy = tmp_path / "compatibility.md"
    copy.write_text(page.read_text())
    assert fill("compat", write_part(COMPAT.read()), [copy]) == [copy]
    assert copy.read_text() == page.read_text()
