"""Where a policy that adapts stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exitlens.types.policies import write_levels


@dataclass(frozen=True)
class AdaptiveStatus:
    """Counts of an :class:`exitlens.Adaptive`: of all samples, and of the present window.

    Attributes:
        taken: samples so far.
        audited: those among them that were chosen to run to the final exit.
        lost: sum of the audited samples' losses. With a limit on disagreement, the number of wrong early answers, without
            those that a label excused.
        alarms: sudden changes that the audits have shown.
        window: number of the present window, from 0.
        window_taken, window_lost: samples and losses of the present window.
        window_open: audited samples of the window that would have left early and have no final answer yet.
        labelled, final_wrong: audited samples that got a label, and those among them that the final exit got wrong.
        relearning: true after an alarm, while no sample leaves early.
        thresholds: those in force; infinite where no sample leaves. With ``act=False``, those that would be.

    Examples:
        >>> print(xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.05).status)
        0 of 0 samples audited, their losses add up to 0
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
        return f"{self.audited:,} of {self.taken:,} samples audited, their losses add up to {self.lost:.4g}{changes}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite thresholds become the string ``"never"``."""
        return vars(self) | {"thresholds": write_levels(self.thresholds)}
