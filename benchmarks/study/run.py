"""One run of the study: train one condition on one data set with one seed, and measure everything about it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.study.conditions import Condition
from benchmarks.study.data import Splits
from exitlens.delivery.bundle import load, save
from exitlens.functional import similarity
from exitlens.functional.losses import EGTLoss
from exitlens.functional.maps import on_common_grid
from exitlens.functional.quality import area_under_curve, upper_hull
from exitlens.functional.scores import fit_temperature
from exitlens.functional.similarity import skill
from exitlens.model.attaching import attach
from exitlens.model.backbones import SmallResNet
from exitlens.model.cost import count_macs
from exitlens.workflow.collection import pairing
from exitlens.workflow.faithfulness import faithfulness

LIMITS = (0.0, 0.002, 0.003, 0.005, 0.01)  # accuracy drops, chosen on calibration data
DELTA = 0.1  # of certified policies
SAMPLES = 2000  # for faithfulness
LEVELS = (0.0, *(1 - 10 ** (-i / 16) for i in range(1, 81)), math.inf)  # of common thresholds
WIDTHS = (48, 96, 128, 128)


def network(condition: Condition, splits: Splits, seed: int) -> xl.ExitNet:
    """Untrained. Every condition of a seed has the same backbone weights at the start (but for another width)."""
    torch.manual_seed(seed)
    train = splits.train
    plain = backbone_of(splits, condition.width)
    at = [] if condition.loss is None else list(plain.groups[:-1])
    final = "keep" if condition.loss is None or condition.frozen else "head"
    net = attach(plain, at, len(train.classes), train.first(1).inputs, final=final, head=condition.head)
    net.describe(classes=train.classes, preprocess=train.preprocess)
    return net


def trained(
    condition: Condition,
    splits: Splits,
    seed: int,
    folder: Path,
    plain: Path | None = None,
    prepare: Callable[[xl.ExitNet], None] | None = None,
) -> tuple[xl.ExitNet, float]:
    """The network after training (kept in ``folder``), and the seconds that took.

    Args:
        plain: bundle of the plain backbone of this seed, for heads on it while it is frozen.
        prepare: changes the untrained network.
    """
    net = network(condition, splits, seed)
    if prepare is not None:
        prepare(net)
    if condition.frozen:
        assert plain is not None
        _take_backbone(net, load(plain, backbone=backbone_of(splits))[0])
    done = xl.fit(
        net,
        splits.train,
        next(iter(splits.validation.values())).first(64),  # for the log; nothing is chosen by it
        loss=condition.loss or EGTLoss(weight=0.0),
        epochs=splits.epochs,
        batch_size=splits.batch_size,
        out_dir=folder / "fit",
        seed=seed,
        freeze_backbone=condition.frozen,
        resume=True,
        progress=False,
    )
    save(net, None, folder / "bundle", overwrite=True)
    return net, done.seconds


def backbone_of(splits: Splits, width: float = 1.0) -> SmallResNet:
    """The backbone of every condition, untrained."""
    widths = [8 * round(w * width / 8) for w in WIDTHS]
    return SmallResNet(
        len(splits.train.classes), splits.train.images.shape[1], stem=8 * round(32 * width / 8), widths=widths
    )


def _take_backbone(net: xl.ExitNet, plain: xl.ExitNet) -> None:
    """The plain network's weights by their names in the backbone: stages are cut elsewhere, names below ``body.`` agree."""
    known = {name.split("body.", 1)[1]: value for name, value in plain.state_dict().items() if "body." in name}
    state = net.state_dict()
    for name, value in state.items():
        if "body." in name:
            value.copy_(known[name.split("body.", 1)[1]])


def measured(net: xl.ExitNet, splits: Splits) -> dict[str, Any]:
    """Everything about a trained network, on its calibration and test data."""
    calibration = xl.collect(net, splits.calibration, batch_size=250)
    never = xl.Policy.never(net.num_exits, temperatures=temperatures_of(calibration))
    example = splits.train.first(1).inputs
    macs = count_macs(net, example)[0]
    found: dict[str, Any] = {"cost": net.cost.tolist(), "head_share": net.head_share, "macs": macs, "tests": {}}
    traces = {name: xl.collect(net, data, batch_size=250) for name, data in splits.tests.items()}
    for name, trace in traces.items():
        report = xl.evaluate(trace, never)
        found["tests"][name] = {
            "samples": len(trace),
            "overthinking": report.overthinking,
            **{
                field: [getattr(row, field) for row in report.exits]
                for field in ("accuracy", "calibration_error", "brier", "risk_coverage")
            },
            "consistency": {m: [row.consistency[m] for row in report.exits] for m in report.exits[0].consistency},
        }
    if net.num_exits > 1:
        found["collapse"] = collapse(net, next(iter(splits.tests.values())).first(1000))
        found["policies"] = _policies(calibration, traces)
    found["curve"] = _curve(calibration, next(iter(traces.values())))
    found["common"] = common_curve(next(iter(traces.values())), never.temperatures)
    found["guess"] = 1 / net.info.num_classes
    found["area_common"] = area_under_curve(found["common"], guess=found["guess"], hull=False)
    found["area"] = area_under_curve(found["curve"], guess=found["guess"], hull=False)
    found["faithfulness"] = faithfulness(net, next(iter(splits.tests.values())).first(SAMPLES), samples=SAMPLES).to_dict()
    return found


