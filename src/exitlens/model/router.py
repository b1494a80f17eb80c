"""Samples on their way through the stages: those who are sure leave, the others wait for company and go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.functional.routing import fires
from exitlens.model.engine import Engine
from exitlens.model.stages import Carried
from exitlens.types import Policy

Rule = Callable[[int, Tensor, Tensor], Tensor]  # exit, scores (B,), places (B,) -> (B,) bool: who leaves


class Left(NamedTuple):
    """Samples that were answered together.

    Attributes:
        where: ``(n,)`` their places. exit: which answered. scores: ``(n,)``. probabilities: ``(n,C)``.
        attention: ``(n,*S)`` or ``None``.
    """

    where: Tensor
    exit: int
    scores: Tensor
    probabilities: Tensor
    attention: Tensor | None


@dataclass
class _Pool:
    """Samples that wait for one stage, in the order in which they came."""

    pieces: list[tuple[Tensor, Carried]] = field(default_factory=list)
    count: int = 0
    since: float = float("inf")  # when the sample came in that waits longest

    def add(self, where: Tensor, carried: Carried, since: float) -> None:
        self.pieces.append((where, carried))
        self.count += len(where)
        self.since = min(self.since, since)

    def take(self, size: int) -> tuple[Tensor, Carried, float]:
        """All that wait, if they are fewer than two micro-batches of ``size`` (0: however many), else one."""
        pieces, since, count = self.pieces, self.since, self.count
        self.pieces, self.count, self.since = [], 0, float("inf")
        where, carried = pieces[0]
        if len(pieces) > 1:
            columns = zip(*(tensors for _, tensors in pieces), strict=True)
            where, carried = torch.cat([place for place, _ in pieces]), tuple(torch.cat(column) for column in columns)
        if size and count >= 2 * size:
            self.add(where[size:], tuple(t[size:] for t in carried), since)
            where, carried = where[:size], tuple(t[:size] for t in carried)
        return where, carried, since


class Router:
    """Runs samples through an engine by a policy, in micro-batches that are filled up again after every exit.

    Stage k+1 runs on the survivors of several micro-batches of stage k, as soon as they are as many as one (dynamic
    re-batching, arXiv 2512.15705, here over the micro-batches of one call as well as over those of a stream). Deep stages
    go first, so few samples wait at a time: fewer than a micro-batch before each stage.

    Args:
        engine: what runs.
        policy: whose thresholds, temperatures and score count.
        attention: keep the attention maps of the exits that answer.
        micro_batch: samples that run together; 0: all that there are.
        rule: who leaves at an exit; by default the policy's thresholds. Benchmarks force exit shares with another.
    """

    def __init__(
        self, engine: Engine, policy: Policy, attention: bool = False, micro_batch: int = 0, rule: Rule | None = None
    ) -> None:
        self.engine, self.policy, self.attention, self.micro_batch = engine, policy, attention, micro_batch
        self.rule = rule or (lambda k, scores, where: fires(scores, policy.thresholds[k]))
        self._temperatures = [torch.tensor(t, dtype=torch.float64) for t in policy.temperatures]
        self._pools = [_Pool() for _ in policy.temperatures]

    def feed(self, where: Tensor, carried: Carried) -> list[Left]:
        """Takes samples in and runs whatever fills micro-batches; returns those that were answered by that.

        Args:
            where: ``(B,)`` places of the samples, for the answers.
            carried: what the engine's first stage takes.
        """
        left: list[Left] = []
        size, now = self.micro_batch or len(where), time.monotonic()
        for at in range(0, len(where), size):
            self._pools[0].add(where[at : at + size], tuple(t[at : at + size] for t in carried), now)
            if self.micro_batch:
                self._run_full(left)
        return left

    def flush(self) -> list[Left]:
        """Runs all that waits, to the end."""
        left: list[Left] = []
        for k, pool in enumerate(self._pools):
            while pool.count:
                self._run(k, left)
                if self.micro_batch:
                    self._run_full(left)
        return left

    @property
    def oldest(self) -> float:
        """When (``time.monotonic``) the sample came in that waits longest; infinite if none waits."""
        return min(pool.since for pool in self._pools)

    @property
    def waiting(self) -> int:
        """Samples that wait."""
        return sum(pool.count for pool in self._pools)

    def _run_full(self, left: list[Left]) -> None:
        k = len(self._pools) - 1
        while k >= 0:
            if self._pools[k].count >= self.micro_batch:
                self._run(k, left)
                k = min(k + 1, len(self._pools) - 1)  # it may have filled the next
            else:
                k -= 1

    def _run(self, k: int, left: list[Left]) -> None:
        where, carried, since = self._pools[k].take(self.micro_batch)
        last = len(self._pools) - 1
        if k < last and self.policy.thresholds[k] == float("inf"):
            self._pools[k + 1].add(where, self.engine.advance(k, carried), since)
            return
        carried, p, scores, maps = self.engine.answer(k, carried, self._temperatures[k], self.policy.score, self.attention)
        if k == last:
            left.append(Left(where, k, scores, p, maps))
            return
        fired = self.rule(k, scores, where)
        count = int(fired.sum())  # the one synchronisation of this exit
        if count == len(where):
            left.append(Left(where, k, scores, p, maps))
        elif count == 0:
            self._pools[k + 1].add(where, carried, since)
        else:
            order = fired.argsort(stable=True)  # those who stay, then those who leave
            stay, leave = order[: len(where) - count], order[len(where) - count :]
            left.append(Left(where[leave], k, scores[leave], p[leave], None if maps is None else maps[leave]))
            self._pools[k + 1].add(where[stay], tuple(gather(t, stay) for t in carried), since)


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``x`` in the memory format of ``x``."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)  # whole rows of memory, copied once
    return x.index_select(0, rows)
