"""Sets of sentences, and how long they are."""

from __future__ import annotations

import pytest

import exitlens as xl
from benchmarks.reviews import Sentence, parse_ratings, split_sentences
from benchmarks.texts.data import make_set, measure_lengths


def test_lengths_count_all_tokens_and_what_is_cut():
    pytest.importorskip("tokenizers")
    preprocess = xl.TextPreprocess(xl.word_tokenizer(["a b"]), 4)
    texts = ["a", "a b", "a b a", "a b a b"]  # [CLS] and [SEP] are counted
    assert measure_lengths(texts, preprocess) == {"length_95": 6.0, "cut": 0.5}


def test_labels_follow_the_classes_of_the_network():
    pytest.importorskip("tokenizers")
    preprocess = xl.TextPreprocess(xl.word_tokenizer(["a b"]), 4)
    data = make_set([Sentence("a", "positive"), Sentence("b", "negative")], ("negative", "positive"), preprocess)
    assert data.labels.tolist() == [1, 0]


def test_sentences_of_a_review_stay_together():
    content = "".join(f"{i // 4}_{i % 4}\t{(-1, 1)[i % 2]}\tsentence {i}\n" for i in range(160))
    sentences = parse_ratings(content)
    assert sentences[5].group == "1"
    parts = split_sentences(sentences)
    groups = [{one.group for one in part} for part in parts.values()]
    assert [len(one) for one in groups] == [24, 4, 6, 6]
    assert sum(map(len, parts.values())) == 160
    assert len(set.union(*groups)) == 40
