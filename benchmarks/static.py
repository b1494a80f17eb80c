"""Ours against the alternative: a smaller static network of equal time, distilled from the full one.

Cells: TASK/adaptive-SEED (ours), TASK/CANDIDATE-SEED (such as ``scenes/width-50-0``) and, after them, TASK/time-SEED, which wants an
idle machine. The full network and ours are those of ``truth``, trained here if they are missing. Pictures need ``openclipart-png`` and
the extra ``benchmark``, fashion needs ``dataset-fashion-mnist``. Training takes hours, timing minutes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import exitlens as xl
from benchmarks import tasks
from benchmarks.harness import Job, Promise, Study, join_means, promise_table, share_error, table
from benchmarks.results import Runs, Tree
from benchmarks.tasks import TITLES, Task, build_network
from benchmarks.truth import EGT, PLAIN, count_samples, find_folder, open_task, promise_ratio, train, watch
from exitlens.data.sets import SampleSet
from exitlens.delivery.benchmark import answer_at, pin_threads, time_calls
from exitlens.functional.losses import distillation_loss
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.timing import Work, describe_machine, interleave
from exitlens.types import ExitOutput, LossTerms
from exitlens.types.inputs import Inputs, map_inputs, set_channels_last, split_rows

SEEDS = {"photographs": 3, **tasks.SEEDS}
ADAPTIVE, TIME = "adaptive", "time"
STEM, WIDTHS = 32, (48, 96, 128, 128)  # of SmallResNet
LIMIT = 0.003  # accuracy that routing may lose on validation data
FOLDS = 5  # of these: samples that did not choose the thresholds keep the limit, on average
BATCH, TIMED_BATCH, SAMPLES, ROUNDS, SECONDS = 250, 64, 512, 7, 60.0
FULL, OURS, FAST, EXIT = "full", "ours, ", "fast", "exit "  # names of what is timed; ours has one for each test set
TEMPERATURE, TEACHER_WEIGHT = 2.0, 1.0  # of the distillation


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
    """Return our small network with fewer channels (in steps of 8) and its own classifier."""
    stem, *widths = (8 * round(channels * width / 8) for channels in (STEM, *WIDTHS))
    example, classes = task.train.first(1).inputs, len(task.train.classes)
    backbone = SmallResNet(classes, example.shape[1], stem, widths)  # type: ignore[union-attr]
    return xl.attach(backbone, [], classes, example, final="keep")


def make_cut(task: Task, name: str) -> xl.ExitNet:
    """Return the backbone with its weights up to one module, and the head that an exit has there, without the rest."""
    net = xl.attach(task.build(), [name], len(task.train.classes), task.train.first(1).inputs, head=task.head)
    info = replace(net.info, at=())
    return xl.ExitNet([net.stage(0)], [net.head(0)], net.cost[:1].clone(), net.head_share, info, net.input_spec)


def list_cuts(*names: str) -> dict[str, Candidate]:
    return {f"cut-{name}": Candidate("cut", partial(make_cut, name=name)) for name in names}


WIDTH_CANDIDATES = {f"width-{n}": Candidate("width", partial(make_narrow, width=n / 100)) for n in (33, 50, 71)}
CANDIDATES: dict[str, dict[str, Candidate]] = {
    **dict.fromkeys(
        ("scenes", "small", "digits", "fashion", "photographs"), WIDTH_CANDIDATES | list_cuts("layer1", "layer2")
    ),
    "pictures": list_cuts("blocks.2.0", "blocks.4.0", "blocks.5.1"),
    "vit": list_cuts("blocks.1", "blocks.3"),
    "reviews": list_cuts("bert.encoder.layer.0", "bert.encoder.layer.2"),
}
RIVALS = {**dict.fromkeys(CANDIDATES, "cut"), "digits": "width"}  # by validation data of seed 0
ONCE = {"fashion", "vit"}  # tasks whose static networks are trained with the first seed only
FAMILIES = {"width": "narrower", "cut": "cut early"}


def list_candidates(task: str, seed: int) -> dict[str, Candidate]:
    family = RIVALS[task] if task not in ONCE else None
    return {name: candidate for name, candidate in CANDIDATES[task].items() if seed == 0 or candidate.family == family}


def list_cells(quick: bool = False) -> dict[str, Job]:
    """List all cells, seed by seed: what is there after any time is complete for some seeds."""
    pairs = [(task, seed) for seed in range(max(SEEDS.values())) for task, seeds in SEEDS.items() if seed < seeds]
    cells: dict[str, Job] = {}
    for task, seed in pairs:
        cells[f"{task}/{ADAPTIVE}-{seed}"] = partial(measure_adaptive, task, seed, quick)
        for name in list_candidates(task, seed):
            cells[f"{task}/{name}-{seed}"] = partial(measure_candidate, task, name, seed, quick)
    return cells | {f"{task}/{TIME}-{seed}": partial(measure_times, task, seed, quick) for task, seed in pairs}


class Teacher:
    """A trained network that :func:`exitlens.fit` shows every batch as its student gets it (``augment``); keeps its logits ``(B,C)``."""

    def __init__(self, net: xl.ExitNet) -> None:
        self.net = net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.logits: Tensor | None = None

    def __call__(self, inputs: Inputs) -> Inputs:
        """Answer a batch in float32, and return it unchanged."""
        with torch.no_grad():
            self.logits = self.net(map_inputs(inputs, set_channels_last))[-1].logits
        return inputs


def make_loss(teacher: Teacher) -> xl.EGTLoss:
    """Return cross-entropy plus ``T^2 KL(teacher ‖ student)`` at temperature T (Hinton et al. 2015, arXiv 1503.02531)."""

    @dataclass(frozen=True)
    class DistilledLoss(xl.EGTLoss):  # the teacher is no field: a run records all fields of its loss as JSON
        temperature: float = TEMPERATURE
        teacher_weight: float = TEACHER_WEIGHT

        def __call__(self, outputs: Sequence[ExitOutput], labels: Tensor, *more: Any, **named: Any) -> LossTerms:
            terms = super().__call__(outputs, labels, *more, **named)
            pair = (outputs[-1], outputs[-1]._replace(logits=teacher.logits))
            term = distillation_loss(pair, self.temperature)
            return terms._replace(total=terms.total + self.teacher_weight * term, distillation=term.detach())

    return DistilledLoss(weight=0.0)


class Adapted(NamedTuple):
    """Our network, the plain full one, and two policies, each the cheapest that keeps its limit on held-out validation data."""

    net: xl.ExitNet
    full: xl.ExitNet
    policy: xl.Policy  # loses at most :data:`LIMIT` against our own final exit
    fast: xl.Policy  # so much against the full network; nothing where our final exit has lost that already
    full_accuracy: float  # of the full network, on validation data


def adapt(task: Task, name: str, seed: int, quick: bool) -> Adapted:
    net, full = (train(task, kind, seed, find_folder(name, kind, seed, quick))[0] for kind in (EGT, PLAIN))
    trace = xl.collect(net, task.validation, batch_size=BATCH)
    ours = rate(trace.answers[:, -1], task.validation)["accuracy"]
    full_accuracy = rate(answer(full, task.validation), task.validation)["accuracy"]
    limits = LIMIT, max(LIMIT + ours - full_accuracy, 0.0)
    policy, fast = (xl.calibrate(trace, max_accuracy_drop=limit, folds=FOLDS) for limit in limits)
    return Adapted(net, full, policy, fast, full_accuracy)


def measure_adaptive(name: str, seed: int, quick: bool = False) -> Tree:
    task = open_task(name, seed, 96 if quick else 0)
    net, full, policy, fast, full_accuracy = adapt(task, name, seed, quick)
    measured: Tree = {"limit": LIMIT, "cost": net.cost.tolist(), "tests": {}, "fast": {"tests": {}}}
    measured["full"] = {"tests": {}, "validation": full_accuracy}
    for test, data in task.tests.items():
        reference, trace = answer(full, data), xl.collect(net, data, batch_size=BATCH)
        measured["tests"][test] = route(net, trace, policy, data, reference)
        measured["fast"]["tests"][test] = route(net, trace, fast, data, reference)
        measured["full"]["tests"][test] = rate(reference, data, reference)
    return measured


def route(net: xl.ExitNet, trace: xl.Trace, policy: xl.Policy, data: SampleSet, reference: Tensor) -> Tree:
    exits = xl.route(trace, policy)
    routed = trace.answers.gather(1, exits[:, None])[:, 0]
    return rate(routed, data, reference) | {
        "cost": net.cost[exits].mean().item(),
        "exit_shares": (exits.bincount(minlength=net.num_exits) / len(exits)).tolist(),
        "exit_accuracy": trace.correct.double().mean(0).tolist(),
    }


def measure_candidate(name: str, kind: str, seed: int, quick: bool = False) -> Tree:
    """Train (or go on training) a static network, distilled from the full one by the same recipe, and measure it."""
    task, candidate = open_task(name, seed, 96 if quick else 0), CANDIDATES[name][kind]
    full = train(task, PLAIN, seed, find_folder(name, PLAIN, seed, quick))[0]
    net, teacher = candidate.build(task, seed), Teacher(full)
    folder = Path("runs") / ("static-quick" if quick else "static") / name / f"{kind}-{seed}" / "fit"
    settings: dict[str, Any] = {"seed": seed, "out_dir": folder, "resume": True, "progress": False, **task.settings}
    xl.fit(net, task.train, watch(task), loss=make_loss(teacher), augment=teacher, **settings)
    return {
        "validation": rate(answer(net, task.validation), task.validation)["accuracy"],
        "tests": {test: rate(answer(net, data), data, answer(full, data)) for test, data in task.tests.items()},
    }


def answer(net: xl.ExitNet, data: SampleSet) -> Tensor:  # -> (N,)
    return xl.collect(net, data, batch_size=BATCH).answers[:, -1]


def rate(answers: Tensor, data: SampleSet, reference: Tensor | None = None) -> dict[str, Any]:
    measured = {"samples": len(answers), "accuracy": (answers == data.labels).double().mean().item()}
    if reference is not None:
        measured["agreement"] = torch.eq(answers, reference).double().mean().item()
    return measured


def measure_times(name: str, seed: int, quick: bool = False) -> Tree:
    """Time batches of 64 on one core, all networks tuned and in turn. Static ones need no training, since weights change no time."""
    task, candidates = open_task(name, seed, 96 if quick else 0), list_candidates(name, seed)
    samples = TIMED_BATCH if quick else SAMPLES
    with pin_threads(1):
        works = make_works(task, candidates, adapt(task, name, seed, quick), seed, samples, 0.2 if quick else 4.0)
        times = interleave(works, rounds=2 if quick else ROUNDS, seconds=0.0 if quick else SECONDS)
        facts = {"machine": describe_machine(1), "batch": TIMED_BATCH, "samples": samples, "rounds": len(times.rounds[FULL])}
    return {
        **facts,
        "ms": {name: times.summary(name, samples)["ms"] for name in works if not name.startswith((OURS, FAST, EXIT))},
        "exit_share": {name: times.ratio(name, FULL).to_list() for name in works if name.startswith(EXIT)},
        "adaptive_ms": {test: times.summary(OURS + test, samples)["ms"] for test in task.tests},
        "fast_ms": times.summary(FAST, samples)["ms"],
        "full_over_fast": times.ratio(FULL, FAST).to_list(),
        "full_over_adaptive": {test: times.ratio(FULL, OURS + test).to_list() for test in task.tests},
    }


def make_works(
    task: Task, candidates: Mapping[str, Candidate], adapted: Adapted, seed: int, samples: int, seconds: float
) -> dict[str, Work]:
    net, policy, fast = adapted.net, adapted.policy, adapted.fast
    drawn: dict[str, Inputs] = {}
    for test, data in task.tests.items():
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        drawn[test] = data.subset(order[torch.arange(samples) % len(order)]).inputs
    first = split_rows(next(iter(drawn.values())), TIMED_BATCH)
    settings: dict[str, Any] = {"precision": "float32", "seconds": seconds, "backend": "torch"}
    net.tune(first[0], policy=policy, **settings)
    works: dict[str, Work] = {}

    def add(name: str, net: xl.ExitNet, run: Callable[[Inputs], Any], batches: Sequence[Inputs] = first) -> None:
        works[name] = time_calls(run, batches, net.tuning.keep_memory)

    for test, inputs in drawn.items():
        add(OURS + test, net, partial(xl.predict, net, policy=policy), split_rows(inputs, TIMED_BATCH))
    twin = copy.deepcopy(net)
    twin.tune(first[0], policy=fast, **settings)
    add(FAST, twin, partial(xl.predict, twin, policy=fast))
    for k in range(net.num_exits):
        add(f"{EXIT}{k}", twin, partial(answer_at, twin, k))
    others = {FULL: build_network(task, seed, exits=False)}
    others |= {name: candidate.make(task) for name, candidate in candidates.items()}
    for name, other in others.items():
        other.eval().tune(first[0], **settings)
        add(name, other, partial(answer_at, other, 0))
    return works


# A static network of the time that ours took: accuracy between the two neighbours in time, linearly

Pick = Callable[[Tree], float]


def find_timed_seeds(runs: Runs, task: str) -> list[int]:
    return [s for s in range(SEEDS[task]) if all(f"{task}/{name}-{s}" in runs for name in (ADAPTIVE, TIME))]


def find_whole_seeds(runs: Runs, task: str) -> list[int]:
    """Return the seeds of which everything is there: ours, all static networks, and the times of them all."""
    candidates = {seed: list_candidates(task, seed) for seed in find_timed_seeds(runs, task)}
    done = [seed for seed, names in candidates.items() if names and all(f"{task}/{name}-{seed}" in runs for name in names)]
    return [seed for seed in done if candidates[seed].keys() <= runs[f"{task}/{TIME}-{seed}"]["ms"].keys()]


def interpolate(points: Sequence[tuple[float, float, float]], at: float) -> float:
    """Return the value at ``at`` on the line between neighbours of (place, validation accuracy, value).

    A network that is no better on validation data than one that takes less time is left out, since nobody would take it. Beyond
    the ends the value is that of the end: where the fastest static network takes longer than ours, ours is compared with it.
    """
    kept: list[tuple[float, float, float]] = []
    for point in sorted(points):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return float(np.interp(at, [place for place, _, _ in kept], [value for _, _, value in kept]))


def at_equal_time(runs: Runs, task: str, seed: int, family: str, test: str, pick: Pick, fast: bool = False) -> float:
    """Return a figure of the static network that takes as long as ours on ``test``; ``fast``: by the fast thresholds.

    It is of one ``family`` (with the full network), or of any if that is empty.
    """
    times, candidates = runs[f"{task}/{TIME}-{seed}"], list_candidates(task, seed).items()
    ms, ours = times["ms"], times["fast_ms"] if fast else times["adaptive_ms"][test]
    measured = {name: runs[f"{task}/{name}-{seed}"] for name, candidate in candidates if family in ("", candidate.family)}
    measured[FULL] = runs[f"{task}/{ADAPTIVE}-{seed}"]["full"]
    points = [(ms[name][0], run["validation"], pick(run)) for name, run in measured.items()]
    return interpolate(points, ours[0])


def pick_test(test: str, measure: str) -> Pick:
    return lambda measured: float(measured["tests"][test][measure])


def list_tests(runs: Runs, task: str) -> list[str]:
    first = next(run for name, run in runs.items() if name.startswith(f"{task}/") and "tests" in run)
    return list(first["tests"])


def list_differences(
    runs: Runs, task: str, seeds: Sequence[int], family: str, test: str, fast: bool = False
) -> tuple[list[float], float]:
    """Return ours minus the static network, points of accuracy by seed, and the standard error that the test samples add."""
    pick, measured = pick_test(test, "accuracy"), [runs[f"{task}/{ADAPTIVE}-{seed}"] for seed in seeds]
    ours = [pick(run["fast"] if fast else run) for run in measured]
    others = [at_equal_time(runs, task, seed, family, test, pick, fast) for seed in seeds]
    error = math.hypot(*(share_error(part, count_samples(measured, test)) for part in (ours, others)))
    return [100 * (a - b) for a, b in zip(ours, others, strict=True)], 100 * error


# Promises: ours minus the static network of equal time, means over seeds, paired by seed

AGREE, DISAGREE, HEADROOM, LOST = 0.5, 5.0, 1.5, 0.3  # points
EARLY = ((0.25, 0.75), (0.5, 0.92))  # pictures: time up to which an exit stands, and its share of the final accuracy
SPEED = {"scenes": 2.7, "fashion": 2.7, "pictures": 2.0}
BARS = {
    "scenes": {"agreeing": AGREE, "disagreeing": DISAGREE},
    "pictures": {"test": AGREE},
    "photographs": {"test": HEADROOM},
}


def list_promises(runs: Runs) -> Iterator[Promise]:
    for task in SPEED:
        seeds = find_timed_seeds(runs, task)
        if len(seeds) == SEEDS[task]:
            yield from promise_speeds(runs, task, seeds)
            yield from promise_early(runs, task, seeds) if task == "pictures" else ()
    for task, bars in BARS.items():
        seeds = find_whole_seeds(runs, task)
        for test, bar in bars.items() if len(seeds) == SEEDS[task] else ():
            what = f"{task}, {test}: accuracy over the static network of equal time, points"
            points, error = list_differences(runs, task, seeds, "", test)
            yield Promise.of_mean(f"static|{task}|{test}", what, points, ">=", bar, error)


def promise_speeds(runs: Runs, task: str, seeds: Sequence[int]) -> Iterator[Promise]:
    """Promise speed and points lost on test data, held to the full network's accuracy and (``own``) to our own final exit's."""
    first = list_tests(runs, task)[0]
    pick = pick_test(first, "accuracy")
    ours, times = ([runs[f"{task}/{name}-{seed}"] for seed in seeds] for name in (ADAPTIVE, TIME))
    full, finals = ([pick(run["full"]) for run in ours], [run["tests"][first]["exit_accuracy"][-1] for run in ours])
    fast, held = ([run["full_over_fast"][0] for run in times], [run["full_over_adaptive"][first][0] for run in times])
    by_full = "", "the full network", fast, full, [pick(run["fast"]) for run in ours]
    by_own = "|own", "our own final exit", held, finals, [pick(run) for run in ours]
    for key, words, ratios, before, after in (by_full, by_own):
        what = f"{task}: times as fast as the full network, batch 64, held to {words}"
        yield Promise.of_mean(f"static|speed|{task}{key}", what, ratios, ">=", SPEED[task])
        what = f"{task}: points lost at that speed to {words}, {first}"
        samples = count_samples(ours, first)
        yield Promise.of_points(f"static|lost|{task}{key}", what, before, after, samples, "<=", LOST)


def promise_early(runs: Runs, task: str, seeds: Sequence[int]) -> Iterator[Promise]:
    """Promise the accuracy of the exits that answer in a quarter and in half of the full network's time; 0 if there is none."""
    first = list_tests(runs, task)[0]
    ours, times = ([runs[f"{task}/{name}-{seed}"] for seed in seeds] for name in (ADAPTIVE, TIME))
    accuracy = [run["tests"][first]["exit_accuracy"] for run in ours]
    for most, bar in EARLY:
        is_early = [[time <= most for time, _, _ in run["exit_share"].values()] for run in times]
        within = [max([0.0, *compress(*pair)]) for pair in zip(accuracy, is_early, strict=True)]
        what = f"{task}: accuracy of the exit at {100 * most:.0f} % of the time over the final exit's"
        finals, samples = [exits[-1] for exits in accuracy], count_samples(ours, first)
        yield promise_ratio(f"static|early|{task}|{most}", what, within, finals, samples, bar)


