"""The router of a policy that adapts: audited samples go on to the final exit, and all exits are remembered."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from exitlens.functional.adapting import Adaptive, Audits
from exitlens.functional.routing import fires
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import ExitBatch, Router
from exitlens.types import Policy
from exitlens.types.tasks import are_same, read_answers


def open_router(
    engine: Engine, policy: Policy | Adaptive, cost: Tensor, attention: bool = False, micro_batch: int = 0
) -> Router:
    """Return the router for a policy; ``cost`` ``(K,)`` is the network's."""
    if isinstance(policy, Adaptive):
        return AuditedRouter(engine, policy, cost, attention, micro_batch)
    return Router(engine, policy, attention, micro_batch)


@dataclass
class _Seen:
    """A sample that is watched on its way."""

    is_audited: bool
    scores: list[float] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)
    exit: int | None = None  # where it would have left, in this window
    window: int = -1


class AuditedRouter(Router):
    """Routes by an :class:`~exitlens.Adaptive`, and tells it what the audits showed."""

    def __init__(
        self, engine: Engine, adaptive: Adaptive, cost: Tensor, attention: bool = False, micro_batch: int = 0
    ) -> None:
        self._last = adaptive.policy.num_exits - 1
        super().__init__(engine, adaptive.policy, attention, micro_batch, self._decide, range(self._last))
        self._adaptive, self._cost, self._seen = adaptive, cost.cpu(), dict[int, _Seen]()

    def feed(self, where: Tensor, activations: Activations) -> list[ExitBatch]:
        """Draw which of the samples are audited, and take them in."""
        audited = self._adaptive.draw(len(where), self._cost)
        rows = torch.ones_like(audited) if self._adaptive.is_relearning else audited
        for place, is_audited in zip(where[rows.to(where.device)].tolist(), audited[rows].tolist(), strict=True):
            self._seen[place] = _Seen(is_audited)
        return super().feed(where, activations)

    def discard(self, gone: Tensor) -> None:
        """Drop the samples at these places."""
        super().discard(gone)
        for place in gone.tolist():
            self._seen.pop(place, None)

    def take_routed(self) -> list[ExitBatch]:
        """Return the answers not handed out yet, after learning from those of audited samples."""
        routed = super().take_routed()
        for part in routed if self._seen else ():
            rows = [self._seen.pop(place, None) for place in part.where.tolist()]
            if part.exit == self._last:
                self._learn(part, rows)
        return routed

    def _decide(self, batch: ExitBatch, _: Tensor) -> Tensor:
        scores = batch.scores if batch.trust is None else batch.trust
        fired = fires(scores, self._adaptive.thresholds[batch.exit]).cpu()
        rows = [self._seen.get(place) for place in batch.where.tolist()] if self._seen else []
        watched = [(i, row) for i, row in enumerate(rows) if row is not None]
        audited = torch.zeros_like(fired)
        for i, row in watched:
            audited[i] = row.is_audited
            fired[i] &= row.exit is None  # it left already, but for the audit
        leave = self._adaptive.admit(fired, audited)
        if watched:
            answers = read_answers(batch.probabilities, self.policy.task).cpu()
        for i, row in watched:
            row.scores.append(float(scores[i]))
            row.answers.append(answers[i])
            if fired[i]:
                row.exit, row.window = batch.exit, self._adaptive.window_number
        return leave.to(batch.where.device)

    def _learn(self, part: ExitBatch, rows: list[_Seen | None]) -> None:
        kept = [i for i, row in enumerate(rows) if row is not None]
        seen = [row for row in rows if row is not None]
        if not seen:
            return
        final = read_answers(part.probabilities[kept], self.policy.task).cpu()
        answers = torch.stack([torch.stack(row.answers) for row in seen])  # (n,K-1) or (n,K-1,C)
        losses = ~are_same(answers, final[:, None], self.policy.task)
        scores = torch.tensor([row.scores for row in seen])
        exits = torch.tensor([self._last if row.exit is None else row.exit for row in seen])
        audited = torch.tensor([row.is_audited for row in seen])
        windows = torch.tensor([row.window for row in seen])
        self._adaptive.learn(Audits(scores, losses.float(), exits, audited, windows), self._cost)
