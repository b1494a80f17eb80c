"""Cuts a traced backbone into stages that run alone, share its parameters, and together equal it, and verifies that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.parameter import UninitializedParameter

from exitlens.errors import AttachError
from exitlens.model._torch_compat import DROPOUT, list_member_tables
from exitlens.model.cutting import boundaries
from exitlens.model.cutting.boundaries import Kind, Layout, find_node_layout
from exitlens.model.cutting.modes import fill_zero_parameters, preserve_state, switch_mode
from exitlens.model.cutting.trace import TracedBackbone, TraceMismatchError, get_callee_name, pick_logits, trace
from exitlens.types.inputs import MASK, Inputs, list_input_names, list_tensors

Activations = tuple[Tensor, ...]


class Stage(nn.Module):
    """Computes the tensors that cross one cut, the features first, from those that cross the cut before it.

    It holds one graph for each mode, because a trace bakes the training flag in; both use the backbone's own members.
    """

    def __init__(self, training_graph: fx.GraphModule, evaluation_graph: fx.GraphModule) -> None:
        super().__init__()
        _merge(training_graph, evaluation_graph)
        for table in ("_modules", "_parameters", "_buffers"):  # one set of members for both graphs
            evaluation_graph.__dict__[table] = training_graph.__dict__[table]
        self.body = training_graph
        # not registered: its members are those of `body`, so state_dict and parameters see each of them once
        self.__dict__["evaluation_body"] = evaluation_graph

    def forward(self, *activations: Tensor) -> Activations:
        """Return the tensors that cross the cut after the stage."""
        return cast(Activations, (self.body if self.training else self.evaluation)(*activations))

    @property
    def evaluation(self) -> fx.GraphModule:
        """The graph of evaluation mode, over the same members."""
        return cast(fx.GraphModule, self.__dict__["evaluation_body"])

    def replace_evaluation(self, graph: fx.GraphModule) -> None:
        """Set another graph for evaluation mode, with members of its own."""
        self.__dict__["evaluation_body"] = graph

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # what to(), cuda() and so on call
        moved: Any = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        replaced: set[torch.device] = set()

        def retarget(value: Any) -> Any:  # torch.export writes the example's device into the graph
            if not isinstance(value, torch.device) or value == device:
                return value
            replaced.add(value)
            return device

        for body in (self.body, self.evaluation):
            for node in body.graph.nodes:
                node.args, node.kwargs = map_aggregate(node.args, retarget), map_aggregate(node.kwargs, retarget)
            if replaced:
                body.recompile()
        return moved


def _merge(into: nn.Module, other: nn.Module) -> None:
    """Add the members that only the other mode's graph uses."""
    for name, parameter in other.named_parameters(recurse=False):
        into.register_parameter(name, parameter)
    for name, buffer in other.named_buffers(recurse=False):
        into.register_buffer(name, buffer)
    for name, module in other.named_children():
        member = list_member_tables(into)[0].get(name)
        if member is None:
            into.add_module(name, module)
        elif member is not module:  # both are containers that fx made
            _merge(member, module)


_VIEW_LAYERS = (nn.Identity, nn.Flatten, nn.Unflatten, DROPOUT)
_GLOBAL_POOLING = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_VIEWS = (  # beginnings of the names of what may return the same memory
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "movedim", "select", "slice", "getitem"),
    *("squeeze", "unsqueeze", "expand", "chunk", "split", "unbind", "narrow", "alias", "detach", "to", "contiguous"),
    *("dropout", "type_as", "float", "as_strided", "swapaxes", "diagonal", "unfold", "real"),
)
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")  # the last: compiled
_QUANTISED = tuple(f"torch.{part}.quantized" for part in ("ao.nn", "ao.nn.intrinsic", "nn", "nn.intrinsic"))
_FIX_FOR_INTEGERS = "which cannot be trained or cut. Fix: attach exits to the float network and quantise afterwards"


@dataclass(frozen=True)
class Features:
    """Features at a node: how they lie, their channels ``D`` and, for the example's size, their locations ``S``."""

    node: fx.Node
    layout: Layout
    channels: int
    size: tuple[int, ...]


@dataclass
class Pieces:
    """A backbone in pieces: K stages, and the features at each of the K exits."""

    traced: TracedBackbone  # the uncut backbone in evaluation mode
    stages: list[Stage]  # stage k ends at exit k's features, the last at the features before the classifier
    tail: Stage  # the backbone's own pooling and classifier, from the last features to its output
    features: list[Features]
    pooled_linear: str | None  # name of the linear layer if the tail is global average pooling and that layer
    exact_size: bool  # it was traced for the example's size only
    lateral: Features | None  # earlier features, which cross later cuts after the others and the padding mask

    def lateral_at(self, k: int) -> Features | None:
        """Return the earlier features that exit k can read beside its own."""
        if self.lateral is None or self.traced.position(self.lateral.node) >= self.traced.position(self.features[k].node):
            return None
        return self.lateral


