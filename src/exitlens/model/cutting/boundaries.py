"""Where a traced graph can be cut: what crosses, the feature layout, the nearest place that works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx, nn

from exitlens.errors import AttachError, suggest
from exitlens.model.cutting.graph import TracedGraph
from exitlens.model.cutting.looking import Seen, name_of
from exitlens.model.layouts import Kind, Layout, find_layout
from exitlens.types.inputs import MASK, Inputs, list_tensors

POOLING = (
    nn.AdaptiveAvgPool1d,
    nn.AvgPool1d,
    nn.AdaptiveMaxPool1d,
    nn.MaxPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.MaxPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)


@dataclass(frozen=True)
class UncuttableError(Exception):
    """A cut that does not work, and why; the caller adds where one would."""

    why: str
    name: str = ""
    node: fx.Node | None = None


def crossing(traced: TracedGraph, seen: Seen, end: int) -> list[fx.Node]:
    """The batched tensors made up to place ``end`` that later nodes need, in order.

    Sizes, parameters and constants do not cross: the later stage makes them anew.

    Raises:
        UncuttableError: if something crosses that is not a row a sample.
    """
    order = list(traced.graph.nodes)
    needed: set[fx.Node] = set()
    open_: list[fx.Node] = [p for node in order[end + 1 :] for p in parents(node, seen) if traced.position(p) <= end]
    done: set[fx.Node] = set()
    while open_:
        node = open_.pop()
        if node in done:
            continue
        done.add(node)
        if node.name in seen.dataless:
            continue
        if node.op == "placeholder" or node.name in seen.batched:
            needed.add(node)
        elif node.name in seen.shapes:
            raise UncuttableError(
                f"{node.name!r} of shape {seen.shapes[node.name]} (two samples) crosses there: more than the batch axis "
                "would have to be dynamic"
            )
        else:
            open_ += parents(node, seen)
    return sorted(needed, key=traced.position)


def parents(node: fx.Node, seen: Seen) -> list[fx.Node]:
    """What a node is computed from; nothing for the number of samples, which is read off the features."""
    return [] if node.name in seen.sizes else list(node.all_input_nodes)


def cut_nodes(traced: TracedGraph, at: Sequence[str]) -> list[fx.Node]:
    """The output nodes of the named modules, checked to be known, to run once, and in order of execution."""
    for name in at:
        if name in traced.repeated:
            count, node = traced.repeated[name]
            why = f"it runs {count} times (a loop, or a module used again), so its name does not say after which time"
            raise UncuttableError(why, name, node)
        if name not in traced.outputs:
            raise AttachError(f"at: the backbone has no module {name!r} on its path.{suggest(name, traced.outputs)}")
    nodes = [traced.outputs[name] for name in at]
    places = [traced.position(node) for node in nodes]
    if any(later <= earlier for earlier, later in pairwise(places)):
        ordered = sorted(set(at), key=lambda name: traced.position(traced.outputs[name]))
        raise AttachError(f"at: exits must be different and in the order of execution, got {list(at)}: use {ordered}")
    return nodes


def find_node_layout(
    backbone: nn.Module, traced: TracedGraph, node: fx.Node, seen: Seen, example: Inputs, kind: Kind | None = None
) -> Layout:
    """The layout of the features at a node (see :func:`~exitlens.model.layouts.find_layout`)."""
    before = list(traced.graph.nodes)[: traced.position(node)]
    maps = [seen.shapes[n.name] for n in before if n.name in seen.batched and _convolves(backbone, n)]
    grids = [(s[2], s[3]) for s in maps if len(s) == 4 and s[2] * s[3] > 1]
    size, name = tuple(list_tensors(example)[0].shape), traced.name_of(node) or node.name
    if kind is None and len(size) == 4 and _channels_first(backbone, node, seen):
        kind = "nchw"
    shape = seen.shapes.get(node.name, ())
    if kind is None and len(size) == 2 and len(shape) == 3 and shape[1] == shape[2] == size[1]:
        kind = None if any(_convolves(backbone, n, "1d") for n in before) else "tokens"  # as many channels as tokens
    return find_layout(name, seen.shapes.get(node.name, ()), size[2:], grids, kind, size[1])


_MOVES_AXES = ("permute", "transpose", "linear")
_CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)


def _channels_first(backbone: nn.Module, node: fx.Node, seen: Seen) -> bool:
    """Whether a square map of as many channels is known to have them first: what made it, activations aside, was 2-d."""
    shape = seen.shapes.get(node.name, ())
    if len(shape) != 4 or len(set(shape[1:])) > 1:
        return False
    while node.op != "placeholder" and node.all_input_nodes and seen.shapes.get(node.name) == shape:
        module = backbone.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _CHANNELS_FIRST) or _convolves(backbone, node) or "batch_norm" in name_of(node):
            return True
        if isinstance(module, nn.LayerNorm | nn.Linear) or any(
            w in name_of(node) for w in ("permute", "transpose", "linear")
        ):
            return False
        node = node.all_input_nodes[0]
    return False


def check_features(backbone: nn.Module, seen: Seen, node: fx.Node) -> None:
    """Raises :class:`UncuttableError` unless a node has one row a sample, in the network's own dtype."""
    if node.name not in seen.batched:
        raise UncuttableError(f"its features of shape {seen.shapes.get(node.name)} (two samples) are not one row a sample")
    own = next(backbone.parameters()).dtype
    if seen.dtypes[node.name] != own:
        raise UncuttableError(f"its features are {seen.dtypes[node.name]}, the network's parameters {own}")


