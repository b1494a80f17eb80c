"""Plans against what calibration on fresh samples needs, and against tests of losses that are known."""

import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy import stats

import exitlens as xl
from exitlens.errors import InputError
from exitlens.functional.calibration import run_calibration
from exitlens.functional.certification import PATH_SHARE
from exitlens.types.plans import PlannedSize
from exitlens.workflow import planning
from tests.conftest import random_trace

REQUEST = xl.CalibrationRequest(max_disagreement=0.1, delta=0.1, temperature_scaling=False)


def share_certified(units, draws):
    granted = 0
    for seed in range(draws):
        policy = run_calibration(random_trace(units, seed=1000 + seed), replace(REQUEST, seed=seed))
        granted += not policy.calibration.certification.reason
    return granted / draws


@pytest.mark.long
def test_as_many_samples_as_fresh_ones_take():
    plan = xl.plan_samples(REQUEST, random_trace(3000, seed=1))
    assert share_certified(round(0.7 * plan.needed), 100) < 0.9
    assert share_certified(round(1.3 * plan.needed), 100) >= 0.75  # 40 draws tell the share of 0.9 to 0.1


@pytest.mark.slow
def test_more_samples_save_more(monkeypatch):
    tried, calibrate = Counter(), planning._Draws.try_calibration

    def count(draws, units, *rest):
        tried[units] += 1
        return calibrate(draws, units, *rest)

    monkeypatch.setattr(planning._Draws, "try_calibration", count)
    plan = xl.plan_samples(REQUEST, random_trace(150), draws=4)
    assert (plan.unit, plan.at_hand, plan.sizes[0].units, plan.sizes[-1].units) == ("samples", 150, 10, 1280)
    assert 150 in [size.units for size in plan.sizes]
    assert plan.request == REQUEST  # temperatures that were fitted here would pass calibrate's check of its samples
    assert plan.sizes[0].certified == 0
    costs = [size.cost for size in plan.sizes if size.certified == 1]
    assert costs[0] > costs[-1] >= plan.limit_cost - 0.01
    assert all(size.low <= size.cost <= size.high for size in plan.sizes)
    json.dumps(plan.to_dict())
    sure = [
        size.units
        for before, after, size in zip(plan.sizes, plan.sizes[1:], plan.sizes[2:], strict=False)
        if before.certified == after.certified == 1
    ]
    assert sure
    assert all(tried[units] == (1 if units in sure else 4) for units in tried)


@pytest.mark.slow
def test_copies_of_a_group_are_groups_of_their_own():
    grouped = xl.plan_samples(REQUEST, random_trace(180).with_groups(torch.arange(180) // 3), draws=2)
    assert (grouped.unit, grouped.at_hand, grouped.sizes[-1].units) == ("groups", 60, 1280)
    assert str(grouped).startswith(f"About {grouped.needed} groups get one in 90 %. The 60 groups at hand")
    sample = planning._tell_apart(random_trace(4).with_groups([0, 0, 1, 1]), torch.tensor([0, 1, 1, 2]))
    assert len(sample.groups.unique()) == 4


def test_swaps_of_copies_are_apart():
    trace = random_trace(40)
    changed, unit = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) < 0.05, torch.arange(40) // 2
    unit[-4:] = -1
    draws = planning._Draws(replace(trace, swaps={"changed": changed, "unit": unit}), replace(REQUEST, max_cue_drop=0.2))
    assert draws.count == 22  # 18 pairs, 4 samples that were not swapped
    assert draws.unit.startswith("independent units")
    sample = planning._tell_apart(
        replace(trace, swaps={"changed": changed, "unit": unit}).select(torch.tensor([0, 1, 0, 1, 39])),
        torch.tensor([0, 0, 1, 1, 2]),
    )
    assert sample.swaps["unit"].tolist() == [0, 0, 1, 1, -1]


@pytest.mark.slow
def test_the_trace_is_not_spent():
    trace = random_trace(60)
    xl.plan_samples(REQUEST, trace, draws=1)
    assert trace.certificate_requests == []


def test_needed_is_read_off_a_rising_line():
    def make(*shares):
        return [PlannedSize(100 * 4**i, share, 0.5, 0.5, 0.5) for i, share in enumerate(shares)]

    assert planning.find_needed(make(0.0, 0.8, 1.0)) == round(400 * 4**0.5)
    assert planning.find_needed(make(0.8, 0.6, 1.0)) == math.ceil(400 * 4 ** (2 / 3))  # 0.7 at the first two
    assert planning.find_needed(make(0.0, 0.5, 0.8)) is None
    assert planning.find_needed(make(0.95, 0.95, 1.0)) == 100


@pytest.mark.parametrize("limit", [0.02, 0.1])
@pytest.mark.slow
def test_without_a_trace_disagreement_by_the_binomial(limit):
    plan = xl.plan_samples(xl.CalibrationRequest(max_disagreement=limit, delta=0.1))
    for case in plan.cases:
        count = round(case.units * (1 - PATH_SHARE))
        errors = max(e for e in range(count) if stats.binom.cdf(e, count, limit) <= 0.1)
        assert stats.binom.cdf(errors, count, case.lost) >= 0.9
    lossless = math.ceil(math.log(0.1) / math.log(1 - limit))  # (1 - limit)^n <= delta
    assert plan.cases[0] == (0, 0, math.ceil(lossless / (1 - PATH_SHARE)))


@pytest.mark.slow
def test_without_a_trace_accuracy_by_drawn_pairs():
    """The planned samples get a certificate in about nine of ten draws."""
    plan = xl.plan_samples(xl.CalibrationRequest(max_accuracy_drop=0.02, delta=0.1))
    case = next(case for case in plan.cases if (case.lost, case.differing) == (0.01, 0.05))
    count, rng = round(case.units * (1 - PATH_SHARE)), torch.Generator().manual_seed(0)
    rates = torch.tensor([(case.differing + case.lost) / 2, (case.differing - case.lost) / 2, 1 - case.differing])
    passed = 0
    for _ in range(80):
        more, fewer, _ = rates.multinomial(count, True, generator=rng).bincount(minlength=3).tolist()
        passed += planning.paired(more, fewer, count, 0.02) <= 0.1
    assert 0.8 <= passed / 80 <= 0.98


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (xl.CalibrationRequest(max_disagreement=0.1), "request: without delta .* Fix: pass delta=0.1"),
        (xl.CalibrationRequest(max_disagreement=0.0, delta=0.1), "max_disagreement: that nothing at all is lost"),
        (xl.CalibrationRequest(max_divergence=0.1, delta=0.1), "trace: how much max_divergence vary.* Fix: pass one"),
        (
            xl.CalibrationRequest(max_disagreement=0.1, max_accuracy_drop=0.1, delta=0.1),
            "trace: how much max_accuracy_drop and max_dis",
        ),
    ],
)
def test_refusals(request_, message):
    with pytest.raises(InputError, match=message):
        xl.plan_samples(request_)


def test_nothing_to_plan_without_early_exits():
    with pytest.raises(InputError, match="trace: its network has no early exits"):
        xl.plan_samples(REQUEST, random_trace(50, k=1))


@pytest.mark.slow
def test_few_samples_and_limits_that_nobody_can_show():
    assert "The 5 samples at hand are too few for any." in str(xl.plan_samples(REQUEST, random_trace(5), draws=1))
    assert str(xl.plan_samples(xl.CalibrationRequest(max_accuracy_drop=1e-7, delta=0.1))).startswith(
        "More samples than anybody"
    )
