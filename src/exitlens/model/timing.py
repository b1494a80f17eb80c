"""Times several ways to do the same work, and the exits of a network on the path that predictions take."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exitlens.errors import EngineError
from exitlens.model.engine.router import Router
from exitlens.model.network import ExitNet
from exitlens.types import ExitLatency, Policy
from exitlens.types.inputs import Inputs, count_rows, take_rows
from exitlens.types.tasks import USUAL_SCORES
from exitlens.types.traces import make_increasing

Work = Callable[[], Sequence[float]]  # does the work once and returns the seconds of every call

ROUNDS, SECONDS, MOST_ROUNDS = 15, 3.0, 200  # minimum, approximate duration, maximum
CALL_SECONDS = 0.01  # a batch that takes less is answered several times in a round
# Largest distance of the quartiles over the median. With 95 % confidence 15 rounds then give the median to 5 %, which is
# 1.96 * 0.93 * BUSY / 15**0.5.
BUSY = 0.1
ON_PROCESSOR = 0.9  # least share of the time that the answering thread is on a processor: steady load does not spread times
ATTEMPTS = 4
WHOLE = "the whole network"
UNREACHABLE = 2.0  # exits with this threshold are computed, but never answer


def describe_machine(threads: int) -> dict[str, Any]:
    """Return the machine and versions that figures are measured on."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
        "system": platform.system(),
    }


@dataclass(frozen=True)
class Interval:
    """A median with its 95 % interval (percentile bootstrap over rounds)."""

    median: float
    low: float
    high: float

    def to_list(self) -> list[float]:
        """JSON-ready: median, low, high."""
        return [round(v, 6) for v in (self.median, self.low, self.high)]


