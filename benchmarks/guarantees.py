"""Checks every promise of docs/guarantees.md; one JSON per part under benchmarks/results/guarantees.

Usage: python benchmarks/guarantees.py [--only PART ...] [--again] [--quick]

Parts: splits-NAME (1,000 calibration/test splits of a real trace), synthetic (2,000 draws with known risk), saving-NAME
(against hindsight, RC-EENN's single threshold and CRC), gate-NAME, drift, time. What is there already is skipped. The networks
are the demo's (runs/demo) and one on garments without backgrounds, trained here on first use (runs/guarantees, some minutes).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import exitlens as xl
from exitlens.data.fashion import CLASSES, load_garments
from exitlens.delivery.demo.training import EGT, WITHOUT
from exitlens.functional.certification import Risk, candidates, choose_tests, ordered_path, walk
from exitlens.functional.pvalues import betting, hoeffding_bentkus, paired
from exitlens.functional.risk import accuracy_drop, disagreement, taken
from exitlens.functional.routing import early_scores, first_firing
from exitlens.functional.scores import fit_temperature
from exitlens.functional.search import quantise
from exitlens.workflow.calibration import PATH_SHARE

RESULTS = Path(__file__).parent / "results" / "guarantees"
RUNS = Path("runs/guarantees")
TRACES = ("scenes-egt", "scenes-baseline", "garments-egt")
DELTAS, LIMITS, CALIBRATION = (0.05, 0.1, 0.2), (0.005, 0.01, 0.02, 0.05), 2000
SETS = {
    "accuracy drop": ("accuracy",),
    "disagreement": ("disagreement",),
    "divergence": ("divergence",),
    "all three": ("accuracy", "disagreement", "divergence"),
}
KINDS = {"accuracy": "ternary", "disagreement": "binary", "divergence": "unit"}


# --- traces ----------------------------------------------------------------------------------------------------------------


def trace_of(name: str) -> xl.Trace:
    """A population of samples that the network was neither trained nor chosen on."""
    path = RUNS / f"{name}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        data, kind = name.split("-")
        net = scene_net(kind) if data == "scenes" else garment_net(kind)
        samples = scenes(0.8) if data == "scenes" else garments()
        torch.save(vars(xl.collect(net, samples, batch_size=256)), path)
    return xl.Trace(**torch.load(path, weights_only=False))


def drifted() -> xl.Trace:
    """The demo's EGT network on scenes with other backgrounds."""
    path = RUNS / "scenes-egt-drifted.pt"
    if not path.exists():
        trace_of("scenes-egt")  # makes the folder
        torch.save(vars(xl.collect(scene_net("egt"), scenes(0.1), batch_size=256)), path)
    return xl.Trace(**torch.load(path, weights_only=False))


def scene_net(kind: str) -> xl.ExitNet:
    return xl.load(f"runs/demo/training/{kind}/bundle")[0]


def unseen() -> tuple[Tensor, Tensor]:
    """5,000 garments of the calibration and test splits."""
    parts = [load_garments(split) for split in ("calibration", "test")]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def scenes(agreement: float) -> xl.ImageSet:
    """Each of them twice, in two scenes."""
    images, labels = unseen()
    parts = [xl.make_scenes(images, labels, CLASSES, background_agreement=agreement, seed=seed) for seed in (91, 92)]
    return xl.ImageSet(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]), CLASSES)


def garments() -> xl.ImageSet:
    images, labels = unseen()
    return xl.ImageSet(images[:, None], labels, CLASSES)


def garment_net(kind: str) -> xl.ExitNet:
    """Our small network on the garments themselves, four epochs."""
    folder = RUNS / f"net-{kind}"
    if not (folder / "manifest.json").exists():
        torch.manual_seed(0)
        train, validation = xl.load_fashion("train"), xl.load_fashion("validation")
        plain = xl.build_backbone("small", 10, 1)
        net = xl.attach(plain, ["layer1", "layer2", "layer3"], 10, torch.zeros(1, 1, 28, 28))
        net.describe(source="small", classes=CLASSES, preprocess=xl.Preprocess((28, 28), (0.5,), (0.25,)))
        loss = EGT if kind == "egt" else WITHOUT
        xl.fit(net, train, validation, loss=loss, epochs=4, out_dir=RUNS / f"fit-{kind}", resume=True)
        xl.save(net, None, folder)
    return xl.load(folder)[0]


