"""The router of a policy that adapts: audited samples go on to the final exit, and what they show is told to the policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.functional.maps import divergence, geometric_mean, on_common_grid
from exitlens.modalities.base import Modality
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.adapting import Adaptive, Observed
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import ExitBatch, Router
from exitlens.types import Policy
from exitlens.types.inputs import Inputs, list_tensors
from exitlens.types.tasks import are_same, read_answers

SHOWN = 0.2  # share of the locations at the top of a map outside which inputs are replaced
OBJECT = 0.4  # share of the locations that may be an object's, as in certificates of binding
OPEN = 4  # no more than a quarter of the charges that end early answers may be open
FEWEST, MANY = 16, 512  # samples at a time, at least; and where audits stop no sample


def open_router(
    engine: Engine,
    policy: Policy | Adaptive,
    cost: Tensor,
    attention: bool = False,
    micro_batch: int = 0,
    recomposing: Recomposing | None = None,
) -> Router:
    """Return the router for a policy; ``cost`` ``(K,)`` is the network's. A limit on binding needs ``recomposing``."""
    if isinstance(policy, Adaptive):
        return AuditedRouter(engine, policy, cost, attention, micro_batch, recomposing)
    return Router(engine, policy, attention, micro_batch)


class Recomposing(NamedTuple):
    """How inputs are put together: their kind, their names, and where an exit's map lies."""

    modality: Modality
    names: tuple[str, ...]  # of several tensors; empty: one
    place: Callable[[int, Tensor], Tensor]

    def to_inputs(self, tensors: Activations) -> Inputs:
        """Return what the network takes."""
        return dict(zip(self.names, tensors, strict=True)) if self.names else tensors[0]

    def replace_outside(self, k: int, maps: Tensor, inputs: Inputs, donor: Inputs) -> Activations:
        """Return inputs of which only the top fifth of exit k's maps ``(n,*S)`` stays."""
        region = self.modality.choose_region(self.place(k, maps), inputs, SHOWN)
        return list_tensors(self.modality.keep_only(inputs, donor, region))

    def hide_object(self, maps: list[Tensor], inputs: Inputs) -> Inputs:
        """Return inputs without the top of their mean map, so that their object does not come along."""
        mean = geometric_mean([self.place(k, each) for k, each in enumerate(maps)])
        return self.modality.paint_over(inputs, self.modality.choose_region(mean, inputs, OBJECT))


@dataclass
class _Seen:
    """A sample that is observed on its way."""

    name: str
    luck: float  # an early answer is audited if this is below the chance
    chances: tuple[float, float]  # where an answer is not doubtful, and where it is
    chance: float  # of being observed, so far
    scores: list[float] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)  # for a limit on divergence or binding
    inputs: Activations = ()  # for a limit on binding
    exit: int | None = None  # where it would have left


