"""What exitlens uses of PyTorch's private parts: the one place to look at when a new version breaks something."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; elsewhere it is emulated and slow."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
