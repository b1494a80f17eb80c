"""Streams that change: does ``xl.Adaptive`` keep its limit, and what does it save?

Cells are DATA/SHIFT: streams of stored scores, drawn with replacement from a network's test sets, which follow one another. Each starts
from a policy certified on 1,000 samples of its own. Networks are those of ``binding``, trained here if they are missing; then a cell takes
two or three minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import exitlens as xl
from benchmarks import binding
from benchmarks.harness import Job, Promise, Study, promise_table, table
from benchmarks.results import Runs, Tree
from benchmarks.texts import load_other_set
from exitlens.functional.calibration import run_calibration

LIMIT, DELTA, CALIBRATION = 0.02, 0.1, 1000
STREAMS, LENGTH, WARM = 200, 60_000, 20_000  # streams of a cell, their samples, and those before costs count
BLOCK = 20_000  # samples for which the best fixed thresholds are found in hindsight
NOISE = 0.12  # of pixels in [0, 1], at most
AUDITED, MICROSECONDS, SAVED = 0.05, 20.0, 0.8
EARLIEST = 5000  # answers from which on the running share of others counts
KINDS = {  # what a stream is drawn from, in order
    "scenes": ("agreeing", "unseen", "agreeing"),
    "reviews": ("films", "products", "tweets"),
    "pictures": ("clean", "noisy", "clean"),
}
CELLS = (
    *("scenes/steady", "scenes/sudden", "scenes/gradual", "scenes/recurring", "scenes/vanishing"),
    *("reviews/steady", "reviews/sudden", "pictures/gradual"),
)


def list_cells(quick: bool = False) -> dict[str, Job]:
    count, length = (2, 3000) if quick else (STREAMS, LENGTH)
    return {cell: partial(measure_streams, *cell.split("/"), count=count, length=length) for cell in CELLS}


@cache
def load_traces(name: str) -> dict[str, xl.Trace]:
    """Return traces of what a stream is drawn from; ``known``: like the first of them, to calibrate on."""
    torch.set_num_threads(1)
    seed = 2 if name == "scenes" else 1
    task = binding.open_task(name, seed, None)
    net, _ = binding.train(task, seed, Path("runs/binding") / f"{name}-egt-{seed}", binding.CONDITIONS["egt"][1])
    sets = {"known": binding.load_calibration(task, name, seed, None)}
    first = next(iter(task.tests.values()))
    if name == "scenes":
        sets |= task.tests
    elif name == "reviews":
        sets |= {"films": first, **{other: load_other_set(other, first) for other in ("products", "tweets")}}
    else:
        sets |= {"clean": first, "noisy": add_noise(first)}
    return {part: xl.collect(net, data, batch_size=250) for part, data in sets.items()}


def add_noise(data: xl.data.ImageSet) -> xl.data.ImageSet:
    rng = torch.Generator().manual_seed(0)
    images = data.load().images
    noise = 255 * NOISE * torch.randn(images.shape, generator=rng)
    return xl.data.ImageSet(
        (images + noise).round().clamp(0, 255).to(torch.uint8), data.labels, data.classes, preprocess=data.preprocess
    )


def measure_streams(name: str, shift: str, count: int, length: int) -> Tree:
    rows = [measure_stream(load_traces(name), name, shift, seed, length) for seed in range(count)]
    return {"streams": count, "length": length} | {key: [row[key] for row in rows] for key in rows[0]}


def measure_stream(traces: dict[str, xl.Trace], name: str, shift: str, seed: int, length: int) -> dict[str, float]:
    rng = torch.Generator().manual_seed(seed)
    known = traces["known"]
    chosen = torch.randperm(len(known), generator=rng)[:CALIBRATION]
    policy = xl.calibrate(known.select(chosen), max_disagreement=LIMIT, delta=DELTA)
    stream, adaptive = draw_stream(traces, name, shift, length, rng), xl.Adaptive(policy, delta=DELTA, seed=seed)
    started = time.perf_counter()
    exits = adaptive.replay(stream)
    seconds, fixed = time.perf_counter() - started, xl.route(stream, policy)
    cost, cost_fixed = stream.cost[exits], stream.cost[fixed]
    blocks = torch.arange(length).split(BLOCK)
    best = mean(find_best_cost(stream.select(rows), policy) for rows in blocks)
    return {
        "over": find_worst(find_lost(stream, exits)),
        "over_fixed": find_worst(find_lost(stream, fixed)),
        "cost": cost[WARM:].mean().item(),
        "cost_fixed": cost_fixed[WARM:].mean().item(),
        "saved": (1 - cost.mean().item()) / (1 - best),
        "audited": adaptive.status.audited / length,
        "microseconds": 1e6 * seconds / length,
    }


def draw_stream(traces: Mapping[str, xl.Trace], name: str, shift: str, length: int, rng: torch.Generator) -> xl.Trace:
    """Return ``length`` samples: by thirds (sudden), more and more of the second kind, in turn every 10,000, or a class missing in between."""
    place, kinds = torch.arange(length) / length, KINDS[name]
    if shift in ("steady", "vanishing"):
        kind = torch.zeros(length, dtype=torch.long)
    elif shift == "sudden":
        kind = (3 * place).long()
    elif shift == "gradual":
        kind = (torch.rand(length, generator=rng) < place).long()
    else:
        kind = torch.arange(length) // 10_000 % 2
    parts = [traces[kinds[number]] for number in range(int(kind.max()) + 1)]
    starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    sizes = starts.diff()
    rows = starts[kind] + (torch.rand(length, generator=rng) * sizes[kind]).long()
    if shift == "vanishing":
        others = (parts[0].require_labels("labels") > 0).nonzero().flatten()
        drawn = others[torch.randint(len(others), (length,), generator=rng)]
        rows = torch.where((3 * place).long() == 1, drawn, rows)
    columns = (torch.cat([getattr(part, column) for part in parts])[rows] for column in ("logits", "labels", "divergence"))
    return xl.Trace(*columns, parts[0].cost)


def find_lost(stream: xl.Trace, exits: Tensor) -> Tensor:  # (N,) -> (N,) bool
    return stream.answers.gather(1, exits[:, None])[:, 0] != stream.answers[:, -1]


def find_worst(lost: Tensor) -> float:
    """Return the largest running share of answers that are not the final exit's."""
    running = lost.double().cumsum(0) / torch.arange(1, len(lost) + 1)
    return running[min(EARLIEST, len(lost) - 1) :].max().item()


