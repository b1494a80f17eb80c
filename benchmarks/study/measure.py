"""One run of the study: trains one condition on one data set with one seed, and measures everything about it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.curves import area_under_curve, upper_hull
from benchmarks.study.conditions import Condition
from benchmarks.study.data import Splits
from benchmarks.study.thresholds import fit_temperatures, follow_common_threshold
from benchmarks.study.train import train
from exitlens.functional import maps as similarity
from exitlens.functional.maps import on_common_grid, pair_samples, skill
from exitlens.model.cutting.cost import count_macs
from exitlens.workflow.faithfulness import faithfulness

LIMITS = (0.0, 0.002, 0.003, 0.005, 0.01)  # accuracy drops, chosen on calibration data
DELTA = 0.1  # of certified policies
SAMPLES = 2000  # for faithfulness
ORACLE = 500  # of these for the occlusion oracle, which deletes every cell by itself
SHARES = tuple(f"{what}_share{of}" for what in ("deletion", "insertion") for of in ("", "_error"))
EVERY_EXIT = ("accuracy", "calibration_error", "brier", "risk_coverage")


def run(condition: Condition, splits: Splits, seed: int, folder: Path, plain: Path | None) -> dict[str, Any]:
    """Trains (or goes on training) and measures one condition."""
    net, seconds = train(condition, splits, seed, folder, plain)
    started = time.perf_counter()
    found = measure(net, splits)
    loss = None if condition.loss is None else {"kind": type(condition.loss).__name__, **asdict(condition.loss)}
    facts = {"letter": condition.letter, "title": condition.title, "head": condition.head, "loss": loss, "seed": seed}
    return {
        **facts,
        "epochs": splits.epochs,
        "train": len(splits.train),
        "train_seconds": round(seconds, 1),
        "measure_seconds": round(time.perf_counter() - started, 1),
        **found,
    }


def validate(condition: Condition, splits: Splits, seed: int, folder: Path) -> dict[str, Any]:
    """For sweeps: trains, and measures accuracy and skill on validation data only."""
    net, _ = train(condition, splits, seed, folder)
    rows: dict[str, Any] = {}
    for name, data in splits.validation.items():
        report = xl.evaluate(xl.collect(net, data, batch_size=250), xl.Policy.never(net.num_exits))
        rows[name] = {
            "accuracy": [row.accuracy for row in report.exits],
            "skill": [row.consistency["cc"]["skill"] for row in report.exits[:-1]],
            "kl": [row.consistency["kl"]["value"] for row in report.exits[:-1]],
        }
    return rows


def measure(net: xl.ExitNet, splits: Splits) -> dict[str, Any]:
    """Everything about a trained network, on its calibration and test data."""
    calibration = xl.collect(net, splits.calibration, batch_size=250)
    never = xl.Policy.never(net.num_exits, temperatures=fit_temperatures(calibration))
    traces = {name: xl.collect(net, data, batch_size=250) for name, data in splits.tests.items()}
    test, first = next(iter(splits.tests.values())), next(iter(traces.values()))
    found: dict[str, Any] = {"cost": net.cost.tolist(), "head_share": net.head_share}
    found["macs"] = count_macs(net, splits.train.first(1).inputs)[0]
    found["tests"] = {name: _evaluate_exits(trace, never) for name, trace in traces.items()}
    if net.num_exits > 1:
        found["collapse"] = score_blind_maps(net, test.first(1000))
        found["policies"] = _choose_policies(calibration, traces)
    found["guess"] = 1 / net.info.num_classes
    curves = {
        ("curve", "area"): _follow_best_policies(calibration, first),
        ("common", "area_common"): follow_common_threshold(first, never.temperatures),
    }
    for (curve, area), points in curves.items():
        found[curve] = {"cost": [cost for cost, _ in points], "accuracy": [accuracy for _, accuracy in points]}
        found[area] = area_under_curve(points, guess=found["guess"], hull=False)
    found["faithfulness"] = measure_faithfulness(net, test.first(SAMPLES))
    return found


def measure_faithfulness(net: xl.ExitNet, data: xl.ImageSet) -> dict[str, Any]:
    """Of every exit's attention; and which share of what the oracle reaches the relevance of its answer reaches."""
    found = faithfulness(net, data, samples=SAMPLES, oracle_samples=ORACLE).to_dict()
    relevance = faithfulness(net, data.first(ORACLE), samples=ORACLE, oracle_samples=ORACLE, of="relevance").to_dict()
    return found | {f"relevance_{name}": relevance[name] for name in SHARES}


