"""Streams that change: does ``xl.Adaptive`` keep its limit, and what does it save?

Cells are DATA/SHIFT: streams of stored scores, drawn with replacement from a network's test sets, which follow one another. Each starts
from a policy certified on 1,000 samples of its own. Networks are those of
``binding``, trained here if they are missing, which takes ten minutes; then a cell takes a quarter of an hour, and ``day`` and ``time``, which wants an idle
machine, a minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

import exitlens as xl
from benchmarks import binding
from benchmarks.harness import ROOT, Job, Promise, Study, promise_table, save_svg, table
from benchmarks.results import Runs, Tree
from benchmarks.texts import load_other_set
from exitlens.delivery.replay import Course, Log, draw_course, summarize_course
from exitlens.functional.adapting import choose_thresholds
from exitlens.functional.calibration import run_calibration
from exitlens.functional.risk import disagreement
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.model.engine.adapting import Observed
from exitlens.model.engine.journal import SCORED_BY

LIMIT, DELTA, CALIBRATION = 0.02, 0.1, 1000
STREAMS, LENGTH, WARM = 200, 60_000, 20_000  # streams of a cell, their samples, and those before costs count
BLOCK = 20_000  # samples for which the best fixed thresholds are found in hindsight
NOISE = 0.12  # of pixels in [0, 1], at most
AUDITED, MICROSECONDS, SAVED = 0.05, 20.0, 0.8
RIVALS = {"apparate": "Apparate's rule", "bandit": "a bandit (UAT)"}
RIVAL_STREAMS = 40  # of a cell, that rivals answer, too
BATCH, RECENT, RETUNE = 64, 512, 16  # Apparate: samples of a batch, those that it tunes on, batches until it tunes anyway
ARMS, PRICE = 10, 0.3  # the bandit: thresholds, and what a full pass costs in units of confidence
SETTLED = 500  # answers after a change whose share of others is within the limit: then a rule has reacted
DAY, STEP, NEVER = 86_400, 250, 2.0  # seconds; samples between looks at thresholds; a threshold that is never reached
TIME, ROUNDS = "time", 15  # the cell that is timed, and its streams
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
    cells = {cell: partial(measure_streams, *cell.split("/"), count=count, length=length) for cell in CELLS}
    return cells | {"day": partial(follow_day, quick), TIME: partial(time_rule, 2 if quick else ROUNDS, length)}


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


def follow_day(quick: bool = False) -> Tree:
    """Return the course of a day on which colours change four times, as ``exitlens replay`` draws it."""
    traces, rng = load_traces("scenes"), torch.Generator().manual_seed(0)
    length = 3000 if quick else LENGTH
    policy = xl.calibrate(traces["known"].select(torch.arange(CALIBRATION)), max_disagreement=LIMIT, delta=DELTA)
    stream = draw_stream(traces, "scenes", "recurring", length, rng)
    adaptive = RecordingAdaptive(policy, delta=DELTA, seed=0)
    for rows in torch.arange(length).split(STEP):
        adaptive.replay(stream.select(rows))
        adaptive.levels.append((DAY * adaptive.status.taken / length, adaptive.policy.thresholds))
    seen = {
        name: torch.cat([getattr(part, name) for _, part in adaptive.seen])
        for name in ("scores", "losses", "exits", "weights")
    }
    times = torch.cat([torch.full((len(part.exits),), DAY * taken / length) for taken, part in adaptive.seen]).double()
    moved = [pair for i, pair in enumerate(adaptive.levels) if not i or pair[1] != adaptive.levels[i - 1][1]]
    facts = {"limit": LIMIT, "loss": "disagreement"} | {name: policy.to_dict()[name] for name in SCORED_BY}
    seen["weights"] /= seen["weights"].mean()
    log = Log(times, *seen.values(), moved, facts)
    course = asdict(summarize_course(log, {"fixed": policy}, stream.cost.tolist()))
    return course | {"levels": {str(k): [min(level, NEVER) for level in part] for k, part in enumerate(course["levels"])}}


class RecordingAdaptive(xl.Adaptive):
    """Keeps what it is told, and its thresholds over time."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.seen: list[tuple[int, Observed]] = []
        self.levels: list[tuple[float, tuple[float, ...]]] = []

    def learn(self, seen: Observed, cost: Tensor) -> None:
        self.seen.append((self.status.taken, seen))
        super().learn(seen, cost)


