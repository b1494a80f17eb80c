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


NET = with_statistics(make_net())
POLICY = spread_policy(NET, IMAGES)


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("final", ["head", "keep"])
def test_a_tuned_network_answers_as_before(tuning, final):
    net = with_statistics(make_net(final))
    policy = spread_policy(net, IMAGES)
    before = xl.predict(net, IMAGES, policy, attention=True)
    weights = copy.deepcopy(net.state_dict())
    net.tuning = tuning
    after = xl.predict(net, IMAGES, policy, attention=True)
    assert after.exits.tolist() == before.exits.tolist()
    assert len(set(after.exits.tolist())) == 3
    torch.testing.assert_close(after.probabilities, before.probabilities, atol=1e-4, rtol=1e-3)
    for one, other in zip(after.attention, before.attention, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("tuning", TUNINGS)
def test_collect_records_what_the_tuned_network_says(tuning):
    net = with_statistics(make_net())
    net.tuning = tuning
    trace = xl.collect(net, IMAGES)
    assert xl.route(trace, POLICY).tolist() == xl.predict(net, IMAGES, POLICY).exits.tolist()
    assert not trace.logits.is_inference()


def test_bfloat16_runs_the_stages_and_leaves_heads_and_softmax():
    net = with_statistics(make_net())
    net.tuning = Tuning(precision="bfloat16", folded=True, channels_last=True)
    pred = xl.predict(net, IMAGES, POLICY, attention=True)
    assert pred.probabilities.dtype == torch.float32
    torch.testing.assert_close(torch.stack([m.sum() for m in pred.attention]), torch.ones(70), atol=1e-4, rtol=0)
    with net.open_engine() as engine:
        assert next(engine.stages[0].parameters()).dtype == torch.bfloat16
        assert next(engine.heads[0].parameters()).dtype == torch.float32
    exact = xl.predict(with_statistics(make_net()), IMAGES, xl.Policy.never(3))
    rough = xl.predict(net, IMAGES, xl.Policy.never(3))
    assert (exact.labels == rough.labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"micro_batch": -1}, "micro_batch: expected an integer of 0 or more, got -1"),
        ({"threads": 1.5}, "threads"),
        ({"micro_batch": True}, "micro_batch"),
        ({"folded": "no"}, "folded: expected bool, got str"),
        ({"measured": [1]}, "measured"),
        ({"precision": "float16"}, "precision: expected one of"),
    ],
)
def test_bad_tunings(values, message):
    with pytest.raises(xl.InputError, match=message):
        Tuning(**values)
    with pytest.raises(xl.InputError, match="tuning: expected Tuning"):
        make_net().tuning = {"micro_batch": 8}


def test_policies_and_traces_belong_to_a_precision():
    net = with_statistics(make_net())
    policy = xl.calibrate(xl.collect(net, IMAGES), max_disagreement=0.3)
    net.tuning = Tuning(micro_batch=8, folded=True)
    xl.predict(net, IMAGES, policy)
    net.tuning = Tuning(precision="bfloat16")
    for call in (xl.predict, xl.explain_batch):
        with pytest.raises(xl.PolicyError, match="-bfloat16: calibrate one"):
            call(net, IMAGES, policy)
    policy = xl.calibrate(xl.collect(net, IMAGES), max_disagreement=0.3)
    pred = xl.predict(net, IMAGES, policy)
    assert [why.answered for why in xl.explain_batch(net, IMAGES, policy)] == pred.exits.tolist()


@pytest.mark.parametrize("form", [3, 4])
def test_everything_off_by_hand_is_not_untuned(form, tmp_path):
    net = make_net()
    net.tuning = Tuning()
    xl.save(net, None, tmp_path / "b")
    if form == 3:  # all bundles had a tuning then
        path = tmp_path / "b" / "manifest.json"
        path.write_text(path.read_text().replace('"format": 4', '"format": 3'))
    back, _ = xl.load(tmp_path / "b", backbone=TinyNet())
    assert back.is_tuned is (form == 4)
    assert (back.tuning == Tuning()) is (form == 4)


def test_a_bundle_keeps_the_tuning(tmp_path):
    net = xl.attach("small", 2, 4, torch.zeros(1, 3, 32, 32)).eval()
    net.tuning = Tuning(micro_batch=4, channels_last=True, folded=True, measured={"machine": "x"})
    xl.save(net, None, tmp_path / "b")
    back, _ = xl.load(tmp_path / "b")
    assert back.tuning == net.tuning
    assert back.tuning.measured == {"machine": "x"}
    assert copy.deepcopy(back).tuning == net.tuning
