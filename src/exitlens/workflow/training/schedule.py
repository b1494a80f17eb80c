"""What changes over the course of training, as functions of progress in [0, 1]."""

from __future__ import annotations

import math


def one_cycle_rate(progress: float, peak: float, warm: float = 0.3) -> float:
    """Learning rate at ``progress`` in [0, 1]: cosine from peak/25 up over the first 30 %, then down to peak/250,000.

    The shape and constants of ``torch.optim.lr_scheduler.OneCycleLR``, as a function without state.
    """
    low, end = peak / 25, peak / 25 / 1e4
    start, stop, share = (low, peak, progress / warm) if progress < warm else (peak, end, (progress - warm) / (1 - warm))
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))
