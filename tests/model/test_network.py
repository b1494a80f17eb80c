import pytest
import torch

import exitlens as xl
from exitlens.model.mixing import Mixing
from tests.conftest import make_net
from tests.texts import make_text_net, make_texts


def test_outputs_have_the_promised_shapes_and_are_computed_from_the_features(net, images):
    outs, features = net.with_features(images)
    assert len(outs) == net.num_exits == 3
    for k, (out, grid) in enumerate(zip(outs, [(8, 8), (4, 4), (4, 4)], strict=True)):
        assert [t.shape for t in out] == [(40, 4), (40, *grid), (40, 4, *grid)]
        torch.testing.assert_close(out, net(images)[k])
        torch.testing.assert_close(net.head(k).classify(features[k]), out.logits)


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
        with pytest.raises(xl.errors.InputError, match=message):
            call(bad)


def test_fingerprint_follows_the_weights(net):
    first = net.cached_fingerprint()
    assert first == net.cached_fingerprint() == net.fingerprint() == make_net().fingerprint()
    with torch.no_grad():
        net.head(0).classifier.bias.add_(1)
    assert net.cached_fingerprint() != first
    assert net.cached_fingerprint() == net.fingerprint()


@pytest.mark.slow
def test_relevance_of_a_transformer_is_that_of_tokens_which_are_not_mixed_yet():
    """The first-order effect of scaling a token's embedding, attention weights and scales of layer norms held."""
    net, inputs = make_text_net().eval(), make_texts(5)
    outs, relevance = net.with_relevance(inputs)
    factors = torch.ones_like(relevance).requires_grad_()

    class Scaled(Mixing):
        def _normalise(self, input, *args, **words):
            self.count = getattr(self, "count", 0) + 1
            return super()._normalise(input * factors[..., None] if self.count == 1 else input, *args, **words)

    activations = net.unpack(inputs)
    with Scaled(is_fixed=True):  # its first layer norm is that of the embeddings
        for stage in net.stages:
            activations = stage(*activations)
    logits = net.head(2)(*activations).logits
    torch.testing.assert_close(outs[-1].logits, logits)
    (logits.amax(1) - logits.mean(1)).sum().backward()
    located = net.head(0).locations(*net.stage(0)(*net.unpack(inputs)))
    torch.testing.assert_close(relevance, factors.grad * located, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("relevance", [False, True])
def test_gradients_of_separate_maps_end_at_the_heads(net, images, relevance):
    whole = net.train()(images)
    outs = net.with_relevance(images, True)[0] if relevance else net(images, separate_maps=True)
    for out, plain in zip(outs, whole, strict=True):
        for output, expected in zip(out, plain, strict=True):
            torch.testing.assert_close(output, expected)
    sum(out.attention.square().sum() for out in outs).backward(retain_graph=True)
    assert all(p.grad is None for p in net.stages.parameters())
    assert all(head.attend.weight.grad is not None for head in net.heads)
    outs[-1].logits.sum().backward()
    assert any(p.grad is not None for p in net.stages.parameters())
