"""A tuning changes the speed of a network, not its answers; policies and traces belong to a precision."""

import copy

import pytest
import torch

import exitlens as xl
from exitlens.model.engine.tuning import Tuning
from tests.conftest import TinyNet, make_net, spread_policy
from tests.model.engine.networks import IMAGES, with_statistics

TUNINGS = [
    Tuning(),
    Tuning(micro_batch=1),
    Tuning(micro_batch=7),
    Tuning(channels_last=True),
    Tuning(micro_batch=16, folded=True),
    Tuning(micro_batch=8, channels_last=True, folded=True, threads=1),
]


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("final", ["head", "keep"])
def test_a_tuned_network_answers_as_before_and_is_traced_as_it_answers(tuning, final):
    net = with_statistics(make_net(final))
    net.tuning = Tuning()
    policy = spread_policy(net, IMAGES)
    before, weights = xl.predict(net, IMAGES, policy, attention=True), copy.deepcopy(net.state_dict())
    net.tuning = tuning
    after, trace = xl.predict(net, IMAGES, policy, attention=True), xl.collect(net, IMAGES)
    assert after.exits.tolist() == before.exits.tolist() == xl.route(trace, policy).tolist()
    assert len(set(after.exits.tolist())) == 3
    torch.testing.assert_close(after.probabilities, before.probabilities, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(after.attention, before.attention, atol=1e-4, rtol=1e-3)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert not trace.logits.is_inference()


def test_bfloat16_runs_the_stages_and_leaves_heads_and_softmax():
    net = with_statistics(make_net())
    policy, never = spread_policy(net, IMAGES), xl.Policy.never(3)
    exact = xl.predict(net, IMAGES, never)
    net.tuning = Tuning(precision="bfloat16", folded=True, channels_last=True)
    pred = xl.predict(net, IMAGES, policy, attention=True)
    assert pred.probabilities.dtype == torch.float32
    torch.testing.assert_close(torch.stack([m.sum() for m in pred.attention]), torch.ones(70), atol=1e-4, rtol=0)
    engine = net.engine.select()
    assert next(engine.stages[0].parameters()).dtype == torch.bfloat16
    assert next(engine.heads[0].parameters()).dtype == torch.float32
    assert (exact.labels == xl.predict(net, IMAGES, never).labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"micro_batch": -1}, "micro_batch: expected an integer of 0 or more, got -1"),
        ({"threads": 1.5}, "threads"),
        ({"micro_batch": True}, "micro_batch"),
        ({"folded": "no"}, "folded: expected bool, got str"),
        ({"measured": [1]}, "measured"),
        ({"precision": "float16"}, "precision: expected one of"),
        ({"backend": "tensorflow"}, "backend: expected one of"),
        ({"backend": "onnx", "precision": "bfloat16"}, "'onnx' does not run in bfloat16"),
        ({"backend": "onnx", "channels_last": True}, "leave channels_last out"),
    ],
)
def test_bad_tunings(values, message):
    with pytest.raises(xl.errors.InputError, match=message):
        Tuning(**values)
    with pytest.raises(xl.errors.InputError, match="tuning: expected Tuning"):
        make_net().tuning = values


def test_policies_and_traces_belong_to_a_precision():
    net = with_statistics(make_net())
    policy = xl.calibrate(xl.collect(net, IMAGES), max_disagreement=0.3)
    net.tuning = Tuning(micro_batch=8, folded=True)
    xl.predict(net, IMAGES, policy)
    net.tuning = Tuning(precision="bfloat16")
    for call in (xl.predict, xl.explain_batch):
        with pytest.raises(xl.errors.PolicyError, match=r"-bfloat16"):
            call(net, IMAGES, policy)
    policy = xl.calibrate(xl.collect(net, IMAGES), max_disagreement=0.3)
    pred = xl.predict(net, IMAGES, policy)
    assert [why.answered for why in xl.explain_batch(net, IMAGES, policy)] == pred.exits.tolist()


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(micro_batch=4, channels_last=True, folded=True, measured={"on": "x"})])
def test_a_bundle_keeps_the_tuning(tmp_path, tuning):
    net = make_net()
    net.tuning = tuning
    xl.save(net, None, tmp_path / "b")
    back, _ = xl.load(tmp_path / "b", backbone=TinyNet())
    assert back.is_tuned
    assert back.tuning == tuning
    assert back.tuning.measured == tuning.measured
