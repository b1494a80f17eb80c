"""A static network of equal time, on made-up runs computed by hand; ours and static networks on a tiny task."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from benchmarks import static, tasks
from benchmarks.harness import bootstrap_error
from benchmarks.results import flatten, grow, write_result
from exitlens.io import read_json
from exitlens.model.backbones.small import SmallResNet
from exitlens.types.settings import RECIPES
from tests.conftest import TinyNet

TESTS = ("agreeing", "disagreeing", "unseen")


@pytest.fixture
def task(tiny_set):
    settings = {"epochs": 1, "batch_size": 16}
    return tasks.Task(tiny_set, tiny_set, {"test": tiny_set}, TinyNet, ("a", "b"), settings, "evidence", (4, 4))


def test_cells():
    assert set(static.SEEDS) == set(tasks.TASKS) == set(tasks.TITLES) == set(static.CANDIDATES)
    assert set(static.RIVALS) | set(static.HEADROOM) == set(static.SEEDS)
    cells, later = list(static.list_cells()), static.list_candidates("scenes", 1)
    assert {f"scenes/{name}-0" for name in ("adaptive", *static.CANDIDATES["scenes"])} <= set(cells)
    assert {f"scenes/{name}-1" for name in ("adaptive", "time", *later)} == {c for c in cells if re.match("scenes/.*-1$", c)}
    assert sum("/time-" in cell for cell in cells) == sum(static.SEEDS.values())
    parts = {f"photographs/rate-{part}" for part in ("plain", "egt", "width", "size", "cut")}
    assert parts == {cell for cell in cells if cell.startswith("photographs/rate")}
    more = {f"photographs/{name}-2" for name in ("cascade", "taught", "whole", "width-50")}
    assert more <= set(cells)
    assert cells.index("turned/rate-plain") < cells.index("photographs/adaptive-0")


def test_garments_are_turned_as_wholes():
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 8:20, 8:20] = 200
    turned = tasks.turn(images, 0)
    assert turned.shape == (200, 1, 40, 40)
    mass = turned.float().sum((1, 2, 3)) / images[0].float().sum()
    assert 0.45 < mass.min() < 0.6  # 1 / 1.43 along both axes
    assert 1.4 < mass.max() < 1.65
    assert torch.equal(turned, tasks.turn(images, 0))
    assert len(turned.flatten(1).unique(dim=0)) == 200


@pytest.mark.parametrize(("channels", "first", "last"), [({}, 16, 64), (tasks.HALF, 8, 32)])
def test_a_narrow_network(task, channels, first, last):
    task = replace(task, build=partial(SmallResNet, 4, 3, **channels))
    net = static.Candidate("width", partial(static.make_narrow, width=0.5)).build(task, 0)
    assert net(task.train.first(2).inputs)[0].logits.shape == (2, 4)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert (convolutions[0].out_channels, convolutions[-1].out_channels) == (first, last)


def test_a_cut_network_is_the_beginning_of_the_backbone(task):
    net = static.Candidate("cut", partial(static.make_cut, name="b")).build(task, 0).eval()
    torch.manual_seed(0)
    x, whole = task.train.first(2).inputs, TinyNet().eval()
    assert torch.allclose(net.stage(0)(x)[0], whole.b(whole.a(x)), atol=1e-5)
    assert net.num_exits == len(net(x)) == 1


def test_a_network_on_smaller_images(task):
    net = static.Candidate("size", partial(static.make_shrunk, side=8)).build(task, 0).eval()
    torch.manual_seed(0)
    x, whole = task.train.first(2).inputs, task.build().eval()
    assert torch.allclose(net(x)[0].logits, whole(F.interpolate(x, (8, 8), mode="bilinear", antialias=True)), atol=1e-5)


@pytest.fixture
def _tiny(task, tmp_path, monkeypatch):
    """Make photographs tiny, with one network that is cut early."""
    candidates = {"cut-b": static.Candidate("cut", partial(static.make_cut, name="b")), **static.UNCUT}
    monkeypatch.setitem(static.CANDIDATES, "photographs", candidates)
    monkeypatch.setattr(static, "load_task", lambda *words: task)
    monkeypatch.setattr(static, "FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_tiny")
def test_every_way_and_a_static_network_are_measured_and_timed(tmp_path):
    tried = static.choose_rate("photographs", "cut", quick=True)
    assert set(tried["validation"]) == {"0.33", "1", "3"}
    for part, best in (("cut", 0.706), ("plain", 0.704)):  # which is no clear gain
        write_result(tmp_path / "static.csv", f"photographs/rate-{part}", {"validation": {"0.33": 0.6, "1": 0.7, "3": best}})
    runs = {
        f"photographs/{kind}-0": static.measure_candidate("photographs", kind, 0, quick=True) for kind in ("cut-b", "whole")
    }
    record = read_json(next(tmp_path.glob("runs/*/photographs/cut-b-x3-0/fit/settings.json")))
    assert record["settings"]["learning_rate"] == pytest.approx(3 * RECIPES["scratch"].learning_rate)
    runs["photographs/adaptive-0"] = ours = static.measure_adaptive("photographs", 0, quick=True)
    assert (ours["rate"], runs["photographs/cut-b-0"]["rate"]) == (1.0, 3.0)
    assert ours["full"]["rate"] == 1.0
    assert sum(ours["points"]["final"]["tests"]["test"]["exit_shares"]) == pytest.approx(1)
    assert static.measure_candidate("photographs", "cut-b", 0, quick=True) == runs["photographs/cut-b-0"]
    for kind in ("taught", "routed"):
        runs[f"photographs/{kind}-0"] = static.measure_adaptive("photographs", 0, quick=True, kind=kind)
    runs["photographs/cascade-0"] = static.measure_cascades("photographs", 0, quick=True)
    assert set(runs["photographs/cascade-0"]) == {"cascade cut-b"}
    runs["photographs/time-0"] = times = static.measure_times("photographs", 0, quick=True)
    assert list(times["exit_share"]) == ["exit 0", "exit 1", "exit 2"]
    assert set(times["ms"]) == {"full", "cut-b", "whole"}
    assert set(times["ways"]) == {"exits", "taught", "routed", "cascade cut-b"}
    assert times["full_over"]["final"]["test"][0] > 0
    runs = {name: grow(flatten(run)) for name, run in runs.items()}  # as they come back from the file
    assert "plain 1, egt 1, cut 3." in static.write_task(runs, "photographs")[0]
    assert len(static.write_summary(runs)) == 3
    (winner,) = static.write_winners(runs)
    assert "Best rivals: cut 3; chosen of ours: " in winner
    assert static.measure_overhead(runs, "photographs", 0, "final", "test") > 0


@pytest.mark.usefixtures("_tiny")
def test_nothing_is_trained_before_its_rate_is_chosen():
    with pytest.raises(SystemExit, match=r"Fix: python -m benchmarks static run photographs/rate-cut"):
        static.measure_candidate("photographs", "cut-b", 0)


@pytest.mark.slow
def test_a_policy_is_held_to_the_full_networks_accuracy(task, monkeypatch):
    limits, net = [], tasks.build_network(task, 0, exits=True)
    monkeypatch.setattr(static.xl, "calibrate", lambda trace, max_accuracy_drop, folds: limits.append(max_accuracy_drop))
    ours = xl.collect(net, task.validation).correct[:, -1].double().mean().item()
    for full, most in ((0.0, 0.003 + ours), (1.0, 0.0)):  # a full network that is always wrong, and one that never is
        monkeypatch.setattr(static, "measure_accuracy", lambda net, data, full=full: full)
        static.open_way(net, net, task)
        assert limits[-4:] == [0.003, pytest.approx(most), 0.01, 0.03]


# Made-up runs


@pytest.fixture
def _rival(monkeypatch):
    """Here narrower networks are the better ones, whatever the real runs say."""
    monkeypatch.setitem(static.RIVALS, "scenes", "width")


def make_tests(*accuracy):
    return {test: {"samples": 9, "accuracy": a} for test, a in zip(TESTS, accuracy, strict=False)}


def make_runs(seeds, ours=(0.92, 0.7, 0.68)):
    """Static networks take 1, 2 and 3 ms, the full one 4; ours 1.5, 2.5 and 3.5 on the three test sets."""
    small = {"validation": 0.9, "tests": make_tests(0.88, 0.6, 0.5)}
    large = {"validation": 0.92, "tests": make_tests(0.9, 0.62, 0.52)}
    full = {"validation": 0.93, "tests": make_tests(0.93, 0.7, 0.6)}
    poor = {"validation": 0.5, "tests": make_tests(0.5, 0.5, 0.5)}
    names = list(static.CANDIDATES["scenes"])
    times = {"ms": {name: [1.0 + i % 3, 0, 9] for i, name in enumerate(names)} | {"full": [4.0, 3.9, 4.1]}}
    own_ms = {test: [1.5 + i, 1, 4] for i, test in enumerate(TESTS)}
    times["ways"] = {"exits": {"final": own_ms, "full": {"agreeing": [1.25, 1, 2]}}}
    times["full_over"] = {"final": {"agreeing": [2.6, 2, 3]}, "full": {"agreeing": [3.2, 3, 4]}}
    times["exit_share"] = {"exit 0": [0.3, 0.2, 0.4], "exit 1": [1.02, 1, 2]}
    runs = {}
    for seed in range(seeds):
        own = make_tests(*ours)
        own["agreeing"]["exit_accuracy"] = [0.8, 0.9]
        points = {"final": {"tests": own}, "full": {"tests": make_tests(0.925, 0.69, 0.67)}}
        runs[f"scenes/adaptive-{seed}"] = {"points": points, "full": full}
        runs[f"scenes/time-{seed}"] = times
        for i, name in enumerate(static.list_candidates("scenes", seed)):
            runs[f"scenes/{name}-{seed}"] = poor if name.startswith("cut") else small if i == 0 else large
    return runs


def test_values_lie_on_the_line_between_neighbours_that_are_worth_their_time():
    points = [(2.0, 0.7, 0.8), (1.0, 0.5, 0.6), (4.0, 0.9, 0.9), (3.0, 0.7, 0.1)]  # the last is no better than the first
    assert static.interpolate(points, 1.5) == pytest.approx(0.7)
    assert static.interpolate(points, 3.0) == pytest.approx(0.85)
    assert static.interpolate(points, 0.1) == 0.6
    assert static.interpolate(points, 4.1) == 0.9
    assert static.interpolate([*points, (5.0, 0.8, 0.2)], 5.0) == 0.9  # a full network that is worse than a cut one


@pytest.mark.usefixtures("_rival")
def test_the_family_that_is_best_at_the_time_on_validation_data_is_the_rival():
    runs, pick = make_runs(1), static.pick_test("agreeing", "accuracy")
    assert static.find_static(runs, "scenes", 0, 1.5, pick, "width") == pytest.approx(0.89)
    assert static.find_static(runs, "scenes", 0, 1.5, pick) == pytest.approx(0.89)
    unseen = static.find_static(runs, "scenes", 0, 3.5, static.pick_test("unseen", "accuracy"), "width")
    assert unseen == pytest.approx(0.25 * 0.52 + 0.75 * 0.6)  # the full network is the end of every family
    lucky = {"validation": 0.91, "tests": make_tests(0.7)}  # takes 1 ms, as the narrow one of 0.9, and is worse on test data
    assert static.find_static(runs | {"scenes/cut-layer1-0": lucky}, "scenes", 0, 1.0, pick) == 0.7
    early = {
        "validation": 0.902,
        "tests": make_tests(0.7),
    }  # at 1.5 ms the line of narrower networks is above that of cut ones
    assert static.find_static(runs | {"scenes/cut-layer1-0": early}, "scenes", 0, 1.5, pick) == pytest.approx(0.89)


def make_headroom_runs(seeds):
    """One static network of 1 ms is right on the first four of 8 samples, the full one of 3 on six; ways take 2 ms, the cascade 1."""
    rows = torch.arange(8)

    def make(count, validation):
        packed = np.packbits((rows < count).numpy()).tobytes().hex()
        return {
            "validation": validation,
            "tests": {"test": {"samples": 8, "accuracy": count / 8, "right": packed}},
        }

    def make_way(count, validation):
        point = make(count, validation)
        point["tests"]["test"]["exit_accuracy"] = [0.4, 0.7]
        return {"rate": 1.0, "exits": [0.4, 0.7], "points": dict.fromkeys(static.POINTS, point)}

    def last(ms):
        return {point: {"test": [ms, 0, 9], "validation": [ms, 0, 9]} for point in static.POINTS}

    names, runs = list(static.CANDIDATES["photographs"]), {}
    ms = {name: [3.0, 0, 9] for name in (*names, "full")} | {"cut-layer1": [1.0, 0, 9]}
    for seed in range(seeds):
        runs[f"photographs/adaptive-{seed}"] = make_way(7, 0.71) | {"full": make(6, 0.8) | {"rate": 3.0}}
        runs |= {f"photographs/{name}-{seed}": make(6, 0.7) | {"rate": 1.0} for name in names}
        runs[f"photographs/cut-layer1-{seed}"] = make(4, 0.6) | {"rate": 1.0}
        runs[f"photographs/routed-{seed}"] = make_way(8, 0.99)
        runs[f"photographs/cascade-{seed}"] = {
            "cascade cut-layer1": make_way(5, 0.68),
            "cascade width-50": make_way(8, 0.62),
        }
        ways = {"exits": last(2.0), "routed": last(2.0), "cascade cut-layer1": last(1.0), "cascade width-50": last(1.0)}
        runs[f"photographs/time-{seed}"] = {"ms": ms, "ways": ways, "exit_share": {"exit 0": [0.3, 0, 1]}}
    return runs


def test_the_way_that_gains_most_on_validation_data_is_judged_on_test_data():
    runs = make_headroom_runs(2)
    # at 2 ms static networks have 0.65 on validation data and exits 0.06 more; at 1 ms they have 0.6, and the cascade 0.08 more
    assert static.choose_way(runs, "photographs", 0, "final") == "cascade cut-layer1"
    assert static.find_rival(runs, "photographs", 0, 2.0) == "cut"
    gain = static.promise_gain("", "", 0.0, runs, ("photographs", "test"), ("final", "1"))
    assert gain.measured == pytest.approx(100 * 1 / 8)
    exits = static.promise_gain("", "", 0.0, runs, ("photographs", "test"), kinds=("exits",))
    assert exits.measured == pytest.approx(100 * (7 - 5) / 8)
    # answers are paired: of 8 samples, exits gain a half on two (where one network is right) and one on the seventh
    values = np.array([[0, 0, 0, 0, 50, 50, 100, 0]] * 2, float)
    assert exits.ends[1] - exits.measured == pytest.approx(12.706 * bootstrap_error(values), rel=1e-4)
    lines = static.write_task(runs, "photographs")
    assert "learning rates, times the recipe's: plain 3, egt 1, width 1, size 1, cut 1." in lines[0]
    assert lines[-1].startswith("| test | 3 below its final exit | 1.000 | 75.0 | 62.5 | 50.0 | 12.5 ± ")
    assert "cascade cut-layer1 2" in lines[-1]
    one_cascade = {name: run for name, run in runs.items() if name != "photographs/cascade-0"}
    assert "a cascade minus static" in static.write_task(one_cascade, "photographs")[2]
    assert static.write_summary(runs)[-1].split(" | ")[2:8] == ["40.0", "70.0", "30.0", "validation", "yes", gain.figure]


def test_samples_of_one_object_count_once(monkeypatch):
    runs = make_headroom_runs(2)
    monkeypatch.setitem(static.GROUPS, "photographs", 2)
    grouped = static.promise_gain("", "", 0.0, runs, ("photographs", "test"), kinds=("exits",))
    values = np.array([[0, 0, 50, 50]] * 2, float)
    assert grouped.ends[1] - grouped.measured == pytest.approx(12.706 * bootstrap_error(values), rel=1e-4)


def test_the_bar_is_on_the_mean_over_tasks_and_each_is_above_nothing(monkeypatch):
    monkeypatch.setattr(static, "HEADROOM", {"photographs": 2})
    monkeypatch.setitem(static.SEEDS, "photographs", 2)
    task, mean = static.list_promises(make_headroom_runs(2))
    assert (task.bar, mean.bar, mean.measured, mean.ends) == (0.0, 1.5, task.measured, pytest.approx(task.ends))
    assert not list(static.list_promises(make_headroom_runs(1)))
    monkeypatch.setattr(static, "HEADROOM", dict.fromkeys(("photographs", "again"), 2))
    monkeypatch.setattr(static, "find_whole_seeds", lambda *_: [0, 1])
    monkeypatch.setattr(static, "promise_gain", lambda *_: replace(task, measured=2.0, ends=(-10.706, 14.706)))
    mean = list(static.promise_headroom({}))[-1]  # of two tasks, each 2 ± 12.706 by one degree of freedom
    assert mean.ends[1] - mean.measured == pytest.approx(4.3027 / 2**0.5, rel=1e-3)


def test_later_seeds_have_the_family_that_the_first_one_chose():
    runs = static.STUDY.read()
    for task, rival in static.RIVALS.items():
        families = {candidate.family for candidate in static.list_candidates(task, 1).values()}
        assert families == (set() if task in static.ONCE else {rival})
        if 0 in static.find_whole_seeds(runs, task):
            ms = static.read_ms(runs, task, 0, "exits", "final", static.list_tests(runs, task)[0])
            families = dict.fromkeys(candidate.family for candidate in static.CANDIDATES[task].values())
            rates = {each: static.find_static(runs, task, 0, ms, lambda run: run["validation"], each) for each in families}
            assert max(rates, key=rates.get) == rival


@pytest.mark.usefixtures("_rival")
def test_promises_once_everything_is_there():
    judged = {promise.key: promise for promise in static.list_promises(make_runs(5))}
    measured = {key.removeprefix("static|"): promise.measured for key, promise in judged.items()}
    expected = {
        "scenes|agreeing": 3.0,
        "scenes|disagreeing": 6.0,  # the network of 3 ms is no better than that of 2
        "speed|scenes": 3.2,
        "lost|scenes": 0.5,
    }
    expected |= {"speed|scenes|final": 2.6, "lost|scenes|final": -2.0}  # 0.9 of the final exit, 0.92 routed
    assert measured == pytest.approx(expected)
    assert {promise.bar for promise in judged.values()} == {0.5, 5.0, 2.7, 0.3}
    late = {"exits": {"final": {test: [4.5, 4, 5] for test in TESTS}, "full": {"agreeing": [4.5, 4, 5]}}}
    slow = {name: run | {"ways": late} for name, run in make_runs(5).items()}
    judged = {promise.key: promise.measured for promise in static.list_promises(slow)}
    assert judged["static|scenes|agreeing"] == pytest.approx(-1.0)  # against the full network
    runs = make_runs(5)
    del runs["scenes/time-4"]
    assert not list(static.list_promises(runs))
    assert static.find_whole_seeds(runs, "scenes") == [0, 1, 2, 3]
    others = {name: ms for name, ms in runs["scenes/time-3"]["ms"].items() if name != "width-50"}
    runs["scenes/time-3"] = {**runs["scenes/time-3"], "ms": others}  # timed before that network was one of them
    assert static.find_whole_seeds(runs, "scenes") == [0, 1, 2]
    assert 3 in static.find_timed_seeds(runs, "scenes")
