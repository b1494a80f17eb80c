"""A tuning changes the speed of a network, not its answers; policies and traces belong to a precision.

Copies of graphs and heads: folding, padding left to convolutions, precision.
"""

import copy

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import fx, nn

import exitlens as xl
from exitlens.model.cutting.trace import trace
from exitlens.model.engine.tuning import PADS, Tuning, absorb, convolve_padded, find_norms, fold, prepare_graph, prepare_head
from tests.conftest import TinyNet, make_net, spread_policy
from tests.model.engine.networks import IMAGES, check_answers, with_statistics
from tests.model.kinds import check_unchanged, make_network

TUNINGS = [
    Tuning(micro_batch=1),
    Tuning(micro_batch=7),
    Tuning(channels_last=True),
    Tuning(micro_batch=16, folded=True),
    Tuning(micro_batch=8, channels_last=True, folded=True, threads=1),
]


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("final", ["head", "keep"])
@pytest.mark.slow
def test_a_tuned_network_answers_as_before(tuning, final):
    net = with_statistics(make_net(final))
    net.tuning = Tuning()
    policy = spread_policy(net, IMAGES)
    assert len(set(xl.predict(net, IMAGES, policy).exits.tolist())) == 3
    net.tuning = tuning
    with check_unchanged(net):
        check_answers(net, IMAGES, policy)


def test_bfloat16_runs_the_stages_and_leaves_heads_and_softmax():
    net = with_statistics(make_net())
    policy, never = spread_policy(net, IMAGES), xl.Policy.never(3)
    exact = xl.predict(net, IMAGES, never)
    net.tuning = Tuning(precision="bfloat16", folded=True, channels_last=True)
    pred = xl.predict(net, IMAGES, policy, attention=True)
    assert pred.probabilities.dtype == torch.float32
    torch.testing.assert_close(torch.stack([m.sum() for m in pred.attention]), torch.ones(70), atol=1e-4, rtol=0)
    assert next(net.engine.select().stages[0].parameters()).dtype == torch.bfloat16
    assert (exact.labels == xl.predict(net, IMAGES, never).labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"micro_batch": -1}, "micro_batch: expected a whole number of 0 or more, got -1"),
        ({"threads": 1.5}, "threads"),
        ({"micro_batch": True}, "micro_batch"),
        ({"folded": "no"}, "folded: expected bool, got str"),
        ({"measured": [1]}, "measured"),
        ({"precision": "float16"}, "precision: expected one of"),
        ({"backend": "tensorflow"}, "backend: expected one of"),
        ({"backend": "onnx", "precision": "bfloat16"}, "'onnx' does not run in bfloat16"),
        ({"backend": "onnx", "channels_last": True}, "leave channels_last out"),
    ],
)
def test_bad_tunings(values, message):
    with pytest.raises(xl.errors.InputError, match=message):
        Tuning(**values)
    with pytest.raises(xl.errors.InputError, match="tuning: expected Tuning"):
        make_net().tuning = values


def test_policies_and_traces_belong_to_a_precision():
    net = with_statistics(make_net())
    policy = xl.calibrate(xl.collect(net, IMAGES), max_disagreement=0.3)
    net.tuning = Tuning(micro_batch=8, folded=True)
    xl.predict(net, IMAGES, policy)
    net.tuning = Tuning(precision="bfloat16")
    for call in (xl.predict, xl.explain_batch):
        with pytest.raises(xl.errors.PolicyError, match=r"-bfloat16"):
            call(net, IMAGES, policy)
    policy = xl.calibrate(xl.collect(net, IMAGES), max_disagreement=0.3)
    pred = xl.predict(net, IMAGES, policy)
    assert [why.answered for why in xl.explain_batch(net, IMAGES, policy)] == pred.exits.tolist()


@pytest.mark.parametrize("tuning", [None, Tuning(4, channels_last=True, folded=True, measured={"on": "x"})])
def test_a_bundle_keeps_the_tuning(tmp_path, tuning):
    net = make_net()
    if tuning:
        net.tuning = tuning
    xl.save(net, None, tmp_path / "b")
    back, _ = xl.load(tmp_path / "b", backbone=TinyNet())
    assert back.is_tuned == bool(tuning)
    assert back.tuning == net.tuning
    assert back.tuning.measured == net.tuning.measured


SIZES = st.integers(0, 3)
IGNORE_LEAF_SPEC = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, in copies of exports


def test_graphs_and_heads_are_copied_and_heads_keep_their_precision():
    net, tuning = make_net("keep"), Tuning(precision="bfloat16")
    graph = prepare_graph(net.stage(0).evaluation, Tuning(folded=True, channels_last=True))
    heads = [prepare_head(net.head(k), tuning) for k in range(3)]
    for twin, source in ((graph, net.stage(0).evaluation), *zip(heads, net.heads, strict=True)):
        assert not {p.data_ptr() for p in source.parameters()} & {p.data_ptr() for p in twin.parameters()}
        assert not any(p.requires_grad for p in twin.parameters())
    assert next(heads[2].tail.evaluation.parameters()).dtype == torch.bfloat16  # a kept classifier is part of the backbone
    assert next(heads[0].parameters()).dtype == torch.float32
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("hooked", [False, True])
def test_every_batch_normalisation_after_a_convolution_without_hooks_is_folded(hooked):
    body = copy.deepcopy(with_statistics(make_net()).stage(0).evaluation).eval()
    expected = body(IMAGES[:4])[0]
    for module in body.modules() if hooked else ():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_: None)
    assert bool(list(find_norms(body))) is not hooked
    fold(body)
    assert any(isinstance(m, nn.BatchNorm2d) for m in body.modules()) is hooked
    torch.testing.assert_close(body(IMAGES[:4])[0], expected, atol=1e-5, rtol=1e-4)


