"""Tables and promises, from made-up figures."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.store import flatten, grow
from benchmarks.texts.page import write_answers, write_maps, write_transfer
from benchmarks.texts.promises import list_promises
from benchmarks.texts.runs import SEEDS, list_runs, name_run, read_plain

PLAIN = [0.901] * len(SEEDS)


def _make_set(alarms: int) -> dict[str, Any]:
    found = {"texts": 1500, "positive": 0.5, "accuracy": [0.8, 0.9], "routed": 0.89, "drop": 0.005, "cost": 0.6}
    return {
        **found,
        "exit_shares": [0.7, 0.3],
        "orders": 50,
        "alarms": alarms,
        "median": 40 if alarms else None,
        "slowest": None,
    }


def _make_run(condition: str) -> dict[str, Any]:
    gain = 0.2 if condition == "egt" else 0.0
    words = {"texts": 1000, "random": 0.1, "pointing": [0.5 + gain, 0.6], "matched": [0.1, 0.1], "energy": [0.4, 0.4]}
    deletion = {"deletion": [0.2 + gain, 0.3 + gain], "deletion_random": [0.1, 0.1], "deletion_matched": [0.15, 0.1]}
    maps = {
        "attention": words,
        "carried": {**words, "texts": 700},
        "oracle": {"texts": 300, "pointing": [0.55]},
        "beside_oracle": {"texts": 300, "pointing": [0.53, 0.6]},
        "relevance": {**words, "pointing": [0.9]},
        "agreement": {"cc": [0.55], "null": [0.1]},
        "deletion": deletion,
    }
    sets = {"films": _make_set(0), "products": _make_set(50), "editorials": _make_set(50), "tweets": _make_set(50)}
    found = {"texts": 1500, "cost": [0.5, 1.04], "accuracy": [0.8, 0.9], "early": 0.7, "maps": maps, "sets": sets}
    return {**found, "certified": True, "cut": 0.29, "length_95": 47.0}


def _make_runs(seeds: int = len(SEEDS)) -> dict[str, Any]:
    runs = {name_run(condition, seed): _make_run(condition) for condition, seed in list_runs().values() if seed < seeds}
    return {name: grow(flatten(one)) for name, one in runs.items()}


def _make_truth() -> dict[str, Any]:
    truth = {name: {"attention": one["maps"]["deletion"]} for name, one in _make_runs().items()}
    plain = {"tests": {"test": {"accuracy": [PLAIN[0]]}}}
    return truth | {name_run("plain", seed): plain for seed in SEEDS}


def test_a_row_for_each_condition():
    assert set(list_runs()) == set(_make_runs())
    answers = "\n".join(write_answers(_make_runs(), PLAIN))
    assert "cuts 29 % of the 1,500 test sentences; 95 % of them have 47 tokens" in answers
    assert "| plain network | 1 | 90.1 | 90.1, 90.1, 90.1 |  |  |" in answers
    assert "| without EGT | 0.50 / 1.04 | 80.0 / 90.0 |" in answers
    assert "0.60 (0.5), 0.60 (0.5), 0.60 (0.5) | 70, 70, 70 |" in answers
    maps = "\n".join(write_maps(_make_runs(1)))
    assert "a random token of theirs is on one in 10 %. Of 700 the ratings add up" in maps
    assert "on a rated word in 55 %; the largest of exit 0's map, on the same texts, in 53 %." in maps
    assert (
        "| EGT (the defaults) | 0.30 / 0.40 | 0.25 / 0.40 | 0.70 / 0.60 | 0.10 / 0.10 | 0.70 / 0.60 | 0.40 / 0.40 | 0.90 |"
        in maps
    )


def test_other_texts_and_their_alarms():
    text = "\n".join(write_transfer(_make_runs(2)))
    assert "| films (test part) | 1,500 | 50 | 80.0 / 90.0 | 0.5 | 0.60 | 0 of 50, 0 of 50 | none, none |" in text
    assert "| tweets | 1,500 | 50 | 80.0 / 90.0 | 0.5 | 0.60 | 50 of 50, 50 of 50 | 40, 40 |" in text


def test_nothing_yet():
    assert write_maps({}) == write_transfer({}) == []
    assert len(write_answers({}, [])) == 2
    assert not list(list_promises(_make_runs(2), _make_truth()))


def test_promises():
    found = {one.key: one for one in list_promises(_make_runs(), _make_truth())}
    assert found["texts|final"].measured == pytest.approx(-0.1)
    assert found["texts|early"].measured == pytest.approx(0.7)
    assert found["texts|deletion|0"].measured == pytest.approx(0.2)
    assert "final exit" in found["texts|deletion|1"].what
    assert found["texts|pointing|attention"].measured == pytest.approx(0.7)
    assert found["texts|pointing|carried|gain"].measured == pytest.approx(0.2)
    assert all(one.is_kept for one in found.values())
    assert {"texts|drift|products", "texts|drift|tweets", "texts|drift|films"} <= set(found)


def test_plain_networks_are_those_of_truth():
    truth = {name_run("plain", seed): {"tests": {"test": {"accuracy": [0.8 + seed / 10]}}} for seed in (0, 1)}
    assert read_plain(truth) == pytest.approx([0.8, 0.9])


def test_differences_are_of_the_seeds_that_have_both():
    runs = _make_runs()
    del runs[name_run("without", 2)]
    found = {one.key: one for one in list_promises(runs, _make_truth())}
    assert "(2 of 3 seeds)" in found["texts|pointing|attention|gain"].what
    del runs[name_run("without", 1)]
    assert next(one for one in list_promises(runs, _make_truth()) if one.key.endswith("gain")).half is None
    del runs[name_run("egt", 2)]
    assert not list(list_promises(runs, _make_truth()))
