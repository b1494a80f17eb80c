"""The trials' runs, and that the page has their means."""

import csv
from collections import defaultdict
from statistics import mean

from benchmarks.markdown import ROOT
from benchmarks.series import tasks, trials
from benchmarks.store import RESULTS
from tests.benchmarks.series.test_tasks import make_archive


def test_the_page_has_the_means():
    found = defaultdict(list)
    with (RESULTS / "series_trials.csv").open() as file:
        for row in csv.DictReader(file):
            found[row["task"], int(row["updates"]), float(row["distill"])].append((float(row["lost"]), float(row["exit_0"])))
    assert set(found) == set(trials.TRIALS)
    page = (ROOT / "docs" / "measured" / "series.md").read_text().split("**Trials**")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")][1:]
    for updates, distill, *cells in (row for row in rows if row[0] != "---"):
        key = int(updates.replace(",", "")), float(distill == "1")
        for task, (lost, exit_0) in zip(("gunpoint", "vowels"), (cells[:2], cells[2:]), strict=True):
            if lost:
                assert f"{mean(one for one, _ in found[task, *key]):.1f}" == lost.split()[0], (task, key)
                assert f"{mean(one for _, one in found[task, *key]):.1f}" == exit_0, (task, key)


def test_runs_are_written_as_they_end_and_not_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "read_archive", make_archive)
    monkeypatch.setattr(trials, "TRIALS", (("gunpoint", 4, 0.0), ("vowels", 4, 1.0)))
    words = ["--seeds", "10", "--out", str(tmp_path / "x.csv")]
    trials.main(words)
    head, *rows = (tmp_path / "x.csv").read_text().splitlines()
    assert head == ",".join(trials.HEAD)
    assert [row.split(",")[:4] for row in rows] == [["gunpoint", "4", "0.0", "10"], ["vowels", "4", "1.0", "10"]]
    assert all(0 <= float(row.split(",")[4]) <= 100 for row in rows)
    capsys.readouterr()
    trials.main(words)
    assert not capsys.readouterr().out
