import pytest
import torch

import exitlens as xl
from exitlens.data.grouping import (
    assign_groups,
    check_disjoint,
    looks_like_pattern,
    match_groups,
    number_groups,
    share_out,
)

SHARES = (0.7, 0.1, 0.1, 0.1)


def _families(number=60, classes=3, seed=0):
    """Groups of 1 to 50 samples, each of one class."""
    rng = torch.Generator().manual_seed(seed)
    groups = torch.arange(number).repeat_interleave(torch.randint(1, 51, (number,), generator=rng))
    return torch.randint(0, classes, (number,), generator=rng)[groups], groups


def test_every_group_is_in_one_part_and_every_class_in_all():
    labels, groups = _families()
    parts = assign_groups(labels, groups, ("a", "b", "c"), SHARES, torch.Generator().manual_seed(1))
    pairs = torch.stack([groups, parts]).unique(dim=1)
    assert pairs.shape[1] == 60  # one part for each group
    assert pairs[1].bincount().tolist() == [42, 6, 6, 6]  # near to shares of the groups
    assert all(set(labels[parts == i].tolist()) == {0, 1, 2} for i in range(4))
    again = assign_groups(labels, groups, ("a", "b", "c"), SHARES, torch.Generator().manual_seed(1))
    assert torch.equal(parts, again)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    moved = assign_groups(labels[shuffled], groups[shuffled], ("a", "b", "c"), SHARES, torch.Generator().manual_seed(1))
    assert torch.equal(moved, parts[shuffled])  # whatever the order of the samples


def test_a_group_has_the_same_chances_whatever_its_size():
    sizes = torch.tensor([1] * 18 + [40, 50])
    groups = torch.arange(20).repeat_interleave(sizes)
    labels = torch.zeros_like(groups)
    drawn = []
    for seed in range(400):
        parts = assign_groups(labels, groups, ("a",), SHARES, torch.Generator().manual_seed(seed))
        drawn.append(parts[groups >= 18].unique_consecutive(dim=0)[[0, -1]])
    shares = torch.stack(drawn).flatten().bincount(minlength=4) / 800
    assert torch.allclose(shares, torch.tensor(SHARES), atol=0.05)


def test_groups_with_several_classes():
    rng = torch.Generator().manual_seed(0)
    groups, labels = torch.randint(0, 40, (2000,), generator=rng), torch.randint(0, 5, (2000,), generator=rng)
    parts = assign_groups(labels, groups, tuple("abcde"), SHARES, rng)
    assert all(len(set(labels[parts == i].tolist())) == 5 for i in range(4))
    assert torch.stack([groups, parts]).unique(dim=1).shape[1] == 40


def test_a_class_with_too_few_groups():
    labels = torch.tensor([0] * 40 + [1] * 40)
    groups = torch.tensor([*range(10)] * 4 + [10, 11, 12] * 13 + [10])
    with pytest.raises(xl.DataError, match=r"class 'b' has 3 group\(s\), need 4 or more"):
        assign_groups(labels, groups, ("a", "b"), SHARES, torch.Generator())
    labels, groups = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1])
    parts = assign_groups(labels, groups, ("a", "b"), (0.5, 0.5), torch.Generator())
    assert parts[0] == parts[1] != parts[2] == parts[3]
    # class b's two groups are also class c's, and c's third is needed elsewhere: some draws fail, one is found
    labels, groups = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
    for seed in range(20):
        parts = assign_groups(labels, groups, ("a", "b"), (0.5, 0.5), torch.Generator().manual_seed(seed))
        assert parts[3] != parts[4]


def test_share_out_gives_each_part_one_as_long_as_they_last():
    assert share_out(10, SHARES) == [7, 1, 1, 1]
    assert share_out(4, SHARES) == [1, 1, 1, 1]
    assert share_out(100, (0.5, 0.5)) == [50, 50]
    assert all(sum(share_out(n, SHARES)) == n and min(share_out(n, SHARES)) >= (n > 3) for n in range(50))


def test_groups_from_file_names():
    names = ["cat/p1_01.png", "cat/p1_02.png", "dog/p12_01.png"]
    assert match_groups(r"(p\d+)_", names) == ["p1", "p1", "p12"]
    assert match_groups(r"p\d+", names) == ["p1", "p1", "p12"]
    with pytest.raises(xl.DataError, match=r"finds no group in 2 of 3 file names, such as 'cat/p1_01.png'"):
        match_groups(r"p\d\d", names)
    with pytest.raises(xl.DataError, match="finds no group"):
        match_groups(r"(x)?p", names)
    with pytest.raises(xl.InputError, match="no regular expression"):
        match_groups("(p", names)
    ids, known = number_groups(["p1", "p1", "p12"], ["p0"])
    assert (ids.tolist(), known) == ([1, 1, 2], ("p0", "p1", "p12"))
    assert looks_like_pattern(r"p\d+")
    assert not looks_like_pattern("patient_id")


def test_a_group_in_two_parts_is_named():
    parts = {"train": torch.tensor([0, 1]), "val": torch.tensor([2]), "test": torch.tensor([1, 3])}
    with pytest.raises(xl.DataError, match=r"group 'p1' in train and in test \(1 group\(s\) are in both\)"):
        check_disjoint(parts, ("p0", "p1", "p2", "p3"), "x")
    check_disjoint({"train": parts["train"], "val": parts["val"]}, (), "x")
