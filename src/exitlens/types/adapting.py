"""Where a policy that adapts stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exitlens.types.policies import write_levels


@dataclass(frozen=True)
class AdaptiveStatus:
    """Counts of an :class:`exitlens.Adaptive`: of samples, and of losses. Where it only proposes, what they would have been.

    Attributes:
        taken: samples so far.
        audited: early answers among them that ran on to the final exit as a check, and got there.
        lost: sum of the audited samples' losses. With a limit on disagreement, the number of wrong early answers, without
            those that a label excused.
        open: audits that have no final answer yet.
        bound, allowed: with probability ``1 - delta`` (in a shared folder ``1 - delta / processes``) the losses that nobody
            audited add up to at most ``bound``; where it exceeds ``allowed``, what the limit allows by now, no sample leaves
            early.
        alarms: sudden changes that the audits have shown.
        labelled, final_wrong: observed samples that got a label, and those among them that the final exit got wrong.
        relearning: true after an alarm, while no sample leaves early.
        thresholds: those in force; infinite where no sample leaves. With ``act=False``, those that would be.

    Examples:
        >>> print(xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.05).status)
        0 audits of 0 samples, their losses add up to 0
    """

    taken: int
    audited: int
    lost: float
    open: int
    bound: float
    allowed: float
    alarms: int
    labelled: int
    final_wrong: int
    relearning: bool
    thresholds: tuple[float, ...]

    def __str__(self) -> str:
        changes = f"; {self.alarms} sudden changes" if self.alarms else ""
        return f"{self.audited:,} audits of {self.taken:,} samples, their losses add up to {self.lost:.4g}{changes}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite thresholds become the string ``"never"``."""
        return vars(self) | {"thresholds": write_levels(self.thresholds)}
