"""One harness for all studies: it measures cells and keeps them, checks promises, and writes tables into pages.

A study is a module of this package with a ``STUDY`` that says which cells can be measured (such as ``scenes/egt-0``), what is
promised about them, and which tables its pages have. ``python -m benchmarks`` runs it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np

from benchmarks.results import FOLDER, Runs, Tree, read_results, write_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
Job = Callable[[], Tree]  # importable or a partial: it is called in a process of its own
Sense = Literal["<=", ">="]
State = Literal["kept", "undecided", "missed"]
Clock = Callable[[], float]
NORMAL = 1.96  # standard errors to either side of a 95 % interval
STUDIES = (
    "performance", "explorer", "edge", "guarantees", "loading", "processes", "relevance", "serving", "traces",
    "training", "loops", "neighbour", "cues", "binding", "gating", "rules", "cascades", "adapting", "compare", "planning", "pictures", "series", "targets", "truth", "fashion", "texts", "static", "recipes", "backbones", "compat", "demo", "packages", "segmentation", "vectors",
)  # fmt: skip


# Promises: a measured figure beside the bar that it should reach, and the reason for a miss that is known


@dataclass(frozen=True)
class Promise:
    """A promise and what was measured: it is kept or missed where the whole 95 % interval says so, else undecided."""

    key: str  # name of the promise, which patterns in known_misses.json match
    what: str  # the promise in words
    measured: float
    sense: Sense  # side of the bar on which the figure should be
    bar: float
    ends: tuple[float, float] | None = None  # of the figure's 95 % interval; without one the promise is undecided
    exact: bool = False  # a count, a size or a comparison that comes out the same every time has no interval

    @property
    def state(self) -> State:
        low, high = (self.measured,) * 2 if self.exact else self.ends or (-math.inf, math.inf)
        worst, best = (low - self.bar, high - self.bar) if self.sense == ">=" else (self.bar - high, self.bar - low)
        return "kept" if worst >= 0 else "missed" if best < 0 else "undecided"

    @property
    def reason(self) -> str:
        """Return why it is missed, from known_misses.json; empty for any other, and for a miss that is not known."""
        known = read_known_misses().items()
        return next((text for pattern, text in known if fnmatch(self.key, pattern)), "") if self.state == "missed" else ""

    @property
    def figure(self) -> str:
        """Return the figure with its interval: ``1.06 ± 0.11``, or the two ends where it is not in the middle."""
        if self.ends is None:
            return f"{self.measured:.3g}" + ("" if self.exact else " (no interval)")
        low, high = self.ends
        half = (high - low) / 2
        is_middle = abs(low + half - self.measured) <= 1e-9 + 0.005 * half
        return f"{self.measured:.3g} ± {half:.2g}" if is_middle else f"{self.measured:.3g} ({low:.3g} to {high:.3g})"

    def __str__(self) -> str:
        state = "MISSED" if self.state == "missed" and not self.reason else self.state
        return f"{state:9} {self.what:100} {self.figure} {self.sense} {self.bar:.4g}"

    @classmethod
    def of_half(cls, key: str, what: str, middle: float, sense: Sense, bar: float, half: float) -> Self:
        """Promise the middle of an interval of which half the width is known; infinite: there is none."""
        return cls(key, what, middle, sense, bar, None if math.isinf(half) else (middle - half, middle + half))

    @classmethod
    def of_mean(cls, key: str, what: str, values: Sequence[float], sense: Sense, bar: float, error: float = 0.0) -> Self:
        """Promise a mean over seeds, with its t-interval and, in quadrature, the standard ``error`` that the test samples add."""
        middle, half = interval(values, error)
        return cls.of_half(key, what, middle, sense, bar, half)

    @classmethod
    def of_points(
        cls, key: str, what: str, shares: Sequence[float], others: Sequence[float], samples: int, sense: Sense, bar: float
    ) -> Self:
        """Promise a difference of accuracies on so many samples, in points, run by run."""
        points = [100 * (a - b) for a, b in zip(shares, others, strict=True)]
        error = 100 * math.hypot(share_error(shares, samples), share_error(others, samples))
        return cls.of_mean(key, what, points, sense, bar, error)

    @classmethod
    def of_both(cls, key: str, what: str, values: np.ndarray, sense: Sense, bar: float) -> Self:  # (R,N)
        """Promise a mean over runs and the samples that they share, whose every value is known (:func:`bootstrap_error`)."""
        from scipy import stats

        half = float(stats.t.ppf(0.975, len(values) - 1)) * bootstrap_error(values) if len(values) > 1 else math.inf
        return cls.of_half(key, what, float(values.mean()), sense, bar, half)

    @classmethod
    def of_share(cls, key: str, what: str, share: float, count: int, sense: Sense, bar: float) -> Self:
        """Promise a share of so many draws, with its interval by Wilson (1927)."""
        middle, whole = share + NORMAL**2 / (2 * count), 1 + NORMAL**2 / count
        half = NORMAL * (share * (1 - share) / count + (NORMAL / count) ** 2 / 4) ** 0.5
        return cls(key, what, share, sense, bar, ((middle - half) / whole, (middle + half) / whole))

    @classmethod
    def of_median(
        cls, key: str, what: str, summary: Sequence[float], sense: Sense, bar: float, quartiles_of: int = 0
    ) -> Self:
        """Promise a median that has the ends of its interval beside it, or the quartiles of so many rounds.

        These give the median plus or minus 1.57 interquartile ranges over the root of the rounds (McGill et al. 1978).
        """
        middle, low, high = summary
        if quartiles_of:
            return cls.of_half(key, what, middle, sense, bar, 1.57 * (high - low) / quartiles_of**0.5)
        return cls(key, what, middle, sense, bar, (low, high))


def interval(values: Sequence[float], error: float = 0.0) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % t-interval, which is infinite for a single value.

    A standard ``error`` that the test samples add widens it in quadrature.
    """
    from scipy import stats

    if len(values) < 2:
        return mean(values), math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean(values), math.hypot(half, NORMAL * error)


