"""The page says what the recipes are, and every trial has its arguments."""

import pytest

import exitlens as xl
from benchmarks.markdown import ROOT
from benchmarks.recipes import TRIALS, TRIED, list_table, list_values, load_reviews, split_name
from exitlens.types.settings import TrainingSettings


def test_the_page_has_the_recipes_as_they_are():
    page = (ROOT / "docs" / "guides" / "pretrained.md").read_text()
    assert "\n".join(list_values()) in page
    for kind in ("pictures", "reviews"):
        assert "\n".join(list_table(kind)) in page


def test_trials_are_known_by_name():
    assert {split_name(name)[1] for name in TRIED.read()} <= set(TRIALS)
    for trial in TRIALS.values():
        assert TrainingSettings(**trial.how).learning_rate == trial.how["learning_rate"]


def test_trials_on_texts_take_the_first_sentences_of_a_split(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"film {i},{'ab'[i % 2]}\n" for i in range(6)))
    data = load_reviews(tmp_path, "train", xl.TextPreprocess(xl.word_tokenizer(["film"]), 8), 4)
    assert data.texts == tuple(f"film {i}" for i in range(4))
    assert data.labels.tolist() == [0, 1, 0, 1]