# --- certificates, without the parts of calibrate that do not matter here ------------------------------------------------------


_VALUES: dict[int, dict[str, Tensor]] = {}  # of the traces that live as long as the process


def risks_of(trace: xl.Trace, names: Sequence[str], limit: float) -> list[Risk]:
    if id(trace) not in _VALUES:
        values = {"accuracy": accuracy_drop(trace), "disagreement": disagreement(trace), "divergence": trace.divergence}
        _VALUES[id(trace)] = values
    return [Risk(name, _VALUES[id(trace)][name], limit, KINDS[name]) for name in names]  # type: ignore[arg-type]


def subset(trace: xl.Trace, rows: Tensor) -> xl.Trace:
    labels = None if trace.labels is None else trace.labels[rows]
    clues = None if trace.clues is None else trace.clues[rows]
    return xl.Trace(trace.logits[rows], labels, trace.divergence[rows], trace.cost, clues=clues)


def scaled_scores(trace: xl.Trace, fit: Tensor) -> Tensor:
    """Scores under temperatures fitted on these rows."""
    assert trace.labels is not None
    temperatures = tuple(fit_temperature(trace.logits[fit, k], trace.labels[fit]) for k in range(trace.num_exits))
    return early_scores(trace, xl.Policy.never(trace.num_exits, temperatures=temperatures))


def certify(
    scores: Tensor, trace: xl.Trace, first: Tensor, second: Tensor, names: Sequence[str], further: int = 0
) -> dict[tuple[float, float], tuple[float, ...]]:
    """Thresholds by limit and delta, as calibrate finds them; ``further``: so many steps beyond what the walk allows."""
    levels, found = quantise(scores[first]), {}
    mine = [r.at(first) for r in risks_of(trace, names, LIMITS[1])]
    pool, applied = candidates(levels.index, mine, trace.cost), levels.apply(scores[second])
    for limit in LIMITS:
        theirs = [replace(r, limit=limit) for r in mine]
        ours = [r.at(second) for r in risks_of(trace, names, limit)]
        path = ordered_path(pool, [limit] * len(names))
        for delta in DELTAS:
            tests = choose_tests(levels.index, theirs, path, len(second), delta)
            cuts = walk(applied, ours, path, tests, delta).cuts
            if further:
                at = [one.cuts for one in path].index(cuts) if cuts is not None else -1
                cuts = path[min(at + further, len(path) - 1)].cuts if path else None
            never = (math.inf,) * scores.shape[1]
            found[limit, delta] = never if cuts is None else levels.thresholds(cuts)
    return found


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    cut = max(1, round(PATH_SHARE * len(rows)))
    return rows[:cut], rows[cut:]


# --- parts -----------------------------------------------------------------------------------------------------------------


def one_split(name: str, seed: int) -> dict[str, list[list[float]]]:
    """For each set of risks, limit and delta: whether a risk is above its limit on the test samples, and the cost there."""
    trace = _cached(name)
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    known, test = order[:CALIBRATION], order[CALIBRATION:]
    first, second = halves(known)
    scores = scaled_scores(trace, first)
    return {label: _outcomes(scores, trace, first, second, test, names) for label, names in SETS.items()}


def _outcomes(
    scores: Tensor,
    trace: xl.Trace,
    first: Tensor,
    second: Tensor,
    test: Tensor,
    names: Sequence[str],
    further: int = 0,
) -> list[list[float]]:
    rows = []
    for (limit, delta), thresholds in certify(scores, trace, first, second, names, further).items():
        exits = first_firing(scores[test], thresholds)
        means = [r.at(test).losses(exits).double().mean().item() for r in risks_of(trace, names, limit)]
        rows.append(
            [limit, delta, float(any(mean > limit + 1e-9 for mean in means)), trace.cost[exits].double().mean().item()]
        )
    return rows


_TRACES: dict[str, xl.Trace] = {}


def _cached(name: str) -> xl.Trace:
    if name not in _TRACES:
        torch.set_num_threads(1)
        _TRACES[name] = population(int(name.split("-")[1])) if name.startswith("synthetic") else trace_of(name)
    return _TRACES[name]


