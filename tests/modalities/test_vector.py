import pytest
import torch

import exitlens as xl
from exitlens.modalities.vector import VECTOR, VectorModality, make_members
from exitlens.types import VectorPreprocess
from exitlens.types.inputs import InputFormat

GROUPS = (("blood", (0, 3)), ("heart", (1,)))


def test_members():
    expected = [[True, False, False, True], [False, True, False, False]]
    assert make_members(GROUPS, 4).tolist() == expected


def test_the_features_of_a_group_become_zero():
    vectors, cells = torch.ones(2, 4), torch.tensor([[True, False], [False, True]])
    grouped = VECTOR.adapt(InputFormat((), (4,), groups=GROUPS))
    assert isinstance(grouped, VectorModality)
    assert grouped.delete(vectors, cells).tolist() == [[0, 1, 1, 0], [1, 0, 1, 1]]
    assert grouped.insert(vectors, cells).tolist() == [[1, 0, 1, 1], [0, 1, 1, 0]]
    assert grouped.name_locations([vectors[0]], InputFormat((), (4,)), None) == ("blood", "heart")


def test_features_with_a_location_each():
    assert VECTOR.adapt(InputFormat((), (4,))) is VECTOR
    assert VECTOR.delete(torch.ones(1, 3), torch.tensor([[False, True, False]])).tolist() == [[1, 0, 1]]
    named = VectorPreprocess((0.0,) * 2, (1.0,) * 2, names=("age", "weight"))
    assert VECTOR.name_locations([torch.ones(2)], InputFormat((), (2,)), named) == ("age", "weight")
    with pytest.raises(xl.InputError, match="2 locations and its vectors 3 features: name groups"):
        VECTOR.delete(torch.ones(1, 3), torch.zeros(1, 2, dtype=torch.bool))
