"""How many machines a load takes, as replicas of the whole network or as pools of stages: answers by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.serving.load.capacity import Capacity, find_capacity
from benchmarks.serving.load.trials import make_plan
from benchmarks.serving.simulate import Machine, Network, Outcome, Policy, Simulation

Phases = Sequence[tuple[float, float]]  # rate and seconds, one after the other


def simulate(
    network: Network, machines: Sequence[Machine], policy: Policy, phases: Phases, *, warmup: float = 0.0, seed: int = 0
) -> Outcome:
    """Poisson arrivals on these machines."""
    return Simulation(network, machines, policy, seed).run(make_plan(phases, seed=seed).due, warmup)


def make_replicas(network: Network, machines: int, processors: int) -> list[Machine]:
    """The whole network on every machine."""
    return [Machine(range(len(network.ms)), processors) for _ in range(machines)]


def make_pools(
    network: Network, machines: int, processors: int, *, size: int = 16, groups: Sequence[Sequence[int]] = ()
) -> list[Machine]:
    """As many processors, shared out by the work of each group of stages at batches of ``size``.

    Args:
        groups: stages that stay together; empty: every stage by itself. A group that nobody comes to has one processor.
    """
    chosen = list(groups) or [(k,) for k in range(len(network.ms))]
    work = network.work(size)
    counts = share_out(machines * processors, [float(sum(work[k] for k in group)) for group in chosen])
    found = list[Machine]()
    for group, count in zip(chosen, counts, strict=True):
        whole, rest = divmod(count, processors)
        found += [Machine(group, processors)] * whole + ([Machine(group, rest)] if rest else [])
    return found


def share_out(total: int, parts: Sequence[float]) -> list[int]:
    """At least one for each part, and the others where most work is left for each."""
    if total < len(parts):
        raise ValueError(f"processors: expected one for each of {len(parts)} groups, got {total}")
    counts = [1] * len(parts)
    for _ in range(total - len(parts)):
        counts[int(np.argmax([part / count for part, count in zip(parts, counts, strict=True)]))] += 1
    return counts


def find_throughput(
    network: Network,
    machines: Sequence[Machine],
    policy: Policy,
    limit_s: float,
    *,
    samples: int = 40_000,
    limits: float = 50.0,
    actual: Network | None = None,
    vary: Callable[[float], Phases] | None = None,
) -> Capacity:
    """The highest rate at which 99 % of the answers come within ``limit_s``.

    Args:
        samples: of each simulation at least, a fifth of them to warm up.
        limits: how often ``limit_s`` passes in it at least: too much load by a few percent shows only after a while.
        actual: what comes, where that differs from what the machines were shared out for.
        vary: phases of a mean rate, for a load that varies, in place of an even one.
    """
    seeds, taken = itertools.count(), actual or network
    processors = sum(one.processors for one in machines)
    start = processors / float(taken.work(policy.max_batch).sum())  # that all processors could do if none ever waited

    def run_at(rate: float) -> Outcome:
        phases = vary(rate) if vary else [(rate, max(samples / rate, limits * limit_s))]
        whole = sum(seconds for _, seconds in phases)
        return simulate(taken, machines, policy, phases, warmup=whole / 5, seed=next(seeds))

    return find_capacity(run_at, limit_s, start / 2, spread=0.02, repeats=1, tries=1, least=start / 1000, most=2 * start)


@dataclass(frozen=True)
class Size:
    """What a load takes.

    Attributes:
        machines: how many. rate: requests a second of one of them, as simulated, all of it used.
        simulated: how many were simulated together.
    """

    machines: int
    rate: float
    simulated: int


def count_machines(
    network: Network,
    total: float,
    processors: int,
    policy: Policy,
    limit_s: float,
    *,
    pools: bool = False,
    simulated: int = 8,
    headroom: float = 0.7,
    **more: Any,
) -> Size:
    """How many machines answer ``total`` requests a second in time, with part of what they could do kept free.

    Machines do not wait for one another, so that some stand for all: what one does no longer grows from a few on, at which
    the choice between two is as good as it gets.

    Args:
        headroom: part of what they could do that is used: the rest is for machines that fail, and for peaks.
    """
    machines = (make_pools if pools else make_replicas)(network, simulated, processors)
    rate = find_throughput(network, machines, policy, limit_s, **more).rate / simulated
    return Size(math.ceil(total / (rate * headroom)) if rate else 0, rate, simulated)
