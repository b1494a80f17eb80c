"""attach: a backbone with exits, checked against the plain backbone before it is returned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exitlens.errors import AttachError, HeadError, InputError, TraceMismatchError
from exitlens.modalities import recognise_example
from exitlens.model.backbones.build import build_backbone
from exitlens.model.backbones.transformers import read_config
from exitlens.model.cutting.macs import count_macs
from exitlens.model.cutting.modes import fill_zero_parameters, preserve_state, switch_mode
from exitlens.model.cutting.placement import By, check_by, place_exits
from exitlens.model.cutting.split import Split, split
from exitlens.model.cutting.stage import Activations
from exitlens.model.cutting.verify import admit, make_random_inputs, probe
from exitlens.model.heads import HEADS, AverageHead, EvidenceHead, ExitHead, HeadKind, KeptHead
from exitlens.model.info import Final, NetworkInfo
from exitlens.model.input_spec import InputSpec, check_example
from exitlens.model.layouts import KINDS, Kind
from exitlens.model.necks import NECK_SHARE, fit_neck
from exitlens.model.network import ExitNet
from exitlens.types.inputs import Inputs, list_input_names, list_tensors, map_inputs


def attach(
    backbone: nn.Module | str,
    at: Sequence[str] | int,
    num_classes: int,
    example: Inputs,
    *,
    final: Final = "head",
    layout: Kind | None = None,
    by: By = "cost",
    head: HeadKind = "evidence",
) -> ExitNet:
    """Attaches exits to a backbone; its weights are shared, not copied.

    Args:
        backbone: a module that returns logits (or a dict or named tuple with ``logits``), or a source such as
            ``"torchvision:resnet18"`` or ``"hf:DIRECTORY"``.
        at: names of the modules after which the early exits stand, in the order of execution; or how many early exits
            to place at equal shares of cost or time (see ``by``, and :func:`~exitlens.model.cutting.placement.place_exits`).
        num_classes: ``C`` of every exit.
        example: images ``(B,C,H,W)`` of the size the network will see, or tokens ``(B,N)``, alone or by name
            (``{"input_ids": ..., "attention_mask": ...}``); one sample is enough.
        final: ``"head"`` gives the final exit an evidence head, to be trained; ``"keep"`` leaves it the backbone's own
            classifier, so that its outputs stay those of the plain backbone.
        layout: ``nchw``, ``nhwc`` or ``tokens`` for all exits; by default found out from the shapes.
        by: with a number in ``at``, equal shares of ``"cost"`` (multiply-accumulates), or of the ``"time"`` that the
            backbone takes on this machine; near a tie, the next run may choose a neighbouring place.
        head: ``"evidence"``: attention pooling on the features as they are. ``"context"``: the early exits get a
            :class:`~exitlens.model.necks.ContextNeck` before it (images only); early answers are much better for about 1 %
            more cost, and every early map lies on the final exit's grid. ``"average"``: average pooling, for comparison.

    Returns:
        The network with ``len(at) + 1`` exits, in the mode (train or eval) of the backbone.

    Raises:
        AttachError: where the backbone cannot be cut; InputError: where an argument does not fit.
    """
    shape = _check_arguments(at, num_classes, example, final, by, head)
    if layout not in (None, *KINDS):
        raise InputError(f"layout: expected one of {KINDS} or None, got {layout!r}")
    if not isinstance(backbone, nn.Module | str):
        raise InputError(f"backbone: expected an nn.Module or a source such as 'small', got {type(backbone).__name__}")
    source = backbone if isinstance(backbone, str) else ""
    channels = recognise_example(example).count_channels(shape)
    module = build_backbone(backbone, num_classes, channels) if isinstance(backbone, str) else backbone
    admit(module)
    example = map_inputs(example, lambda t: t[:1].detach())
    with preserve_state(module):
        at = place_exits(module, example, at, layout, by=by) if isinstance(at, int) else at
        pieces = _split_and_probe(module, at, example, layout)
        if at and math.prod(pieces.sizes[-1]) == 1:
            raise AttachError(
                f"example: at {tuple(shape[1:])} pixels the final features are 1x1, so there is no map for the early exits "
                "to agree with: use larger images, or a backbone that shrinks them less"
            )
        plain = _plain_macs(pieces, example)
        heads = _heads(module, pieces, num_classes, example, final, head, plain)
        cost, head_share = _measure(pieces, heads, example, final, plain)
    config = read_config(module)
    info = NetworkInfo(
        tuple(at),
        num_classes,
        final,
        shape,
        source or ("hf:" if config else ""),
        layout=layout,
        inputs=list_input_names(example),
        dtypes=tuple(str(t.dtype).removeprefix("torch.") for t in list_tensors(example) if not t.is_floating_point()),
        config=config,
        head=head,
    )
    prefix = pieces.layouts[-1].prefix if pieces.layouts[-1].grid is None else 0
    dtypes = tuple(t.dtype for t in list_tensors(example) if not t.is_floating_point())
    input_spec = InputSpec(info.inputs, shape, pieces.exact_size, tuple(pieces.vocabulary), prefix, dtypes)
    net = ExitNet(pieces.stages, heads, cost, head_share, info, input_spec, module)
    net.heads.train(module.training)
    for stage in pieces.stages:
        stage.training = module.training
    return net


def _split_and_probe(module: nn.Module, at: Sequence[str], example: Inputs, layout: Kind | None) -> Split:
    """The pieces, proved equal to the plain backbone; where torch.fx's are not, by torch.export."""
    pieces = split(module, at, example, layout)
    try:
        probe(module, pieces, example)
    except TraceMismatchError:
        if pieces.exact_size:  # torch.export it was
            raise
        exported = _split_by_export(module, at, example, layout)
        if exported is None:
            raise
        return exported
    return pieces