def split(
    backbone: nn.Module,
    at: Sequence[str],
    example: Inputs,
    layout: Kind | None = None,
    *,
    export: bool = False,
    least_side: int = 0,
    least_dense_side: int = 0,
    carry_input: bool = False,
) -> Pieces:
    """Cut ``backbone`` after the modules named in ``at`` and before its classifier, by torch.fx (``export``: torch.export).

    If the last features have fewer than ``least_side`` locations a side, the deepest map that has them is carried on to the
    end; of a backbone that answers each pixel, the deepest of the encoder that has ``least_dense_side``. For tokens on one
    grid, and texts, the features of the first exit are carried; with ``carry_input``, the input.
    """
    options = (at, layout, (least_side, least_dense_side), carry_input)
    with preserve_state(backbone):
        training = trace(backbone, True, example, export)
        training_parts, features, lateral = _cut(training, *options)
        traced = trace(backbone, False, example, export)
        if traced.has_same_graph(training):
            traced, parts = training, training_parts
        else:
            parts, features, lateral = _cut(traced, *options)
    pairs = list(zip(training_parts, parts, strict=True))
    if any(len({len(part.graph.find_nodes(op="placeholder")) for part in pair}) > 1 for pair in pairs):
        raise AttachError(f"at: the tensors that cross {list(at)} differ between training and evaluation mode")
    *stages, tail = (Stage(*pair) for pair in pairs)
    linear, exact_size = _find_pooled_linear(traced, features[-1].node), traced.exported or training.exported
    return Pieces(traced, stages, tail, features, linear, exact_size, lateral)


def _cut(
    traced: TracedBackbone, at: Sequence[str], kind: Kind | None, least_sides: tuple[int, int], carry_input: bool
) -> tuple[list[fx.GraphModule], list[Features], Features | None]:
    """Return one mode's graph in pieces, the features at every exit, and those that are carried on."""
    final, least_side = boundaries.find_last_features(traced), least_sides[traced.is_dense]
    nodes = [*boundaries.find_cut_nodes(traced, at), final]
    lateral = traced.inputs[0] if carry_input else boundaries.find_lateral(traced, final, least_side, kind)
    if least_side and lateral is None and len(nodes) > 1:
        with suppress(AttachError):  # a missing layout is reported where the cut is inspected
            layouts = [find_node_layout(traced, node, kind) for node in nodes]
            is_one_grid = all(layout.kind == "tokens" and layout.grid == layouts[0].grid for layout in layouts)
            lateral = nodes[0] if is_one_grid else None
    inspected = [_inspect_cut(traced, node, final, kind, lateral) for node in nodes]
    layouts, activations = [layout for layout, _ in inspected], [crossing for _, crossing in inspected]
    is_text = not list_tensors(traced.example)[0].is_floating_point() and layouts[-1].kind == "tokens"
    if is_text and layouts[-1].grid is None and boundaries.reads_first_token(final):
        layouts = [replace(layout, prefix=1) for layout in layouts]
    layouts = [replace(layout, masked=boundaries.find_mask(traced) is not None) for layout in layouts]
    incoming, outgoing = [traced.inputs, *activations], [*activations, [traced.values.logits]]
    ends = [0, *(traced.position(node) + 1 for node in nodes), len(traced.nodes) - 1]  # the last node is the output
    runs = [traced.nodes[start:end] for start, end in pairwise(ends)]
    parts = [_make_part(traced, *part) for part in zip(runs, incoming, outgoing, strict=True)]

    def describe(node: fx.Node, layout: Layout) -> Features:
        shape = traced.shape_of(node)
        return Features(node, layout, layout.channels(shape), layout.size(shape))

    beside = None if lateral is None else describe(lateral, find_node_layout(traced, lateral, kind))
    return parts, list(map(describe, nodes, layouts)), beside


def _inspect_cut(
    traced: TracedBackbone, node: fx.Node, final: fx.Node, kind: Kind | None, lateral: fx.Node | None
) -> tuple[Layout, list[fx.Node]]:
    """Return the layout at a cut, and the tensors that cross it: features, a padding mask or lateral map, and others."""
    place, mask = traced.position(node), boundaries.find_mask(traced)
    try:
        layout, crossing = boundaries.check_cut(traced, node, kind)
    except AttachError as error:
        where = f"at: {traced.name_of(node) or node.name!r}: " if isinstance(error, boundaries.UncuttableError) else ""
        raise AttachError(
            f"{where}{error}" + boundaries.describe_nearest_cut(traced, place, traced.position(final))
        ) from error
    first = [node] if mask is None else [node, mask]
    is_read = not (traced.is_dense and node is final)  # a decoder's last features are fine enough
    if lateral is not None and traced.position(lateral) < place and is_read:
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
    linear, pooled = None, boundaries.takes_vector(traced)  # which has one location
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


