"""Load from outside: requests come when they come (Poisson), however long the answers take.

Latency counts from the time at which a request was due, not from when a connection was free to send it: a server that stalls
answers for all who would have come meanwhile. The load runs in a process of its own, which can be given a processor:
``python -m benchmarks.serving.load.trials --spec spec.pickle --out trial.pickle``, or :func:`run_load`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.load.clients import Load
from benchmarks.serving.load.requests import Array

ROOT = Path(__file__).parents[3]
PATIENCE = 20.0  # seconds to connect, and for the process to start and end


@dataclass(frozen=True)
class Plan:
    """What is asked when.

    Attributes:
        due: ``(N,)`` seconds from the start, ascending. which: ``(N,)`` places in the list of requests.
    """

    due: Array
    which: Array


@dataclass(frozen=True)
class Spec:
    """A whole trial.

    Attributes:
        requests: head and body of each, see :mod:`benchmarks.serving.load.requests`.
        kinds: a word for each request, such as "early"; empty: none.
        warmup: seconds at the beginning that do not count in the summary.
        grace: seconds after the last request is due, at which everything ends.
        retries: how often a request is sent again after its connection was reset, or an answer with a status in ``again``.
        parse: ``module:function`` that makes something of head and body of each answer, called after the trial; ``"bytes"``:
            keep them as they are; empty: nothing is kept.
        processors: that the process may use; empty: all.
    """

    port: int
    requests: Sequence[bytes]
    plan: Plan
    kinds: Sequence[str] = ()
    host: str = "127.0.0.1"
    connections: int = 32
    warmup: float = 0.0
    grace: float = 5.0
    retries: int = 0
    again: Sequence[int] = ()
    parse: str = ""
    processors: Sequence[int] = ()


@dataclass(frozen=True)
class Trial:
    """What became of each request, in the order in which they were due.

    Attributes:
        scheduled, sent, finished: ``(N,)`` seconds from the start; NaN: never.
        status: ``(N,)`` of HTTP; 0: no answer. retries: ``(N,)``. which: ``(N,)`` places in the list of requests.
        kinds: a word for each place, or empty. answers: bytes, or what ``parse`` made of them; empty unless wanted.
        cpu_seconds: of the load itself. wall_seconds: that it took.
        started: what :func:`time.perf_counter` said at the start, on this machine in whatever process.
    """

    scheduled: Array
    sent: Array
    finished: Array
    status: Array
    retries: Array
    which: Array
    kinds: Sequence[str] = ()
    answers: Sequence[Any] = field(default=(), repr=False)
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    warmup: float = 0.0
    started: float = 0.0

    @property
    def latency(self) -> Array:
        """``(N,)`` seconds from the time at which each was due; infinite where no answer with status 200 came."""
        return np.where(self.status == 200, self.finished - self.scheduled, np.inf)

    @property
    def counts(self) -> Array:
        """``(N,)`` whether each counts: those of the warm-up do not."""
        return self.scheduled >= self.warmup

    def select(self, kind: str) -> Array:
        """``(N,)`` whether each counts and is of this kind."""
        return self.counts & np.isin(self.which, [i for i, one in enumerate(self.kinds) if one == kind])

    def quantile(self, q: float, kind: str = "") -> float:
        """Seconds within which this part was answered."""
        latency = np.sort(self.latency[self.select(kind) if kind else self.counts])
        return float(latency[min(len(latency) - 1, int(np.ceil(q * len(latency))) - 1)]) if len(latency) else float("nan")

    @property
    def p99(self) -> float:
        """Seconds within which 99 % were answered."""
        return self.quantile(0.99)

    @property
    def failures(self) -> int:
        """How many of those that count got another answer than 200, or none."""
        return int((self.status[self.counts] != 200).sum())

    @property
    def rate(self) -> float:
        """Answers with status 200 in a second, of those that count."""
        good = self.counts & (self.status == 200)
        return float(good.sum() / (self.finished[good].max() - self.warmup)) if good.any() else 0.0

    @property
    def busy(self) -> float:
        """Part of the time for which the load itself computed: towards 1, what was measured is the load."""
        return self.cpu_seconds / self.wall_seconds if self.wall_seconds else 0.0

    def summary(self) -> dict[str, Any]:
        """In numbers, ready for JSON; milliseconds."""
        found: dict[str, Any] = {"requests": int(self.counts.sum()), "failures": self.failures, "rate": self.rate}
        found |= {"retries": int(self.retries.sum()), "busy": self.busy}
        for kind in ("", *dict.fromkeys(self.kinds)):
            name = f" {kind}" if kind else ""
            found |= {f"p{p}{name}": 1000 * self.quantile(p / 100, kind) for p in (50, 99)}
        return found


def make_plan(
    phases: Sequence[tuple[float, float]], number: int = 1, *, shares: Sequence[float] = (), seed: int = 0
) -> Plan:
    """Poisson arrivals.

    Args:
        phases: (rate, seconds), one after the other.
        number: how many different requests there are.
        shares: of each request; empty: equal ones, in random order.
    """
    rng, due, start = np.random.default_rng(seed), list[Array](), 0.0
    for rate, seconds in phases:
        due.append(np.sort(rng.uniform(start, start + seconds, rng.poisson(rate * seconds))))
        start += seconds
    times = np.concatenate(due)
    part = np.asarray(shares, float) / np.sum(shares) if len(shares) else None
    return Plan(times, rng.choice(number, len(times), p=part))


async def drive(spec: Spec) -> Trial:
    """The trial, in this event loop."""
    payloads = [spec.requests[i] for i in spec.plan.which.tolist()]
    load = Load(spec.plan.due.tolist(), payloads, (spec.host, spec.port), bool(spec.parse), spec.retries, spec.again)
    try:
        await asyncio.wait_for(asyncio.gather(*(load.connect() for _ in range(spec.connections))), PATIENCE)
        start, cpu = time.perf_counter() + 0.01, time.process_time()
        last = float(spec.plan.due[-1]) if len(spec.plan.due) else 0.0
        await load.run(start, start + last + spec.grace)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    finally:
        load.close()
        await asyncio.sleep(0)  # in which the connections end
    sent, finished = (np.array(one) - start for one in (load.sent, load.finished))
    own = (np.array(load.status, np.int16), np.array(load.retries, np.int16), spec.plan.which)
    answers = _parse(load.answers, spec.parse)
    return Trial(spec.plan.due, sent, finished, *own, spec.kinds, answers, cpu, wall, spec.warmup, start)


def _parse(answers: Sequence[bytes], name: str) -> list[Any]:
    if name in ("", "bytes"):
        return list(answers)
    module, _, function = name.partition(":")
    parse: Callable[[bytes, bytes], Any] = getattr(import_module(module), function)
    parted = [one.partition(b"\r\n\r\n") for one in answers]
    return [parse(head, body) if head else None for head, _, body in parted]


def run_event_loop(main: Coroutine[Any, Any, Trial]) -> Trial:
    """In uvloop, where it is installed: it takes half the time of Python's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def run_load(spec: Spec) -> Trial:
    """The trial in a process of its own."""
    last = float(spec.plan.due[-1]) if len(spec.plan.due) else 0.0
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "spec.pickle", Path(folder) / "trial.pickle"
        given.write_bytes(pickle.dumps(spec))
        words = [sys.executable, "-m", "benchmarks.serving.load.trials", "--spec", str(given), "--out", str(out)]
        subprocess.run(words, env=make_environment(), check=True, timeout=last + spec.grace + 3 * PATIENCE)
        found: Trial = pickle.loads(out.read_bytes())
    return found


def make_environment(**more: str) -> dict[str, str]:
    """This process's, with a path on which modules of this folder are found."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="a pickled Spec")
    parser.add_argument("--out", type=Path, required=True, help="where the pickled Trial goes")
    given = parser.parse_args()
    spec: Spec = pickle.loads(given.spec.read_bytes())
    if spec.processors:
        os.sched_setaffinity(0, spec.processors)
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing here is in a circle, and collecting takes milliseconds
    given.out.write_bytes(pickle.dumps(run_event_loop(drive(spec))))


if __name__ == "__main__":
    import benchmarks.serving.load.trials as module  # so that what is pickled belongs to the module, not to __main__

    module.main()