def write_tables(runs: Runs) -> list[str]:
    lines: list[str] = []
    for task in SEEDS:
        if seeds := find_whole_seeds(runs, task):
            lines += [f"**{TITLES[task]}**", "", *write_equal_time(runs, task, seeds), ""]
    return [*lines, *promise_table(list_promises(runs))]


def write_equal_time(runs: Runs, task: str, seeds: Sequence[int]) -> list[str]:
    tests, rival = list_tests(runs, task), RIVALS[task]
    ours, times = ([runs[f"{task}/{name}-{seed}"] for seed in seeds] for name in (ADAPTIVE, TIME))
    full_ms, fast_ms = [mean(run["ms"][FULL][0] for run in times)], [mean(run["fast_ms"][0] for run in times)]
    rows = []
    for title, ms, kept in (
        ("plain full network", full_ms, [run["full"] for run in ours]),
        ("**ours**", average_times(runs, task, seeds, tests), ours),
        ("ours, 0.3 points below the full network", fast_ms, [run["fast"] for run in ours]),
    ):
        rows.append(write_row(title, ms, tests, lambda _, pick, kept=kept: mean(map(pick, kept))))
    families = dict.fromkeys(candidate.family for candidate in CANDIDATES[task].values())
    for family in (*families, *([""] if len(families) > 1 else [])):
        note, trained = ("", seeds) if family in ("", rival) else (", seed 0" if len(seeds) > 1 else "", seeds[:1])

        def find(test: str, pick: Pick, family: str = family, trained: Sequence[int] = trained) -> float:
            return mean(at_equal_time(runs, task, seed, family, test, pick) for seed in trained)

        kind = FAMILIES.get(family, "the best of all on validation data")
        rows.append(write_row(f"static, {kind}{note}", average_times(runs, task, trained, tests), tests, find))
    head = ["", "ms a sample", "accuracy, %", "agreement with the full network, %", "points lost by the shift"]
    differences = [list_differences(runs, task, seeds, "", test) for test in tests]
    differences.append(list_differences(runs, task, seeds, "", tests[0], fast=True))
    *figures, at_full = (Promise.of_mean("", "", points, ">=", 0, error).figure for points, error in differences)
    words = "; ".join(f"{test} {figure}" for test, figure in zip(tests, figures, strict=True))
    exit_times = join_means([[time for time, _, _ in run["exit_share"].values()] for run in times], 0, 100)
    exit_accuracy = join_means([run["tests"][tests[0]]["exit_accuracy"] for run in ours], 1, 100)
    sets = f", test sets {', '.join(tests)} one after the other" if len(tests) > 1 else ""
    return [
        f"Means over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}{sets}.",
        "",
        *table(head, rows),
        "",
        f"Our exits, were they to answer everything, take {exit_times} % of the full network's time, and {exit_accuracy} % are right ({tests[0]}).",
        "",
        f"Ours minus the best static network, points of accuracy: {words}. At 0.3 points below the full network: {tests[0]} {at_full}.",
    ]


def average_times(runs: Runs, task: str, seeds: Sequence[int], tests: Sequence[str]) -> list[float]:
    return [mean(runs[f"{task}/{TIME}-{seed}"]["adaptive_ms"][test][0] for seed in seeds) for test in tests]


def write_row(title: str, times: Sequence[float], tests: Sequence[str], find: Callable[[str, Pick], float]) -> list[str]:
    """Write what ``find`` picks of the network that is compared on a test; the shift is that of one network, on the first."""
    accuracy, agreement = ([find(test, pick_test(test, measure)) for test in tests] for measure in ("accuracy", "agreement"))
    first, *others = (pick_test(test, "accuracy") for test in tests)
    lost = [find(tests[0], lambda run, pick=pick: first(run) - pick(run)) for pick in others]
    cells = [" / ".join(f"{100 * value:.1f}" for value in values) for values in (accuracy, agreement, lost)]
    return [title, " / ".join(f"{ms:.3f}" for ms in times), *cells]


STUDY = Study("static", list_cells, list_promises, {"static": write_tables}, processes=2, alone="*/time-*")