def share_error(shares: Sequence[float], samples: int) -> float:
    """Return the standard error that so many samples, the same for all runs, leave to the runs' mean share.

    It is that of a share with two more samples of either kind (Agresti & Coull 1998), and an upper bound for means of other values
    between 0 and 1.
    """
    share = (min(mean(shares), 1.0) * samples + 2) / (samples + 4)
    return (share * (1 - share) / (samples + 4)) ** 0.5


def bootstrap_error(values: np.ndarray) -> float:  # (R,N)
    """Return the standard error of the mean over R runs (two or more) and the N samples that they share, by a two-way bootstrap.

    Runs and samples count both, as if drawn with replacement, independently of each other (Owen & Eckles 2012, arXiv 1106.2125,
    whose intervals err to the wide side). Its variance is known without drawing: that of the samples' means, that of the runs' means
    and what is left, each over what it is a mean of. The error is widened by sqrt(R / (R - 1)), since few runs vary too little.
    """
    runs, samples = values.mean(1, keepdims=True), values.mean(0)  # (R,1), (N)
    rest = values - runs - samples + values.mean()
    variance = samples.var() / values.shape[1] + runs.var() / len(values) + rest.var() / values.size
    return float((variance * len(values) / (len(values) - 1)) ** 0.5)


@cache
def read_known_misses() -> dict[str, str]:
    return json.loads((Path(__file__).parent / "known_misses.json").read_text())


def promise_table(promises: Iterable[Promise]) -> list[str]:
    """Return a table of promises, followed by the reasons of the missed ones; no line without promises."""
    rows, reasons = [], []
    for promise in promises:
        rows.append([promise.what, promise.figure, f"{promise.sense} {promise.bar:g}", promise.state])
        reasons.append(promise.reason)
    notes = [f"- {reason}" for reason in dict.fromkeys(filter(None, reasons))]
    return [*table(["promise", "measured", "bar", "state"], rows), *(["", *notes] if notes else [])] if rows else []


# Pages: parts between ``<!-- NAME: ... -->`` and ``<!-- end of NAME -->`` are written here, with their tables and charts


def list_pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.md"))]


def fill(name: str, lines: Sequence[str], pages: Iterable[Path] | None = None) -> list[Path]:
    """Rewrite a part on every page that has both its markers, and return these pages."""
    pattern = re.compile(rf"(<!-- {re.escape(name)}: [^\n]*-->)(.*?)<!-- end of {re.escape(name)} -->", re.DOTALL)
    written = []
    for path in list_pages() if pages is None else pages:
        text = path.read_text()
        page, count = pattern.subn(lambda match: "\n".join([match[1], "", *lines, "", f"<!-- end of {name} -->"]), text)
        if count != text.count(f"<!-- {name}: ") or count != text.count(f"<!-- end of {name} -->"):
            raise SystemExit(f"{path}: expected '<!-- {name}: ... -->' and '<!-- end of {name} -->', got only one of them")
        if count:
            path.write_text(page)
            written.append(path)
    return written


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def join_means(columns: Iterable[Sequence[float | None]], digits: int, scale: float = 1) -> str:
    """Join the means over runs of each exit's value, without those that are ``None``: ``0.12 / 0.34 / none``."""
    exits = ([scale * value for value in column if value is not None] for column in zip(*columns, strict=True))
    return " / ".join(f"{mean(values):.{digits}f}" if values else "none" for values in exits)


