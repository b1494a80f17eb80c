import os
import pickle
import threading

import pytest
import torch

import exitlens as xl
from exitlens.data.batches import iterate_batches
from exitlens.data.readers import ImageFiles, PackedStrings, PixelCache, RowNames, check_bad, pack_strings
from tests.data.conftest import PREPROCESS, Pixels


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe.png", "not a file but a folder, device or pipe"),  # they could be read for ever
        ("zero.png", "not a file but a folder, device or pipe"),
        ("gone.png", r"cannot be read \(FileNotFoundError"),
    ],
)
def test_what_is_no_file_is_no_image(name, message, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(xl.errors.DataError, match=f"{name}: {message}"):
        ImageFiles(tmp_path, [name], PREPROCESS).read(0)


PIXELS = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)


def test_pixels_are_found_in_a_directory_by_content_and_shape(tmp_path):
    cache = PixelCache(tmp_path / "new" / "cache")
    assert cache.find(b"file", (3, 4, 4)) is None
    cache.keep(b"file", PIXELS)
    assert torch.equal(PixelCache(tmp_path / "new" / "cache").find(b"file", (3, 4, 4)), PIXELS)
    assert cache.find(b"file", (3, 2, 8)) is None
    assert cache.find(b"other file", (3, 4, 4)) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(xl.errors.OutputError, match="cannot be a directory"):
        PixelCache(tmp_path / "file")


def test_what_is_damaged_is_not_found_and_written_again(tmp_path):
    cache = PixelCache(tmp_path)
    cache.keep(b"file", PIXELS)
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    whole = path.read_bytes()
    for spoilt in (whole[:-1], b"", bytes(len(whole)), whole + b"x"):
        path.write_bytes(spoilt)
        assert cache.find(b"file", (3, 4, 4)) is None
        cache.keep(b"file", PIXELS)
        assert path.read_bytes() == whole


def test_many_may_write_at_once(tmp_path):
    def work():
        cache = PixelCache(tmp_path)
        for i in range(20):
            cache.keep(bytes([i]), PIXELS + i)
            assert torch.equal(cache.find(bytes([i]), (3, 4, 4)), PIXELS + i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 20


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_is_decoded_once(folder, tmp_path, monkeypatch, workers):
    data = xl.data.load_folder(folder, PREPROCESS)
    data.workers = workers
    expected = data.inputs
    cached = data.cached(tmp_path / "cache")
    for _ in range(2):
        assert torch.equal(torch.cat([batch.inputs for batch in iterate_batches(cached, 8)]), expected)
        monkeypatch.setattr("exitlens.data.readers.decode_image", None)  # not needed any more
    monkeypatch.undo()
    (folder / "cat" / "00.png").write_bytes((folder / "dog" / "00.png").read_bytes())
    assert torch.equal(cached[0][0], cached[12][0])  # a changed file is another file


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_told_once_and_images_are_decoded(folder, tmp_path, monkeypatch, workers):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    data = xl.data.load_folder(folder, PREPROCESS).cached(tmp_path / "cache")
    data.workers = workers
    with pytest.warns(xl.errors.DataWarning, match=r"No space left on device.*decoded every time") as told:
        batches = [*iterate_batches(data, 8), *iterate_batches(data, 8)]
    assert len(told) == 1
    assert sum(len(batch.inputs) for batch in batches) == 72


def test_readers_of_pixels_have_nothing_to_cache(tmp_path):
    data = xl.data.LazySet(Pixels([PIXELS] * 2), torch.tensor([0, 1]), ("a", "b"), xl.data.Preprocess((4, 4)))
    with pytest.raises(xl.errors.InputError, match="Pixels gives decoded samples"):
        data.cached(tmp_path)


def test_bad_files_may_be_skipped_if_others_remain():
    check_bad([], 3, False)
    check_bad(["a: broken"], 3, True)
    for bad, skip_bad in ((["a: broken"], False), (["a: broken"] * 3, True)):
        with pytest.raises(xl.errors.DataError, match=f"{len(bad)} of 3 files.*\n  a: broken"):
            check_bad(bad, 3, skip_bad)
    with pytest.raises(xl.errors.DataError, match="and 5 more"):
        check_bad(["x"] * 15, 20, False)


NAMES = ["a/b.png", "", "ä/ö.jpg", "not utf-8: \udcff", "half: \ud800"]


def test_strings_come_back_as_they_were():
    strings = PackedStrings(NAMES)
    assert list(strings) == NAMES
    assert strings[-1] == NAMES[-1]
    assert strings[1:3] == NAMES[1:3]
    with pytest.raises(IndexError):
        strings[5]
    assert pickle.loads(pickle.dumps(strings)) == strings
    assert pack_strings(strings) is strings
    assert "5 strings" in repr(strings)
    strings.append("c")
    assert strings == (*NAMES, "c") != NAMES
    assert PackedStrings("ab") == ["a", "b"] != PackedStrings("ac")
    assert PackedStrings("ab") != "ab"


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
