"""Where a traced backbone can be cut: what crosses there, how the features lie, and the nearest place that works."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from exitlens.errors import AttachError, suggest
from exitlens.model.cutting.graph import TracedBackbone, get_callee_name
from exitlens.model.layouts import Kind, Layout, find_layout
from exitlens.types.inputs import MASK, list_tensors

_FIRST = (_ConvNd, _NormBase, _MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, nn.GroupNorm)
_FIRST_NAMES = ("conv", "batch_norm", "instance_norm", "group_norm", "max_pool", "avg_pool", "adaptive_")
_LAST = (nn.LayerNorm, nn.Linear, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_LAST_NAMES = ("linear", "layer_norm", "rms_norm", "lstm", "gru", "rnn_", "embedding", "addmm")
_SWAPPING = ("transpose", "swapaxes", "swapdims")


def find_channel_axis(traced: TracedBackbone, node: fx.Node) -> int | None:
    """The axis of channels of what a node gives, by the last layer before it that says so; ``None`` where none does."""
    count = len(traced.shape_of(node))
    axes = list(range(count))  # of the node at hand: which of the first node's axes each is
    while node.op != "placeholder" and len(traced.shape_of(node)) == count:
        found = _tell_axis(traced, node, count)
        if found is not None:
            return axes[found]
        order = _read_order(node, count)
        source = _find_source(traced, node)
        if source is None:
            return None
        if order is not None:  # axis i is axis order[i] of the source
            axes = [axes[order.index(i)] for i in range(count)]
        node = source
    return None


def find_input_channel_axis(traced: TracedBackbone, node: fx.Node) -> int | None:
    """The axis of channels of an input, by the first layer that reads it; ``None`` where none tells."""
    count = len(traced.shape_of(node))
    waiting = [(node, list(range(count)))]
    seen = set[fx.Node]()
    while waiting:
        at, axes = waiting.pop(0)  # axes of what the node gives: which of the input's each is
        for user in at.users:
            if user in seen or user.op == "output":
                continue
            seen.add(user)
            found = _tell_axis(traced, user, count)
            if found is not None and user.all_input_nodes[0] is at:
                return axes[found]
            if len(traced.shape_of(user)) == count:
                order = _read_order(user, count)
                waiting.append((user, axes if order is None else [axes[i] for i in order]))
    return None


def _find_source(traced: TracedBackbone, node: fx.Node) -> fx.Node | None:
    """The tensor that a node passes on; of a part of a tuple, what made the tuple."""
    return next((one for one in node.all_input_nodes if one.op != "get_attr"), None)


def _tell_axis(traced: TracedBackbone, node: fx.Node, count: int) -> int | None:
    """Where a layer has its channels, of tensors of so many axes."""
    module, name = traced.module_of(node), get_callee_name(node).split(".")[0].strip("_")
    if name == "getitem" and isinstance(node.args[0], fx.Node) and node.args[0] not in traced.values.shapes:
        return _tell_axis(traced, node.args[0], count)  # a recurrent layer gives a tuple
    if isinstance(module, _FIRST) or (module is None and name.startswith(_FIRST_NAMES)):
        return 1
    if isinstance(module, _LAST) or (module is None and name.startswith(_LAST_NAMES)):
        return count - 1
    return None


def _read_order(node: fx.Node, count: int) -> Sequence[int] | None:
    """For each axis of what comes out, which it was of what went in; ``None``: as before."""
    name = get_callee_name(node).split(".")[0].strip("_")
    if name not in ("permute", *_SWAPPING):
        return None
    given: list[Any] = [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "input")]
    given = [*given[0]] if given and isinstance(given[0], list | tuple) else given
    chosen = [axis % count for axis in given if isinstance(axis, int)]
    if name == "permute":
        return chosen if len(chosen) == count else None
    order = list(range(count))
    if len(chosen) == 2:
        order[chosen[0]], order[chosen[1]] = chosen[1], chosen[0]
    return order


_POOLING = (
    *(nn.AdaptiveAvgPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.MaxPool1d),
    *(nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.MaxPool2d),
    *(nn.AdaptiveAvgPool3d, nn.AvgPool3d, nn.AdaptiveMaxPool3d, nn.MaxPool3d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity),
)


class UncuttableError(AttachError):
    """A cut that does not work, and why; the caller adds where one would."""

    def __init__(self, why: str, name: str = "", node: fx.Node | None = None) -> None:
        super().__init__(why)
        self.name, self.node = name, node


def list_crossing_tensors(traced: TracedBackbone, end: int) -> list[fx.Node]:
    """The tensors computed up to place ``end`` that later nodes need, in order; each has a row for every sample.

    Sizes, parameters and constants do not cross: the later stage computes them again. Raises :class:`UncuttableError` if
    something crosses whose first axis is not the batch.
    """
    values = traced.values
    crossing, done = set[fx.Node](), set[fx.Node]()
    waiting = [p for node in traced.nodes[end + 1 :] for p in traced.list_parents(node) if traced.position(p) <= end]
    while waiting:
        node = waiting.pop()
        if node in done:
            continue
        done.add(node)
        if node in values.dataless:
            continue
        if node.op == "placeholder" or node in values.batched:
            crossing.add(node)
        elif node in values.shapes:
            raise UncuttableError(
                f"{node.name!r} of shape {values.shapes[node]} (two samples) crosses there: more than the batch axis "
                "would have to be dynamic"
            )
        else:
            waiting += traced.list_parents(node)
    return sorted(crossing, key=traced.position)


def find_cut_nodes(traced: TracedBackbone, at: Sequence[str]) -> list[fx.Node]:
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


def find_node_layout(traced: TracedBackbone, node: fx.Node, kind: Kind | None = None) -> Layout:
    """The layout of the features at a node (see :func:`~exitlens.model.layouts.find_layout`)."""
    before = traced.nodes[: traced.position(node)]
    size, shape = find_input_locations(traced), traced.shape_of(node)
    count = max(len(size), 1)
    maps = [traced.shape_of(n) for n in before if n in traced.values.batched and _is_convolution(traced, n, f"{count}d")]
    grids = [tuple(s[2:]) for s in maps if len(s) == count + 2 and math.prod(s[2:]) > 1]
    channels = None
    if kind is None and size and len(shape) == len(size) + 2 and (len(size) != 2 or len(set(shape[1:])) == 1):
        channels = find_channel_axis(traced, node)
    first = 0 if size else traced.shape_of(traced.inputs[0])[1]
    length, features = (0, first) if takes_vector(traced) else (first, 0)
    if kind is None and length and len(shape) == 3 and shape[1] == shape[2] == length:
        kind = None if maps else "tokens"  # as many channels as tokens
    return find_layout(traced.name_of(node) or node.name, shape, size, grids, kind, length, channels, features)


def find_input_locations(traced: TracedBackbone) -> tuple[int, ...]:
    """The locations of the first input: ``(H,W)`` of an image, ``(T,)`` of a series; none for tokens and vectors."""
    shape = traced.shape_of(traced.inputs[0])
    return shape[1:2] if has_channels_last(traced) else shape[2:]


def has_channels_last(traced: TracedBackbone) -> bool:
    """Whether the first input is a series ``(B,T,C)``, by the first layer that reads it."""
    node = traced.inputs[0]
    return len(traced.shape_of(node)) == 3 and find_input_channel_axis(traced, node) == 2


def takes_vector(traced: TracedBackbone) -> bool:
    """Whether the first input is a vector of features ``(B,F)``."""
    first = list_tensors(traced.example)[0]
    return first.ndim == 2 and first.is_floating_point()


def check_cut(traced: TracedBackbone, node: fx.Node, kind: Kind | None = None) -> tuple[Layout, list[fx.Node]]:
    """The layout of the features at a node, and the tensors that cross there.

    Raises :class:`AttachError` unless the features have a row for each sample, in the network's own dtype.
    """
    layout = find_node_layout(traced, node, kind)
    if node not in traced.values.batched:
        raise UncuttableError(f"its features have the shape {traced.shape_of(node)} for two samples: no row for each")
    own, dtype = next(traced.backbone.parameters()).dtype, traced.values.dtypes[node]
    if dtype != own:
        raise UncuttableError(f"its features are {dtype}, the network's parameters {own}")
    return layout, list_crossing_tensors(traced, traced.position(node))


def describe_nearest_cut(traced: TracedBackbone, place: int, last: int) -> str:
    """``; the nearest cut that works is 'layer2'`` for a place that does not, or nothing; it lies before ``last``."""
    named = {traced.position(node): node for node in traced.outputs.values() if traced.position(node) < last}
    for other in sorted(named, key=lambda p: (abs(p - place), p)):
        if other != place:
            with suppress(AttachError):
                check_cut(traced, named[other])
                return f"; the nearest cut that works is {traced.name_of(named[other])!r}"
    return ""


def find_mask(traced: TracedBackbone) -> fx.Node | None:
    """The placeholder of the padding mask."""
    return next((node for node in traced.inputs if node.target == MASK), None)


def count_embedding_rows(traced: TracedBackbone) -> list[int | None]:
    """For each input, how many different tokens the embedding that reads it knows; ``None`` if none does."""
    rows: list[int | None] = []
    for node in traced.inputs:
        sizes = []
        for user in node.users:
            if isinstance(module := traced.module_of(user), nn.Embedding):
                sizes.append(module.num_embeddings)
            elif user.op == "call_function" and "embedding" in get_callee_name(user) and len(user.all_input_nodes) > 1:
                table = next(n for n in user.all_input_nodes if n is not node)
                sizes.append(traced.shape_of(table)[0])
        rows.append(min(sizes) if sizes else None)
    return rows


def find_last_features(traced: TracedBackbone) -> fx.Node:
    """The last map or tokens before the backbone's own pooling and classifier; of a vector, what the classifier reads."""
    values, most = traced.values, max(4, len(find_input_locations(traced)) + 2)
    axes = range(3, most + 1)
    maps = [n for n in traced.nodes if n in values.batched and len(values.shapes[n]) in axes and n not in values.dataless]
    maps = [n for n in maps if n.op != "placeholder" and not _only_reshapes(traced, n)]
    large = [n for n in maps if _count_locations(values.shapes[n]) > 1]
    if not maps and takes_vector(traced):
        return _find_last_vector(traced)
    if not maps:
        steps_first = any(len(s) == 3 and s[1] == 2 and n not in values.batched for n, s in values.shapes.items())
        hint = ". Its layers have steps before samples, (T,B,C): give them batch_first=True" if steps_first else ""
        raise AttachError(
            f"backbone: found no feature map (B,C,H,W) or tokens in it: exits need locations to attend to{hint}"
        )
    found = large[-1] if large and any(_is_pooling(traced, user) for user in large[-1].users) else maps[-1]
    _check_last_state(traced, found)
    return found


