"""Places of exits, their multiply-accumulates and times."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import exitlens as xl
from exitlens.model.cutting import placement
from exitlens.model.cutting.placement import NodeTimer, choose_by_time, choose_points, count_macs, place_exits
from exitlens.model.cutting.trace import trace
from tests.conftest import TinyNet
from tests.model.kinds import check_unchanged, make_network
from tests.texts import AT, make_bert, make_texts


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(placement, "SECONDS", 0.05)


X = torch.zeros(1, 3, 16, 16)
A, B, C = 8 * 8 * 6 * 27, 4 * 4 * 8 * 54, 4 * 4 * 10 * 72  # of the convolutions of TinyNet at 16x16


def test_points_of_a_tiny_network_by_hand():
    points = {p.name: p for p in xl.list_exit_candidates(TinyNet(), X)}
    assert (points["a"].macs, points["a"].shape) == (A, (6, 8, 8))
    assert points["b"].cost == pytest.approx((A + B) / (A + B + C + 40))
    assert "c" not in points  # there the final exit answers
    shares = [p.time_share for p in points.values()]
    assert shares == sorted(shares)


@pytest.mark.slow
def test_the_middle_of_a_residual_block_is_no_place():
    names = [p.name for p in xl.list_exit_candidates(ResNet(BasicBlock, [2] * 4), torch.zeros(1, 3, 64, 64), runs=0)]
    assert {"layer1", "layer1.0", "layer2", "layer3", "layer4.0"} <= set(names)
    assert not [name for name in names if "conv" in name and name != "conv1"]


def sort(net, x):
    for _ in range(10):  # much time, no multiply-accumulates
        x = x.sort(-1).values.sort(-2).values
    return x


def make_uneven(slow):
    """Return four convolutions of the same cost, with most of the work before the first or after the last."""
    layers = {name: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for name in "abcd"}
    work = make_network(sort)
    layers[slow] = nn.Sequential(work, layers["a"][0]) if slow == "a" else nn.Sequential(layers["d"][0], work)
    return make_network(lambda n, x: n.fc(n.d(n.c(n.b(n.a(x)))).mean((2, 3))), **layers, fc=nn.Linear(8, 4))


EXAMPLE = torch.zeros(1, 8, 24, 24)


def count_operations(timer, tensors):
    """In place of seconds: sorting takes 50, anything else 1."""
    parts = [0.0]
    for node in timer.module.graph.nodes:
        if node.target == timer.note_time:
            parts.append(0.0)
        elif node.op != "placeholder":
            parts[-1] += 50 if node.target == "sort" else 1
    return parts


@pytest.mark.parametrize(("slow", "expected"), [("a", "a"), pytest.param("d", "c", marks=pytest.mark.slow)])
def test_placed_by_time_where_cost_says_otherwise(slow, expected, monkeypatch):
    monkeypatch.setattr(NodeTimer, "time_parts", count_operations)
    backbone = make_uneven(slow)
    assert place_exits(backbone, EXAMPLE, 1) == ["b"]
    assert place_exits(backbone, EXAMPLE, 1, placement="time") == [expected]
    assert xl.attach(backbone, 1, 4, EXAMPLE, placement="time").info.at == (expected,)


def point(name, cost, time_share):
    return xl.types.ExitCandidate(name, round(100 * cost), cost, (8, 4, 4), time_share)


def test_choosing_among_places_by_hand():
    points = [
        *(point("pad", 0.0, 0.02), point("conv", 0.1, 0.28), point("norm", 0.1, 0.30), point("relu", 0.1, 0.32)),
        *(point("x", 0.3, 0.5), point("slow", 0.3, 0.8), point("y", 0.6, 0.9), point("z", 0.9, 0.95)),
    ]
    assert choose_points(points, 1) == ["y"]
    assert choose_points(points, 1, "time") == ["x"]  # "slow" costs no more, and is another place in time
    assert choose_points(points, 3) == ["slow", "y", "z"]
    assert choose_points(points, 3, "time") == ["relu", "x", "slow"]
    assert choose_points(points, 4) == ["relu", "slow", "y", "z"]
    assert choose_points(points, 5, "time") == ["relu", "x", "slow", "y", "z"]
    with pytest.raises(xl.errors.AttachError, match="5 early exits do not fit, this backbone has 4 places"):
        choose_points(points, 5)


class Halves:
    """A timer with known shares of both halves of the runs: those of the n-th measurement."""

    def __init__(self, *measured):
        self.measured, self.times, self.seconds = iter(measured), [], 0.0

    def run(self, runs, seconds):
        self.halves, self.times, self.seconds = next(self.measured), self.times + [None] * runs, self.seconds + 4.0

    def shares(self, half=None):
        return [sum(pair) / 2 for pair in zip(*self.halves, strict=True)] if half is None else self.halves[half]


PLACES = [point(name, 0.1 * (i + 1), 0.0) for i, name in enumerate("wxyz")]
QUIET, NOISY = [0.1, 0.45, 0.6, 0.9], [0.1, 0.3, 0.52, 0.9]


def test_both_halves_have_to_choose_the_same_places_or_places_as_good():
    assert choose_by_time(PLACES, 1, Halves((QUIET, QUIET))) == ["x"]
    late = Halves((QUIET, NOISY), (QUIET, QUIET))
    assert choose_by_time(PLACES, 1, late) == ["x"]
    assert len(late.times) == 12
    near = Halves(([0.1, 0.46, 0.55, 0.9], [0.1, 0.45, 0.54, 0.9]))  # 0.455 and 0.545: both 0.045 from the middle
    assert choose_by_time(PLACES, 1, near)[0] in "xy"
    assert len(near.times) == 6


def test_halves_that_never_agree_are_an_error_that_says_what_to_do():
    busy = Halves(*[(QUIET, NOISY)] * 9)
    message = r"halves of 18 runs chose \['x'\] and \['y'\].*at=\['y'\].*placement='cost'"
    with pytest.raises(xl.errors.AttachError, match=message):
        choose_by_time(PLACES, 1, busy)
    with pytest.raises(xl.errors.AttachError, match="9 early exits do not fit"):
        choose_by_time(PLACES, 9, Halves())


@pytest.mark.slow
def test_places_by_time_in_a_text_network():
    backbone, texts = make_bert(), make_texts()
    points = xl.list_exit_candidates(backbone, texts, runs=1)
    assert [p.name for p in points if p.name in AT] == AT
    assert [p.time_share for p in points] == sorted(p.time_share for p in points)
    assert len(choose_points(points, 2, "time")) == 2
    unknown = {name: tensor + 1000 for name, tensor in texts.items()}
    with pytest.raises(xl.errors.AttachError, match="example: the backbone fails"):
        xl.list_exit_candidates(backbone, unknown)


def draw(net, x):
    """Be random, and write to the input and to a buffer, in evaluation mode too."""
    net.calls.add_(1)
    return TinyNet.forward(net, nn.functional.dropout(x.mul_(2), 0.1, True))


def test_timing_leaves_everything_alone():
    backbone, x = make_network(draw, TinyNet, calls=torch.zeros(())), torch.ones(1, 3, 16, 16)
    backbone.train().b.eval()
    with check_unchanged(backbone):
        xl.list_exit_candidates(backbone, x)
    assert torch.equal(x, torch.ones(1, 3, 16, 16))


def test_nothing_is_timed_where_the_cost_decides(monkeypatch):
    monkeypatch.setattr(placement, "NodeTimer", lambda *args: pytest.fail("timed"))
    assert place_exits(TinyNet(), X, 1) == ["b"]
    assert {p.time_share for p in xl.list_exit_candidates(TinyNet(), X, runs=0)} == {0.0}


@pytest.mark.slow
def test_the_default_example_has_the_dtype_of_the_backbone():
    assert xl.list_exit_candidates(TinyNet().double(), runs=1)[0].shape == (6, 112, 112)


def test_multiply_accumulates_by_hand():
    backbone = TinyNet().eval()
    macs, out = count_macs(backbone, X)
    assert (macs, out.shape, out.requires_grad) == (A + B + C + 40, (1, 4), False)
    assert count_macs(backbone, X.repeat(3, 1, 1, 1))[0] == 3 * macs
    by_node = placement.count_node_macs(trace(backbone, False, X))
    assert {n.name: count for n, count in by_node.items() if count} == {"a_0": A, "b_0": B, "c_0": C, "fc": 40}


def test_fused_kernels_are_counted_and_allowed_again():
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    macs, _ = count_macs(layer, torch.zeros(1, 10, 16))
    assert macs >= 10 * 16 * (4 * 16 + 2 * 24)  # four projections and two layers
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled
    lstm, steps = nn.LSTM(5, 6, batch_first=True).eval(), 7
    assert count_macs(lstm, torch.zeros(1, steps, 5))[0] == steps * 4 * 6 * (5 + 6)


def trace_places(example=X):
    traced = trace(TinyNet(), False, example)
    return traced, [traced.last_nodes[name] for name in ("a", "b")]


def measure(monkeypatch, *runs):
    """Let the timer measure these seconds of three parts, run by run."""
    left = iter(runs)
    monkeypatch.setattr(NodeTimer, "time_parts", lambda timer, tensors: next(left))


def test_the_shortest_time_of_every_part_counts_and_each_half_of_the_runs_has_its_own(monkeypatch):
    measure(monkeypatch, [3.0, 1.0, 6.0], [2.0, 9.0, 5.0], [8.0, 8.0, 2.0])
    timer = NodeTimer(*trace_places())
    timer.run(3, 0.0)
    assert [timer.shares(half) for half in (0, 1, None)] == [[3 / 6, 4 / 6], [2 / 16, 11 / 16], [2 / 5, 3 / 5]]
    assert len(timer.times) == 3


def test_the_clocked_graph_is_the_graph():
    x = torch.randn(3, 3, 16, 16)
    traced, nodes = trace_places(x)
    backbone, before = traced.backbone.eval(), [str(node) for node in traced.graph.nodes]
    timer = NodeTimer(traced, nodes)
    assert torch.equal(timer.module(x), backbone(x))
    assert [str(node) for node in traced.graph.nodes] == before
    first, second, third = timer.time_parts([x])
    assert min(first, second, third) > 0


def test_the_time_is_bounded_and_a_slow_backbone_gets_one_sample(monkeypatch):
    now, sizes = [0.0], []

    def run(timer, tensors):
        now[0] += 4.0
        sizes.append(len(tensors[0]))
        return [1.0, 1.0, 2.0]

    def warm_up(make, graph, tensors):
        now[0] += 5.0

    monkeypatch.setattr(placement.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(NodeTimer, "time_parts", run)
    monkeypatch.setattr(placement, "run_real", warm_up)
    timer = NodeTimer(*trace_places())
    timer.run(6, 1.0)
    assert (len(timer.times), timer.seconds, sizes) == (3, 12.0, [1, 1, 1])
    timer.run(6, 1.0)
    assert (len(timer.times), timer.shares(1)) == (3, [0.25, 0.5])


def test_no_places_and_a_failing_example():
    traced, nodes = trace_places()
    timer = NodeTimer(traced, [])
    timer.run(1, 0.0)
    assert timer.shares() == []
    traced.example = torch.zeros(1, 2, 16, 16)
    with pytest.raises(xl.errors.AttachError, match="fails on an input of shape"):
        NodeTimer(traced, nodes).run(1, 0.0)
