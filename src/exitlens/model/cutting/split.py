"""Cutting a traced backbone into stages that run alone, share its parameters, and together equal it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from exitlens.errors import AttachError
from exitlens.model.cutting.boundaries import (
    UncuttableError,
    check_features,
    count_embedding_rows,
    crossing,
    cut_nodes,
    find_last_features,
    find_mask,
    find_node_layout,
    nearest,
    reads_first_token,
)
from exitlens.model.cutting.graph import TracedGraph
from exitlens.model.cutting.looking import Seen, in_place, look, members, name_of, runnable
from exitlens.model.cutting.modes import preserve_state
from exitlens.model.cutting.stage import Stage
from exitlens.model.cutting.trace import trace
from exitlens.model.layouts import Kind, Layout
from exitlens.types.inputs import Inputs


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
        exact_size: it was traced for the example's size only.
        vocabulary: for every input the number of tokens its embedding knows, ``None`` for images and masks.
        whole: the uncut evaluation graph, over the same parameters. outputs: how many logits it has.
    """

    stages: list[Stage]
    tail: Stage
    channels: list[int]
    layouts: list[Layout]
    sizes: list[tuple[int, ...]]
    pooled_linear: str | None
    exact_size: bool
    vocabulary: list[int | None]
    whole: fx.GraphModule
    outputs: int


@dataclass
class _Cut:
    """One mode's graph in pieces, and what the runs of it showed."""

    traced: TracedGraph
    seen: Seen
    nodes: list[fx.Node]  # of the early exits and the last features
    layouts: list[Layout]
    parts: list[fx.GraphModule]
    crossing: list[int]  # how many tensors each piece takes


def split(
    backbone: nn.Module, at: Sequence[str], example: Inputs, layout: Kind | None = None, export: bool = False
) -> Split:
    """Cuts ``backbone`` after the modules named in ``at`` and before its classifier; ``export``: not by torch.fx.

    Raises:
        AttachError: unknown or misplaced names, or a forward that cannot be traced or cut there.
    """
    with preserve_state(backbone):  # what a trace or a look at it changes
        training, evaluation = (
            _cut(backbone, trace(backbone, mode, example, export), at, example, layout) for mode in (True, False)
        )
    if training.crossing != evaluation.crossing:
        raise AttachError(f"at: the tensors that cross {list(at)} differ between training and evaluation mode")
    stages = [Stage(a, b) for a, b in zip(training.parts, evaluation.parts, strict=True)]
    features = [evaluation.seen.shapes[node.name] for node in evaluation.nodes]
    return Split(
        stages[:-1],
        stages[-1],
        [lay.channels(shape) for lay, shape in zip(evaluation.layouts, features, strict=True)],
        evaluation.layouts,
        [lay.size(shape) for lay, shape in zip(evaluation.layouts, features, strict=True)],
        _pooled_linear(backbone, evaluation.traced, evaluation.nodes[-1]),
        evaluation.traced.exported or training.traced.exported,
        count_embedding_rows(backbone, evaluation.traced, evaluation.seen),
        runnable(backbone, evaluation.traced),
        evaluation.seen.shapes[evaluation.traced.returned.name][1],
    )


