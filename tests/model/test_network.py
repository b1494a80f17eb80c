import pytest
import torch
from torchvision import models

import exitlens as xl
from tests.conftest import TinyNet, make_net


def test_outputs_have_the_promised_shapes(net, images):
    outs = net(images)
    assert len(outs) == net.num_exits == 3
    for out, grid in zip(outs, [(8, 8), (4, 4), (4, 4)], strict=True):
        logits, attention, evidence = out
        assert logits.shape == (40, 4)
        assert attention.shape == (40, *grid)
        assert evidence.shape == (40, 4, *grid)


def test_kept_final_is_bit_identical(images):
    backbone = TinyNet().eval()
    kept = xl.attach(backbone, ["a", "b"], 4, images[:1], final="keep").eval()
    assert torch.equal(kept(images)[-1].logits, backbone(images))
    never = xl.predict(kept, images, xl.Policy.never(3))
    with torch.inference_mode():
        assert torch.equal(never.probabilities, backbone(images).softmax(-1))


def test_kept_resnet18_is_bit_identical_with_the_never_exit_policy():
    backbone = models.resnet18(num_classes=7).eval()
    x = torch.randn(3, 3, 48, 48)
    net = xl.attach(backbone, ["layer1", "layer2", "layer3"], 7, x, final="keep").eval()
    pred = xl.predict(net, x, xl.Policy.never(4))
    with torch.inference_mode():
        assert torch.equal(pred.probabilities, backbone(x).softmax(-1))
    assert net.head_share < 0.05


def test_walk_runs_a_stage_only_when_asked(net, images):
    ran = []
    for k, stage in enumerate(net.stages):
        stage.register_forward_hook(lambda *_, k=k: ran.append(k))
    walk = net.walk(images)
    assert ran == []
    first = next(walk)
    assert ran == [0]
    torch.testing.assert_close(first.logits, net(images)[0].logits)
    assert len(list(net.walk(images))) == 3


def test_cost_counts_heads_and_grows():
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 10, torch.zeros(1, 3, 40, 40))
    assert (net.cost.diff() > 0).all()
    assert net.cost[-1].item() == pytest.approx(1 + net.head_share, abs=0.01)
    assert net.head_share < 0.05
    assert net.info.source == "small"


def test_cost_by_hand():
    """TinyNet at 16x16: convolutions 8*8*6*27, 4*4*8*54, 4*4*10*72, linear 40; a head is D*N + D*N + D*C."""
    stages = [8 * 8 * 6 * 27, 4 * 4 * 8 * 54, 4 * 4 * 10 * 72]
    heads = [2 * d * n + d * 4 for d, n in ((6, 64), (8, 16), (10, 16))]
    plain = sum(stages) + 40
    net = xl.attach(TinyNet(), ["a", "b"], 4, torch.zeros(1, 3, 16, 16))
    expected = [(sum(stages[: k + 1]) + sum(heads[: k + 1])) / plain for k in range(3)]
    torch.testing.assert_close(net.cost, torch.tensor(expected))
    assert net.head_share == pytest.approx(sum(heads) / plain)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.randn(3, 16, 16), "add the batch axis"),
        (torch.randn(2, 1, 16, 16), r"expected \(B,3,H,W\)"),
        (torch.randn(0, 3, 16, 16), "empty"),
        (torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8), "expected floats"),
        (torch.randn(2, 3, 16, 16).double(), "float32"),
        (torch.full((2, 3, 16, 16), float("nan")), "NaN or Inf"),
        (torch.full((2, 3, 16, 16), float("inf")), "NaN or Inf"),
        (torch.randn(2, 3, 4, 4), "far below"),
        ([[1.0]], "torch.Tensor"),
    ],
)
def test_bad_images_are_one_clear_error(net, bad, message):
    for call in (net.walk, lambda x: xl.predict(net, x, xl.Policy((0.5, 0.5)))):
        with pytest.raises(xl.InputError, match=message):
            call(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": "a"}, "list of module names"),
        ({"at": [1]}, "list of module names"),
        ({"num_classes": 1}, "num_classes"),
        ({"example": torch.zeros(3, 16, 16)}, "example"),
        ({"example": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}, "example"),
        ({"final": "cam"}, "final"),
        ({"num_classes": 9, "final": "keep"}, "has 4 outputs, got 9"),
    ],
)
def test_bad_attach_arguments(arguments, message):
    values = {"at": ["a"], "num_classes": 4, "example": torch.zeros(1, 3, 16, 16), **arguments}
    with pytest.raises(xl.ExitlensError, match=message):
        xl.attach(TinyNet(), **values)


def test_a_final_map_of_one_cell_is_refused_for_exits_but_not_for_the_plain_network():
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(xl.AttachError, match="1x1"):
        xl.attach(TinyNet(), ["a"], 4, x)
    assert xl.attach(TinyNet(), [], 4, x, final="keep").num_exits == 1


def test_attach_to_something_else():
    with pytest.raises(xl.InputError, match="backbone: expected an"):
        xl.attach(3, ["a"], 4, torch.zeros(1, 3, 16, 16))


def test_fingerprint_follows_the_weights(net):
    first = net.cached_fingerprint()
    assert first == net.cached_fingerprint() == net.fingerprint() == make_net().fingerprint()
    with torch.no_grad():
        net.head(0).classifier.bias.add_(1)
    assert net.cached_fingerprint() != first
    assert net.cached_fingerprint() == net.fingerprint()


def test_features_are_what_the_heads_saw(net, images):
    outs, features = net.with_features(images)
    for k, (out, f) in enumerate(zip(outs, features, strict=True)):
        torch.testing.assert_close(net.head(k).classify(f), out.logits)