def share(net, x):
    """Use one convolution twice, and a normalisation's input twice; normalise first, and without statistics."""
    x = net.a(net.first(x))
    y = net.n(net.a(x))
    z = net.b(y)
    x = net.free(net.c(z + net.m(z)))
    return net.fc(x.mean((2, 3)))


def test_folding_leaves_what_it_cannot_fold():
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(3, 3, 3, padding=1) for name in "abc"} | {"fc": nn.Linear(3, 4)}
    norms = {name: nn.BatchNorm2d(3, track_running_stats=name != "free") for name in ("first", "n", "m", "free")}
    body = fx.symbolic_trace(make_network(share, **layers, **norms).eval())
    expected = body(IMAGES[:4])
    fold(body)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in body.modules()) == 4
    torch.testing.assert_close(body(IMAGES[:4]), expected)


def normalise(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps, training=False)


def use_functions(net, x):
    """As timm's networks: normalise by a function, ask for the number of axes, and use a convolution's weights twice."""
    x = net.first(x)
    torch._assert(x.ndim == 4, "images")
    x = normalise(x, net.norm).relu()
    y = F.conv2d(x, net.second.weight, net.second.bias)
    return net.free(y) + normalise(net.second(x), net.norm)


def count_norms(body):
    return sum("batch_norm" in str(node.target) or str(node.target) == "norm" for node in body.graph.nodes)


@IGNORE_LEAF_SPEC
@pytest.mark.parametrize(
    ("trace", "folds"),  # a module whose weights a function uses as well is left as it is
    [(fx.symbolic_trace, 1), (lambda net: torch.export.export(net, (IMAGES[:4],)).module(), 2)],
)
def test_functions_that_normalise_are_folded(trace, folds):
    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, 4, 3, bias=False), "second": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    free = nn.BatchNorm2d(4, track_running_stats=False)
    net = with_statistics(make_network(use_functions, **layers, free=free).eval())
    body = trace(net)
    expected, weights = body(IMAGES[:4]), {name: p.clone() for name, p in net.named_parameters()}
    before = count_norms(body)
    twin = fx.GraphModule(body, copy.deepcopy(body.graph))
    assert list(find_norms(twin))
    fold(twin)
    assert before - count_norms(twin) == folds  # the one without statistics stays
    torch.testing.assert_close(twin(IMAGES[:4]), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(body(IMAGES[:4]), expected)
    assert all(torch.equal(p, weights[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("options", [{"training": True}, {"training": False, "weight": True}])
def test_statistics_of_the_batch_and_computed_scales_are_not_folded(options):
    def normalise(net, x):
        norm = net.norm
        weight = norm.weight.exp() if "weight" in options else norm.weight
        statistics = norm.running_mean, norm.running_var, weight, norm.bias
        return F.batch_norm(net.conv(x), *statistics, training=options["training"])

    net = make_network(normalise, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    body = fx.symbolic_trace(net.eval())
    assert not list(find_norms(body))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pads"), [("timm:tf_efficientnet_lite0", 1), ("timm:mobilenetv3_small_100", 0)])
def test_timm_networks_are_folded_and_copy_nothing_to_pad_it(name, pads):
    torch.manual_seed(0)
    net = xl.build_backbone(name, 4).eval()
    x = torch.rand(2, 3, 32, 32)
    body = trace(
        nn.Sequential(net.conv_stem, net.bn1, *net.blocks[:2], nn.AdaptiveAvgPool2d(1), nn.Flatten()), False, x
    ).runnable()
    expected = body(x)
    fold(body)
    absorb(body)
    assert not any("batch_norm" in str(node.target) for node in body.graph.nodes)
    assert count_pads(body) == pads  # the stem's, which is no depthwise convolution
    torch.testing.assert_close(body(x), expected, atol=1e-5, rtol=1e-4)


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


def make_same(groups=4, zeros=(0, 1, 0, 1), value=0.0, changes=False):
    """Return a network that pads by hand, as those ported from TensorFlow do."""

    def forward(net, x):
        x = x * 1
        padded = F.pad(x, zeros, "constant", value)
        if changes:
            x.mul_(2)
        return net.conv(padded) + x.sum()

    return make_network(forward, conv=nn.Conv2d(4, 4, 3, 2, groups=groups))


def count_pads(body):
    return sum(node.target in PADS for node in body.graph.nodes)


@IGNORE_LEAF_SPEC
@pytest.mark.parametrize(
    ("options", "left"),
    [({}, 0), ({"groups": 1}, 1), ({"zeros": (0, -1, 0, 1)}, 1), ({"value": 1.0}, 1), ({"changes": True}, 1)],
    ids=["depthwise", "dense", "cuts off", "ones", "changed in place"],
)
def test_copies_before_depthwise_convolutions_go_and_others_stay(options, left):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    body = torch.export.export(make_same(**options).eval(), (x,)).module()
    twin = copy.deepcopy(body)
    absorb(twin)
    assert (count_pads(body), count_pads(twin)) == (1, left)
    torch.testing.assert_close(twin(x.clone()), body(x.clone()))
    assert [count_pads(prepare_graph(body, Tuning(2, folded=folded))) for folded in (True, False)] == [left, 1]
