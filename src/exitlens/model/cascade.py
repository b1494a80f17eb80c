"""cascade: whole networks as the stages of one, cheapest first; nothing is trained, and their answers stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from exitlens.errors import AttachError, InputError, first_line, require
from exitlens.model.attach import attach
from exitlens.model.cutting.modes import preserve_state, switch_mode
from exitlens.model.cutting.placement import count_macs
from exitlens.model.cutting.split import Activations, Stage
from exitlens.model.heads import ExitHead, KeptHead
from exitlens.model.network import ExitNet, InputSpec, NetworkInfo
from exitlens.types.inputs import Inputs, list_input_names, list_shapes, list_tensors, map_inputs
from exitlens.types.preprocessing import Preprocess, Preprocessing
from exitlens.types.tasks import refuse_task


def cascade(
    members: Sequence[nn.Module] | Mapping[str, nn.Module],
    example: Inputs | None = None,
    *,
    preprocess: Sequence[Preprocess] | None = None,
    classes: Sequence[str] = (),
) -> ExitNet:
    """Return a network whose exits are whole networks, the next of which answers where the one before is not sure.

    Each member sees the inputs themselves. Weights are shared with the members, not copied, and so is their mode (train or
    eval); logits are those of the members alone, bit for bit. All verbs work as for a backbone with exits. Costs are in
    units of the last member's, so that the last exit costs more than 1. A map is the member's own: its evidence is exact
    where pooling and one linear layer end the member.

    Args:
        members: two networks or more, cheapest first, alone or by name: modules that return logits ``(B,C)``, or networks
            with exits (:func:`exitlens.attach`), whose exits become exits of the cascade.
        example: inputs as the cascade will see them; one sample is enough. Images have one size, and a member that takes
            another gets them resized (bilinear, with antialiasing). If all members have exits, it may be left out: images
            then have the largest size.
        preprocess: for images, of every member: its size, and the mean and standard deviation it was trained with. By
            default, what members with exits know. If members differ in mean and standard deviation, the cascade takes pixels
            in [0, 1].
        classes: names of the classes; by default those that members know. Logits of a member that knows the same names in
            another order are put in the last member's order.

    Raises:
        AttachError: a member cannot be traced, or members differ in their classes or inputs.
        InputError: fewer than two members, or a preprocess that does not fit.

    Examples:
        >>> small, large = xl.build_backbone("small", 10), xl.build_backbone("torchvision:resnet18", 10)
        >>> both = xl.cascade([small, large], example=images[:1]).eval()
        >>> torch.equal(both(images)[1].logits, large.eval()(images)), both.num_exits
        (True, 2)
    """
    titles = [str(title) for title in members] if isinstance(members, Mapping) else None
    members = list(members.values()) if isinstance(members, Mapping) else members
    if isinstance(members, nn.Module | str) or not isinstance(members, Sequence) or len(members) < 2:
        raise InputError(f"members: expected a list of two networks or more, got {members!r:.80}. Fix: pass [small, large].")
    for member in members:
        require(member, nn.Module, "members", "pass modules, or networks made by exitlens.attach")
    titles = titles or [str(m) for m in range(len(members))]
    example = map_inputs(_make_example(members) if example is None else example, lambda t: t[:1].detach())
    given = _read_preprocess(members, preprocess)
    outer = _choose_preprocess(given, example)
    places = [f"members[{title}]" for title in titles]
    nets = [_open(*each, example) for each in zip(places, members, given, strict=True)]
    names = tuple(classes) or next((net.info.classes for net in reversed(nets) if net.info.classes), ())
    for place, net, each in zip(places, nets, given, strict=True):
        _check_member(place, net, nets[-1], names, each, example)
    adapters = [_make_adapter(outer, *pair, example) for pair in zip(nets, given, strict=True)]
    parts = list(_join(nets, adapters, names, len(list_tensors(example))))
    stages, heads = zip(*parts, strict=True)
    spec, info = nets[-1].input_spec, _describe(dict(zip(titles, nets, strict=True)), given, names, outer, example)
    is_fixed = any(net.input_spec.exact_size for net in nets) or len({net.info.input_shape for net in nets}) > 1
    shape = {"names": list_input_names(example), "shape": info.input_shape, "shapes": list_shapes(example)}
    spec = InputSpec(**vars(spec) | shape | {"exact_size": is_fixed})
    net = ExitNet(stages, heads, _measure_cost(parts, nets[-1], list_tensors(example)), 0.0, info, spec)
    net.training = any(net.stage(k).training for k in range(net.num_exits))  # modules are the members', in their modes
    return net


def _make_example(members: Sequence[nn.Module]) -> Inputs:
    nets = [member for member in members if isinstance(member, ExitNet)]
    if len(nets) < len(members):
        raise InputError("example: it is needed where a member has no exits. Fix: pass example=images[:1].")
    largest = tuple(map(max, zip(*(net.info.input_shape for net in nets), strict=False)))
    like = next(nets[-1].parameters())
    return like.new_zeros(1, *largest) if len(largest) == 3 else nets[-1].info.example(like)


def _read_preprocess(members: Sequence[nn.Module], preprocess: Sequence[Preprocess] | None) -> list[Preprocessing | None]:
    """Return each member's preprocessing; raise :class:`InputError` if only some are known."""
    known: list[Preprocessing | None] = [m.info.preprocess if isinstance(m, ExitNet) else None for m in members]
    if preprocess is not None:
        if len(preprocess) != len(members):
            raise InputError(
                f"preprocess: expected one for each of {len(members)} members, got {len(preprocess)}. Fix: add some."
            )
        for item in preprocess:
            require(item, Preprocess, "preprocess", "pass xl.data.Preprocess for every member")
        known = list(preprocess)
    unknown = [i for i, item in enumerate(known) if item is None]
    if 0 < len(unknown) < len(known):
        raise InputError(
            f"preprocess: members {unknown} do not say how their inputs were made, and others do. Fix: pass "
            "preprocess=[...], one for each member."
        )
    return known