def find_best_cost(block: xl.Trace, policy: xl.Policy) -> float:
    """Return the mean cost of the cheapest thresholds that keep the limit on these samples, known beforehand."""
    request = xl.CalibrationRequest(max_disagreement=LIMIT, temperatures=xl.types.Temperatures(policy.temperatures))
    best = run_calibration(block, request)
    return block.cost[xl.route(block, best)].mean().item()


def list_promises(runs: Runs) -> Iterator[Promise]:
    for cell, run in runs.items():
        count, name = run["streams"], cell.replace("/", ", ")
        over = mean(value > LIMIT for value in run["over"])
        what = f"{name}: streams in which the running share of other answers exceeds the limit"
        yield Promise.of_share(f"adapting|over|{cell}", what, over, count, "<=", DELTA)
        if cell.endswith("steady"):
            ratios = [ours / fixed for ours, fixed in zip(run["cost"], run["cost_fixed"], strict=True)]
            what = f"{name}: cost over the fixed certified policy's after {WARM:,} samples"
            yield Promise.of_mean(f"adapting|cost|{cell}", what, ratios, "<=", 1.0)
        what = f"{name}: saved, of what the best thresholds of every {BLOCK:,} samples save in hindsight"
        yield Promise.of_mean(f"adapting|saved|{cell}", what, run["saved"], ">=", SAVED)
    if runs:
        what = "largest share of audits in a cell"
        yield Promise(
            "adapting|audited", what, max(mean(run["audited"]) for run in runs.values()), "<=", AUDITED, exact=True
        )
        times = [mean(run["microseconds"]) for run in runs.values()]
        yield Promise.of_mean("adapting|time", "microseconds a sample in the rule", times, "<=", MICROSECONDS)


def write_tables(runs: Runs) -> list[str]:
    rows = []
    for cell, run in runs.items():
        over, fixed = (100 * mean(value > LIMIT for value in run[key]) for key in ("over", "over_fixed"))
        means = (f"{mean(run[key]):.3f}" for key in ("over", "over_fixed", "cost", "cost_fixed"))
        rows.append([cell, str(run["streams"]), f"{over:.1f}", f"{fixed:.1f}", *means, f"{mean(run['saved']):.2f}"])
    head = [
        "stream",
        "streams",
        "over the limit, %",
        "fixed policy, %",
        "largest running share",
        "fixed",
        "cost",
        "fixed",
        "saved of the best",
    ]
    return [*table(head, rows), "", *promise_table(list_promises(runs))] if rows else []


STUDY = Study("adapting", list_cells, list_promises, {"adapting": write_tables}, processes=2)
