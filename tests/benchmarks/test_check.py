"""The promises about speed are checked by a script; here the script is, on the committed figures and on worse ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import check as check_results

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def check(monkeypatch):
    def call(folder: Path) -> int:
        monkeypatch.setattr(sys, "argv", ["check", str(folder)])
        return check_results.main()

    return call


def test_the_committed_figures_keep_the_promises_or_say_why_not(check, capsys):
    assert check(RESULTS) == 0
    shown = capsys.readouterr().out
    assert shown.count("ok     ") > 50
    known = json.loads((ROOT / "benchmarks" / "known_misses.json").read_text())
    assert all(len(reason) > 40 for reason in known.values())
    assert "take it off the list" not in shown


def test_a_new_miss_fails(check, tmp_path, capsys):
    found = json.loads((RESULTS / "performance" / "resnet50-2.json").read_text())
    for batch in found["batches"]:
        for row in batch["rows"]:
            row["speedup_tuned"] = [1.1, 1.0, 1.2]
    (tmp_path / "performance").mkdir()
    (tmp_path / "performance" / "resnet50-2.json").write_text(json.dumps(found))
    assert check(tmp_path) == 1
    assert "MISSED" in capsys.readouterr().out


def test_no_results_fail(check, tmp_path):
    assert check(tmp_path) == 1


def test_the_page_holds_every_network(check):
    page = (ROOT / "docs" / "performance.md").read_text()
    for path in (RESULTS / "performance").glob("*.json"):
        at = json.loads(path.read_text())["network"]["exits"]
        assert all(f"`{name}`" in page for name in at)
