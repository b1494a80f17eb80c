"""What exitlens uses of PyTorch's private parts: the one place to look at when a new version breaks something."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

LARGE_BATCH = 16  # use_mkldnn in PyTorch's Convolution.cpp asks for this, so steps are compiled for fewer and for more rows


def give_own_code(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same function with a code object of its own: torch.compile counts its recompilations by code object."""
    function = cast(FunctionType, function)
    return FunctionType(function.__code__.replace(co_name=name), function.__globals__, name, None, function.__closure__)


def mark_any_count(t: Tensor) -> Tensor:
    """A copy of ``t``; what torch.compile makes for it takes any number of rows."""
    t = t.clone()
    torch._dynamo.mark_dynamic(t, 0)
    return t


def read_version(t: Tensor) -> int:
    """A number that grows with every change of ``t`` in place."""
    return t._version


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; elsewhere it is emulated and slow."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
