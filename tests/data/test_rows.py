import pytest

import exitlens as xl
from exitlens.data.checks import number_groups
from exitlens.data.rows import looks_like_pattern, match_groups


def test_groups_from_file_names():
    names = ["cat/p1_01.png", "cat/p1_02.png", "dog/p12_01.png"]
    assert match_groups(r"(p\d+)_", names) == ["p1", "p1", "p12"]
    assert match_groups(r"p\d+", names) == ["p1", "p1", "p12"]
    with pytest.raises(xl.errors.DataError, match=r"finds no group in 2 of 3 file names, such as 'cat/p1_01.png'"):
        match_groups(r"p\d\d", names)
    with pytest.raises(xl.errors.DataError, match="finds no group"):
        match_groups(r"(x)?p", names)
    with pytest.raises(xl.errors.InputError, match="expected a column or a regular expression, got"):
        match_groups("(p", names)
    assert number_groups(["p1", "p1", "p12"], ["p0", "p1", "p12"]).tolist() == [1, 1, 2]
    assert looks_like_pattern(r"p\d+")
    assert not looks_like_pattern("patient_id")
