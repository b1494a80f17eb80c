"""The page about speed, from the committed figures."""

from benchmarks.markdown import ROOT
from benchmarks.performance.page import read_runs, summarise, write_section


def test_the_committed_page_holds_every_network():
    page, runs = (ROOT / "docs" / "measured" / "performance.md").read_text(), read_runs()
    assert len(runs) == 8
    for (name, threads), found in runs.items():
        assert "\n".join(write_section(name, threads, found)).strip() in page


def test_the_summary_has_a_row_for_each_network():
    assert sum(line.startswith("| ") for line in summarise(read_runs())) == 2 + 4
