"""Groups of features by hand, and what is refused as groups."""

import pytest
import torch
import torch.nn.functional as F

import exitlens as xl
from exitlens.model.heads.group_neck import GroupNeck, check_groups, fit_group_neck

GROUPS = (("a", (0, 2)), ("b", (3,)))


@torch.no_grad()
def test_a_group_neck_equals_its_layers():
    torch.manual_seed(0)
    neck, hidden, vector = GroupNeck(5, 4, GROUPS, 3), torch.randn(2, 5, 1), torch.randn(2, 4, 1)
    rows = []
    for reader, members in zip(neck.readers, ([0, 2], [3]), strict=True):
        read = vector[:, members, 0] @ reader.weight.t() + reader.bias
        x = F.relu(read + hidden[..., 0] @ neck.inlet.weight.t())
        rows.append(F.relu(x + x @ neck.mixer.weight.t() + neck.mixer.bias))
    torch.testing.assert_close(neck(hidden, vector), torch.stack(rows, 2))
    assert neck.fuse() is neck
    assert not neck.keeps_features


@torch.no_grad()
def test_by_numbers():
    """Hidden 1, features 2 and 3, all weights 1 and no bias: a group adds its features to 1, and the mixer doubles that."""
    neck = GroupNeck(1, 2, (("a", (0,)), ("b", (1,))), 1)
    for name, parameter in neck.named_parameters():
        parameter.fill_(0.0 if "bias" in name else 1.0)
    assert neck(torch.ones(1, 1, 1), torch.tensor([[[2.0], [3.0]]])).tolist() == [[[6.0, 8.0]]]


def test_the_width_fits_a_budget():
    assert fit_group_neck(12, 6, GROUPS, 0).width == 8
    assert fit_group_neck(12, 6, GROUPS, 1e12).width == 256
    assert fit_group_neck(12, 6, GROUPS, 24 * (12 + 6) + 2 * 24**2).width == 24


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": [0]}, "two groups or more"),
        ([[0], [1]], "expected a dict"),
        ({"a": [0], "b": []}, "'b': expected columns from 0 to 5"),
        ({"a": [0], "b": [6]}, "'b': expected columns from 0 to 5"),
        ({"a": [0], "b": "12"}, "'b': expected columns"),
        ({"a": [0, 1], "b": [1]}, "column 1 is in two groups"),
        ({"a": [0, 0], "b": [1]}, "column 0 is in two groups"),
    ],
)
def test_what_are_no_groups(groups, message):
    with pytest.raises(xl.InputError, match=message):
        check_groups(groups, (6,), torch.zeros(1, 6))


def test_groups_are_of_vectors_only():
    assert check_groups(None, (2, 24), torch.zeros(1, 2, 24)) == ()
    with pytest.raises(xl.InputError, match="they are for vectors"):
        check_groups({"a": [0], "b": [1]}, (2, 24), torch.zeros(1, 2, 24))
    with pytest.raises(xl.InputError, match="they are for vectors"):
        check_groups({"a": [0], "b": [1]}, (6,), torch.zeros(1, 6).long())
    assert check_groups({"a": [0], "b": (1, 2)}, (6,), torch.zeros(1, 6)) == (("a", (0,)), ("b", (1, 2)))
