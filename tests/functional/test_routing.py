"""The gate by hand, and that the weights are those of logistic regression."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exitlens as xl
from exitlens.functional import routing
from tests.conftest import random_trace

WEIGHTS = (0.0, 1.0, 0.0, 0.0, 0.0)  # the estimate is the sigmoid of the margin without a tenth of the locations
GATE = xl.types.Gate((WEIGHTS,) * 2, (0.85, 0.6))


def trace_with_gate_features(n: int = 400, seed: int = 0) -> xl.Trace:
    """What is left of an answer's margin without a tenth of its locations says whether it is the final one; confidence does not."""
    base, rng = random_trace(n, seed=seed), torch.Generator().manual_seed(7 + seed)
    gate_features = torch.randn(n, 2, 3, generator=rng)
    logits, answers = base.logits.clone(), base.answers
    for k in range(2):
        agrees = torch.rand(n, generator=rng) < (4 * gate_features[:, k, 0]).sigmoid()
        told = torch.where(agrees, answers[:, 2], (answers[:, 2] + 1) % 4)
        logits[:, k] = 3 * torch.nn.functional.one_hot(told, 4) + 0.1 * torch.randn(n, 4, generator=rng)
    divergence = torch.cat([(-gate_features[..., 2]).sigmoid(), torch.zeros(n, 1)], 1)
    return replace(base, logits=logits, divergence=divergence, gate_features=gate_features)


def test_support_by_hand():
    """Four locations, two rivals: without a tenth (one location) the margin loses the largest share."""
    evidence = torch.tensor([[[2.0, 0.5, 0.0, 0.5], [0.0, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])  # (1,3,4)
    bias = torch.tensor([0.0, 0.25, 0.0])
    logits = evidence.sum(2) + bias
    attention = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).view(1, 2, 2)
    support = routing.measure_evidence_support(evidence.view(1, 3, 2, 2), logits, attention)
    assert support.tolist() == [[pytest.approx(value) for value in (1.25 - 2, 0.5 + 0.125, 1.75 * math.log(2))]]
    fine = torch.zeros(1, 2, 40)
    fine[0, 0, :8] = torch.arange(8, 0, -1.0)
    support = routing.measure_evidence_support(fine, fine.sum(2), torch.full((1, 40), 1 / 40))
    assert support[0].tolist() == pytest.approx([36 - 26, 8 / 40, math.log(40)])


def test_padding_does_not_count_among_locations():
    evidence, attention = torch.randn(3, 4, 30), torch.rand(3, 30)
    evidence[:, :, 20:], attention[:, 20:] = 0, 0
    logits = evidence.sum(2)
    whole = routing.measure_evidence_support(evidence, logits, attention)
    alone = routing.measure_evidence_support(evidence[..., :20], logits, attention[:, :20])
    torch.testing.assert_close(whole[:, :2], alone[:, :2])


def test_features_and_estimates_by_hand():
    support = torch.tensor([[2.0, 0.25, 0.5]])
    trace = replace(
        random_trace(1), gate_features=support.expand(1, 2, 3), logits=torch.tensor([[[0.0, math.log(9.0)]] * 3])
    )
    policy = xl.Policy((0.5, 0.5), temperatures=(1.0, 2.0, 1.0))
    features = routing.stack_trace_features(trace, policy)
    assert features[0, 1].tolist() == pytest.approx([math.log(3), 1.0, 0.25, 0.5])
    gate = xl.types.Gate((WEIGHTS, (1.0, 2.0, 0.0, 1.0, -1.0)))
    expected = 1 / (1 + math.exp(-(math.log(3) + 2 + 0.5 - 1)))
    assert routing.estimate(gate, 1, torch.tensor([0.75]), support, 2.0).tolist() == pytest.approx([expected])
    assert routing.score_early_exits(trace, replace(policy, gate=gate))[0, 1].item() == pytest.approx(expected)
    sure = routing.estimate(xl.types.Gate(((1.0, 0.0, 0.0, 0.0, 0.0),)), 0, torch.tensor([1.0]), support, 1.0)
    assert sure.item() == pytest.approx(1 - 1e-6, abs=1e-7)


def test_the_weights_are_those_of_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    trace = trace_with_gate_features(600)
    features = routing.stack_trace_features(trace, xl.Policy.never(3))
    agrees = (trace.answers[:, :-1] == trace.answers[:, -1:]).float()
    gate = routing.fit_gate(features, agrees)
    for k in range(2):
        scaler = StandardScaler().fit(features[:, k].double())
        scaler.scale_[0] /= math.sqrt(
            routing.RIDGE / routing.RIDGE_OF_CONFIDENCE
        )  # as if confidence had a ridge like the others
        fitted = LogisticRegression(C=1 / routing.RIDGE, tol=1e-8, max_iter=1000)
        fitted.fit(scaler.transform(features[:, k].double()), agrees[:, k])
        expected = fitted.coef_[0] / scaler.scale_
        assert gate.weights[k][:-1] == pytest.approx(expected.tolist(), abs=2e-3)
        assert gate.weights[k][-1] == pytest.approx(float(fitted.intercept_[0] - expected @ scaler.mean_), abs=5e-3)


def test_where_nearly_all_agree_confidence_decides():
    trace = trace_with_gate_features(400)
    features = routing.stack_trace_features(trace, xl.Policy.never(3))
    target = torch.ones(400, 2)
    target[features[:, 0, 0].argsort()[:3]] = 0  # the three least sure
    gate = routing.fit_gate(features, target)
    share = features[:, 0].std(0) * torch.tensor(gate.weights[0][:-1])
    assert share[0] > 5 * share[1:].abs().max()


def test_a_feature_that_hardly_varies_decides_nothing():
    features = routing.stack_trace_features(trace_with_gate_features(400), xl.Policy.never(3))
    features[..., 3] = 1 + 1e-7 * (features[..., 0] > 0)  # the entropy of a flat map, to rounding
    gate = routing.fit_gate(features, (features[..., 0] > 0).float())
    assert all(abs(weights[3]) < 1e-2 for weights in gate.weights)


def test_a_gate_learns_what_confidence_does_not_tell():
    train, test = trace_with_gate_features(1000), trace_with_gate_features(1000, seed=1)
    plain = xl.Policy.never(3)
    agrees = (train.answers[:, :-1] == train.answers[:, -1:]).float()
    gated = replace(plain, gate=routing.fit_gate(routing.stack_trace_features(train, plain), agrees))
    right = test.answers[:, 0] == test.answers[:, 2]
    areas = []
    for policy in (plain, gated):
        scores = routing.score_early_exits(test, policy)[:, 0]
        areas.append((scores[right][:, None] > scores[~right][None]).float().mean())
    assert areas[0] < 0.6
    assert areas[1] > 0.9


def test_as_many_leave_by_the_confidences_of_a_gate():
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.9], [0.7, 0.5], [0.6, 0.2], [0.5, 0.3]])
    gate = routing.match_confidences(xl.types.Gate((WEIGHTS,) * 2), scores, torch.tensor([2, 0, 1, 1, 0]))
    assert gate.confidences == pytest.approx((0.8, 0.2))  # 2 of 5, and 2 of the 3 that go on (0.1, 0.5, 0.2)
    never = routing.match_confidences(gate, scores, torch.full((5,), 2))
    assert never.confidences == (math.inf, math.inf)


