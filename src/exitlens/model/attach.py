"""attach: a backbone with exits, checked against the plain backbone before it is returned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import get_args

import torch
from torch import Tensor, nn

from exitlens.errors import AttachError, InputError, require
from exitlens.modalities import IMAGE, Modality, recognise_example
from exitlens.model.backbones.build import build_backbone, read_config
from exitlens.model.cutting.boundaries import KINDS, Kind, count_embedding_rows, has_channels_last, takes_vector
from exitlens.model.cutting.modes import fill_zero_parameters, preserve_state, switch_mode
from exitlens.model.cutting.placement import PLACEMENTS, Placement, count_macs, count_node_macs, place_exits
from exitlens.model.cutting.split import Activations, Pieces, check_backbone, make_random_inputs, run_plain, split, verify
from exitlens.model.cutting.trace import TraceMismatchError
from exitlens.model.geometry import find_map_geometry, warn_of_small_reach
from exitlens.model.heads import (
    HEADS,
    LEAST_SIDE,
    ExitHead,
    HeadKind,
    KeptHead,
    KeptPixelHead,
    KeptVectorHead,
    SkipHead,
    check_groups,
    choose_dense_side,
    make_head,
)
from exitlens.model.network import ExitNet, Final, InputSpec, NetworkInfo
from exitlens.types.inputs import Groups, Inputs, list_input_names, list_shapes, list_tensors, map_inputs
from exitlens.types.settings import NECK_SHARE, NumberRule, check_choice, check_number
from exitlens.types.tasks import ANSWERS, CONTINUOUS, TASKS, Task

OtherHead = Callable[[ExitHead], ExitHead]


def attach(  # noqa: PLR0913
    backbone: nn.Module | str,
    at: Sequence[str] | int,
    num_classes: int,
    example: Inputs,
    *,
    final: Final = "head",
    end: str = "",
    layout: Kind | None = None,
    placement: Placement = "cost",
    head: HeadKind | None = None,
    neck_share: float = NECK_SHARE,
    groups: Mapping[str, Sequence[int]] | None = None,
    heads: Mapping[int, OtherHead] | None = None,
    task: Task | None = None,
) -> ExitNet:
    """Attach exits to a backbone, and return the network in its mode (train or eval); weights are shared, not copied.

    Args:
        backbone: a module that returns logits (or a dict or named tuple with ``logits`` or ``out``), or a source such as
            ``"torchvision:resnet18"`` or ``"hf:DIRECTORY"``. Logits are ``(B,C)``; those of a network that answers one class
            a pixel are ``(B,C,H,W)``.
        at: names of the modules that early exits follow, in the order of execution, or a number of early exits to place.
        num_classes: ``C`` of every exit: of numbers how many a sample has, 1 or more, and of vectors their length.
        example: images ``(B,C,H,W)`` of the size the network will see, series ``(B,C,T)`` or ``(B,T,C)``, volumes
            ``(B,C,D,H,W)``, vectors ``(B,F)``, or tokens ``(B,N)``, alone or by name
            (``{"input_ids": ..., "attention_mask": ...}``); one sample is enough. Several inputs come by name, first the
            one that maps lie on.
        final: ``"head"`` gives the final exit an evidence head, to be trained; ``"keep"`` leaves it the backbone's own
            classifier, so that its outputs stay those of the plain backbone.
        end: name of the module after which the network ends, with a new head; the rest of the backbone is left out. Costs
            stay in units of the whole backbone's.
        layout: ``nchw``, ``nhwc`` or ``tokens`` for all exits; by default it is inferred from the shapes.
        placement: with a number in ``at``, exits lie at equal shares of ``"cost"`` (multiply-accumulates), or of the
            ``"time"`` that the backbone takes on this machine, measured for 10 s at most and refused if it is too busy.
        head: ``"evidence"``, the default: attention pooling on the features as they are. ``"context"``, the default for one
            class a pixel: a neck before it (:class:`~exitlens.model.heads.ContextNeck`,
            :class:`~exitlens.model.heads.TokenNeck`) makes early answers much better for a little more cost, and puts all
            maps on one grid, if sizes divide. If the last features have fewer than 7 locations a side, the final head reads
            earlier, finer ones too; with ``final="head"``, heads on tokens read those of the first exit beside their own.
            ``"average"``: average pooling, for comparison. ``"skip"``, for vectors: an exit skips to the last stage
            (:class:`~exitlens.model.heads.SkipHead`), so its features have to have the shape of those before that stage.
        neck_share: share of the backbone's multiply-accumulates that all necks of context heads together may take. In small
            networks 0.04 is a bottleneck of 8 to 24 channels; docs/measured/static.md tries 0.09.
        groups: for a vector's features, the columns of each group by name: exits attend to the groups, and read the vector
            itself beside hidden features (:class:`~exitlens.model.heads.GroupNeck`). Without groups the exits of a
            multi-layer perceptron have no maps, because hidden units are not locations.
        heads: heads of your own by their exits. Each is a function that takes the head that would stand there and returns
            another :class:`~exitlens.model.heads.ExitHead` (docs/guides/extending.md); :func:`exitlens.load` takes them too.
        task: ``"segmentation"`` gives every exit of a classifier a decoder that answers one class a pixel
            (:class:`~exitlens.model.heads.PixelHead`). A backbone that returns ``(B,C,H,W)`` implies it. With
            ``"regression"`` exits answer numbers (:class:`~exitlens.model.heads.NumberHead`), and with ``"embedding"`` the
            vector of norm 1 that the backbone returns (``final="keep"``; :class:`~exitlens.model.heads.VectorHead`). For the
            others, the labels of training tell one class from several labels a sample.

    Warns:
        ReachWarning: if the locations of an early exit see less than a quarter of the image's shorter side.

    Examples:
        >>> net = xl.attach("small", at=["layer2", "layer3"], num_classes=10, example=images[:1])
        >>> [tuple(out.attention.shape) for out in net(images)]  # two early exits and the final one
        [(8, 10, 10), (8, 10, 10), (8, 10, 10)]
    """
    check_choice("final", final, get_args(Final))
    check_choice("head", head, (*HEADS, None))
    check_choice("task", task, (*TASKS, None))
    check_choice("layout", layout, (*KINDS, None))
    check_choice("placement", placement, PLACEMENTS)
    _check_arguments(backbone, at, num_classes, placement, task)
    check_number("neck_share", neck_share, NumberRule("a share above 0 and up to 1", lambda value: 0 < value <= 1))
    require(end, str, "end", "pass the name of a module, such as 'layer2'")
    require(heads, Mapping | None, "heads", "pass them by their exits, as in {0: MyHead}")
    if end and (final != "head" or isinstance(at, int)):
        raise InputError("end: the final head is new, and early exits are named. Fix: pass final='head' and names in at.")
    modality, shape = recognise_example(example), tuple(list_tensors(example)[0].shape[1:])
    named = check_groups(groups, shape, list_tensors(example)[0])
    channels, source = modality.count_channels(shape), backbone if isinstance(backbone, str) else ""
    module = build_backbone(backbone, num_classes, channels, modality=modality) if isinstance(backbone, str) else backbone
    check_backbone(module)
    if task == "segmentation" and modality is not IMAGE:
        raise InputError(f"task: 'segmentation' is for images (B,C,H,W), the example is {modality.name}. Fix: leave it out.")
    example = map_inputs(example, lambda t: t[:1].detach())
    with preserve_state(module):
        at = place_exits(module, example, at, layout, placement=placement) if isinstance(at, int) else at
        dense_side = choose_dense_side(shape) if head in ("context", None) and modality is IMAGE else 0
        least_side = LEAST_SIDE if head == "context" and final == "head" and not end else 0
        sides = (dense_side if task == "segmentation" else least_side), dense_side
        pieces = _split_and_verify(module, [*at, end] if end else at, example, layout, sides, bool(named))
        task = _check_task(task, pieces, modality, head, final, end)
        head = head or ("context" if task == "segmentation" else "evidence")
        if at and math.prod(pieces.features[-2 if end else -1].size) == 1 and not takes_vector(pieces.traced):
            raise AttachError(
                f"example: at {tuple(shape[1:])} pixels the final features are 1x1, so there is no map for the early exits "
                "to agree with. Fix: use larger images, or a backbone that shrinks them less"
            )
        plain = sum(count_node_macs(pieces.traced).values())
        if plain == 0:
            raise AttachError("backbone: PyTorch's counter finds no multiply-accumulates in it, so its exits have no cost")
        chosen = _make_heads(pieces, num_classes, final, head, neck_share * plain, named, task)
        if end:
            pieces, chosen = replace(pieces, stages=pieces.stages[:-1], features=pieces.features[:-1]), chosen[:-1]
        _replace_heads(chosen, heads or {})
        cost, head_share = _measure_cost(pieces, chosen, final, plain)
        geometry = find_map_geometry(pieces, chosen)
    tensors, last = list_tensors(example), pieces.features[-1].layout
    is_mixed = len({t.dtype for t in tensors}) > 1
    spec = InputSpec(
        names=list_input_names(example),
        shape=shape,
        exact_size=pieces.exact_size,
        vocabulary=tuple(count_embedding_rows(pieces.traced)),
        prefix=last.prefix if last.grid is None else 0,
        dtypes=tuple(t.dtype for t in tensors if not t.is_floating_point() or is_mixed),
        channels_last=has_channels_last(pieces.traced),
        groups=named,
        shapes=list_shapes(example),
    )
    exits, config, dtypes = tuple(at), read_config(module), tuple(str(d).removeprefix("torch.") for d in spec.dtypes)
    moved = geometry if any(any(m.offset + m.feature_offset) for m in geometry) else []
    info = NetworkInfo(
        at=exits,
        num_classes=num_classes,
        final=final,
        end=end,
        input_shape=shape,
        source=source or ("hf:" if config else ""),
        layout=layout,
        inputs=spec.names,
        dtypes=dtypes,
        config=config,
        head=head,
        neck_share=neck_share,
        input_shapes=spec.shapes,
        groups=named,
        task=task,
        map_offsets=tuple(m.offset for m in moved),
        feature_offsets=tuple(m.feature_offset for m in moved),
    )
    warn_of_small_reach(geometry, exits, shape[1:], head)
    net = ExitNet(pieces.stages, chosen, cost, head_share, info, spec, module)
    net.heads.train(module.training)
    for stage in pieces.stages:
        stage.training = module.training
    return net


def _check_arguments(
    backbone: object, at: Sequence[str] | int, num_classes: int, placement: Placement, task: Task | None
) -> None:
    if not isinstance(backbone, nn.Module | str):
        raise InputError(f"backbone: expected an nn.Module or a source such as 'small', got {type(backbone).__name__}")
    names = [] if isinstance(at, int) and not isinstance(at, bool) else at
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"at: expected a list of module names such as ['layer1', 'layer2'], got {at!r}")
    if not isinstance(num_classes, int) or num_classes < (least := 1 if task == "regression" else 2):
        raise InputError(f"num_classes: expected an integer of {least} or more, got {num_classes!r}")
    if placement != "cost" and not isinstance(at, int):
        raise InputError(
            f"placement: only with a number in at, got placement={placement!r} and at={list(at)}. Fix: leave placement out, "
            f"or pass at={len(at)}"
        )


def _check_task(
    task: Task | None, pieces: Pieces, modality: Modality, head: HeadKind | None, final: Final, end: str
) -> Task:
    """Return the task that the arguments and the backbone's own logits imply; raise where they contradict each other."""
    is_dense = pieces.traced.is_dense
    if is_dense and (modality is not IMAGE or task not in ("segmentation", None)):
        shape = pieces.traced.shape_of(pieces.traced.values.logits)
        raise AttachError(
            f"backbone: its forward returns a map {shape} (as of an encoder-decoder such as U-Net), which is for one class "
            f"a pixel of images, got task={task!r} and {modality.plural}. Fix: leave task out, or make a classifier of the "
            "encoder: its last features, pooled, and a linear layer"
        )
    if task in CONTINUOUS:
        _check_continuous(task, pieces, head, final)
    if task != "segmentation" and not is_dense:
        return task or "classes"
    if final == "keep" and not is_dense:
        raise AttachError("final: 'keep' keeps a classifier of whole images, not of pixels. Fix: pass final='head'")
    if head == "average" or end:
        wrong = "head: 'average' is for classifiers" if head == "average" else "end: it is for classifiers"
        raise AttachError(f"{wrong} of whole images, and this network answers each pixel. Fix: leave it out")
    return "segmentation"


