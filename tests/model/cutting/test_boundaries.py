"""Layouts of features, boundaries of stages, and the axis of channels, by hand."""

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.cutting import boundaries
from exitlens.model.cutting.boundaries import Layout, find_channel_axis, find_input_channel_axis
from exitlens.model.cutting.trace import trace
from tests.conftest import TinyNet
from tests.model.kinds import CLASSES, check_outputs, embed_squares, make_network

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
@pytest.mark.slow
def test_the_axis_of_channels_follows_the_way(layer, way, export):
    lay_out, swaps = WAYS[way]
    count = 6 * (7 if layer == "conv" else 5)
    traced = trace(make_way(LAYERS[layer](), lay_out, count).eval(), False, SERIES, export=export)
    node = traced.outputs["last"] if "last" in traced.outputs else traced.nodes[-3]
    before = 1 if layer == "conv" else 2
    assert find_channel_axis(traced, node) == (3 - before if swaps else before)


@pytest.mark.parametrize("export", [False, pytest.param(True, marks=pytest.mark.slow)])
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


def find(shape, source, kind=None, grids=()):
    """Find the layout of features of an image ``(H,W)`` or volume, a series ``(T,)``, a number of tokens or a vector."""
    if isinstance(source, int):
        return boundaries.find_sequence_layout("seen", shape, source, kind)
    if not source:
        return boundaries.find_vector_layout("seen", shape, 6, kind)
    finder = boundaries.find_series_layout if len(source) == 1 else boundaries.find_map_layout
    return finder("seen", shape, source[0] if len(source) == 1 else source, grids, kind)


@pytest.mark.parametrize(
    ("shape", "source", "kind", "grids", "expected"),
    [
        ((1, 64, 28, 28), (224, 224), None, [], Layout("nchw")),
        ((1, 28, 28, 96), (224, 224), None, [], Layout("nhwc")),
        ((1, 7, 7, 768), (224, 224), None, [], Layout("nhwc")),
        ((1, 64, 10, 20), (80, 160), None, [], Layout("nchw")),
        ((1, 10, 20, 64), (80, 160), None, [], Layout("nhwc")),
        ((1, 16, 16, 16), (64, 64), "nhwc", [], Layout("nhwc")),
        ((1, 197, 192), (224, 224), None, [(14, 14)], Layout("tokens", 1, (14, 14))),
        ((1, 198, 192), (224, 224), None, [], Layout("tokens", 2, (14, 14))),
        ((1, 201, 384), (224, 224), None, [(14, 14)], Layout("tokens", 5, (14, 14))),
        ((1, 196, 512), (224, 224), None, [], Layout("tokens", 0, (14, 14))),
        ((1, 201, 8), (160, 320), None, [(10, 20)], Layout("tokens", 1, (10, 20))),
        ((2, 6, 24), (24,), None, [], Layout("nchw")),
        ((2, 6, 8), 6, None, [], Layout("tokens")),
        ((2, 8, 6), 6, None, [], Layout("nchw")),
        ((2, 6, 6), 6, "tokens", [], Layout("tokens")),
        ((2, 6, 6), 6, "nchw", [], Layout("nchw")),
    ],
)
def test_layouts_are_found_by_looking_or_named_by_the_user(shape, source, kind, grids, expected):
    assert find(shape, source, kind, grids) == expected


@pytest.mark.parametrize(
    ("shape", "source", "kind", "message"),
    [
        ((1, 16, 16, 16), (64, 64), None, "channels first or last"),
        ((1, 5, 9, 3), (64, 64), None, "no map"),
        ((1, 10), (64, 64), None, "put the exit earlier"),
        ((1, 49, 64, 64), (64, 64), None, "windows"),
        ((1, 1000, 8), (60, 61), None, "make that number of tokens"),
        ((1, 64, 8, 8), (64, 64), "tokens", "make that number of tokens"),
        ((2, 4, 9, 9, 9), (8, 8, 8), None, r"for an input of \(8, 8, 8\): no map of it"),
        ((2, 6), (24,), None, r"for a series of 24: expected \(B,D,T\) or \(B,T,D\)"),
        ((2, 6, 99), (24,), "nchw", "more locations than the series"),
        ((2, 3, 4, 5), (), None, r"expected \(B,D\), or tokens \(B,N,D\)"),
        ((2, 6, 6), 6, None, "could be either"),
        ((2, 3, 8), 6, None, "6 tokens"),
        ((2, 6), 6, None, "6 tokens"),
    ],
)
def test_shapes_that_fit_no_layout_or_several_are_refused(shape, source, kind, message):
    with pytest.raises(xl.errors.AttachError, match=message):
        find(shape, source, kind, [(32, 32), (16, 16)] if source == (64, 64) else [])


def test_every_layout_has_the_same_canonical_form():
    maps = torch.randn(2, 5, 3, 4)
    tokens = torch.cat([torch.randn(2, 2, 5), maps.flatten(2).transpose(1, 2)], 1)
    last = maps.permute(0, 2, 3, 1)
    for layout, features in ((Layout("nchw"), maps), (Layout("nhwc"), last), (Layout("tokens", 2, (3, 4)), tokens)):
        assert torch.equal(layout.canonical(features), maps)
        assert layout.channels(features.shape) == 5
        assert layout.size(features.shape) == (3, 4)
    sequence = Layout("tokens", 2)
    assert torch.equal(sequence.canonical(tokens), tokens.transpose(1, 2))
    assert sequence.size(tokens.shape) == (14,)


def test_padding_and_class_tokens_are_no_locations():
    features, mask = torch.randn(2, 4, 5), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert Layout("tokens").locations(features, mask) is None
    assert Layout("tokens", 1).locations(features).tolist() == [[False, True, True, True]]
    both = Layout("tokens", 1, masked=True).locations(features, mask)
    assert both.tolist() == [[False, True, True, False], [False, True, False, False]]
    assert Layout("nchw", masked=True).locations(features.transpose(1, 2), mask).tolist() == mask.bool().tolist()
    assert Layout("tokens", 1, (1, 3)).locations(features) is None


def test_deep_exits_read_the_tokens_of_the_first_one_beside_their_own():
    x = torch.randn(6, 1, 16, 16)
    net = xl.attach(embed_squares(), ["one", "two"], CLASSES, x, head="context").eval()
    assert [head.lateral is None for head in net.heads] == [True, False, False]
    assert net.map_offsets == ((0.0, 0.0),) * 3
    outs = net(x)
    assert {out.attention.shape for out in outs} == {(6, 4, 4)}
    check_outputs(outs, net.heads)
    tokens = net.stage(0)(x)[0]
    _, lateral = net.stage(1)(tokens, *net.stage(0)(x)[1:])[:2]
    assert torch.equal(lateral, tokens)
    assert net.head(1).locate(torch.zeros_like(tokens), lateral).std() > 0


def test_a_finer_map_of_the_stem_comes_before_the_tokens_of_the_first_exit():
    network, x = embed_squares(), torch.randn(2, 1, 16, 16)
    network.embed = nn.Sequential(nn.Conv2d(1, 6, 2, 2), nn.Conv2d(6, 8, 2, 2))
    net = xl.attach(network, ["one", "two"], CLASSES, x, head="context").eval()
    assert [tuple(out.attention.shape[1:]) for out in net(x)] == [(8, 8)] * 3
