import pytest
import torch

import exitlens as xl
from exitlens.data.formats.named_parts import check_disjoint, name_split, plan_splits, take_split
from exitlens.data.splits import SPLITS
from exitlens.data.texts import RawTexts


def _texts(count=80, groups=None):
    labels = torch.arange(count) % 2
    return RawTexts([f"text {i}" for i in range(count)], labels, ("a", "b"), groups)


def test_splits_of_a_source_are_found_by_what_others_call_them():
    assert [name_split(word) for word in ("Val", "dev", "training", "calib", "extra")] == [
        "validation",
        "validation",
        "train",
        "calibration",
        None,
    ]
    plan = plan_splits(["train", "val", "extra"], "x")
    assert plan.own == {"train": "train", "validation": "val"}
    assert plan.carved == ("calibration", "test")
    assert str(plan) == (
        "validation: all of 'val'; cut from 'train' by exitlens: 78% train, 11% calibration, 11% test; 'extra' is not used"
    )
    assert str(plan_splits([""], "x")) == "by exitlens: 70% train, 10% validation, 10% calibration, 10% test"
    with pytest.raises(xl.DataError, match="has 'val' and 'dev' for one split"):
        plan_splits(["train", "val", "dev"], "x")
    with pytest.raises(xl.DataError, match="one of them has to be called train"):
        plan_splits(["test", "val"], "x")


def test_missing_splits_are_cut_from_train():
    parts = {"train": _texts(90), "test": _texts(10)}
    found = {split: take_split(parts, split, 0, "x") for split in SPLITS}
    assert found["test"] is parts["test"]
    assert [len(found[split].texts) for split in SPLITS] == [70, 10, 10, 10]
    assert sorted(t for split in SPLITS[:3] for t in found[split].texts) == sorted(parts["train"].texts)
    whole = {"all": _texts()}
    assert take_split(whole, "test", 1, "x").texts == xl.split_set(whole["all"], (0.7, 0.1, 0.1, 0.1), 1)[3].texts
    with pytest.raises(xl.DataError, match="its part 'test' is empty"):
        take_split(parts | {"test": _texts(0)}, "train", 0, "x")
    parts = {"train": _texts(90, torch.arange(90)), "test": _texts(10, torch.arange(89, 99))}
    with pytest.raises(xl.DataError, match="group 'g89' in train and in test"):
        take_split(parts, "train", 0, "x", [f"g{i}" for i in range(99)])


def test_a_group_in_two_parts_is_named():
    parts = {"train": torch.tensor([0, 1]), "val": torch.tensor([2]), "test": torch.tensor([1, 3])}
    with pytest.raises(xl.DataError, match=r"group 'p1' in train and in test \(1 group\(s\) are in both\)"):
        check_disjoint(parts, ("p0", "p1", "p2", "p3"), "x")
    check_disjoint({"train": parts["train"], "val": parts["val"]}, (), "x")