def _choose_preprocess(given: Sequence[Preprocessing | None], example: Inputs) -> Preprocessing | None:
    """Return the cascade's own, at the example's size: that of all members, or pixels in [0, 1] if they differ."""
    pixels = [item for item in given if isinstance(item, Preprocess)]
    if not pixels:
        if any(item != given[-1] for item in given):
            raise InputError(
                "members: their inputs are made in ways that differ, as only images may. Fix: train them alike."
            )
        return given[-1]
    channels, height, width = list_tensors(example)[0].shape[1:]
    if len({(item.mean, item.std) for item in pixels}) > 1:
        return Preprocess((height, width), (0.0,) * channels, (1.0,) * channels)
    return replace(pixels[-1], size=(height, width))


def _open(place: str, member: nn.Module, preprocess: Preprocessing | None, example: Inputs) -> ExitNet:
    """Return a member with exits as it is, and another as a network of one exit, its own classifier."""
    if isinstance(member, ExitNet):
        size = member.info.input_shape[1:]
        if isinstance(preprocess, Preprocess) and preprocess.size != size:
            raise InputError(
                f"preprocess: this member takes images of {size}, got {preprocess.size}. Fix: pass its own size."
            )
        return member
    if isinstance(preprocess, Preprocess):
        example = list_tensors(example)[0].new_zeros(1, len(preprocess.mean), *preprocess.size)
    try:
        with preserve_state(member), switch_mode(member, False), torch.no_grad():
            logits = member(example) if isinstance(example, Tensor) else member(**example)
    except Exception as error:  # any operation of the user's network may refuse the inputs
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in list_tensors(example))
        raise AttachError(
            f"{place}: it fails on an example of shape {shapes}: {first_line(error)}. Fix: pass an example "
            "that every member takes, such as images[:1]."
        ) from error
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise AttachError("members: expected networks that return logits (B,C). Fix: wrap the module so that it does.")
    return attach(member, [], logits.shape[1], example, final="keep")


