"""A static network of equal time, on made-up runs computed by hand; ours and static networks on a tiny task."""

import re
from functools import partial

import pytest
import torch
from torch import nn

import exitlens as xl
from benchmarks import static, tasks, truth
from tests.conftest import TinyNet

TESTS = ("agreeing", "disagreeing", "unseen")


@pytest.fixture
def task(tiny_set):
    settings = {"epochs": 1, "batch_size": 16}
    return tasks.Task(tiny_set, tiny_set, {"test": tiny_set}, TinyNet, ("a", "b"), settings, "evidence", (4, 4))


def test_cells():
    assert set(static.SEEDS) == set(tasks.TASKS) == set(tasks.TITLES) == set(static.CANDIDATES) == set(static.RIVALS)
    assert all(part.family in static.FAMILIES for candidates in static.CANDIDATES.values() for part in candidates.values())
    cells, later = list(static.list_cells()), static.list_candidates("scenes", 1)
    assert {f"scenes/{name}-0" for name in ("adaptive", *static.CANDIDATES["scenes"])} <= set(cells)
    assert {f"scenes/{name}-1" for name in ("adaptive", "time", *later)} == {c for c in cells if re.match("scenes/.*-1$", c)}
    assert sum("/time-" in cell for cell in cells) == sum(static.SEEDS.values())


def test_a_narrow_network(task):
    net = static.Candidate("width", partial(static.make_narrow, width=0.25)).build(task, 0)
    assert net(task.train.first(2).inputs)[0].logits.shape == (2, 4)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert (convolutions[0].out_channels, convolutions[-1].out_channels) == (8, 32)  # of 32 and 128


def test_a_cut_network_is_the_beginning_of_the_backbone(task):
    net = static.Candidate("cut", partial(static.make_cut, name="b")).build(task, 0).eval()
    torch.manual_seed(0)
    x, whole = task.train.first(2).inputs, TinyNet().eval()
    assert torch.allclose(net.stage(0)(x)[0], whole.b(whole.a(x)), atol=1e-5)
    assert net.num_exits == len(net(x)) == 1


def test_the_loss_follows_the_teacher_on_the_same_batch(task):
    net = tasks.build_network(task, 0, exits=False).eval()
    teacher = static.Teacher(net)
    images, labels = task.train.first(4).inputs, task.train.labels[:4]
    assert teacher(images) is images
    outputs = net(images)
    same = static.make_loss(teacher)(outputs, labels)
    assert same.distillation.item() == pytest.approx(0, abs=1e-5)
    assert same.total.item() == pytest.approx(xl.EGTLoss(weight=0.0)(outputs, labels).total.item(), abs=1e-5)
    flat = (outputs[0]._replace(logits=torch.zeros(4, 4, requires_grad=True)),)
    terms = static.make_loss(teacher)(flat, labels)
    soft = (teacher.logits / 2).softmax(1)
    by_hand = 4 * (soft * (soft * 4).log()).sum(1).mean()
    assert terms.distillation.item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert (terms.total - terms.classification).item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert terms.total.requires_grad


@pytest.mark.slow
def test_ours_and_a_static_network_are_measured_and_timed(task, tmp_path, monkeypatch):
    candidate = static.Candidate("cut", partial(static.make_cut, name="b"))
    monkeypatch.setitem(static.CANDIDATES, "digits", {"cut-b": candidate})
    monkeypatch.setattr(static, "open_task", lambda *words: task)
    monkeypatch.chdir(tmp_path)
    ours = static.measure_adaptive("digits", 0, quick=True)
    assert ours["full"]["tests"]["test"]["agreement"] == 1
    assert sum(ours["tests"]["test"]["exit_shares"]) == pytest.approx(1)
    other = static.measure_candidate("digits", "cut-b", 0, quick=True)
    assert set(other["tests"]["test"]) == {"samples", "accuracy", "agreement"}
    assert static.measure_candidate("digits", "cut-b", 0, quick=True)["tests"] == other["tests"]
    times = static.measure_times("digits", 0, quick=True)
    assert list(times["exit_share"]) == ["exit 0", "exit 1", "exit 2"]
    assert set(times["ms"]) == {"full", "cut-b"}
    assert times["full_over_fast"][0] > 0


