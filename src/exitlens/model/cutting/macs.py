"""Cost in multiply-accumulates (MACs), counted while running, by PyTorch's own counter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_macs(run: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Multiply-accumulates of one call (half of ``torch.utils.flop_counter``'s FLOPs), and what the call returned.

    Convolutions, matrix products and attention count; normalisation, activations and pooling do not, as is usual.
    """
    with torch.no_grad(), disable_fused_kernels(), FlopCounterMode(display=False) as counter:
        out = run(*args)
    return int(counter.get_total_flops()) // 2, out


@contextmanager
def disable_fused_kernels() -> Iterator[None]:
    """Without the fused kernels of attention and recurrent layers, which the counter does not know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other settings that flags() touches
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
