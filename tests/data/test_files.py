import pytest

import exitlens as xl
from exitlens.data.files import hash_files, list_files, stamp_files


def test_files_are_listed_in_order_without_hidden_ones(tmp_path):
    for name in ("b.tar", "a.TAR", "c/d.tar", ".e.tar", ".f/g.tar", "cache-1.tar", "h.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in list_files(tmp_path, (".tar",))] == ["a.TAR", "b.tar", "c/d.tar"]
    assert len(list_files(tmp_path)) == 4
    assert list_files(tmp_path / "b.tar") == [tmp_path / "b.tar"]
    assert len(stamp_files(list_files(tmp_path))) == 4
    (tmp_path / "i.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(xl.errors.DataError, match="cannot be read"):
        stamp_files(list_files(tmp_path))


def test_a_hash_tells_other_names_sizes_and_ends(tmp_path):
    path = tmp_path / "x"
    found = set()
    for content in (b"a" * 300_000, b"b" + b"a" * 299_999, b"a" * 299_999 + b"b", b"a" * 300_001, b"", b"a"):
        path.write_bytes(content)
        found.add(hash_files([path]))
    found.add(hash_files([path.rename(tmp_path / "y")]))
    assert len(found) == 7
    with pytest.raises(xl.errors.DataError, match=r"x cannot be read \(FileNotFoundError"):
        hash_files([path])
