"""The pages are made from the committed results, and are what is committed."""

from benchmarks.markdown import ROOT
from benchmarks.study.report.__main__ import write_pages
from benchmarks.study.runs import STUDY, study_store


def test_the_committed_pages_are_made_from_the_committed_results(tmp_path):
    pages = write_pages(STUDY, tmp_path)
    for name, lines in pages.items():
        assert (ROOT / "docs" / "measured" / name).read_text() == "\n".join(lines).rstrip() + "\n", name
    assert len((ROOT / "docs" / "measured" / "results.md").read_text().splitlines()) <= 200
    assert {path.stem for path in (ROOT / "docs" / "measured" / "results").glob("*.svg")} == {
        path.stem for path in (tmp_path / "results").glob("*.svg")
    }


def test_half_a_study_has_pages_that_say_so(tmp_path):
    store = study_store(tmp_path / "study.csv", tmp_path / "runs")
    for name in ("scenes/egt-0", "scenes/joint-0", "scenes/plain-0"):
        store.add(name, STUDY.read()[name])
    store.fold()
    pages = write_pages(store, tmp_path)
    assert "runs are missing" in "\n".join(pages["results.md"])
    accuracy = 100 * store.read()["scenes/joint-0"]["tests"]["agreeing"]["accuracy"][0]
    row = next(line for line in pages["results/scenes.md"] if line.startswith("| (c) joint, evidence heads | 1 |"))
    assert row.split("|")[3].strip() == f"{accuracy:.1f}"
    assert "results/digits.md" not in pages
