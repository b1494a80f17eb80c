"""What changes over a training: the weight of consistency, and the learning rate."""

from __future__ import annotations

import math


def ramp(progress: float, share: float) -> float:
    """Return the factor of the consistency weight: linear from 0 to 1 over the first ``share`` of training, then 1."""
    return 1.0 if share <= 0 else min(1.0, max(0.0, progress) / share)


def one_cycle_rate(progress: float, peak: float, warm: float = 0.3) -> float:
    """Return the learning rate at ``progress`` in [0, 1]: up from peak/25 over the share ``warm``, down to peak/250,000.

    Shape and constants are those of ``torch.optim.lr_scheduler.OneCycleLR``.
    """
    low, end = peak / 25, peak / 25 / 1e4
    start, stop, share = (low, peak, progress / warm) if progress < warm else (peak, end, (progress - warm) / (1 - warm))
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))
