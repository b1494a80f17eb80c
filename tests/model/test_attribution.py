"""Relevance held against captum and pytorch-grad-cam; deletion and occlusion by hand."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.functional.maps import place
from exitlens.model.attribution import METHODS, STEPS, attribute_exits, occlude, perturb
from exitlens.types.inputs import map_inputs
from tests.conftest import TinyNet, make_net
from tests.model.kinds import check_unchanged, make_network
from tests.texts import make_text_net, make_texts


def make_linear_net():
    """Return a network that is linear from the features of exit 0 to the logits: relevance can be written down."""
    layers = {name: nn.Conv2d(1, 1, 1, bias=False) for name in "ab"}
    for layer, value in zip(layers.values(), (2.0, 3.0), strict=True):
        nn.init.constant_(layer.weight, value)
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "fc": nn.Linear(1, 2)}
    backbone = make_network(lambda n, x: n.fc(n.pool(n.b(n.a(x))).flatten(1)), **layers)
    return xl.attach(backbone, ["a"], 2, torch.zeros(1, 1, 4, 4), final="keep", layout="nchw")


@pytest.fixture
def net(net):
    """Its maps are not moved in the image, so that they are what others compute."""
    net.describe(map_offsets=(), feature_offsets=())
    return net


def test_by_hand_through_a_linear_stage():
    """Logits are w * mean(6 x) + b, and the score of class 0 is half of their difference."""
    net = make_linear_net()
    x = torch.arange(-4.0, 12.0).view(1, 1, 4, 4)
    weight = net.head(1).tail.body.get_submodule("fc").weight.detach().flatten()
    by_hand = (weight[0] - weight[1]) / 2 * 6 * x[0] / 16
    torch.testing.assert_close(xl.attribute(net, x, labels=torch.tensor([0])), by_hand)
    torch.testing.assert_close(xl.attribute(net, x, labels=torch.tensor([0]), at=1), by_hand)  # the same, later


@pytest.mark.parametrize("method", METHODS)
def test_maps_have_the_grid_of_the_features_and_nothing_is_changed(net, images, method):
    with check_unchanged(net.train()):
        for at, grid in ((0, (8, 8)), (1, (4, 4)), (2, (4, 4))):
            relevance = xl.attribute(net, images, at=at, method=method)
            assert (relevance.shape, relevance.dtype, relevance.requires_grad) == ((40, *grid), torch.float32, False)
            assert relevance.lt(0).any() == (method != "layer_cam")


class After(nn.Module):
    """Centred logits of an exit, from what the stages up to another exit give: what other libraries are shown."""

    def __init__(self, net, at, exit, of_images=True):
        super().__init__()
        self.net, self.at, self.exit, self.of_images, self.features = net.eval(), at, exit, of_images, nn.Identity()

    def before(self, images):
        for stage in self.net.stages[: self.at + 1]:
            (images,) = stage(images)
        return images

    def forward(self, x):
        x = self.features(self.before(x) if self.of_images else x)
        for stage in self.net.stages[self.at + 1 : self.exit + 1]:
            (x,) = stage(x)
        logits = self.net.head(self.exit).classify(x)
        return logits - logits.mean(1, keepdim=True)


PLACES = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(("at", "exit"), PLACES)
@pytest.mark.slow
def test_gradients_are_those_of_captum(net, images, at, exit):
    from captum.attr import IntegratedGradients, LayerGradientXActivation  # here: every worker imports what stands above

    x, whole, rest = images[:6], After(net, at, exit), After(net, at, exit, of_images=False)
    relevance, labels = xl.attribute(net, x, at=at, exit=exit), whole(x).argmax(1)
    expected = LayerGradientXActivation(whole, whole.features).attribute(x, target=labels)
    torch.testing.assert_close(relevance, expected.detach().sum(1))
    features = whole.before(x).detach().requires_grad_()
    labels = torch.tensor([3, 2, 1, 0, 1, 2])
    settings = {"baselines": 0.0, "target": labels, "n_steps": STEPS, "method": "riemann_middle"}
    expected = IntegratedGradients(rest).attribute(features.detach(), **settings).sum(1)
    relevance = xl.attribute(net, x, at=at, exit=exit, labels=labels, method="integrated_gradients")
    torch.testing.assert_close(relevance, expected.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("at", "exit"), [(0, 2), (1, 2)])
def test_layer_cam_is_that_of_pytorch_grad_cam_but_for_its_scale(net, images, at, exit):
    from pytorch_grad_cam import LayerCAM
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    x, whole, labels = images[:6], After(net, at, exit), [3, 2, 1, 0, 1, 2]
    found = xl.attribute(net, x, at=at, exit=exit, labels=torch.tensor(labels), method="layer_cam")
    with LayerCAM(whole, [whole.features]) as cam:
        theirs = cam(x, [ClassifierOutputTarget(label) for label in labels])
    ours = scale_cam_image(scale_cam_image(found.numpy(), (16, 16)))  # enlarged, and scaled before and after that
    torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(theirs), atol=1e-5, rtol=1e-4)


def test_kept_evidence_equals_grad_cam():
    """For global average pooling and a linear layer Grad-CAM is CAM; both are relu'd and scaled to their maximum."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    backbone = TinyNet().eval()
    net = xl.attach(backbone, ["a"], 4, torch.zeros(1, 3, 16, 16), final="keep").eval()
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        out = net(x)[-1]
    torch.testing.assert_close(out.evidence.sum((2, 3)) + backbone.fc.bias, out.logits, rtol=1e-4, atol=1e-5)
    for label in range(4):
        with GradCAM(backbone, [backbone.c]) as cam:
            expected = torch.from_numpy(cam(x, [ClassifierOutputTarget(label)] * 3))
        ours = nn.functional.interpolate(out.evidence[:, label, None].relu(), (16, 16), mode="bilinear")[:, 0]
        ours = ours / ours.amax((1, 2), keepdim=True).clamp_min(1e-7)
        for a, b in zip(ours, expected, strict=True):
            if b.max() > 0:
                assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99