def test_bad_gates_and_traces():
    for weights, confidences, message in (
        (((1.0, 2.0),), (), "gate: expected 5 weights for each early exit, got 2. Fix: "),
        (((math.nan, *[0.0] * 4),), (), "finite weights, .*, got nan. Fix: "),
        ("x", (), "rows of numbers .* Fix: "),
        ((WEIGHTS,), (0.5, 0.5), "a confidence for each of 1 early exits or none, got 2. Fix: "),
        ((WEIGHTS,), (math.nan,), "confidences that are numbers, got nan. Fix: "),
    ):
        with pytest.raises(xl.errors.PolicyError, match=message):
            xl.types.Gate(weights, confidences)
    with pytest.raises(xl.errors.PolicyError, match="gate: expected a Gate for 2 early exits"):
        xl.Policy((0.5, 0.5), gate=xl.types.Gate((WEIGHTS,)))
    with pytest.raises(xl.errors.InputError, match="expected a trace with gate_features"):
        xl.route(random_trace(20), xl.Policy((0.5, 0.5), gate=GATE))
    with pytest.raises(xl.errors.InputError, match="gate_features: expected"):
        xl.Trace(torch.zeros(2, 2, 2), None, torch.zeros(2, 2), torch.tensor([0.5, 1.0]), gate_features=torch.zeros(2, 2, 2))


