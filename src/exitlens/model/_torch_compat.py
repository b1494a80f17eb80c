"""All that is private to PyTorch and used here: what to look at when a new version of PyTorch breaks something."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor


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


def is_bfloat16_fast() -> bool:
    """Whether this CPU computes convolutions in bfloat16 by instructions of its own."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