def _check_last_state(traced: TracedBackbone, features: fx.Node) -> None:
    """Raises :class:`AttachError` if a recurrent layer comes behind the last features: of it only the last state is read."""
    for node in traced.nodes[traced.position(features) + 1 :]:
        if isinstance(traced.module_of(node), nn.RNNBase) or get_callee_name(node).split(".")[0] in ("gru", "lstm"):
            raise AttachError(
                f"backbone: of the recurrent layer {traced.name_of(node) or node.name!r} only the last state is read, which "
                "has no steps to attend to. Mend: read its outputs, x, _ = layer(x), and then x[:, -1]"
            )


def _find_last_vector(traced: TracedBackbone) -> fx.Node:
    """What the last linear layer reads, before dropout."""
    node = traced.values.logits
    while node.op != "placeholder" and not (_is_linear(traced, node) and len(traced.shape_of(node)) == 2):
        node = node.all_input_nodes[0]
    node = node.all_input_nodes[0] if node.op != "placeholder" else node
    while node.op != "placeholder" and _only_reshapes(traced, node):
        node = node.all_input_nodes[0]
    if node.op == "placeholder":
        raise AttachError("backbone: it has no layer before its classifier: there is nothing to leave early from")
    return node


def _is_linear(traced: TracedBackbone, node: fx.Node) -> bool:
    name = get_callee_name(node).split(".")[0]
    return isinstance(traced.module_of(node), nn.Linear) or (node.op == "call_function" and name in ("linear", "addmm"))


