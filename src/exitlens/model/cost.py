"""Cost in multiply-accumulates (MACs), counted while running, by PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_macs(run: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Multiply-accumulates of one call (half of ``torch.utils.flop_counter``'s FLOPs), and what the call returned.

    Convolutions, matrix products and attention count; normalisation, activations and pooling do not, as is usual.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = run(*args)
    return int(counter.get_total_flops()) // 2, out
