"""The time that ours takes on every test set, beside the full network's and that of every static one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import exitlens as xl
from benchmarks.static.candidates import Candidate
from benchmarks.static.measure import adapt
from benchmarks.truth.tasks import Task, build_network
from exitlens.delivery.bench.benchmark import answer_at
from exitlens.delivery.bench.timing import pin_threads, time_calls
from exitlens.model.timing import Times, Work, describe_machine, interleave
from exitlens.types.inputs import Inputs, split_rows

BATCH, SAMPLES, ROUNDS, SECONDS = 64, 512, 7, 60.0
FULL, OURS, FAST, EXIT = "full", "ours, ", "fast", "exit "  # names of what is timed; ours has one for each test set


def measure_times(
    task: Task, candidates: Mapping[str, Candidate], seed: int, trained: Path, quick: bool = False
) -> dict[str, Any]:
    """Milliseconds a sample in batches of 64 on one core, every network tuned, all in turn in one process.

    Weights change no time, so static networks need not be trained; ours must be, since its exits decide.
    """
    samples = BATCH if quick else SAMPLES
    with pin_threads(1):
        works = _make_works(task, candidates, seed, trained, samples, 0.2 if quick else 4.0)
        exits = [name for name in works if name.startswith(EXIT)]
        times = interleave(works, rounds=2 if quick else ROUNDS, seconds=0.0 if quick else SECONDS)
        found = {"machine": describe_machine(1), "batch": BATCH, "samples": samples, "rounds": len(times.rounds[FULL])}
    found["ms"] = {name: times.summary(name, samples)["ms"] for name in works if not name.startswith((OURS, FAST, EXIT))}
    found["exit_share"] = {name: times.ratio(name, FULL).to_list() for name in exits}
    found["adaptive_ms"] = {test: times.summary(OURS + test, samples)["ms"] for test in task.tests}
    found["fast_ms"] = times.summary(FAST, samples)["ms"]
    found["full_over_fast"] = times.ratio(FULL, FAST).to_list()
    found["full_over_adaptive"] = {test: times.ratio(FULL, OURS + test).to_list() for test in task.tests}
    return found | choose(times, candidates, task.tests, samples)


def choose(times: Times, candidates: Mapping[str, Candidate], tests: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """For every test set and family the static network of the nearest time that is not below ours, and the ratio of the two."""
    chosen: dict[str, dict[str, str]] = {}
    ratios: dict[str, dict[str, list[float]]] = {}
    for family in dict.fromkeys(one.family for one in candidates.values()):
        names = [*(name for name, one in candidates.items() if one.family == family), FULL]
        ladder = sorted(names, key=lambda name: times.median_ms(name, samples))
        for test in tests:
            ours = times.median_ms(OURS + test, samples)
            slower = [name for name in ladder if times.median_ms(name, samples) >= ours]
            name = slower[0] if slower else ladder[-1]  # ours takes longer than the full network
            chosen.setdefault(family, {})[test] = name
            ratios.setdefault(family, {})[test] = times.ratio(name, OURS + test).to_list()
    return {"chosen": chosen, "chosen_over_adaptive": ratios}


def _make_works(
    task: Task, candidates: Mapping[str, Candidate], seed: int, trained: Path, samples: int, seconds: float
) -> dict[str, Work]:
    net, _, policy, fast, _ = adapt(task, seed, trained)
    drawn = {test: _draw(data, samples) for test, data in task.tests.items()}
    batches = {test: split_rows(inputs, BATCH) for test, inputs in drawn.items()}
    first = next(iter(batches.values()))
    net.tune(first[0], precision="float32", policy=policy, seconds=seconds, backend="torch")
    works: dict[str, Work] = {}
    for test, inputs in batches.items():
        run = partial(xl.predict, net, policy=policy)
        works[OURS + test] = time_calls(run, inputs, net.tuning.keep_memory)
    twin = copy.deepcopy(net)
    twin.tune(first[0], precision="float32", policy=fast, seconds=seconds, backend="torch")
    works[FAST] = time_calls(partial(xl.predict, twin, policy=fast), first, twin.tuning.keep_memory)
    works |= {
        f"{EXIT}{k}": time_calls(partial(answer_at, twin, k), first, twin.tuning.keep_memory) for k in range(net.num_exits)
    }
    whole = next(iter(drawn.values()))
    others = {FULL: (build_network(task, seed, exits=False), whole)}
    others |= {name: one.build_timed(task, whole) for name, one in candidates.items()}
    for name, (other, inputs) in others.items():
        own = split_rows(inputs, BATCH)
        other.eval().tune(own[0], precision="float32", seconds=seconds, backend="torch")
        works[name] = time_calls(partial(answer_at, other, 0), own, other.tuning.keep_memory)
    return works


def _draw(data: Any, samples: int) -> Inputs:
    """So many samples in random order, repeated if there are fewer."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    inputs: Inputs = data.subset(order[torch.arange(samples) % len(order)]).inputs
    return inputs
