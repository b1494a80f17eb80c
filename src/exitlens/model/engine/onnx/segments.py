"""Segments: everything between two exits that can answer, with the head of the second, as one function of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from exitlens.functional.routing import needs_head
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.prepare import prepare_graph, prepare_head
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.types import Policy

LOGITS, ATTENTION = "logits", "attention"


class Segment(nn.Module):
    """Stages up to an exit and its head: activations -> logits, attention and, before the final exit, activations.

    Attributes:
        exit: the exit whose head it has.
        is_last: whether that is the final one.
    """

    def __init__(self, bodies: Sequence[fx.GraphModule], head: ExitHead, exit_: int, is_last: bool) -> None:
        super().__init__()
        self.bodies, self.head = nn.ModuleList(bodies), head
        self.exit, self.is_last = exit_, is_last

    def forward(self, *activations: Tensor) -> Activations:
        """What crossed the cut before -> ``(B,C)``, ``(B,*S)``, and what crosses the cut after."""
        for body in self.bodies:
            activations = body(*activations)
        found = self.head.with_attention(*activations)
        return found if self.is_last else (*found, *activations)


def cut_segments(stages: Sequence[Stage], heads: Sequence[ExitHead], policy: Policy) -> list[Segment]:
    """Copies of the network's parts in float32, batch normalisation folded: one segment for each exit that can answer.

    Stages whose exit can never fire are part of the segment after them: of a file all outputs are computed, wanted or not.
    """
    segments, bodies, tuning = list[Segment](), list[fx.GraphModule](), Tuning(folded=True)
    with torch.inference_mode(False):
        for k, (stage, head) in enumerate(zip(stages, heads, strict=True)):
            bodies.append(prepare_graph(stage.evaluation, tuning).float())
            if needs_head(policy, k):
                own = prepare_head(head, tuning).float()
                segments.append(Segment(bodies, own, k, k == len(heads) - 1).eval())
                bodies = []
    return segments