def find_lateral(traced: TracedBackbone, final: fx.Node, least_side: int, kind: Kind | None = None) -> fx.Node | None:
    """The deepest map of an image with ``least_side`` locations a side, where the last features have fewer.

    Of those with the fewest locations it takes none with over twice the channels of the narrowest (the wide middle of an
    inverted residual block costs much to carry). ``None`` where there is none.
    """
    if least_side == 0:
        return None
    size = find_node_layout(traced, final, kind).size(traced.shape_of(final))
    if len(size) != 2 or min(size) >= least_side:
        return None
    found: list[tuple[int, int, fx.Node]] = []  # locations, channels
    for node in sorted(set(traced.outputs.values()), key=traced.position):
        if traced.position(node) < traced.position(final) and len(traced.values.shapes.get(node, ())) == 4:
            with suppress(AttachError):
                layout, crossing = check_cut(traced, node, kind)
                place = layout.size(traced.shape_of(node))
                if min(place) >= least_side and crossing == [node]:
                    found.append((place[0] * place[1], layout.channels(traced.shape_of(node)), node))
    coarsest = [one for one in found if one[0] == min(locations for locations, _, _ in found)]
    narrowest = min((channels for _, channels, _ in coarsest), default=0)
    return next((node for _, channels, node in reversed(coarsest) if channels <= 2 * narrowest), None)


