"""A static network of equal time, on made-up runs whose answers are computed by hand."""

import pytest

from benchmarks.static import compare
from benchmarks.static.candidates import CANDIDATES, ONCE, RIVALS, list_candidates
from benchmarks.static.page import write_equal_time, write_networks, write_task
from benchmarks.static.promises import list_promises
from benchmarks.static.runs import STATIC
from benchmarks.truth.tasks import SEEDS

TESTS = ("agreeing", "disagreeing", "unseen")
CHOSEN = dict(RIVALS)


@pytest.fixture(autouse=True)
def _rival(monkeypatch):
    """Here narrower networks are the better ones, whatever the real runs say."""
    monkeypatch.setitem(RIVALS, "scenes", "width")


def make_tests(*accuracy):
    return {
        test: {"samples": 9, "accuracy": one, "agreement": one + 0.01} for test, one in zip(TESTS, accuracy, strict=False)
    }


def make_runs(seeds, ours=(0.92, 0.7, 0.68)):
    """Static networks take 1, 2 and 3 ms, the full one 4; ours 1.5, 2.5 and 3.5 on the three test sets."""
    small = {"validation": 0.9, "tests": make_tests(0.88, 0.6, 0.5), "title": ""}
    large = {"validation": 0.92, "tests": make_tests(0.9, 0.62, 0.52), "title": ""}
    full = {"validation": 0.93, "tests": make_tests(0.93, 0.7, 0.6)}
    poor = {"validation": 0.5, "tests": make_tests(0.5, 0.5, 0.5), "title": ""}
    names = list(CANDIDATES["scenes"])
    ms = {name: [1.0 + i % 3, 0, 9] for i, name in enumerate(names)} | {"full": [4.0, 3.9, 4.1]}
    adaptive_ms = {test: [1.5 + i, 1, 4] for i, test in enumerate(TESTS)}
    chosen = {family: dict.fromkeys(TESTS, f"{family}-50") for family in ("width", "cut")}
    runs = {}
    for seed in range(seeds):
        fast = {"tests": make_tests(0.925, 0.69, 0.67)}
        own = make_tests(*ours)
        own["agreeing"]["exit_accuracy"] = [0.8, 0.9]
        runs[f"scenes/adaptive-{seed}"] = {"tests": own, "full": full, "fast": fast}
        times = {"ms": ms, "adaptive_ms": adaptive_ms, "fast_ms": [1.25, 1, 2], "full_over_fast": [3.2, 3, 4]}
        times["full_over_adaptive"] = {"agreeing": [2.6, 2, 3]}
        runs[f"scenes/time-{seed}"] = {
            **times,
            "chosen": chosen,
            "exit_share": {"exit 0": [0.3, 0.2, 0.4], "exit 1": [1.02, 1, 2]},
        }
        for i, name in enumerate(list_candidates("scenes", seed)):
            runs[f"scenes/{name}-{seed}"] = poor if name.startswith("cut") else small if i == 0 else large
    return runs


def test_values_lie_on_the_line_between_neighbours():
    points = [(2.0, 0.8), (1.0, 0.6), (4.0, 0.9)]
    assert compare.interpolate(points, 1.5) == pytest.approx(0.7)
    assert compare.interpolate(points, 3.0) == pytest.approx(0.85)
    assert compare.interpolate(points, 0.1) == 0.6
    assert compare.interpolate(points, 4.0) == pytest.approx(0.9)
    assert compare.interpolate(points, 4.1) == 0.9  # the full network, though it takes less


def test_every_test_set_has_its_own_time_and_the_full_network_is_the_end_of_every_family():
    runs = make_runs(1)
    pick = compare.of_test("agreeing", "accuracy")
    assert compare.at_equal_time(runs, "scenes", 0, "width", "agreeing", pick) == pytest.approx(0.89)
    pick = compare.of_test("unseen", "accuracy")
    assert compare.at_equal_time(runs, "scenes", 0, "width", "unseen", pick) == pytest.approx((0.52 + 0.6) / 2)


def test_the_rival_is_chosen_on_validation_data():
    assert compare.choose_family(make_runs(1), "scenes") == "width"


def test_later_seeds_have_the_family_that_the_first_one_chose(monkeypatch):
    monkeypatch.setitem(RIVALS, "scenes", CHOSEN["scenes"])
    runs = STATIC.read()
    for task, rival in CHOSEN.items():
        assert {one.family for one in list_candidates(task, 1).values()} == (set() if task in ONCE else {rival})
        if 0 in compare.find_whole_seeds(runs, task):
            assert compare.choose_family(runs, task) == rival


