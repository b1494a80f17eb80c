import copy
import pickle
from collections import namedtuple

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.cutting.split import check_backbone, make_random_inputs, run_plain, run_staged, split, verify
from exitlens.model.cutting.trace import TraceMismatchError
from tests.conftest import TinyNet
from tests.model.kinds import check_unchanged, make_network


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 1)


class ModeDependent(nn.Module):
    """Modules, parameters and a buffer that only one mode uses, at the root and in a container, and a parameter of both."""

    def __init__(self):
        super().__init__()
        self.part = nn.Module()
        self.part.a, self.part.extra, self.part.trained = conv(3, 4), conv(4, 4), conv(4, 4)
        self.part.shift = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.b, self.more = conv(4, 4), conv(4, 4)
        self.scale, self.gain = (nn.Parameter(torch.full((1, 4, 1, 1), value)) for value in (2.0, 3.0))
        self.register_buffer("offset", torch.ones(1, 4, 1, 1))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.part.a(x)) * self.scale
        if self.training:
            x = self.b(x) + self.part.trained(x)
        else:
            x = self.b(self.more(self.part.extra(x) + self.part.shift) * self.gain + self.offset)
        return self.fc(self.pool(torch.relu(x)).flatten(1))


# a long skip connection: two tensors cross the cut after "a"
CROSSING = make_network(lambda n, x: n.fc((n.b(n.a(x)) + x).mean((2, 3))), a=conv(3, 4), b=conv(4, 3), fc=nn.Linear(3, 2))
Answers = namedtuple("Answers", ["logits", "aux"])


def answer_twice(net, x):
    """Return auxiliary logits in training mode, as GoogLeNet does, from statistics of their own."""
    x = net.a(x)
    early = net.aux(net.norm(x).mean((2, 3)))
    logits = net.fc(torch.relu(net.b(x)).mean((2, 3)))
    return Answers(logits, early) if net.training else logits


def test_auxiliary_outputs_of_training_are_computed_and_left_out():
    layers = {"a": conv(3, 4), "b": conv(4, 4), "fc": nn.Linear(4, 2), "aux": nn.Linear(4, 2), "norm": nn.BatchNorm2d(4)}
    network, x = make_network(answer_twice, **layers).train(), torch.randn(3, 3, 8, 8)
    assert torch.equal(run_staged(split(network, ["a"], x), (x,), True), network(x).logits)
    assert network.norm.num_batches_tracked == 2


@pytest.mark.parametrize(
    ("network", "at"),
    [(TinyNet(), ["a", "b"]), (CROSSING, ["a"]), (ModeDependent(), ["part.a"]), (TinyNet(), [])],
)
@pytest.mark.parametrize("training", [True, False])
def test_stages_equal_the_plain_backbone(network, at, training):
    pieces, x = split(network, at, torch.zeros(1, 3, 8, 8)), torch.randn(5, 3, 8, 8)
    assert torch.equal(run_staged(pieces, (x,), training), network.train(training)(x))


def test_both_modes_share_parameters_also_after_copy_and_pickle():
    net = xl.attach(ModeDependent(), ["part.a"], 2, torch.zeros(1, 3, 8, 8))
    for twin in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        state = {name: torch.randn_like(value) for name, value in twin.state_dict().items()}
        twin.load_state_dict(state)
        x = torch.randn(2, 3, 8, 8)
        outs = [twin.train(mode)(x)[0].logits for mode in (True, False)]
        other = copy.deepcopy(twin)
        assert torch.equal(other.eval()(x)[0].logits, outs[1])
        twin.double()
        assert twin.eval()(x.double())[-1].logits.dtype == torch.float64


