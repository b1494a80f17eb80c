"""Independent samples are not suspected, in whatever order; families side by side or at equal distances are."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import exitlens as xl
from exitlens.functional import groups
from exitlens.functional.compact import compress
from tests.conftest import random_trace

IDS = torch.tensor([9, 4, 9, 9, -1, 4])


def test_groups_are_shuffled_and_stay_whole():
    ids = torch.arange(400) // 4
    numbers = groups.shuffle_groups(ids, 0)
    assert sorted(numbers.unique().tolist()) == list(range(100))
    assert all(len(numbers[ids == one].unique()) == 1 for one in range(100))
    assert not torch.equal(numbers, ids)
    assert torch.equal(numbers, groups.shuffle_groups(ids, 0))
    assert not torch.equal(numbers, groups.shuffle_groups(ids, 1))


def test_no_group_is_in_both_parts():
    numbers = groups.shuffle_groups(torch.randint(0, 30, (200,), generator=torch.Generator().manual_seed(0)), 0)
    first, second = groups.split_groups(numbers, 0.4)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(200))
    assert set(numbers[first].tolist()) == set(range(12))
    assert set(numbers[second].tolist()) == set(range(12, 30))
    assert numbers[second].diff().min() >= 0  # group by group
    assert len(groups.split_groups(numbers, 0.001)[0].unique()) > 0


def test_means_and_weights_by_hand():
    numbers = torch.tensor([4, 1, 4, 4, 0, 1])
    assert groups.count_groups(numbers) == 3
    means, sizes = groups.average_groups(torch.tensor([1.0, 0.0, 0.5, 0.0, 0.25, 1.0]), numbers)
    assert means.tolist() == [0.25, 0.5, 0.5]
    assert sizes.tolist() == [1, 2, 3]
    assert groups.weigh_samples(numbers, 3).tolist() == [1] * 6
    equal, capped = (groups.weigh_samples(numbers, largest) for largest in (None, 2))
    torch.testing.assert_close(equal, torch.tensor([1 / 3, 0.5, 1 / 3, 1 / 3, 1, 0.5]).double() * 2)
    torch.testing.assert_close(capped, torch.tensor([2 / 3, 1, 2 / 3, 2 / 3, 1, 1]).double() * 6 / 5)


@pytest.mark.parametrize(("limit", "counts"), [(9, [1, 3, 3]), (6, [1, 2, 2]), (3, [1, 1, 1]), (2, [1, 1])])
def test_as_many_are_drawn_from_every_group(limit, counts):
    ids = torch.tensor([7, 5, 5, 5, 5, 6, 6, 6, 6, 6])
    drawn = groups.draw_from_groups(ids, limit, 0)
    assert len(drawn.unique()) == len(drawn) == sum(counts)
    assert sorted(ids[drawn].unique(return_counts=True)[1].tolist()) == counts
    assert torch.equal(drawn, groups.draw_from_groups(ids, limit, 0))
    assert any(not torch.equal(drawn, groups.draw_from_groups(ids, limit, seed)) for seed in range(1, 9))


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60).filter(lambda ids: len(set(ids)) > 1), st.integers(0, 99))
def test_groups_are_paired_and_units_share_nothing(ids, seed):
    ids = torch.tensor(ids)
    partner, unit = groups.pair_groups(ids, seed)
    assert (ids[partner] != ids).all()
    assert torch.equal(unit[partner], unit)
    sizes = [len(ids[unit == number].unique()) for number in unit.unique()]
    count = len(ids.unique())
    assert sorted(sizes) == ([2] * (count // 2) if count % 2 == 0 else [2] * (count // 2 - 1) + [3])
    assert all(len(unit[ids == group].unique()) == 1 for group in ids.unique())


def test_units_and_groups_that_share_samples_are_one():
    assert groups.join_units(None, torch.tensor([0, 0, -1, 1, 1])).tolist() == [0, 0, 1, 2, 2]
    assert groups.join_units(torch.tensor([5, 6, 6, 7, 8]), torch.tensor([0, 0, -1, 1, 1])).tolist() == [0, 0, 0, 1, 1]
    assert groups.join_units(torch.tensor([5, 6, 6, 7, 8]), torch.tensor([0, 0, 1, 1, -1])).tolist() == [0, 0, 0, 0, 1]


def test_the_first_sample_of_each_group():
    assert groups.find_firsts(IDS).tolist() == [0, 1, 4]


def families(count: int, size: int, noise: float = 0.5, seed: int = 0) -> xl.Trace:
    """``count`` objects with ``size`` pictures each, side by side."""
    one, other = random_trace(count, seed=seed), random_trace(count * size, seed=seed + 1)
    rows = torch.arange(count).repeat_interleave(size)
    logits = one.logits[rows] + noise * (other.logits - other.logits.mean())
    return xl.Trace(logits, one.labels[rows], other.divergence, one.cost)


@pytest.mark.parametrize("n", [200, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", ["as they come", "by class"])
def test_independent_samples_are_not_suspected(n, order):
    for seed in range(4):
        trace = random_trace(n, seed=seed)
        if order == "by class":
            trace = trace.select(trace.labels.argsort(stable=True))
        found = groups.measure_likeness(trace)
        assert not found.is_suspicious
        assert found.rank > 0.4
        assert found.deviation < 5


@pytest.mark.parametrize(("count", "size"), [(41, 25), (100, 5), (1000, 2), pytest.param(3000, 3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_families_are(count, size):
    trace = families(count, size)
    found = groups.measure_likeness(trace)
    assert found.is_suspicious
    assert found.lag < size
    assert groups.measure_likeness(trace.select(trace.labels.argsort(stable=True))).is_suspicious
    rng = torch.Generator().manual_seed(0)
    assert not groups.measure_likeness(trace.select(torch.randperm(count * size, generator=rng))).is_suspicious


def test_copies_that_come_round_by_round_are():
    trace = families(60, 20, noise=0.1)
    rounds = torch.arange(1200).view(60, 20).T.flatten()
    found = groups.measure_likeness(trace.select(rounds))
    assert found.is_suspicious
    assert found.lag > 5


def test_little_to_compare():
    assert groups.measure_likeness(random_trace(60)) is None
    assert groups.measure_likeness(random_trace(300, c=200)) is None


def test_ranks_by_hand():
    ranks = groups.rank_distances(torch.tensor([[0.0], [1.0], [3.0]]))
    assert ranks[0, 1] == pytest.approx(0.25)  # the nearest of two, from both sides
    assert ranks[0, 2] == pytest.approx((0.75 + 0.75) / 2)
    assert ranks[1, 2] == pytest.approx((0.75 + 0.25) / 2)


def test_exits_count_alike_whatever_their_scale():
    trace = random_trace(50)
    scaled = xl.Trace(trace.logits * torch.tensor([0.1, 1.0, 40.0])[:, None] + 7, None, trace.divergence, trace.cost)
    embedded = [groups.embed(item, torch.arange(50)) for item in (scaled, trace)]
    torch.testing.assert_close(*embedded, atol=1e-4, rtol=1e-4)


def test_compact_logits_say_the_same():
    trace = families(60, 20)
    compact = xl.Trace(compress(trace.logits, None), None, trace.divergence, trace.cost)
    assert groups.measure_likeness(compact).is_suspicious
    assert not groups.measure_likeness(replace(compact, logits=compress(random_trace(1200).logits, None))).is_suspicious
