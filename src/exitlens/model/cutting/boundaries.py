"""How features lie, as maps with channels first or last or as tokens, and where a traced backbone can be cut."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, fx, nn

from exitlens.errors import AttachError, suggest
from exitlens.model._torch_compat import ADAPTIVE_POOLS, AVERAGE_POOL, BATCH_NORM, CONVOLUTION, DROPOUT, MAX_POOL
from exitlens.model.cutting.trace import TracedBackbone, get_callee_name
from exitlens.types.inputs import MASK, list_tensors

Kind = Literal["nchw", "nhwc", "tokens", "vector"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_PREFIX = 8  # class, distillation and register tokens
Shape = Sequence[int]


@dataclass(frozen=True)
class Layout:
    """One exit's feature layout: ``(B,D,*S)``, ``(B,*S,D)``, ``(B,prefix+N,D)`` or ``(B,D)``, which has no locations."""

    kind: Kind = "nchw"
    prefix: int = 0  # class, distillation and register tokens in front, which are not locations
    grid: tuple[int, ...] | None = None  # ``S`` of tokens on a grid, without the prefix; ``None``: they stay a sequence
    masked: bool = False  # the network's inputs have a padding mask; padding gets no attention

    def canonical(self, features: Tensor) -> Tensor:
        """Return features in this layout as ``(B,D,*S)``; a view, not a copy."""
        if self.kind == "nchw":
            return features
        if self.kind == "vector":
            return features[..., None]
        if self.kind == "nhwc":
            return features.movedim(-1, 1)
        if self.grid is None:
            return features.transpose(1, 2)
        grid: Tensor = features[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
        return grid

    def locations(self, features: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Return which positions of a sequence are locations, not padding (0 in ``mask``) or prefix: ``(B or 1,N)`` bool."""
        keep = mask.bool() if self.masked and mask is not None else None
        if self.grid is not None or self.kind != "tokens" or self.prefix == 0:
            return keep
        behind = torch.arange(features.shape[1], device=features.device)[None] >= self.prefix
        return behind if keep is None else keep & behind

    def channels(self, shape: Shape) -> int:
        """Return ``D`` of features of this shape."""
        return shape[1] if self.kind in ("nchw", "vector") else shape[-1]

    def size(self, shape: Shape) -> tuple[int, ...]:
        """Return the locations ``S`` of features of this shape."""
        if self.kind == "nchw":
            return tuple(shape[2:])
        if self.kind == "vector":
            return (1,)
        if self.kind == "nhwc":
            return tuple(shape[1:-1])
        return self.grid or (shape[1],)


def find_map_layout(
    seen: str, shape: Shape, image: Shape, grids: Sequence[tuple[int, ...]], kind: Kind | None, channels: int | None = None
) -> Layout:
    """Return the layout of features of an image or volume; raise unless the shape fits exactly one.

    ``seen`` begins messages; ``image`` has the locations of the input, ``grids`` those after earlier convolutions (tokens
    lie on one of them, no map is larger), ``kind`` is the user's choice, ``channels`` the axis that the layers before tell.
    """
    if kind == "tokens" or (kind is None and len(shape) == 3):
        return _find_token_layout(seen, shape, image, grids)
    if len(shape) != len(image) + 2:
        raise AttachError(f"at: {seen}: expected a map of {len(image) + 2} axes or tokens of 3. Fix: put the exit earlier")
    if kind is not None:
        return Layout(kind)
    if len(image) == 2 and channels != 1:  # one of the two orders leaves a map of the image's aspect
        aspect, (highest, widest) = image[0] / image[1], grids[-1] if grids else image
        sides = {"nchw": shape[2:], "nhwc": shape[1:3]}  # odd sizes are rounded
        kinds = [k for k, (h, w) in sides.items() if abs(h - aspect * w) <= 1 and h <= highest and w <= widest]
        seen = f"{seen} for an image of {tuple(image)}"
        if not kinds:
            raise AttachError(f"at: {seen}, which is no map of the image (windows, perhaps). Fix: put the exit elsewhere")
        if len(kinds) == 2:
            raise AttachError(f"layout: {seen}, which could be channels first or last. Fix: pass layout='nchw' or 'nhwc'")
        return Layout(cast(Kind, kinds[0]))
    layout = Layout("nhwc" if channels == len(shape) - 1 else "nchw")
    if any(side > pixels for side, pixels in zip(layout.size(shape), image, strict=True)):
        raise AttachError(f"at: {seen} for an input of {tuple(image)}: no map of it. Fix: put the exit elsewhere")
    return layout


def _find_token_layout(seen: str, shape: Shape, image: Shape, grids: Sequence[tuple[int, ...]]) -> Layout:
    count = shape[1]
    candidates = [(count - math.prod(grid), grid) for grid in reversed(grids)]  # the last is that of the patches
    for prefix in range(MAX_PREFIX + 1 if len(image) == 2 else 0):
        sides = ((height, (count - prefix) // height) for height in range(1, count - prefix + 1))
        exact = [grid for grid in sides if math.prod(grid) == count - prefix]
        candidates += [(prefix, grid) for grid in exact if abs(grid[0] / grid[1] - image[0] / image[1]) < 1e-6]
    for prefix, grid in candidates:
        if len(shape) == 3 and len(grid) == len(image) and 0 <= prefix <= MAX_PREFIX:
            return Layout("tokens", prefix, grid)
    raise AttachError(
        f"layout: {seen} for an image of {tuple(image)}: no grid and up to {MAX_PREFIX} class or register tokens make that "
        "number of tokens. Fix: put the exit elsewhere"
    )


def find_series_layout(
    seen: str, shape: Shape, length: int, grids: Sequence[tuple[int, ...]], kind: Kind | None, channels: int | None = None
) -> Layout:
    """Tell ``(B,D,T)`` of convolutions (kind ``nchw``) from ``(B,prefix+T,D)``; arguments as of :func:`find_map_layout`."""
    seen = f"{seen} for a series of {length}"
    if len(shape) != 3:
        raise AttachError(f"at: {seen}: expected (B,D,T) or (B,T,D). Fix: put the exit elsewhere")
    if kind is None and channels is None and sum(size == length for size in shape[1:]) == 1:
        channels = 1 if shape[2] == length else 2
    if kind is None and channels is None:
        raise AttachError(f"layout: {seen}: could be either. Fix: pass layout='nchw' (B,D,T) or 'tokens' (B,T,D)")
    kind = kind or ("nchw" if channels == 1 else "tokens")
    if shape[2 if kind == "nchw" else 1] > length + MAX_PREFIX:
        raise AttachError(f"at: {seen}, which has more locations than the series. Fix: put the exit elsewhere")
    if kind == "nchw":
        return Layout("nchw")
    for size in (length, *(grid[0] for grid in reversed(grids) if len(grid) == 1)):
        if 0 < shape[1] - size <= MAX_PREFIX:
            return Layout("tokens", shape[1] - size, (size,))
        if shape[1] == size:
            break
    return Layout("tokens")


def find_vector_layout(seen: str, shape: Shape, features: int, kind: Kind | None) -> Layout:
    """Tell features ``(B,D)`` without locations from ``(B,prefix+N,D)`` with a token for each of the vector's features."""
    if len(shape) not in (2, 3) or ((len(shape) == 2) != (kind in (None, "vector")) and kind is not None):
        raise AttachError(f"at: {seen}: expected (B,D), or tokens (B,N,D). Fix: put the exit elsewhere")
    if len(shape) == 3 and kind in (None, "tokens") and 0 < shape[1] - features <= MAX_PREFIX and features > 1:
        return Layout("tokens", shape[1] - features, (features,))
    return Layout("vector" if len(shape) == 2 else kind or "tokens")


def find_sequence_layout(seen: str, shape: Shape, length: int, kind: Kind | None) -> Layout:
    """Tell ``(B,N,D)`` tokens from ``(B,D,N)`` of one-dimensional convolutions (kind ``nchw``)."""
    seen = f"{seen} for {length} tokens"
    if len(shape) != 3 or length not in shape[1:]:
        raise AttachError(f"at: {seen}: expected (B,{length},D) or (B,D,{length}). Fix: put the exit elsewhere")
    if kind is None and shape[1] == shape[2]:
        raise AttachError(f"layout: {seen}: could be either. Fix: pass layout='tokens' (B,N,D) or 'nchw' (B,D,N)")
    return Layout(kind or ("tokens" if shape[1] == length else "nchw"))


_POOLING = (MAX_POOL, AVERAGE_POOL, *ADAPTIVE_POOLS)
_PASSING = (*_POOLING, DROPOUT, nn.Identity)
_CHANNELS_FIRST = (CONVOLUTION, BATCH_NORM, *_POOLING, nn.GroupNorm)
_FIRST_NAMES = ("conv", "batch_norm", "instance_norm", "group_norm", "max_pool", "avg_pool", "adaptive_")
_TRANSFORMERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_CHANNELS_LAST = (nn.LayerNorm, nn.Linear, nn.RNNBase, *_TRANSFORMERS)
_LAST_NAMES = ("linear", "layer_norm", "rms_norm", "lstm", "gru", "rnn_", "embedding", "addmm")
SHOWN = 12  # places in a message


class UncuttableError(AttachError):
    """A cut that does not work, and why; the caller adds where one would."""


def get_operation(node: fx.Node) -> str:
    """Return the bare name of what a node calls: ``view`` for the method, ``aten.view.default`` and ``_view``."""
    return get_callee_name(node).split(".")[0].strip("_")


def takes_vector(traced: TracedBackbone) -> bool:
    """Return whether the first input is a vector of features ``(B,F)``."""
    first = list_tensors(traced.example)[0]
    return first.ndim == 2 and first.is_floating_point()


def has_channels_last(traced: TracedBackbone) -> bool:
    """Return whether the first input is a series ``(B,T,C)``, by the first layer that reads it."""
    node = traced.inputs[0]
    return len(traced.shape_of(node)) == 3 and find_input_channel_axis(traced, node) == 2


def find_input_locations(traced: TracedBackbone) -> tuple[int, ...]:
    """Return the locations of the first input: ``(H,W)`` of an image, ``(T,)`` of a series, ``()`` of tokens and vectors."""
    shape = traced.shape_of(traced.inputs[0])
    return shape[1:2] if has_channels_last(traced) else shape[2:]


def find_mask(traced: TracedBackbone) -> fx.Node | None:
    """Return the placeholder of the padding mask."""
    return next((node for node in traced.inputs if node.target == MASK), None)


def count_embedding_rows(traced: TracedBackbone) -> list[int | None]:
    """Return for each input how many different tokens the embedding that reads it knows; ``None`` without an embedding."""
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


def find_channel_axis(traced: TracedBackbone, node: fx.Node) -> int | None:
    """Return the axis of channels of a node's tensor, by the last layer before it that tells; ``None`` if none does."""
    count = len(traced.shape_of(node))
    axes = list(range(count))  # for each axis of the node at hand, which axis of the first node's tensor it is
    while node.op != "placeholder" and len(traced.shape_of(node)) == count:
        axis = _tell_axis(traced, node, count)
        if axis is not None:
            return axes[axis]
        order = read_order(node, count)
        source = next((parent for parent in node.all_input_nodes if parent.op != "get_attr"), None)
        if source is None:
            return None
        if order is not None:  # axis i is axis order[i] of the source
            axes = [axes[order.index(i)] for i in range(count)]
        node = source
    return None


def find_input_channel_axis(traced: TracedBackbone, node: fx.Node) -> int | None:
    """Return the axis of channels of an input, by the first layer that reads it; ``None`` if none tells."""
    count = len(traced.shape_of(node))
    axes = {node: list(range(count))}  # for each axis of a tensor made from the input, which axis of the input it is
    for user in traced.nodes:
        if (source := next((n for n in user.all_input_nodes if n in axes), None)) is None:
            continue
        axis = _tell_axis(traced, user, count)
        if axis is not None and user.all_input_nodes[0] is source:
            return axes[source][axis]
        if len(traced.shape_of(user)) == count:
            order = read_order(user, count)
            axes[user] = axes[source] if order is None else [axes[source][i] for i in order]
    return None


def _tell_axis(traced: TracedBackbone, node: fx.Node, count: int) -> int | None:
    """Return where a layer has its channels in tensors of ``count`` axes; ``None`` if it does not tell."""
    module, name = traced.module_of(node), get_operation(node)
    if name == "getitem" and isinstance(node.args[0], fx.Node) and node.args[0] not in traced.values.shapes:
        return _tell_axis(traced, node.args[0], count)  # a recurrent layer gives a tuple
    if isinstance(module, _CHANNELS_FIRST) or (module is None and name.startswith(_FIRST_NAMES)):
        return 1
    if isinstance(module, _CHANNELS_LAST) or (module is None and name.startswith(_LAST_NAMES)):
        return count - 1
    return None


def call_on(node: fx.Node, x: Tensor) -> Tensor:
    """Do what a node does to ``x``; numbers that the network computes are taken as endless."""
    args: Any = fx.node.map_arg(node.args[1:], lambda _: sys.maxsize)
    options = {name: value for name, value in node.kwargs.items() if name != "input"}
    call: Any = partial(node.target, x) if callable(node.target) else getattr(x, node.target)
    return cast(Tensor, call(*args, **options))


def read_order(node: fx.Node, ndim: int) -> list[int] | None:
    """Return for each axis of a node's tensor which axis of its source it is; ``None`` if the node permutes no axes."""
    name = get_operation(node)
    name = str(node.args[1]) if name == "getattr" else name
    if name not in ("permute", "transpose", "swapaxes", "swapdims", "t", "mT"):
        return None
    try:
        return list(call_on(node, torch.empty_strided((1,) * ndim, tuple(range(ndim)), device="meta")).stride())
    except (IndexError, RuntimeError, TypeError):  # the axes are computed
        return None


def find_node_layout(traced: TracedBackbone, node: fx.Node, kind: Kind | None = None) -> Layout:
    """Return the layout of the features at a node, of the user's ``kind`` if given; raise unless exactly one fits."""
    size, shape, first = find_input_locations(traced), traced.shape_of(node), traced.shape_of(traced.inputs[0])
    seen = f"after {traced.name_of(node) or node.name!r} the features are {shape}"
    if takes_vector(traced):
        return find_vector_layout(seen, shape, first[1], kind)
    count = max(len(size), 1)
    before = [n for n in traced.nodes[: traced.position(node)] if n in traced.values.batched]
    layer, function = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[count - 1], f"conv{count}d"
    is_call = {n: n.op == "call_function" and function in get_callee_name(n) for n in before}
    maps = [traced.shape_of(n) for n in before if is_call[n] or isinstance(traced.module_of(n), layer)]
    if not size:
        is_square = len(shape) == 3 and shape[1] == shape[2] == first[1]  # as many channels as tokens
        return find_sequence_layout(seen, shape, first[1], "tokens" if kind is None and is_square and not maps else kind)
    grids = [tuple(s[2:]) for s in maps if len(s) == count + 2 and math.prod(s[2:]) > 1]
    channels, is_map = None, kind is None and len(shape) == len(size) + 2
    if is_map and (len(size) != 2 or len(set(shape[1:])) == 1 or traced.is_dense):  # decoders enlarge maps
        channels = find_channel_axis(traced, node)
    if len(size) == 1:
        return find_series_layout(seen, shape, size[0], grids, kind, channels)
    return find_map_layout(seen, shape, size, grids, kind, channels)


def list_crossing_tensors(traced: TracedBackbone, end: int) -> list[fx.Node]:
    """Return the tensors of samples up to place ``end`` that later nodes need; stages compute constants and sizes again."""
    values, crossing, done = traced.values, set[fx.Node](), set[fx.Node]()
    waiting = [p for node in traced.nodes[end + 1 :] for p in traced.list_parents(node) if traced.position(p) <= end]
    while waiting:
        node = waiting.pop()
        if node in done or node in values.dataless:
            continue
        done.add(node)
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


def check_cut(traced: TracedBackbone, node: fx.Node, kind: Kind | None = None) -> tuple[Layout, list[fx.Node]]:
    """Return the layout of the features at a node and the tensors that cross there; raise if it cannot be cut there."""
    layout = find_node_layout(traced, node, kind)
    if node not in traced.values.batched:
        raise UncuttableError(f"its features have the shape {traced.shape_of(node)} for two samples: no row for each")
    expected, dtype = next(traced.backbone.parameters()).dtype, traced.values.dtypes[node]
    if dtype != expected:
        raise UncuttableError(f"its features are {dtype}, the network's parameters {expected}")
    return layout, list_crossing_tensors(traced, traced.position(node))


def describe_nearest_cut(traced: TracedBackbone, place: int, last: int) -> str:
    """Return ``; the nearest cut that works is 'layer2'``, before ``last``, or nothing if there is none."""
    named = {traced.position(node): node for node in traced.outputs.values() if traced.position(node) < last}
    for other in sorted(named, key=lambda p: (abs(p - place), p)):
        if other != place:
            with suppress(AttachError):
                check_cut(traced, named[other])
                return f"; the nearest cut that works is {traced.name_of(named[other])!r}"
    return ""


def find_exit_nodes(traced: TracedBackbone, kind: Kind | None = None) -> list[fx.Node]:
    """Return the named nodes before the last features where one tensor of features crosses, beside tokens and masks."""
    ignored = set(traced.inputs[1:])  # padding masks, in whatever form the layers take them
    for node in traced.nodes:
        if node.op != "placeholder" and ignored.issuperset(node.all_input_nodes):
            ignored.add(node)
    ignored |= {node for node in traced.inputs if len(traced.shape_of(node)) == 2 and not takes_vector(traced)}  # tokens
    places = dict[fx.Node, int]()  # with the number of other tensors that cross there
    for node in traced.nodes[: traced.position(find_last_features(traced))]:
        with suppress(AttachError):
            if traced.name_of(node):
                layout, crossing = check_cut(traced, node, kind)
                has_locations = math.prod(layout.size(traced.shape_of(node))) > 1 or takes_vector(traced)
                if has_locations and node in crossing:
                    places[node] = len(set(crossing) - ignored) - 1
    if traced.is_dense:
        return _keep_ends_of_blocks(traced, places)
    return [node for node, others in places.items() if not others]


def _keep_ends_of_blocks(traced: TracedBackbone, places: Mapping[fx.Node, int]) -> list[fx.Node]:
    """Return the places of an encoder-decoder where no more tensors cross than at any later one up to its coarsest map.

    Skip connections cross until the decoder takes them, so their number grows in the encoder and falls in the decoder;
    inside a residual block one more crosses. In the decoder, no more may cross than at any earlier place.
    """
    last = find_coarsest(traced, places)
    encoder = [node for node in places if traced.position(node) <= last]
    kept, fewest = list[fx.Node](), len(traced.nodes)
    for node in reversed(encoder):
        fewest = min(fewest, places[node])
        kept[:0] = [node] * (places[node] == fewest)
    fewest = places[kept[-1]] if kept else fewest
    for node in list(places)[len(encoder) :]:
        kept += [node] * (places[node] <= fewest)
        fewest = min(fewest, places[node])
    return kept


def find_coarsest(traced: TracedBackbone, nodes: Iterable[fx.Node]) -> int:
    """Return the place of the last of the nodes with the fewest locations: the end of an encoder; -1 without nodes."""
    sizes = {node: math.prod(find_node_layout(traced, node).size(traced.shape_of(node))) for node in nodes}
    return max((traced.position(node) for node in sizes if sizes[node] == min(sizes.values())), default=-1)


def find_cut_nodes(traced: TracedBackbone, at: Sequence[str]) -> list[fx.Node]:
    """Return the output nodes of the named modules, checked to be known, to run once, in order and before the final exit."""
    last = traced.position(find_last_features(traced))
    for name in at:
        if name in traced.repeated:
            count, node = traced.repeated[name]
            raise AttachError(
                f"at: {name!r}: it runs {count} times (a loop, or a module used again), so its name does not say after "
                f"which time{describe_nearest_cut(traced, 0 if node is None else traced.position(node), last)}"
            )
        if name not in traced.outputs:
            places = [str(traced.name_of(node)) for node in find_exit_nodes(traced)]
            shallowest = sorted(places, key=lambda place: place.count("."))[:SHOWN]
            places = [place for place in places if place in shallowest]
            raise AttachError(
                f"at (option --exits): the backbone has no module {name!r} on its path.{suggest(name, traced.outputs)} Fix: "
                f"choose among its places, in order: {', '.join(places) or 'none'}; `exitlens inspect` lists all with their "
                "cost"
            )
    nodes = [traced.outputs[name] for name in at]
    positions = [traced.position(node) for node in nodes]
    if any(later <= earlier for earlier, later in pairwise(positions)):
        ordered = sorted(set(at), key=lambda name: traced.position(traced.outputs[name]))
        raise AttachError(f"at: exits must be different and in the order of execution, got {list(at)}. Fix: use {ordered}")
    if positions and positions[-1] >= last:
        raise AttachError(
            f"at: {at[-1]!r} is where the final exit already answers. Fix: leave it out; early exits lie before it"
            + describe_nearest_cut(traced, last, last)
        )
    return nodes


def find_last_features(traced: TracedBackbone) -> fx.Node:
    """Return the last map or tokens before the backbone's own pooling and classifier; of a vector, what that reads.

    In a network that answers each pixel the classifier is its last convolution.
    """
    if traced.is_dense:
        return _find_last_map(traced)
    values, axes = traced.values, range(3, max(4, len(find_input_locations(traced)) + 2) + 1)
    maps = [n for n in traced.nodes if n in values.batched and len(values.shapes[n]) in axes and n not in values.dataless]
    maps = [n for n in maps if n.op != "placeholder" and not _only_reshapes(traced, n)]
    if not maps and takes_vector(traced):
        return _find_last_vector(traced)
    if not maps:
        steps_first = any(len(s) == 3 and s[1] == 2 and n not in values.batched for n, s in values.shapes.items())
        hint = ". Its layers have steps before samples, (T,B,C). Fix: give them batch_first=True" if steps_first else ""
        raise AttachError(
            f"backbone: found no feature map (B,C,H,W) or tokens in it: exits need locations to attend to{hint}"
        )
    shapes = [(n, values.shapes[n]) for n in maps]  # channels first or last
    large = [n for n, s in shapes if (s[1] if len(s) == 3 else min(math.prod(s[2:]), math.prod(s[1:-1]))) > 1]
    features = large[-1] if large and any(_is_pooling(traced, user) for user in large[-1].users) else maps[-1]
    for node in traced.nodes[traced.position(features) + 1 :]:
        if isinstance(traced.module_of(node), nn.RNNBase) or get_callee_name(node).split(".")[0] in ("gru", "lstm"):
            raise AttachError(
                f"backbone: only the last state of the recurrent layer {traced.name_of(node) or node.name!r} is read, which "
                "has no steps to attend to. Fix: read its outputs, x, _ = layer(x), and then x[:, -1]"
            )
    return features


def _find_last_map(traced: TracedBackbone) -> fx.Node:
    """Return what the last convolution reads on the way to the logits ``(B,C,H,W)``."""
    needed, waiting = set[fx.Node](), [traced.values.logits]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    for node in reversed(traced.nodes):
        is_call = node.op == "call_function" and get_operation(node).startswith(("conv2d", "conv_t"))
        if node in needed and (is_call or isinstance(traced.module_of(node), CONVOLUTION)):
            features = node.all_input_nodes[0]
            if features.op != "placeholder":
                return features
    raise AttachError("backbone: it answers each pixel, and has no two convolutions: there is nothing to leave early from")


def _find_last_vector(traced: TracedBackbone) -> fx.Node:
    """Return what the last linear layer reads, before dropout."""
    node, is_behind = traced.values.logits, False
    while node.op != "placeholder" and not (is_behind and not _only_reshapes(traced, node)):
        is_call = node.op == "call_function" and get_operation(node) in ("linear", "addmm")
        is_linear = is_call or isinstance(traced.module_of(node), nn.Linear)
        is_behind |= is_linear and len(traced.shape_of(node)) == 2
        node = node.all_input_nodes[0]
    if node.op == "placeholder":
        raise AttachError("backbone: it has no layer before its classifier: there is nothing to leave early from")
    return node


def _is_pooling(traced: TracedBackbone, node: fx.Node) -> bool:
    """Return whether the node pools or leads to pooling; picking one token counts."""
    if node.op == "call_module":
        return isinstance(traced.module_of(node), _PASSING)
    return any(word in get_callee_name(node) for word in ("pool", "mean", "getitem", "flatten", "select", "slice"))


def _only_reshapes(traced: TracedBackbone, node: fx.Node) -> bool:
    """Return whether the node computes no features of its own: pooling, dropout, slices, views (but to a map of 4 axes)."""
    module, name = traced.module_of(node), get_callee_name(node)
    if module is not None:
        return isinstance(module, (*_PASSING, nn.Flatten))
    if name == "getitem" and isinstance(node.args[0], fx.Node) and node.args[0] not in traced.values.shapes:
        return False  # part of a tuple, which a recurrent module has computed
    words = ["pool", "mean", "dropout", "flatten", "getitem", "getattr", "select", "slice"]
    words += ["view", "reshape", "transpose", "permute"] if len(traced.shape_of(node)) < 4 else []
    return node.op == "get_attr" or any(word in name for word in words)


def find_lateral(traced: TracedBackbone, final: fx.Node, least_side: int, kind: Kind | None = None) -> fx.Node | None:
    """Return the deepest map of an image with ``least_side`` locations a side, if the last features have fewer.

    A map with over twice the channels of the narrowest is left out: the middle of a widening block costs much to carry.
    Of an encoder-decoder, whose last features are fine, it is one of the encoder's.
    """
    size = find_node_layout(traced, final, kind).size(traced.shape_of(final)) if least_side else ()
    if len(size) != 2 or (min(size) >= least_side and not traced.is_dense):
        return None
    candidates: list[tuple[int, int, fx.Node]] = []  # locations, channels
    places = find_exit_nodes(traced, kind)
    last = find_coarsest(traced, places) if traced.is_dense else len(traced.nodes)
    for node in places:
        (layout, crossing), shape = check_cut(traced, node, kind), traced.shape_of(node)
        is_alone = crossing == [node] or (traced.is_dense and traced.position(node) <= last)
        if len(shape) == 4 and min(layout.size(shape)) >= least_side and is_alone:
            candidates.append((math.prod(layout.size(shape)), layout.channels(shape), node))
    fewest = min((locations for locations, _, _ in candidates), default=0)
    coarsest = [(channels, node) for locations, channels, node in candidates if locations == fewest]
    narrowest = min((channels for channels, _ in coarsest), default=0)
    return next((node for channels, node in reversed(coarsest) if channels <= 2 * narrowest), None)


def reads_first_token(features: fx.Node) -> bool:
    """Return whether what follows the features reads their first token (a class token) instead of pooling over all."""

    def reads_first(user: fx.Node) -> bool:
        name, args = get_callee_name(user), user.args[1:]
        if name.startswith("slice"):  # x[:, 0]: a slice over the batch, then a selection
            return reads_first_token(user)
        is_item = name == "getitem" and isinstance(args[0], tuple) and args[0][1:2] == (0,)
        return is_item or (name.startswith("select") and args[:2] == (1, 0))

    return any(map(reads_first, features.users))
