"""One network: trains it as benchmarks.truth does, and measures it on the films' test part and on other texts."""

from __future__ import annotations

import time
from typing import Any

import torch

import exitlens as xl
from benchmarks.texts.data import OTHERS, load_films, load_lexicon, load_others, measure_lengths
from benchmarks.texts.lexicon import add_up, mark_words
from benchmarks.texts.maps import (
    BATCH_SIZE,
    agree_by_length,
    collect_maps,
    delete_tokens,
    find_relevance,
    match_lengths,
    occlude_tokens,
    point_at_words,
)
from benchmarks.texts.runs import name_run
from benchmarks.texts.transfer import certify, measure_set
from benchmarks.truth.conditions import TITLES
from benchmarks.truth.measure import train
from benchmarks.truth.runs import TRUTH
from benchmarks.truth.tasks import Task
from exitlens.functional.attribution import pointing_game

SAMPLES, ORACLE, OTHER_SAMPLES = 400, 300, 1000  # for deletion and relevance; for the oracle; of each other set
HALF = 0.52  # of the plain network's cost: half of it, and the heads on the way


def measure_network(task: Task, condition: str, seed: int) -> dict[str, Any]:
    """Trains a network, or goes on training it, and measures it."""
    name = name_run(condition, seed)
    net, done = train(task, condition, seed, TRUTH.runs / name)
    started = time.perf_counter()
    test = next(iter(task.tests.values()))
    assert isinstance(test, xl.TextSet)
    parts = {"films": test, "calibration": load_films("calibration", test.preprocess)}
    parts |= {name: load_others(name, test.classes, test.preprocess).first(OTHER_SAMPLES) for name in OTHERS}
    traces = {name: xl.collect(net, data, batch_size=BATCH_SIZE) for name, data in parts.items()}
    found: dict[str, Any] = {"title": TITLES[condition], "epochs": len(done.history), "train_seconds": round(done.seconds)}
    found |= measure_lengths(test.texts, test.preprocess)
    found |= {"validation": done.history[-1]["accuracy"], "cost": net.cost.tolist(), "texts": len(test)}
    never = xl.Policy.never(net.num_exits)
    found["accuracy"] = [row.accuracy for row in xl.evaluate(traces["films"], never).exits]
    policy = certify(traces.pop("calibration"))
    found["certified"] = policy.thresholds != never.thresholds
    found["maps"] = measure_maps(net, test)
    found["sets"] = {name: measure_set(policy, trace) for name, trace in traces.items()}
    shares = zip(found["cost"], found["sets"]["films"]["exit_shares"], strict=True)
    found["early"] = sum(share for cost, share in shares if cost <= HALF)
    return found | {"measure_seconds": round(time.perf_counter() - started)}


def measure_maps(net: xl.ExitNet, test: xl.TextSet) -> dict[str, Any]:
    """Words that maps lie on, agreement against texts of the same length, and what deletion does."""
    (answers, attention), lexicon = collect_maps(net, test), load_lexicon()
    masks = mark_words(test.texts, lexicon, test.preprocess)
    signs = 2 * (test.labels == test.classes.index("positive")).int() - 1
    carried = signs * torch.tensor([add_up(text, lexicon) for text in test.texts]) > 0
    locations = torch.stack([one != 0 for one in attention]).any(0)
    partner = match_lengths(locations.sum(1))
    found: dict[str, Any] = {
        "attention": point_at_words(attention, masks, locations, partner),
        "carried": point_at_words(attention, masks & carried[:, None], locations, partner),
        "agreement": agree_by_length(attention, partner),
    }
    rows = (masks & locations).any(1).nonzero().squeeze(1)[:ORACLE]  # texts are in random order
    judged = {"oracle": [occlude_tokens(net, test.subset(rows))], "beside_oracle": [one[rows] for one in attention]}
    for name, maps in judged.items():
        found[name] = {"texts": len(rows), "pointing": [pointing_game(one, masks[rows]).mean().item() for one in maps]}
    few = test.first(SAMPLES)
    locations, partner = locations[:SAMPLES], match_lengths(locations[:SAMPLES].sum(1))
    found["relevance"] = point_at_words([find_relevance(net, few)], masks[:SAMPLES], locations, partner)
    how = [one[:SAMPLES] for one in answers], [one[:SAMPLES] for one in attention]
    return found | {"deletion": delete_tokens(net, few, *how, partner)}
