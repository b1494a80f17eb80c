"""Wall-clock of the study's networks against the plain backbone of their seed, side by side in one process."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import exitlens as xl
from benchmarks.store import Store
from benchmarks.study.data import Splits
from benchmarks.study.thresholds import fit_budget, fit_temperatures
from benchmarks.study.train import build_backbone
from exitlens.delivery.bench.benchmark import compare_adaptive, split_whole_batches
from exitlens.delivery.bench.timing import Speed, compare
from exitlens.delivery.bundle import load

CLOCK, STREAM, MAX_DELAY_MS, STREAMED = "clock", "clock, stream", 100.0, 10_000
LIMIT, METHOD, BATCH, IMAGES, ROUNDS = "0.005, certified", "egt", 64, 2048, 7
WANTED = {"scenes": 2.0, "fashion": 3.0}  # times faster than the plain backbone: the bars
ROOM = 0.7  # of the cost that these allow; the rest is what routing and the clock may take
BUDGETS = (0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15)  # of cost, tried by the clock
SURE = 1.05  # times the promised speed, on calibration images: what the clock may differ by on others


def measure(data: str, seed: int, splits: Splits, store: Store, rounds: int = ROUNDS) -> dict[str, Any]:
    """Times both on the first test images, under thresholds that were chosen on calibration data.

    One is certified to lose at most half a point to the network's own final exit. Two have a budget of cost: the policy
    that ``calibrate`` finds the most accurate on calibration data, and one threshold for all exits, as high as the budget
    allows. The last has a budget of time: one threshold for all exits, as high as the promised speed allows on calibration
    images; it looks at no label. It is there twice: with every batch answered at once, and for a stream of batches, in which
    images that no early exit answers wait for others, ``MAX_DELAY_MS`` at most. With everything at exit 0, the way there
    is the limit of any thresholds.
    """
    module, net = load_both(data, seed, splits, store.runs)
    test, images = next(iter(splits.tests.items()))
    plain = store.find(f"{data}/plain-{seed}")["tests"][test]["accuracy"][-1]
    trace, rows = xl.collect(net, images, batch_size=250), {}
    for name, policy in choose_policies(data, seed, module, net, splits, store, rounds).items():
        report = xl.evaluate(trace, policy)
        count = STREAMED if name == STREAM else IMAGES
        speed = _time(name, module, net, policy, images.first(count).inputs, rounds)
        rows[name] = {"speed": speed.to_dict(), "cost": report.cost, "accuracy_drop": plain - (report.accuracy or 0.0)}
    return {"threads": torch.get_num_threads(), "plain_accuracy": plain, "rows": rows}


def load_both(data: str, seed: int, splits: Splits, runs: Path) -> tuple[nn.Module, xl.ExitNet]:
    """The plain backbone, and the network with exits."""
    net = load(runs / data / f"{METHOD}-{seed}" / "bundle", backbone=build_backbone(splits))[0]
    module = build_backbone(splits).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.tuning = xl.Tuning()  # the page says that neither is tuned
    shared = load(runs / data / f"plain-{seed}" / "bundle", backbone=module)[0]  # it shares its weights with the module
    shared.eval()
    return module.eval(), net


def choose_policies(
    data: str, seed: int, module: nn.Module, net: xl.ExitNet, splits: Splits, store: Store, rounds: int
) -> dict[str, xl.Policy]:
    """On calibration data, and for the clock by timing calibration images."""
    budget, known = ROOM / WANTED[data], xl.collect(net, splits.calibration, batch_size=250)
    temperatures = fit_temperatures(known)
    policies = {
        LIMIT: _read_policy(store.find(f"{data}/{METHOD}-{seed}")["policies"][LIMIT]),
        f"best within {budget:.2f}": xl.calibrate(known, max_cost=budget),
        f"one threshold within {budget:.2f}": fit_budget(known, temperatures, budget),
    }
    images = splits.calibration.first(IMAGES).inputs
    for name in (CLOCK, STREAM):
        for cost in BUDGETS:
            policies[name] = fit_budget(known, temperatures, cost)
            if _time(name, module, net, policies[name], images, max(1, rounds // 2)).speedup >= SURE * WANTED[data]:
                break
    policies["everything at exit 0"] = xl.Policy((0.0,) + (math.inf,) * (net.num_exits - 2))
    return policies


def _time(name: str, module: nn.Module, net: xl.ExitNet, policy: xl.Policy, images: Tensor, rounds: int) -> Speed:
    if name == STREAM:
        return compare_stream(module, net, policy, images, rounds)
    return compare_adaptive(module, net, policy, images, BATCH, rounds)


def compare_stream(plain: nn.Module, net: xl.ExitNet, policy: xl.Policy, images: Tensor, rounds: int) -> Speed:
    """Plain backbone, batch after batch, against a stream of the same batches; both in evaluation mode, channels_last."""
    batches = [batch for (batch,) in split_whole_batches(images, BATCH)]

    def run_plain(_: Tensor) -> None:
        with torch.inference_mode():
            for batch in batches:
                plain(batch).softmax(1).max(1)

    def run_stream(_: Tensor) -> None:
        for _prediction in xl.predict_stream(net, batches, policy, max_delay_ms=MAX_DELAY_MS):
            pass

    speed = compare(run_plain, run_stream, [(images[: BATCH * len(batches)],)], rounds)
    return replace(speed, batch_size=BATCH)


def _read_policy(found: dict[str, Any]) -> xl.Policy:
    thresholds = tuple(math.inf if t is None else t for t in found["thresholds"])
    return xl.Policy(thresholds, temperatures=tuple(found["temperatures"]))
