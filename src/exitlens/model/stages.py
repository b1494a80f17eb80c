"""Cutting a traced backbone into stages that run alone, share its parameters, and together equal it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from exitlens.errors import AttachError
from exitlens.model.layouts import Kind, Layout
from exitlens.model.tracing import TracedGraph, cut_nodes, last_features, mode_of, node_layout, shapes, trace

Carried = tuple[Tensor, ...]


class Stage(nn.Module):
    """The part of the backbone between two exits: ``stage(*carried) -> carried``, the features first.

    It holds one graph per mode (a trace bakes the training flag in) over the same submodules and parameters, which are
    those of the source backbone. ``carried`` is every tensor that crosses the cut.
    """

    def __init__(self, training_graph: fx.GraphModule, evaluation_graph: fx.GraphModule) -> None:
        super().__init__()
        _merge(training_graph, evaluation_graph)
        for table in ("_modules", "_parameters", "_buffers"):  # one set of members for both graphs
            evaluation_graph.__dict__[table] = training_graph.__dict__[table]
        self.body = training_graph
        # not registered: its members are those of `body`, so state_dict and parameters see each of them once
        self.__dict__["evaluation_body"] = evaluation_graph

    def forward(self, *carried: Tensor) -> Carried:
        """Tensors that cross the cut before -> tensors that cross the cut after; element 0 is the feature map."""
        body = self.body if self.training else self.__dict__["evaluation_body"]
        out: Carried = body(*carried)
        return out


def _merge(into: nn.Module, other: nn.Module) -> None:
    """Adds the members that only one mode's graph uses to the other's tree."""
    for name, parameter in other.named_parameters(recurse=False):
        into.register_parameter(name, parameter)
    for name, buffer in other.named_buffers(recurse=False):
        into.register_buffer(name, buffer)
    for name, module in other.named_children():
        mine = into._modules.get(name)
        if mine is None:
            into.add_module(name, module)
        elif mine is not module:  # both are containers that fx made
            _merge(mine, module)


@dataclass
class Split:
    """A backbone in pieces.

    Attributes:
        stages: K stages; stage k ends at exit k's features, the last at the features before the classifier.
        tail: the backbone's own pooling and classifier, from the last features to its output.
        channels: ``D`` of the features at every exit.
        layouts: how the features lie in memory at every exit.
        sizes: locations ``S`` of the features at every exit for the example's size.
        pooled_linear: name of the linear layer if the tail is global average pooling and that layer, else ``None``.
    """

    stages: list[Stage]
    tail: Stage
    channels: list[int]
    layouts: list[Layout]
    sizes: list[tuple[int, ...]]
    pooled_linear: str | None


def split(backbone: nn.Module, at: Sequence[str], example: Tensor, layout: Kind | None = None) -> Split:
    """Cuts ``backbone`` after the modules named in ``at`` and before its classifier, and probes the result.

    Raises:
        AttachError: unknown or misplaced names, a forward that cannot be traced, or stages that differ from the plain
            backbone on random inputs.
    """
    pieces: list[list[fx.GraphModule]] = []
    names: list[list[str]] = []
    for training in (True, False):
        traced = trace(backbone, training)
        _returned(list(traced.graph.nodes)[-1])
        known = shapes(backbone, traced, example)
        final = last_features(backbone, traced, known)
        nodes = cut_nodes(traced, at)
        layouts = [node_layout(backbone, traced, node, known, example.shape[2:], layout) for node in nodes]
        if nodes and traced.position(nodes[-1]) >= traced.position(final):
            raise AttachError(
                f"at: {at[-1]!r} is where the final exit already answers: leave it out; early exits lie before it"
            )
        parts, carried = _cut(backbone, traced, [*nodes, final], known)
        pieces.append(parts)
        names.append([str(len(c)) for c in carried])
    if names[0] != names[1]:
        raise AttachError(f"at: the tensors that cross {list(at)} differ between training and evaluation mode")
    stages = [Stage(a, b) for a, b in zip(*pieces, strict=True)]
    features = [known[node.name] for node in (*nodes, final)]
    layouts.append(node_layout(backbone, traced, final, known, example.shape[2:], layout))
    result = Split(
        stages[:-1],
        stages[-1],
        [lay.channels(shape) for lay, shape in zip(layouts, features, strict=True)],
        layouts,
        [lay.size(shape) for lay, shape in zip(layouts, features, strict=True)],
        _pooled_linear(backbone, traced, final),
    )
    probe(backbone, result, example)
    return result


def _cut(
    backbone: nn.Module, traced: TracedGraph, nodes: list[fx.Node], known: dict[str, tuple[int, ...]]
) -> tuple[list[fx.GraphModule], list[list[str]]]:
    """Graph modules between consecutive cuts, and the names of what each takes in."""
    order = list(traced.graph.nodes)
    ends = [traced.position(node) for node in nodes] + [len(order) - 2]  # the last node is "output"
    start, incoming = 0, [n for n in order if n.op == "placeholder"]
    parts, carried = [], []
    for k, end in enumerate(ends):
        last = k == len(ends) - 1
        if last:
            outgoing = [_returned(order[-1])]
        else:
            later = [n for n in order[: end + 1] if any(order.index(user) > end for user in n.users)]
            outgoing = [nodes[k], *(n for n in later if n is not nodes[k] and n.op != "get_attr")]
            odd = [n.name for n in outgoing if n.name not in known]
            if odd:
                raise AttachError(f"at: {odd[0]!r}, which is no tensor, crosses the cut at {nodes[k].name!r}: cut elsewhere")
        parts.append(_subgraph(backbone, order[start : end + 1], incoming, outgoing, last))
        carried.append([n.name for n in incoming])
        start, incoming = end + 1, outgoing
    return parts, carried


def _in_place(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    return bool(node.kwargs.get("inplace", False)) or name in ("iadd", "imul", "isub") or name.endswith("_")


def _returned(output: fx.Node) -> fx.Node:
    value = output.args[0]
    if not isinstance(value, fx.Node):
        raise AttachError(
            f"backbone: expected a forward that returns one logits tensor, got {type(value).__name__}. Mend: wrap it so "
            "that it returns the logits alone; GoogLeNet and Inception: build them with aux_logits=False"
        )
    return value


def _subgraph(
    root: nn.Module, nodes: list[fx.Node], incoming: list[fx.Node], outgoing: list[fx.Node], last: bool
) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {n: graph.placeholder(n.name) for n in incoming}
    for n in incoming:  # a head has read it too: an in-place operation must not change it under the head
        if n.op != "placeholder" and any(_in_place(root, user) for user in n.users):
            copies[n] = graph.call_method("clone", (copies[n],))

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter or buffer that an earlier stage has read too
            copies[node] = graph.get_attr(str(node.target))
        return copies[node]

    for node in nodes:
        if node.op != "placeholder":
            copies[node] = graph.node_copy(node, copied)
    results = tuple(copies[n] for n in outgoing)
    graph.output(results)
    graph.lint()
    return fx.GraphModule(root, graph)


def _pooled_linear(backbone: nn.Module, traced: TracedGraph, final: fx.Node) -> str | None:
    """Name of the linear layer when all that follows ``final`` is global average pooling, flattening and that layer."""
    rest = list(traced.graph.nodes)[traced.position(final) + 1 : -1]
    linear: str | None = None
    pooled = False
    for node in rest:
        module = backbone.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            pooled = True
        elif isinstance(module, nn.Linear) and linear is None and pooled:
            linear = str(node.target)
        elif node.op == "call_method" and node.target == "mean":
            pooled = True
        elif not (isinstance(module, nn.Dropout | nn.Flatten | nn.Identity) or node.target in (torch.flatten, "flatten")):
            return None
    return linear


def probe(backbone: nn.Module, pieces: Split, example: Tensor) -> None:
    """Runs staged and plain on the same random inputs, in both modes and at two batch sizes; they must be equal.

    Buffers (batch-norm statistics), the random state and the mode of every module are what they were afterwards.
    """
    buffers = {name: value.clone() for name, value in backbone.named_buffers()}
    try:
        for training in (False, True):
            for batch in (2, 3):
                plain, staged = (_run(backbone, pieces, example, batch, training, which) for which in (False, True))
                _restore(backbone, buffers)
                gap = (plain - staged).abs().max().item()
                if plain.shape != staged.shape or not gap <= 1e-6 * max(1.0, plain.abs().max().item()):
                    raise AttachError(
                        f"probe: staged and plain output differ by {gap:.3g} at batch {batch} in "
                        f"{'training' if training else 'evaluation'} mode: this backbone cannot be cut there; try other "
                        "module names"
                    )
    finally:
        _restore(backbone, buffers)


def _restore(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in module.named_buffers():
            value.copy_(buffers[name])


def _run(backbone: nn.Module, pieces: Split, example: Tensor, batch: int, training: bool, staged: bool) -> Tensor:
    with mode_of(backbone, training), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(batch)
        x = torch.randn(batch, *example.shape[1:], device=example.device).to(example.dtype)
        if not staged:
            out: Tensor = backbone(x)
            return out.clone()
        carried: Carried = (x,)
        for stage in (*pieces.stages, pieces.tail):
            with mode_of(stage, training):
                carried = stage(*carried)
        return carried[0].clone()
