"""Tracing a backbone with torch.fx, once per mode, and finding places in the graph by module name and by shape."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from exitlens.errors import AttachError, did_you_mean
from exitlens.model.layouts import Kind, Layout, find_layout

POOLING = (
    nn.AdaptiveAvgPool2d,
    nn.AvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.MaxPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)


@dataclass
class TracedGraph:
    """One mode's graph: nodes in order of execution, and the node at which each named module has its output."""

    graph: fx.Graph
    outputs: dict[str, fx.Node]

    def position(self, node: fx.Node) -> int:
        """Place of a node in the order of execution."""
        return list(self.graph.nodes).index(node)


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One placeholder, for the images; other arguments keep their defaults."""
        name = next(iter(inspect.signature(self.root.forward).parameters))
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        if isinstance(out, fx.Proxy):
            self.outputs[self.path_of_module(m)] = out.node
        return out


@contextmanager
def mode_of(module: nn.Module, training: bool) -> Iterator[None]:
    """Puts a module into one mode and gives every submodule its own mode back, also after an error."""
    before = [(m, m.training) for m in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for m, was in before:
            m.training = was


def trace(backbone: nn.Module, training: bool) -> TracedGraph:
    """Traces ``backbone`` in one mode (the training flag is baked into the graph, so attach traces both).

    Raises:
        AttachError: if torch.fx cannot follow the forward pass (control flow that depends on data, for example).
    """
    needed = [
        p.name
        for p in inspect.signature(backbone.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(needed) != 1:
        raise AttachError(f"backbone: expected a forward with one input tensor, got {needed}: fix the others first")
    tracer = _Tracer()
    with mode_of(backbone, training):
        try:
            graph = tracer.trace(backbone)
        except Exception as error:  # fx raises whatever the user's forward raises on a Proxy
            raise AttachError(
                f"backbone {type(backbone).__name__} cannot be traced by torch.fx in "
                f"{'training' if training else 'evaluation'} mode: {error}. Mend: take data-dependent control flow out "
                "of its forward, or wrap the part that has it in torch.fx.wrap"
            ) from error
    return TracedGraph(graph, tracer.outputs)


class _Shapes(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(root, graph))
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name] = tuple(value.shape)
        return value


def shapes(backbone: nn.Module, traced: TracedGraph, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Shape of the tensor at every node, by node name, for one run in evaluation mode."""
    interpreter = _Shapes(backbone, traced.graph)
    with mode_of(backbone, False), torch.no_grad():
        try:
            interpreter.run(example)
        except Exception as error:  # any op of the user's network may refuse the shape
            where = str(error).split("\n", maxsplit=1)[0]
            raise AttachError(
                f"example: the backbone fails on an input of shape {tuple(example.shape)} {example.dtype}: {where}. "
                "Mend: pass an example of the size and channels that the backbone takes"
            ) from error
    return interpreter.shapes


def cut_nodes(traced: TracedGraph, at: Sequence[str]) -> list[fx.Node]:
    """The output nodes of the named modules, checked to be known and in order of execution."""
    nodes: list[fx.Node] = []
    for name in at:
        if name not in traced.outputs:
            raise AttachError(f"at: the backbone has no module {name!r} on its path.{did_you_mean(name, traced.outputs)}")
        nodes.append(traced.outputs[name])
    places = [traced.position(node) for node in nodes]
    if any(later <= earlier for earlier, later in pairwise(places)):
        ordered = sorted(set(at), key=lambda name: traced.position(traced.outputs[name]))
        raise AttachError(f"at: exits must be different and in the order of execution, got {list(at)}: use {ordered}")
    return nodes


def node_layout(
    backbone: nn.Module,
    traced: TracedGraph,
    node: fx.Node,
    known: dict[str, tuple[int, ...]],
    image: Sequence[int],
    kind: Kind | None = None,
) -> Layout:
    """The layout of the features at a node (see :func:`~exitlens.model.layouts.find_layout`)."""
    before = list(traced.graph.nodes)[: traced.position(node)]
    convolutions = [
        n for n in before if n.op == "call_module" and isinstance(backbone.get_submodule(str(n.target)), nn.Conv2d)
    ]
    maps = [known[n.name] for n in convolutions if known[n.name][2] * known[n.name][3] > 1]
    name = next((name for name, output in traced.outputs.items() if output is node), node.name)
    return find_layout(name, known.get(node.name, ()), image, [(s[2], s[3]) for s in maps], kind)


def last_features(backbone: nn.Module, traced: TracedGraph, known: dict[str, tuple[int, ...]]) -> fx.Node:
    """The last map or tokens before the backbone's own pooling and classifier."""
    nodes: list[fx.Node] = [n for n in traced.graph.nodes if n.op != "placeholder" and not _reshapes(backbone, n, known)]
    maps = [n for n in nodes if len(known.get(n.name, ())) in (3, 4)]
    large = [n for n in maps if _locations(known[n.name]) > 1]
    if not maps:
        raise AttachError("backbone: found no feature map (B,C,H,W) or tokens in it: exits need locations to attend to")
    if large and any(_pools(backbone, user) for user in large[-1].users):
        return large[-1]
    return maps[-1]


def _locations(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 3 else min(shape[2] * shape[3], shape[1] * shape[2])  # channels first or last


def _name_of(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _pools(backbone: nn.Module, node: fx.Node) -> bool:
    """Whether the node is pooling (or what leads to it): a module or a function of that name, or picking one token."""
    if node.op == "call_module" and isinstance(backbone.get_submodule(str(node.target)), POOLING):
        return True
    return node.op != "call_module" and any(word in _name_of(node) for word in ("pool", "mean", "getitem", "flatten"))


def _reshapes(backbone: nn.Module, node: fx.Node, known: dict[str, tuple[int, ...]]) -> bool:
    """Whether the node computes no features of its own: pooling, dropout, slices, views (but to a map of 4 axes)."""
    words = ["pool", "mean", "dropout", "flatten", "getitem", "getattr", "select"]
    words += ["view", "reshape"] if len(known.get(node.name, ())) != 4 else []
    if node.op == "call_module":
        return isinstance(backbone.get_submodule(str(node.target)), (*POOLING, nn.Flatten))
    return node.op == "get_attr" or any(word in _name_of(node) for word in words)