def interval(values: Sequence[float]) -> Interval:
    """Return the median of ``values`` with a 95 % interval."""
    x = torch.tensor(list(values), dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    medians = x[torch.randint(len(x), (2000, len(x)), generator=rng)].quantile(0.5, 1)
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(statistics.median(x.tolist()), low, high)


class Times:
    """Measurements of :func:`interleave`: for each name the seconds of every call in every round."""

    def __init__(self, rounds: Mapping[str, list[list[float]]]) -> None:
        self.rounds = rounds

    def seconds(self, name: str) -> list[float]:
        """Return the seconds of each round."""
        return [sum(calls) for calls in self.rounds[name]]

    def median_ms(self, name: str, samples: int = 1) -> float:
        """Return the milliseconds per sample, the median over rounds."""
        return 1000 * statistics.median(self.seconds(name)) / samples

    def quartiles_ms(self, name: str) -> list[float]:
        """Return the lower quartile, median and upper quartile of a round, in milliseconds."""
        return (1000 * torch.tensor(self.seconds(name)).double().quantile(torch.tensor([0.25, 0.5, 0.75]).double())).tolist()

    def ratio(self, slow: str, fast: str) -> Interval:
        """Return the time of ``slow`` over that of ``fast`` in the same round, so that other load cancels out."""
        return interval([a / b for a, b in zip(self.seconds(slow), self.seconds(fast), strict=True)])

    def summary(self, name: str, samples: int) -> dict[str, Any]:
        """Return JSON-ready milliseconds per sample, p50 and p95 of a call, and samples per second."""
        ms = interval([1000 * s / samples for s in self.seconds(name)])
        calls = torch.tensor([1000 * s for calls in self.rounds[name] for s in calls], dtype=torch.float64)
        p50, p95 = calls.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
        return {
            "ms": ms.to_list(),
            "call_p50_ms": round(p50, 4),
            "call_p95_ms": round(p95, 4),
            "per_second": round(1000 / ms.median, 2),
        }


def interleave(
    works: Mapping[str, Work], *, rounds: int = 5, seconds: float = 0.0, max_rounds: int = 60, warm_up: bool = True
) -> Times:
    """Run all works in turn, each round in another (seeded) random order, because each work affects the next one's caches.

    At least ``rounds`` run, and up to ``max_rounds`` until ``seconds`` have passed; ``warm_up`` runs each work once before.
    """
    for work in works.values() if warm_up else ():
        work()
    calls: dict[str, list[list[float]]] = {name: [] for name in works}
    names, started, done = list(works), time.perf_counter(), 0
    rng = torch.Generator().manual_seed(0)
    while done < rounds or (time.perf_counter() - started < seconds and done < max_rounds):
        for i in torch.randperm(len(names), generator=rng).tolist():
            calls[names[i]].append(list(works[names[i]]()))
        done += 1
    return Times(calls)


def measure_exits(net: ExitNet, inputs: Inputs, batch_size: int | None = None) -> ExitLatency:
    """Time a batch that leaves at exit k, for each k, and one that runs through all stages with the final head alone.

    Each takes the path of :func:`exitlens.predict` with the network's tuning: check of the inputs, engine, router. They
    take turns in changing order, so that outside changes affect all alike; medians over rounds count. A measurement is
    refused if the quartiles of any of them are further apart than :data:`BUSY` of the median, if the answering thread was
    on a processor for less than :data:`ON_PROCESSOR` of the time (on a CPU), or if a later exit took clearly less time
    than an earlier one. It is then repeated, up to :data:`ATTEMPTS` times in all, before :class:`EngineError` is raised.

    The batch has ``batch_size`` samples, by default as many as ``inputs``, which are repeated if it needs more.
    """
    rows = torch.arange(batch_size or count_rows(inputs)) % count_rows(inputs)
    batch = take_rows(inputs, rows)
    policies = list_policies(net.num_exits, USUAL_SCORES[net.info.task])
    calls = {name: _Call(net, batch, policy) for name, policy in policies.items()}
    device, available = net.device, torch.get_num_threads()
    threads = min(available, net.tuning.threads or available)

    def measure_presence() -> float:
        seconds, busy = (sum(values) for values in zip(*(call.take_times() for call in calls.values()), strict=True))
        return busy / seconds if seconds and device.type == "cpu" else 1.0

    times = measure_quietly(calls, measure_presence)
    machine = {name: value for name, value in describe_machine(threads).items() if name != "threads"}
    machine["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return summarize(times, len(rows), threads, machine)


def list_policies(num_exits: int, score: str = USUAL_SCORES["classes"]) -> dict[str, Policy]:
    """Return policies by name: for each exit, one under which everything leaves there; and one with the final head alone."""
    early = range(num_exits - 1)
    policies = {f"exit {k}": Policy(tuple(0.0 if i == k else UNREACHABLE for i in early), score) for k in range(num_exits)}
    return policies | {WHOLE: Policy.never(num_exits, score=score)}


class _Call:
    """A ``Work`` that answers a batch under a policy, and sums the time that its thread was on a processor."""

    def __init__(self, net: ExitNet, batch: Inputs, policy: Policy) -> None:
        self._net, self._batch, self._policy = net, batch, policy
        self._repeats = 0  # in a round; unknown before the second call
        self._seconds = self._busy = 0.0

    def __call__(self) -> list[float]:
        if not self._repeats:
            self._answer()
            self._repeats = 1
            self._repeats = max(1, min(1000, round(CALL_SECONDS / max(self()[0], 1e-6))))
            self.take_times()
        started, busy = time.perf_counter(), time.thread_time()
        for _ in range(self._repeats):
            self._answer()
        spent = time.perf_counter() - started
        self._busy += time.thread_time() - busy
        self._seconds += spent
        return [spent / self._repeats]

    def take_times(self) -> tuple[float, float]:
        """Return the seconds since the previous call, and those in which the thread was on a processor."""
        times = self._seconds, self._busy
        self._seconds = self._busy = 0.0
        return times

    def _answer(self) -> None:
        with self._net.open_engine() as engine:
            activations = self._net.check_input(self._batch)
            router = Router(engine, self._policy, micro_batch=engine.tuning.micro_batch)
            where = torch.arange(len(activations[0]), device=activations[0].device)
            float(router.run(where, activations)[-1].probabilities.sum())  # waits for the device


def measure_quietly(works: Mapping[str, Work], presence: Callable[[], float]) -> Times:
    """Return times that show no sign of other load; raise :class:`EngineError`.

    ``works`` are the exits in order, and the whole network; ``presence`` returns the share of the time that the answering
    thread was on a processor.
    """
    for attempt in range(ATTEMPTS):
        times = interleave(works, rounds=ROUNDS, seconds=SECONDS, max_rounds=MOST_ROUNDS, warm_up=attempt == 0)
        if not (reason := _find_noise(times, presence())):
            return times
    raise EngineError(
        f"cost: the machine is too busy to measure times ({reason}, in the last of {ATTEMPTS} attempts). Fix: measure again "
        "with nothing else running and no more threads than there are free processors, or collect with cost='macs'."
    )


def _find_noise(times: Times, presence: float) -> str:
    """Describe the first sign of other load; empty if there is none."""
    before, last = 0.0, ""
    for name in times.rounds:
        low, median, high = times.quartiles_ms(name)
        if high - low > BUSY * median:
            return f"{name}: half of the times between {low:.3g} and {high:.3g} ms, expected within {BUSY:.0%} of each other"
        if median < (1 - BUSY) * before and name != WHOLE:
            return f"{name} took {median:.3g} ms, {last} before it {before:.3g} ms"
        before, last = median, name
    if presence < ON_PROCESSOR:
        return f"the thread that answers had a processor for {presence:.0%} of the time, expected {ON_PROCESSOR:.0%}"
    return ""


def summarize(times: Times, batch_size: int, threads: int, machine: Mapping[str, object]) -> ExitLatency:
    """Return the latency; an exit that happened to take no longer than its predecessor counts as a ten-thousandth longer."""
    low, medians, high = zip(*(times.quartiles_ms(name) for name in times.rounds if name != WHOLE), strict=True)
    whole, rounds = times.median_ms(WHOLE), len(times.rounds[WHOLE])
    return ExitLatency(make_increasing(medians), low, high, whole, batch_size, threads, dict(machine), rounds)
