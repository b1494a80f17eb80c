"""Prints every promise beside its committed figure; exit code 1 for a miss that is not listed as known.

Usage: python -m benchmarks.check [--results DIR]
       python -m benchmarks.check --demo [runs/demo-full/result.json]   (the promises of a finished demo instead)

Known misses, each with its reason, are in benchmarks/known_misses.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.demo.promises import list_promises as list_demo_promises
from benchmarks.edge.promises import list_promises as list_edge
from benchmarks.edge.runs import EDGE
from benchmarks.guarantees.promises import list_promises as list_guarantees
from benchmarks.loading.promises import list_promises as list_loading
from benchmarks.performance.promises import list_explorer_promises, list_memory_promises
from benchmarks.performance.promises import list_promises as list_speeds
from benchmarks.performance.runs import PERFORMANCE
from benchmarks.pictures.promises import list_promises as list_pictures
from benchmarks.pictures.runs import PICTURES
from benchmarks.processes.promises import list_promises as list_processes
from benchmarks.promises import Promise, add_reasons, read_known_misses
from benchmarks.relevance.promises import list_promises as list_relevance
from benchmarks.relevance.runs import RELEVANCE
from benchmarks.series.promises import list_promises as list_series
from benchmarks.series.runs import SERIES
from benchmarks.serving.promises import list_promises as list_serving
from benchmarks.serving.runs import SERVING
from benchmarks.site.promises import list_promises as list_site
from benchmarks.site.runs import SITE
from benchmarks.static.promises import list_promises as list_static
from benchmarks.static.runs import STATIC
from benchmarks.store import GUARANTEES, LOADING, PROCESSES, RESULTS, Store
from benchmarks.study.conditions import find_missing
from benchmarks.study.report.promises import list_promises as list_study
from benchmarks.study.runs import STUDY
from benchmarks.texts.promises import list_promises as list_texts
from benchmarks.texts.runs import TEXTS
from benchmarks.traces.promises import list_promises as list_traces
from benchmarks.traces.runs import TRACES
from benchmarks.training.promises import list_promises as list_training
from benchmarks.training.runs import TRAINING
from benchmarks.truth.promises import list_promises as list_truth
from benchmarks.truth.runs import TRUTH

BY_RUN = (
    (EDGE, list_edge),
    (GUARANTEES, list_guarantees),
    (LOADING, list_loading),
    (PROCESSES, list_processes),
    (RELEVANCE, list_relevance),
    (SERVING, list_serving),
    (SITE, list_site),
    (TRACES, list_traces),
    (TRAINING, list_training),
)


def open_store(store: Store, folder: Path) -> Store:
    """The same store in another folder of results."""
    return replace(store, path=folder / store.path.name)


def list_promises(folder: Path) -> Iterator[Promise]:
    """Of every committed result."""
    speeds = open_store(PERFORMANCE, folder).read()
    for name in sorted(name for name in speeds if not name.startswith("memory-")):
        yield from list_speeds(name, speeds[name])
        if f"memory-{name}" in speeds:
            yield from list_memory_promises(name, speeds[f"memory-{name}"])
    for store, list_of_run in BY_RUN:
        runs = open_store(store, folder).read()
        for name in sorted(runs):
            yield from list_of_run(name, runs[name])
    if (folder / "explorer.json").exists():
        yield from list_explorer_promises(json.loads((folder / "explorer.json").read_text()))
    yield from list_pictures(open_store(PICTURES, folder).read())
    yield from list_series(open_store(SERIES, folder).read())
    yield from list_truth(open_store(TRUTH, folder).read())
    yield from list_texts(open_store(TEXTS, folder).read(), open_store(TRUTH, folder).read())
    yield from list_static(open_store(STATIC, folder).read())
    study = open_store(STUDY, folder)
    if study.path.exists() and not find_missing(study):
        yield from list_study(study)


def print_promises(promises: Sequence[Promise]) -> bool:
    """A line for each promise, then the known misses with their reasons; whether nothing else was missed."""
    known, used = read_known_misses(), set()
    for promise in promises:
        print(promise)
        if not promise.is_kept:
            used |= {key for key in known if fnmatch(promise.key, key)}
    for key in sorted(used):
        print(f"known miss {key}: {known[key]}")
    return all(promise.is_kept or promise.reason for promise in promises)


def list_outdated(promises: Sequence[Promise]) -> list[str]:
    """Known misses that nothing misses any more."""
    missed = [promise.key for promise in promises if not promise.is_kept]
    return sorted(key for key in read_known_misses() if not any(fnmatch(one, key) for one in missed))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--demo", type=Path, nargs="?", const=Path("runs/demo-full/result.json"), metavar="FILE")
    args = parser.parse_args(arguments)
    if args.demo:
        return int(not print_promises(list(add_reasons(list_demo_promises(json.loads(args.demo.read_text()))))))
    study = open_store(STUDY, args.results)
    left = find_missing(study) if study.path.exists() else []
    if left:
        print(
            f"the study lacks {len(left)} runs: its promises are not judged yet (docs/measured/results.md has them so far)"
        )
    promises = list(add_reasons(list_promises(args.results)))
    if not promises:
        print(f"no results in {args.results}: run make bench")
        return 1
    ok = print_promises(promises)
    for key in list_outdated(promises):
        judged = not key.startswith("demo|") and not (left and key.startswith("study|"))
        if judged:  # what is not judged is neither kept nor missed
            print(f"not missed any more, take it off the list: {key}")
    return int(not ok)


if __name__ == "__main__":
    raise SystemExit(main())
