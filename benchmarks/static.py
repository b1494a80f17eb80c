"""Ours against the alternative: a smaller static network of equal time, distilled from the full one.

Cells: TASK/adaptive-SEED (ours), TASK/CANDIDATE-SEED (such as ``scenes/width-50-0``) and, after them, TASK/time-SEED, which wants an
idle machine. Tasks with headroom have more: TASK/rate-PART, which comes first and chooses a learning rate for the others,
TASK/taught-SEED (ours, distilled from the plain network as the static ones are), TASK/cascade-SEED (a static network before the distilled
full one) and, of the first seed, TASK/routed-0 (ours, trained for routing). Cells train what they need if it is missing. Pictures need
``openclipart-png`` and the extra ``benchmark``, fashion and turned ``dataset-fashion-mnist``, photographs npm. Training takes hours,
timing minutes.
"""

from __future__ import annotations

import copy
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import compress, product
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exitlens as xl
from benchmarks import tasks
from benchmarks.drawings import PICTURES
from benchmarks.harness import Job, Promise, Study, join_means, promise_table, share_error, table
from benchmarks.results import FOLDER, Runs, Tree, read_results
from benchmarks.tasks import TITLES, Task, build_network
from benchmarks.truth import (
    CONDITIONS,
    EGT,
    PLAIN,
    count_samples,
    find_folder,
    lock,
    open_task,
    promise_ratio,
    train_by,
    watch,
)
from exitlens.data.sets import SampleSet
from exitlens.delivery.benchmark import answer_at, pin_threads, time_calls
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.timing import Times, Work, describe_machine, interleave
from exitlens.types.inputs import Inputs, split_rows
from exitlens.types.settings import RECIPES

HEADROOM = dict.fromkeys(("photographs", "finetuned", "turned"), 3)  # seeds of the tasks on which exits have room to win
SEEDS = {**HEADROOM, **tasks.SEEDS}
ADAPTIVE, TIME, RATE = "adaptive", "time", "rate"
EXITS, TAUGHT, CASCADE, ROUTED = "exits", "taught", "cascade", "routed"  # ways to route; a cascade for each static network
KINDS = {EXITS: "exits", TAUGHT: "distilled exits", CASCADE: "a cascade", ROUTED: "exits trained for routing"}
ANY = (EXITS, TAUGHT, CASCADE)
WIDE = 0.09  # of the backbone's work for the necks of distilled exits: about as wide as in networks that are cut there
FINAL, FULL = "final", "full"
POINTS = {FINAL: 0.003, FULL: 0.003, "1": 0.01, "3": 0.03}  # accuracy that our final exit (FULL: the full network) may lose
RATES, CLEARLY = (0.33, 1.0, 3.0), 0.005  # of the recipe's, which counts unless another is so much more accurate
LOSSES = {**{name: CONDITIONS[name][0] for name in (PLAIN, EGT)}, ROUTED: xl.EGTLoss(routed=0.5)}
FOLDS = 5  # of these: samples that did not choose the thresholds keep the limit, on average
BATCH, SAMPLES, ROUNDS, SECONDS = 250, 512, 9, 60.0
TIMED_BATCH, WHOLE_BATCH = 64, 512  # samples in a timed call, and on tasks with headroom
MICRO_BATCHES = (16, 64, 0)  # of which each network's best counts; 0: the whole call
EXIT, VALIDATION = "exit ", "validation"
load_task = lru_cache(maxsize=1)(open_task)  # a cell opens several networks of one task


@dataclass(frozen=True)
class Candidate:
    family: str  # what is made smaller; accuracy at a given time is interpolated between the members of a family
    make: Callable[[Task], xl.ExitNet]  # makes the untrained network of one exit for a task

    def build(self, task: Task, seed: int) -> xl.ExitNet:
        torch.manual_seed(seed)
        net = self.make(task)
        net.describe(classes=tuple(task.train.classes), preprocess=task.train.preprocess)
        return net


def make_narrow(task: Task, width: float) -> xl.ExitNet:
    """Return the task's small network with fewer channels (in steps of 8) and its own classifier."""
    example, classes, full = task.train.first(1).inputs, len(task.train.classes), task.build()
    channels = [full.stem[0].out_channels, *(getattr(full, group)[0].conv1.out_channels for group in full.groups)]
    stem, *widths = (8 * max(1, round(count * width / 8)) for count in channels)
    backbone = SmallResNet(classes, example.shape[1], stem, widths)  # type: ignore[union-attr]
    return xl.attach(backbone, [], classes, example, final="keep")


def make_cut(task: Task, name: str) -> xl.ExitNet:
    """Return the backbone with its weights up to one module, and the head that an exit has there, without the rest."""
    net = xl.attach(task.build(), [name], len(task.train.classes), task.train.first(1).inputs, head=task.head)
    info = replace(net.info, at=())
    return xl.ExitNet([net.stage(0)], [net.head(0)], net.cost[:1].clone(), net.head_share, info, net.input_spec)


class Shrink(nn.Module):
    """Makes images smaller."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B,C,side,side)`` from ``(B,C,H,W)``."""
        return F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)


