"""Which tokens belong to words of a lexicon."""

from __future__ import annotations

import pytest

import exitlens as xl
from benchmarks.texts.lexicon import add_up, find_words, mark_words, read_lexicon

LEXICON = {"good": 1.9, "dull": -1.7, ":)": 2.0, "self-assured": 1.5}


def test_words_as_they_stand_or_without_the_marks_around_them():
    text = "A GOOD, self-assured film :) not ''dull''; goods"
    assert [text[start:end] for start, end in find_words(text, LEXICON)] == ["GOOD", "self-assured", ":)", "dull"]
    assert find_words("", LEXICON) == []
    assert add_up(text, LEXICON) == pytest.approx(1.9 + 1.5 + 2.0 - 1.7)
    assert add_up("a film", LEXICON) == 0


def test_all_tokens_of_a_word_are_marked_and_none_beyond_the_length():
    pytest.importorskip("tokenizers")
    preprocess = xl.TextPreprocess(xl.word_tokenizer(["a good self-assured film"]), 8)
    masks = mark_words(["a self-assured film", "good a a a a a a good"], LEXICON, preprocess)
    tokens = preprocess.tokens(preprocess.encode(["a self-assured film"])["input_ids"][0])
    marked = [token for token, is_marked in zip(tokens, masks[0].tolist(), strict=True) if is_marked]
    assert "".join(marked).replace("##", "") == "self-assured"
    assert masks.shape == (2, 8)
    assert masks[1].nonzero().flatten().tolist() == [1]  # [CLS] is before it; the other is cut off


def test_a_lexicon_is_the_first_column_in_lower_case(tmp_path):
    (tmp_path / "vader_lexicon.txt").write_text("Good\t1.9\t0.9\t[1, 2]\n:)\t2\t1\t[2]\n\n")
    assert read_lexicon(tmp_path / "vader_lexicon.txt") == {"good": 1.9, ":)": 2.0}
