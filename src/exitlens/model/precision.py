"""Half precision for training, without the operations that it makes slower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}
_CONVOLUTIONS |= {getattr(torch.ops.aten, f.__name__).default for f in (F.conv1d, F.conv2d, F.conv3d)}
_ATTENTION = {F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default}


@contextmanager
def use_half_precision(device: torch.device, enabled: bool) -> Iterator[None]:
    """Autocast to bfloat16; on CPUs, depthwise convolutions and attention run in float32 (their outputs are bfloat16).

    Their backward pass is slow in bfloat16: it doubles the time of a training step of an EfficientNet-Lite0. Attention
    inside ``nn.MultiheadAttention`` is autocast.
    """
    exceptions = _InFloat32() if enabled and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), exceptions:
        yield


class _InFloat32(TorchFunctionMode):
    """Runs the exceptions of :func:`use_half_precision`, whether modules, functions or exported code call them."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_depthwise = func in _CONVOLUTIONS and len(args) > 1 and args[1].shape[1] == 1 < args[0].shape[1 - args[1].ndim]
        if func not in _ATTENTION and not is_depthwise:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            widened = {name: _widen(value) for name, value in kwargs.items()}
            return func(*map(_widen, args), **widened).to(torch.bfloat16)


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