def temperatures_of(trace: xl.Trace) -> tuple[float, ...]:
    labels = trace.require_labels("study")
    return tuple(fit_temperature(trace.logits[:, k], labels) for k in range(trace.num_exits))


def _policies(calibration: xl.Trace, traces: dict[str, xl.Trace]) -> dict[str, Any]:
    """Thresholds for every limit of accuracy, chosen (or certified) on calibration data; what they do on test data."""
    policies = {f"{limit}": xl.calibrate(calibration, max_accuracy_drop=limit) for limit in LIMITS}
    policies |= {
        f"{limit}, certified": xl.calibrate(calibration, max_accuracy_drop=limit, delta=DELTA)
        for limit in LIMITS
        if limit > 0
    }
    return {
        limit: {
            "thresholds": [None if t == math.inf else t for t in policy.thresholds],
            "temperatures": policy.temperatures,
            **{name: _routed(trace, policy) for name, trace in traces.items()},
        }
        for limit, policy in policies.items()
    }


def _routed(trace: xl.Trace, policy: xl.Policy) -> dict[str, Any]:
    report = xl.evaluate(trace, policy)
    return {"accuracy": report.accuracy, "cost": report.cost, "divergence": report.divergence, "shares": report.exit_shares}


def _curve(calibration: xl.Trace, test: xl.Trace) -> list[tuple[float, float]]:
    """(cost, accuracy) on test data of the policies that calibration data say are the best at their price.

    The corners of the upper hull on calibration data; nothing is chosen among them by how they do on test data.
    """
    if calibration.num_exits == 1:
        return [(point.cost, point.accuracy) for point in xl.anytime(test)]
    policies = {(p.cost.value, p.accuracy.value): p.policy for p in xl.sweep(calibration, most=60) if p.accuracy is not None}
    reports = [xl.evaluate(test, policies[corner]) for corner in upper_hull(policies)]
    return [(report.cost, report.accuracy or 0.0) for report in reports]


def common_curve(test: xl.Trace, temperatures: Sequence[float]) -> list[tuple[float, float]]:
    """(cost, accuracy) on test data as one threshold for all exits goes from 0 to never: nothing is chosen."""
    if test.num_exits == 1:
        return [(point.cost, point.accuracy) for point in xl.anytime(test)]
    policies = [common_policy(level, test.num_exits, temperatures) for level in LEVELS]
    return [(routed_cost(test, policy), _routed_accuracy(test, policy)) for policy in policies]


def common_policy(level: float, num_exits: int, temperatures: Sequence[float]) -> xl.Policy:
    return xl.Policy((level,) * (num_exits - 1), temperatures=tuple(temperatures))


def within_budget(calibration: xl.Trace, temperatures: Sequence[float], budget: float) -> xl.Policy:
    """The highest common threshold whose mean cost is within the budget; it needs no labels."""
    policies = [common_policy(level, calibration.num_exits, temperatures) for level in LEVELS]
    return [policy for policy in policies if routed_cost(calibration, policy) <= budget][-1]


def routed_cost(trace: xl.Trace, policy: xl.Policy) -> float:
    return trace.cost[xl.route(trace, policy)].double().mean().item()


def _routed_accuracy(trace: xl.Trace, policy: xl.Policy) -> float:
    answers = trace.logits[torch.arange(len(trace)), xl.route(trace, policy)].argmax(1)
    return (answers == trace.require_labels("study")).double().mean().item()


def collapse(net: xl.ExitNet, data: xl.ImageSet) -> dict[str, dict[str, float]]:
    """What maps would score that do not look at the image: uniform ones, and the average of all final maps."""
    with torch.no_grad():
        parts = [net(batch)[-1].attention.float() for batch in data.inputs.split(250)]
    final = torch.cat(parts)
    other = final[pairing(len(final), 0)]
    blind = {"uniform": similarity.uniform(final), "centre bias": final.mean(0, keepdim=True).expand_as(final)}
    return {name: _scores(final, other, maps) for name, maps in blind.items()}


def _scores(final: Tensor, other: Tensor, maps: Tensor) -> dict[str, float]:
    cc, null = (similarity.pearson(*on_common_grid(target, maps)).mean().item() for target in (final, other))
    return {
        "cosine": similarity.cosine(final, maps).mean().item(),
        "cc": cc,
        "cc_null": null,
        "skill": skill(cc, null),
        "kl": similarity.kl(final, maps).mean().item(),
    }


def run(condition: Condition, splits: Splits, seed: int, folder: Path, plain: Path | None) -> dict[str, Any]:
    """Trains (or goes on training) and measures one condition."""
    net, seconds = trained(condition, splits, seed, folder, plain)
    started = time.perf_counter()
    found = measured(net, splits)
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


def validated(condition: Condition, splits: Splits, seed: int, folder: Path) -> dict[str, Any]:
    """For sweeps: trains, and measures accuracy and skill on validation data only."""
    net, _ = trained(condition, splits, seed, folder)
    rows: dict[str, Any] = {}
    for name, data in splits.validation.items():
        report = xl.evaluate(xl.collect(net, data, batch_size=250), xl.Policy.never(net.num_exits))
        rows[name] = {
            "accuracy": [row.accuracy for row in report.exits],
            "skill": [row.consistency["cc"]["skill"] for row in report.exits[:-1]],
            "kl": [row.consistency["kl"]["value"] for row in report.exits[:-1]],
        }
    return rows
