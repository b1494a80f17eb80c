"""Boundaries of stages, and the axis of channels, by hand."""

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.cutting import boundaries
from exitlens.model.cutting.boundaries import Layout, find_channel_axis, find_input_channel_axis
from exitlens.model.cutting.trace import trace
from tests.conftest import TinyNet
from tests.model.kinds import make_network

SERIES = torch.zeros(1, 5, 7)


def make_way(layer, way, features):
    """Return a layer, then a way to lay out its output."""

    def forward(net, x):
        x = net.layer(x)
        return net.fc(net.last(way(x[0] if isinstance(net.layer, nn.RNNBase) else x)).flatten(1))

    return make_network(forward, layer=layer, last=nn.ReLU(), fc=nn.Linear(features, 2))


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
    "property": (lambda x: x.mT, True),
    "twice": (lambda x: x.transpose(1, 2).permute(0, 2, 1), False),
    "sum": (lambda x: torch.relu(x) + 1, False),
}


@pytest.mark.parametrize(
    ("layer", "way", "export"),
    [
        *((layer, way, False) for layer in LAYERS for way in WAYS),
        *(pytest.param("conv", way, True, marks=pytest.mark.slow) for way in WAYS),
    ],
)
def test_the_axis_of_channels_follows_the_way(layer, way, export):
    lay_out, swaps = WAYS[way]
    count = 6 * (7 if layer == "conv" else 5)
    traced = trace(make_way(LAYERS[layer](), lay_out, count).eval(), False, SERIES, export=export)
    node = traced.outputs["last"] if "last" in traced.outputs else traced.nodes[-3]
    before = 1 if layer == "conv" else 2
    assert find_channel_axis(traced, node) == (3 - before if swaps else before)


@pytest.mark.parametrize("export", [False, True])
@pytest.mark.parametrize(("layer", "axis"), [("conv", 1), ("linear", 2), ("gru", 2)])
def test_the_axis_of_an_input_is_that_of_its_first_reader(layer, axis, export):
    network = make_way(LAYERS[layer](), lambda x: x, 6 * (7 if layer == "conv" else 5))
    traced = trace(network.eval(), False, SERIES, export=export)
    assert find_input_channel_axis(traced, traced.inputs[0]) == axis


def test_an_input_may_be_swapped_before_it_is_read_or_read_by_nothing_that_tells():
    layers = {"conv": nn.Conv1d(7, 6, 1), "fc": nn.Linear(30, 2)}
    swapped = make_network(lambda n, x: n.fc(n.conv((x * 2).transpose(1, 2)).flatten(1)), **layers)
    traced = trace(swapped, False, SERIES)
    assert find_input_channel_axis(traced, traced.inputs[0]) == 2
    members = {"weight": nn.Parameter(torch.ones(5, 7)), "mix": nn.ReLU()}
    traced = trace(make_network(lambda n, x: n.mix(x * n.weight).mean(1)[:, :2], **members), False, SERIES)
    assert find_input_channel_axis(traced, traced.inputs[0]) is None
    assert find_channel_axis(traced, traced.outputs["mix"]) is None
    traced = trace(make_network(lambda n, x: x.transpose(1, x.dim() - 1).mean(1)), False, SERIES)
    assert boundaries.read_order(traced.nodes[-3], 3) is None  # its axes are computed


X = torch.zeros(1, 3, 8, 8)


def skip(net, x):
    """Need the input and the features of ``a`` again after ``b``, and the number of samples, too."""
    scale = net.scale.exp()
    first = net.a(x) * scale
    second = net.b(first)
    third = net.c(second + x) * scale + first
    return net.fc(third.view(x.size(0), 3, -1).mean(2))


def crossing(traced, name):
    return [n.name for n in boundaries.list_crossing_tensors(traced, traced.position(traced.outputs[name]))]


def test_the_tensors_that_cross_by_hand():
    layers = {name: nn.Conv2d(3, 3, 3, padding=1) for name in "abc"} | {"fc": nn.Linear(3, 2)}
    traced = trace(make_network(skip, **layers, scale=nn.Parameter(torch.ones(1, 3, 1, 1))), False, X)
    assert crossing(traced, "a") == ["x", "a"]
    assert crossing(traced, "b") == ["x", "mul", "b"]  # scale is computed again
    assert crossing(traced, "c") == ["mul", "c"]  # and the number of samples is read off these
    assert crossing(trace(TinyNet(), False, X), "a") == ["a_2"]


def test_layouts_at_nodes():
    layers = {"a": nn.Conv2d(3, 8, 1), "last": nn.Linear(8, 8), "fc": nn.Linear(8, 2)}  # as many channels as rows
    network = make_network(lambda n, x: n.fc(n.last(torch.relu(n.a(x)).permute(0, 2, 3, 1)).mean((1, 2))), **layers)
    traced = trace(network, False, X)
    relu = next(n for n in traced.nodes if n.name == "relu")
    assert boundaries.find_node_layout(traced, relu) == Layout("nchw")
    with pytest.raises(xl.errors.AttachError, match="layout"):
        boundaries.find_node_layout(traced, traced.outputs["last"])
    assert boundaries.find_node_layout(traced, traced.outputs["last"], "nhwc") == Layout("nhwc")


def test_the_last_features_and_the_nearest_cut():
    traced = trace(TinyNet(), False, X)
    last = boundaries.find_last_features(traced)
    assert traced.name_of(last) == "c"
    end = traced.position(last)
    assert boundaries.describe_nearest_cut(traced, end, end) == "; the nearest cut that works is 'c.0'"
    assert boundaries.describe_nearest_cut(traced, 0, 0) == ""
    with pytest.raises(xl.errors.AttachError, match="no feature map"):
        boundaries.find_last_features(trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), False, X))


TEXTS = {name: torch.ones(1, 5, dtype=torch.int64) for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(("pool", "first"), [(lambda x: x[:, 0], True), (lambda x: x.mean(1), False)])
def test_inputs_of_texts(pool, first):
    def forward(net, input_ids, attention_mask):
        return net.fc(pool(net.e(input_ids) * attention_mask[:, :, None]))

    traced = trace(make_network(forward, e=nn.Embedding(30, 6), fc=nn.Linear(6, 2)), False, TEXTS)
    assert boundaries.find_mask(traced).name == "attention_mask"
    assert boundaries.count_embedding_rows(traced) == [30, None]
    assert boundaries.reads_first_token(boundaries.find_last_features(traced)) is first
    assert boundaries.find_mask(trace(TinyNet(), False, X)) is None
