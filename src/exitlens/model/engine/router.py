"""The router: samples leave at the first exit that is sure, and the others go on together with those that wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.functional.maps import divergence, on_common_grid
from exitlens.functional.routing import compute_gate_features, decide, needs_head
from exitlens.model.cutting.stage import Activations
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.pools import Pool, gather
from exitlens.types import Policy


class RoutedBatch(NamedTuple):
    """Samples that were answered together.

    Attributes:
        where: ``(n,)`` their places. exit: which answered. scores: ``(n,)``. probabilities: ``(n,C)``.
        attention: ``(n,*S)`` or ``None``.
        trust: ``(n,2)`` or ``None``: with a gate, ``divergence_estimate`` and ``last_divergence`` of the prediction.
    """

    where: Tensor
    exit: int
    scores: Tensor
    probabilities: Tensor
    attention: Tensor | None
    trust: Tensor | None = None

    def select(self, rows: Tensor) -> RoutedBatch:
        """The samples at ``rows`` (indices or a mask)."""
        maps, trust = (None if t is None else t[rows] for t in (self.attention, self.trust))
        return RoutedBatch(self.where[rows], self.exit, self.scores[rows], self.probabilities[rows], maps, trust)


Rule = Callable[
    [RoutedBatch, Tensor], Tensor
]  # what an exit would answer, whom the policy lets leave (B,) -> who leaves (B,)


class Router:
    """Runs samples through an engine by a policy, in micro-batches that are filled up again after every exit.

    Stage k+1 runs on the survivors of several micro-batches of stage k, as soon as they are as many as one (dynamic
    re-batching, arXiv 2512.15705, here over the micro-batches of one call as well as over those of a stream). Deep stages
    go first, so few samples wait at a time: fewer than a micro-batch before each stage.

    Args:
        attention: keep the attention maps of the exits that answer.
        micro_batch: samples that run together; 0: all that there are.
        rule: which samples leave at an exit, once the policy has decided: a request's own limits, forced exit shares.
        heads: exits whose heads are computed even where the policy never lets them fire, so that the rule may.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        attention: bool = False,
        micro_batch: int = 0,
        rule: Rule | None = None,
        heads: Collection[int] = (),
    ) -> None:
        self.engine, self.policy, self.attention, self.micro_batch = engine, policy, attention, micro_batch
        self.rule = rule
        self._needed = [k in heads or needs_head(policy, k) for k in range(policy.num_exits)]
        self._pools: list[Pool] = []  # one for each stage, once samples wait
        self._shapes: tuple[torch.Size, ...] = ()
        self._routed: list[RoutedBatch] = []

    def feed(self, where: Tensor, activations: Activations) -> list[RoutedBatch]:
        """Takes samples in at their places ``(B,)`` and runs whatever fills micro-batches; returns what that answered."""
        self._open_pools()
        shapes = tuple(t.shape[1:] for t in activations)
        if self.waiting and shapes != self._shapes:  # images of another size run apart
            self._run_all()
        self._shapes = shapes
        size, now = self.micro_batch or len(where), time.monotonic()
        for at in range(0, len(where), size):
            self._pools[0].add(where[at : at + size], tuple(t[at : at + size] for t in activations), None, now, 0)
            if self.micro_batch:
                self._run_full()
        return self.take_routed()

    def _open_pools(self) -> None:
        self._pools = self._pools or [Pool() for _ in self.policy.temperatures]

    def admit(self, where: Tensor, activations: Activations, since: float) -> None:
        """Takes in samples of one size, which wait before stage 0 until :meth:`run_stage`; ``since``: when they came."""
        self._open_pools()
        self._pools[0].add(where, activations, None, since, 0)

    def run_stage(self, k: int) -> list[RoutedBatch]:
        """Runs stage k on a micro-batch of those that wait for it, or all if they are fewer than two; what that answered."""
        self._run(k)
        return self.take_routed()

    def list_waiting(self) -> list[tuple[int, float]]:
        """For each stage how many samples wait for it, and since when the oldest has been there (``time.monotonic``)."""
        return [(pool.count, pool.since) for pool in self._pools]

    def list_places(self) -> list[int]:
        """The places of all samples that wait."""
        return [place for pool in self._pools for places in pool.places for place in places.tolist()]

    def discard(self, gone: Tensor) -> None:
        """Forgets the samples at these places ``(n,)``, wherever they wait."""
        for pool in self._pools:
            pool.discard(gone)

    def flush(self) -> list[RoutedBatch]:
        """Runs all that waits, to the end."""
        self._run_all()
        return self.take_routed()

    def take_routed(self) -> list[RoutedBatch]:
        """What was answered and not handed out yet: after an error, what came before it."""
        routed, self._routed = self._routed, []
        return routed

    def _run_all(self) -> None:
        for k, pool in enumerate(self._pools):
            while pool.count:
                self._run(k)
                if self.micro_batch:
                    self._run_full()

    def run(self, where: Tensor, activations: Activations) -> list[RoutedBatch]:
        """Answers these samples and no others: :meth:`feed` and :meth:`flush` at once."""
        if self.micro_batch and len(where) > self.micro_batch:
            return self.feed(where, activations) + self.flush()
        routed: list[RoutedBatch] = []
        for k in range(self.policy.num_exits):
            staying = self._step(k, where, activations, routed)
            if staying is None:
                break
            where, activations, stay = staying
            if stay is not None:
                activations = tuple(gather(t, stay) for t in activations)
        return routed

    @property
    def oldest(self) -> float:
        """When (``time.monotonic``) the sample came in that waits longest; infinite if none waits."""
        return min((pool.since for pool in self._pools), default=float("inf"))

    @property
    def waiting(self) -> int:
        """Samples that wait."""
        return sum(pool.count for pool in self._pools)

    def _run_full(self) -> None:
        k = len(self._pools) - 1
        while k >= 0:
            if self._pools[k].count >= self.micro_batch:
                self._run(k)
                k = min(k + 1, len(self._pools) - 1)  # it may have filled the next
            else:
                k -= 1

    def _run(self, k: int) -> None:
        where, activations, since = self._pools[k].take(self.micro_batch)
        staying = self._step(k, where, activations, self._routed)
        if staying is not None:
            self._pools[k + 1].add(*staying, since, 2 * self.micro_batch)

    def _step(
        self, k: int, where: Tensor, activations: Activations, routed: list[RoutedBatch]
    ) -> tuple[Tensor, Activations, Tensor | None] | None:
        """Runs stage k; samples that leave are added to ``routed``.

        Returns places of those that stay, all that crosses the cut, and which of its rows stay (``None``: all); or ``None``.
        """
        policy, gated, previous = self.policy, self.policy.gate is not None, None
        activations = self.engine.enter(activations) if k == 0 else activations
        if gated and k and self._needed[k - 1]:  # the map of the exit before came along
            activations, previous = activations[:-1], activations[-1]
        if not self._needed[k]:
            return where, self.engine.advance(k, activations), None
        wanted = self.attention or gated
        activations, p, scores, maps = self.engine.answer(k, activations, policy.temperatures[k], policy.score, wanted)
        batch = RoutedBatch(where, k, scores, p, maps if self.attention else None)
        if k == policy.num_exits - 1:
            routed.append(batch if maps is None or not gated else batch._replace(trust=_measure_last(maps, previous)))
            return None
        features = compute_gate_features(maps, previous) if gated and maps is not None else None
        decision = decide(policy, k, p, scores, features)
        if decision.estimates is not None and maps is not None:
            batch = batch._replace(trust=torch.stack([decision.estimates, torch.full_like(scores, math.nan)], 1))
            activations = (*activations, maps)
        fired = decision.fired if self.rule is None else self.rule(batch, decision.fired)
        return _part(batch, fired, activations, routed)


def _part(
    batch: RoutedBatch, fired: Tensor, activations: Activations, routed: list[RoutedBatch]
) -> tuple[Tensor, Activations, Tensor | None] | None:
    """Adds the samples that leave to ``routed``; returns those that stay, as :meth:`Router._step` does."""
    where = batch.where
    count = int(fired.sum()) if len(where) > 1 else int(fired)  # the one synchronisation of this exit
    if count == len(where):
        routed.append(batch)
        return None
    if count == 0:
        return where, activations, None
    order = fired.argsort(stable=True)  # those that stay, then those that leave
    stay, leave = order[: len(where) - count], order[len(where) - count :]
    routed.append(batch.select(leave))
    return where[stay], activations, stay


def _measure_last(maps: Tensor, previous: Tensor | None) -> Tensor:  # -> (B,2)
    """:attr:`RoutedBatch.trust` at the final exit: how far the map of the exit before was from the final one."""
    measured = maps.new_full((len(maps),), math.nan, dtype=torch.float32)
    if previous is not None:
        measured = divergence(*on_common_grid(previous.float(), maps.float()))
    return torch.stack([torch.zeros_like(measured), measured], 1)