def summarised(outcomes: Sequence[dict[str, list[list[float]]]]) -> dict[str, list[dict[str, float]]]:
    """Share of violations and mean cost, by set of risks, limit and delta."""
    found = {}
    for label in dict.fromkeys(label for one in outcomes for label in one):
        table = np.array([one[label] for one in outcomes if label in one])  # (S, combinations, 4)
        found[label] = [
            {
                "limit": float(table[0, i, 0]),
                "delta": float(table[0, i, 1]),
                "violations": float(table[:, i, 2].mean()),
                "cost": round(float(table[:, i, 3].mean()), 4),
                "never": float((table[:, i, 3] > 0.999).mean()),
                "draws": len(table),
            }
            for i in range(table.shape[1])
        ]
    return found


def splits(name: str, quick: bool) -> dict[str, Any]:
    count = 8 if quick else 1000
    trace_of(name)  # trained and collected once, before the processes start
    return {"splits": count, "calibration": CALIBRATION, "samples": len(trace_of(name))} | {
        "sets": summarised(_spread(partial(one_split, name), range(count)))
    }


def _spread(work: Callable[[int], Any], seeds: Sequence[int]) -> list[Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(min(cores, 8)) as pool:
        return pool.map(work, seeds, chunksize=4)


def population(kind: int, count: int = 20_000) -> xl.Trace:
    """Synthetic samples that stand for a distribution: draws from them, with replacement, have exactly known risks.

    Kind 0: scores that tell right from wrong, fine. Kind 1: five different scores an exit, so that one step too far
    along the path is a large step. Kind 2: early exits that are as good as the final one where they are sure.
    """
    rng = torch.Generator().manual_seed(100 + kind)
    sure = torch.rand(count, 3, generator=rng)
    sure[:, 2] = 1
    if kind == 1:
        sure[:, :2] = (sure[:, :2] * 5).floor() / 5 + 0.1
    final_wrong = torch.rand(count, generator=rng) < 0.1
    rate = (1 - sure) * (0.3 if kind == 2 else 0.5)
    labels = torch.zeros(count, dtype=torch.long)
    wrong = torch.where(
        torch.rand(count, 3, generator=rng) < rate, torch.rand(count, 3, generator=rng) < 0.6, final_wrong[:, None]
    )
    wrong[:, 2] = final_wrong
    logits = torch.zeros(count, 3, 4)
    logits.scatter_(2, wrong.long()[..., None], (2 + 6 * sure)[..., None])
    divergence = (torch.rand(count, 3, generator=rng) * (1 - sure) * torch.tensor([0.6, 0.3, 0.0])).clamp(0, 1)
    return xl.Trace(logits, labels, divergence, torch.tensor([0.2, 0.5, 1.0]))


def one_draw(broken: bool, seed: int) -> dict[str, list[list[float]]]:
    """As :func:`one_split`, on 1,000 samples drawn with replacement from one of three populations, whose risk counts."""
    kind = seed % 3
    trace = _cached(f"synthetic-{kind}")
    rows = torch.randint(len(trace), (1000,), generator=torch.Generator().manual_seed(seed))
    first, second = halves(rows)
    scores, everyone = early_scores(trace, xl.Policy.never(3)), torch.arange(len(trace))
    return {
        f"population {kind}, {label}": _outcomes(scores, trace, first, second, everyone, names, further=int(broken))
        for label, names in SETS.items()
    }


def synthetic(quick: bool) -> dict[str, Any]:
    count = 6 if quick else 2000
    sound = summarised(_spread(partial(one_draw, False), range(count)))
    broken = summarised(_spread(partial(one_draw, True), range(6 if quick else 300)))
    return {"draws": count, "samples": 1000, "sets": sound, "broken": {"draws": 300, "sets": broken}}


# --- saving ------------------------------------------------------------------------------------------------------------------


def one_saving(name: str, seed: int) -> dict[str, tuple[float, float]]:
    """Cost on the test samples at delta 0.1, limit 1 %, and whether the limit is kept there: ours and the others."""
    trace, limit, delta = _cached(name), 0.01, 0.1
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    known, test = subset(trace, order[:CALIBRATION]), subset(trace, order[CALIBRATION:])

    drop = accuracy_drop(test)

    def cost(policy: xl.Policy) -> tuple[float, float]:
        exits = xl.route(test, policy)
        broken = taken(drop, exits).double().mean().item() > limit + 1e-9
        return test.cost[exits].double().mean().item(), float(broken)

    ours = xl.calibrate(known, max_accuracy_drop=limit, delta=delta, seed=seed)
    hindsight = xl.calibrate(test, max_accuracy_drop=limit)
    return {"ours": cost(ours), "hindsight": cost(hindsight)} | {
        label: cost(policy) for label, policy in single_thresholds(known, limit, delta).items()
    }


def single_thresholds(trace: xl.Trace, limit: float, delta: float) -> dict[str, xl.Policy]:
    """One threshold for all exits (RC-EENN, arXiv 2405.20915): by its upper bound (UCB) and in expectation (CRC)."""
    scores, losses = early_scores(trace, xl.Policy.never(trace.num_exits)), accuracy_drop(trace)
    grid = torch.linspace(1, 0, 201, dtype=torch.float64).tolist()
    rows = [taken(losses, first_firing(scores, (t,) * scores.shape[1])).double().numpy() for t in grid]
    count, found = len(trace), {}

    def best(accepts: Callable[[np.ndarray], bool]) -> xl.Policy:
        chosen = math.inf
        for threshold, values in zip(grid, rows, strict=True):
            if not accepts(values):
                break
            chosen = threshold
        return xl.Policy((chosen,) * scores.shape[1])

    half = (1 + limit) / 2
    found["single threshold, UCB (betting)"] = best(lambda v: float(betting((v[None] + 1) / 2, half, delta)[0]) <= delta)
    found["single threshold, LTT (Hoeffding-Bentkus)"] = best(
        lambda v: float(hoeffding_bentkus(np.array([(v.mean() + 1) / 2]), count, half)[0]) <= delta
    )
    found["single threshold, LTT (our paired test)"] = best(
        lambda v: float(paired(np.array([(v > 0).sum()]), np.array([(v < 0).sum()]), count, limit)[0]) <= delta
    )
    found["single threshold, CRC (in expectation only)"] = best(
        lambda v: count / (count + 1) * v.mean() + 1 / (count + 1) <= limit
    )
    return found


def saving(name: str, quick: bool) -> dict[str, Any]:
    count = 6 if quick else 200
    trace_of(name)
    table = _spread(partial(one_saving, name), range(count))
    costs = {label: float(np.mean([row[label][0] for row in table])) for label in table[0]}
    broken = {label: float(np.mean([row[label][1] for row in table])) for label in table[0]}
    return {
        "splits": count,
        "costs": costs,
        "broken": broken,
        "share_of_hindsight": {k: (1 - c) / (1 - costs["hindsight"]) for k, c in costs.items()},
    }


# --- gate, drift, time -------------------------------------------------------------------------------------------------------


def one_gate(name: str, seed: int) -> list[list[float]]:
    """At limits on divergence: cost and divergence on other samples, without and with the gate."""
    trace = _cached(name)
    order = torch.randperm(len(trace), generator=torch.Generator().manual_seed(seed))
    known, test = subset(trace, order[: len(order) // 2]), subset(trace, order[len(order) // 2 :])
    rows = []
    for share in (0.2, 0.4, 0.6, 0.8):
        limit = share * float(known.divergence[:, 0].mean())
        policies = [xl.calibrate(known, max_divergence=limit, max_accuracy_drop=0.02, gate=gate) for gate in (False, True)]
        values = []
        for policy in policies:
            report = xl.evaluate(test, policy)
            values += [report.cost, report.divergence]
        rows.append([limit, *values, float(policies[1].gate is not None)])
    return rows


def gate(name: str, quick: bool) -> dict[str, Any]:
    trace_of(name)
    table = np.array(_spread(partial(one_gate, name), range(4 if quick else 20)))
    means, errors = table.mean(0), table.std(0, ddof=1) / math.sqrt(len(table))
    keys = ("limit", "cost", "divergence", "cost_gated", "divergence_gated", "used")
    rows = [dict(zip(keys, map(float, row), strict=True)) for row in means]
    for row, error, draws in zip(rows, errors, table.transpose(1, 0, 2), strict=True):
        change = draws[:, 3] / draws[:, 1] - 1
        row["cost_change"] = float(change.mean())
        row["cost_change_error"] = float(change.std(ddof=1) / math.sqrt(len(change)))
        row["divergence_error"] = float(error[4])
    return {"splits": len(table), "rows": rows}


def one_stream(changes_at: int | None, seed: int) -> int | None:
    """Samples from the change (or the start) until the alarm; ``None``: no alarm in 10,000 samples (500 after a change)."""
    before, after = _cached("scenes-egt"), drifted()
    rng = torch.Generator().manual_seed(seed)
    known = subset(before, torch.randint(len(before), (CALIBRATION,), generator=rng))
    policy = xl.calibrate(known, max_accuracy_drop=0.01, delta=0.1, seed=seed)
    watch = policy.monitor(seed=seed)

    def stream(trace: xl.Trace, count: int) -> xl.Drift:
        rows = torch.randint(len(trace), (count,), generator=rng)
        some = subset(trace, rows)
        exits = xl.route(some, policy)
        scores = torch.stack(
            [(some.logits[:, k] / policy.temperatures[k]).softmax(1).amax(1) for k in range(some.num_exits)], 1
        )
        p = some.logits[:, 0].softmax(1)
        return watch.update(xl.Prediction(p.argmax(1), exits, taken(scores, exits), p))

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xl.DriftWarning)
        if changes_at is None:
            return stream(before, 10_000).since
        if changes_at:
            stream(before, changes_at)
        early = watch.state().since
        since = stream(after, 500).since
    return None if since is None or early is not None else since - changes_at


def drift(quick: bool) -> dict[str, Any]:
    runs = range(4 if quick else 200)
    trace_of("scenes-egt")
    drifted()
    found: dict[str, Any] = {"runs": len(runs)}
    for key, at in (("at once", 0), ("after 1,000", 1000), ("after 5,000", 5000)):
        delays = _spread(partial(one_stream, at), runs)
        known = sorted(d for d in delays if d is not None)
        found[key] = {"warned": len(known) / len(runs), "median_delay": known[len(known) // 2] if known else None}
    alarms = _spread(partial(one_stream, None), [1000 + seed for seed in runs])
    found["unchanged, 10,000 samples"] = {"alarms": sum(a is not None for a in alarms) / len(runs)}
    return found


def timed(quick: bool) -> dict[str, Any]:
    """50,000 samples, 4 exits, three risks, one core."""
    torch.set_num_threads(1)
    rng, count = torch.Generator().manual_seed(0), 50_000
    labels = torch.randint(0, 10, (count,), generator=rng)
    logits = torch.randn(count, 4, 10, generator=rng)
    logits += torch.tensor([2.0, 3.0, 4.0, 5.0])[None, :, None] * torch.nn.functional.one_hot(labels, 10)[:, None]
    divergence = torch.rand(count, 4, generator=rng) * torch.tensor([0.5, 0.3, 0.1, 0.0])
    trace = xl.Trace(logits, labels, divergence, torch.tensor([0.1, 0.3, 0.6, 1.0]))
    limits = {"max_accuracy_drop": 0.01, "max_disagreement": 0.1, "max_divergence": 0.1}
    seconds = []
    for seed in range(2 if quick else 7):
        started = time.perf_counter()
        policy = xl.calibrate(trace, **limits, delta=0.1, seed=seed)  # type: ignore[arg-type]
        seconds.append(round(time.perf_counter() - started, 3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "samples": count,
        "exits": 4,
        "seconds": seconds,
        "peak_mb_of_the_process": round(peak),
        "cost": policy.chosen_by["cost"],
    }


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "time": timed,
    **{f"saving-{name}": partial(saving, name) for name in TRACES},
    "drift": drift,
    **{f"splits-{name}": partial(splits, name) for name in TRACES},
    "synthetic": synthetic,
    **{f"gate-{name}": partial(gate, name) for name in TRACES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few draws, nothing is written")
    given = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for key in given.only or PARTS:
        path = RESULTS / f"{key}.json"
        if path.exists() and not (given.again or given.quick):
            print(f"{key}: there already")
            continue
        started = time.perf_counter()
        with torch.inference_mode(False):
            found = PARTS[key](given.quick)
        found["seconds_taken"] = round(time.perf_counter() - started)
        print(f"{key}: {found['seconds_taken']} s", flush=True)
        if given.quick:
            print(json.dumps(found)[:600])
            continue
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(found, indent=1) + "\n")
        temporary.rename(path)


if __name__ == "__main__":
    main()
