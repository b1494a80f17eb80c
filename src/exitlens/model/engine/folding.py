"""Batch normalisation becomes part of the convolution that it follows: of modules, and of the operators of traced graphs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

ATEN = torch.ops.aten
CONVOLUTIONS = (ATEN.conv2d.default, ATEN.conv2d.padding)  # (x, weight, bias, ...)
SHAPES = ("ndim", "shape")  # what graphs ask of a convolution's output beside its values; folding does not change them
ORDERS = {  # of the arguments of functions that normalise
    F.batch_norm: ("x", "mean", "var", "weight", "bias", "training", "momentum", "eps"),
    ATEN.batch_norm.default: ("x", "weight", "bias", "mean", "var", "training", "momentum", "eps", "cudnn"),
}


@dataclass(frozen=True)
class _Norm:
    """A batch normalisation with fixed statistics: ``(x - mean) / sqrt(var + eps) * weight + bias``, each ``(C,)``."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def fuse(self, weight: Tensor, bias: Tensor | None) -> tuple[nn.Parameter, nn.Parameter]:
        """Weight and bias of the convolution that does both."""
        parts: Any = (weight, bias, self.mean, self.var, self.eps, self.weight, self.bias)
        return fuse_conv_bn_weights(*parts)


def can_fold(body: fx.GraphModule) -> bool:
    """Whether :func:`fold` would change anything."""
    return any(True for _ in _find_pairs(body))


def fold(body: fx.GraphModule) -> None:
    """Folds every batch normalisation into the convolution that it alone follows."""
    for before, node, norm in list(_find_pairs(body)):
        if before.op == "call_module":
            _replace_module(body, before, norm)
        else:
            _replace_weights(body, before, norm)
        node.replace_all_uses_with(before)
        inputs = node.all_input_nodes
        body.graph.erase_node(node)
        _erase_unused(body, inputs)
    body.delete_all_unused_submodules()
    body.recompile()


def _replace_module(body: fx.GraphModule, node: fx.Node, norm: _Norm) -> None:
    name = str(node.target)
    conv = copy.deepcopy(body.get_submodule(name))
    assert isinstance(conv, nn.Conv2d)
    conv.weight, conv.bias = norm.fuse(conv.weight, conv.bias)
    body.set_submodule(name, conv)


def _replace_weights(body: fx.GraphModule, node: fx.Node, norm: _Norm) -> None:
    """New weights for this call alone, as others may use the old ones."""
    x, *given = node.args
    weight, bias = (_read(body, one) for one in (*given, None)[:2])
    assert weight is not None
    fresh = []
    for what, value in zip(("weight", "bias"), norm.fuse(weight, bias), strict=True):
        body.register_parameter(name := f"{node.name}_folded_{what}", value)
        with body.graph.inserting_before(node):
            fresh.append(body.graph.get_attr(name))
    node.args = (x, *fresh, *given[2:])
    _erase_unused(body, [one for one in given[:2] if isinstance(one, fx.Node)])


def _erase_unused(body: fx.GraphModule, nodes: list[fx.Node]) -> None:
    for node in nodes:
        if node.op == "get_attr" and not node.users:
            body.graph.erase_node(node)


def _find_pairs(body: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node, _Norm]]:
    """Calls of a convolution and of the batch normalisation that can be folded into it, and what that does."""
    calls = Counter(str(node.target) for node in body.graph.nodes if node.op == "call_module")
    calls.update(str(node.target).rpartition(".")[0] for node in body.graph.nodes if node.op == "get_attr")
    for node in body.graph.nodes:
        before = node.args[0] if node.args else None
        if isinstance(before, fx.Node) and _is_convolution(body, before, calls) and _is_read_once(before):
            norm = _read_norm(body, node, calls)
            if norm is not None:
                yield before, node, norm


def _is_convolution(body: fx.GraphModule, node: fx.Node, calls: Counter[str]) -> bool:
    """Whether the weights are this call's to change."""
    if node.op == "call_module":
        conv = body.get_submodule(str(node.target))
        return type(conv) is nn.Conv2d and calls[str(node.target)] == 1 and not _has_hooks(conv)
    if node.target not in CONVOLUTIONS or node.kwargs:
        return False
    return all(one is None or _read(body, one) is not None for one in node.args[1:3])


def _is_read_once(node: fx.Node) -> bool:
    values = [user for user in node.users if user.target is not getattr or user.args[1] not in SHAPES]
    return len(values) == 1


def _read_norm(body: fx.GraphModule, node: fx.Node, calls: Counter[str]) -> _Norm | None:
    if node.op == "call_module":
        norm = body.get_submodule(str(node.target))
        if type(norm) is not nn.BatchNorm2d or calls[str(node.target)] > 1 or _has_hooks(norm):
            return None  # a subclass may do more than its name says
        if norm.running_mean is None or norm.running_var is None:
            return None
        return _Norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    order = ORDERS.get(node.target) if node.op == "call_function" else None
    if order is None:
        return None
    given = dict(zip(order, node.args, strict=False)) | node.kwargs
    mean, var, weight, bias = (_read(body, given.get(name)) for name in ("mean", "var", "weight", "bias"))
    known = (weight is None) == (given.get("weight") is None) and (bias is None) == (given.get("bias") is None)
    eps = given.get("eps", 1e-5)
    if mean is None or var is None or not known or given.get("training", False) is not False or not isinstance(eps, float):
        return None
    return _Norm(mean, var, weight, bias, eps)


def _read(body: fx.GraphModule, node: object) -> Tensor | None:
    """The tensor that a node stands for, if it is the network's own."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found: Any = attrgetter(str(node.target))(body)
    return found if isinstance(found, Tensor) else None


def _has_hooks(module: nn.Module) -> bool:
    """Hooks may set the weights."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