def plot_day(runs: Runs, path: Path = ROOT / "docs" / "guides" / "adapting.svg") -> None:
    run = runs.get("day")
    if run is not None:
        levels = [[math.inf if level == NEVER else level for level in part] for part in run["levels"].values()]
        save_svg(draw_course(Course(**run | {"levels": levels})), path)


def add_noise(data: xl.data.ImageSet) -> xl.data.ImageSet:
    rng = torch.Generator().manual_seed(0)
    images = data.images
    noise = 255 * NOISE * torch.randn(images.shape, generator=rng)
    return xl.data.ImageSet(
        (images + noise).round().clamp(0, 255).to(torch.uint8), data.labels, data.classes, preprocess=data.preprocess
    )


def measure_streams(name: str, shift: str, count: int, length: int) -> Tree:
    rows = [measure_stream(load_traces(name), name, shift, seed, length) for seed in range(count)]
    keys = dict.fromkeys(key for row in rows for key in row)
    return {"streams": count, "length": length} | {key: [row[key] for row in rows if key in row] for key in keys}


def measure_stream(traces: dict[str, xl.Trace], name: str, shift: str, seed: int, length: int) -> dict[str, float]:
    rng = torch.Generator().manual_seed(seed)
    known = traces["known"]
    chosen = torch.randperm(len(known), generator=rng)[:CALIBRATION]
    policy = xl.calibrate(known.select(chosen), max_disagreement=LIMIT, delta=DELTA)
    stream, adaptive = draw_stream(traces, name, shift, length, rng), xl.Adaptive(policy, delta=DELTA, seed=seed)
    exits, fixed = adaptive.replay(stream), xl.route(stream, policy)
    cost, cost_fixed = stream.cost[exits], stream.cost[fixed]
    blocks = torch.arange(length).split(BLOCK)
    best = mean(find_best_cost(stream.select(rows), policy) for rows in blocks)
    change = length // 3 if shift == "sudden" else None
    others: dict[str, float] = {}
    if seed < RIVAL_STREAMS:
        answered = {"": exits, "_fixed": fixed, "_apparate": run_apparate(stream, policy), "_bandit": run_bandit(stream)}
        for key, taken in answered.items():
            lost = find_lost(stream, taken)
            if key[1:] in RIVALS:
                others |= {f"over{key}": find_worst(lost), f"cost{key}": stream.cost[taken][WARM:].mean().item()}
            if change is not None:
                others[f"reaction{key}"] = find_reaction(lost, change)
    return others | {
        "over": find_worst(find_lost(stream, exits)),
        "over_fixed": find_worst(find_lost(stream, fixed)),
        "cost": cost[WARM:].mean().item(),
        "cost_fixed": cost_fixed[WARM:].mean().item(),
        "saved": (1 - cost.mean().item()) / (1 - best),
        "audited": adaptive.status.audited / length,
    }


def time_rule(rounds: int, length: int) -> Tree:
    """Return the microseconds that a sample takes in the rule, by stream."""
    traces, times = load_traces("scenes"), []
    policy = xl.calibrate(traces["known"].select(torch.arange(CALIBRATION)), max_disagreement=LIMIT, delta=DELTA)
    for seed in range(rounds):
        stream = draw_stream(traces, "scenes", "steady", length, torch.Generator().manual_seed(seed))
        adaptive, started = xl.Adaptive(policy, delta=DELTA, seed=seed), time.perf_counter()
        adaptive.replay(stream)
        times.append(1e6 * (time.perf_counter() - started) / length)
    return {"microseconds": times}


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


def find_reaction(lost: Tensor, change: int) -> float:
    """Return the samples from a change on until the next ones keep the limit; the length of the stream if they never do."""
    sums = torch.cat([torch.zeros(1), lost[change:].double().cumsum(0)])
    ahead = sums[SETTLED:] - sums[:-SETTLED]
    kept = (ahead <= LIMIT * SETTLED).nonzero()
    return float(kept[0]) if len(kept) else float(len(lost))


