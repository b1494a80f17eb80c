"""Which axis of a tensor holds channels, told from the layers that made it, or that read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from exitlens.model.cutting.graph import TracedBackbone, get_callee_name

_FIRST = (_ConvNd, _NormBase, _MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, nn.GroupNorm)
_FIRST_NAMES = ("conv", "batch_norm", "instance_norm", "group_norm", "max_pool", "avg_pool", "adaptive_")
_LAST = (nn.LayerNorm, nn.Linear, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_LAST_NAMES = ("linear", "layer_norm", "rms_norm", "lstm", "gru", "rnn_", "embedding", "addmm")
_SWAPPING = ("transpose", "swapaxes", "swapdims")


def find_channel_axis(traced: TracedBackbone, node: fx.Node) -> int | None:
    """The axis of channels of what a node gives, by the last layer before it that says so; ``None`` where none does."""
    count = len(traced.shape_of(node))
    axes = list(range(count))  # of the node at hand: which of the first node's axes each is
    while node.op != "placeholder" and len(traced.shape_of(node)) == count:
        found = _tell_axis(traced, node, count)
        if found is not None:
            return axes[found]
        order = _read_order(node, count)
        source = _find_source(traced, node)
        if source is None:
            return None
        if order is not None:  # axis i is axis order[i] of the source
            axes = [axes[order.index(i)] for i in range(count)]
        node = source
    return None


def find_input_channel_axis(traced: TracedBackbone, node: fx.Node) -> int | None:
    """The axis of channels of an input, by the first layer that reads it; ``None`` where none tells."""
    count = len(traced.shape_of(node))
    waiting = [(node, list(range(count)))]
    seen = set[fx.Node]()
    while waiting:
        at, axes = waiting.pop(0)  # axes of what the node gives: which of the input's each is
        for user in at.users:
            if user in seen or user.op == "output":
                continue
            seen.add(user)
            found = _tell_axis(traced, user, count)
            if found is not None and user.all_input_nodes[0] is at:
                return axes[found]
            if len(traced.shape_of(user)) == count:
                order = _read_order(user, count)
                waiting.append((user, axes if order is None else [axes[i] for i in order]))
    return None


def _find_source(traced: TracedBackbone, node: fx.Node) -> fx.Node | None:
    """The tensor that a node passes on; of a part of a tuple, what made the tuple."""
    return next((one for one in node.all_input_nodes if one.op != "get_attr"), None)


def _tell_axis(traced: TracedBackbone, node: fx.Node, count: int) -> int | None:
    """Where a layer has its channels, of tensors of so many axes."""
    module, name = traced.module_of(node), get_callee_name(node).split(".")[0].strip("_")
    if name == "getitem" and isinstance(node.args[0], fx.Node) and node.args[0] not in traced.values.shapes:
        return _tell_axis(traced, node.args[0], count)  # a recurrent layer gives a tuple
    if isinstance(module, _FIRST) or (module is None and name.startswith(_FIRST_NAMES)):
        return 1
    if isinstance(module, _LAST) or (module is None and name.startswith(_LAST_NAMES)):
        return count - 1
    return None


def _read_order(node: fx.Node, count: int) -> Sequence[int] | None:
    """For each axis of what comes out, which it was of what went in; ``None``: as before."""
    name = get_callee_name(node).split(".")[0].strip("_")
    if name not in ("permute", *_SWAPPING):
        return None
    given: list[Any] = [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "input")]
    given = [*given[0]] if given and isinstance(given[0], list | tuple) else given
    chosen = [axis % count for axis in given if isinstance(axis, int)]
    if name == "permute":
        return chosen if len(chosen) == count else None
    order = list(range(count))
    if len(chosen) == 2:
        order[chosen[0]], order[chosen[1]] = chosen[1], chosen[0]
    return order
