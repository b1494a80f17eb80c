"""Cuts a traced backbone into stages that run alone, share its parameters, and together equal it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import fx, nn

from exitlens.errors import AttachError
from exitlens.model.cutting.boundaries import (
    UncuttableError,
    check_cut,
    describe_nearest_cut,
    find_cut_nodes,
    find_last_features,
    find_lateral,
    find_mask,
    find_node_layout,
    reads_first_token,
    takes_vector,
)
from exitlens.model.cutting.graph import TracedBackbone, get_callee_name
from exitlens.model.cutting.modes import preserve_state
from exitlens.model.cutting.stage import Stage
from exitlens.model.cutting.trace import trace
from exitlens.model.layouts import Kind, Layout
from exitlens.types.inputs import Inputs, list_tensors

_VIEW_LAYERS = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_GLOBAL_POOLING = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_VIEWS = (  # beginnings of the names of what may return the same memory
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "movedim", "select", "slice", "getitem"),
    *("squeeze", "unsqueeze", "expand", "chunk", "split", "unbind", "narrow", "alias", "detach", "to", "contiguous"),
    *("dropout", "type_as", "float", "as_strided", "swapaxes", "diagonal", "unfold", "real"),
)


@dataclass(frozen=True)
class Lateral:
    """Earlier features, carried on to the end beside the later ones: after them and the padding mask, if there is one."""

    layout: Layout
    channels: int
    size: tuple[int, ...]
    carried: tuple[bool, ...]  # for each exit, whether they are carried there: exits before them do not have them yet
    node: fx.Node


@dataclass
class Pieces:
    """A backbone in pieces: K stages, and for the features at each of the K exits how they lie, ``D``, ``S`` and node."""

    traced: TracedBackbone  # the uncut backbone in evaluation mode
    stages: list[Stage]  # stage k ends at exit k's features, the last at the features before the classifier
    tail: Stage  # the backbone's own pooling and classifier, from the last features to its output
    layouts: list[Layout]
    channels: list[int]
    sizes: list[tuple[int, ...]]  # for the example's size
    pooled_linear: str | None  # name of the linear layer if the tail is global average pooling and that layer
    exact_size: bool  # it was traced for the example's size only
    nodes: list[fx.Node]
    lateral: Lateral | None = None


@dataclass
class _Cuts:
    """One mode's graph in pieces."""

    nodes: list[fx.Node]  # of the early exits and the last features
    layouts: list[Layout]
    parts: list[fx.GraphModule]
    widths: list[int]  # how many tensors each part takes
    lateral: fx.Node | None


def split(
    backbone: nn.Module,
    at: Sequence[str],
    example: Inputs,
    layout: Kind | None = None,
    *,
    export: bool = False,
    least_side: int = 0,
    carry_input: bool = False,
) -> Pieces:
    """Cut ``backbone`` after the modules named in ``at`` and before its classifier; ``export``: not by torch.fx.

    If the last features have fewer than ``least_side`` locations a side, the deepest map that has them is carried on to the
    end (:class:`Lateral`). For tokens on one grid, and texts, the features of the first exit are carried; with
    ``carry_input``, the input itself.
    """
    with preserve_state(backbone):
        training = trace(backbone, True, example, export)
        training_cuts = _cut(training, at, layout, least_side, carry_input)
        traced = trace(backbone, False, example, export)
        traced.share_values(training)
        cuts = _cut(traced, at, layout, least_side, carry_input)
    if training_cuts.widths != cuts.widths:
        raise AttachError(f"at: the tensors that cross {list(at)} differ between training and evaluation mode")
    stages = [Stage(*graphs) for graphs in zip(training_cuts.parts, cuts.parts, strict=True)]
    pairs = list(zip(cuts.layouts, map(traced.shape_of, cuts.nodes), strict=True))
    channels, sizes = [lay.channels(shape) for lay, shape in pairs], [lay.size(shape) for lay, shape in pairs]
    lateral = None
    if (node := cuts.lateral) is not None:
        beside, shape = find_node_layout(traced, node, layout), traced.shape_of(node)
        carried = tuple(traced.position(other) > traced.position(node) for other in cuts.nodes)
        lateral = Lateral(beside, beside.channels(shape), beside.size(shape), carried, node)
    linear, exported = _find_pooled_linear(traced, cuts.nodes[-1]), traced.exported or training.exported
    return Pieces(traced, stages[:-1], stages[-1], cuts.layouts, channels, sizes, linear, exported, cuts.nodes, lateral)


