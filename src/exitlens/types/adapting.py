"""Where a policy that adapts stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LimitedLoss = Literal["disagreement", "divergence", "binding"]  # of early answers, from the final exit's


@dataclass(frozen=True)
class AdaptiveStatus:
    """Counts of an :class:`exitlens.Adaptive`: of all samples, and of the present window.

    Attributes:
        taken, audited: samples that were taken in, and those of them that the final exit checks.
        lost: audited samples whose early answer was not the final exit's, as far as no label took that back; with a limit on
            divergence, the sum of theirs.
        alarms: sudden changes that audits have shown.
        window_taken, window_lost: the same of the window.
        window_open: audited samples of the window that would have left early, whose final answer is on its way.
        window: its number, from 0.
        labelled, final_wrong: audited samples whose labels were told, and those of them that the final exit got wrong.
        relearning: no sample leaves early until enough were observed after an alarm.
        thresholds: of now; with ``act=False`` those that it would have.

    Examples:
        >>> print(xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.05).status)
        0 of 0 samples audited, 0 early answers found wrong
    """

    taken: int
    audited: int
    lost: float
    alarms: int
    window_taken: int
    window_lost: float
    window_open: int
    window: int
    labelled: int
    final_wrong: int
    relearning: bool
    thresholds: tuple[float, ...]

    def __str__(self) -> str:
        changes = f"; {self.alarms} sudden changes" if self.alarms else ""
        return f"{self.audited:,} of {self.taken:,} samples audited, {self.lost:.4g} early answers found wrong{changes}"
