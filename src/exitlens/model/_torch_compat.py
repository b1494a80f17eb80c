"""PyTorch's private parts that exitlens uses: the one place to look at when a new version breaks something."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.padding import _CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

# layers over any number of axes; a transposed convolution is a convolution, too
CONVOLUTION, TRANSPOSED_CONVOLUTION, BATCH_NORM, DROPOUT = _ConvNd, _ConvTransposeNd, _NormBase, _DropoutNd
MAX_POOL, AVERAGE_POOL, ADAPTIVE_POOLS = _MaxPoolNd, _AvgPoolNd, (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
PADS = (_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd, _CircularPadNd)

FAKE_TENSOR = FakeTensor  # has a shape and a dtype but no values
LARGE_BATCH = 16  # use_mkldnn in PyTorch's Convolution.cpp asks for this, so steps are compiled for fewer and for more rows


def give_own_code(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the function with a code object of its own: torch.compile counts its recompilations by code object."""
    function = cast(FunctionType, function)
    return FunctionType(function.__code__.replace(co_name=name), function.__globals__, name, None, function.__closure__)


def mark_any_count(t: Tensor) -> Tensor:
    """Return a copy of ``t``; what torch.compile makes for it takes any number of rows."""
    t = t.clone()
    torch._dynamo.mark_dynamic(t, 0)
    return t


def read_version(t: Tensor) -> int:
    """Return a number that grows with every change of ``t`` in place."""
    return t._version


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16; elsewhere it is emulated and slow."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def use_fake_tensors() -> FakeTensorMode:
    """Return a context that makes fake tensors; the parameters they meet may be real."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def is_mutating_operation(target: Any) -> bool | None:
    """Return whether an ATen operation changes one of its arguments; ``None`` for anything else."""
    schema = getattr(target, "_schema", None)
    return None if schema is None else bool(schema.is_mutable)


def keeps_shape(module: nn.Module, x: Tensor) -> bool:
    """Return whether the module is a plain batch normalisation that takes ``x``."""
    if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return False
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    module._check_input_dim(x)
    known = [t for t in (module.weight, module.bias, module.running_mean, module.running_var) if t is not None]
    return not has_hooks(module) and x.shape[1] == module.num_features and all(t.dtype == x.dtype for t in known)


def has_hooks(module: nn.Module) -> bool:
    """Return whether anything is called before or after the module's forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def list_member_tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the dicts in which a module keeps its own submodules, parameters and buffers."""
    return module._modules, module._parameters, module._buffers
