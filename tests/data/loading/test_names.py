import pytest

from exitlens.data.loading.names import PackedNames


def test_names_come_back_as_they_were():
    names = ["a/b.png", "", "ä/ö.jpg", "not utf-8: \udcff"]
    packed = PackedNames(names)
    assert list(packed) == names
    assert packed[-1] == names[-1]
    assert packed[1:3] == names[1:3]
    with pytest.raises(IndexError):
        packed[4]
    assert len(PackedNames([])) == 0
