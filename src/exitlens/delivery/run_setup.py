"""Setting up a run: training data and a new network from the names that `exitlens fit` is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitlens.data.batches import iterate_inputs
from exitlens.data.lazy import set_reading
from exitlens.data.sources import DataSource
from exitlens.data.splits import SampleSet
from exitlens.data.texts import TextSet
from exitlens.errors import HeadError, InputError, import_extra
from exitlens.modalities import IMAGE, TEXT, find_reader
from exitlens.model.attach import attach
from exitlens.model.backbones.build import build_backbone
from exitlens.model.backbones.matching import Say
from exitlens.model.backbones.transformers import read_tokenizer
from exitlens.model.backbones.weights import load_weights
from exitlens.model.network import ExitNet
from exitlens.types import TextPreprocess
from exitlens.types.inputs import list_tensors

TEXT_LENGTH = 64
BAD_AT_START = 100


def choose_size(backbone: str, pretrained: bool) -> int:
    """Pixels of an image's sides for a backbone, where nobody said; 0: the data's own default.

    A network of timm or transformers that takes one size only gets that. Large networks shrink small images to a map of a
    few cells, so torchvision's get 128, and so do timm's with pretrained weights.
    """
    family, _, name = backbone.partition(":")
    if family == "hf" and (Path(name) / "config.json").is_file():
        with suppress(ValueError, AttributeError):  # a damaged file is refused where the network is built
            size = json.loads((Path(name) / "config.json").read_text(encoding="utf-8")).get("image_size")
            return size if isinstance(size, int) else 0
    if family == "timm":
        known = import_extra("timm", "timm", f"backbone {backbone}").get_pretrained_cfg(name, allow_unregistered=True)
        if known is not None and known.fixed_input_size:
            return int(known.input_size[-1])
    return 128 if family == "torchvision" or (family == "timm" and pretrained) else 0


def load_training_sets(
    backbone: str,
    source: DataSource,
    skip_bad: bool = False,
    *,
    workers: int | None = None,
    cache: Path | None = None,
    say: Callable[[str], object] | None = None,
) -> tuple[SampleSet, SampleSet]:
    """Loads the training and validation splits; texts use the backbone's own tokenizer, if it comes with one.

    Args:
        backbone: its source.
        source: the data.
        skip_bad: leave out what cannot be read.
        workers: processes that decode lazy sets, see :func:`set_reading`.
        cache: directory for the pixels of lazy sets, see :func:`set_reading`.
        say: is given lines on where the splits come from.
    """
    if source.modality is IMAGE and backbone.startswith("hf:") and read_tokenizer(backbone):
        raise InputError(f"backbone: {backbone} reads texts, {source.name} has images")
    own = read_tokenizer(backbone) if source.modality is TEXT else None
    preprocess = None if own is None else TextPreprocess(own, source.size or TEXT_LENGTH)
    found = source.load_splits(("train", "validation"), skip_bad=skip_bad, preprocess=preprocess)
    if say is not None:
        for note in found.notes:
            say(note)
    return set_reading(found.sets["train"], workers, cache), set_reading(found.sets["validation"], workers, cache)


def _check_reads(plain: nn.Module, backbone: str, train: SampleSet) -> None:
    """Raises :class:`InputError` for a text classifier given images, the reverse, or texts longer than it has positions."""
    reads = find_reader(plain.forward)
    if reads is not train.modality:
        raise InputError(f"backbone: {backbone} reads {reads.plural}, the data are {train.modality.plural}")
    most = getattr(getattr(plain, "config", None), "max_position_embeddings", None)
    if isinstance(train, TextSet) and isinstance(most, int) and 0 < most < train.preprocess.length:
        raise InputError(
            f"size: {train.preprocess.length} tokens, {backbone} has {most} positions: use --size {most} or less"
        )


def _choose_exits(plain: nn.Module, exits: str, placement: str) -> list[str] | int:
    if exits:
        return int(exits) if exits.lstrip("-").isdigit() else [name.strip() for name in exits.split(",") if name.strip()]
    usual = ["layer1", "layer2", "layer3"]
    return usual if placement == "cost" and set(usual) <= dict(plain.named_children()).keys() else 3


def build_network(
    backbone: str,
    exits: str,
    train: SampleSet,
    *,
    seed: int = 0,
    keep_final: bool = False,
    pretrained: bool = False,
    weights: Path | None = None,
    strict_weights: bool = False,
    placement: str = "cost",
    head: str = "",
    say: Say | None = None,
) -> ExitNet:
    """Builds the backbone for the data's classes and attaches exits; convolutions are in the fast channels_last format.

    Args:
        backbone: its source.
        exits: comma-separated module names, or a number; empty means ``layer1,layer2,layer3`` where the backbone has these
            modules and ``placement`` is ``"cost"``, else 3.
        train: the data, which gives the classes and, with its first sample, the example.
        seed: of the weights.
        keep_final: keep the backbone's own classifier as final exit.
        pretrained: start from the library's weights.
        weights: start from a local state dict.
        strict_weights: every tensor of it has to fit, the classifier too.
        placement: place a number of exits at equal shares of ``"cost"`` or ``"time"``.
        head: kind of exit heads, see :func:`attach`; empty means ``context`` for images and ``evidence`` for texts.
        say: called with a line on what was loaded of given weights, and for each kind of tensor that was not.

    Raises:
        InputError, AttachError, BundleError: see :func:`build_backbone`, :func:`attach` and :func:`load_weights`.
    """
    torch.manual_seed(seed)
    if train.modality is TEXT and not backbone.startswith("hf:"):
        raise InputError(f"backbone: {backbone!r} reads images, the data are texts: use hf:DIRECTORY or hf:bert")
    example = next(iterate_inputs(train.first(BAD_AT_START), 1))  # the first that can be read
    channels = train.modality.count_channels(list_tensors(example)[0].shape[1:])
    vocabulary = train.preprocess.vocabulary_size if isinstance(train, TextSet) else None
    plain = build_backbone(backbone, len(train.classes), channels, pretrained, vocabulary=vocabulary, say=say)
    _check_reads(plain, backbone, train)
    if weights is not None:
        report = load_weights(plain, weights, strict=strict_weights)
        if say is not None:
            say(str(report))
    at = _choose_exits(plain, exits, placement)
    how: dict[str, Any] = {"final": "keep" if keep_final else "head", "placement": placement}
    how["head"] = head or train.modality.head
    try:
        net = attach(plain, at, len(train.classes), example, **how)
    except HeadError:
        if head:
            raise
        how["head"] = "evidence"  # a neck needs features in a plane, and nobody asked for it
        net = attach(plain, at, len(train.classes), example, **how)
    net.describe(source=backbone, classes=train.classes, preprocess=train.preprocess)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