def _check_member(
    place: str,
    net: ExitNet,
    last: ExitNet,
    names: tuple[str, ...],
    preprocess: Preprocessing | None,
    example: Inputs,
) -> None:
    info = net.info
    refuse_task(info.task, f"{place}: a cascade")
    answers = [f"{each.num_classes} ({each.task})" for each in (info, last.info)]
    if answers[0] != answers[1]:
        raise AttachError(
            f"{place}: it has classes: {answers[0]}, the last member has {answers[1]}. Fix: pass networks of one task."
        )
    if names and (len(names) != info.num_classes or set(info.classes or names) != set(names)):
        shown = ", ".join(sorted(set(info.classes or names) ^ set(names))[:5]) or f"{len(names)} names"
        raise AttachError(
            f"{place}: its {info.num_classes} classes do not have these names: {shown}. Fix: pass classes=[...]."
        )
    shape = tuple(list_tensors(example)[0].shape[1:])
    kinds = [(info.inputs, len(info.input_shape)), (list_input_names(example), len(shape))]
    if kinds[0] != kinds[1]:
        raise AttachError(
            f"{place}: it takes inputs (names, axes) {kinds[0]}, the example has {kinds[1]}. Fix: pass inputs of one kind."
        )
    is_grey = isinstance(preprocess, Preprocess) and shape[0] == 1  # which standardising makes as many as it has means
    if len(shape) == 3 and shape[0] != info.input_shape[0] and not is_grey:
        raise AttachError(
            f"{place}: it takes images of {info.input_shape[0]} channels, the example has {shape[0]}. Fix: pass networks "
            "of one kind of images."
        )
    if _find_order(names, info.classes) and not all(isinstance(head, KeptHead) for head in net.heads):
        raise AttachError(
            f"{place}: its classes are in another order, which its exits keep. Fix: train it with that of the last member."
        )


class _Adapter(nn.Module):
    """Makes a member's images from those of the cascade: at its size, standardised by its mean and deviation."""

    def __init__(self, size: tuple[int, ...] | None, scaling: Preprocess | None) -> None:
        super().__init__()
        self.size, self.scales = size, scaling is not None
        given = scaling or Preprocess((1, 1), (0.0,), (1.0,))
        self.mean, self.std = (nn.Buffer(torch.tensor(v).view(-1, 1, 1), persistent=False) for v in (given.mean, given.std))

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return (x - self.mean) / self.std if self.scales else x


def _make_adapter(
    outer: Preprocessing | None, net: ExitNet, given: Preprocessing | None, example: Inputs
) -> _Adapter | None:
    shape = list_tensors(example)[0].shape[1:]
    size = None if tuple(shape[1:]) == net.info.input_shape[1:] or len(shape) != 3 else net.info.input_shape[1:]
    scaling = None
    if isinstance(given, Preprocess) and isinstance(outer, Preprocess) and given.fit_to(outer.size, shape[0]) != outer:
        scaling = given
    return _Adapter(size, scaling) if size or scaling else None


def _join(
    nets: Sequence[ExitNet], adapters: Sequence[_Adapter | None], names: tuple[str, ...], count: int
) -> Iterator[tuple[Stage, ExitHead]]:
    """Yield stages and heads of all members. The ``count`` inputs cross every cut up to the last member, behind the rest."""
    left = 0  # tensors that the member before leaves, which nobody reads
    for net, adapter in zip(nets, adapters, strict=True):
        carries, order = net is not nets[-1], _find_order(names, net.info.classes)
        for k in range(net.num_exits):
            stage, head = net.stage(k), net.head(k)
            if k == 0:
                read = carried = slice(left, left + count)
            else:
                read, carried = slice(left), slice(left, left + count)
            if k == 0 or carries:
                stage = _rewire(stage, left + count, read, carried if carries else None, adapter if k == 0 else None)
            left = _count_outputs(net.stage(k))
            if isinstance(head, KeptHead) and (carries or order):
                tail = _rewire(head.tail, left + count * carries, slice(left), None, order=order)
                kept = KeptHead(tail, None if order else head.pooled_linear, head.layout)
                kept.training, head = head.training, kept
            yield stage, head


