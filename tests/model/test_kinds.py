"""Networks of series, volumes, vectors and several inputs through attach: what is told of them, and that exits work."""

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.cutting.boundaries import Layout
from exitlens.model.heads import have_maps
from tests.kinds import Both, Convolutional, Perceptron, Recurrent
from tests.model.kinds import (
    STEPS,
    check_outputs,
    embed_features,
    embed_patches,
    embed_squares,
    embed_steps,
    make_network,
)  # fmt: skip

FIRST, LAST = torch.randn(3, 2, STEPS), torch.randn(3, STEPS, 2)
VOLUME, VECTOR = torch.randn(3, 1, 8, 12, 16), torch.randn(3, 6)
IMAGES = torch.randn(3, 1, 16, 16)
GROUPS = {"left": [0, 1], "right": [2, 4, 5]}
WHOLE = Layout("tokens")
STEPS_AND_CLASS, PATCHES_AND_CLASS, SQUARES = (Layout("tokens", 1, grid) for grid in ((24,), (6,), (4, 4)))
MAPS, VOLUMES, PICTURES = [(12,), (6,), (6,)], [(4, 6, 8), (2, 3, 4), (2, 3, 4)], [(8, 8), (4, 4), (4, 4)]
TRANSPOSED = make_network(lambda net, x: Convolutional.forward(net, x.transpose(1, 2)), Convolutional)
TWO, SEVERAL = ["first", "second"], {"image": IMAGES, "vector": torch.randn(3, 4)}


def read_last(net, x):
    x = net.mix(net.stem(x).permute(0, 2, 3, 1))
    return net.fc(torch.relu(net.more(x)).mean((1, 2)))


def make_last():
    """Return a network of images whose features have their channels last."""
    layers = {"stem": nn.Conv2d(1, 6, 2, 2), "mix": nn.Linear(6, 6), "more": nn.Linear(6, 6), "fc": nn.Linear(6, 3)}
    return make_network(read_last, **layers)


CASES = {  # network, where, example, layout of exit 0, sizes of maps, channels last
    "convolutions": (Convolutional, TWO, FIRST, Layout("nchw"), MAPS, False),
    "transposed": (lambda: TRANSPOSED, TWO, LAST, Layout("nchw"), MAPS, True),
    "recurrent": (Recurrent, TWO, LAST, WHOLE, [(24,)] * 3, True),
    "square recurrent": (Recurrent, TWO, LAST[:, :12], WHOLE, [(12,)] * 3, True),  # as many steps as hidden units
    "tokens": (embed_steps, ["one"], LAST, WHOLE, [(24,)] * 2, True),
    "square tokens": (lambda: embed_steps(STEPS), ["one"], LAST, WHOLE, [(24,)] * 2, True),
    "class token": (lambda: embed_steps(class_token=True), ["one"], LAST, STEPS_AND_CLASS, [(24,)] * 2, True),
    "patches": (embed_patches, ["one"], FIRST, WHOLE, [(6,)] * 2, False),
    "patches, class": (lambda: embed_patches(class_token=True), ["one"], FIRST, PATCHES_AND_CLASS, [(6,)] * 2, False),
    "volume": (lambda: Convolutional(1, 3), TWO, VOLUME, Layout("nchw"), VOLUMES, False),
    "squares, class": (embed_squares, ["one"], IMAGES, SQUARES, [(4, 4)] * 2, False),
    "channels last": (make_last, ["mix"], IMAGES, Layout("nhwc"), [(8, 8)] * 2, False),
    "feature tokens": (embed_features, ["one"], VECTOR, WHOLE, [(6,)] * 2, False),
    "feature, class": (lambda: embed_features(class_token=True), ["one"], VECTOR, PATCHES_AND_CLASS, [(6,)] * 2, False),
    "several": (Both, TWO, SEVERAL, Layout("nchw"), PICTURES, False),
}