def test_an_in_place_operation_after_the_cut_does_not_change_what_the_head_saw():
    layers = {"a": conv(3, 4), "act": nn.ReLU(inplace=True), "b": conv(4, 4), "fc": nn.Linear(4, 2)}
    network = make_network(lambda n, x: n.fc(n.b(n.act(n.a(x))).mean((2, 3))), **layers)
    net = xl.attach(network, ["a"], 2, torch.zeros(1, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    features = net.observe(x, features=True).features
    assert torch.equal(features[0], network.a(x))
    xl.EGTLoss()(net(x), torch.tensor([0, 1])).total.backward()


@pytest.mark.slow
def test_changes_through_views_reach_neither_the_head_nor_the_callers_input():
    def forward(net, x):
        x.view(-1).add_(1.0)
        x = net.a(x)
        x.flatten(2).transpose(1, 2).mul_(3.0)
        x[:, 0] = 0.0
        return net.fc(torch.relu(net.b(x)).mean((2, 3)))

    network = make_network(forward, a=conv(3, 4), b=conv(4, 4), fc=nn.Linear(4, 2)).eval()
    net = xl.attach(network, ["a"], 2, torch.zeros(1, 3, 8, 8), final="keep")
    x = torch.randn(2, 3, 8, 8)
    before = x.clone()
    features = net.observe(x, features=True).features
    assert torch.equal(x, before)
    torch.testing.assert_close(features[0], network.a(x + 1))
    assert torch.equal(net(x)[-1].logits, network(x.clone()))


def test_cutting_and_verifying_leave_no_trace(backbone):
    backbone.train().b.eval()
    with check_unchanged(backbone):
        verify(split(backbone, ["a"], torch.zeros(1, 3, 16, 16)))
        with pytest.raises(xl.errors.AttachError):
            split(backbone, ["nowhere"], torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("network", "at", "message"),
    [
        (TinyNet(), ["layer"], "no module 'layer'"),
        (TinyNet(), ["aa"], "Did you mean 'a'"),
        (TinyNet(), ["b", "a"], r"use \['a', 'b'\]"),
        (TinyNet(), ["a", "a"], "different"),
        (TinyNet(), ["a", "c"], "final exit already answers"),
        (TinyNet(), ["fc"], "final exit already answers.*nearest cut that works is 'c.0'"),
    ],
)
@pytest.mark.parametrize("least_side", [0, 7])
def test_what_cannot_be_cut_is_an_error_with_the_fix(network, at, message, least_side):
    with pytest.raises(xl.errors.AttachError, match=message):
        split(network, at, torch.zeros(1, 3, 8, 8), least_side=least_side)


def test_a_finer_map_is_carried_to_the_end():
    net, x = TinyNet().eval(), torch.randn(2, 3, 16, 16)
    pieces = split(net, ["a", "b"], x[:1], least_side=7)
    lateral = pieces.lateral
    assert (lateral.channels, lateral.size) == (6, (8, 8))
    assert [pieces.lateral_at(k) for k in range(3)] == [None, lateral, lateral]
    verify(pieces)
    crossing = [(x,)]
    for stage in pieces.stages:
        crossing.append(stage.eval()(*crossing[-1]))
    assert [len(activations) for activations in crossing] == [1, 1, 2, 2]
    for _, carried in crossing[2:]:
        torch.testing.assert_close(carried, net.a(x))
    torch.testing.assert_close(pieces.tail.eval()(*crossing[-1])[0], net(x))


def test_no_finer_map_where_none_is_needed_or_there_is_none_nor_the_middle_of_a_widening_block():
    for size, least_side in ((32, 7), (16, 0), (8, 7)):
        assert split(TinyNet(), ["a"], torch.zeros(1, 3, size, size), least_side=least_side).lateral is None
    network = TinyNet()
    network.b = nn.Sequential(nn.Conv2d(6, 48, 1), nn.ReLU(), nn.Conv2d(48, 8, 3, 2, 1))
    pieces = split(network, [], torch.zeros(1, 3, 16, 16), least_side=7)
    assert pieces.lateral.channels == 6


X = torch.zeros(1, 3, 16, 16)


def change_features(stage, change):
    def forward(net, *activations):
        features, *rest = net.stage(*activations)
        return change(features), *rest

    return make_network(forward, stage=stage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: 2 * f, "batch 3 in evaluation mode"),
        (lambda f: f * (2 if len(f) == 1 else 1), "a single sample"),
        (lambda f: f * (2 if len(f) == 2 else 1), "who else is in the batch"),
        (lambda f: f.detach(), r"the gradient of 'a.* is not"),
    ],
)
def test_pieces_that_differ_are_found(change, message, backbone):
    pieces = split(backbone, ["a"], X)
    pieces.stages[0] = change_features(pieces.stages[0], change)
    with pytest.raises(TraceMismatchError, match=message):
        verify(pieces)


def test_plain_and_staged_runs_are_seeded(backbone):
    backbone = nn.Sequential(nn.Dropout(0.5), backbone)
    pieces = split(backbone, ["1.a"], X)
    inputs = make_random_inputs(pieces, 2)
    runs = [run(pieces, inputs, True) for run in (run_plain, run_plain, run_staged)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_random_inputs_are_like_the_example():
    def forward(net, input_ids, attention_mask):
        return net.fc((net.a(net.e(input_ids)) * attention_mask[:, :, None]).mean(1))

    words = make_network(forward, e=nn.Embedding(7, 5), a=nn.Linear(5, 6), fc=nn.Linear(6, 2))
    example = {"input_ids": torch.ones(1, 8, dtype=torch.int64), "attention_mask": torch.ones(1, 8, dtype=torch.bool)}
    ids, mask = make_random_inputs(split(words, ["a"], example), 3)
    assert (ids.shape, ids.dtype) == ((3, 8), torch.int64)
    assert int(ids.max()) < 7
    assert (mask.dtype, mask.sum(1).tolist()) == (torch.bool, [8, 6, 4])
    (images,) = make_random_inputs(split(TinyNet(), [], X), 2)
    assert (images.shape, images.dtype) == ((2, 3, 16, 16), torch.float32)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.ReLU()), "no parameters"),
        (TinyNet().to("meta"), "'a.0.weight' is on the meta device.*to_empty"),
        (nn.Sequential(nn.LazyLinear(3)), "'0.weight' is lazy"),
        (nn.ParameterList([nn.Parameter(torch.zeros(1).expand(4))]), "'0' is an expanded tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # lazy modules
def test_backbones_that_cannot_be_cut(network, message):
    with pytest.raises(xl.errors.AttachError, match=message):
        check_backbone(network)
