"""One harness for all studies: it measures cells and keeps them, checks promises, and writes tables into pages.

A study is a module of this package with a ``STUDY`` that says which cells can be measured (such as ``scenes/egt-0``), what is
promised about them, and which tables its pages have. ``python -m benchmarks`` runs it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

from benchmarks.pages import fill
from benchmarks.promises import Promise, list_outdated, print_promises
from benchmarks.results import FOLDER, Runs, Tree, read_results, write_result

Job = Callable[[], Tree]  # importable or a partial: it is called in a process of its own
STUDIES = (
    "performance", "explorer", "edge", "guarantees", "loading", "processes", "relevance", "serving", "traces",
    "training", "neighbour", "pictures", "series", "truth", "texts", "static", "recipes", "backbones", "compat", "demo",
)  # fmt: skip


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
    processes: int = 1  # cells that are measured side by side. More than one: each has one thread
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


def load_study(name: str) -> Study:
    study: Study = import_module(f"benchmarks.{name}").STUDY
    return study


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
        if not names:
            continue
        start = use_one_thread if study.processes > 1 else None
        with ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), start, max_tasks_per_child=1
        ) as pool:  # a fresh process for every cell: neither memory nor settings of one reach another
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
    """Return the seconds that a job took, and what it measured."""
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
    promises = [promise for study in studies for promise in study.promises(study.read(folder))]
    if not promises:
        print(f"no promise has a figure in {folder}")
        return any(folder.glob("*.csv"))
    ok = print_promises(promises)
    if len(studies) == len(STUDIES):
        for key in list_outdated(promises):
            print(f"not missed any more, take it off known_misses.json: {key}")
    return ok


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("study", choices=[*STUDIES, "all"], metavar="STUDY", help=f"{', '.join(STUDIES)}, or all")
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
    if "check" in actions:
        ok = check(studies, given.results)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed) or not ok)