@pytest.mark.slow
def test_the_fast_policy_is_held_to_the_full_networks_accuracy(task, tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(static.xl, "calibrate", lambda trace, max_accuracy_drop, folds: limits.append(max_accuracy_drop))
    monkeypatch.setattr(static, "find_folder", lambda name, condition, *words: tmp_path / condition)
    labels = task.validation.labels
    for answers in ((labels + 1) % 4, labels):  # a full network that is always wrong, and one that never is
        monkeypatch.setattr(static, "answer", lambda net, data, answers=answers: answers)
        adapted = static.adapt(task, "digits", 0, False)
        ours = static.rate(xl.collect(adapted.net, task.validation).answers[:, -1], task.validation)["accuracy"]
        assert limits[-2:] == [static.LIMIT, max(static.LIMIT + ours - adapted.full_accuracy, 0.0)]
    assert limits[1] > static.LIMIT
    assert limits[3] == 0.0
    assert truth.CONDITIONS[truth.PLAIN][0] is None


# Made-up runs


@pytest.fixture
def _rival(monkeypatch):
    """Here narrower networks are the better ones, whatever the real runs say."""
    monkeypatch.setitem(static.RIVALS, "scenes", "width")


def make_tests(*accuracy):
    return {test: {"samples": 9, "accuracy": a, "agreement": a + 0.01} for test, a in zip(TESTS, accuracy, strict=False)}


def make_runs(seeds, ours=(0.92, 0.7, 0.68)):
    """Static networks take 1, 2 and 3 ms, the full one 4; ours 1.5, 2.5 and 3.5 on the three test sets."""
    small = {"validation": 0.9, "tests": make_tests(0.88, 0.6, 0.5), "title": ""}
    large = {"validation": 0.92, "tests": make_tests(0.9, 0.62, 0.52), "title": ""}
    full = {"validation": 0.93, "tests": make_tests(0.93, 0.7, 0.6)}
    poor = {"validation": 0.5, "tests": make_tests(0.5, 0.5, 0.5), "title": ""}
    names = list(static.CANDIDATES["scenes"])
    ms = {name: [1.0 + i % 3, 0, 9] for i, name in enumerate(names)} | {"full": [4.0, 3.9, 4.1]}
    times = {"ms": ms, "adaptive_ms": {test: [1.5 + i, 1, 4] for i, test in enumerate(TESTS)}}
    times |= {"fast_ms": [1.25, 1, 2], "full_over_fast": [3.2, 3, 4], "full_over_adaptive": {"agreeing": [2.6, 2, 3]}}
    times["exit_share"] = {"exit 0": [0.3, 0.2, 0.4], "exit 1": [1.02, 1, 2]}
    runs = {}
    for seed in range(seeds):
        own = make_tests(*ours)
        own["agreeing"]["exit_accuracy"] = [0.8, 0.9]
        runs[f"scenes/adaptive-{seed}"] = {"tests": own, "full": full, "fast": {"tests": make_tests(0.925, 0.69, 0.67)}}
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
def test_every_test_set_has_its_own_time_and_the_full_network_is_the_end_of_every_family():
    runs = make_runs(1)
    for test, expected in (("agreeing", 0.89), ("unseen", 0.25 * 0.52 + 0.75 * 0.6)):
        at_equal_time = static.at_equal_time(runs, "scenes", 0, "width", test, static.pick_test(test, "accuracy"))
        assert at_equal_time == pytest.approx(expected)


def test_later_seeds_have_the_family_that_the_first_one_chose():
    runs = static.STUDY.read()
    for task, rival in static.RIVALS.items():
        families = {candidate.family for candidate in static.list_candidates(task, 1).values()}
        assert families == (set() if task in static.ONCE else {rival})
        if 0 in static.find_whole_seeds(runs, task):
            rest = static.list_tests(runs, task)[0], lambda run: run["validation"], True
            families = dict.fromkeys(candidate.family for candidate in static.CANDIDATES[task].values())
            rates = {family: static.at_equal_time(runs, task, 0, family, *rest) for family in families}
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
    expected |= {"speed|scenes|own": 2.6, "lost|scenes|own": -2.0}  # 0.9 of the final exit, 0.92 routed
    assert measured == pytest.approx(expected)
    assert {promise.bar for promise in judged.values()} == {0.5, 5.0, 2.7, 0.3}
    slow = {name: run | {"adaptive_ms": {test: [4.5, 4, 5] for test in TESTS}} for name, run in make_runs(5).items()}
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
