import pickle

import pytest
import torch

from exitlens.data.packed import PackedStrings, Picked, RowNames, pack_strings

NAMES = ["a/b.png", "", "ä/ö.jpg", "not utf-8: \udcff", "half: \ud800"]


def test_strings_come_back_as_they_were():
    strings = PackedStrings(NAMES)
    assert list(strings) == NAMES
    assert strings[-1] == NAMES[-1]
    assert strings[1:3] == NAMES[1:3]
    with pytest.raises(IndexError):
        strings[5]
    assert len(PackedStrings([])) == 0
    assert pickle.loads(pickle.dumps(strings)) == strings
    assert pack_strings(strings) is strings
    assert "5 strings" in repr(strings)


def test_strings_are_compared_as_sequences_are():
    strings = PackedStrings(["a", "b"])
    assert strings == ("a", "b")
    assert strings == ["a", "b"]
    assert strings != ("a",)
    assert strings != ("a", "c")
    assert PackedStrings("ab") != "ab"
    strings.append("c")
    assert strings == ("a", "b", "c")


def test_a_subset_shares_the_bytes():
    strings = PackedStrings(NAMES)
    part = strings.subset(torch.tensor([2, 0, -1]))
    assert part == (NAMES[2], NAMES[0], NAMES[-1])
    assert part.subset(torch.tensor([1])) == (NAMES[0],)
    assert strings.subset(torch.arange(5) % 2 == 1) == (NAMES[1], NAMES[3])
    assert part._bytes is strings._bytes


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