def reads_first_token(features: fx.Node) -> bool:
    """Whether what follows the features reads their first token (a class token) instead of pooling over all."""
    for user in features.users:
        name, args = get_callee_name(user), user.args[1:]
        if name.startswith("slice") and reads_first_token(user):  # x[:, 0]: a slice over the batch, then a selection
            return True
        if name.startswith("select") and args[:2] == (1, 0):
            return True
        if name == "getitem" and isinstance(args[0], tuple) and args[0][1:2] == (0,):
            return True
    return False


def _is_convolution(traced: TracedBackbone, node: fx.Node, axes: str = "2d") -> bool:
    if node.op == "call_module":
        return isinstance(traced.module_of(node), {"1d": nn.Conv1d, "2d": nn.Conv2d, "3d": nn.Conv3d}[axes])
    return node.op == "call_function" and f"conv{axes}" in get_callee_name(node)


def _is_pooling(traced: TracedBackbone, node: fx.Node) -> bool:
    """Whether the node pools or leads to pooling; picking one token counts."""
    if node.op == "call_module":
        return isinstance(traced.module_of(node), _POOLING)
    return any(word in get_callee_name(node) for word in ("pool", "mean", "getitem", "flatten", "select", "slice"))


def _count_locations(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 3 else min(math.prod(shape[2:]), math.prod(shape[1:-1]))  # channels first or last


def _only_reshapes(traced: TracedBackbone, node: fx.Node) -> bool:
    """Whether the node computes no features of its own: pooling, dropout, slices, views (but to a map of 4 axes)."""
    module, name = traced.module_of(node), get_callee_name(node)
    if module is not None:
        return isinstance(module, (*_POOLING, nn.Flatten))
    if name == "getitem" and isinstance(node.args[0], fx.Node) and node.args[0] not in traced.values.shapes:
        return False  # of a tuple: what a recurrent module has computed
    words = ["pool", "mean", "dropout", "flatten", "getitem", "getattr", "select", "slice"]
    words += ["view", "reshape", "transpose", "permute"] if len(traced.shape_of(node)) < 4 else []
    return node.op == "get_attr" or any(word in name for word in words)
