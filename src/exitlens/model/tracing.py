"""Tracing a backbone with torch.fx, once per mode, and finding places in the graph by module name and by shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from exitlens.errors import AttachError, did_you_mean

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
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    if len(inputs) != 1:
        names = [n.name for n in inputs]
        raise AttachError(f"backbone: expected a forward with one input tensor, got {names}: fix the others first")
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


def cut_nodes(traced: TracedGraph, at: Sequence[str], known: dict[str, tuple[int, ...]]) -> list[fx.Node]:
    """The output nodes of the named modules, checked to be feature maps and in order of execution."""
    nodes: list[fx.Node] = []
    for name in at:
        if name not in traced.outputs:
            raise AttachError(f"at: the backbone has no module {name!r} on its path.{did_you_mean(name, traced.outputs)}")
        node = traced.outputs[name]
        shape = known.get(node.name, ())
        if len(shape) != 4:
            raise AttachError(f"at: expected features (B,C,H,W) after {name!r}, got shape {shape}: put the exit earlier")
        nodes.append(node)
    places = [traced.position(node) for node in nodes]
    if any(later <= earlier for earlier, later in pairwise(places)):
        ordered = [name for _, name in sorted(zip(places, at, strict=True))]
        raise AttachError(f"at: exits must be different and in the order of execution, got {list(at)}: use {ordered}")
    return nodes


def last_features(backbone: nn.Module, traced: TracedGraph, known: dict[str, tuple[int, ...]]) -> fx.Node:
    """The last feature map ``(B,C,H,W)`` before the backbone's own pooling and classifier."""
    for node in reversed(list(traced.graph.nodes)):
        if len(known.get(node.name, ())) != 4 or node.op == "placeholder":
            continue
        is_pool = node.op == "call_module" and isinstance(backbone.get_submodule(str(node.target)), POOLING)
        name = getattr(node.target, "__name__", str(node.target))
        if not is_pool and not any(word in name for word in ("pool", "mean", "dropout", "flatten", "view")):
            found: fx.Node = node
            return found
    raise AttachError("backbone: found no feature map (B,C,H,W) in it: exits need locations to attend to")
