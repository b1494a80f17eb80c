"""Zeros that a graph adds before a depthwise convolution are left to the convolution, which needs no copy for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

ATEN = torch.ops.aten
PADS: tuple[Callable[..., Any], ...] = (F.pad, ATEN.pad.default, ATEN.constant_pad_nd.default)


class _Convolution(NamedTuple):
    """Arguments of ``aten.conv2d``."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None = None
    stride: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0)
    dilation: Sequence[int] = (1, 1)
    groups: int = 1


def absorb(body: fx.GraphModule) -> None:
    """Removes the copies that "same" padding makes where it is one-sided, as in networks ported from TensorFlow.

    Only before depthwise convolutions, where a copy costs as much as the convolution; others compute far more.
    """
    for pad, node, conv in list(_find_pairs(body)):
        args: Any = pad.args
        x, (left, right, top, bottom) = args[:2]
        above, aside = conv.padding
        zeros = (left + aside, right + aside, top + above, bottom + above)
        args = (x, conv.weight, conv.bias, conv.stride, zeros, conv.dilation, conv.groups)
        with body.graph.inserting_before(node):
            node.replace_all_uses_with(body.graph.call_function(convolve_padded, args))
        body.graph.erase_node(node)
        body.graph.erase_node(pad)
    body.recompile()


def convolve_padded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    zeros: tuple[int, int, int, int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:  # (B,C,H,W) -> (B,C',H',W')
    """A convolution of an image with ``zeros`` around it: left, right, above and below.

    Convolutions add as many zeros on both sides. Where more are wanted after than before, whole steps more are added
    before, and what comes of them is cut off.
    """
    left, right, top, bottom = zeros
    sides, padding, kept = ((top, bottom), (left, right)), [], [slice(None), slice(None)]
    for axis, (before, after) in enumerate(sides):
        steps = max(0, -((before - after) // stride[axis]))
        reach = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        count = (x.shape[2 + axis] + before + after - reach) // stride[axis] + 1
        padding.append(before + steps * stride[axis])
        kept.append(slice(steps, steps + count))
    return F.conv2d(x, weight, bias, list(stride), padding, list(dilation), groups)[tuple(kept)]


def _find_pairs(body: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, _Convolution]]:
    """Nodes that pad, the depthwise convolutions that alone read them, and the arguments of these."""
    for node in body.graph.nodes:
        if node.target is not ATEN.conv2d.default or node.kwargs:
            continue
        args: Any = node.args
        conv = _Convolution(*args)
        pad = node.prev
        while pad.op == "get_attr":  # between the two, something might change in place what was copied
            pad = pad.prev
        alone = conv.x is pad and len(pad.users) == 1 and conv.groups > 1
        if alone and all(len(pair) == 2 for pair in conv[3:6]) and _pads_zeros(pad):
            yield pad, node, conv


def _pads_zeros(node: fx.Node) -> bool:
    """Whether zeros are added to the two last axes, and nothing cut off."""
    if node.op != "call_function" or node.target not in PADS or node.kwargs or len(node.args) < 2:
        return False
    args: Any = node.args
    pads, has_mode = args[1], node.target is not ATEN.constant_pad_nd.default
    mode = args[2] if has_mode and len(args) > 2 else "constant"
    value = (*args[2 + has_mode :], 0)[0]
    whole = isinstance(pads, Sequence) and len(pads) == 4 and all(isinstance(one, int) and one >= 0 for one in pads)
    return whole and mode == "constant" and value in (0, None)
