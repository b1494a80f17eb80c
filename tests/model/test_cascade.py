"""Cascades: logits are the members' own, to the bit, in every form; and all verbs take them as they take any network."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import exitlens as xl
import exitlens_runtime as er
from exitlens.model.heads import KeptHead
from tests.conftest import TinyNet, make_tiny_set
from tests.texts import make_text_net, make_texts

RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Small(nn.Module):
    """A network with fewer channels than ``TinyNet``, which ends in pooling and one linear layer, too."""

    def __init__(self, classes: int = 4, width: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.norm(self.conv(x)).relu()).flatten(1))


def make_members() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return Small().eval(), TinyNet().eval()


@pytest.fixture(scope="module")
def pair():
    return make_members()


@pytest.fixture(scope="module")
def net(pair):
    return xl.cascade(pair, torch.zeros(1, 3, 16, 16))


IMAGES = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_members_own(net, pair):
    small, _ = pair
    outputs = net(IMAGES)
    assert [torch.equal(out.logits, member(IMAGES)) for out, member in zip(outputs, pair, strict=True)] == [True, True]
    for head, out, member in zip(net.heads, outputs, pair, strict=True):
        assert head.exact_evidence
        torch.testing.assert_close(out.evidence.flatten(2).sum(2) + member.fc.bias, out.logits)
    assert net.head(0).classifier.weight is small.fc.weight  # shared, not copied
    assert (net.num_exits, net.info.at, net.info.final) == (2, ("0",), "keep")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pair[1](IMAGES[:1])
    plain = counter.get_total_flops() / 2
    first = 8 * 8 * 4 * 27 + 4 * 4  # multiply-accumulates of the small one: a convolution at stride 2, and the linear layer
    assert net.cost.tolist() == pytest.approx([first / plain, first / plain + 1])


@pytest.mark.slow
def test_members_keep_their_mode():
    small, large = make_members()
    members = [xl.attach(member, [], 4, IMAGES[:1], final="keep") for member in (small, large)]
    net, before = xl.cascade(members), [value.clone() for value in large.state_dict().values()]
    assert not net.training
    net(IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(before, large.state_dict().values(), strict=True))
    large.train()
    assert xl.cascade([small.train(), large], IMAGES[:1]).training
    assert not xl.cascade([small.eval(), large.eval()], IMAGES[:1]).training


def test_samples_go_on_to_the_next_member(net, pair):
    scores = pair[0](IMAGES).softmax(1).amax(1).sort().values
    policy = xl.Policy((scores[9:11].mean().item(),))  # between two scores, so that rounding decides nothing
    pred = xl.predict(net, IMAGES, policy)
    assert pred.exits.sum() == 10
    expected = torch.stack([pair[k](IMAGES).argmax(1)[i] for i, k in enumerate(pred.exits.tolist())])
    assert torch.equal(pred.labels, expected)
    streamed = torch.cat([part.labels for part in xl.predict_stream(net, IMAGES.split(3), policy)])
    assert torch.equal(streamed, expected)


def test_each_member_gets_its_size_and_scaling(pair):
    own = [xl.data.Preprocess((8, 8)), xl.data.Preprocess((16, 16), *RGB)]
    net, pixels = xl.cascade(pair, torch.zeros(1, 3, 16, 16), preprocess=own), torch.rand(5, 3, 16, 16)
    assert net.info.preprocess == xl.data.Preprocess((16, 16), (0.0,) * 3, (1.0,) * 3)
    small = own[0].normalise(F.interpolate(pixels, (8, 8), mode="bilinear", antialias=True))
    assert torch.equal(net(pixels)[0].logits, pair[0](small))
    assert torch.equal(net(pixels)[1].logits, pair[1](own[1].normalise(pixels)))
    alike = xl.cascade(pair, torch.zeros(1, 3, 16, 16), preprocess=[own[1], own[1]])
    assert alike.info.preprocess == own[1]  # as all members have it
    assert torch.equal(alike(pixels)[0].logits, pair[0](pixels))


def test_classes_are_matched_by_name(pair):
    nets = [xl.attach(member, [], 4, IMAGES[:1], final="keep") for member in pair]
    nets[0].describe(classes=("d", "a", "b", "c"))
    nets[1].describe(classes=("a", "b", "c", "d"))
    net = xl.cascade({"small": nets[0], "large": nets[1]})
    assert (net.info.classes, net.info.at) == (("a", "b", "c", "d"), ("small",))
    assert torch.equal(net(IMAGES)[0].logits, pair[0](IMAGES)[:, [1, 2, 3, 0]])
    assert torch.equal(net(IMAGES)[1].logits, pair[1](IMAGES))
    learned = xl.attach(pair[0], [], 4, IMAGES[:1])  # a head of its own, whose evidence would stay in its order
    learned.describe(classes=("d", "a", "b", "c"))
    with pytest.raises(xl.errors.AttachError, match=r"members\[0\]: its classes are in another order"):
        xl.cascade([learned, nets[1]])
    with pytest.raises(xl.errors.InputError, match=r"preprocess: this member takes images of \(16, 16\), got \(8, 8\)"):
        xl.cascade(nets, preprocess=[xl.data.Preprocess((8, 8)), xl.data.Preprocess((16, 16))])
    nets[0].describe(classes=("a", "b", "c", "e"))
    with pytest.raises(xl.errors.AttachError, match=r"members\[0\]: its 4 classes do not have these names: d, e. Fix: "):
        xl.cascade(nets)


@pytest.mark.slow
def test_exits_of_members_are_exits_of_the_cascade(pair):
    inner = xl.attach(pair[1], ["a", "b"], 4, IMAGES[:1], head="context").eval()
    net = xl.cascade([pair[0], inner], IMAGES[:1])
    assert net.info.at == ("0", "1.a", "1.b")
    assert [net.first_exit(k) for k in range(4)] == [0, 1, 1, 1]
    for out, expected in zip(net(IMAGES)[1:], inner(IMAGES), strict=True):
        assert torch.equal(out.logits, expected.logits)
        assert torch.equal(out.attention, expected.attention)
    assert not isinstance(net.head(3), KeptHead)
    first = xl.cascade([inner, pair[0]], IMAGES[:1])
    assert [first.first_exit(k) for k in range(4)] == [0, 0, 0, 3]
    for out, expected in zip(first(IMAGES)[:3], inner(IMAGES), strict=True):
        assert torch.equal(out.logits, expected.logits)
    assert torch.equal(first(IMAGES)[3].logits, pair[0](IMAGES))
    relevance = xl.attribute(first, IMAGES, exit=2)
    torch.testing.assert_close(relevance, xl.attribute(inner, IMAGES))
    assert xl.attribute(first, IMAGES).shape == (20, 8, 8)  # on the last member's own features
    with pytest.raises(xl.errors.InputError, match="at: expected a number from 3 to 3, got 0"):
        xl.attribute(first, IMAGES, at=0)


@pytest.mark.slow
def test_three_texts_too():
    nets, texts = [make_text_net() for _ in range(3)], make_texts(6)
    net = xl.cascade(nets, texts)
    assert net.num_exits == sum(member.num_exits for member in nets)
    ends = [2, 5, 8]
    assert [net.first_exit(k) for k in ends] == [0, 3, 6]
    for end, member in zip(ends, nets, strict=True):
        assert torch.equal(net(texts)[end].logits, member(texts)[-1].logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b: xl.cascade([a], IMAGES), "members: expected a list of two networks or more"),
        (lambda a, b: xl.cascade(a, IMAGES), "members: expected a list of two networks or more"),
        (lambda a, b: xl.cascade([a, "x"], IMAGES), "members: expected Module, got str"),
        (lambda a, b: xl.cascade([a, b]), "example: it is needed where a member has no exits"),
        (lambda a, b: xl.cascade([a, Small(5)], IMAGES), r"members\[0\]: it has classes: 4 .*, the last member has 5"),
        (
            lambda a, b: xl.cascade([a, b], IMAGES, classes=("a", "b")),
            r"members\[0\]: its 4 classes do not have these names",
        ),
        (
            lambda a, b: xl.cascade([a, b], IMAGES, preprocess=[xl.data.Preprocess((8, 8))]),
            "preprocess: expected one for each",
        ),
        (
            lambda a, b: xl.cascade([nn.Conv2d(1, 4, 3), b], IMAGES),
            r"members\[0\]: it fails on an example of shape .* Fix: ",
        ),
        (lambda a, b: xl.cascade([a, b], IMAGES[0]), r"members\[0\]: it fails on an example of shape .* Fix: "),
        (
            lambda a, b: xl.cascade([xl.attach(Small(channels=1), [], 4, IMAGES[:1, :1]), b], IMAGES),
            r"members\[0\]: it takes images of 1 channels, the example has 3. Fix: ",
        ),
        (lambda a, b: xl.cascade([nn.Flatten(0), b], IMAGES), r"members: expected networks that return logits \(B,C\)"),
    ],
)
def test_what_makes_no_cascade(pair, make, message):
    with pytest.raises((xl.errors.InputError, xl.errors.AttachError), match=message):
        make(*pair)


def test_bundles_are_loaded_with_the_members_modules(net, pair, tmp_path):
    xl.save(net, xl.Policy((0.3,)), tmp_path / "bundle")
    again, policy = xl.load(tmp_path / "bundle", backbone=[Small(), TinyNet()])
    with pytest.raises(xl.errors.BundleError, match="whose members have heads of their own"):
        xl.load(tmp_path / "bundle", backbone=[Small(), TinyNet()], heads={0: lambda head: head})
    assert policy == xl.Policy((0.3,))
    assert (again.info, again.fingerprint()) == (net.info, net.fingerprint())
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(again(IMAGES), net(IMAGES), strict=True))
    for given in (None, [Small()], Small(), [None, TinyNet()]):
        with pytest.raises(xl.errors.BundleError, match=r"Fix: load\(\.\.\., backbone=\[\.\.\.\]\)"):
            xl.load(tmp_path / "bundle", backbone=given)


def test_training_teaches_the_members(tmp_path):
    data = make_tiny_set(64)
    net = xl.cascade(make_members(), data.inputs[:1])
    with pytest.raises(xl.errors.InputError, match="loss: members of a cascade share no features"):
        xl.fit(net, data, data, loss=xl.EGTLoss(), epochs=1)
    before = [parameter.clone() for parameter in net.parameters()]
    result = xl.fit(net, data, data, loss=xl.EGTLoss(weight=0.0, distill=0.5), epochs=1, progress=False)
    assert result.history[0]["loss"]["distillation"] > 0
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.slow
def test_verbs_that_judge_take_cascades(pair):
    data, net = make_tiny_set(80), xl.cascade(make_members(), IMAGES[:1])
    trace = xl.collect(net, data, swapped=40)
    policy = xl.calibrate(trace, max_disagreement=0.5, max_cue_drop=0.5, gate=True)
    assert xl.evaluate(trace, policy).disagreement <= 0.5
    assert xl.sweep(trace)
    why = xl.explain(net, data.inputs[0], policy, relevance=True)
    assert why.relevance.shape == ((8, 8) if why.answered == 0 else net(IMAGES)[1].attention.shape[1:])
    assert xl.measure_faithfulness(net, data, samples=40, oracle_samples=8).binding is not None
    assert len(xl.measure_faithfulness(net, data, samples=40, of="relevance").deletion) == 2
    assert xl.certify_binding(net, make_tiny_set(40), xl.Policy((0.3,))).binding.samples == 40
    xl.find_cues(net, data, samples=40, progress=False)


@pytest.mark.slow
def test_files_and_tuning_answer_alike(pair, tmp_path):
    pytest.importorskip("onnxruntime")
    own = [xl.data.Preprocess((8, 8)), xl.data.Preprocess((16, 16), *RGB)]
    net, pixels = xl.cascade(pair, torch.zeros(1, 3, 16, 16), preprocess=own), torch.rand(30, 3, 16, 16)
    scores = xl.collect(net, pixels).logits[:, 0].softmax(1).amax(1).sort().values
    policy = xl.Policy((scores[14:16].mean().item(),))
    expected = xl.predict(net, pixels, policy)
    assert expected.exits.sum() == 15
    edge = er.load(xl.export(net, policy, tmp_path / "edge"), threads=1)
    answers = edge.predict(pixels.numpy())
    assert answers.exits.tolist() == expected.exits.tolist()
    assert answers.labels.tolist() == expected.labels.tolist()
    assert (tmp_path / "edge" / "cascade.onnx").exists()
    net.tune(pixels, backend="onnx", seconds=0.1)
    assert torch.equal(xl.predict(net, pixels, policy).exits, expected.exits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.compile(policy)
    assert torch.equal(xl.predict(net, pixels, policy).labels, expected.labels)
    torch._dynamo.reset()  # its graphs are shared by all networks of the process


def test_grey_images_may_have_members_for_colours():
    torch.manual_seed(0)
    grey, colour = Small(channels=1).eval(), Small(width=8).eval()
    scales = [xl.data.Preprocess((16, 16), (0.5,), (0.25,)), xl.data.Preprocess((16, 16), *RGB)]
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    net = xl.cascade([grey, colour], images[:1], preprocess=scales)
    standard = (images.expand(-1, 3, -1, -1) - torch.tensor(RGB[0]).view(3, 1, 1)) / torch.tensor(RGB[1]).view(3, 1, 1)
    torch.testing.assert_close(net(images)[1].logits, colour(standard))
