"""Padding that convolutions take over: the same values, without the copies."""

import copy

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from exitlens.model.engine.padding import PADS, absorb, convolve_padded
from exitlens.model.engine.prepare import prepare_graph
from exitlens.model.engine.tuning import Tuning

SIZES = st.integers(0, 3)


@settings(deadline=None)
@given(
    zeros=st.tuples(SIZES, SIZES, SIZES, SIZES),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
def test_convolving_with_zeros_around_is_padding_first(zeros, stride, dilation, kernel, size):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, *size, generator=draws)
    weight, bias = torch.randn(4, 1, *kernel, generator=draws), torch.randn(4, generator=draws)
    expected = F.conv2d(F.pad(x, zeros), weight, bias, stride, 0, dilation, 4)
    torch.testing.assert_close(convolve_padded(x, weight, bias, stride, zeros, dilation, 4), expected, atol=1e-5, rtol=1e-5)


def test_zeros_on_one_side_by_hand():
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]] * 4]])  # pads one column to the right and one row below, steps of two
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 0, 2] = 1.0  # reads the first row, two columns further
    found = convolve_padded(x, weight, None, (2, 2), (0, 1, 0, 1), (1, 1), 1)
    assert found.tolist() == [[[[3.0, 0.0], [3.0, 0.0]]]]


class Same(nn.Module):
    """Pads by hand, as networks ported from TensorFlow do."""

    def __init__(self, groups=4, zeros=(0, 1, 0, 1), value=0.0, changes=False):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, 2, groups=groups)
        self.zeros, self.value, self.changes = zeros, value, changes

    def forward(self, x):
        x = x * 1
        padded = F.pad(x, self.zeros, "constant", self.value)
        if self.changes:
            x.mul_(2)
        return self.conv(padded) + x.sum()


def export(net):
    return torch.export.export(net.eval(), (torch.randn(2, 4, 8, 8),)).module()


def count_pads(body):
    return sum(node.target in PADS for node in body.graph.nodes)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, in copies of what it exports
@pytest.mark.parametrize(
    ("how", "left"),
    [({}, 0), ({"groups": 1}, 1), ({"zeros": (0, -1, 0, 1)}, 1), ({"value": 1.0}, 1), ({"changes": True}, 1)],
    ids=["depthwise", "dense", "cuts off", "ones", "changed in place"],
)
def test_copies_before_depthwise_convolutions_go_and_others_stay(how, left):
    torch.manual_seed(0)
    body, x = export(Same(**how)), torch.randn(2, 4, 8, 8)
    twin = copy.deepcopy(body)
    absorb(twin)
    assert (count_pads(body), count_pads(twin)) == (1, left)
    torch.testing.assert_close(twin(x.clone()), body(x.clone()))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_engines_whose_graphs_are_folded_pad_nothing():
    body = export(Same())
    assert [count_pads(prepare_graph(body, Tuning(2, folded=folded))) for folded in (True, False)] == [0, 1]