def _evaluate_exits(trace: xl.Trace, never: xl.Policy) -> dict[str, Any]:
    report = xl.evaluate(trace, never)
    measures = report.exits[0].consistency
    return {
        "samples": len(trace),
        "overthinking": dict(zip(("wasteful", "destructive"), report.overthinking, strict=True)),
        **{field: [getattr(row, field) for row in report.exits] for field in EVERY_EXIT},
        "consistency": {
            name: {field: [row.consistency[name][field] for row in report.exits] for field in fields}
            for name, fields in measures.items()
        },
    }


def _choose_policies(calibration: xl.Trace, traces: dict[str, xl.Trace]) -> dict[str, Any]:
    """Thresholds for every limit of accuracy, chosen (or certified) on calibration data; what they do on test data."""
    policies = {f"{limit}": xl.calibrate(calibration, max_accuracy_drop=limit) for limit in LIMITS}
    policies |= {
        f"{limit}, certified": xl.calibrate(replace(calibration), max_accuracy_drop=limit, delta=DELTA)  # each asked alone
        for limit in LIMITS
        if limit > 0
    }
    return {
        limit: {
            "thresholds": [None if t == math.inf else t for t in policy.thresholds],
            "temperatures": policy.temperatures,
            **{name: _evaluate(trace, policy) for name, trace in traces.items()},
        }
        for limit, policy in policies.items()
    }


def _evaluate(trace: xl.Trace, policy: xl.Policy) -> dict[str, Any]:
    report = xl.evaluate(trace, policy)
    return {"accuracy": report.accuracy, "cost": report.cost, "divergence": report.divergence, "shares": report.exit_shares}


def _follow_best_policies(calibration: xl.Trace, test: xl.Trace) -> list[tuple[float, float]]:
    """(cost, accuracy) on test data of the policies that calibration data say are the best at their price.

    The corners of the upper hull on calibration data; nothing is chosen among them by how they do on test data.
    """
    if calibration.num_exits == 1:
        return [(point.cost, point.accuracy) for point in xl.anytime(test)]
    policies = {(p.cost.value, p.accuracy.value): p.policy for p in xl.sweep(calibration, most=60) if p.accuracy is not None}
    reports = [xl.evaluate(test, policies[corner]) for corner in upper_hull(policies)]
    return [(report.cost, report.accuracy or 0.0) for report in reports]


def score_blind_maps(net: xl.ExitNet, data: xl.ImageSet) -> dict[str, dict[str, float]]:
    """What maps would score that do not look at the image: uniform ones, and the average of all final maps."""
    with torch.no_grad():
        parts = [net(batch)[-1].attention.float() for batch in data.inputs.split(250)]
    final = torch.cat(parts)
    other = final[pair_samples(len(final), 0)]
    blind = {"uniform": similarity.uniform(final), "centre bias": final.mean(0, keepdim=True).expand_as(final)}
    return {name: _score(final, other, maps) for name, maps in blind.items()}


def _score(final: Tensor, other: Tensor, maps: Tensor) -> dict[str, float]:
    cc, null = (similarity.pearson(*on_common_grid(target, maps)).mean().item() for target in (final, other))
    return {
        "cosine": similarity.cosine(final, maps).mean().item(),
        "cc": cc,
        "cc_null": null,
        "skill": skill(cc, null),
        "kl": similarity.kl(final, maps).mean().item(),
    }