@given(st.integers(0, 200), st.lists(st.one_of(st.floats(0, 1), st.just(math.inf)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_first_firing_equals_a_loop(seed, thresholds):
    scores = torch.rand(20, len(thresholds), generator=torch.Generator().manual_seed(seed))
    rows = scores.double().tolist()
    expected = [next((k for k, t in enumerate(thresholds) if row[k] >= t), len(thresholds)) for row in rows]
    assert routing.find_first_firing(scores.double(), thresholds).tolist() == expected


def test_route_by_hand():
    logits = torch.log(torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.6, 0.4], [0.2, 0.8]]]))
    trace = xl.Trace(logits, None, torch.zeros(2, 2), torch.tensor([0.5, 1.0]))
    assert xl.route(trace, xl.Policy((0.8,))).tolist() == [0, 1]
    assert xl.route(trace, xl.Policy((math.inf,))).tolist() == [1, 1]
    assert not xl.route(random_trace(k=1), xl.Policy(())).any()
    with pytest.raises(xl.errors.PolicyError, match="2 thresholds for 3 exits"):
        xl.route(trace, xl.Policy((0.5, 0.5)))
    with pytest.raises(xl.errors.PolicyError, match="calibrated for network bbbb"):
        xl.route(replace(trace, network="aaaa"), xl.Policy((0.5,), network="bbbb"))


def test_heads_that_several_policies_need():
    never, late = math.inf, xl.Policy((math.inf, math.inf, 0.5))
    assert routing.cover([late]).thresholds == (never, never, 0.0)
    assert routing.cover([late, xl.Policy((0.9, never, never), "margin")]).thresholds == (0.0, never, 0.0)
    assert routing.cover([xl.Policy.never(4)]).thresholds == (never,) * 3
    gated = xl.Policy((never, 0.5, never), gate=xl.types.Gate((WEIGHTS,) * 3))
    assert routing.cover([xl.Policy.never(4), gated]).thresholds == (never, 0.0, never)
    assert routing.cover([xl.Policy(())]).thresholds == ()


def test_a_decision_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.55, 0.45]])
    scores = p.amax(1)
    plain = routing.decide(xl.Policy((0.7, 0.5)), 0, p, scores, None)
    assert plain.refused is None
    assert plain.scores is scores
    assert plain.fired.tolist() == [True, True, False]
    support = torch.zeros(3, 3)
    support[:, 0] = torch.tensor([0.4, 1.0, 2.0])
    gated = routing.decide(xl.Policy((0.7, 0.5), gate=GATE), 0, p, scores, support)
    assert gated.scores.tolist() == pytest.approx([1 / (1 + math.exp(-x)) for x in (0.4, 1.0, 2.0)])  # 0.60, 0.73, 0.88
    assert gated.fired.tolist() == [False, True, True]
    assert gated.refused.tolist() == [True, False, False]  # its confidence alone would be enough
    unknown = replace(GATE, confidences=())
    assert routing.decide(xl.Policy((0.7, 0.5), gate=unknown), 0, p, scores, support).refused is None
    assert routing.decide(xl.Policy((0.0, 0.5), gate=GATE), 0, p, scores, support).fired.all()  # 0: always
    never = routing.decide(xl.Policy((math.inf, 0.5), gate=GATE), 0, p, scores, support)
    assert not never.fired.any()
    assert never.refused is None  # it would not answer without the gate either
    odds = xl.types.Gate(((1.0, 0.0, 0.0, 0.0, 0.0),) * 2)  # of the largest probability, whatever the policy's score
    by_margin = routing.decide(xl.Policy((0.7, 0.5), "margin", gate=odds), 0, p, p[:, 0] - p[:, 1], support)
    assert by_margin.scores.tolist() == pytest.approx([0.9, 0.8, 0.55])


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ((0.5, 0.5), [True, True, True]),
        ((0.5, math.inf), [True, False, True]),
        ((math.inf, math.inf), [False, False, True]),
        ((2.0, 2.0), [True, True, True]),  # never reached, but computed
    ],
)
def test_heads_that_are_computed(thresholds, expected):
    for gate in (None, GATE):
        assert [routing.needs_head(xl.Policy(thresholds, gate=gate), k) for k in range(3)] == expected
    assert routing.needs_head(xl.Policy(()), 0)


def test_the_policy_on_paper_decides_by_the_same_rule():
    base = random_trace()
    gate_features = torch.randn(len(base), 2, 3, generator=torch.Generator().manual_seed(1))
    trace = replace(base, gate_features=gate_features)
    policy = xl.Policy((0.6, 0.5), "entropy", (2.0, 1.0, 1.0), gate=GATE)
    expected = (gate_features[:, 0, 0] / 2).sigmoid()
    torch.testing.assert_close(routing.score_early_exits(trace, policy)[:, 0], expected)
    assert (xl.route(trace, policy) == 0).tolist() == (expected >= 0.6).tolist()
