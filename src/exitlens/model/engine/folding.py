"""Batch normalisation becomes part of the convolution that it follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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
