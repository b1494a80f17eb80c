"""Exit heads: exact evidence, attention that sums to 1."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

import exitlens as xl
from exitlens.model.cutting.boundaries import Layout
from exitlens.model.heads import AverageHead, ContextNeck, EvidenceHead
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


def test_kept_evidence_equals_grad_cam():
    """For global average pooling and a linear layer Grad-CAM is CAM; both are relu'd and scaled to their maximum."""
    backbone = TinyNet().eval()
    net = xl.attach(backbone, ["a"], 4, torch.zeros(1, 3, 16, 16), final="keep").eval()
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        out = net(x)[-1]
    torch.testing.assert_close(out.evidence.sum((2, 3)) + backbone.fc.bias, out.logits, rtol=1e-4, atol=1e-5)
    for label in range(4):
        with GradCAM(backbone, [backbone.c]) as cam:
            expected = torch.from_numpy(cam(x, [ClassifierOutputTarget(label)] * 3))
        ours = torch.nn.functional.interpolate(out.evidence[:, label, None].relu(), (16, 16), mode="bilinear")[:, 0]
        ours = ours / ours.amax((1, 2), keepdim=True).clamp_min(1e-7)
        for a, b in zip(ours, expected, strict=True):
            if b.max() > 0:
                assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99


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
    backbone.fc = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4))
    net = xl.attach(backbone, ["a"], 4, torch.zeros(1, 3, 16, 16), final="keep").eval()
    assert not net.head(1).exact_evidence
    assert net.head(0).exact_evidence
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
    outputs, features = net.with_features(x)
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
    outputs, features = net.with_features(words)
    shorter = net({name: tokens[:1, :5] for name, tokens in words.items()})
    check_outputs(outputs, net.heads)
    activations = net.unpack(words)
    for stage, head, out, located, short in zip(net.stages, net.heads, outputs, features, shorter, strict=True):
        activations = stage(*activations)
        assert (out.attention[0, 5:] == 0).all()
        assert located.shape[1:] == (head.classifier.in_features, 9)
        torch.testing.assert_close(short.logits[0], out.logits[0])
        torch.testing.assert_close(head.classify(*activations), out.logits)
    relevance = net.with_relevance(words)[1]
    assert relevance.shape == (2, 9)
    assert (relevance[0, 5:] == 0).all()
    for k, policy in enumerate([(0.0, 0.0), (2.0, 0.0), (2.0, 2.0)]):
        answers = xl.predict(net, words, xl.Policy(policy), attention=True)
        torch.testing.assert_close(answers.probabilities, outputs[k].logits.softmax(1))
