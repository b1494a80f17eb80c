"""The axis of channels by hand: layers before features, layers after inputs, and ways that swap axes."""

import pytest
import torch
from torch import nn

from exitlens.model.cutting.trace import trace
from exitlens.model.geometry.axes import find_channel_axis, find_input_channel_axis

X = torch.zeros(1, 5, 7)


class Way(nn.Module):
    """A layer, then a way to lay out what it gave."""

    def __init__(self, layer, way, features):
        super().__init__()
        self.layer, self.way, self.last, self.fc = layer, way, nn.ReLU(), nn.Linear(features, 2)

    def forward(self, x):
        x = self.layer(x)
        x = self.last(self.way(x[0] if isinstance(self.layer, nn.RNNBase) else x))
        return self.fc(x.flatten(1))


LAYERS = {
    "conv": lambda: nn.Conv1d(5, 6, 1),
    "linear": lambda: nn.Linear(7, 6),
    "gru": lambda: nn.GRU(7, 6, batch_first=True),
}
WAYS = {
    "as it is": (lambda x: x, False),
    "transpose": (lambda x: x.transpose(1, 2), True),
    "method of negative axes": (lambda x: x.transpose(-1, -2), True),
    "permute": (lambda x: x.permute(0, 2, 1), True),
    "permute a list": (lambda x: torch.permute(x, (0, 2, 1)), True),
    "keywords": (lambda x: torch.transpose(x, dim0=1, dim1=2), True),
    "swapaxes": (lambda x: torch.swapaxes(x, 2, 1), True),
    "twice": (lambda x: x.transpose(1, 2).permute(0, 2, 1), False),
    "sum": (lambda x: torch.relu(x) + 1, False),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("export", [False, True])
def test_the_axis_of_channels_follows_the_way(layer, way, export):
    lay_out, swaps = WAYS[way]
    count = 6 * (7 if layer == "conv" else 5)
    traced = trace(Way(LAYERS[layer](), lay_out, count).eval(), False, X, export=export)
    node = traced.outputs["last"] if "last" in traced.outputs else traced.nodes[-3]
    before = 1 if layer == "conv" else 2
    assert find_channel_axis(traced, node) == (3 - before if swaps else before)


@pytest.mark.parametrize("export", [False, True])
@pytest.mark.parametrize(("layer", "axis"), [("conv", 1), ("linear", 2), ("gru", 2)])
def test_the_axis_of_an_input_is_that_of_its_first_reader(layer, axis, export):
    traced = trace(Way(LAYERS[layer](), lambda x: x, 6 * (7 if layer == "conv" else 5)).eval(), False, X, export=export)
    assert find_input_channel_axis(traced, traced.inputs[0]) == axis


class Swapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv1d(7, 6, 1), nn.Linear(30, 2)

    def forward(self, x):
        return self.fc(self.conv((x * 2).transpose(1, 2)).flatten(1))


def test_an_input_may_be_swapped_before_it_is_read():
    traced = trace(Swapped().eval(), False, X)
    assert find_input_channel_axis(traced, traced.inputs[0]) == 2


def test_nothing_is_told_where_no_layer_says():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.mix = nn.Parameter(torch.ones(5, 7)), nn.ReLU()

        def forward(self, x):
            return self.mix(x * self.weight).mean(1)[:, :2]

    traced = trace(Plain().eval(), False, X)
    assert find_channel_axis(traced, traced.outputs["mix"]) is None
    assert find_input_channel_axis(traced, traced.inputs[0]) is None