def _find_order(names: tuple[str, ...], known: tuple[str, ...]) -> list[int]:
    """Return where each class is among a member's own; empty if they are in the same order."""
    return [known.index(name) for name in names] if known and known != names else []


def _count_outputs(stage: Stage) -> int:
    return len(next(iter(reversed(stage.body.graph.nodes))).args[0])


def _rewire(
    stage: Stage,
    count: int,
    read: slice,
    carried: slice | None,
    adapter: _Adapter | None = None,
    order: Sequence[int] = (),
) -> Stage:
    """Return a stage on the same members that takes ``count`` tensors, reads some, and gives some on behind its own."""

    def rewire(body: fx.GraphModule) -> fx.GraphModule:
        graph, holder = fx.Graph(), nn.Module()
        for table in ("_modules", "_parameters", "_buffers"):
            holder.__dict__[table] = dict(body.__dict__[table])
        places = [graph.placeholder(f"given_{i}") for i in range(count)]
        given = places[read]
        if adapter is not None:
            holder.add_module("adapter", adapter)
            given = [graph.call_module("adapter", (given[0],)), *given[1:]]
        inputs = body.graph.find_nodes(op="placeholder")
        outputs = list(graph.graph_copy(body.graph, dict(zip(inputs, given, strict=True))))  # type: ignore[arg-type]
        if order:
            holder.register_buffer("order", torch.tensor(order), persistent=False)
            outputs[0] = graph.call_function(torch.index_select, (outputs[0], 1, graph.get_attr("order")))
        graph.output((*outputs, *(places[carried] if carried else ())))
        return fx.GraphModule(holder, graph)

    rewired = Stage(rewire(stage.body), rewire(stage.evaluation))
    rewired.training = stage.training
    return rewired


def _measure_cost(parts: Sequence[tuple[Stage, ExitHead]], last: ExitNet, inputs: Activations) -> Tensor:
    """Return the cumulative multiply-accumulates at every exit over those of the last member alone."""

    def count(parts: Sequence[tuple[Stage, ExitHead]], given: Activations) -> list[int]:
        each = []
        for stage, head in parts:
            with switch_mode(stage, False), switch_mode(head, False):
                macs, given = count_macs(stage, *given)
                each.append(macs + count_macs(head.classify, *given)[0])
        return list(accumulate(each))

    example = list_tensors(last.info.example(inputs[0]))
    alone = count([(last.stage(k), last.head(k)) for k in range(last.num_exits)], example)[-1]
    return torch.tensor([each / alone for each in count(parts, inputs)])


def _describe(
    named: Mapping[str, ExitNet],
    given: Sequence[Preprocessing | None],
    names: tuple[str, ...],
    outer: Preprocessing | None,
    example: Inputs,
) -> NetworkInfo:
    nets, axes = list(named.values()), list_tensors(example)[0].ndim - 2
    at = [f"{title}.{name}" if name else title for title, net in named.items() for name in (*net.info.at, "")]
    offsets = [
        [each for net in nets for each in (getattr(net.info, name) or ((0.0,) * axes,) * net.num_exits)]
        for name in ("map_offsets", "feature_offsets")
    ]
    moved = any(any(each) for each in offsets[0] + offsets[1])
    return replace(
        nets[-1].info,
        at=tuple(at[:-1]),
        final="keep",
        source="cascade",
        config=None,
        input_shape=tuple(list_tensors(example)[0].shape[1:]),
        input_shapes=list_shapes(example),
        classes=names,
        preprocess=outer,
        map_offsets=tuple(offsets[0]) if moved else (),
        feature_offsets=tuple(offsets[1]) if moved else (),
        members=tuple(replace(net.info, preprocess=item) for net, item in zip(nets, given, strict=True)),
    )
