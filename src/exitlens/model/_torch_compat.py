"""What exitlens uses of PyTorch's private parts: the one place to look at when a new version breaks something."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; elsewhere it is emulated and slow."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def use_fake_tensors() -> FakeTensorMode:
    """A context whose tensors have a shape and a dtype but no values; the parameters they meet may be real."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def is_mutating_operation(target: Any) -> bool | None:
    """Whether an ATen operation changes one of its arguments; ``None`` for what is no ATen operation."""
    schema = getattr(target, "_schema", None)
    return None if schema is None else bool(schema.is_mutable)