def _cut(traced: TracedBackbone, at: Sequence[str], kind: Kind | None, least_side: int, carry_input: bool) -> _Cuts:
    final = find_last_features(traced)
    nodes = [*find_cut_nodes(traced, at), final]
    lateral = traced.inputs[0] if carry_input else find_lateral(traced, final, least_side, kind)
    if least_side and lateral is None and len(nodes) > 1:
        with suppress(AttachError):  # a missing layout is reported where the cut is inspected
            layouts = [find_node_layout(traced, node, kind) for node in nodes]
            is_one_grid = all(layout.kind == "tokens" and layout.grid == layouts[0].grid for layout in layouts)
            lateral = nodes[0] if is_one_grid else None
    inspected = [_inspect_cut(traced, node, final, kind, lateral) for node in nodes]
    layouts, activations = [layout for layout, _ in inspected], [crossing for _, crossing in inspected]
    is_text = not list_tensors(traced.example)[0].is_floating_point() and layouts[-1].kind == "tokens"
    if is_text and layouts[-1].grid is None and reads_first_token(final):
        layouts = [replace(layout, prefix=1) for layout in layouts]
    layouts = [replace(layout, masked=find_mask(traced) is not None) for layout in layouts]
    incoming, outgoing = [traced.inputs, *activations], [*activations, [traced.values.logits]]
    ends = [0, *(traced.position(node) + 1 for node in nodes), len(traced.nodes) - 1]  # the last node is the output
    runs = [traced.nodes[start:end] for start, end in pairwise(ends)]
    parts = [_make_part(traced, *part) for part in zip(runs, incoming, outgoing, strict=True)]
    return _Cuts(nodes, layouts, parts, [len(tensors) for tensors in incoming], lateral)


def _inspect_cut(
    traced: TracedBackbone, node: fx.Node, final: fx.Node, kind: Kind | None, lateral: fx.Node | None
) -> tuple[Layout, list[fx.Node]]:
    """Return the layout at a cut, and what crosses it: features, a padding mask or lateral map, what else is needed."""
    place, mask = traced.position(node), find_mask(traced)
    try:
        layout, crossing = check_cut(traced, node, kind)
    except AttachError as error:
        where = f"at: {traced.name_of(node) or node.name!r}: " if isinstance(error, UncuttableError) else ""
        raise AttachError(f"{where}{error}" + describe_nearest_cut(traced, place, traced.position(final))) from error
    first = [node] if mask is None else [node, mask]
    if lateral is not None and traced.position(lateral) < place:
        first.append(lateral)
    return layout, [*first, *(n for n in crossing if n not in first)]


def _make_part(
    traced: TracedBackbone, nodes: list[fx.Node], incoming: list[fx.Node], outgoing: list[fx.Node]
) -> fx.GraphModule:
    """Make a graph of the nodes, which computes parameters, constants and sizes of earlier parts again."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {n: graph.placeholder(n.name) for n in incoming}
    first, is_later = copies[incoming[0]], incoming[0].op != "placeholder"
    for n in _find_changed(traced, nodes, incoming):  # the head has read it, or it is the caller's: it must not change
        copies[n] = graph.call_method("clone", (copies[n],))

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:
            is_size = is_later and node in traced.values.sizes
            copies[node] = graph.call_method("size", (first, 0)) if is_size else graph.node_copy(node, copy)
        return copies[node]

    for node in nodes:
        if node.op not in ("placeholder", "get_attr"):  # attributes come where they are used
            copy(node)
    graph.output(tuple(copy(n) for n in outgoing))
    graph.lint()
    return traced.runnable(graph)


def _find_changed(traced: TracedBackbone, nodes: list[fx.Node], incoming: list[fx.Node]) -> list[fx.Node]:
    """Return the incoming tensors that an operation may change in place, themselves or through a view of them."""
    sources = {node: node for node in incoming}  # for each view, the incoming tensor that it shows
    changed: dict[fx.Node, None] = {}
    for node in nodes:
        first = node.args[0] if node.args else None  # what an operation changes in place, or shows another view of
        if not isinstance(first, fx.Node) or (source := sources.get(first)) is None:
            continue
        module = traced.module_of(node)
        is_view = get_callee_name(node).startswith(_VIEWS) if module is None else isinstance(module, _VIEW_LAYERS)
        if is_changed := traced.is_in_place(node):
            changed[source] = None
        if is_changed or is_view:  # an operation in place returns what it changed
            sources[node] = source
    return list(changed)


def _find_pooled_linear(traced: TracedBackbone, final: fx.Node) -> str | None:
    """Return the name of the linear layer if only global average pooling, flattening and that layer follow ``final``."""
    linear, pooled = None, takes_vector(traced)  # which has one location
    for node in traced.nodes[traced.position(final) + 1 : -1]:
        module = traced.module_of(node)
        is_global = isinstance(module, _GLOBAL_POOLING) and module.output_size in (1, (1,), (1, 1), (1, 1, 1))
        if is_global or (node.op == "call_method" and node.target == "mean"):
            pooled = True
        elif isinstance(module, nn.Linear) and linear is None and pooled:
            linear = str(node.target)
        elif not (isinstance(module, nn.Dropout | nn.Flatten | nn.Identity) or node.target in (torch.flatten, "flatten")):
            return None
    return linear
