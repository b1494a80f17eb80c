import pytest
import torch

import exitlens as xl
from tests.conftest import make_net


def test_outputs_have_the_promised_shapes(net, images):
    outs = net(images)
    assert len(outs) == net.num_exits == 3
    for out, grid in zip(outs, [(8, 8), (4, 4), (4, 4)], strict=True):
        logits, attention, evidence = out
        assert logits.shape == (40, 4)
        assert attention.shape == (40, *grid)
        assert evidence.shape == (40, 4, *grid)


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