QUICK = ("convolutions", "recurrent", "squares, class", "channels last", "volume", "feature, class", "several")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES])
@pytest.mark.slow
def test_a_kind_is_told_and_its_exits_work(name):
    make, at, example, layout, sizes, channels_last = CASES[name]
    torch.manual_seed(0)
    backbone = make().eval()
    net = xl.attach(backbone, at, 3, example).eval()
    assert net.head(0).layout == layout
    assert net.input_spec.channels_last == channels_last
    outs = net(example)
    assert [tuple(out.attention.shape[1:]) for out in outs] == sizes
    check_outputs(outs, net.heads)
    policy = xl.Policy((0.34,) * len(at))
    pred = xl.predict(net, example, policy, attention=True)
    assert pred.exits.tolist() == xl.route(xl.collect(net, [(example, torch.zeros(3).long())]), policy).tolist()
    xl.EGTLoss()(net.train()(example), torch.tensor([0, 1, 2])).total.backward()
    kept = xl.attach(backbone, at, 3, example, final="keep").eval()
    plain = backbone(**example) if isinstance(example, dict) else backbone(example)
    assert torch.equal(kept(example)[-1].logits, plain)


@pytest.mark.parametrize("name", ["convolutions", "recurrent", "class token", "volume", "feature tokens", "several"])
@pytest.mark.slow
def test_context_heads_of_each_kind(name):
    make, at, example, *_ = CASES[name]
    net = xl.attach(make().eval(), at, 3, example, head="context").eval()
    check_outputs(net(example), net.heads)


def test_hidden_units_are_no_locations_and_groups_are():
    net = xl.attach(Perceptron(6), ["first"], 3, VECTOR).eval()
    assert not have_maps(net.heads)
    assert net(VECTOR)[0].logits.shape == (3, 3)
    with pytest.raises(xl.errors.InputError, match=r"attention maps.*groups="):
        xl.predict(net, VECTOR, xl.Policy((0.5,)), attention=True)
    net = xl.attach(Perceptron(6), ["first"], 3, VECTOR, groups=GROUPS).eval()
    assert [tuple(out.attention.shape) for out in net(VECTOR)] == [(3, 2), (3, 2)]
    assert net.info.groups == (("left", (0, 1)), ("right", (2, 4, 5)))


def test_a_square_that_no_layer_explains_is_asked_about():
    members = {"scale": nn.Parameter(torch.ones(1, STEPS, STEPS)), "mix": nn.ReLU(), "more": nn.Sigmoid()}
    network = make_network(lambda n, x: n.fc(n.more(n.mix(x * n.scale) + x).mean(2)), **members, fc=nn.Linear(STEPS, 3))
    x = torch.randn(2, STEPS, STEPS)
    with pytest.raises(
        xl.errors.AttachError, match=r"could be either\. Fix: .*layout='nchw' \(B,D,T\) or 'tokens' \(B,T,D\)"
    ):
        xl.attach(network, ["mix"], 3, x)


def test_the_cost_of_recurrent_layers_is_told_without_going_through_fake_steps():
    """Steps times gates times (inputs + state)."""
    first, second = xl.list_exit_candidates(Recurrent().eval(), LAST, runs=0)
    assert (first.name, first.macs, first.shape) == ("first", STEPS * 3 * 12 * (2 + 12), (STEPS, 12))
    assert (second.name, second.macs) == ("second", first.macs + STEPS * 3 * 12 * (12 + 12))


def test_a_classifier_alone_has_nothing_to_leave_early_from():
    with pytest.raises(xl.errors.AttachError, match="no layer before its classifier"):
        xl.attach(nn.Sequential(nn.Dropout(), nn.Linear(6, 3)), [], 3, VECTOR)


def read_last_state(net, x):
    return net.fc(net.last(net.first(x)[0])[1][-1])


def read_steps_first(net, x):
    return net.fc(net.last(net.first(x.transpose(0, 1))[0])[0][-1])


@pytest.mark.parametrize(
    ("forward", "batch_first", "message"),
    [
        (read_last_state, True, r"only the last state of the recurrent layer 'last'.*Fix: read its outputs"),
        (read_steps_first, False, "batch_first=True"),
    ],
)
def test_recurrent_layers_whose_steps_cannot_be_attended_to_are_refused_with_the_fix(forward, batch_first, message):
    first, last = nn.GRU(2, 8, batch_first=batch_first), nn.GRU(8, 8, batch_first=batch_first)
    network = make_network(forward, first=first, last=last, fc=nn.Linear(8, 3))
    with pytest.raises(xl.errors.AttachError, match=message):
        xl.attach(network, [], 3, torch.zeros(1, 16, 2))
