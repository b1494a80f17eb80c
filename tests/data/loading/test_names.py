import pytest

from exitlens.data.loading.names import Picked, RowNames


def test_names_of_rows_are_made_when_asked_for():
    names = RowNames([("a:", 2), ("b:", 0), ("c:", 3)])
    assert list(names) == ["a:0", "a:1", "c:0", "c:1", "c:2"]
    assert (len(names), names[-1], names[1:3]) == (5, "c:2", ["a:1", "c:0"])
    with pytest.raises(IndexError):
        names[5]


def test_picked_values_grow_with_the_rows():
    rows = [2, 0]
    picked = Picked("abc", rows)
    assert list(picked) == ["c", "a"]
    rows.append(1)
    assert (len(picked), picked[-1], picked[1:]) == (3, "b", ["a", "b"])