def test_it_is_placed_in_the_image_and_in_training_it_is_not(images):
    net = make_net()
    raw = net.observe(images, relevance=True).relevance
    offset = net.info.feature_offsets[0]
    assert offset == pytest.approx((-0.25, -0.25), abs=0.1)  # random kernels lean a little
    wanted = place(raw, offset)
    torch.testing.assert_close(xl.attribute(net, images), wanted)
    assert not torch.allclose(raw, wanted)
    first = torch.stack([xl.explain(net, one, xl.Policy.never(3), relevance=True).relevance for one in images[:3]])
    torch.testing.assert_close(first, place(net.observe(images[:3], relevance=True).relevance, offset), atol=1e-6, rtol=1e-4)
    features = xl.attribute(net, images, at=1)
    net.describe(feature_offsets=((0.0, 0.0), (-1.0, 0.0), (0.0, 0.0)))
    assert not torch.allclose(xl.attribute(net, images, at=1), features)  # those of the place that was asked for


def test_all_exits_from_one_pass(net, images):
    ran, net = [], net.train()
    for stage in net.stages:
        stage.register_forward_hook(lambda *_: ran.append(1))
    found = attribute_exits(net, images)
    assert len(ran) == 3
    assert net.training
    for k, relevance in enumerate(found):
        torch.testing.assert_close(relevance, xl.attribute(net, images, exit=k))
    with pytest.raises(xl.errors.InputError):
        attribute_exits(net, images[:, :1])


