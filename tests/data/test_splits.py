import pytest
import torch

import exitlens as xl
from exitlens.data.splits import SPLITS, assign_groups, name_split, plan_splits, share_out, take_split
from exitlens.data.texts import RawTexts
from tests.data.conftest import PREPROCESS

SHARES = (0.7, 0.1, 0.1, 0.1)


def test_split_set_is_disjoint_and_keeps_every_class(folder):
    data = xl.data.load_folder(folder, PREPROCESS)
    parts = xl.data.split_set(data, (0.6, 0.2, 0.2))
    assert sum(len(p) for p in parts) == len(data)
    images = [image.numpy().tobytes() for part in parts for image in part.inputs]
    assert len(set(images)) == len(data)
    assert all(set(part.labels.tolist()) == {0, 1, 2} for part in parts)
    with pytest.raises(xl.errors.InputError, match="sum to 1"):
        xl.data.split_set(data, (0.5, 0.2))
    with pytest.raises(xl.errors.DataError, match="need 13 or more"):
        xl.data.split_set(data, (1 / 13,) * 13)


def _texts(count=80, groups=None):
    labels = torch.arange(count) % 2
    return RawTexts([f"text {i}" for i in range(count)], labels, ("a", "b"), groups)


def test_split_set_keeps_groups_together_and_groups_of_one_sample_change_nothing():
    groups = torch.arange(80) // 4 * 2 + torch.arange(80) % 2  # of two samples each
    parts = xl.data.split_set(_texts(groups=groups), (0.7, 0.1, 0.1, 0.1), seed=3)
    found = [set(part.groups.tolist()) for part in parts]
    assert sum(map(len, found)) == 40
    assert [len(part.texts) for part in parts] == [56, 8, 8, 8]
    with pytest.raises(xl.errors.DataError, match=r"class 'a' has 1 group\(s\), need 2"):
        xl.data.split_set(_texts(groups=torch.arange(80) % 2), (0.5, 0.5))
    alone, without = (xl.data.split_set(_texts(groups=g), (0.5, 0.5)) for g in (torch.arange(80), None))
    assert [part.texts for part in alone] == [part.texts for part in without]


def test_every_group_is_in_one_part_and_every_class_in_all():
    rng = torch.Generator().manual_seed(0)
    groups = torch.arange(60).repeat_interleave(torch.randint(1, 51, (60,), generator=rng))
    labels = torch.randint(0, 3, (60,), generator=rng)[groups]
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


@pytest.mark.slow
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
    with pytest.raises(xl.errors.DataError, match=r"class 'b' has 3 group\(s\), need 4 or more"):
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


def test_splits_of_a_source_are_found_by_what_others_call_them():
    words = ("Val", "dev", "training", "calib", "extra")
    assert [name_split(word) for word in words] == ["validation", "validation", "train", "calibration", None]
    plan = plan_splits(["train", "val", "extra"], "x")
    assert plan.parts == {"train": "train", "validation": "val"}
    assert plan.carved == ("calibration", "test")
    cut = "cut from 'train' by exitlens: 78% train, 11% calibration, 11% test"
    assert str(plan) == f"validation: all of 'val'; {cut}; 'extra' is not used"
    assert str(plan_splits([""], "x")) == "by exitlens: 70% train, 10% validation, 10% calibration, 10% test"
    with pytest.raises(xl.errors.DataError, match="has 'val' and 'dev' for one split"):
        plan_splits(["train", "val", "dev"], "x")
    with pytest.raises(xl.errors.DataError, match="one of them has to be called train"):
        plan_splits(["test", "val"], "x")


def test_missing_splits_are_cut_from_train():
    parts = {"train": _texts(90), "test": _texts(10)}
    found = {split: take_split(parts, split, 0, "x") for split in SPLITS}
    assert found["test"] is parts["test"]
    assert [len(found[split].texts) for split in SPLITS] == [70, 10, 10, 10]
    assert sorted(t for split in SPLITS[:3] for t in found[split].texts) == sorted(parts["train"].texts)
    whole = {"all": _texts()}
    assert take_split(whole, "test", 1, "x").texts == xl.data.split_set(whole["all"], (0.7, 0.1, 0.1, 0.1), 1)[3].texts
    with pytest.raises(xl.errors.DataError, match="its part 'test' is empty"):
        take_split(parts | {"test": _texts(0)}, "train", 0, "x")
    parts = {"train": _texts(90, torch.arange(90)), "test": _texts(10, torch.arange(89, 99))}
    with pytest.raises(xl.errors.DataError, match=r"group 'g89' in train and in test \(1 group\(s\) are in both\)"):
        take_split(parts, "train", 0, "x", [f"g{i}" for i in range(99)])


def test_images_with_classes_of_pixels_are_cut_at_random():
    labels = torch.zeros(20, 4, 4, dtype=torch.uint8)
    data = xl.data.ImageSet(torch.zeros(20, 3, 4, 4, dtype=torch.uint8), labels, ("a", "b"), groups=torch.arange(20) // 2)
    parts = xl.data.split_set(data, (0.5, 0.5))
    assert sum(map(len, parts)) == 20
    assert not set(parts[0].groups.tolist()) & set(parts[1].groups.tolist())
    data.groups = None
    assert [len(part) for part in xl.data.split_set(data, (0.7, 0.3))] == [14, 6]
