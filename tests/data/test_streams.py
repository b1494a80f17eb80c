"""Images and texts that are read while they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.data.loading.listing import list_images
from exitlens.data.loading.readers import ImageFiles
from exitlens.data.streams import ImageStream, TextStream

PREPROCESS = xl.Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_batches_are_those_of_the_whole(folder):
    files = list_images(folder)
    stream = ImageStream(files, PREPROCESS, 4)
    assert len(stream) == 3
    assert stream.total == 10
    for _ in range(2):  # again from the start
        found = list(stream)
        assert [len(batch) for batch in found] == [4, 4, 2]
        assert torch.equal(torch.cat(found), xl.load_unlabelled(folder, PREPROCESS)[0])
        assert list(stream.files) == files
        assert stream.bad == []


def test_images_are_read_when_asked_for(folder, monkeypatch):
    read = []
    original = ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda self, i: (read.append(Path(self.name(i))), original(self, i))[1])
    stream = ImageStream(list_images(folder), PREPROCESS, 3, workers=0)
    assert not read
    batches = iter(stream)
    next(batches)
    assert read == list(stream.files) == list_images(folder)[:3]


@pytest.mark.parametrize("skip_bad", [True, False])
def test_bad_files(folder, skip_bad):
    for i in (2, 5, 9):
        (folder / f"{i}.png").write_text("not an image")
    files = list_images(folder)
    stream = ImageStream(files, PREPROCESS, 4, skip_bad)
    found = []
    if skip_bad:
        found += stream
        assert [len(batch) for batch in found] == [4, 3]
        assert [path.stem for path in stream.files] == ["0", "1", "3", "4", "6", "7", "8"]
        assert [reason.split(":")[0] for reason in stream.bad] == [str(files[i]) for i in (2, 5, 9)]
        return
    with pytest.raises(xl.DataError, match=r"2\.png: cannot be read as an image .*: remove it, or pass --skip-bad"):
        found.extend(stream)  # what came before the error is kept
    assert [len(batch) for batch in found] == [2]
    assert list(stream.files) == files[:2]
    assert len(stream.bad) == 1


def test_one_bad_image(folder):
    (folder / "0.png").write_text("not an image")
    with pytest.raises(xl.DataError, match="give another one"):
        list(ImageStream([folder / "0.png"], PREPROCESS, 4))


def test_texts():
    pytest.importorskip("tokenizers")
    preprocess = xl.TextPreprocess(xl.word_tokenizer(["a b c"]), 6)
    texts, names = ["a", "b c", "c a b"], ["t:1", "t:2", "t:4"]
    stream = TextStream(texts, names, preprocess, 2)
    assert (len(stream), stream.total) == (2, 3)
    batches = iter(stream)
    first = next(batches)
    assert list(stream.files) == ["t:1", "t:2"]
    whole = preprocess.encode(texts)
    rest = next(batches)
    for name, values in whole.items():
        assert torch.equal(torch.cat([first[name], rest[name]]), values)
    assert list(stream.files) == names
    assert stream.bad == []


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_wrong_arguments(size):
    with pytest.raises(xl.InputError, match="batch_size: expected an integer of 1 or more"):
        ImageStream([], PREPROCESS, size)
    with pytest.raises(xl.InputError, match="preprocess: expected Preprocess"):
        ImageStream([], None, 4)
    preprocess = xl.TextPreprocess(xl.word_tokenizer(["a b c"]), 6)
    with pytest.raises(xl.InputError, match="batch_size"):
        TextStream(["a"], ["x"], preprocess, size)
    with pytest.raises(xl.InputError, match="names: expected 1"):
        TextStream(["a"], [], preprocess, 2)


def test_chosen_rows_come_with_their_groups(folder):
    files = list_images(folder)
    (folder / "4.png").write_text("not an image")
    words = [f"p{i // 3}" for i in range(10)]
    stream = ImageStream(files, PREPROCESS, 3, True, rows=[1, 4, 5, 8], groups=words, bad=["known"])
    assert (stream.total, stream.bad) == (5, ["known"])
    for _ in range(2):
        (batch,) = stream
        assert batch.labels is None
        assert batch.groups.tolist() == [0, 1, 2]
        assert list(stream.files) == [files[i] for i in (1, 5, 8)]
        assert list(stream.groups) == ["p0", "p1", "p2"]
        assert len(stream.bad) == 2


def test_chosen_texts_come_with_their_groups():
    pytest.importorskip("tokenizers")
    preprocess = xl.TextPreprocess(xl.word_tokenizer(["a b c"]), 6)
    words = [f"p{i // 3}" for i in range(10)]
    stream = TextStream(["a"] * 10, words, preprocess, 2, rows=[0, 2, 3, 9], groups=words)
    assert [batch.groups.tolist() for batch in stream] == [[0, 0], [1, 3]]
    assert list(stream.files) == ["p0", "p0", "p1", "p3"]


def test_counts_that_do_not_fit(folder):
    files = list_images(folder)
    with pytest.raises(xl.InputError, match="groups: expected 10, one per sample; got 1"):
        ImageStream(files, PREPROCESS, 4, groups=["a"])
    with pytest.raises(xl.InputError, match="reader: expected 10 samples, one per name; got 1"):
        ImageStream(files, PREPROCESS, 4, reader=ImageFiles(Path(), ["x"], PREPROCESS))
