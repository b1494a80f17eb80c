"""Operations that slide a window over locations: their kernel, stride and padding, from a layer or from a call.

Trained kernels need not weigh both sides alike: those of TensorFlow's EfficientNets lean against the padding, which all lies
behind, and the maps come to lie centred. So a convolution's centre is that of its weights' squares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from exitlens.model.geometry.grids import Line

Rule = Callable[[int, Line], Line]  # of the i-th of the locations' axes
Shape = Sequence[int]


def find_window_rule(
    module: nn.Module | None,
    node: fx.Node,
    name: str,
    before: Shape,
    after: Shape,
    shape_of: Callable[[fx.Node], Shape],
    value_of: Callable[[fx.Node], Any],
) -> Rule | None:
    """What the operation makes of a line of locations; ``None`` if it slides no window, or one that is not known here.

    Args:
        module: that the node calls, if it calls one. name: of the function, if not.
        before, after: shapes of what comes in and goes out.
        shape_of: of other nodes (weights). value_of: of those that are constant, else ``None``.
    """
    if module is not None:
        return _of_module(module, before, after)
    if name.startswith(("adaptive_avg_pool", "adaptive_max_pool")):
        return _resizing(before, after, Line.pool_to)
    if name == "interpolate" or name.startswith("upsample_"):
        aligned = node.kwargs.get("align_corners", next((a for a in node.args if isinstance(a, bool)), False))
        mode = str(_argument(node, 3, "mode") or "nearest") if name == "interpolate" else name
        return _resizing(before, after, partial(Line.resize, aligned=bool(aligned), reads=1 if "nearest" in mode else 2))
    if name in ("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"):
        return _padding(_argument(node, 1, "pad"), len(before) - 2)
    if name.startswith(("conv1", "conv2", "conv3", "conv_transpose")) and len(node.all_input_nodes) > 1:
        is_transposed = name.startswith("conv_t")
        kernel = shape_of(node.all_input_nodes[1])[2:]
        stride, padding = _argument(node, 3, "stride"), _argument(node, 4, "padding")
        dilation = _argument(node, 7 if is_transposed else 5, "dilation")
        if is_transposed:
            return _scattering(kernel, stride or 1, padding or 0, dilation or 1)
        return _sliding(kernel, stride or 1, padding or 0, dilation or 1, value_of(node.all_input_nodes[1]))
    if name.startswith(("max_pool", "avg_pool")):
        kernel, stride = _argument(node, 1, "kernel_size"), _argument(node, 2, "stride")
        dilation = _argument(node, 4, "dilation") if name.startswith("max") else 1
        return _sliding(kernel, stride or kernel, _argument(node, 3, "padding") or 0, dilation or 1)
    return None


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _of_module(module: nn.Module, before: Shape, after: Shape) -> Rule | None:
    if isinstance(module, _ConvTransposeNd):
        return _scattering(module.kernel_size, module.stride, module.padding, module.dilation)
    if isinstance(module, _ConvNd):
        return _sliding(module.kernel_size, module.stride, module.padding, module.dilation, module.weight)
    if isinstance(module, _MaxPoolNd | _AvgPoolNd):
        stride = module.kernel_size if module.stride is None else module.stride
        return _sliding(module.kernel_size, stride, module.padding, getattr(module, "dilation", 1))
    if isinstance(module, _AdaptiveAvgPoolNd | _AdaptiveMaxPoolNd):
        return _resizing(before, after, Line.pool_to)
    if isinstance(module, nn.Upsample):
        reads = 1 if module.mode == "nearest" else 2
        return _resizing(before, after, partial(Line.resize, aligned=bool(module.align_corners), reads=reads))
    if type(module).__module__ == nn.ZeroPad2d.__module__:
        return _padding(module.padding, len(before) - 2)
    return None


def _pick(value: Any, i: int) -> Any:
    """Of a number for all axes, or one for each."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return value[i] if len(value) > 1 else value[0]


def _are_known(*values: Any) -> bool:
    """Whether they are numbers, or several, and nothing that the network computes."""
    parts = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return all(isinstance(part, int | str) for part in parts)


def _sliding(kernel: Any, stride: Any, padding: Any, dilation: Any, weight: Tensor | None = None) -> Rule | None:
    if not _are_known(kernel, stride, padding, dilation):
        return None

    def slide(i: int, line: Line) -> Line:
        size, spaced = _pick(kernel, i), _pick(dilation, i)
        before = _pick(padding, i)
        if isinstance(before, str):  # the odd location of padding goes behind
            before = spaced * (size - 1) // 2 if before == "same" else 0
        lean = 0.0 if weight is None else spaced * _find_lean(weight, 2 + i)
        return line.slide(size, _pick(stride, i), before, spaced, lean)

    return slide


def _find_lean(weight: Tensor, axis: int) -> float:
    """How far the centre of the weights' squares lies off the middle, in locations."""
    squares = weight.detach().double().square()
    along = squares.sum([one for one in range(squares.ndim) if one != axis]).cpu()
    total = along.sum().item()
    places = torch.arange(len(along), dtype=torch.float64) - (len(along) - 1) / 2
    return (along * places).sum().item() / total if total > 0 else 0.0


def _scattering(*parts: Any) -> Rule | None:
    if not _are_known(*parts):
        return None
    return lambda i, line: line.scatter(*(_pick(part, i) for part in parts))


def _resizing(before: Shape, after: Shape, resize: Callable[[Line, int, int], Line]) -> Rule:
    return lambda i, line: resize(line, before[2 + i], after[2 + i])


def _padding(pairs: Any, count: int) -> Rule | None:
    """Padding of the last axes, the last first: two numbers for each; ``count`` of the axes are those of locations."""
    if isinstance(pairs, int) or not _are_known(pairs):
        return None
    in_front = [*pairs[::2], *(0,) * count]
    return lambda i, line: line.skip(-in_front[count - 1 - i])
