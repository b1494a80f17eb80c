import pytest
import torch

import exitlens as xl
from exitlens.data.checks import check_bad, check_class_labels


def test_labels_become_int64():
    assert check_class_labels(torch.tensor([0, 1], dtype=torch.int8), 2, ("a", "b"), "image").dtype == torch.int64


@pytest.mark.parametrize(
    "labels", [[0, 1], torch.zeros(2), torch.zeros(2, 1).long(), torch.tensor([0, 2]), torch.tensor([0])]
)
def test_bad_labels(labels):
    with pytest.raises(xl.errors.InputError, match="labels"):
        check_class_labels(labels, 2, ("a", "b"), "image")


def test_bad_files_may_be_skipped_if_others_remain():
    check_bad([], 3, False)
    check_bad(["a: broken"], 3, True)
    for bad, skip_bad in ((["a: broken"], False), (["a: broken"] * 3, True)):
        with pytest.raises(xl.errors.DataError, match=f"{len(bad)} of 3 files.*\n  a: broken"):
            check_bad(bad, 3, skip_bad)
    with pytest.raises(xl.errors.DataError, match="and 5 more"):
        check_bad(["x"] * 15, 20, False)
