"""The drift watch on made answers."""

from __future__ import annotations

import torch

import exitlens as xl
from benchmarks.guarantees.drift import answer_on_paper
from benchmarks.texts.transfer import certify, watch


def _make_trace(count: int, sure: float, seed: int) -> xl.Trace:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=rng)
    logits = torch.randn(count, 2, 2, generator=rng)
    logits[torch.arange(count), :, labels] += sure
    return xl.Trace(logits, labels, torch.zeros(count, 2), torch.tensor([0.3, 1.0]))


def test_unsure_answers_raise_an_alarm_soon_and_the_same_kind_none():
    policy = certify(_make_trace(1500, 4.0, 0))
    other = watch(policy, answer_on_paper(_make_trace(600, 0.5, 1), policy), orders=5)
    assert other["alarms"] == other["orders"] == 5
    assert 0 < other["median"] <= other["slowest"] < 200
    same = watch(policy, answer_on_paper(_make_trace(600, 4.0, 2), policy), orders=5)
    assert same["alarms"] <= 1  # of five orders of the same texts
    assert same["slowest"] is None
    assert same["confidence"] > other["confidence"]
