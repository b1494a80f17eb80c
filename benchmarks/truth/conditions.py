"""What is compared: the same heads, data and steps, and only the loss differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

import exitlens as xl


@dataclass(frozen=True)
class PermutedLoss(xl.EGTLoss):
    """The control: every map is pulled towards the target of another sample of the batch."""

    def make_targets(self, maps: Sequence[Tensor], relevance: Tensor | None) -> list[Tensor]:
        return [target.roll(1, 0) for target in super().make_targets(maps, relevance)]


EGT, WITHOUT, PLAIN, CONTROL = "egt", "without", "plain", "permuted"
LOSSES: dict[str, xl.EGTLoss | None] = {
    PLAIN: None,
    WITHOUT: xl.EGTLoss(weight=0.0),
    EGT: xl.EGTLoss(),
    "paper": xl.EGTLoss(target="attention", reach="network"),
    CONTROL: PermutedLoss(),
}
FEWER = {"paper", CONTROL}  # to compare with: three seeds on scenes, one elsewhere
TITLES = {
    PLAIN: "plain network",
    WITHOUT: "without EGT",
    EGT: "EGT (the defaults)",
    "paper": "EGT as published: the final attention for all weights",
    CONTROL: "control: targets of other samples",
}
