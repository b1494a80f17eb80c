import copy

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.engine.prepare import fold, prepare_graph
from exitlens.model.engine.tuning import Tuning
from tests.conftest import TinyNet, make_net, spread_policy

IMAGES = torch.randn(70, 3, 16, 16, generator=torch.Generator().manual_seed(3))
TUNINGS = [
    Tuning(),
    Tuning(micro_batch=1),
    Tuning(micro_batch=7),
    Tuning(channels_last=True),
    Tuning(micro_batch=16, folded=True),
    Tuning(micro_batch=8, channels_last=True, folded=True, threads=1),
]


def with_statistics(net: xl.ExitNet) -> xl.ExitNet:
    """Batch normalisation that does something, so that folding it shows."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net


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


def test_folding_takes_every_batch_normalisation_that_follows_a_convolution():
    stage = NET.stage(0)
    body = copy.deepcopy(stage.evaluation).eval()
    x = IMAGES[:4]
    expected = body(x)[0]
    assert fold(body) == 1
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    torch.testing.assert_close(body(x)[0], expected, atol=1e-5, rtol=1e-4)


class Shared(nn.Module):
    """One convolution used twice, a normalisation whose input is used twice, one without statistics, one before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.n, self.m = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(self.first(x))
        y = self.n(self.a(x))
        z = self.b(y)
        x = self.free(self.c(z + self.m(z)))
        return self.fc(x.mean((2, 3)))


def test_folding_leaves_what_it_cannot_fold():
    torch.manual_seed(0)
    body = torch.fx.symbolic_trace(Shared().eval())
    expected = body(IMAGES[:4])
    assert fold(body) == 0
    torch.testing.assert_close(body(IMAGES[:4]), expected)


def test_prepared_is_a_copy():
    body = torch.fx.symbolic_trace(TinyNet().eval())
    twin = prepare_graph(body, Tuning(folded=True, channels_last=True))
    assert not {p.data_ptr() for p in body.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert all(p.requires_grad for p in body.parameters())
    assert not any(p.requires_grad for p in twin.parameters())


def test_changed_weights_are_seen():
    net = make_net()
    net.tuning = Tuning(folded=True)
    before = xl.predict(net, IMAGES[:8], POLICY).probabilities
    with torch.no_grad():
        net.head(0).classifier.bias.add_(torch.tensor([3.0, 0, 0, 0]))
        net.head(2).classifier.bias.add_(torch.tensor([3.0, 0, 0, 0]))
    after = xl.predict(net, IMAGES[:8], POLICY).probabilities
    assert not torch.allclose(before, after)
    plain = make_net()
    plain.load_state_dict(net.state_dict())
    torch.testing.assert_close(after, xl.predict(plain, IMAGES[:8], POLICY).probabilities, atol=1e-4, rtol=1e-3)


def test_training_goes_on_beside_a_tuned_network():
    net = make_net()
    net.tuning = Tuning(channels_last=True, folded=True)
    xl.predict(net, IMAGES[:4], POLICY)
    net.train()
    loss = xl.EGTLoss()(net(IMAGES[:4]), torch.tensor([0, 1, 2, 3])).total
    loss.backward()
    assert net.training
    assert all(p.grad is not None for name, p in net.named_parameters() if "attend" not in name)


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


def test_tune_measures_and_sets_what_was_fastest():
    net = with_statistics(make_net())
    expected = xl.predict(net, IMAGES, POLICY)
    found = net.tune(IMAGES, policy=POLICY, seconds=0.05)
    assert net.tuning is found
    assert found.micro_batch > 0
    tried = found.measured["ms_per_sample"]
    assert {row["channels_last"] for row in tried} == {True, False}
    assert len({row["micro_batch"] for row in tried}) >= 5
    assert min(row["ms"] for row in tried) > 0
    assert 0 <= found.measured["bfloat16_agreement"] <= 1
    answers = xl.predict(net, IMAGES, POLICY)
    assert (answers.exits == expected.exits).float().mean() >= 0.99
    assert Tuning.from_dict(found.to_dict()) == found


def test_tune_takes_bfloat16_only_with_enough_samples_and_where_decisions_are_kept():
    net = make_net()
    net.tune(IMAGES, seconds=0.01)  # 70 without a difference show no more than 95.8 %
    assert net.tuning.precision == "float32"
    assert not any(row["precision"] == "bfloat16" for row in net.tuning.measured["ms_per_sample"])
    net.tune(IMAGES, min_agreement=0.5, seconds=0.01)
    assert any(row["precision"] == "bfloat16" for row in net.tuning.measured["ms_per_sample"])
    alike = IMAGES[:1] + 1e-4 * torch.randn(70, 3, 16, 16)
    with torch.no_grad():
        for k, out in enumerate(net(alike)):  # two classes so close that rounding decides between them
            linear = net.head(k).classifier
            linear.weight[1:] = 0
            linear.bias[1] = out.logits[:, 0].median()
            linear.bias[2:] = -1e4
    net.tune(alike, seconds=0.01)
    assert net.tuning.measured["bfloat16_agreement"] < 0.99
    assert net.tuning.precision == "float32"
    net.tune(IMAGES[:2], precision="bfloat16", seconds=0.01)
    assert net.tuning.precision == "bfloat16"
    net.tune(IMAGES, precision="float32", seconds=0.01)
    assert "bfloat16_agreement" not in net.tuning.measured


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "half"}, "precision"),
        ({"min_agreement": 0.0}, "min_agreement"),
        ({"seconds": 0}, "seconds"),
        ({"policy": xl.Policy((0.5,))}, "exits"),
        ({"example": IMAGES[0]}, "add the batch axis"),
    ],
)
def test_bad_arguments_of_tune(values, message):
    with pytest.raises(xl.ExitlensError, match=message):
        make_net().tune(**{"example": IMAGES} | values)


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