def test_it_is_what_training_uses_in_inference_mode_and_of_every_sample_by_itself(net, images):
    whole = xl.attribute(net, images)
    torch.testing.assert_close(whole, net.eval().observe(images, relevance=True).relevance)
    with torch.inference_mode():
        assert torch.equal(xl.attribute(net, images + 0), whole)
    torch.testing.assert_close(xl.attribute(net, images[3:4]), whole[3:4], atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_padding_of_texts_is_0_and_detached_mixing_changes_the_gradient():
    net, inputs = make_text_net(), make_texts(6)
    plain, detached = (xl.attribute(net, inputs, detached=value) for value in (False, True))
    real = inputs["attention_mask"].bool()
    real[:, 0] = False
    for relevance in (plain, detached):
        assert relevance[~real].eq(0).all()
        assert relevance[real].ne(0).all()
    assert not torch.allclose(plain, detached, atol=1e-4)
    # networks with attention detach by themselves, in an explanation's backward pass, too
    whys = xl.explain_batch(net, inputs, xl.Policy.never(net.num_exits), relevance=True)
    torch.testing.assert_close(torch.stack([why.relevance for why in whys]), detached)


@pytest.mark.slow
def test_integrated_gradients_of_small_and_larger_batches_are_the_same():
    net, inputs = make_text_net(), make_texts(6)
    few, first = ({k: t[:n] for k, t in inputs.items()} for n in (5, 1))  # 3 steps, and all of them, at a time
    whole, alone = (xl.attribute(net, x, method="integrated_gradients") for x in (few, first))
    torch.testing.assert_close(whole[:1], alone, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"exit": 3}, "exit: expected a number from 0 to 2, got 3"),
        ({"exit": 0, "at": 1}, "at: expected a number from 0 to 0, got 1"),
        ({"at": -1}, "at: expected"),
        ({"method": "saliency"}, "method: expected one of"),
        ({"labels": torch.tensor([9] * 40)}, r"labels: expected values in \[0, 4\)"),
        ({"labels": torch.tensor([0])}, "labels: expected"),
        ({"labels": [0, 1]}, r"labels: expected Tensor, got list: torch\.tensor\(labels\) makes one"),
    ],
)
def test_bad_arguments(net, images, values, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.attribute(net, images, **values)


@contextmanager
def prepare(net, inputs):
    """Give an engine, two batches, probabilities and maps: what :func:`occlude` and :func:`perturb` take."""
    with torch.no_grad():
        outs = net(inputs)
    batches = [(rows, map_inputs(inputs, lambda t, rows=rows: t[rows])) for rows in (slice(0, 5), slice(5, 7))]
    with net.open_engine() as engine:
        yield engine, batches, [out.logits.softmax(1) for out in outs], [out.attention for out in outs]


@pytest.mark.slow
@torch.no_grad()
def test_every_cell_by_itself_and_none_of_the_padding():
    net, inputs = make_text_net().eval(), make_texts(7)
    with prepare(net, inputs) as given:
        found = occlude(net, *given)
    plain, maps = given[2:]
    real = maps[0] > 0  # neither padding nor the first token, which stands for the class
    for k, drops in enumerate(found):
        assert drops.shape == maps[k].shape
        assert drops[~real].eq(0).all()
    shorter = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    shorter["attention_mask"][:, 2] = 0
    rows = real[:, 2] & (real.sum(1) > 1)
    assert rows.any()
    for k, out in enumerate(net(shorter)):
        label = plain[k].argmax(1, keepdim=True)
        by_hand = (plain[k] - out.logits.softmax(1)).gather(1, label).squeeze(1)
        torch.testing.assert_close(found[k][rows, 2], by_hand[rows], atol=1e-6, rtol=1e-4)


def test_deleting_a_map_of_one_cell_is_occluding_that_cell(net, images):
    with prepare(net, images[:7]) as given:
        alone = occlude(net, *given)
        drops, keeps = perturb(net, *given, 1e-3)
    for k, drop in enumerate(drops):
        top = given[3][k].flatten(1).argmax(1, keepdim=True)
        torch.testing.assert_close(drop, alone[k].flatten(1).gather(1, top).squeeze(1), atol=1e-6, rtol=1e-4)
        assert ((keeps[k] >= 0) & (keeps[k] <= 1)).all()


def test_maps_from_elsewhere_are_judged_by_the_exit_they_are_about(net, images):
    with prepare(net, images[:7]) as (*given, maps):
        expected = perturb(net, *given, maps, 0.3)
        again = perturb(net, *given, [maps[2], maps[0], maps[2]], 0.3, exits=[2, 0, 2])
    for values, wanted in zip(again, expected, strict=True):
        assert all(torch.equal(value, wanted[k]) for value, k in zip(values, (2, 0, 2), strict=True))