def show_interval(values: Sequence[float], digits: int = 2) -> str:
    """Write a middle value and the two ends around it: ``1.20 (1.10 to 1.30)``."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure that is the same file every time: text as text, coordinates to a hundredth of a point."""
    import matplotlib as mpl

    fonts = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"]}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "exitlens", **fonts}):
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", path.read_text())
    path.write_text(re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text))


def take_turns(
    works: Mapping[str, Callable[[int], object]], rounds: int, warm_up: int = 2, clock: Clock = time.process_time
) -> dict[str, list[float]]:
    """Return the seconds of every call ``work(round)``: all works in turn, each round in the other order, after the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + warm_up):
        for name in list(works)[:: 1 if turn % 2 else -1]:
            started = clock()
            works[name](turn)
            if turn >= warm_up:
                seconds[name].append(clock() - started)
    return seconds


def spread(values: Sequence[float], digits: int = 4, ends: tuple[float, float] = (0, 100)) -> list[float]:
    """Return the median and two percentiles, by default the least and the most."""
    return [round(float(value), digits) for value in np.percentile(values, (50, *ends))]


def run_alone(work: Callable[..., Tree], *arguments: Any) -> Tree:
    """Return what a function measures in a new process with one thread."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), use_one_thread) as pool:
        return pool.submit(work, *arguments).result()


@dataclass(frozen=True)
class Study:
    """A measurement: its cells, its promises and its tables.

    Attributes:
        cells: returns the jobs by the names of the cells, in the order of measurement; given ``True``, quick jobs to try the code.
        tables: for each marker on the pages, the function that writes the lines between its ends.
    """

    name: str  # of the module, of ``results/NAME.csv`` and of ``runs/NAME``, where cells may keep files
    cells: Callable[[bool], Mapping[str, Job]]
    promises: Callable[[Runs], Iterable[Promise]] = lambda runs: ()  # lists the promises about the cells that are there
    tables: Mapping[str, Callable[[Runs], Sequence[str]]] = field(default_factory=dict)
    finish: Callable[[Runs], None] = lambda runs: None  # writes what is not text, such as a chart
    processes: int = 1  # cells that are measured side by side; if several, each has one thread
    alone: str = ""  # pattern of cells that are measured one at a time after all others, since they are timed

    @property
    def folder(self) -> Path:
        return Path("runs") / self.name

    def read(self, folder: Path = FOLDER) -> Runs:
        """Return what every committed cell measured, in the order of the cells."""
        runs = read_results(folder / f"{self.name}.csv")
        return {name: runs[name] for name in dict.fromkeys([*self.cells(False), *runs]) if name in runs}

    def write_pages(self) -> list[Path]:
        """Write all tables; the first one says which cells are missing."""
        runs = self.read()
        missing = [name for name in self.cells(False) if name not in runs]
        count = len(self.cells(False)) - len(missing)
        note = f"**Not complete**: {count} of {count + len(missing)} runs are there; `python -m benchmarks {self.name} run` goes on."
        pages = []
        for i, (marker, write) in enumerate(self.tables.items()):
            pages += fill(marker, [*([note, ""] if missing and i == 0 else []), *write(runs)])
        if runs:
            self.finish(runs)
        return list(dict.fromkeys(pages))


def list_by_seed(measure: Callable[..., Tree], seeds: Mapping[str, int]) -> dict[str, Job]:
    """Return cells PART/PART-SEED, so many of each, whose parts and seed ``measure`` is given.

    They come seed by seed: what is there after any time is complete for some seeds.
    """
    pairs = [(name, seed) for seed in range(max(seeds.values())) for name, count in seeds.items() if seed < count]
    return {f"{name}-{seed}": partial(measure, *name.split("/"), seed) for name, seed in pairs}


def load_study(name: str) -> Study:
    return import_module(f"benchmarks.{name}").STUDY