def check_backbone(backbone: nn.Module) -> None:
    """Raise :class:`AttachError` for a wrapped or scripted module, quantised layers, or parameters without own values."""
    if isinstance(backbone, torch.jit.ScriptModule):
        raise AttachError("backbone: it is TorchScript, which cannot be cut. Fix: attach to the Python module it came from")
    if type(backbone).__name__ in _WRAPPERS and type(backbone).__module__.startswith("torch."):
        raise AttachError(
            f"backbone: it is wrapped by {type(backbone).__name__}. Fix: attach to the module inside and wrap the network "
            "that attach returns"
        )
    for name, module in backbone.named_modules():
        if type(module).__module__.startswith(_QUANTISED):
            raise AttachError(f"backbone: {name!r} is a quantised {type(module).__name__}, {_FIX_FOR_INTEGERS}")
    for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
        if problem := _find_problem(tensor):
            raise AttachError(f"backbone: {name!r} is {problem}")
    for name in chain(*list_member_tables(backbone)):
        if hasattr(torch.fx.GraphModule, name):
            raise AttachError(f"backbone: its {name!r} has the name of something that torch.fx needs. Fix: rename it")
    if next(backbone.parameters(), None) is None:
        raise AttachError("backbone: it has no parameters: expected a network with weights")


def _find_problem(tensor: Tensor) -> str:  # and the fix
    if isinstance(tensor, UninitializedParameter):
        return "lazy and has no shape yet. Fix: run one batch through it first"
    if tensor.is_meta:
        return "on the meta device and has no values. Fix: backbone.to_empty(device='cpu'), then load its weights"
    if tensor.is_quantized:
        return f"quantised, {_FIX_FOR_INTEGERS}"
    is_strided = isinstance(tensor, nn.Parameter) and tensor.layout == torch.strided
    if is_strided and any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return "an expanded tensor, whose elements cannot differ. Fix: clone() it"
    return ""


def verify(pieces: Pieces) -> None:
    """Raise :class:`TraceMismatchError` unless staged and plain runs agree in outputs, buffers and gradients.

    With a row dropped and the others exchanged after the first cut, as routing does, every sample must get the answer that
    it gets in the full batch.
    """
    backbone, inputs = pieces.traced.backbone, make_random_inputs(pieces, 3)
    with fill_zero_parameters(backbone):
        plain = _compare_runs(pieces, inputs, False)
        with preserve_state(backbone):
            first = [t[:1] for t in inputs]
            _compare(run_plain(pieces, first, False), run_staged(pieces, first, False), 1e-6, "a single sample")
            routed = run_staged(pieces, [t[[2, 0]] for t in inputs], False, exchange=True)
        spread = (plain - plain.mean(0)).abs().max().item()  # how far samples differ; the rest of a logit may be a constant
        allowed = 2e-5 + 1e-3 * spread / max(plain.abs().max().item(), 1e-6) if math.isfinite(spread) else 1e-3
        _compare(plain[[0, 2]], routed, allowed, "two samples of three: they depend on who else is in the batch")
        _compare_runs(pieces, make_random_inputs(pieces, 2), True)


def _compare_runs(pieces: Pieces, inputs: Sequence[Tensor], training: bool) -> Tensor:
    """Compare logits, buffers and (in training mode) gradients of a staged run with a plain one; return the logits."""
    backbone, gradients = pieces.traced.backbone, None

    def list_scalars() -> list[int | float | str]:  # attributes in which a forward may keep a state
        return [value for m in backbone.modules() for value in vars(m).values() if isinstance(value, int | float | str)]

    with preserve_state(backbone):
        state, plain = list_scalars(), run_plain(pieces, inputs, training)
        if not training and list_scalars() != state:
            again = run_plain(pieces, inputs, False)
            _compare(plain, again, 1e-6, "a second call: its forward keeps a state that stages cannot share")
        buffers = {name: value.clone() for name, value in backbone.named_buffers()}
        if training:
            with suppress(RuntimeError):  # the plain backbone itself cannot be trained: there is nothing to be equal to
                gradients = _take_gradients(backbone, plain)
    with preserve_state(backbone):
        staged = run_staged(pieces, inputs, training)
        where = f"batch {len(inputs[0])} in {'training' if training else 'evaluation'} mode"
        _compare(plain.detach(), staged.detach(), 1e-6, where)
        changed = dict(backbone.named_buffers())
        for name, value in buffers.items():
            other = changed.get(name)
            if other is None or other.shape != value.shape or not torch.allclose(value, other, 1e-4, 1e-5, equal_nan=True):
                _refuse(f"buffer {name!r} is not what the plain backbone's forward makes it")
        if gradients is not None:
            taken = _take_gradients(backbone, staged)
            allowed = 1e-4 * max([1e-6, *(g.abs().max().item() for g in gradients.values() if g.numel())])
            for name in gradients | taken:
                expected, gradient = gradients.get(name), taken.get(name)
                if expected is None or gradient is None or not torch.allclose(expected, gradient, 0.0, allowed):
                    _refuse(f"the gradient of {name!r} is not the plain network's (no_grad, or a gradient of its own)")
    return plain


