"""Exit heads (exact evidence, attention that sums to 1) and their necks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import exitlens as xl
from exitlens.errors import InputError
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.cutting.boundaries import Layout
from exitlens.model.heads import (
    AverageHead,
    ContextNeck,
    EvidenceHead,
    GroupNeck,
    TokenNeck,
    check_groups,
    enlarge,
    find_spread,
    fit_group_neck,
    fit_neck,
    fit_token_neck,
)
from tests.conftest import TinyNet
from tests.model.kinds import check_outputs, make_network


@given(st.integers(0, 100), st.integers(1, 6), st.integers(1, 12), st.integers(2, 7))
@settings(max_examples=40, deadline=None)
def test_evidence_and_bias_sum_to_the_logits(seed, size, channels, classes):
    torch.manual_seed(seed)
    head = EvidenceHead(channels, classes)
    torch.nn.init.normal_(head.attend.weight, std=3)
    features = 5 * torch.randn(3, channels, size, size)
    out = head(features)
    check_outputs([out], [head])
    assert (out.attention >= 0).all()
    torch.testing.assert_close(head.classify(features), out.logits)


def test_heads_by_hand():
    evidence, average = heads = EvidenceHead(1, 2), AverageHead(1, 2)
    with torch.no_grad():
        evidence.attend.weight.copy_(torch.tensor([[1.0]]))
        for head in heads:
            head.classifier.weight.copy_(torch.tensor([[1.0], [-2.0]]))
            head.classifier.bias.copy_(torch.tensor([0.5, 0.0]))
    out = evidence(torch.log(torch.tensor([1.0, 3.0])).view(1, 1, 2))  # softmax -> 1/4, 3/4
    torch.testing.assert_close(out.attention, torch.tensor([[0.25, 0.75]]))
    pooled = 0.75 * torch.log(torch.tensor(3.0))
    torch.testing.assert_close(out.logits, torch.stack([pooled + 0.5, -2 * pooled])[None])
    out = average(torch.tensor([[[[1.0, 3.0]]]]))
    torch.testing.assert_close(out.logits, torch.tensor([[2.5, -4.0]]))
    torch.testing.assert_close(out.attention, torch.tensor([[[0.1, 0.9]]]))  # energy: 1 and 9
    torch.testing.assert_close(out.evidence, torch.tensor([[[[0.5, 1.5]], [[-1.0, -3.0]]]]))


def test_an_untrained_head_is_average_pooling():
    out = EvidenceHead(4, 3)(torch.randn(2, 4, 5, 5))
    torch.testing.assert_close(out.attention, torch.full((2, 5, 5), 1 / 25))


def classify(net, x):
    return net.fc(net.pool(torch.relu(net.b(torch.relu(net.a(x))))))


@pytest.mark.parametrize(
    ("pool", "width", "exact"),
    [
        (lambda x: x.mean((2, 3)), 6, True),
        (lambda x: x.mean(3).flatten(1), 48, False),
        (lambda x: x.mean(1).flatten(1), 64, False),
        (lambda x: x[:, :, 1:].mean((2, 3)), 6, False),
        (lambda x: 2 * x.mean((2, 3)), 6, False),
    ],
)
def test_evidence_is_called_exact_only_where_it_is(pool, width, exact):
    layers = {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 6, 1), "fc": nn.Linear(width, 4)}
    net = xl.attach(make_network(classify, **layers, pool=pool).eval(), ["a"], 4, torch.zeros(1, 3, 8, 8), final="keep")
    out = net(torch.randn(2, 3, 8, 8))[-1]
    assert net.head(1).exact_evidence is exact
    total = out.evidence.flatten(2).sum(2) + net.head(1).tail.body.fc.bias
    assert torch.allclose(total, out.logits, atol=1e-4) is exact


def test_a_classifier_that_is_not_linear_says_so():
    backbone = TinyNet()
    backbone.fc = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 4))
    net = xl.attach(backbone, ["a"], 4, torch.zeros(1, 3, 16, 16), final="keep").eval()
    assert [head.exact_evidence for head in net.heads] == [True, False]
    out = net(torch.randn(2, 3, 16, 16))[-1]
    torch.testing.assert_close(out.evidence.sum((2, 3)), out.logits)


def test_average_head_leaves_padding_out():
    head = AverageHead(3, 2, Layout("tokens", masked=True))
    features = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    out = head(features, mask)
    torch.testing.assert_close(out.logits[1], head.classifier(features[1, :2].mean(0)))
    assert (out.attention[1, 2:] == 0).all()
    torch.testing.assert_close(out.evidence.sum(2) + head.classifier.bias, out.logits)
    torch.testing.assert_close(head.with_attention(features, mask)[1], out.attention)


def test_necks_take_no_more_than_their_share(tmp_path):
    backbone, x = SmallResNet(10, 3, 16, (24, 48, 64, 64)).eval(), torch.randn(2, 3, 32, 32)
    at = ["layer1", "layer2", "layer3"]
    usual, wide = (xl.attach(backbone, at, 10, x, head="context", neck_share=share) for share in (0.04, 0.12))
    assert [head.neck.width for head in usual.heads[:3]] == [8, 16, 16]
    assert [head.neck.width for head in wide.heads[:3]] == [32, 40, 40]
    plain = xl.attach(backbone, at, 10, x)
    assert 0.09 < wide.head_share - plain.head_share < 0.12
    xl.save(wide, None, tmp_path / "wide")
    again, _ = xl.load(tmp_path / "wide", backbone=SmallResNet(10, 3, 16, (24, 48, 64, 64)))
    assert again.info.neck_share == 0.12
    torch.testing.assert_close(again.eval()(x)[0].logits, wide(x)[0].logits)
    for wrong in (0.0, 1.5, "much"):
        with pytest.raises(InputError, match="neck_share: expected a share above 0 and up to 1"):
            xl.attach(backbone, at, 10, x, neck_share=wrong)


@pytest.mark.parametrize(("side", "grid"), [(32, (8, 8)), (16, (8, 8))])
def test_exits_with_context_see_the_whole_image_on_one_grid(side, grid):
    """At 32 pixels the final features have that grid; at 16 they have half of it, and the heads read a finer map, too."""
    torch.manual_seed(0)
    backbone, x = TinyNet().eval(), torch.randn(2, 3, side, side)
    plain = xl.attach(backbone, ["a", "b"], 4, x)
    net = xl.attach(backbone, ["a", "b"], 4, x, head="context")
    assert isinstance(net.head(0).neck, ContextNeck)
    assert net.head_share > plain.head_share
    assert (net.head(2).neck is None) == (side == 32)
    outputs, _, features, _ = net.observe(x, features=True)
    assert {tuple(out.attention.shape[1:]) for out in outputs} == {grid}
    check_outputs(outputs, net.heads)
    assert [f.shape[1:] for f in features] == [(head.classifier.in_features, *grid) for head in net.heads]
    for k, policy in enumerate([(0.0, 0.0), (2.0, 0.0), (2.0, 2.0)]):
        answers = xl.predict(net, x, xl.Policy(policy), attention=True)
        torch.testing.assert_close(answers.probabilities, outputs[k].logits.softmax(1), rtol=1e-4, atol=1e-5)
        placed = net.info.place(k, outputs[k].attention)
        torch.testing.assert_close(torch.stack(answers.attention), placed, rtol=1e-4, atol=1e-5)
    larger = net(torch.randn(1, 3, side + 8, side + 8))
    assert len({out.attention.shape for out in larger}) == 1


@pytest.mark.parametrize("head", ["context", "average"])
def test_bundles_know_their_heads(head, tmp_path):
    net = xl.attach(TinyNet(), ["a"], 4, torch.zeros(1, 3, 16, 16), head=head).eval()
    xl.save(net, None, tmp_path / "bundle")
    again, _ = xl.load(tmp_path / "bundle", backbone=TinyNet())
    x = torch.randn(2, 3, 16, 16)
    assert type(again.head(0)) is type(net.head(0))
    torch.testing.assert_close(again(x)[0].logits, net(x)[0].logits)
    assert xl.predict(again, x, xl.Policy((0.0,))).labels.tolist() == net(x)[0].logits.argmax(1).tolist()


@pytest.mark.slow
def test_all_heads_of_a_real_network_stay_below_a_twentieth_of_it():
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 10, torch.zeros(1, 3, 40, 40), head="context")
    assert 0.02 < net.head_share < 0.05
    assert {out.attention.shape[1:] for out in net.eval()(torch.randn(1, 3, 40, 40))} == {(10, 10)}


def read_words(net, input_ids, attention_mask):
    shown = attention_mask[..., None]
    x = torch.relu(net.mix(net.embed(input_ids) * shown)) + 0.1
    return net.fc((net.last(x) * shown).sum(1) / shown.sum(1))


def test_context_of_tokens_reads_the_first_exits_features_too_and_no_padding():
    torch.manual_seed(0)
    words = {"input_ids": torch.randint(20, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
    words["attention_mask"][0, 5:] = 0
    layers = {"embed": nn.Embedding(20, 6), "mix": nn.Linear(6, 6), "last": nn.Linear(6, 6), "fc": nn.Linear(6, 2)}
    net = xl.attach(make_network(read_words, **layers), ["embed", "mix"], 2, words, head="context").eval()
    for head in net.heads:
        nn.init.normal_(head.attend.weight)
    assert [head.reads for head in net.heads] == [2, 3, 3]
    assert [head.lateral is None for head in net.heads] == [True, False, False]
    outputs, _, features, _ = net.observe(words, features=True)
    shorter = net({name: tokens[:1, :5] for name, tokens in words.items()})
    check_outputs(outputs, net.heads)
    activations = net.unpack(words)
    for stage, head, out, located, short in zip(net.stages, net.heads, outputs, features, shorter, strict=True):
        activations = stage(*activations)
        assert (out.attention[0, 5:] == 0).all()
        assert located.shape[1:] == (head.classifier.in_features, 9)
        torch.testing.assert_close(short.logits[0], out.logits[0])
        torch.testing.assert_close(head.classify(*activations), out.logits)
    relevance = net.observe(words, relevance=True).relevance
    assert relevance.shape == (2, 9)
    assert (relevance[0, 5:] == 0).all()
    for k, policy in enumerate([(0.0, 0.0), (2.0, 0.0), (2.0, 2.0)]):
        answers = xl.predict(net, words, xl.Policy(policy), attention=True)
        torch.testing.assert_close(answers.probabilities, outputs[k].logits.softmax(1))


def _unsettle(neck):
    for norm in [m for m in neck.modules() if isinstance(m, nn.BatchNorm2d)]:
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return neck.eval()


def _step(x, s, **how):
    n = s.norm
    return F.batch_norm(F.conv2d(x, s.conv.weight, **how), n.running_mean, n.running_var, n.weight, n.bias)


def _mix(x, neck, width):
    for mixer in neck.mixers:
        x = F.relu(x + _step(F.relu(_step(x, mixer.depthwise, padding=2, groups=width)), mixer.pointwise))
    return x


@torch.no_grad()
def test_context_neck_equals_its_layers():
    neck, x = _unsettle(ContextNeck(6, 5, shrink=2)), torch.randn(2, 6, 8, 8)
    out = neck(x)
    torch.testing.assert_close(out, _mix(F.relu(_step(x, neck.inlet, stride=2)), neck, 5))
    assert out.shape == (2, 5, 4, 4)
    torch.testing.assert_close(neck.fuse()(x), out, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in neck.modules())


@torch.no_grad()
def test_a_neck_with_a_lateral_map_adds_the_enlarged_features():
    neck, deep, fine = _unsettle(ContextNeck(6, 5, lateral=3)), torch.randn(2, 6, 4, 4), torch.randn(2, 3, 7, 8)
    out = neck(deep, fine)
    enlarged = torch.nn.Upsample((7, 8), mode="bilinear")(_step(deep, neck.inlet))
    torch.testing.assert_close(out, _mix(F.relu(enlarged + _step(fine, neck.lateral)), neck, 5))
    torch.testing.assert_close(neck.fuse()(deep, fine), out, rtol=1e-4, atol=1e-5)


def test_spreading_is_enlarging():
    x = torch.randn(2, 3, 4, 5)
    spread = find_spread((4, 5), (7, 9), x)
    torch.testing.assert_close((x.flatten(2) @ spread.t()).view(2, 3, 7, 9), enlarge(x, (7, 9)))
    torch.testing.assert_close(spread.sum(1), torch.ones(63))


def test_necks_fit_their_budget_and_the_grid():
    neck = fit_neck(24, (20, 20), (10, 10), budget=100 * (4 * 24 * 40 + 2 * (25 * 40 + 40**2)))
    assert (neck.shrink, neck.width) == (2, 40)
    assert fit_neck(6, (7, 7), (7, 7), budget=1e12).width == 256
    assert fit_neck(6, (7, 7), (3, 3), budget=0).shrink == 1
    assert fit_neck(6, (8, 8), (4, 4), budget=0).width == 8
    lateral = fit_neck(100, (4, 4), (8, 8), budget=40 * (16 * 100 + 64 * 30) + 2 * 64 * (25 * 40 + 40**2), lateral=30)
    assert (lateral.shrink, lateral.width) == (1, 40)


def _redraw(neck):
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return neck


@torch.no_grad()
def test_token_neck_equals_its_layers():
    neck, x, early = _redraw(TokenNeck(6, 5, lateral=3)), torch.randn(2, 6, 7), torch.randn(2, 3, 7)
    own, other = (inlet.norm(f.mT @ inlet.linear.weight.t()) for inlet, f in ((neck.inlet, x), (neck.lateral, early)))
    rows = F.relu(own + other)
    for mixer in neck.mixers:
        spread = F.conv1d(rows.mT, mixer.depthwise.weight, padding=2, groups=5).mT
        rows = F.relu(rows + mixer.second(mixer.linear(F.relu(mixer.first(spread)))))
    torch.testing.assert_close(neck(x, early), rows.mT)
    assert neck.fuse() is neck


def test_a_token_neck_fits_its_budget():
    assert fit_token_neck(384, 32, 0).width == 8
    assert fit_token_neck(384, 32, 1e12).width == 256
    neck = fit_token_neck(50, 9, 9 * (40 * (50 + 20) + 2 * (5 * 40 + 40**2)), lateral=20)
    assert neck.width == 40
    assert neck(torch.zeros(1, 50, 9, dtype=torch.bfloat16), torch.zeros(1, 20, 9)).dtype == torch.float32


GROUPS = (("a", (0, 2)), ("b", (3,)))


@torch.no_grad()
def test_a_group_neck_equals_its_layers():
    torch.manual_seed(0)
    neck, hidden, vector = GroupNeck(5, 4, GROUPS, 3), torch.randn(2, 5, 1), torch.randn(2, 4, 1)
    rows = []
    for reader, members in zip(neck.readers, ([0, 2], [3]), strict=True):
        read = vector[:, members, 0] @ reader.weight.t() + reader.bias
        x = F.relu(read + hidden[..., 0] @ neck.inlet.weight.t())
        rows.append(F.relu(x + x @ neck.mixer.weight.t() + neck.mixer.bias))
    torch.testing.assert_close(neck(hidden, vector), torch.stack(rows, 2))
    assert neck.fuse() is neck
    assert not neck.keeps_features


def test_the_width_fits_a_budget():
    assert fit_group_neck(12, 6, GROUPS, 0).width == 8
    assert fit_group_neck(12, 6, GROUPS, 1e12).width == 256
    assert fit_group_neck(12, 6, GROUPS, 24 * (12 + 6) + 2 * 24**2).width == 24


VECTOR = torch.zeros(1, 6)
TWO = {"a": [0], "b": (1, 2)}


@pytest.mark.parametrize(
    ("groups", "example", "message"),
    [
        ({"a": [0]}, VECTOR, "two groups or more"),
        ([[0], [1]], VECTOR, "expected a dict"),
        ({"a": [0], "b": []}, VECTOR, "'b': expected columns from 0 to 5"),
        ({"a": [0], "b": [6]}, VECTOR, "'b': expected columns from 0 to 5"),
        ({"a": [0], "b": "12"}, VECTOR, "'b': expected columns"),
        ({"a": [0, 1], "b": [1]}, VECTOR, "column 1 is in two groups"),
        ({"a": [0, 0], "b": [1]}, VECTOR, "column 0 is in two groups"),
        (TWO, torch.zeros(1, 2, 24), "they are for vectors"),
        (TWO, VECTOR.long(), "they are for vectors"),
    ],
)
def test_unusable_groups(groups, example, message):
    with pytest.raises(xl.errors.InputError, match=message):
        check_groups(groups, tuple(example.shape[1:]), example)


def test_groups_are_read():
    assert check_groups(None, (2, 24), torch.zeros(1, 2, 24)) == ()
    assert check_groups(TWO, (6,), VECTOR) == (("a", (0,)), ("b", (1, 2)))