def can_cut(backbone: nn.Module, traced: TracedGraph, node: fx.Node, seen: Seen, example: Inputs) -> bool:
    """Whether an exit can stand at a node."""
    try:
        find_node_layout(backbone, traced, node, seen, example)
        check_features(backbone, seen, node)
        crossing(traced, seen, traced.position(node))
    except (AttachError, UncuttableError):
        return False
    return True


def nearest(backbone: nn.Module, traced: TracedGraph, seen: Seen, example: Inputs, place: int, last: int) -> str:
    """``; the nearest cut that works is 'layer2'`` for a place that does not, or nothing."""
    named = {traced.position(node): node for node in traced.outputs.values() if traced.position(node) < last}
    for other in sorted(named, key=lambda p: (abs(p - place), p)):
        if other != place and can_cut(backbone, traced, named[other], seen, example):
            return f"; the nearest cut that works is {traced.name_of(named[other])!r}"
    return ""


def find_mask(traced: TracedGraph) -> fx.Node | None:
    """The placeholder of the padding mask."""
    return next((node for node in traced.inputs if node.target == MASK), None)


def count_embedding_rows(backbone: nn.Module, traced: TracedGraph, seen: Seen) -> list[int | None]:
    """For each input how many different tokens the embedding knows that reads it; ``None`` if none does."""
    rows: list[int | None] = []
    for node in traced.inputs:
        sizes = []
        for user in node.users:
            if user.op == "call_module" and isinstance(module := backbone.get_submodule(str(user.target)), nn.Embedding):
                sizes.append(module.num_embeddings)
            elif user.op == "call_function" and "embedding" in name_of(user) and len(user.all_input_nodes) > 1:
                table = next(n for n in user.all_input_nodes if n is not node)
                sizes.append(seen.shapes[table.name][0])
        rows.append(min(sizes) if sizes else None)
    return rows


def find_last_features(backbone: nn.Module, traced: TracedGraph, seen: Seen) -> fx.Node:
    """The last map or tokens before the backbone's own pooling and classifier."""
    nodes: list[fx.Node] = [n for n in traced.graph.nodes if n.op != "placeholder" and not _reshapes(backbone, n, seen)]
    maps = [n for n in nodes if len(seen.shapes.get(n.name, ())) in (3, 4) and n.name in seen.batched]
    maps = [n for n in maps if n.name not in seen.dataless]
    large = [n for n in maps if _locations(seen.shapes[n.name]) > 1]
    if not maps:
        raise AttachError("backbone: found no feature map (B,C,H,W) or tokens in it: exits need locations to attend to")
    if large and any(_pools(backbone, user) for user in large[-1].users):
        return large[-1]
    return maps[-1]


def reads_first_token(features: fx.Node) -> bool:
    """Whether what follows the features reads their first token (a class token) instead of pooling over all."""
    for user in features.users:
        name, args = name_of(user), user.args[1:]
        if name.startswith("slice") and reads_first_token(user):  # x[:, 0]: a slice over the batch, then a selection
            return True
        if name.startswith("select") and args[:2] == (1, 0):
            return True
        if name == "getitem" and isinstance(args[0], tuple) and args[0][1:2] == (0,):
            return True
    return False


def _locations(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 3 else min(shape[2] * shape[3], shape[1] * shape[2])  # channels first or last


def _convolves(backbone: nn.Module, node: fx.Node, axes: str = "2d") -> bool:
    if node.op == "call_module":
        return isinstance(backbone.get_submodule(str(node.target)), nn.Conv2d if axes == "2d" else nn.Conv1d)
    return node.op == "call_function" and f"conv{axes}" in name_of(node)


def _pools(backbone: nn.Module, node: fx.Node) -> bool:
    """Whether the node is pooling (or what leads to it): a module or a function of that name, or picking one token."""
    if node.op == "call_module" and isinstance(backbone.get_submodule(str(node.target)), POOLING):
        return True
    words = ("pool", "mean", "getitem", "flatten", "select", "slice")
    return node.op != "call_module" and any(word in name_of(node) for word in words)


def _reshapes(backbone: nn.Module, node: fx.Node, seen: Seen) -> bool:
    """Whether the node computes no features of its own: pooling, dropout, slices, views (but to a map of 4 axes)."""
    words = ["pool", "mean", "dropout", "flatten", "getitem", "getattr", "select", "slice"]
    words += ["view", "reshape", "transpose", "permute"] if len(seen.shapes.get(node.name, ())) != 4 else []
    if node.op == "call_module":
        return isinstance(backbone.get_submodule(str(node.target)), (*POOLING, nn.Flatten))
    if name_of(node) == "getitem" and isinstance(node.args[0], fx.Node) and node.args[0].name not in seen.shapes:
        return False  # of a tuple: what a recurrent module has computed
    return node.op == "get_attr" or any(word in name_of(node) for word in words)
