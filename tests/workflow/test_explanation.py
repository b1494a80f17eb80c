import json

import pytest
import torch

import exitlens as xl
from exitlens.functional.maps import place
from exitlens.model.engine.tuning import Tuning

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


def test_maps_are_placed_in_the_image_and_compared_as_they_are(net, images):
    why, outs = xl.explain(net, images[0], POLICY), net(images[:1])
    assert net.map_offsets[0] == pytest.approx((-0.25, -0.25), abs=0.1)  # random kernels lean a little
    for view, out, offset in zip(why.exits, outs, net.map_offsets, strict=True):
        torch.testing.assert_close(view.attention, place(out.attention[0], offset))
        torch.testing.assert_close(view.evidence, place(out.evidence[0, view.label], offset))
    net.describe(map_offsets=())
    raw = xl.explain(net, images[0], POLICY)
    assert not torch.allclose(raw.exits[0].attention, why.exits[0].attention)
    assert [view.cc for view in raw.exits] == [view.cc for view in why.exits]


def test_correlations_stand_beside_what_another_samples_map_has(net, images):
    trace = xl.collect(net, images)
    policy = xl.calibrate(trace, max_disagreement=0.5)
    policy = xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict())))
    nulls = trace.null["cc"].mean(0).tolist()
    assert policy.calibration.map_null == pytest.approx(nulls)
    assert [view.cc_null for view in xl.explain(net, images[0], policy).exits] == pytest.approx(nulls)
    assert [view.cc_null for view in xl.explain(net, images[0], POLICY).exits] == [None] * 3
    single = xl.collect(net, images[:1])  # there is no other sample
    assert xl.calibrate(single, max_disagreement=0.5).calibration.map_null is None


def test_bad_calls(net, images):
    with pytest.raises(xl.errors.InputError, match="one sample"):
        xl.explain(net, images, POLICY)
    with pytest.raises(xl.errors.InputError, match="read_image"):
        xl.explain(net, "x.png", POLICY)
    with pytest.raises(xl.errors.PolicyError):
        xl.explain(net, images[0], xl.Policy((0.5,)))
    with pytest.raises(xl.errors.InputError):
        xl.explain(net, images[0, :1], POLICY)


def test_evidence_bias_and_logit_add_up(net, kept, images):
    for network, count in ((net, 3), (kept, 2)):  # a kept classifier's evidence need not be exact
        outs, why = network(images[:1]), xl.explain(network, images[0], POLICY)
        for view, out in zip(why.exits[:count], outs, strict=False):
            assert view.exact_evidence
            assert view.logit == pytest.approx(out.logits[0, view.label].item(), rel=1e-4, abs=1e-4)
            assert view.evidence.sum().item() + view.bias == pytest.approx(view.logit, rel=1e-4, abs=1e-4)


def test_agreement_with_the_exit_before_and_the_final_one(net, images):
    why = xl.explain(net, images[:1], xl.Policy.never(3))
    assert why.answered == 2
    assert why.exits[2].cc == pytest.approx(1, abs=1e-5)
    assert why.exits[2].divergence == pytest.approx(0, abs=1e-5)
    assert why.exits[0].previous_cc is None
    assert why.exits[1].previous_divergence > 0
    assert why.exits[2].previous_cc == pytest.approx(why.exits[1].cc, abs=1e-5)  # the exit before the final one, both ways


