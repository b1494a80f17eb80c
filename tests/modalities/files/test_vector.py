import numpy as np
import pytest

import exitlens as xl
from exitlens.modalities import VECTOR

OWN = xl.VectorPreprocess((1.0, 2.0), (1.0, 2.0), ("a", "b"))


def test_one_vector_by_the_names_of_its_features(tmp_path):
    (tmp_path / "x.csv").write_text("b,other,a\n4,9,3\n")
    assert VECTOR.read(tmp_path / "x.csv", OWN).tolist() == [[2.0, 1.0]]
    np.save(tmp_path / "x.npy", np.array([3.0, 4.0]))
    assert VECTOR.read(tmp_path / "x.npy", OWN).tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,4\n", "expected one row, a vector, got 2"),
        ("a,c\n1,2\n", r"it has no feature 'b', but \['a', 'c'\]"),
        ("1,2,3\n", "expected 2 features as in training, got 3"),
        ("a,b\n1,nan\n", "a gap .NaN. for feature 'b': fill it first"),
    ],
)
def test_bad_vectors(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(xl.DataError, match=message):
        VECTOR.read(tmp_path / "x.csv", OWN)


def test_arrays_that_are_no_vector(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    with pytest.raises(xl.DataError, match=r"expected an array \(F,\), got \(2, 2\)"):
        VECTOR.read(tmp_path / "x.npy", OWN)
    with pytest.raises(xl.DataError, match=r"it is no vector: expected .npy"):
        VECTOR.read(tmp_path / "x.txt", OWN)