def make_shrunk(task: Task, side: int) -> xl.ExitNet:
    """Return the full network behind a layer that makes images smaller."""
    backbone = nn.Sequential(OrderedDict(shrink=Shrink(side), network=task.build()))
    return xl.attach(backbone, [], len(task.train.classes), task.train.first(1).inputs, final="keep")


def make_whole(task: Task) -> xl.ExitNet:
    """Return the full network, to be distilled as the smaller ones are."""
    return xl.attach(task.build(), [], len(task.train.classes), task.train.first(1).inputs, final="keep")


def list_cuts(*names: str) -> dict[str, Candidate]:
    return {f"cut-{name}": Candidate("cut", partial(make_cut, name=name)) for name in names}


def list_widths(*percents: int) -> dict[str, Candidate]:
    return {f"width-{n}": Candidate("width", partial(make_narrow, width=n / 100)) for n in percents}


def list_sizes(*sides: int) -> dict[str, Candidate]:
    return {f"size-{n}": Candidate("size", partial(make_shrunk, side=n)) for n in sides}


WHOLE = "whole"  # the end of all families
UNCUT, CUTS = {WHOLE: Candidate("cut", make_whole)}, list_cuts("layer1", "layer2", "layer3")
CANDIDATES: dict[str, dict[str, Candidate]] = {
    **dict.fromkeys(("scenes", "small", "digits", "fashion"), list_widths(33, 50, 71) | list_cuts("layer1", "layer2")),
    "pictures": list_cuts("blocks.2.0", "blocks.4.0", "blocks.5.1"),
    "vit": list_cuts("blocks.1", "blocks.3"),
    "reviews": list_cuts("bert.encoder.layer.0", "bert.encoder.layer.2"),
    "photographs": list_widths(50, 71) | list_sizes(24) | CUTS | UNCUT,
    "turned": list_widths(50, 71) | list_sizes(28) | CUTS | UNCUT,
    "finetuned": list_sizes(32, 48) | list_cuts("blocks.2.0", "blocks.4.0", "blocks.5.1") | UNCUT,
}
RIVALS = {**dict.fromkeys(tasks.SEEDS, "cut"), "digits": "width"}  # by validation data of seed 0; later seeds have no other
ONCE = {"fashion", "vit"}  # tasks whose static networks are trained with the first seed only


def list_candidates(task: str, seed: int) -> dict[str, Candidate]:
    family = RIVALS.get(task) if task not in ONCE else None
    every = seed == 0 or task in HEADROOM
    return {name: candidate for name, candidate in CANDIDATES[task].items() if every or candidate.family == family}


def list_parts(task: str) -> list[str]:
    """Return what has a learning rate of its own: the plain network, ours, and each family of static networks."""
    return [PLAIN, EGT, *dict.fromkeys(candidate.family for candidate in CANDIDATES[task].values())]


def list_cells(quick: bool = False) -> dict[str, Job]:
    """List all cells, rates first, then seed by seed: what is there after any time is complete for some seeds."""
    cells: dict[str, Job] = {
        f"{task}/{RATE}-{part}": partial(choose_rate, task, part, quick) for task in HEADROOM for part in list_parts(task)
    }
    pairs = [(task, seed) for seed in range(max(SEEDS.values())) for task, seeds in SEEDS.items() if seed < seeds]
    for task, seed in pairs:
        cells[f"{task}/{ADAPTIVE}-{seed}"] = partial(measure_adaptive, task, seed, quick)
        for name in list_candidates(task, seed):
            cells[f"{task}/{name}-{seed}"] = partial(measure_candidate, task, name, seed, quick)
        if task in HEADROOM:
            cells[f"{task}/{CASCADE}-{seed}"] = partial(measure_cascades, task, seed, quick)
            cells |= {f"{task}/{k}-{seed}": partial(measure_adaptive, task, seed, quick, k) for k in list_more(seed)}
    return cells | {f"{task}/{TIME}-{seed}": partial(measure_times, task, seed, quick) for task, seed in pairs}


def list_more(seed: int) -> tuple[str, ...]:
    """Return ways to train our exits besides the usual one, on tasks with headroom."""
    return (TAUGHT, ROUTED) if seed == 0 else (TAUGHT,)


def find_part(name: str, kind: str) -> str:
    return EGT if kind in (ROUTED, TAUGHT) else kind if kind in LOSSES else CANDIDATES[name][kind].family


def read_rate(name: str, part: str) -> float:
    """Return what learning rates are multiplied by: 1, unless another one is clearly better on validation data."""
    accuracy = read_results(FOLDER / "static.csv").get(f"{name}/{RATE}-{part}", {}).get(VALIDATION, {})
    best = max(accuracy, key=accuracy.__getitem__, default="1")
    return float(best) if accuracy and accuracy[best] - accuracy["1"] > CLEARLY else 1.0


def set_rate(task: Task, rate: float) -> Task:
    recipe = RECIPES[task.settings.get("recipe", "scratch")]
    given = {key: task.settings.get(key, getattr(recipe, key)) for key in ("learning_rate", "head_learning_rate")}
    return replace(task, settings=task.settings | {key: rate * value for key, value in given.items() if value and rate != 1})


