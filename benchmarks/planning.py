"""Plans against brute force: how many samples xl.plan_samples says a certificate takes, and how many fresh ones take.

Cells are batches of ten made-up networks each. A plan is made from one trace of a network; then calibration is repeated on fresh traces
of sizes about that number, and the size at which 9 of 10 get a certificate is read off as the planner does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median, stdev

import numpy as np
import torch
import torch.nn.functional as F

import exitlens as xl
from benchmarks.harness import NORMAL, Job, Promise, Study, promise_table, table
from benchmarks.results import Runs, Tree
from exitlens.functional.calibration import run_calibration
from exitlens.types.plans import PlannedSize
from exitlens.workflow.planning import find_needed

CELLS, TRACES = 20, 10  # traces in each cell
DRAWS = 60  # fresh traces of each size
AROUND = tuple(2 ** (i / 2) for i in range(-2, 3))  # sizes to try, over the planned one
WITHIN = 0.1
LIMITS = ({"max_accuracy_drop": 0.01}, {"max_accuracy_drop": 0.03}, {"max_disagreement": 0.02}, {"max_disagreement": 0.05})


@dataclass(frozen=True)
class Population:
    """Made-up samples: logits are the class's, with noise that all exits share and noise of their own, less at later exits."""

    classes: int
    noise: tuple[float, ...]  # at each exit
    shared: float  # share of the noise's variance that the exits share

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Population:
        exits = int(rng.integers(2, 5))
        last, first = rng.uniform(0.5, 0.9), rng.uniform(1.2, 2.0)
        return cls(int(rng.integers(3, 11)), tuple(np.geomspace(first, last, exits).tolist()), float(rng.uniform(0.3, 0.8)))

    def sample(self, count: int, seed: int) -> xl.Trace:
        rng = torch.Generator().manual_seed(seed)
        labels = torch.randint(self.classes, (count,), generator=rng)
        common = torch.randn(count, self.classes, generator=rng) * self.shared**0.5
        single = torch.randn(count, len(self.noise), self.classes, generator=rng) * (1 - self.shared) ** 0.5
        signal = 3.0 * F.one_hot(labels, self.classes)
        logits = signal[:, None] + torch.tensor(self.noise)[:, None] * (common[:, None] + single)
        cost = torch.linspace(0.2, 1.0, len(self.noise))
        return xl.Trace(logits, labels, torch.zeros(count, len(self.noise)), cost)


def list_cells(quick: bool = False) -> dict[str, Job]:
    count, draws = (1, 4) if quick else (TRACES, DRAWS)
    return {str(i): partial(measure_cell, i, count, draws) for i in range(CELLS)}


def measure_cell(number: int, count: int, draws: int) -> Tree:
    rows = [measure_plan(number * TRACES + i, draws) for i in range(count)]
    return {"planned": [row[0] for row in rows], "needed": [row[1] for row in rows], "size": [row[2] for row in rows]}


def measure_plan(seed: int, draws: int) -> tuple[float | None, float | None, int]:
    """Return the samples planned, those that fresh traces need, and the size of the trace that was planned from."""
    rng = np.random.default_rng(seed)
    population, size = Population.draw(rng), int(rng.choice((500, 1000, 2000)))
    request = xl.CalibrationRequest(delta=0.1, **LIMITS[seed % len(LIMITS)])
    planned = xl.plan_samples(request, population.sample(size, 10_000 + seed), draws=min(draws, 40)).needed
    if planned is None:
        return None, None, size
    sizes = []
    for units in dict.fromkeys(max(10, round(planned * factor)) for factor in AROUND):
        given = [certifies(population, request, units, 1000 * seed + i) for i in range(draws)]
        sizes.append(PlannedSize(units, mean(given), 1.0, 1.0, 1.0))
    return planned, find_needed(sizes), size


def certifies(population: Population, request: xl.CalibrationRequest, units: int, seed: int) -> bool:
    record = run_calibration(population.sample(units, 1_000_000 + seed), replace(request, seed=seed)).calibration
    assert record is not None
    assert record.certification is not None
    return not record.certification.reason


def list_promises(runs: Runs) -> Iterator[Promise]:
    ratios = list_ratios(runs)
    if len(ratios) > 1:
        logs = [math.log(ratio) for ratio in ratios]
        half, middle = NORMAL * stdev(logs) / len(logs) ** 0.5, mean(logs)
        ends = math.exp(middle - half), math.exp(middle + half)
        what = f"samples planned over those that fresh traces need, geometric mean of {len(ratios)}"
        yield Promise("planning|most", what, math.exp(middle), "<=", 1 + WITHIN, ends)
        yield Promise("planning|least", what, math.exp(middle), ">=", 1 / (1 + WITHIN), ends)


def list_ratios(runs: Runs) -> list[float]:
    pairs = [pair for run in runs.values() for pair in zip(run["planned"], run["needed"], strict=True)]
    return [planned / needed for planned, needed in pairs if planned and needed]


def write_tables(runs: Runs) -> list[str]:
    ratios = list_ratios(runs)
    if not ratios:
        return []
    near = [mean(abs(math.log(ratio)) <= math.log(1 + share) for ratio in ratios) for share in (0.1, 0.25, 0.5)]
    head = ["traces", "median ratio", "within 10 %", "within 25 %", "within 50 %"]
    row = [str(len(ratios)), f"{median(ratios):.2f}", *(f"{100 * share:.0f} %" for share in near)]
    return [*table(head, [row]), "", *promise_table(list_promises(runs))]


STUDY = Study("planning", list_cells, list_promises, {"planning": write_tables}, processes=2)
