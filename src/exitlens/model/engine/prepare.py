"""Copies of a network's graphs and heads in the formats that a tuning asks for."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import EvidenceHead, ExitHead, KeptHead


def prepare_graph(body: fx.GraphModule, tuning: Tuning) -> fx.GraphModule:
    """A copy of an evaluation graph as the tuning wants it; the original is left as it is."""
    body = copy.deepcopy(body).eval()
    if tuning.folded:
        fold(body)
    if tuning.precision == "bfloat16":
        body = body.to(torch.bfloat16)
    if tuning.channels_last:
        body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return body.requires_grad_(False)


def prepare_head(head: ExitHead, tuning: Tuning) -> ExitHead:
    """A copy of a head for evaluation; heads stay in their own precision."""
    twin = copy.deepcopy(head).eval().requires_grad_(False)
    if isinstance(twin, KeptHead):
        twin.tail.replace_evaluation(prepare_graph(twin.tail.evaluation, tuning))
    if isinstance(twin, EvidenceHead) and twin.neck is not None:
        twin.neck.fuse()
    return twin


def can_fold(body: fx.GraphModule) -> bool:
    """Whether :func:`fold` would change anything."""
    return any(True for _ in _find_pairs(body, dict(body.named_modules())))


def fold(body: fx.GraphModule) -> None:
    """Folds every batch normalisation into the convolution that it alone follows."""
    modules = dict(body.named_modules())
    for before, node in list(_find_pairs(body, modules)):
        parent, _, name = str(before.target).rpartition(".")
        fused = fuse_conv_bn_eval(modules[str(before.target)], modules[str(node.target)])
        setattr(body.get_submodule(parent), name, fused)
        node.replace_all_uses_with(before)
        body.graph.erase_node(node)
    body.delete_all_unused_submodules()
    body.recompile()


def _find_pairs(body: fx.GraphModule, modules: dict[str, nn.Module]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Calls of a convolution and of the batch normalisation that can be folded into it."""
    calls = Counter(str(node.target) for node in body.graph.nodes if node.op == "call_module")
    for node in body.graph.nodes:
        before = _find_convolution(node, modules, calls)
        if before is not None:
            yield before, node


def _find_convolution(node: fx.Node, modules: dict[str, nn.Module], calls: Counter[str]) -> fx.Node | None:
    """The call of the convolution that ``node``, a batch normalisation, can be folded into."""
    before = node.args[0] if node.op == "call_module" and node.args else None
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
        return None
    if calls[str(node.target)] > 1 or calls[str(before.target)] > 1:
        return None
    norm, conv = modules[str(node.target)], modules[str(before.target)]
    exact = type(norm) is nn.BatchNorm2d and type(conv) is nn.Conv2d  # a subclass may do more than its name says
    hooks = (norm._forward_hooks, norm._forward_pre_hooks, conv._forward_hooks, conv._forward_pre_hooks)
    return before if exact and norm.running_mean is not None and not any(hooks) else None  # hooks may set the weights