def _check_continuous(task: Task, pieces: Pieces, head: HeadKind | None, final: Final) -> None:
    if head == "average":
        raise AttachError(f"head: 'average' is for classes, and this network answers {ANSWERS[task]}. Fix: leave it out")
    if task == "regression" and final == "keep":
        raise AttachError("final: 'keep' is not there yet for networks that answer numbers. Fix: pass final='head'")
    if task == "embedding":
        if final != "keep":
            raise AttachError("final: the last exit's vector is the backbone's own. Fix: pass final='keep'")
        norms = run_plain(pieces, make_random_inputs(pieces, 2), False).norm(dim=1)
        if not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
            raise AttachError(
                f"backbone: expected vectors of norm 1, so that all lie in one space, got {norms[0]:.3g}. Fix: end its "
                "forward with F.normalize(x, dim=1)"
            )


def _split_and_verify(
    module: nn.Module, at: Sequence[str], example: Inputs, layout: Kind | None, sides: tuple[int, int], carry_input: bool
) -> Pieces:
    """Cut by torch.fx, or if the pieces do not equal the plain backbone, by torch.export; verified either way."""
    cut = partial(
        split, module, at, example, layout, least_side=sides[0], least_dense_side=sides[1], carry_input=carry_input
    )
    pieces = cut()
    try:
        verify(pieces)
    except TraceMismatchError:
        with suppress(AttachError):
            if not pieces.exact_size:  # it was not cut by torch.export
                pieces = cut(export=True)
                verify(pieces)
                return pieces
        raise
    return pieces


