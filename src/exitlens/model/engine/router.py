"""The router: samples leave at the first exit that is sure; the others join those that wait for the next stage."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.functional.answers import compare_with
from exitlens.functional.pixels import resize_probabilities
from exitlens.functional.routing import decide, needs_head
from exitlens.functional.scores import score_of
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.engine import Engine
from exitlens.types import Policy
from exitlens.types.settings import CHANGE_SCORES


class ExitBatch(NamedTuple):
    """Samples that reached an exit together, and what it answers."""

    where: Tensor  # (n,) their places in the input
    exit: int
    scores: Tensor  # (n,)
    probabilities: Tensor  # (n,C); of pixels (n,C,H,W) once they have left
    attention: Tensor | None  # (n,*S)
    trust: Tensor | None = None  # (n,): with a gate, its estimates
    refusals: Tensor | None = None  # (n,): with a gate, the exits before that it refused, as bits

    def select(self, rows: Tensor) -> ExitBatch:
        """Return the samples at ``rows`` (indices or a mask)."""
        chosen = (None if t is None else t[rows] for t in (self.attention, self.trust, self.refusals))
        return ExitBatch(self.where[rows], self.exit, self.scores[rows], self.probabilities[rows], *chosen)

    def find_refused(self) -> Tensor:  # -> (n,)
        """Return the first exit whose answer the gate refused; -1: none."""
        assert self.refusals is not None
        first = (self.refusals & -self.refusals).double().log2()  # -inf without any
        return first.clamp_min(-1).long()


# (an exit's answers, which samples the policy lets leave (B,)) -> which samples leave (B,)
Override = Callable[[ExitBatch, Tensor], Tensor]


class Router:
    """Runs samples through an engine under a policy, in micro-batches that are refilled after every exit.

    Stage k+1 runs on the survivors of several micro-batches of stage k, as soon as there are enough for one (dynamic
    re-batching, arXiv 2512.15705; here also within one call). Deep stages go first, so fewer than a micro-batch of samples
    wait before each stage.

    Args:
        attention: keep the attention maps of the exits that answer.
        micro_batch: number of samples that run together; 0: all of them.
        override: decides after the policy which samples leave: a request's own limits, or forced exit shares.
        heads: exits whose heads are computed for the override, even where the policy never lets them fire.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        attention: bool = False,
        micro_batch: int = 0,
        override: Override | None = None,
        heads: Collection[int] = (),
    ) -> None:
        self.engine, self.policy, self.attention = engine, policy, attention
        self.micro_batch, self.override = micro_batch, override
        self._needed = [k in heads or needs_head(policy, k) for k in range(policy.num_exits)]
        self._pools = [Pool() for _ in range(policy.num_exits)]
        self._shapes: tuple[torch.Size, ...] = ()
        self._routed: list[ExitBatch] = []

    def run(self, where: Tensor, activations: Activations) -> list[ExitBatch]:
        """Answer these samples: :meth:`feed` and :meth:`flush` at once."""
        return self.feed(where, activations) + self.flush()

    def feed(self, where: Tensor, activations: Activations) -> list[ExitBatch]:
        """Take in samples at their places ``(B,)``, run all full micro-batches, and return what was answered."""
        shapes = tuple(t.shape[1:] for t in activations)
        if self.waiting and shapes != self._shapes:  # images of another size run separately
            self._run_all()
        self._shapes = shapes
        size, now = self.micro_batch or len(where), time.monotonic()
        for at in range(0, len(where), size):
            self._pools[0].add(where[at : at + size], tuple(t[at : at + size] for t in activations), now)
            self._run_full()
        return self.take_routed()

    def flush(self) -> list[ExitBatch]:
        """Run all waiting samples to the end."""
        self._run_all()
        return self.take_routed()

    def admit(self, where: Tensor, activations: Activations, since: float) -> None:
        """Take in samples of one size that arrived at time ``since``; they wait for :meth:`run_stage`."""
        self._shapes = tuple(t.shape[1:] for t in activations)
        self._pools[0].add(where, activations, since, since)

    def run_stage(self, k: int) -> list[ExitBatch]:
        """Run stage k on a micro-batch of the samples that wait for it, or on all if fewer than two micro-batches wait."""
        self._run(k)
        return self.take_routed()

    def list_waiting(self) -> list[tuple[int, float]]:
        """Return for each stage how many samples wait, and since when they wait for company (``time.monotonic``)."""
        return [(pool.count, pool.entered) for pool in self._pools]

    def list_places(self) -> list[int]:
        """Return the places of all waiting samples."""
        return [place for pool in self._pools for places in pool.places for place in places.tolist()]

    def discard(self, gone: Tensor) -> None:
        """Drop the samples at these places ``(n,)``, wherever they wait."""
        for pool in self._pools:
            pool.discard(gone)

    def take_routed(self) -> list[ExitBatch]:
        """Return the answers not handed out yet; after an error, these are the ones from before it."""
        routed, self._routed = self._routed, []
        return routed

    @property
    def oldest(self) -> float:
        """Arrival (``time.monotonic``) of the sample that has waited longest; infinite if none waits."""
        return min(pool.since for pool in self._pools)

    @property
    def waiting(self) -> int:
        """Number of waiting samples."""
        return sum(pool.count for pool in self._pools)

    def _run_all(self) -> None:
        for k, pool in enumerate(self._pools):
            while pool.count:
                self._run(k)
                self._run_full()

    def _run_full(self) -> None:
        k = len(self._pools) - 1 if self.micro_batch else -1
        while k >= 0:
            if self._pools[k].count >= self.micro_batch:
                self._run(k)
                k = min(k + 1, len(self._pools) - 1)  # it may have filled the next
            else:
                k -= 1

    def _run(self, k: int) -> None:
        """Run stage k on waiting samples; record those that leave, and let the others wait for the next stage."""
        where, activations, since, entered = self._pools[k].take(self.micro_batch)
        entered = entered if k else math.inf  # samples that waited for company go on with whatever is there
        policy, is_gated = self.policy, self.policy.gate is not None
        activations = self.engine.enter(activations) if k == 0 else activations
        compares, is_final = policy.score in CHANGE_SCORES, k == policy.num_exits - 1
        # with a gate, the exits that refused each sample, as bits; for a score by change, the answer of the exit before
        carried: Activations = ()
        if (is_gated and any(self._needed[:k])) or (compares and k and self._needed[k - 1]):
            activations, carried = activations[:-1], activations[-1:]
        if not self._needed[k]:
            carried = () if compares else carried
            self._pools[k + 1].add(where, (*self.engine.run_stage(k, activations), *carried), since, entered)
            return
        asked = self.engine.choose_asked(k, policy, self.attention)
        activations, p, scores, maps, support = self.engine.run_exit(
            k, activations, policy.temperatures[k], policy.score, asked
        )
        if compares:
            p = compare_with(p, p if is_final else carried[0] if carried else None, policy.task)
            scores, activations = score_of(p, policy.score), (*activations, p)
        batch = ExitBatch(where, k, scores, p, maps if self.attention else None)
        if is_gated:
            refused = carried[0] if carried else torch.zeros_like(where)
            batch = batch._replace(trust=torch.ones_like(scores), refusals=refused)
        if is_final:
            self._let_leave(batch)
            return
        decision = decide(policy, k, p, scores, support)
        if is_gated:
            batch = batch._replace(trust=decision.scores)
            if decision.refused is not None:
                refused = torch.add(refused, decision.refused, alpha=1 << k)
            activations = (*activations, refused)  # it travels with the samples that stay
        fired = decision.fired if self.override is None else self.override(batch, decision.fired)
        count = int(fired.sum()) if len(where) > 1 else int(fired)  # this exit's only synchronisation
        if asked == "score" and count:
            batch = batch._replace(probabilities=self.engine.answer_late(k, activations, fired))
        if count == len(where):
            self._let_leave(batch)
        elif count == 0:
            self._pools[k + 1].add(where, activations, since, entered)
        else:
            order = fired.argsort(stable=True)  # first the samples that stay, then those that leave
            stay, leave = order[: len(where) - count], order[len(where) - count :]
            self._let_leave(batch.select(leave))
            self._pools[k + 1].add(where[stay], gather(activations, stay), since, entered)

    def _let_leave(self, batch: ExitBatch) -> None:
        if batch.probabilities.ndim == 4:  # of pixels: only answers that leave are brought to the inputs' size
            batch = batch._replace(probabilities=resize_probabilities(batch.probabilities, self._shapes[0][1:]))
        self._routed.append(batch)


