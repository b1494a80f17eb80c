from benchmarks.truth.page import write_promises, write_task
from benchmarks.truth.promises import list_promises
from tests.benchmarks.truth.test_promises import _make_runs, _run


def test_a_row_for_each_condition_with_means_over_seeds():
    runs = {f"scenes/egt-{seed}": _run((0.5, 0.9 + seed / 10, 1.0), [0.5, 0.97], [0.8, 0.9, 0.9]) for seed in range(2)}
    runs = {name: one | {"relevance": {"deletion_share": [1, 1, 1]}} for name, one in runs.items()}
    plain = {"scenes/plain-0": {"tests": runs["scenes/egt-0"]["tests"]}}
    lines = write_task(runs | plain, "scenes")
    assert any("EGT (the defaults) | 2 | 80.0 / 90.0 / 90.0" in line and "0.50 / 0.95 / 1.00" in line for line in lines)
    assert write_task(runs, "vit") == []


def test_a_share_that_does_not_exist_is_left_out():
    shares = [(None, 0.9, 1.0), (None, 0.7, 1.0), (None, None, 1.0)]
    runs = {f"digits/egt-{seed}": _run(one, [0, 0], [1, 1, 1]) for seed, one in enumerate(shares)}
    runs = {name: one | {"relevance": {"deletion_share": [1, 1, 1]}} for name, one in runs.items()}
    assert any("| none / 0.80 / 1.00 |" in line for line in write_task(runs, "digits"))


def test_promises_are_shown_with_their_intervals():
    lines = write_promises(list(list_promises(_make_runs("scenes", 5))))
    assert any("energy in the object, exit 0 | 0.8 ± 0 | >= 0.75 | yes" in line for line in lines)
    assert write_promises([]) == []