def choose_rate(name: str, part: str, quick: bool = False) -> Tree:
    """Train a part's network (of a family the middle one) for a third of the epochs at each rate; return accuracy on validation data."""
    task = load_task(name, 0, 96 if quick else 0)
    short = replace(task, settings=task.settings | {"epochs": math.ceil(task.settings["epochs"] / 3)})
    members = [kind for kind, candidate in CANDIDATES[name].items() if candidate.family == part]
    kind, accuracy = part if part in LOSSES else members[len(members) // 2], Tree()
    for rate in RATES:
        folder = find_folder(name, f"{RATE}-{part}-x{rate:.2g}", 0, quick)
        net = train_kind(set_rate(short, rate), name, kind, 0, quick, folder)
        accuracy[f"{rate:.2g}"] = xl.collect(net, task.validation, batch_size=BATCH).correct.double().mean().item()
    return {VALIDATION: accuracy}


def open_network(name: str, kind: str, seed: int, quick: bool) -> xl.ExitNet:
    """Return ours, the plain network or a static one, trained (or trained on) at the rate of its part, which has to be chosen."""
    cell = f"{name}/{RATE}-{find_part(name, kind)}"
    if name in HEADROOM and not quick and cell not in read_results(FOLDER / "static.csv"):
        raise SystemExit(f"{name}: no rate is chosen. Fix: python -m benchmarks static run {cell}")
    rate = read_rate(name, find_part(name, kind))
    task = set_rate(load_task(name, seed, 96 if quick else 0), rate)
    folder = find_folder(name, kind if rate == 1 else f"{kind}-x{rate:.2g}", seed, quick)
    return train_kind(task, name, kind, seed, quick, folder)


def train_kind(task: Task, name: str, kind: str, seed: int, quick: bool, folder: Path) -> xl.ExitNet:
    """Train one of ours or the plain network, or a static one, distilled from the plain one by the same recipe."""
    if kind in LOSSES:
        return train_by(LOSSES[kind], task, seed, folder)[0]
    teacher = open_network(name, PLAIN, seed, quick)
    build = partial(build_network, exits=True, neck_share=WIDE) if kind == TAUGHT else CANDIDATES[name][kind].build
    net = build(task, seed)
    loss = LOSSES[EGT if kind == TAUGHT else PLAIN] or xl.EGTLoss(weight=0.0)
    settings: dict[str, Any] = {"seed": seed, "out_dir": folder / "fit", "resume": True, "progress": False, **task.settings}
    with lock(folder):
        xl.fit(net, task.train, watch(task), loss=loss, teacher=teacher, **settings)
    return net


class Way(NamedTuple):
    """A network that routes, its trace of the validation data, and the cheapest policies that keep each limit on held-out ones of these."""

    net: xl.ExitNet
    known: xl.Trace
    policies: dict[str, xl.Policy]  # by point


def open_way(net: xl.ExitNet, full: xl.ExitNet, task: Task) -> Way:
    """Calibrate; a final exit that has lost more than the limit to the full network already may lose nothing to itself."""
    known = xl.collect(net, task.validation, batch_size=BATCH)
    lost = measure_accuracy(full, task.validation) - known.correct[:, -1].double().mean().item()
    limits = POINTS | {FULL: max(POINTS[FULL] - lost, 0.0)}
    calibrate = partial(xl.calibrate, known, folds=FOLDS)
    return Way(net, known, {point: calibrate(max_accuracy_drop=limit) for point, limit in limits.items()})


def open_cascades(name: str, seed: int, quick: bool) -> dict[str, xl.ExitNet]:
    """Return, by the name of its way, each static network before the distilled full one."""
    nets = {kind: open_network(name, kind, seed, quick) for kind in list_candidates(name, seed)}
    return {f"{CASCADE} {kind}": xl.cascade({kind: net, WHOLE: nets[WHOLE]}) for kind, net in nets.items() if kind != WHOLE}


def measure_adaptive(name: str, seed: int, quick: bool = False, kind: str = EGT) -> Tree:
    task, full = load_task(name, seed, 96 if quick else 0), open_network(name, PLAIN, seed, quick)
    measured = measure_way(open_way(open_network(name, kind, seed, quick), full, task), task)
    measured["rate"] = read_rate(name, find_part(name, kind))
    return measured if kind != EGT else measured | {"full": measure_candidate(name, PLAIN, seed, quick)}


def measure_cascades(name: str, seed: int, quick: bool = False) -> Tree:
    task, full = load_task(name, seed, 96 if quick else 0), open_network(name, PLAIN, seed, quick)
    return {way: measure_way(open_way(net, full, task), task) for way, net in open_cascades(name, seed, quick).items()}


def measure_candidate(name: str, kind: str, seed: int, quick: bool = False) -> Tree:
    task, net = load_task(name, seed, 96 if quick else 0), open_network(name, kind, seed, quick)
    traces = {test: xl.collect(net, data, batch_size=BATCH) for test, data in task.tests.items()}
    tests = {test: describe_right(trace.correct[:, -1]) for test, trace in traces.items()}
    return {
        VALIDATION: measure_accuracy(net, task.validation),
        "tests": tests,
        "rate": read_rate(name, find_part(name, kind)),
    }


def measure_way(way: Way, task: Task) -> Tree:
    traces = {test: xl.collect(way.net, data, batch_size=BATCH) for test, data in task.tests.items()}
    measured: Tree = {"exits": way.known.correct.double().mean(0).tolist(), "points": {}}
    for point, policy in way.policies.items():
        right = way.known.correct.gather(1, xl.route(way.known, policy)[:, None])
        tests = {test: route(trace, policy) for test, trace in traces.items()}
        measured["points"][point] = {VALIDATION: right.double().mean().item(), "tests": tests}
    return measured


def route(trace: xl.Trace, policy: xl.Policy) -> Tree:
    exits = xl.route(trace, policy)
    return describe_right(trace.correct.gather(1, exits[:, None])[:, 0]) | {
        "cost": trace.cost[exits].mean().item(),
        "exit_shares": (exits.bincount(minlength=trace.num_exits) / len(exits)).tolist(),
        "exit_accuracy": trace.correct.double().mean(0).tolist(),
    }


def measure_accuracy(net: xl.ExitNet, data: SampleSet) -> float:
    return xl.collect(net, data, batch_size=BATCH).correct[:, -1].double().mean().item()


def describe_right(right: Tensor) -> Tree:  # (N,) bool
    """Return the share that is right, and the samples themselves, for intervals of differences."""
    packed = np.packbits(right.numpy()).tobytes().hex()
    return {"samples": len(right), "accuracy": right.double().mean().item(), "right": packed}


def measure_times(name: str, seed: int, quick: bool = False) -> Tree:
    """Time all networks on one core, in one form and in turn: ours whose cells are there, and the static ones.

    Each counts with its best micro-batch, of all rounds together. Static ones need no training, since weights change no time.
    """
    done = read_results(FOLDER / "static.csv")
    task, full = load_task(name, seed, 96 if quick else 0), open_network(name, PLAIN, seed, quick)
    nets = {EXITS: open_network(name, EGT, seed, quick)}
    if name in HEADROOM:
        there = [kind for kind in (*list_more(seed), CASCADE) if quick or f"{name}/{kind}-{seed}" in done]
        nets |= {kind: open_network(name, kind, seed, quick) for kind in there if kind != CASCADE}
        nets |= open_cascades(name, seed, quick) if CASCADE in there else {}
    ways, samples = {way: open_way(net, full, task) for way, net in nets.items()}, TIMED_BATCH if quick else SAMPLES
    batch = WHOLE_BATCH if name in HEADROOM else TIMED_BATCH
    batches = draw_batches(task, samples, batch)
    with pin_threads(1):
        made = make_works(task, list_candidates(name, seed), ways, seed, batches, 0.2 if quick else 4.0)
        every = {f"{work}@{size}": run for size, runs in made.items() for work, run in runs.items()}
        tried = interleave(every, rounds=2 if quick else ROUNDS, seconds=0.0 if quick else SECONDS)
    works = made[0]
    sizes = {work: min(MICRO_BATCHES, key=lambda size: median(tried.seconds(f"{work}@{size}"))) for work in works}
    times = Times({work: tried.rounds[f"{work}@{size}"] for work, size in sizes.items()})
    facts = {"machine": describe_machine(1), "batch": batch, "samples": samples, "rounds": len(times.rounds[FULL])}
    measured: Tree = {**facts, "ms": {}, "exit_share": {}, "ways": {}, "full_over": {}}
    for work in works:
        ms, ratio = times.summary(work, samples)["ms"], times.ratio(FULL, work)
        if "|" in work:
            way, point, data = work.split("|")
            measured["ways"].setdefault(way, {}).setdefault(point, {})[data] = ms
            if way == EXITS:
                measured["full_over"].setdefault(point, {})[data] = ratio.to_list()
        elif work.startswith(EXIT):
            measured["exit_share"][work] = times.ratio(work, FULL).to_list()
        else:
            measured["ms"][work] = ms
    return measured


def draw_batches(task: Task, samples: int, batch: int) -> Mapping[str, Sequence[Inputs]]:
    """Draw so many samples of the validation and of all test data, in batches."""
    batches = {}
    for part, data in {**task.tests, VALIDATION: task.validation}.items():
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        batches[part] = split_rows(data.subset(order[torch.arange(samples) % len(order)]).inputs, batch)
    return batches


def make_works(
    task: Task,
    candidates: Mapping[str, Candidate],
    ways: Mapping[str, Way],
    seed: int,
    batches: Mapping[str, Sequence[Inputs]],
    seconds: float,
) -> dict[int, dict[str, Work]]:
    """Make, for each micro-batch, the works WAY|POINT|DATA of ways to route, "exit K" of our exits alone, and those of the others.

    All have the form that tuning the full network chooses. Tuned each by itself, the same layers took up to a quarter more time
    in one network than in another.
    """
    first, full = next(iter(batches.values())), build_network(task, seed, exits=False)
    form = full.eval().tune(first[0], precision="float32", seconds=seconds, backend="torch")
    kept, works = form.keep_memory, dict[int, dict[str, Work]]()
    others = {FULL: full} | {name: candidate.make(task).eval() for name, candidate in candidates.items()}
    for size in MICRO_BATCHES:
        tuned = works[size] = {}
        for name, way in ways.items():
            net = copy.deepcopy(way.net)
            net.tuning = replace(form, micro_batch=size)
            for point, policy in way.policies.items():
                answers = partial(xl.predict, net, policy=policy)
                tuned |= {f"{name}|{point}|{part}": time_calls(answers, rows, kept) for part, rows in batches.items()}
                if (name, point) == (EXITS, FINAL):
                    tuned |= {
                        f"{EXIT}{k}": time_calls(partial(answer_at, net, k), first, kept) for k in range(net.num_exits)
                    }
        for name, other in others.items():
            net = copy.deepcopy(other)
            net.tuning = replace(form, micro_batch=size)
            tuned[name] = time_calls(partial(answer_at, net, 0), first, kept)
    return works


# A static network of the time that ours took: between its two neighbours in time, linearly

Pick = Callable[[Tree], Any]  # of a cell of a static network, or a point of a way: a number or the samples that are right


def find_timed_seeds(runs: Runs, task: str) -> list[int]:
    return [s for s in range(SEEDS[task]) if all(f"{task}/{name}-{s}" in runs for name in (ADAPTIVE, TIME))]


def find_whole_seeds(runs: Runs, task: str) -> list[int]:
    """Return the seeds of which everything is there: ours, all static networks, and the times of them all."""
    candidates = {seed: list_candidates(task, seed) for seed in find_timed_seeds(runs, task)}
    done = [seed for seed, names in candidates.items() if names and all(f"{task}/{name}-{seed}" in runs for name in names)]
    return [seed for seed in done if candidates[seed].keys() <= runs[f"{task}/{TIME}-{seed}"]["ms"].keys()]


def interpolate(points: Sequence[tuple[float, float, Any]], at: float) -> Any:
    """Return the value at ``at`` on the line between neighbours of (place, validation accuracy, value).

    A network that is no better on validation data than one that takes less time is left out, since nobody would take it. Beyond
    the ends the value is that of the end: where the fastest static network takes longer than ours, ours is compared with it.
    """
    kept: list[tuple[float, float, Any]] = []
    for point in sorted(points, key=lambda point: point[:2]):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    place = float(np.interp(at, [place for place, _, _ in kept], range(len(kept))))
    (_, _, low), share = kept[int(place)], place % 1
    return (1 - share) * low + share * kept[int(place) + 1][2] if share else low


def list_lines(runs: Runs, task: str, seed: int, pick: Pick) -> dict[str, list[tuple[float, float, Any]]]:
    """Return (milliseconds, validation accuracy, figure) of all networks of each family, of which the full ones are the end."""
    times, candidates = runs[f"{task}/{TIME}-{seed}"]["ms"], list_candidates(task, seed)
    lines: dict[str, list[tuple[float, float, Any]]] = {}
    for family in dict.fromkeys(candidate.family for candidate in candidates.values()):
        names = [name for name, candidate in candidates.items() if candidate.family == family or name == WHOLE]
        measured = {name: runs[f"{task}/{name}-{seed}"] for name in names} | {
            FULL: runs[f"{task}/{ADAPTIVE}-{seed}"]["full"]
        }
        lines[family] = [(times[name][0], run[VALIDATION], pick(run)) for name, run in measured.items()]
    return lines


def find_rival(runs: Runs, task: str, seed: int, ms: float) -> str:
    """Return the family that is best at a time on validation data; those that have none as fast do not count where others have."""
    lines = list_lines(runs, task, seed, lambda run: run[VALIDATION])
    fastest = {family: min(place for place, _, _ in line) for family, line in lines.items()}
    fitting = [family for family in lines if fastest[family] <= max(ms, min(fastest.values()))]
    return max(fitting, key=lambda family: interpolate(lines[family], ms))


def find_static(runs: Runs, task: str, seed: int, ms: float, pick: Pick, family: str = "") -> Any:
    """Return a figure of the static networks that take ``ms``: of one ``family``, or of the rival there."""
    return interpolate(list_lines(runs, task, seed, pick)[family or find_rival(runs, task, seed, ms)], ms)


def list_ways(runs: Runs, task: str, seed: int) -> dict[str, Tree]:
    ways = {EXITS: runs[f"{task}/{ADAPTIVE}-{seed}"]}
    ways |= {kind: runs.get(f"{task}/{kind}-{seed}", {}) for kind in (TAUGHT, ROUTED)}
    ways |= runs.get(f"{task}/{CASCADE}-{seed}", {})
    timed = runs[f"{task}/{TIME}-{seed}"]["ways"]
    return {name: way for name, way in ways.items() if way and name in timed}


def read_ms(runs: Runs, task: str, seed: int, way: str, point: str, data: str) -> float:
    return float(runs[f"{task}/{TIME}-{seed}"]["ways"][way][point][data][0])


def subtract_static(runs: Runs, task: str, seed: int, way: str, point: str, data: str, pick: Pick) -> Any:
    """Return a figure of ours minus that of the static networks that take as long on these data."""
    ms = read_ms(runs, task, seed, way, point, data)
    return pick(list_ways(runs, task, seed)[way]["points"][point]) - find_static(runs, task, seed, ms, pick)


def choose_way(runs: Runs, task: str, seed: int, point: str, kinds: tuple[str, ...] = ANY) -> str:
    """Return the way of these kinds that is furthest above the static networks on validation data."""
    ways = [name for name in list_ways(runs, task, seed) if name.startswith(kinds)]
    if len(ways) == 1:
        return ways[0]
    return max(ways, key=lambda way: subtract_static(runs, task, seed, way, point, VALIDATION, lambda run: run[VALIDATION]))


def pick_test(test: str, measure: str) -> Pick:
    return lambda measured: float(measured["tests"][test][measure])


def pick_right(test: str) -> Pick:
    """Pick which samples are right, ``(N,)``."""

    def pick(measured: Tree) -> np.ndarray:
        packed = np.frombuffer(bytes.fromhex(measured["tests"][test]["right"]), np.uint8)
        return np.unpackbits(packed, count=measured["tests"][test]["samples"]).astype(float)

    return pick


def list_tests(runs: Runs, task: str) -> list[str]:
    first = next(run for name, run in runs.items() if name.startswith(f"{task}/{ADAPTIVE}"))
    return list(first["points"][FINAL]["tests"])


def list_points(runs: Runs, task: str, seeds: Sequence[int], point: str = FINAL) -> list[Tree]:
    return [runs[f"{task}/{ADAPTIVE}-{seed}"]["points"][point] for seed in seeds]


def promise_gain(
    key: str,
    what: str,
    bar: float,
    runs: Runs,
    data: tuple[str, str],
    points: Sequence[str] = (FINAL,),
    kinds: tuple[str, ...] = ANY,
) -> Promise:
    """Promise ours minus the static networks of equal time on (task, test), points of accuracy, mean over operating points.

    Where cells kept the answers, samples are paired; where several samples are of one object, objects count.
    """
    (task, test), size = data, GROUPS.get(data[0], 1)
    seeds = [s for s in find_whole_seeds(runs, task) if any(way.startswith(kinds) for way in list_ways(runs, task, s))]

    def subtract(seed: int, pick: Pick) -> Any:
        ways = {point: choose_way(runs, task, seed, point, kinds) for point in points}
        return (
            100 * sum(subtract_static(runs, task, seed, way, point, test, pick) for point, way in ways.items()) / len(points)
        )

    try:
        values = np.stack([subtract(seed, pick_right(test)) for seed in seeds])  # (R,N)
    except KeyError:  # earlier cells did not keep answers
        ours, gains = (
            list_points(runs, task, seeds, points[0]),
            [subtract(seed, pick_test(test, "accuracy")) for seed in seeds],
        )
        error = share_error(list(map(pick_test(test, "accuracy"), ours)), count_samples(ours, test) // size)
        return Promise.of_mean(key, what, gains, ">=", bar, 100 * math.sqrt(2) * error)
    return Promise.of_both(key, what, values.reshape(len(values), -1, size).mean(2), ">=", bar)


# Promises: means over seeds, paired by seed

GAIN_POINTS = (FINAL, "1", "3")
AGREE, DISAGREE, GAIN, LOST = 0.5, 5.0, 1.5, 0.3  # points
LEAST_ROOM, LEAST_RIGHT = 0.1, 0.4  # of tasks with headroom: what the final exit has over exit 0, and what that has
EARLY = ((0.25, 0.75), (0.5, 0.92))  # pictures: time up to which an exit stands, and its share of the final accuracy
SPEED = {"scenes": 2.7, "fashion": 2.7, "pictures": 2.0}
BARS = {"scenes": {"agreeing": AGREE, "disagreeing": DISAGREE}, "pictures": {"test": AGREE}}
GROUPS = {"pictures": PICTURES["test"]}  # successive test samples that show the same object


def list_promises(runs: Runs) -> Iterator[Promise]:
    for task in SPEED:
        seeds = find_timed_seeds(runs, task)
        if len(seeds) == SEEDS[task]:
            yield from promise_speeds(runs, task, seeds)
            yield from promise_early(runs, task, seeds) if task == "pictures" else ()
    for task, bars in BARS.items():
        for test, bar in bars.items() if len(find_whole_seeds(runs, task)) == SEEDS[task] else ():
            what = f"{task}, {test}: accuracy over the static network of equal time, points"
            yield promise_gain(f"static|{task}|{test}", what, bar, runs, (task, test))
    if all(len(find_whole_seeds(runs, task)) > 1 for task in HEADROOM):
        yield from promise_headroom(runs)


def promise_headroom(runs: Runs) -> Iterator[Promise]:
    """Promise the gain of exits or a cascade, chosen on validation data, mean over the operating points, on each task and on all.

    The interval of the mean over tasks counts the degrees of freedom of all of them, as if seeds varied alike on each.
    """
    from scipy import stats

    gains, freedom = [], [len(find_whole_seeds(runs, task)) - 1 for task in HEADROOM]
    for task in HEADROOM:
        what = f"{task}: exits or cascade over the static networks of equal time, points, mean over three times"
        gains.append(promise_gain(f"static|headroom|{task}", what, 0.0, runs, (task, "test"), GAIN_POINTS))
        yield gains[-1]
    narrower = stats.t.ppf(0.975, sum(freedom)) / stats.t.ppf(0.975, freedom)  # by task
    halves = [(gain.ends[1] - gain.ends[0]) / 2 for gain in gains if gain.ends]
    half = math.hypot(*(narrower * halves)) / len(gains)
    middle, what = mean(gain.measured for gain in gains), "tasks with headroom: the same, mean over tasks"
    yield Promise.of_half("static|headroom", what, middle, ">=", GAIN, half)


def promise_speeds(runs: Runs, task: str, seeds: Sequence[int]) -> Iterator[Promise]:
    """Promise speed and points lost on test data, held to the full network's accuracy and (``own``) to our own final exit's."""
    first = list_tests(runs, task)[0]
    pick, size = pick_test(first, "accuracy"), GROUPS.get(task, 1)
    for point, suffix, words in ((FULL, "", "the full network"), (FINAL, "|final", "our own final exit")):
        ours = list_points(runs, task, seeds, point)
        full = [pick(runs[f"{task}/{ADAPTIVE}-{seed}"]["full"]) for seed in seeds]
        before = full if point == FULL else [run["tests"][first]["exit_accuracy"][-1] for run in ours]
        ratios = [runs[f"{task}/{TIME}-{seed}"]["full_over"][point][first][0] for seed in seeds]
        what = f"{task}: times as fast as the full network, batch 64, held to {words}"
        yield Promise.of_mean(f"static|speed|{task}{suffix}", what, ratios, ">=", SPEED[task])
        what, samples = f"{task}: points lost at that speed to {words}, {first}", count_samples(ours, first) // size
        yield Promise.of_points(f"static|lost|{task}{suffix}", what, before, list(map(pick, ours)), samples, "<=", LOST)


def promise_early(runs: Runs, task: str, seeds: Sequence[int]) -> Iterator[Promise]:
    """Promise the accuracy of the exits that answer in a quarter and in half of the full network's time; 0 if there is none."""
    first, ours = list_tests(runs, task)[0], list_points(runs, task, seeds)
    times = [runs[f"{task}/{TIME}-{seed}"]["exit_share"] for seed in seeds]
    accuracy = [run["tests"][first]["exit_accuracy"] for run in ours]
    for most, bar in EARLY:
        is_early = [[time <= most for time, _, _ in shares.values()] for shares in times]
        within = [max([0.0, *compress(*pair)]) for pair in zip(accuracy, is_early, strict=True)]
        what = f"{task}: accuracy of the exit at {100 * most:.0f} % of the time over the final exit's"
        finals, samples = [exits[-1] for exits in accuracy], count_samples(ours, first) // GROUPS.get(task, 1)
        yield promise_ratio(f"static|early|{task}|{most}", what, within, finals, samples, bar)


def write_tables(runs: Runs) -> list[str]:
    lines = [*write_summary(runs), ""]
    for task in SEEDS:
        if find_whole_seeds(runs, task):
            lines += [f"**{TITLES[task]}**", "", *write_task(runs, task), ""]
    return [*lines, *promise_table(list_promises(runs))]


def write_summary(runs: Runs) -> list[str]:
    """Say which tasks have headroom, and who wins on each."""
    rows = []
    for task in SEEDS:
        if not (ours := [run for seed in range(SEEDS[task]) if (run := runs.get(f"{task}/{ADAPTIVE}-{seed}"))]):
            continue
        first = list_tests(runs, task)[0]
        exits = np.mean([run.get("exits") or run["points"][FINAL]["tests"][first]["exit_accuracy"] for run in ours], 0)
        has_room = exits[-1] - exits[0] >= LEAST_ROOM and exits[0] >= LEAST_RIGHT
        cells = [str(len(ours)), *(f"{100 * value:.1f}" for value in (exits[0], exits[-1], exits[-1] - exits[0]))]
        cells += [VALIDATION if "exits" in ours[0] else first, "yes" if has_room else "no"]
        points = GAIN_POINTS if task in HEADROOM else (FINAL,)
        timed = find_whole_seeds(runs, task)
        rows.append(
            [
                TITLES[task],
                *cells,
                *(write_gain(promise_gain("", "", 0.0, runs, (task, first), points)) if timed else ["", ""]),
            ]
        )
    head = [
        "",
        "seeds",
        "exit 0, %",
        "final exit, %",
        "headroom, points",
        "on",
        "enough",
        "ours minus static, points",
        "wins",
    ]
    return table(head, rows)


def write_gain(gain: Promise) -> list[str]:
    """Write a gain with its interval, and who wins by it."""
    low, high = gain.ends or (-math.inf, math.inf)
    return [gain.figure, "ours" if low > 0 else "static" if high < 0 else "undecided"]


def write_winners(runs: Runs) -> list[str]:
    """Say for each task with headroom who wins, which rival was the best, and what is behind it."""
    return [write_winner(runs, task, seeds) for task in HEADROOM if (seeds := find_whole_seeds(runs, task))]


def write_winner(runs: Runs, task: str, seeds: Sequence[int]) -> str:
    first, rivals, chosen, slower = list_tests(runs, task)[0], Counter[str](), Counter[str](), []
    for seed, point in product(seeds, GAIN_POINTS):
        way = choose_way(runs, task, seed, point)
        chosen[way] += 1
        rivals[find_rival(runs, task, seed, read_ms(runs, task, seed, way, point, first))] += 1
        slower.append(measure_overhead(runs, task, seed, point, first))
    figure, winner = write_gain(promise_gain("", "", 0.0, runs, (task, first), GAIN_POINTS))
    cut = next(name for name, candidate in CANDIDATES[task].items() if candidate.family == "cut")
    alone, whole = (100 * mean(runs[f"{task}/{name}-{seed}"][VALIDATION] for seed in seeds) for name in (cut, WHOLE))
    ours, taught = (
        100 * np.mean([runs[f"{task}/{kind}-{seed}"]["exits"] for seed in seeds], 0) for kind in (ADAPTIVE, TAUGHT)
    )
    listed = (", ".join(f"{name} {count}" for name, count in counts.most_common()) for counts in (rivals, chosen))
    return (
        f"- **{TITLES[task]}**: ours minus static {figure} points at equal time ({winner}; seeds {len(seeds)}, three times each). "
        "Best rivals: {}; chosen of ours: {}. ".format(*listed)
        + f"The layers up to exit 0 have {alone:.1f} % alone, {ours[0]:.1f} % in our network and {taught[0]:.1f} % with wide necks and a teacher; "
        f"the distilled full network has {whole:.1f} %, our final exit {ours[-1]:.1f} and {taught[-1]:.1f} % (validation). "
        f"Routing takes {mean(slower):.2f} times what the exits that it takes would need alone."
    )


def measure_overhead(runs: Runs, task: str, seed: int, point: str, data: str) -> float:
    """Return the time of our exits over the sum of what each takes alone, by how often it is taken."""
    times, shares = (
        runs[f"{task}/{TIME}-{seed}"],
        runs[f"{task}/{ADAPTIVE}-{seed}"]["points"][point]["tests"][data]["exit_shares"],
    )
    alone = (
        sum(share * taken[0] for share, taken in zip(shares, times["exit_share"].values(), strict=True))
        * times["ms"][FULL][0]
    )
    return read_ms(runs, task, seed, EXITS, point, data) / alone


def write_task(runs: Runs, task: str) -> list[str]:
    seeds, rows, first = find_whole_seeds(runs, task), [], list_tests(runs, task)[0]
    times = [runs[f"{task}/{TIME}-{seed}"] for seed in seeds]
    named = [name for seed in seeds for name in list_ways(runs, task, seed) if task in HEADROOM]
    kinds = {kind: title for kind, title in KINDS.items() if any(name.startswith(kind) for name in named)}
    for point, test in (
        (point, test) for point, tests in times[0]["ways"][EXITS].items() for test in tests if test != VALIDATION
    ):
        pick, chosen = pick_test(test, "accuracy"), [choose_way(runs, task, seed, point) for seed in seeds]
        ms = [read_ms(runs, task, seed, way, point, test) for seed, way in zip(seeds, chosen, strict=True)]
        full = [pick(runs[f"{task}/{ADAPTIVE}-{seed}"]["full"]) for seed in seeds]
        ours = [pick(list_ways(runs, task, seed)[way]["points"][point]) for seed, way in zip(seeds, chosen, strict=True)]
        others = [find_static(runs, task, seed, taken, pick) for seed, taken in zip(seeds, ms, strict=True)]
        held = f"{100 * POINTS[point]:g} below {'the full network' if point == FULL else 'its final exit'}"
        means = [f"{100 * mean(values):.1f}" for values in (full, ours, others)]
        gains = [
            promise_gain("", "", 0.0, runs, (task, test), (point,), each) for each in (ANY, *((kind,) for kind in kinds))
        ]
        names = [", ".join(f"{way} {count}" for way, count in Counter(chosen).items())] if kinds else []
        rows.append(
            [test, held, f"{mean(ms):.3f}", *means, *write_gain(gains[0]), *names, *(gain.figure for gain in gains[1:])]
        )
    head = ["test data", "ours, points", "ms a sample", "full, %", "ours, %", "static, %", "ours minus static", "wins"]
    head += ["chosen (seeds)", *(f"{title} minus static" for title in kinds.values())] if kinds else []
    rates = ", ".join(f"{part} {read_part_rate(runs, task, part):.2g}" for part in list_parts(task)) if kinds else "all 1"
    exit_times = join_means([[time for time, _, _ in run["exit_share"].values()] for run in times], 0, 100)
    right = join_means([run["tests"][first]["exit_accuracy"] for run in list_points(runs, task, seeds)], 1, 100)
    return [
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}; learning rates, times the recipe's: {rates}. The full network takes "
        f"{mean(run['ms'][FULL][0] for run in times):.3f} ms; our exits, were they to answer everything, {exit_times} % of that, and "
        f"{right} % of their answers are right ({first}).",
        "",
        *table(head, rows),
    ]


def read_part_rate(runs: Runs, task: str, part: str) -> float:
    """Return the rate at which the networks of a part were trained, with the first seed."""
    ours = runs[f"{task}/{ADAPTIVE}-0"]
    cells = {candidate.family: runs[f"{task}/{name}-0"] for name, candidate in CANDIDATES[task].items()}
    return float({**cells, EGT: ours, PLAIN: ours["full"]}[part]["rate"])


STUDY = Study(
    "static",
    list_cells,
    list_promises,
    {"static-winners": write_winners, "static": write_tables},
    processes=2,
    alone="*/time-*",
)
