"""Against the full logits, in float64: ordinary logits, and hostile ones."""

import pytest
import torch
import torch.nn.functional as F

import exitlens as xl
from exitlens.functional import compact as compact_logits
from exitlens.functional.compact import compress, restore_logits
from exitlens.functional.scores import fit_temperature, rate_probabilities, score, score_of


def test_the_largest_logits_are_kept_as_they_are():
    logits = torch.randn(7, 3, 50)
    labels = torch.randint(0, 50, (7,))
    compact = compress(logits, labels)
    values, order = logits.topk(16, -1)
    assert torch.equal(compact.top, values)
    assert torch.equal(compact.classes.long(), order)
    assert torch.equal(compact.argmax(), logits.argmax(-1))
    assert torch.equal(compact.label, logits.gather(-1, labels[:, None, None].expand(7, 3, 1)).squeeze(-1))
    assert compact.shape == logits.shape


def test_of_equal_logits_the_lowest_class_answers_as_in_argmax():
    logits = torch.zeros(5, 200)
    logits[1, [9, 70, 150]] = 4
    logits[2, 30:90] = 1
    compact = compress(logits)
    assert compact.argmax().tolist() == logits.argmax(-1).tolist()
    assert len(set(compact.classes[1].tolist())) == 16


def test_the_sum_over_nodes_counts_the_other_classes():
    compact = compress(3 * torch.randn(20, 300))
    torch.testing.assert_close(compact.weights.double().sum(-1), torch.full((20,), 284.0).double(), rtol=1e-5, atol=1e-3)
    distances = compact.nodes()
    assert (distances > compact.span[:, :1] - 1e-5).all()
    assert (distances < compact.span[:, 1:] + 1e-5).all()


def test_batches_make_no_difference():
    logits = torch.randn(50, 2, 120)
    whole, parts = compress(logits), [compress(part) for part in logits.split(7)]
    for name in ("top", "classes", "span", "weights"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


def test_labels_out_of_range_are_refused():
    with pytest.raises(xl.errors.InputError, match=r"labels: expected values in \[0, 20\)"):
        compress(torch.randn(3, 20), torch.tensor([0, 1, 20]))


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
    monkeypatch.setattr(compact_logits, "EXACT", 10)
    assert fit_temperature(compact, labels) == pytest.approx(expected, rel=1e-3)


def test_restored_logits_have_what_was_kept_and_the_mean_of_the_others():
    logits = 3 * torch.randn(20, 2, 60)
    restored, kept = restore_logits(compress(logits)), logits >= logits.topk(16, -1).values[..., -1:]
    torch.testing.assert_close(restored[kept], logits[kept])
    torch.testing.assert_close(restored.mean(-1), logits.mean(-1), atol=1e-4, rtol=0)
    assert all(len(row[~keeps].unique()) == 1 for row, keeps in zip(restored[:, 0], kept[:, 0], strict=True))
    assert restore_logits(logits) is logits