class AuditedRouter(Router):
    """Routes by an :class:`~exitlens.Adaptive`, and tells it what was observed."""

    def __init__(
        self,
        engine: Engine,
        adaptive: Adaptive,
        cost: Tensor,
        attention: bool = False,
        micro_batch: int = 0,
        recomposing: Recomposing | None = None,
    ) -> None:
        self._last = adaptive.policy.num_exits - 1
        super().__init__(engine, adaptive.policy, attention, micro_batch, self._decide, range(self._last))
        self._adaptive, self._cost, self._seen = adaptive, cost.cpu(), dict[int, _Seen]()
        self._recomposing = recomposing

    def feed(self, where: Tensor, activations: Activations) -> list[ExitBatch]:
        """Take samples in, few enough at a time that most of their audits are done before others may leave."""
        routed, at = list[ExitBatch](), 0
        try:
            while at < len(where):
                room = self._adaptive.free / OPEN
                is_bound = self._adaptive.act and min(self._adaptive.policy.thresholds) < math.inf
                size = int(room / self._adaptive.bet) if is_bound else MANY  # a sample opens a bet's worth on average
                part = slice(at, at + max(FEWEST, size))
                at = part.stop
                given = tuple(t[part] for t in activations)
                self._draw_audits(where[part], given)
                routed += super().feed(where[part], given)
                if not self.micro_batch or self._adaptive.opened > room:
                    routed += self.flush()
        except BaseException:
            self._routed[:0] = routed  # they are answered
            raise
        return routed

    def admit(self, where: Tensor, activations: Activations, since: float, name: str = "") -> None:
        """Take in samples of one size that arrived at time ``since``; they wait for :meth:`run_stage`.

        ``name`` is their request's, by which feedback calls them.
        """
        self._draw_audits(where, activations, name)
        super().admit(where, activations, since)

    def _draw_audits(self, where: Tensor, activations: Activations, name: str = "") -> None:
        coins = self._adaptive.draw(len(where))
        for i in (coins.luck < coins.observed).nonzero().flatten().tolist():
            named = f"{name}/{i}" if name else str(coins.first + i)
            row = self._seen[int(where[i])] = _Seen(named, float(coins.luck[i]), coins.chances, coins.observed)
            if self._adaptive.loss == "binding":
                row.inputs = tuple(t[i : i + 1].clone() for t in activations)

    def discard(self, gone: Tensor) -> None:
        """Drop the samples at these places."""
        super().discard(gone)
        self._give_up([self._seen.pop(place, None) for place in gone.tolist()])

    def _give_up(self, rows: list[_Seen | None]) -> None:
        for row in rows:
            if row is not None and row.exit is not None:
                self._adaptive.give_up(row.chance)

    def _run(self, k: int) -> None:
        self.policy, count, asked = self._adaptive.policy, len(self._routed), self.attention
        self.attention = asked or self._adaptive.loss != "disagreement"
        try:
            super()._run(k)
        finally:
            self.attention = asked
        for part in self._routed[count:] if self._seen else ():
            rows = [self._seen.pop(place, None) for place in part.where.tolist()]
            if part.exit == self._last:
                try:
                    seen = self._observe(part, rows)
                except BaseException:
                    self._give_up(rows)
                    raise
                if seen is not None:
                    self._adaptive.learn(seen, self._cost)
        if not asked:
            self._routed[count:] = [part._replace(attention=None) for part in self._routed[count:]]

    def _decide(self, batch: ExitBatch, fired: Tensor) -> Tensor:
        rows = [self._seen.get(place) for place in batch.where.tolist()] if self._seen else []
        observed = [(i, row) for i, row in enumerate(rows) if row is not None]
        fired, self._adaptive.classes = fired.cpu(), batch.probabilities.shape[1]
        chances, audited = torch.zeros(len(fired), dtype=torch.float64), torch.zeros(len(fired), dtype=torch.bool)
        if observed:
            scores = (batch.scores if batch.trust is None else batch.trust).float().cpu()
            doubtful, values = self._adaptive.doubt(batch.exit, scores).tolist(), scores.tolist()
            answers = read_answers(batch.probabilities, self.policy.task).cpu()
        for i, row in observed:
            row.scores.append(values[i])
            row.answers.append(answers[i])
            if batch.attention is not None and self._adaptive.loss != "disagreement":
                row.maps.append(batch.attention[i])
            chances[i] = row.chances[doubtful[i]]
            audited[i] = row.luck < chances[i]
            fired[i] &= row.exit is None  # it would have left before
        leaving = self._adaptive.decide(fired, chances, audited)
        for i, row in observed:
            if leaving[i] and audited[i]:
                row.exit, row.chance = batch.exit, float(chances[i])
        return (leaving & ~audited).to(batch.where.device)

    def _observe(self, part: ExitBatch, rows: list[_Seen | None]) -> Observed | None:
        kept = [i for i, row in enumerate(rows) if row is not None]
        seen = [row for row in rows if row is not None]
        if not seen:
            return None
        final = read_answers(part.probabilities[kept], self.policy.task).cpu()
        answers = torch.stack([torch.stack(row.answers) for row in seen])  # (n,K-1) or (n,K-1,C)
        losses = (~are_same(answers, final[:, None], self.policy.task)).float()
        if self._adaptive.loss != "disagreement":
            assert part.attention is not None
            maps = [torch.stack([row.maps[k] for row in seen]).float() for k in range(self._last)]
            maps.append(part.attention[kept].float())
            if self._adaptive.loss == "divergence":
                losses = torch.stack([divergence(*on_common_grid(each, maps[-1])) for each in maps[:-1]], 1).cpu()
            else:
                losses = torch.cat(
                    [self._lose_outside(seen[i], [each[i : i + 1] for each in maps]) for i in range(len(seen))]
                )
        every = torch.cat([answers, final[:, None]], 1)
        scores = torch.tensor([row.scores for row in seen])
        exits = torch.tensor([self._last if row.exit is None else row.exit for row in seen])
        chances = torch.tensor([row.chance for row in seen], dtype=torch.float64)
        names = tuple(row.name for row in seen)
        return Observed(scores, losses, exits, chances, names, every)

    def _lose_outside(self, row: _Seen, maps: list[Tensor]) -> Tensor:  # (1,*S) each -> (1,K-1)
        """Return which early answers change if all outside their maps' top fifth comes from the sample observed before.

        The first sample has none before it, and counts as if all changed; so does one of another size.
        """
        recomposing, engine = self._recomposing, self.engine
        assert recomposing is not None, "a limit on binding needs it"
        inputs, donor = recomposing.to_inputs(row.inputs), self._adaptive.donor
        self._adaptive.donor = recomposing.hide_object(maps, inputs)
        if donor is None or [t.shape for t in list_tensors(donor)] != [t.shape for t in row.inputs]:
            return torch.ones(1, self._last)
        changed = []
        for k in range(self._last):
            activations = engine.enter(recomposing.replace_outside(k, maps[k], inputs, donor))
            for j in range(k):
                activations = engine.run_stage(j, activations)
            _, p, *_ = engine.run_exit(k, activations, self.policy.temperatures[k], self.policy.score)
            changed.append(~are_same(read_answers(p, self.policy.task).cpu()[0], row.answers[k], self.policy.task))
        return torch.stack(changed).float()[None]
