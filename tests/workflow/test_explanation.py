import json

import pytest
import torch

import exitlens as xl

POLICY = xl.Policy((0.9, 0.6))


def test_explanation_agrees_with_prediction(net, images):
    net.describe(classes=("w", "x", "y", "z"))
    pred = xl.predict(net, images, POLICY)
    for i, why in enumerate(xl.explain_batch(net, images, POLICY)):
        assert why.answered == pred.exits[i]
        assert why.label == pred.labels[i]
        view = why.exits[why.answered]
        assert view.confidence == pytest.approx(pred.confidence[i].item(), abs=1e-5)
        assert view.fired
        assert not any(earlier.fired for earlier in why.exits[: why.answered])
        assert why.name(why.label) in why.reason
        torch.testing.assert_close(view.attention.sum(), torch.tensor(1.0))
    json.dumps(why.to_dict())


def test_evidence_of_the_answer_sums_to_its_logit(net, images):
    why = xl.explain(net, images[0], POLICY)
    outs = net(images[:1])
    for k, view in enumerate(why.exits):
        bias = net.head(k).classifier.bias[view.label]
        torch.testing.assert_close(view.evidence.sum() + bias, outs[k].logits[0, view.label], rtol=1e-4, atol=1e-4)
        assert view.exact_evidence


def test_the_final_exit_says_why_it_had_to_answer(net, images):
    why = xl.explain(net, images[:1], xl.Policy.never(3))
    assert why.answered == 2
    assert "no earlier exit" in why.reason
    assert why.to_dict()["exits"][0]["threshold"] == "never"
    assert why.exits[2].cc == pytest.approx(1, abs=1e-5)
    assert why.exits[2].divergence == pytest.approx(0, abs=1e-5)
    assert why.name(3) == "class 3"


def test_bad_calls(net, images):
    with pytest.raises(xl.InputError, match="one image"):
        xl.explain(net, images, POLICY)
    with pytest.raises(xl.InputError, match="read_image"):
        xl.explain(net, "x.png", POLICY)
    with pytest.raises(xl.PolicyError):
        xl.explain(net, images[0], xl.Policy((0.5,)))
    with pytest.raises(xl.InputError):
        xl.explain(net, images[0, :1], POLICY)
