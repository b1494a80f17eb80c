"""The tables about guarantees, from the committed figures."""

from benchmarks.guarantees.page import (
    write_drifts,
    write_gates,
    write_groups,
    write_labels,
    write_savings,
    write_violations,
)
from benchmarks.markdown import ROOT


def test_the_committed_tables_are_made_from_the_committed_results():
    page = (ROOT / "docs" / "concepts" / "guarantees.md").read_text()
    for lines in (write_violations(), write_savings(), write_gates(), write_drifts(), write_groups(), write_labels()):
        assert "\n".join(lines).strip() in page