def test_an_engine_that_fails_to_be_made_is_not_taken_for_the_old_one(monkeypatch):
    net = make_net()
    net.tuning = Tuning(folded=True)
    xl.predict(net, IMAGES[:4], xl.Policy.never(3))
    with torch.no_grad():
        net.head(2).classifier.bias.copy_(torch.tensor([1e4, 0, 0, 0]))
    with monkeypatch.context() as patch:
        patch.setattr("exitlens.model.engine.session.Engine.prepare", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            xl.predict(net, IMAGES[:4], xl.Policy.never(3))
    assert xl.predict(net, IMAGES[:4], xl.Policy.never(3)).labels.tolist() == [0] * 4


def test_another_tuning_meanwhile_leaves_modes_as_they_were():
    net = make_net().train()
    with net.open_engine():
        net.tuning = Tuning(micro_batch=3)
        with net.open_engine():
            assert not net.stage(0).training
        assert not net.stage(0).training
    assert all(module.training for module in net.modules())


def test_graphs_of_another_precision_are_told(monkeypatch):
    net = make_net()
    net.tuning = Tuning(precision="bfloat16")
    monkeypatch.setattr(Tuning, "convert", lambda self, activations: activations)  # float32 meets bfloat16 weights
    with pytest.raises(xl.EngineError, match="does not run in bfloat16"):
        xl.predict(net, IMAGES[:2], POLICY)


def test_a_bundle_keeps_the_tuning(tmp_path):
    net = xl.attach("small", 2, 4, torch.zeros(1, 3, 32, 32)).eval()
    net.tuning = Tuning(micro_batch=4, channels_last=True, folded=True, measured={"machine": "x"})
    xl.save(net, None, tmp_path / "b")
    back, _ = xl.load(tmp_path / "b")
    assert back.tuning == net.tuning
    assert back.tuning.measured == {"machine": "x"}
    assert copy.deepcopy(back).tuning == net.tuning