def _cut(backbone: nn.Module, traced: TracedGraph, at: Sequence[str], example: Inputs, kind: Kind | None) -> _Cut:
    seen = look(backbone, traced, example)
    final = find_last_features(backbone, traced, seen)
    try:
        nodes = [*cut_nodes(traced, at), final]
    except UncuttableError as error:
        place = 0 if error.node is None else traced.position(error.node)
        mend = nearest(backbone, traced, seen, example, place, traced.position(final))
        raise AttachError(f"at: {error.name!r}: {error.why}{mend}") from error
    if at and traced.position(nodes[-2]) >= traced.position(final):
        raise AttachError(
            f"at: {at[-1]!r} is where the final exit already answers: leave it out; early exits lie before it"
            + nearest(backbone, traced, seen, example, traced.position(final), traced.position(final))
        )
    places = [traced.position(node) for node in nodes]
    activations, layouts = [traced.inputs], []
    for node, place in zip(nodes, places, strict=True):
        try:
            layouts.append(find_node_layout(backbone, traced, node, seen, example, kind))
            activations.append(_list_crossing(backbone, traced, seen, node, place))
        except (AttachError, UncuttableError) as error:
            name = traced.name_of(node) or node.name
            why = f"at: {name!r}: {error.why}" if isinstance(error, UncuttableError) else str(error)
            raise AttachError(why + nearest(backbone, traced, seen, example, place, places[-1])) from error
    if reads_first_token(final) and layouts[-1].grid is None and layouts[-1].kind == "tokens":
        layouts = [replace(lay, prefix=1) for lay in layouts]
    layouts = [replace(lay, masked=find_mask(traced) is not None) for lay in layouts]
    starts = [0, *(place + 1 for place in places)]
    ends = [*starts[1:], len(traced.graph.nodes) - 1]  # the last node is "output"
    outgoing = [*activations[1:], [traced.returned]]
    order = list(traced.graph.nodes)
    parts = [
        _subgraph(backbone, traced, seen, order[start:end], incoming, out)
        for start, end, incoming, out in zip(starts, ends, activations, outgoing, strict=True)
    ]
    return _Cut(traced, seen, nodes, layouts, parts, [len(c) for c in activations])


def _list_crossing(backbone: nn.Module, traced: TracedGraph, seen: Seen, node: fx.Node, place: int) -> list[fx.Node]:
    """What crosses a cut: the features, then the padding mask where there is one, then whatever else is needed."""
    check_features(backbone, seen, node)
    mask = find_mask(traced)
    first = [node] if mask is None else [node, mask]
    return [*first, *(n for n in crossing(traced, seen, place) if n not in first)]


_VIEWS = (  # beginnings of the names of what may return the same memory
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "movedim", "select", "slice", "getitem"),
    *("squeeze", "unsqueeze", "expand", "chunk", "split", "unbind", "narrow", "alias", "detach", "to", "contiguous"),
    *("dropout", "type_as", "float", "as_strided", "swapaxes", "diagonal", "unfold", "real"),
)


def _find_changed(backbone: nn.Module, nodes: list[fx.Node], incoming: list[fx.Node]) -> list[fx.Node]:
    """The incoming tensors that an operation may change in place, themselves or through a view of them."""
    same = {n: n for n in incoming}  # views by the incoming tensor that they show
    changed: dict[fx.Node, None] = {}
    for node in nodes:
        first = node.args[0] if node.args else None  # what an operation changes in place, or shows another view of
        source = same.get(first) if isinstance(first, fx.Node) else None
        if source is None:
            continue
        if in_place(backbone, node):
            changed[source] = None
        module = backbone.get_submodule(str(node.target)) if node.op == "call_module" else None
        passes = isinstance(module, nn.Identity | nn.Flatten | nn.Unflatten | nn.modules.dropout._DropoutNd)
        if passes or (node.op.startswith("call") and module is None and name_of(node).startswith(_VIEWS)):
            same[node] = source
        if in_place(backbone, node) and node not in same:  # it returns what it changed
            same[node] = source
    return list(changed)


def _subgraph(
    backbone: nn.Module,
    traced: TracedGraph,
    seen: Seen,
    nodes: list[fx.Node],
    incoming: list[fx.Node],
    outgoing: list[fx.Node],
) -> fx.GraphModule:
    """The nodes as a graph of their own; parameters, constants and sizes that earlier stages had are made anew."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {n: graph.placeholder(n.name) for n in incoming}
    first, later = copies[incoming[0]], incoming[0].op != "placeholder"
    for n in _find_changed(backbone, nodes, incoming):  # a head has read it, or it is the caller's: it must stay what it is
        copies[n] = graph.call_method("clone", (copies[n],))

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            batch = later and node.name in seen.sizes
            copies[node] = graph.call_method("size", (first, 0)) if batch else graph.node_copy(node, copied)
        return copies[node]

    for node in nodes:
        if node.op not in ("placeholder", "get_attr"):  # attributes come where they are used
            copied(node)
    graph.output(tuple(copied(n) for n in outgoing))
    graph.lint()
    return fx.GraphModule(members(backbone, traced, graph), graph)


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