def _make_heads(
    pieces: Pieces, num_classes: int, final: Final, kind: HeadKind, budget: float, groups: Groups, task: Task
) -> list[ExitHead]:
    like, count = next(pieces.traced.backbone.parameters()), len(pieces.stages)
    made = (make_head(pieces, k, num_classes, kind, budget, groups, task) for k in range(count))
    heads = [head.to(like.device, like.dtype) for head in made]
    if final == "keep":
        outputs = pieces.traced.shape_of(pieces.traced.values.logits)[1]
        if outputs != num_classes:
            raise AttachError(
                f"num_classes: the backbone's own classifier has {outputs} outputs, got {num_classes}. Fix: pass that "
                "number, or final='head' for a new classifier"
            )
        layout = pieces.features[-1].layout
        if task == "segmentation":
            return [*heads[:-1], KeptPixelHead(pieces.tail, None, layout)]
        if task == "embedding":
            return [*heads[:-1], KeptVectorHead(pieces.tail, None, layout)]
        kept = KeptHead(pieces.tail, pieces.pooled_linear, layout)
        is_exact = kept.classifier is None or _is_exact(pieces, kept, kept.classifier)
        heads[-1] = kept if is_exact else KeptHead(pieces.tail, None, layout)
    return heads


def _replace_heads(heads: list[ExitHead], others: Mapping[int, OtherHead]) -> None:
    for k, make in others.items():
        if k not in range(len(heads)):
            raise InputError(f"heads: expected exits from 0 to {len(heads) - 1}, got {k!r}. Fix: count exits from 0.")
        like, heads[k] = next(heads[k].parameters()), make(heads[k])
        require(heads[k], ExitHead, f"heads[{k}]", "return a subclass of exitlens.model.heads.ExitHead")
        heads[k].to(like.device, like.dtype)