def test_without_the_final_exit_it_stops_where_the_answer_is(net, images):
    views = [why.exits for why in xl.explain_batch(net, images, POLICY)]
    medians = [sorted(exits[k].confidence for exits in views)[len(views) // 2] for k in (0, 1)]
    policy = xl.Policy(tuple(medians))
    whole, short = (xl.explain_batch(net, images, policy, final=final) for final in (True, False))
    depths = set()
    for full, stopped in zip(whole, short, strict=True):
        assert stopped.answered == full.answered
        assert len(stopped.exits) == full.answered + 1
        depths.add(stopped.answered)
        if stopped.answered < 2:
            assert stopped.final is None
            assert stopped.exits[-1].cc is None
            assert "final exit says" not in stopped.reason
            assert not stopped.disagrees
            assert not stopped.to_dict()["final_ran"]
    assert len(depths) > 1
    assert {why.disagrees for why in whole if why.answered == 2} <= {False}  # the final exit agrees with itself


def test_an_explanation_keeps_no_batch_alive(net, images):
    for why in xl.explain_batch(net, images, POLICY):
        for tensor in (why.inputs, *[t for v in why.exits for t in (v.probabilities, v.attention, v.evidence)]):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("final", [True, False])
def test_relevance_is_of_the_answer_of_the_exit_that_gave_it(net, images, final):
    scores = torch.stack([out.logits.softmax(1).amax(1) for out in net.eval()(images)[:2]])  # (2,N)
    policy = xl.Policy(tuple(scores.median(1).values.tolist()))
    whys = xl.explain_batch(net, images, policy, final=final, relevance=True)
    assert len({why.answered for why in whys}) > 1
    for i, why in enumerate(whys[:8]):
        alone = xl.attribute(net, images[i : i + 1], exit=why.answered, labels=torch.tensor([why.label]))
        torch.testing.assert_close(why.relevance, alone[0], atol=1e-6, rtol=1e-4)
        assert why.speaks_for.sum().item() == pytest.approx(1, abs=1e-5)
        assert why.speaks_for.min() >= 0
        assert why.to_dict()["relevance"] == why.relevance.tolist()
    json.dumps(why.to_dict())


def test_relevance_is_shown_where_it_was_asked_for(net, images):
    net.describe(preprocess=xl.data.Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3))
    without, whole = (xl.explain(net, images[0], POLICY, relevance=value) for value in (False, True))
    assert [why._repr_html_().count("<svg") for why in (without, whole)] == [3, 4]
    assert "what the answer depends on" in whole._repr_html_()
    assert without.relevance is None
    assert "relevance" not in without.to_dict()
    with pytest.raises(xl.errors.InputError, match="relevance: it was not computed"):
        _ = without.speaks_for


@pytest.mark.parametrize("relevance", [True, False])
@pytest.mark.parametrize(("final", "stages"), [(True, [0, 1, 2]), (False, [0])])
def test_one_pass_that_stops_where_the_answer_is(net, images, final, stages, relevance):
    ran = []
    for k, stage in enumerate(net.stages):
        stage.register_forward_hook(lambda *_, k=k: ran.append(k))
    assert xl.explain(net, images[0], xl.Policy((0.0, 0.5)), final=final, relevance=relevance).answered == 0
    assert ran == stages


def test_relevance_does_not_change_the_rest_of_an_explanation(net, images):
    plain, second = (xl.explain_batch(net, images, POLICY, relevance=value) for value in (False, True))
    for first, two in zip(plain, second, strict=True):
        assert first.reason == two.reason
        for view, same in zip(first.exits, two.exits, strict=True):
            torch.testing.assert_close(view.attention, same.attention)
            torch.testing.assert_close(view.evidence, same.evidence)
        assert not two.relevance.requires_grad
        assert not any(view.attention.requires_grad or view.evidence.requires_grad for view in two.exits)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("tuning", "tolerance"),
    [(Tuning(folded=True, channels_last=True), 1e-4), (Tuning(precision="bfloat16"), 0.0)],
    ids=["folded", "bfloat16"],
)
def test_relevance_of_a_tuned_network_from_within_inference_mode(net, images, tuning, tolerance):
    """Folded weights are gone back through; bfloat16 gets a pass in float32, which is that of the plain network."""
    wanted = xl.attribute(net, images[:4])
    net.tuning = tuning
    with torch.inference_mode():
        whys = xl.explain_batch(net, images[:4] + 0, xl.Policy.never(3), relevance=True)
    result = torch.stack([why.relevance for why in whys])
    same = torch.tensor([why.label for why in whys]) == net.eval()(images[:4])[-1].logits.argmax(1)
    assert same.any()
    torch.testing.assert_close(result[same], wanted[same], atol=tolerance, rtol=tolerance)
