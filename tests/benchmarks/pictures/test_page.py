"""The tables about pictures, from made-up figures."""

from __future__ import annotations

from typing import Any

from benchmarks.pictures.measure import list_policies
from benchmarks.pictures.page import write_accuracy, write_policies, write_promises, write_steps


def make_runs(seeds: int) -> dict[str, dict[str, Any]]:
    common = {"pictures": 100, "drawings": 20, "epochs": 2}
    policy = {"cost": 0.8, "drop": 0.04, "accuracy": 0.5, "exit_shares": [0.2, 0.8]}
    plain = {**common, "accuracy": [0.5]}
    exits = {**common, "accuracy": [0.3, 0.51], "cost": [0.25, 1.02], "skill": [0.4], "energy": [0.3, 0.6], "area": 0.2}
    exits |= {"policies": dict.fromkeys([name for name, *_ in list_policies()], policy)}
    exits |= {"calibration_pictures": 90, "calibration_drawings": 15}
    runs: dict[str, dict[str, Any]] = {"step-0": {"ratio": [1.05, 1.0, 1.1], "batch": 64, "rounds": 9}}
    runs["step-0"] |= {"exits_seconds": 2.1, "plain_seconds": 2.0}
    for seed in range(seeds):
        pair = {"difference": 0.01, "error": 0.02}
        runs |= {f"plain-{seed}": plain, f"exits-{seed}": exits, f"pair-{seed}": pair}
    return runs


def test_accuracy_has_a_row_for_each_exit_and_the_plain_network():
    text = "\n".join(write_accuracy(make_runs(3)))
    assert "| plain network | 1 | 50.0 | 50.0 | 50.0 | **50.0** |" in text
    assert "| exit 0 | 0.25 | 30.0 | 30.0 | 30.0 | **30.0** | 0.40 | 30 % |" in text
    assert "+1.0, +1.0, +1.0 points, +1.00 in the mean" in text


def test_policies_say_how_often_they_broke_their_limit():
    text = "\n".join(write_policies(make_runs(2)))
    assert "| 2 points, by drawing | 0.80 | 4.0, 4.0 | 2 of 2 |" in text
    assert "| 5 points, by picture | 0.80 | 4.0, 4.0 | 0 of 2 |" in text


def test_promises_need_all_seeds():
    assert "1.05 times" in "\n".join(write_steps(make_runs(1)))
    assert len(write_promises(make_runs(1))) == 2 + 1
    assert len(write_promises(make_runs(3))) == 2 + 2