@dataclass
class Pool:
    """Samples that wait for one stage, in order of arrival."""

    places: list[Tensor] = field(default_factory=list)
    pieces: list[Activations] = field(default_factory=list)
    count: int = 0
    since: float = math.inf  # arrival of the sample that has waited longest
    entered: float = math.inf  # when the first of them began to wait for company

    def add(self, where: Tensor, activations: Activations, since: float, entered: float = math.inf) -> None:
        """Take in samples that arrived at time ``since``, and wait for company since ``entered`` or from now on."""
        self.places.append(where)
        self.pieces.append(activations)
        self.count += len(where)
        self.since, self.entered = min(self.since, since), min(self.entered, entered, time.monotonic())

    def take(self, size: int) -> tuple[Tensor, Activations, float, float]:
        """Remove one micro-batch of ``size``, or all samples if there are fewer than two micro-batches or ``size`` is 0."""
        pieces, since, entered, count = self.pieces, self.since, self.entered, self.count
        where = self.places[0] if len(self.places) == 1 else torch.cat(self.places)
        activations = pieces[0] if len(pieces) == 1 else tuple(torch.cat(column) for column in zip(*pieces, strict=True))
        self.places, self.pieces, self.count, self.since, self.entered = [], [], 0, math.inf, math.inf
        if size and count >= 2 * size:
            self.add(where[size:], tuple(t[size:] for t in activations), since, entered)
            where, activations = where[:size], tuple(t[:size] for t in activations)
        return where, activations, since, entered

    def discard(self, gone: Tensor) -> None:
        """Drop the samples at these places."""
        if any(bool(torch.isin(places, gone).any()) for places in self.places):
            where, activations, since, entered = self.take(0)
            stay = (~torch.isin(where, gone)).nonzero().squeeze(1)
            if len(stay):
                self.add(where[stay], gather(activations, stay), since, entered)


def gather(activations: Activations, rows: Tensor) -> Activations:
    """Return rows of every tensor, in its memory format."""
    return tuple(
        t.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)  # whole rows of memory, copied once
        if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last)
        else t.index_select(0, rows)
        for t in activations
    )
