import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.modalities.vector import VECTOR, VectorModality
from exitlens.types.inputs import InputFormat

OWN = xl.data.VectorPreprocess((1.0, 2.0), (1.0, 2.0), ("a", "b"))


def test_the_features_of_a_group_become_zero():
    vectors, cells = torch.ones(2, 4), torch.tensor([[True, False], [False, True]])
    grouped = VECTOR.adapt(InputFormat((), (4,), groups=(("blood", (0, 3)), ("heart", (1,)))))
    assert isinstance(grouped, VectorModality)
    assert grouped.delete(vectors, cells).tolist() == [[0, 1, 1, 0], [1, 0, 1, 1]]
    assert grouped.exchange(vectors, vectors + 1, cells).tolist() == [[2, 1, 1, 2], [1, 2, 1, 1]]
    assert grouped.choose_region(torch.tensor([[0.2, 0.8], [0.9, 0.1]]), vectors, 0.5).tolist() == [
        [False, True],
        [True, False],
    ]
    assert grouped.paint_over(vectors, cells) is vectors
    assert grouped.insert(vectors, cells).tolist() == [[1, 0, 1, 1], [0, 1, 1, 0]]
    assert grouped.name_locations([vectors[0]], InputFormat((), (4,)), None) == ("blood", "heart")


def test_features_with_a_location_each():
    assert VECTOR.adapt(InputFormat((), (4,))) is VECTOR
    assert VECTOR.delete(torch.ones(1, 3), torch.tensor([[False, True, False]])).tolist() == [[1, 0, 1]]
    assert VECTOR.name_locations([torch.ones(2)], InputFormat((), (2,)), OWN) == ("a", "b")
    with pytest.raises(xl.errors.InputError, match=r"2 locations and its vectors 3 features. Fix: name groups"):
        VECTOR.delete(torch.ones(1, 3), torch.zeros(1, 2, dtype=torch.bool))


def test_features_are_read_by_their_names(tmp_path):
    (tmp_path / "x.csv").write_text("b,other,a\n4,9,3\n")
    assert VECTOR.read(tmp_path / "x.csv", OWN).tolist() == [[2.0, 1.0]]
    np.save(tmp_path / "x.npy", np.array([3.0, 4.0]))
    assert VECTOR.read(tmp_path / "x.npy", OWN).tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b\n1,2\n3,4\n", "expected one row, a vector, got 2"),
        ("x.csv", "a,c\n1,2\n", r"no feature 'b' among \['a', 'c'\]"),
        ("x.csv", "1,2,3\n", "expected 2 features as in training, got 3"),
        ("x.csv", "a,b\n1,nan\n", r"a gap .NaN. for feature 'b'. Fix: fill it"),
        ("x.npy", np.zeros((2, 2)), r"expected one vector in a file, \(F,\), got an array \(2, 2\)"),
        ("x.txt", "", "not a file of a vector: expected .npy"),
    ],
)
def test_files_that_hold_no_such_vector(tmp_path, name, content, message):
    np.save(tmp_path / name, content) if name.endswith(".npy") else (tmp_path / name).write_text(content)
    with pytest.raises(xl.errors.DataError, match=message):
        VECTOR.read(tmp_path / name, OWN)
