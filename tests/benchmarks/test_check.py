"""The command that checks the promises, on the committed figures and on worse ones."""

import json
from dataclasses import replace

from benchmarks.check import main, open_store
from benchmarks.demo.promises import list_promises
from benchmarks.performance.runs import PERFORMANCE
from benchmarks.promises import read_known_misses
from benchmarks.store import RESULTS
from benchmarks.study.conditions import find_missing
from benchmarks.study.runs import STUDY


def test_the_committed_figures_keep_the_promises_or_say_why_not(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.count("ok     ") > 50
    assert shown.count("study|") > 10
    assert all(len(reason) > 40 for reason in read_known_misses().values())
    assert "take it off the list" not in shown


def test_a_new_miss_fails(tmp_path, capsys):
    found = PERFORMANCE.read()["resnet50-2"]
    store = replace(open_store(PERFORMANCE, tmp_path), runs=tmp_path / "runs")
    rows = found["batches"]["32"]["rows"]
    worse = {name: {**row, "speedup_tuned": [1.1, 1.0, 1.2]} for name, row in rows.items()}
    store.add("resnet50-2", {**found, "batches": {"32": {**found["batches"]["32"], "rows": worse}}})
    store.fold()
    assert main(["--results", str(tmp_path)]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_half_a_study_is_not_judged(tmp_path, capsys):
    store = replace(open_store(STUDY, tmp_path), runs=tmp_path / "runs")
    store.add("scenes/egt-0", STUDY.read()["scenes/egt-0"])
    store.fold()
    assert (
        f"the study lacks {len(find_missing(store))} runs"
        in (main(["--results", str(tmp_path)]), capsys.readouterr().out)[1]
    )
    assert "scenes/egt-1" in find_missing(store)
    assert "scenes/egt-0" not in find_missing(store)
    assert "speed/fashion-2" in find_missing(store)


def test_no_results_fail(tmp_path):
    assert main(["--results", str(tmp_path)]) == 1


def test_a_demo_is_checked_on_request(tmp_path, capsys):
    path = RESULTS / "demo.json"
    assert main(["--demo", str(path)]) == 0
    judged = [line[:7].strip() for line in capsys.readouterr().out.splitlines() if line[:7] in ("ok     ", "known  ")]
    assert len(judged) == len(list(list_promises(json.loads(path.read_text()))))
    assert set(judged) == {"ok", "known"}
    slow = {**json.loads(path.read_text()), "step_time_ratio": 1.5}
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    assert main(["--demo", str(tmp_path / "slow.json")]) == 1
