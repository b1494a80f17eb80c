"""Multiply-accumulates and times up to the nodes of a graph."""

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.cutting import cost
from exitlens.model.cutting.cost import NodeTimer, count_macs, count_node_macs
from exitlens.model.cutting.trace import trace
from tests.conftest import TinyNet

X = torch.zeros(1, 3, 16, 16)
A, B, C = 8 * 8 * 6 * 27, 4 * 4 * 8 * 54, 4 * 4 * 10 * 72  # of the convolutions of TinyNet at 16x16


def test_multiply_accumulates_by_hand():
    backbone, x = TinyNet().eval(), torch.zeros(1, 3, 16, 16)
    macs, out = count_macs(backbone, x)
    assert macs == A + B + C + 40
    assert out.shape == (1, 4)
    assert not out.requires_grad
    assert count_macs(backbone, x.repeat(3, 1, 1, 1))[0] == 3 * macs


def test_by_node():
    traced = trace(TinyNet(), False, torch.zeros(1, 3, 16, 16))
    macs = count_node_macs(traced)
    assert {n.name: count for n, count in macs.items() if count} == {"a_0": A, "b_0": B, "c_0": C, "fc": 40}


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
    with NodeTimer(*trace_places()) as timer:
        timer.run(3, 0.0)
        assert timer.shares(0) == [3 / 6, 4 / 6]
        assert timer.shares(1) == [2 / 16, 11 / 16]
        assert timer.shares() == [2 / 5, 3 / 5]
        assert timer.done == 3


def test_the_clocked_graph_is_the_graph():
    x = torch.randn(3, 3, 16, 16)
    traced, nodes = trace_places(x)
    backbone, before = traced.backbone.eval(), [str(node) for node in traced.graph.nodes]
    timer = NodeTimer(traced, nodes)
    assert torch.equal(timer.module(x), backbone(x))
    assert [str(node) for node in traced.graph.nodes] == before
    parts = timer.time_parts([x])
    assert len(parts) == 3
    assert min(parts) > 0


def test_the_time_is_bounded_and_a_slow_backbone_gets_one_sample(monkeypatch):
    now, sizes = [0.0], []

    def run(timer, tensors):
        now[0] += 4.0
        sizes.append(len(tensors[0]))
        return [1.0, 1.0, 2.0]

    def warm_up(make, graph, tensors):
        now[0] += 5.0

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(NodeTimer, "time_parts", run)
    monkeypatch.setattr(cost, "run_real", warm_up)
    with NodeTimer(*trace_places()) as timer:
        timer.run(6, 1.0)
        assert (timer.done, timer.seconds, sizes) == (3, 12.0, [1, 1, 1])
        timer.run(6, 1.0)
        assert timer.done == 3
        assert timer.shares(1) == [0.25, 0.5]


def test_no_places_and_a_failing_example():
    traced, nodes = trace_places()
    with NodeTimer(traced, []) as timer:
        timer.run(1, 0.0)
        assert timer.shares() == []
    traced.example = torch.zeros(1, 2, 16, 16)
    with pytest.raises(xl.errors.AttachError, match="fails on an input of shape"), NodeTimer(traced, nodes):
        pass