def run_cells(
    study: Study,
    patterns: Sequence[str] = (),
    *,
    quick: bool = False,
    again: bool = False,
    processes: int = 0,
    folder: Path = FOLDER,
) -> list[str]:
    """Measure the chosen cells (patterns as in shells) that have no result yet, each in a new process; return the names of those that failed."""
    jobs, path = study.cells(quick), folder / f"{study.name}.csv"
    start = use_one_thread if study.processes > 1 else None
    known = {} if quick or again else read_results(path)
    chosen = [name for name in jobs if not patterns or any(fnmatch(name, pattern) for pattern in patterns)]
    todo = [name for name in chosen if name not in known]
    if len(todo) < len(chosen):
        print(f"{study.name}: {len(chosen) - len(todo)} of {len(chosen)} cells are there already")
    side_by_side = [name for name in todo if not fnmatch(name, study.alone)]
    one_by_one = [name for name in todo if name not in side_by_side]
    failed: list[str] = []
    done = 0
    for names, workers in ((side_by_side, processes or study.processes), (one_by_one, 1)):
        spawn = multiprocessing.get_context("spawn")  # cells share neither memory nor settings
        with ProcessPoolExecutor(workers, spawn, start, max_tasks_per_child=1) as pool:
            futures = {pool.submit(call_job, jobs[name]): name for name in names}
            for future in as_completed(futures):
                name, done = futures[future], done + 1
                try:
                    seconds, tree = future.result()
                except Exception as error:
                    failed.append(name)
                    print(f"[{done}/{len(todo)}] {name} failed: {type(error).__name__}: {error}", flush=True)
                    continue
                if not quick:
                    write_result(path, name, tree, jobs)
                result = f": {json.dumps(tree, ensure_ascii=False)[:400]}" if quick else ""
                print(f"[{done}/{len(todo)}] {name}: {seconds:.0f} s{result}", flush=True)
    return failed


def call_job(job: Job) -> tuple[float, Tree]:
    warnings.filterwarnings("ignore", category=UserWarning)
    started = time.perf_counter()
    tree = job()
    return time.perf_counter() - started, tree


def use_one_thread() -> None:
    """Give each of several processes one thread, which is faster than several threads in turn."""
    import torch

    from exitlens.model.process import keep_memory

    torch.set_num_threads(1)
    keep_memory()


def check(studies: Iterable[Study], folder: Path = FOLDER) -> bool:
    """Print every promise of these studies beside its committed figure. Return False if one is missed without a known reason."""
    studies = list(studies)
    judged = judge(studies, folder)
    promises = [promise for part in judged.values() for promise in part]
    if not promises:
        print(f"no promise has a figure in {folder}")
        return any(folder.glob("*.csv"))
    print("\n".join(map(str, promises)))
    missed = [promise for promise in promises if promise.state == "missed"]
    for pattern, reason in sorted(read_known_misses().items()):
        if any(fnmatch(promise.key, pattern) for promise in missed):
            print(f"known miss {pattern}: {reason}")
        elif len(studies) == len(STUDIES):
            print(f"not missed any more, take it off known_misses.json: {pattern}")
    for study, *counts in count_states(judged):
        print(f"{study}: {', '.join(map(' '.join, zip(counts, get_args(State), strict=True)))}")
    return all(promise.reason for promise in missed)


def judge(studies: Iterable[Study], folder: Path = FOLDER) -> dict[str, list[Promise]]:
    """Return what studies promise, by their names, without those that promise nothing."""
    promises = {study.name: list(study.promises(study.read(folder))) for study in studies}
    return {name: part for name, part in promises.items() if part}


def count_states(judged: Mapping[str, Sequence[Promise]]) -> list[list[str]]:
    """Return a row for each study, and one for all: how many promises are kept, undecided and missed."""
    parts = {**judged, "all": [promise for part in judged.values() for promise in part]}
    states = {name: [promise.state for promise in part] for name, part in parts.items()}
    return [[name, *(str(part.count(state)) for state in get_args(State))] for name, part in states.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("study", choices=[*STUDIES, "all"], metavar="STUDY", help=f"{', '.join(STUDIES)} or all")
    parser.add_argument("action", nargs="?", choices=["run", "page", "check", "list"], help="default: run, page, then check")
    parser.add_argument("cells", nargs="*", metavar="CELL", help="patterns of cells to run, such as 'scenes/egt-*'")
    parser.add_argument("--quick", action="store_true", help="run on little data, and keep nothing")
    parser.add_argument("--again", action="store_true", help="also run cells that are there already")
    parser.add_argument("--processes", type=int, default=0, metavar="N", help="cells to run side by side")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="DIR", help="folder of results to check")
    given = parser.parse_intermixed_args(arguments)
    studies = [load_study(name) for name in (STUDIES if given.study == "all" else [given.study])]
    actions = [given.action] if given.action else ["run"] if given.quick else ["run", "page", "check"]
    failed: list[str] = []
    ok = True
    for study in studies:
        if "list" in actions:
            print("\n".join(f"{study.name} {name}" for name in study.cells(given.quick)))
        if "run" in actions:
            failed += run_cells(study, given.cells, quick=given.quick, again=given.again, processes=given.processes)
        if "page" in actions:
            print(f"{study.name}: wrote {', '.join(map(str, study.write_pages())) or 'no page'}")
    if "page" in actions:
        judged = judge(map(load_study, STUDIES))
        fill("states", table(["study", *get_args(State)], count_states(judged)))
    if "check" in actions:
        ok = check(studies, given.results)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed) or not ok)