def test_promises_once_everything_is_there():
    found = {one.key: one for one in list_promises(make_runs(5))}
    assert found["static|scenes|agreeing"].measured == pytest.approx(3.0)
    assert found["static|scenes|disagreeing"].measured == pytest.approx(8.0)
    assert found["static|speed|scenes"].measured == pytest.approx(3.2)
    assert found["static|lost|scenes"].measured == pytest.approx(0.5)
    assert not found["static|lost|scenes"].is_kept
    assert found["static|speed|scenes|own"].measured == pytest.approx(2.6)
    assert found["static|lost|scenes|own"].measured == pytest.approx(-2.0)  # 0.9 of the final exit, 0.92 routed
    assert {one.bar for one in found.values()} == {0.5, 5.0, 2.7, 0.3}
    runs = make_runs(5)
    del runs["scenes/time-4"]
    assert not list(list_promises(runs))
    assert compare.find_whole_seeds(runs, "scenes") == [0, 1, 2, 3]
    others = {name: ms for name, ms in runs["scenes/time-3"]["ms"].items() if name != "width-50"}
    runs["scenes/time-3"] = {**runs["scenes/time-3"], "ms": others}  # timed before that network was one of them
    assert compare.find_whole_seeds(runs, "scenes") == [0, 1, 2]
    assert 3 in compare.find_timed_seeds(runs, "scenes")


def test_ours_is_compared_with_the_full_network_where_it_takes_longer():
    runs = make_runs(5)
    slow = {test: [4.5, 4, 5] for test in TESTS}
    runs |= {name: run | {"adaptive_ms": slow} for name, run in runs.items() if "/time-" in name}
    found = {one.key: one.measured for one in list_promises(runs)}
    assert found["static|scenes|agreeing"] == pytest.approx(-1.0)
    assert found["static|scenes|disagreeing"] == pytest.approx(0.0)


def test_the_table_has_ours_beside_the_full_network_and_each_family():
    text = "\n".join(write_equal_time(make_runs(2), "scenes", [0, 1]))
    assert "| plain full network | 4.000 | 93.0 / 70.0 / 60.0 |" in text
    assert "| **ours** | 1.500 / 2.500 / 3.500 | 92.0 / 70.0 / 68.0 | 93.0 / 71.0 / 69.0 | 22.0 / 24.0 |" in text
    assert "| ours, 0.3 points below the full network | 1.250 | 92.5 / 69.0 / 67.0 |" in text
    assert "| static, narrower, the rival | 1.500 / 2.500 / 3.500 | 89.0 / 62.0 / 56.0 |" in text
    assert "take 30 / 102 % of the full network's time, and 80.0 / 90.0 % are right (agreeing)." in text
    assert "agreeing +3.0 ± 0.0; disagreeing +8.0 ± 0.0" in text
    assert "Ours wins: agreeing, disagreeing, unseen. At 0.3 points below the full network: agreeing +4.0 ± 0.0." in text


def test_a_single_seed_decides_nothing():
    assert "Not decided: agreeing, disagreeing, unseen." in write_equal_time(make_runs(1), "scenes", [0])[-1]


def test_means_are_over_the_seeds_of_which_everything_is_there():
    runs = make_runs(5)
    del runs["scenes/width-33-0"]
    assert any("Means over 4 seeds" in line for line in write_task(runs, "scenes"))
    untimed = {name: run for name, run in runs.items() if "time" not in name}
    assert not any("Means over" in line for line in write_task(untimed, "scenes"))
    assert any("width-50" not in line and "| 5 |  | 90.0" in line for line in write_networks(untimed, "scenes"))
    assert write_task({}, "scenes") == []


def test_an_exit_of_a_time_is_the_best_of_those_that_take_no_longer():
    runs = {}
    for seed in range(SEEDS["pictures"]):
        for name in list_candidates("pictures", seed):
            runs[f"pictures/{name}-{seed}"] = {"tests": {"test": {"accuracy": 0.3}}}
        fast = {"tests": {"test": {"accuracy": 0.37}}}
        own = {"test": {"accuracy": 0.4, "exit_accuracy": [0.2, 0.3, 0.4]}}
        full = {"tests": {"test": {"accuracy": 0.38}}}
        runs[f"pictures/adaptive-{seed}"] = {"tests": own, "full": full, "fast": fast}
        ms = {key: [1.0, 1, 1] for key in [*list_candidates("pictures", seed), "full"]}
        times = {"ms": ms, "adaptive_ms": {"test": [0.9, 1, 1]}, "fast_ms": [0.9, 1, 1], "full_over_fast": [2.1, 2, 3]}
        times["full_over_adaptive"] = {"test": [2.1, 2, 3]}
        runs[f"pictures/time-{seed}"] = {**times, "exit_share": {"a": [0.3, 0, 1], "b": [0.45, 0, 1], "c": [1.1, 1, 2]}}
    found = {one.key: one.measured for one in list_promises(runs)}
    assert found["static|early|pictures|0.25"] == 0
    assert found["static|early|pictures|0.5"] == pytest.approx(0.75)
    assert found["static|lost|pictures"] == pytest.approx(1.0)
