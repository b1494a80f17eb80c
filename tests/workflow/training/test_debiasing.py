"""Training with ``rely_on="map"``: its expert, recomposed samples, and what a run with it promises."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import exitlens as xl
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.debiasing import Debiasing, DebiasingStrengths
from tests.conftest import make_net
from tests.kinds import KINDS
from tests.texts import make_text_net, make_texts
from tests.workflow.training.networks import QUICK, equal, fresh, weights

LABELS = torch.tensor([0, 1, 2, 3] * 2)


def make_debiasing(net=None, **strengths):
    return Debiasing(
        net or make_net(), TrainingSettings(rely_on="map", amp=False), strengths=DebiasingStrengths(**strengths)
    )


def observe(debiasing, images):
    with torch.no_grad():
        return debiasing.net.eval().observe(images)


def test_weights_follow_from_what_the_expert_says(images):
    debiasing = make_debiasing(difficulty=0.6, ramp_share=0.4)
    outputs, shallow, *_ = observe(debiasing, images[:8])
    assert shallow.shape == (8, 6, 8, 8)  # the backbone's features at exit 0
    half, full = (debiasing.weigh(outputs, shallow, LABELS, progress) for progress in (0.2, 1.0))
    torch.testing.assert_close(full - 1, 2 * (half - 1))
    torch.testing.assert_close(full.mean(1), torch.ones(3))
    flat = shallow.flatten(2)
    moments = torch.cat([flat.mean(2), flat.std(2, correction=0), flat.amax(2)], 1)
    easy = F.cross_entropy(debiasing.expert(moments), LABELS, reduction="none")
    for out, given in zip(outputs, full, strict=True):
        ratio = easy / (easy + F.cross_entropy(out.logits, LABELS, reduction="none"))
        torch.testing.assert_close(given, 0.4 + 0.6 * ratio / ratio.mean())
    assert not full.requires_grad


def test_the_expert_learns_and_the_network_gets_no_gradient(images):
    debiasing = make_debiasing()
    outputs = debiasing.net.train().observe(images[:8])
    start = guess_loss(debiasing, outputs)
    for _ in range(60):
        debiasing.weigh(outputs.outputs, outputs.shallow, LABELS, 1.0)
        debiasing.step(8)
    assert guess_loss(debiasing, outputs) < 0.8 * start
    assert all(p.grad is None for p in debiasing.net.parameters())


def guess_loss(debiasing, seen):
    flat = seen.shallow.flatten(2)
    guess = debiasing.expert(torch.cat([flat.mean(2), flat.std(2, correction=0), flat.amax(2)], 1))
    return F.cross_entropy(guess, LABELS).item()


def test_several_labels_are_weighed_by_sample(images):
    debiasing = make_debiasing()
    outputs, shallow, *_ = observe(debiasing, images[:8])
    labels = (torch.arange(32).view(8, 4) % 3 == 0).long()
    assert debiasing.weigh(outputs, shallow, labels, 1.0).shape == (3, 8)


def test_samples_are_recomposed_along_their_maps(images, monkeypatch):
    """Half of the samples keep what their maps show of their objects; the rest comes from another, whose own is painted over."""
    debiasing, inputs = make_debiasing(recomposed=0.5), images[:8]
    objects = torch.zeros(8, 16, 16, dtype=torch.bool)
    objects[torch.arange(8), torch.arange(8) + 4, 3:9] = True  # a row of its own for each sample
    modality = debiasing.net.input_spec.modality

    def find_object(self, maps, given, region):
        return objects[[next(i for i in range(8) if torch.equal(inputs[i], sample)) for sample in given]]

    shown = objects.clone()
    shown[:, :, 7:] = False  # the map shows the left part of each object
    monkeypatch.setattr(type(modality), "find_object", find_object)
    monkeypatch.setattr(
        type(modality), "choose_region", lambda self, maps, given, area: torch.arange(16).lt(7).expand(4, 16, 16)
    )
    painted = modality.paint_over(inputs, objects)
    assert debiasing.prepare(inputs, 0.2) is inputs  # too early
    changed = debiasing.prepare(inputs, 0.9)
    rows = (changed != inputs).flatten(1).any(1)
    assert int(rows.sum()) == 4
    taken = []
    for row in rows.nonzero().flatten().tolist():
        kept = shown[row]
        assert torch.equal(changed[row][:, kept], inputs[row][:, kept])
        donors = [i for i in range(8) if torch.equal(changed[row][:, ~kept], painted[i][:, ~kept])]
        assert len(donors) == 1
        assert donors != [row]
        taken += donors
    assert len(set(taken)) == 4
    alone = inputs[:1]
    assert debiasing.prepare(alone, 0.9) is alone
    debiasing.recomposes = False
    assert debiasing.prepare(inputs, 0.9) is inputs


def test_recomposing_leaves_the_network_as_it_was(images):
    debiasing = make_debiasing()
    debiasing.net.train()
    before = weights(debiasing.net)
    debiasing.prepare(images[:8], 0.9)
    assert equal(before, weights(debiasing.net))
    assert all(module.training for module in debiasing.net.modules())


@pytest.mark.parametrize(
    "kind",
    [
        "vector, groups",
        *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS if not name.startswith("vector")),
    ],
)
def test_every_kind_of_input_trains(kind):
    net, data = attach_kind(kind), KINDS[kind].make(24)
    result = xl.fit(net, data, data, rely_on="map", **QUICK | {"epochs": 1})
    assert result.history[-1]["loss"]["total"] > 0


def attach_kind(kind):
    entry = KINDS[kind]
    return xl.attach(entry.build(), ["first", "second"], 3, entry.make(2).inputs, groups=entry.groups)


@pytest.mark.slow
def test_padding_of_texts_is_not_read():
    debiasing, inputs = make_debiasing(make_text_net()), make_texts(8)
    outputs, shallow, *_ = observe(debiasing, inputs)
    noise = shallow + 7 * (inputs["attention_mask"] == 0)[:, None]
    labels = torch.arange(8) % 3
    plain, changed = (debiasing.weigh(outputs, each, labels, 1.0) for each in (shallow, noise))
    torch.testing.assert_close(plain, changed)
    mixed = debiasing.prepare(inputs, 1.0)
    assert torch.equal(mixed["attention_mask"], inputs["attention_mask"])
    assert not torch.equal(mixed["input_ids"], inputs["input_ids"])


def test_networks_without_maps_and_losses_of_other_arguments_are_refused(tiny_set):
    net, data = attach_kind("vector"), KINDS["vector"].make(12)
    with pytest.raises(xl.errors.InputError, match="rely_on='map' needs attention maps"):
        xl.fit(net, data, data, rely_on="map", loss=xl.EGTLoss(weight=0.0), **QUICK)

    class Short(xl.EGTLoss):
        def __call__(self, outputs, labels, progress=1.0, features=None):
            return super().__call__(outputs, labels, progress, features)

    with pytest.raises(xl.errors.InputError, match=r"loss: .*sample_weights"):
        xl.fit(make_net(), tiny_set, tiny_set, rely_on="map", loss=Short(target="attention"), **QUICK)
    with pytest.raises(xl.errors.InputError, match=r"rely_on: expected one of .*'anything', 'map'"):
        xl.fit(make_net(), tiny_set, tiny_set, rely_on="maps", **QUICK)


def test_kept_features_are_not_recomposed(tiny_set, capsys):
    net = fresh()
    xl.fit(net, tiny_set, tiny_set, rely_on="map", freeze_backbone=True, **QUICK | {"progress": True})
    assert "samples are not recomposed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [{"loss": xl.EGTLoss(target="relevance")}, pytest.param({"amp": True, "accumulate": 2}, marks=pytest.mark.slow)],
)
def test_it_works_with_relevance_and_in_half_precision(tiny_set, options):
    result = xl.fit(fresh(), tiny_set, tiny_set, rely_on="map", **QUICK | {"epochs": 1} | options)
    assert result.history[-1]["loss"]["consistency"] > 0


def test_several_labels_train(tiny_set):
    labels = F.one_hot(tiny_set.labels, 4)
    data = TensorDataset(tiny_set.inputs, labels)
    assert xl.fit(fresh(), data, data, rely_on="map", **QUICK | {"epochs": 1}).history


def make_shortcut(count, seed, right):
    """Two classes: a faint bar tells the class in all samples, the first channel's level in a share ``right`` of them."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    x = 0.3 * torch.randn(count, 3, 16, 16, generator=rng)
    x[:, 1, 4:8, 4:12] += (0.15 * (2 * labels - 1))[:, None, None]
    told = torch.where(torch.rand(count, generator=rng) < right, labels, 1 - labels)
    x[:, 0] += (2.0 * (2 * told - 1))[:, None, None]
    return TensorDataset(x, labels)


@pytest.mark.slow
def test_a_cue_that_is_easier_than_the_class_decides_fewer_answers():
    train, wrong = make_shortcut(512, 0, 0.9), make_shortcut(200, 1, 0.0)
    accuracy = []
    for rely_on in ("anything", "map"):
        net = fresh(classes=2)
        xl.fit(net, train, wrong, rely_on=rely_on, learning_rate=0.01, **QUICK | {"epochs": 15, "batch_size": 32})
        trace = xl.collect(net, wrong)
        accuracy.append((trace.logits.argmax(2) == trace.labels[:, None]).float().mean(0))
    gained = accuracy[1] - accuracy[0]
    assert gained.min() > 0, accuracy
    assert gained.mean() > 0.1, accuracy