def run_apparate(stream: xl.Trace, policy: xl.Policy) -> Tensor:  # -> (N,)
    """Answer by Apparate's rule (arXiv 2312.05385, its code's ``controller``): every sample runs to the end, also after it was
    answered, so all losses are known; thresholds are tuned on the last ones after a batch that broke the limit, and now and then.
    """
    scores, losses = score_early_exits(stream, policy), disagreement(stream)[:, :-1].float()
    thresholds, taken = policy.thresholds, []
    for number, rows in enumerate(torch.arange(len(stream)).split(BATCH)):
        exits = find_first_firing(scores[rows], thresholds)
        taken.append(exits)
        lost = torch.cat([losses[rows], torch.zeros(len(rows), 1)], 1).gather(1, exits[:, None]).mean().item()
        if lost > LIMIT or number % RETUNE == RETUNE - 1:
            known = slice(max(0, int(rows[-1]) + 1 - RECENT), int(rows[-1]) + 1)
            thresholds = choose_thresholds(scores[known], losses[known], stream.cost, LIMIT, torch.ones(len(scores[known])))
    return torch.cat(taken)


def run_bandit(stream: xl.Trace) -> Tensor:  # -> (N,)
    """Answer by a bandit without labels, as UAT describes itself (arXiv 2509.23666; we did not have its code).

    The arms are thresholds of all exits, chosen by UCB1; the reward is the confidence at the exit that answers, counted as far
    as the exit before agrees, less the price of the computation.
    """
    confidence = stream.logits.softmax(2).amax(2)
    same = (stream.answers[:, 1:] == stream.answers[:, :-1]).float()
    reliable = torch.cat([torch.ones(len(stream), 1), 0.5 + 0.5 * same], 1)
    rewards = (confidence * reliable - PRICE * stream.cost).tolist()
    arms = torch.linspace(1 / stream.logits.shape[2], 1.0, ARMS + 1)[1:].tolist()
    exits = torch.stack([find_first_firing(confidence[:, :-1], (arm,) * (len(stream.cost) - 1)) for arm in arms], 1).tolist()
    sums, counts, taken = [0.0] * ARMS, [0] * ARMS, []
    for i, row in enumerate(exits):
        log = math.log(i + 1)
        arm = i if i < ARMS else max(range(ARMS), key=lambda a: sums[a] / counts[a] + math.sqrt(2 * log / counts[a]))
        sums[arm] += rewards[i][row[arm]]
        counts[arm] += 1
        taken.append(row[arm])
    return torch.tensor(taken)


def find_best_cost(block: xl.Trace, policy: xl.Policy) -> float:
    """Return the mean cost of the cheapest thresholds that keep the limit on these samples, known beforehand."""
    request = xl.CalibrationRequest(max_disagreement=LIMIT, temperatures=xl.types.Temperatures(policy.temperatures))
    best = run_calibration(block, request)
    return block.cost[xl.route(block, best)].mean().item()


def list_promises(runs: Runs) -> Iterator[Promise]:
    timed, runs = runs.get(TIME), select_streams(runs)
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
    if timed:
        what = "microseconds a sample in the rule"
        yield Promise.of_mean("adapting|time", what, timed["microseconds"], "<=", MICROSECONDS)


def select_streams(runs: Runs) -> Runs:
    return {cell: run for cell, run in runs.items() if cell not in ("day", TIME)}


def write_tables(runs: Runs) -> list[str]:
    rows, streams = [], select_streams(runs)
    for cell, run in streams.items():
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
    return [*table(head, rows), "", *write_rivals(streams), *promise_table(list_promises(runs))] if rows else []


def write_rivals(runs: Runs) -> list[str]:
    rows, titles = [], {"": "ours", "_fixed": "fixed policy"} | {f"_{key}": title for key, title in RIVALS.items()}
    for cell, run in runs.items():
        count = min(run["streams"], RIVAL_STREAMS)
        for key, title in titles.items():
            if f"over{key}" not in run:
                continue
            over = 100 * mean(value > LIMIT for value in run[f"over{key}"][:count])
            reaction = f"{median(run[f'reaction{key}']):,.0f}" if f"reaction{key}" in run else ""
            rows.append([cell, title, f"{over:.0f}", f"{mean(run[f'cost{key}'][:count]):.3f}", reaction])
    head = ["stream", "rule", "over the limit, % of the streams", "cost", f"samples until {SETTLED} keep the limit again"]
    return [f"The first {RIVAL_STREAMS} streams of each, beside other rules.", "", *table(head, rows), ""]


STUDY = Study("adapting", list_cells, list_promises, {"adapting": write_tables}, plot_day, processes=2, alone=TIME)