def _split_by_export(module: nn.Module, at: Sequence[str], example: Inputs, layout: Kind | None) -> Split | None:
    """The pieces by torch.export, if that can follow the forward and they equal the plain backbone."""
    try:
        pieces = split(module, at, example, layout, export=True)
        probe(module, pieces, example)
    except AttachError:
        return None
    return pieces


def _heads(
    module: nn.Module, pieces: Split, num_classes: int, example: Inputs, final: Final, kind: HeadKind, plain: int
) -> list[ExitHead]:
    heads = [_head(kind, pieces, k, num_classes, plain) for k in range(len(pieces.stages))]
    parameter = next(module.parameters())
    for head in heads:
        head.to(parameter.device, parameter.dtype)
    if final == "keep":
        if pieces.outputs != num_classes:
            raise AttachError(
                f"num_classes: the backbone's own classifier has {pieces.outputs} outputs, got {num_classes}: pass that "
                "number, or final='head' for a new classifier"
            )
        heads[-1] = KeptHead(pieces.tail, pieces.pooled_linear, pieces.layouts[-1])
        if pieces.pooled_linear is not None and not _is_exact(pieces, pieces.pooled_linear, heads[-1], example):
            heads[-1] = KeptHead(pieces.tail, None, pieces.layouts[-1])
    return heads


def _head(kind: HeadKind, pieces: Split, k: int, num_classes: int, plain: int) -> ExitHead:
    channels, layout, size, last = pieces.channels[k], pieces.layouts[k], pieces.sizes[k], len(pieces.stages) - 1
    if kind == "average":
        return AverageHead(channels, num_classes, layout)
    if kind == "evidence" or k == last:
        return EvidenceHead(channels, num_classes, layout)
    if len(size) != 2 or len(pieces.sizes[-1]) != 2:
        raise HeadError("head: 'context' mixes over the plane of an image: for sequences, take 'evidence'")
    return EvidenceHead(channels, num_classes, layout, fit_neck(channels, size, pieces.sizes[-1], NECK_SHARE * plain / last))


def _is_exact(pieces: Split, name: str, head: ExitHead, example: Inputs) -> bool:
    """Whether the evidence of pooling and a linear layer sums to the logits: pooling over other axes, say, does not."""
    linear = pieces.tail.body.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    if linear.in_features != pieces.channels[-1]:
        return False
    activations: Activations = make_random_inputs(example, pieces, 2)
    with torch.no_grad():
        for stage in pieces.stages:
            with switch_mode(stage, False):
                activations = stage(*activations)
        with switch_mode(head, False), fill_zero_parameters(linear):
            out = head(*activations)
            total = out.evidence.flatten(2).sum(2) + (0 if linear.bias is None else linear.bias)
    return torch.allclose(total, out.logits, rtol=1e-3, atol=1e-3 * max(1.0, out.logits.abs().max().item()))


def _check_arguments(
    at: Sequence[str] | int, num_classes: int, example: Inputs, final: str, by: str, head: str
) -> tuple[int, ...]:
    names = [] if isinstance(at, int) and not isinstance(at, bool) else at
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"at: expected a list of module names such as ['layer1', 'layer2'], got {at!r}")
    if not isinstance(num_classes, int) or num_classes < 2:
        raise InputError(f"num_classes: expected an integer of 2 or more, got {num_classes!r}")
    if final not in ("head", "keep"):
        raise InputError(f"final: expected 'head' or 'keep', got {final!r}")
    if head not in HEADS:
        raise InputError(f"head: expected one of {HEADS}, got {head!r}")
    check_by(by)
    if by != "cost" and not isinstance(at, int):
        raise InputError(
            f"by: only with a number in at, got by={by!r} and at={list(at)}: leave by out, or pass at={len(at)}"
        )
    return check_example(example)


def _plain_macs(pieces: Split, example: Inputs) -> int:
    with switch_mode(pieces.whole, False):
        plain, _ = count_macs(pieces.whole, *list_tensors(example))
    if plain == 0:
        raise AttachError("backbone: PyTorch's counter finds no multiply-accumulates in it, so its exits have no cost")
    return plain


def _measure(pieces: Split, heads: Sequence[ExitHead], example: Inputs, final: Final, plain: int) -> tuple[Tensor, float]:
    """Cumulative cost at every exit, and the share of the heads, in units of the plain backbone's MACs."""
    inputs = list_tensors(example)
    total, at_heads, cost = 0, 0, []
    activations: Activations = inputs
    for k, (stage, head) in enumerate(zip(pieces.stages, heads, strict=True)):
        with switch_mode(stage, False), switch_mode(head, False):
            macs, activations = count_macs(stage, *activations)
            head_macs, _ = count_macs(head.classify, *activations)
        total += macs + head_macs
        at_heads += 0 if final == "keep" and k == len(heads) - 1 else head_macs
        cost.append(total / plain)
    return torch.tensor(cost), at_heads / plain
