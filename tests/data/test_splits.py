import pytest
import torch

import exitlens as xl
from exitlens.data.reviews import load_reviews
from exitlens.data.splits import SPLITS, name_split, plan_splits, take_split
from exitlens.data.texts import RawTexts
from tests.data.conftest import PREPROCESS


def test_split_set_is_disjoint_and_keeps_every_class(folder):
    data, _ = xl.load_folder(folder, PREPROCESS)
    parts = xl.split_set(data, (0.6, 0.2, 0.2))
    assert sum(len(p) for p in parts) == len(data)
    images = [image.numpy().tobytes() for part in parts for image in part.inputs]
    assert len(set(images)) == len(data)
    assert all(set(part.labels.tolist()) == {0, 1, 2} for part in parts)
    with pytest.raises(xl.InputError, match="sum to 1"):
        xl.split_set(data, (0.5, 0.2))
    with pytest.raises(xl.DataError, match="need 13 or more"):
        xl.split_set(data, (1 / 13,) * 13)


def test_split_set_takes_encoded_texts_too():
    pytest.importorskip("tokenizers")
    data = load_reviews("validation", limit=40)
    parts = xl.split_set(data, (0.5, 0.5))
    assert sorted(parts[0].texts + parts[1].texts) == sorted(data.texts)
    assert parts[0].masks.shape == (20, 32)


def _texts(count=80, groups=None):
    labels = torch.arange(count) % 2
    return RawTexts([f"text {i}" for i in range(count)], labels, ("a", "b"), groups)


def test_split_set_keeps_groups_together():
    groups = torch.arange(80) // 4 * 2 + torch.arange(80) % 2  # of two samples each
    parts = xl.split_set(_texts(groups=groups), (0.7, 0.1, 0.1, 0.1), seed=3)
    found = [set(part.groups.tolist()) for part in parts]
    assert sum(map(len, found)) == 40
    assert [len(part.texts) for part in parts] == [56, 8, 8, 8]
    with pytest.raises(xl.DataError, match=r"class 'a' has 1 group\(s\), need 2"):
        xl.split_set(_texts(groups=torch.arange(80) % 2), (0.5, 0.5))


def test_groups_of_one_sample_change_nothing():
    alone, without = (xl.split_set(_texts(groups=g), (0.5, 0.5)) for g in (torch.arange(80), None))
    assert [part.texts for part in alone] == [part.texts for part in without]


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
        "validation: all of 'val'; cut from 'train' by us: 78% train, 11% calibration, 11% test; 'extra' is not used"
    )
    assert str(plan_splits([""], "x")) == "by us: 70% train, 10% validation, 10% calibration, 10% test"
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
