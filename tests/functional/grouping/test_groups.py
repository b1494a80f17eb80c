import torch

from exitlens.functional.grouping.groups import (
    average_groups,
    count_groups,
    find_firsts,
    number_groups,
    shuffle_groups,
    split_groups,
    weigh_samples,
)

IDS = torch.tensor([9, 4, 9, 9, -1, 4])


def test_names_become_numbers():
    assert number_groups(["b", "a", "b", 3]).tolist() == [0, 1, 0, 2]
    assert number_groups(IDS) is IDS


def test_groups_are_shuffled_and_stay_whole():
    ids = torch.arange(400) // 4
    numbers = shuffle_groups(ids, 0)
    assert sorted(numbers.unique().tolist()) == list(range(100))
    assert all(len(numbers[ids == one].unique()) == 1 for one in range(100))
    assert not torch.equal(numbers, ids)
    assert torch.equal(numbers, shuffle_groups(ids, 0))
    assert not torch.equal(numbers, shuffle_groups(ids, 1))


def test_no_group_is_in_both_parts():
    numbers = shuffle_groups(torch.randint(0, 30, (200,), generator=torch.Generator().manual_seed(0)), 0)
    first, second = split_groups(numbers, 0.4)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(200))
    assert set(numbers[first].tolist()) == set(range(12))
    assert set(numbers[second].tolist()) == set(range(12, 30))
    assert numbers[second].diff().min() >= 0  # group by group
    assert len(split_groups(numbers, 0.001)[0].unique()) > 0


def test_means_and_weights_by_hand():
    numbers = torch.tensor([4, 1, 4, 4, 0, 1])
    assert count_groups(numbers) == 3
    means, sizes = average_groups(torch.tensor([1.0, 0.0, 0.5, 0.0, 0.25, 1.0]), numbers)
    assert means.tolist() == [0.25, 0.5, 0.5]
    assert sizes.tolist() == [1, 2, 3]
    assert weigh_samples(numbers, 3).tolist() == [1] * 6
    torch.testing.assert_close(weigh_samples(numbers, None), torch.tensor([1 / 3, 0.5, 1 / 3, 1 / 3, 1, 0.5]).double() * 2)
    torch.testing.assert_close(weigh_samples(numbers, 2), torch.tensor([2 / 3, 1, 2 / 3, 2 / 3, 1, 1]).double() * 6 / 5)


def test_the_first_sample_of_each_group():
    assert find_firsts(IDS).tolist() == [0, 1, 4]
