"""Against the full logits, in float64: ordinary logits, and hostile ones."""

import math

import pytest
import torch
import torch.nn.functional as F

from exitlens.functional.compact import reading
from exitlens.functional.compact.compress import compress
from exitlens.functional.compact.reading import restore_logits
from exitlens.functional.scores import fit_temperature, rate_probabilities, score, score_of

TEMPERATURES = (0.05, 0.1, 0.4, 1.0, 3.0, 10.0, 20.0)
SCORES = ("max_probability", "entropy", "margin")


def make_logits(kind: str, classes: int, rows: int = 40) -> torch.Tensor:
    rng = torch.Generator().manual_seed(classes)
    z = torch.randn(rows, classes, generator=rng)
    if kind == "trained":
        return 2 * z + 8 * F.one_hot(torch.randint(0, classes, (rows,), generator=rng), classes)
    if kind == "skewed":
        return (1.5 * z).exp()
    if kind == "two clusters":
        return torch.where(z < -0.5, 3.0, -12.0) + 0.3 * torch.randn(rows, classes, generator=rng)
    if kind == "many at the top":
        return torch.where(torch.arange(classes) < min(40, classes), 5 + 1e-3 * z, z)
    if kind == "an outlier":
        z[:, : min(40, classes)] = 5
        z[:, -1] = -200
        return z
    return {"untrained": 0.05 * z, "wide": 30 * z.sigmoid(), "equal": 0 * z, "rounded": (2 * z).round()}[kind]


ORDINARY = ("trained", "untrained", "skewed", "rounded", "equal", "wide", "two clusters")
HOSTILE = ("many at the top", "an outlier")


@pytest.mark.parametrize("classes", [3, 17, 100, 1000])
@pytest.mark.parametrize("kind", [*ORDINARY, *HOSTILE])
def test_all_that_is_read_equals_the_full_logits(kind, classes):
    logits = make_logits(kind, classes)
    labels = torch.arange(len(logits)) % classes
    compact, bound = compress(logits, labels), 1e-6 if kind in ORDINARY else 4e-5
    target = F.one_hot(labels, classes).double()
    for temperature in TEMPERATURES:
        p = (logits.double() / temperature).softmax(-1)
        for name in SCORES:
            assert (score(compact, name, temperature) - score_of(p, name)).abs().max() < bound
        rated = rate_probabilities(compact, labels, temperature)
        assert (rated.confidence - p.amax(1)).abs().max() < bound
        assert (rated.squared_error - (p - target).square().sum(1)).abs().max() < 2 * bound
        assert torch.equal(rated.correct, (logits.argmax(1) == labels).float())


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e3, 1e6])
def test_scores_stay_probabilities_at_temperatures_out_of_all_reason(temperature):
    for kind in (*ORDINARY, *HOSTILE):
        logits = make_logits(kind, 200)
        compact = compress(logits)
        for name in SCORES:
            values = score(compact, name, temperature)
            assert values.isfinite().all()
            assert values.min() >= 0
            assert values.max() <= 1
        gap = score(compact, "max_probability", temperature) - (logits.double() / temperature).softmax(-1).amax(1)
        assert kind in HOSTILE or gap.abs().max() < 1e-6


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
def test_temperatures_are_fitted_as_on_the_full_logits(scale, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 150, (400,), generator=rng)
    logits = scale * (torch.randn(400, 150, generator=rng) + 2 * F.one_hot(labels, 150))
    expected, compact = fit_temperature(logits, labels), compress(logits, labels)
    assert fit_temperature(compact, labels) == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(reading, "EXACT", 10)
    assert fit_temperature(compact, labels) == pytest.approx(expected, rel=1e-3)


def test_margins_and_entropies_by_hand():
    compact = compress(torch.tensor([[math.log(3.0), 0.0]]))
    assert score(compact, "max_probability").item() == pytest.approx(0.75)
    assert score(compact, "margin").item() == pytest.approx(0.5)
    nats = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert score(compact, "entropy").item() == pytest.approx(1 + nats / math.log(2))


def test_restored_logits_have_what_was_kept_and_the_mean_of_the_others():
    logits = 3 * torch.randn(20, 2, 60)
    restored, kept = restore_logits(compress(logits)), logits >= logits.topk(16, -1).values[..., -1:]
    torch.testing.assert_close(restored[kept], logits[kept])
    torch.testing.assert_close(restored.mean(-1), logits.mean(-1), atol=1e-4, rtol=0)
    assert all(len(row[~keeps].unique()) == 1 for row, keeps in zip(restored[:, 0], kept[:, 0], strict=True))
    assert restore_logits(logits) is logits