def run_plain(pieces: Pieces, inputs: Sequence[Tensor], training: bool) -> Tensor:
    """Return the backbone's own logits, with the random state forked and seeded; in training mode with autograd."""
    backbone, names = pieces.traced.backbone, list_input_names(pieces.traced.example)
    with switch_mode(backbone, training), torch.set_grad_enabled(training), torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(inputs[0]))
        copies = [t.clone() for t in inputs]  # a forward may change its input
        output = backbone(**dict(zip(names, copies, strict=True))) if names else backbone(*copies)
        return cast(Tensor, pick_logits(output)).clone()


def run_staged(pieces: Pieces, inputs: Sequence[Tensor], training: bool, exchange: bool = False) -> Tensor:
    """Return the logits of stages and tail; with ``exchange``, samples are in the opposite order after the first stage."""
    activations: Activations = tuple(inputs)
    with torch.set_grad_enabled(training), torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(inputs[0]))
        for k, stage in enumerate((*pieces.stages, pieces.tail)):
            with switch_mode(stage, training):
                activations = stage(*activations)
            if k == 0 and exchange:
                activations = tuple(t.flip(0) for t in activations)
    return activations[0].clone()


def _take_gradients(module: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """Return what gradients a fixed random sum of the logits has, by name, for the smallest parameter of each module."""
    smallest: dict[str, Tensor] = {}
    for prefix, owner in module.named_modules():
        trained = {name: p for name, p in owner.named_parameters(prefix, recurse=False) if p.requires_grad}
        smallest |= dict(sorted(trained.items(), key=lambda item: item[1].numel())[:1])
    if not logits.requires_grad or not smallest:
        return {}
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), list(smallest.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(smallest, gradients, strict=True) if gradient is not None}


def _compare(plain: Tensor, staged: Tensor, tolerance: float, where: str) -> None:
    gap, scale = float("nan"), 0.0
    if plain.shape == staged.shape:
        same = (plain == staged) | (plain.isnan() & staged.isnan())
        gap = (plain - staged).abs().masked_fill(same, 0).max().item()
        scale = plain.masked_fill(~plain.isfinite(), 0).abs().max().item()
    if not gap <= tolerance * max(scale, 1e-6):
        _refuse(f"staged and plain output differ by {gap:.3g} at {where}")


def _refuse(problem: str) -> NoReturn:
    raise TraceMismatchError(
        f"backbone: {problem}. Something in it does not show in a trace: a hook, a train() of its own, a state, a custom "
        "gradient. Fix: take that out of the forward, or cut elsewhere"
    )


def make_random_inputs(pieces: Pieces, batch: int) -> tuple[Tensor, ...]:
    """Draw inputs like the example of a traced backbone."""
    example = pieces.traced.example
    return draw_inputs(
        list_input_names(example), list_tensors(example), boundaries.count_embedding_rows(pieces.traced), batch
    )


def draw_inputs(
    names: Sequence[str], tensors: Sequence[Tensor], vocabulary: Sequence[int | None], batch: int
) -> tuple[Tensor, ...]:
    """Draw normal noise for images, tokens that the embedding knows, and masks with padding of different lengths."""
    rng = torch.Generator().manual_seed(batch)
    drawn = []
    for name, tensor, known in zip(names or ("",), tensors, vocabulary, strict=True):
        shape = (batch, *tensor.shape[1:])
        if tensor.is_floating_point():
            drawn.append(torch.randn(shape, generator=rng).to(tensor))
        elif name == MASK:
            lengths = tensor.shape[1] - torch.arange(batch) % 4 * (tensor.shape[1] // 4)
            drawn.append((torch.arange(tensor.shape[1]) < lengths[:, None]).to(tensor))
        else:
            drawn.append(torch.randint(0, known or int(tensor.max()) + 1, shape, generator=rng).to(tensor))
    return tuple(drawn)
