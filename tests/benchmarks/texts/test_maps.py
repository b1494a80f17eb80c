"""Maps of texts, by hand and on a tiny network."""

from __future__ import annotations

import pytest
import torch

import exitlens as xl
from benchmarks.texts.maps import (
    agree_by_length,
    collect_maps,
    delete_tokens,
    find_relevance,
    match_lengths,
    occlude_tokens,
    point_at_words,
)
from exitlens.functional.maps import as_distribution
from tests.texts import make_text_net


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
    found = point_at_words([maps], masks, locations, torch.tensor([1, 0, -1]))
    assert (found["texts"], found["matched_texts"]) == (2, 2)  # the third has no such word
    assert found["pointing"] == [0.5]
    assert found["matched"] == [0.5]  # the first would point at 2, the second at 1
    assert found["energy"][0] == pytest.approx((0.7 + 0.1) / 2)
    assert found["random"] == pytest.approx(1 / 3)


def test_agreement_is_that_with_the_final_map():
    maps = torch.rand(4, 6)
    found = agree_by_length([maps, maps], torch.tensor([1, 0, 3, 2]))
    assert found["cc"][0] == pytest.approx(1, abs=1e-5)
    assert found["null"][0] < 1


@pytest.fixture
def data():
    pytest.importorskip("transformers")
    words = [f"w{i}" for i in range(30)]
    preprocess = xl.TextPreprocess(xl.word_tokenizer(words), 10)
    texts = [" ".join(words[i : i + 2 + i % 3]) for i in range(12)]
    return xl.TextSet(texts, torch.arange(12) % 3, ("a", "b", "c"), preprocess)


def test_maps_and_deletion_of_a_network(data):
    net = make_text_net()
    answers, attention = collect_maps(net, data)
    assert len(answers) == len(attention) == 3
    assert all(one.shape == (12, 10) and torch.allclose(one.sum(1), torch.ones(12)) for one in attention)
    relevance = find_relevance(net, data)
    assert torch.equal(relevance, as_distribution(xl.compute_relevance(net, data.inputs).clamp_min(0)))
    partner = match_lengths(data.attention_mask.sum(1))
    assert bool((partner >= 0).all())
    found = delete_tokens(net, data, answers, attention, partner)
    checks = xl.faithfulness(net, data, oracle_samples=0)
    assert found["deletion"] == pytest.approx(checks.deletion, abs=1e-5)
    assert found["deletion_random"] == pytest.approx(checks.deletion_random, abs=1e-5)
    itself = delete_tokens(net, data, answers, attention, torch.arange(12))
    assert itself["deletion_matched"] == itself["deletion"]


def test_each_token_alone_is_masked_out(data):
    net = make_text_net()
    drops = occlude_tokens(net, data)
    assert not bool(drops[data.attention_mask == 0].any())
    assert not bool(drops[:, 0].any())
    inputs = {name: one[3:4].clone() for name, one in data.inputs.items()}
    before = net(inputs)[0].logits.softmax(1)
    inputs["attention_mask"][:, 2] = 0
    after = net(inputs)[0].logits.softmax(1)
    answer = int(before.argmax())
    assert drops[3, 2].item() == pytest.approx((before - after)[0, answer].item(), abs=1e-6)
