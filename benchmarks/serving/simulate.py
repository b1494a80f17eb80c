"""Replicas of the whole network against pools of stages, on many machines: a simulation, event by event.

Every machine has queues, one for each stage that it holds, and processors that take batches from them. What stays after a
stage waits at the next one, on the same machine if that holds the next stage, else after a journey to one that does. A
machine with all stages refills itself: later stages run on survivors of several batches of the first.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.serving.load.requests import Array

ARRIVE, FREE, LOOK = 0, 1, 2  # what happens: a sample comes to a stage, a processor is done, a batch has waited long enough


@dataclass(frozen=True)
class Network:
    """What its stages take.

    Attributes:
        ms: for each stage, milliseconds of a batch by the number of samples in it, as measured; linear in between and after.
        shares: of the samples, by the exit at which they leave.
        crossing: bytes of a sample that go from each stage to the next; none: 0.
        load_ms: what a processor takes to turn to a stage from another one: its weights come from elsewhere.
    """

    ms: Sequence[Mapping[int, float]]
    shares: Sequence[float]
    crossing: Sequence[float] = ()
    load_ms: Sequence[float] = ()

    def tabulate(self, most: int) -> list[list[float]]:
        """Seconds of each stage by the number of samples, from 0 to ``most``."""
        return [[0.0, *(interpolate(one, size) / 1000 for size in range(1, most + 1))] for one in self.ms]

    def reach(self) -> Array:
        """``(K,)`` part of the samples that comes to each stage."""
        part = np.asarray(self.shares) / np.sum(self.shares)
        reached: Array = 1 - np.cumsum([0.0, *part[:-1]])
        return np.maximum(reached, 0.0)

    def work(self, size: int) -> Array:
        """``(K,)`` seconds of each stage for a sample, if all batches had so many."""
        found: Array = self.reach() * [interpolate(one, size) / 1000 / size for one in self.ms]
        return found


def interpolate(table: Mapping[int, float], size: float) -> float:
    """Milliseconds of a batch: linear between the measured ones and beyond the last, the first below it."""
    sizes = sorted(table)
    times = [table[one] for one in sizes]
    if size <= sizes[-1] or len(sizes) == 1:
        return float(np.interp(size, sizes, times)) if len(sizes) > 1 or size <= sizes[0] else times[0] * size / sizes[0]
    return times[-1] + (size - sizes[-1]) * (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])


@dataclass(frozen=True)
class Machine:
    """Stages that it holds, in order, and how many batches it runs at once."""

    stages: Sequence[int]
    processors: int


@dataclass(frozen=True)
class Policy:
    """How batches are made, and what the way between machines costs.

    Attributes:
        max_batch: samples. delay: seconds for which the first of a batch waits for others, where it came to a machine.
        patience: the same for survivors of a stage before on the same machine.
        eager: survivors go on at once where a processor is free and nothing else is due.
        choices: machines that are looked at for each sample; the one where least waits takes it.
        hop: seconds of the way from machine to machine. bandwidth: bytes a second on it. hop_cpu: seconds that a sample takes
            from the processor that sends it.
    """

    max_batch: int = 16
    delay: float = 0.002
    patience: float = 0.002
    eager: bool = True
    choices: int = 2
    hop: float = 0.0
    bandwidth: float = float("inf")
    hop_cpu: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of all samples.

    Attributes:
        latency: ``(N,)`` seconds. exits: ``(N,)`` where each left. counts: ``(N,)`` whether it came after the warm-up.
        seconds: from the first to the last answer.
        utilisation: ``(M,)`` part of the time for which each machine's processors computed.
        batches: for each stage, the mean number of samples in a batch.
    """

    latency: Array = field(repr=False)
    exits: Array = field(repr=False)
    counts: Array = field(repr=False)
    seconds: float
    utilisation: Array = field(repr=False)
    batches: Sequence[float]
    busy: float = 0.0  # of a load: there is none
    failures: int = 0

    @property
    def p99(self) -> float:
        """Seconds within which 99 % were answered."""
        return self.quantile(0.99)

    def quantile(self, q: float, exit_: int | None = None) -> float:
        """Seconds within which this part was answered, of those that left at an exit."""
        chosen = self.counts if exit_ is None else self.counts & (self.exits == exit_)
        return float(np.quantile(self.latency[chosen], q)) if chosen.any() else float("nan")

    def summary(self) -> dict[str, Any]:
        """In numbers, ready for JSON; milliseconds."""
        found: dict[str, Any] = {"answers": len(self.latency), "rate": len(self.latency) / self.seconds}
        found |= {"utilisation": float(self.utilisation.mean()), "batches": list(self.batches)}
        for exit_ in (None, *np.unique(self.exits).tolist()):
            name = "" if exit_ is None else f" exit {exit_}"
            found |= {f"p{p}{name}": 1000 * self.quantile(p / 100, exit_) for p in (50, 99)}
        return found