def _is_exact(pieces: Pieces, head: ExitHead, linear: nn.Linear) -> bool:
    """Return whether the evidence sums to the logits: pooling over other axes before the linear layer prevents that."""
    if linear.in_features != pieces.features[-1].channels:
        return False
    activations: Activations = make_random_inputs(pieces, 2)
    with torch.no_grad():
        for stage in pieces.stages:
            with switch_mode(stage, False):
                activations = stage(*activations)
        with switch_mode(head, False), fill_zero_parameters(linear):
            out = head(*activations)
            total = out.evidence.flatten(2).sum(2) + (0 if linear.bias is None else linear.bias)
    return torch.allclose(total, out.logits, rtol=1e-3, atol=1e-3 * max(1.0, out.logits.abs().max().item()))


def _measure_cost(pieces: Pieces, heads: Sequence[ExitHead], final: Final, plain: int) -> tuple[Tensor, float]:
    """Return the cumulative cost at every exit, and the share of the heads, in units of the plain backbone's MACs."""
    total, at_heads, cost = 0, 0, []
    activations: Activations = list_tensors(pieces.traced.example)
    for k, (stage, head) in enumerate(zip(pieces.stages, heads, strict=True)):
        with switch_mode(stage, False), switch_mode(head, False):
            macs, activations = count_macs(stage, *activations)
            head_macs, _ = count_macs(head.classify, *activations)
        at_heads += 0 if final == "keep" and k == len(heads) - 1 else head_macs
        cost.append((total + macs + head_macs) / plain)
        total += macs + (0 if isinstance(head, SkipHead) else head_macs)  # whose answers only samples that leave pay for
    if any(later <= earlier for earlier, later in pairwise(cost)):  # as exits that skip stages may
        raise AttachError(f"at: expected exits that cost more the later they are, got {cost}. Fix: name fewer modules")
    return torch.tensor(cost), at_heads / plain
