"""One network of a tiny task goes through everything."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

import exitlens as xl
from benchmarks.store import flatten
from benchmarks.texts import measure
from benchmarks.texts.data import OTHERS, make_set
from benchmarks.truth.tasks import Task
from tests.benchmarks.texts.made import make_sentences
from tests.texts import make_bert

CLASSES = ("negative", "positive")


@pytest.mark.slow
def test_a_run(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    sentences = make_sentences(60)
    preprocess = xl.TextPreprocess(xl.word_tokenizer([one.text for one in sentences]), 12)
    data = make_set(sentences, CLASSES, preprocess)
    build = partial(make_bert, num_labels=2, vocab_size=preprocess.vocabulary_size)
    task = Task(data, data, {"test": data}, build, 2, {"epochs": 1, "batch_size": 20})
    monkeypatch.setattr(measure, "TRUTH", measure.TRUTH.__class__(tmp_path / "x.csv", tmp_path))
    monkeypatch.setattr(measure, "load_films", lambda split, preprocess: data)
    monkeypatch.setattr(measure, "load_others", lambda name, classes, preprocess: data.subset(torch.arange(30)))
    monkeypatch.setattr(measure, "load_lexicon", lambda: {"good": 1.9, "bad": -2.5})
    found = measure.measure_network(task, "egt", 0)
    assert list(flatten(json.loads(json.dumps(found))))
    assert len(found["accuracy"]) == 3
    assert set(found["sets"]) == {"films", *OTHERS}
    assert found["maps"]["attention"]["texts"] == found["maps"]["carried"]["texts"] == 60
    assert 0 <= found["early"] <= 1