class _Station:
    """A machine at work."""

    def __init__(self, machine: Machine, stages: int, policy: Policy) -> None:
        self.holds, self.policy = list(machine.stages), policy
        self.waits = [policy.delay if k == self.holds[0] else policy.patience for k in range(stages)]
        self.queues: list[deque[tuple[int, float]]] = [deque() for _ in range(stages)]  # samples, and since when they wait
        self.free = list(range(machine.processors))
        self.last = [-1] * machine.processors  # the stage that each ran
        self.waiting, self.busy, self.look = 0, 0.0, -1.0

    def choose(self, now: float) -> int:
        """The stage to run, the last whose batch is full or has waited long enough, else eager survivors; -1: none yet."""
        for stage in reversed(self.holds):
            queue = self.queues[stage]
            if queue and (len(queue) >= self.policy.max_batch or now >= queue[0][1] + self.waits[stage]):
                return stage
        if self.policy.eager:
            for stage in reversed(self.holds[1:]):
                if self.queues[stage]:
                    return stage
        return -1

    def find_next(self) -> float:
        """When the first batch has waited long enough; infinite: nothing waits."""
        first = (self.queues[k][0][1] + self.waits[k] for k in self.holds if self.queues[k])
        return min(first, default=float("inf"))


class Simulation:
    """Machines, and samples on their way through them."""

    def __init__(self, network: Network, machines: Sequence[Machine], policy: Policy, seed: int = 0) -> None:
        self.network, self.policy, self.rng = network, policy, np.random.default_rng(seed)
        self.stages = len(network.ms)
        self.times = network.tabulate(policy.max_batch)
        self.stations = [_Station(one, self.stages, policy) for one in machines]
        self.holders = [[i for i, one in enumerate(machines) if k in one.stages] for k in range(self.stages)]
        if not all(self.holders):
            raise ValueError("machines: expected every stage somewhere")
        self.load = [ms / 1000 for ms in network.load_ms] or [0.0] * self.stages
        crossing = list(network.crossing) or [0.0] * self.stages
        self.journeys = [policy.hop + one / policy.bandwidth for one in crossing]
        self.events: list[tuple[float, int, int, int, Any]] = []
        self.runs, self.sizes = [0] * self.stages, [0] * self.stages
        self.count, self.draws = 0, list[float]()

    def push(self, at: float, what: int, where: int, who: Any) -> None:
        """Something that will happen, in the order of its time, then of its making."""
        self.count += 1
        heapq.heappush(self.events, (at, self.count, what, where, who))

    def draw(self) -> float:
        """A random number from 0 to 1."""
        if not self.draws:
            self.draws = self.rng.random(4096).tolist()
        return self.draws.pop()

    def send(self, sample: int, stage: int, now: float) -> None:
        """To the one of some machines where least waits."""
        holders = self.holders[stage]
        chosen = holders[int(self.draw() * len(holders))]
        for _ in range(min(self.policy.choices, len(holders)) - 1):
            other = holders[int(self.draw() * len(holders))]
            if self.stations[other].waiting < self.stations[chosen].waiting:
                chosen = other
        self.enter(sample, stage, chosen, now)

    def enter(self, sample: int, stage: int, where: int, now: float) -> None:
        """A sample waits on a machine."""
        station = self.stations[where]
        station.queues[stage].append((sample, now))
        station.waiting += 1
        if station.free:
            self.work(where, now)

    def work(self, where: int, now: float) -> None:
        """Starts all batches that can start on a machine."""
        station, policy = self.stations[where], self.policy
        while station.free:
            stage = station.choose(now)
            if stage < 0:
                due = station.find_next()
                if due < float("inf") and not now < station.look <= due:
                    station.look = due
                    self.push(due, LOOK, where, None)
                return
            queue, own = station.queues[stage], station.free.pop()
            batch = [queue.popleft()[0] for _ in range(min(len(queue), policy.max_batch))]
            seconds = self.times[stage][len(batch)] + (self.load[stage] if station.last[own] != stage else 0.0)
            if stage + 1 not in station.holds:
                seconds += policy.hop_cpu * sum(self.leaves[one] > stage for one in batch)
            station.last[own] = stage
            station.busy += seconds
            station.waiting -= len(batch)
            self.runs[stage] += 1
            self.sizes[stage] += len(batch)
            self.push(now + seconds, FREE, where, (own, stage, batch))

    def finish(self, where: int, done: tuple[int, int, list[int]], now: float) -> None:
        """A batch is through a stage: some leave, the others go on."""
        own, stage, batch = done
        station, following = self.stations[where], stage + 1
        stays_here = following in station.holds
        for sample in batch:
            if self.leaves[sample] <= stage:
                self.answered[sample] = now
            elif stays_here:
                station.queues[following].append((sample, now))
                station.waiting += 1
            else:
                self.push(now + self.journeys[stage], ARRIVE, following, sample)
        station.free.append(own)
        self.work(where, now)

    def run(self, due: Array, warmup: float = 0.0) -> Outcome:
        """All samples, which come at these times, until the last is answered."""
        part = np.asarray(self.network.shares) / np.sum(self.network.shares)
        exits = self.rng.choice(self.stages, len(due), p=part)
        self.leaves, self.answered = exits.tolist(), [0.0] * len(due)
        times, at, total = due.tolist(), 0, len(due)
        while at < total or self.events:
            if at < total and (not self.events or times[at] <= self.events[0][0]):
                self.send(at, 0, times[at])
                at += 1
                continue
            now, _, what, where, who = heapq.heappop(self.events)
            if what == ARRIVE:
                self.send(who, where, now)
            elif what == FREE:
                self.finish(where, who, now)
            else:
                self.work(where, now)
        answered = np.array(self.answered)
        seconds = float(answered.max() - due[0]) if total else 0.0
        used = [one.busy / len(one.last) / seconds if seconds else 0.0 for one in self.stations]
        batches = [size / max(runs, 1) for size, runs in zip(self.sizes, self.runs, strict=True)]
        return Outcome(answered - due, exits, due >= warmup, seconds, np.array(used), batches)
