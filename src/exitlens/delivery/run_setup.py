"""Setting up a run: training data and a new network from the names that `exitlens fit` is given."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitlens.data.batches import iterate_inputs
from exitlens.data.sets import KINDS, set_reading
from exitlens.data.sources import DataSource
from exitlens.data.splits import SampleSet
from exitlens.data.texts import TextSet
from exitlens.errors import InputError, import_extra, suggest
from exitlens.modalities import TEXT, find_reader
from exitlens.model.attach import attach
from exitlens.model.backbones.build import TOKENIZER, build_backbone, read_tokenizer
from exitlens.model.backbones.normalisation import HALF, PROCESSOR, Normalisation, read_normalisation
from exitlens.model.backbones.weights import Say, load_weights
from exitlens.model.network import ExitNet
from exitlens.types import IMAGENET_MEAN, IMAGENET_STD, Preprocess, Preprocessing, TextPreprocess, VectorPreprocess
from exitlens.types.inputs import can_be_channels_last, list_tensors

TEXT_LENGTH = 64
BAD_AT_START = 100
LARGE = 128  # pixels of a side, for networks made for 224 and more
OWN = "own"
NORMALISATIONS = {
    "imagenet": Normalisation(IMAGENET_MEAN, IMAGENET_STD, "of ImageNet"),
    "half": Normalisation(HALF, HALF, "0.5 and 0.5, as asked for"),
}


def choose_size(backbone: str, pretrained: bool) -> int:
    """Pixels of an image's sides for a backbone, where nobody said; 0: the data's own default.

    A network that takes one size only gets that. Large networks shrink small images to a map of a few cells, so
    torchvision's get 128, and so do others with pretrained weights. Most weights saw 224 pixels, which cost three times as
    much.
    """
    family, _, name = backbone.partition(":")
    if family == "hf" and (Path(name) / "config.json").is_file():
        with suppress(ValueError, AttributeError):  # a damaged file is refused where the network is built
            size = json.loads((Path(name) / "config.json").read_text(encoding="utf-8")).get("image_size")
            size = size[0] if isinstance(size, list) and size else size
            if isinstance(size, int):
                return size
            return LARGE if pretrained and (Path(name) / PROCESSOR).is_file() else 0
    if family == "timm":
        known = import_extra("timm", "timm", f"backbone {backbone}").get_pretrained_cfg(name, allow_unregistered=True)
        if known is not None and known.fixed_input_size:
            return int(known.input_size[-1])
        least = int(known.min_input_size[-1]) if known is not None and known.min_input_size else 0
        return max(LARGE, least) if pretrained else 0
    if family == "torchvision":
        return 224 if "vit" in name else LARGE  # vit_b_16, maxvit_t: built for that size
    return 0


def choose_normalisation(backbone: str, word: str = "", weights: bool = False) -> tuple[Normalisation | None, str]:
    """Mean and standard deviation of a new network's images, and a line that says whose they are.

    Args:
        backbone: its source.
        word: ``own`` (what the backbone's own weights were trained with), ``imagenet`` or ``half`` (0.5 and 0.5); empty:
            ``own`` where there are weights to start from, else the data's usual.
        weights: whether there are.

    Returns:
        ``None`` and no line for the data's usual; ``None`` and a line where there are weights and nobody says theirs.

    Raises:
        InputError: for another word, or ``own`` where nobody says.
    """
    if word not in ("", OWN, *NORMALISATIONS):
        raise InputError(f"normalise: expected {', '.join((OWN, *NORMALISATIONS))}, got {word!r}")
    if word in NORMALISATIONS:
        found: Normalisation | None = NORMALISATIONS[word]
    elif word == OWN or (weights and backbone != "small"):
        found = read_normalisation(backbone)
    else:
        return None, ""
    if found is not None:
        return found, f"pixels: {found}"
    silent = f"{backbone} does not say which mean and std its weights were trained with"
    if word == OWN:
        raise InputError(f"normalise: {silent}: choose {' or '.join(NORMALISATIONS)}")
    return None, f"pixels: {silent}: those of the data are taken; --normalise {' or '.join(NORMALISATIONS)} says others"


def load_training_sets(
    backbone: str,
    source: DataSource,
    skip_bad: bool = False,
    *,
    workers: int | None = None,
    cache: Path | None = None,
    normalise: str = "",
    weights: bool = False,
    say: Say | None = None,
) -> tuple[SampleSet, SampleSet]:
    """Loads the training and validation splits; texts use the backbone's own tokenizer, if it comes with one.

    Args:
        backbone: its source.
        source: the data.
        skip_bad: leave out what cannot be read.
        workers: processes that decode lazy sets, see :func:`set_reading`.
        cache: directory for the pixels of lazy sets, see :func:`set_reading`.
        normalise: mean and standard deviation of images, see :func:`choose_normalisation`.
        weights: whether the backbone starts from weights.
        say: is given lines on where the splits come from, and on how images and texts become inputs.
    """
    modality = source.modality
    how = _choose_texts if modality is TEXT else _choose_scaling if modality in KINDS else _choose_pixels
    preprocess, line = how(backbone, source, normalise, weights)
    found = source.load_splits(("train", "validation"), skip_bad=skip_bad, preprocess=preprocess)
    if say is not None:
        for note in filter(None, (*found.notes, line)):
            say(note)
    return set_reading(found.sets["train"], workers, cache), set_reading(found.sets["validation"], workers, cache)


def _choose_pixels(backbone: str, source: DataSource, normalise: str, weights: bool) -> tuple[Preprocess | None, str]:
    if backbone.startswith("hf:") and (Path(backbone.removeprefix("hf:")) / TOKENIZER).is_file():
        raise InputError(f"backbone: {backbone} reads texts, {source.name} has images")
    chosen, line = choose_normalisation(backbone, normalise, weights)
    return None if chosen is None else Preprocess((source.size or 64,) * 2, chosen.mean, chosen.std), line


def _choose_texts(backbone: str, source: DataSource, normalise: str, weights: bool) -> tuple[TextPreprocess | None, str]:
    if normalise:
        raise InputError(f"normalise: it is for images, {source.name} has texts: leave it out")
    own = read_tokenizer(backbone)
    if own is not None:
        return TextPreprocess(own, source.size or TEXT_LENGTH), f"texts: tokens by the tokenizer of {backbone}"
    unknown = f"texts: no tokenizer comes with {backbone}: the words of the data get numbers that its weights do not know"
    return None, unknown if weights else ""


def _choose_scaling(backbone: str, source: DataSource, normalise: str, weights: bool) -> tuple[None, str]:
    if normalise:
        raise InputError(f"normalise: it is for images, {source.name} has {source.modality.plural}: leave it out")
    return None, ""


def _check_reads(plain: nn.Module, backbone: str, train: SampleSet) -> None:
    """Raises :class:`InputError` for a text classifier given images, the reverse, or texts longer than it has positions."""
    reads = train.modality if backbone == "small" else find_reader(plain.forward)
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
    groups: str = "",
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
        head: kind of exit heads, see :func:`attach`; empty means ``context``, and ``evidence`` for vectors.
        groups: of a vector's features: ``"blood=age|pressure,heart=rate"``, see :func:`read_groups`.
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
    more: dict[str, Any] = {"vocabulary": vocabulary, "say": say, "modality": train.modality}
    plain = build_backbone(backbone, len(train.classes), channels, pretrained, **more)
    _check_reads(plain, backbone, train)
    if weights is not None:
        report = load_weights(plain, weights, strict=strict_weights)
        if say is not None:
            say(str(report))
    at = _choose_exits(plain, exits, placement)
    how: dict[str, Any] = {"final": "keep" if keep_final else "head", "placement": placement}
    how["head"] = head or train.modality.head
    how["groups"] = read_groups(groups, train.preprocess) if groups else None
    net = attach(plain, at, len(train.classes), example, **how)
    net.describe(source=backbone, classes=train.classes, preprocess=train.preprocess)
    return net.to(memory_format=torch.channels_last) if can_be_channels_last(net) else net  # type: ignore[call-overload]


def read_groups(words: str, preprocess: Preprocessing) -> dict[str, list[int]]:
    """Groups of a vector's features from words such as ``"blood=age|pressure,heart=rate"``: the columns of each, by name.

    Raises:
        InputError: for words that are no groups, or features that the data do not have.
    """
    names = preprocess.names if isinstance(preprocess, VectorPreprocess) else ()
    if not names:
        raise InputError("groups: the data are no vectors of features with names: leave them out")
    found = dict[str, list[int]]()
    for part in filter(None, map(str.strip, words.split(","))):
        name, equals, members = part.partition("=")
        if not equals or not name.strip():
            raise InputError(f"groups: expected NAME=FEATURE|FEATURE,..., got {part!r:.60}")
        wanted = [one.strip() for one in members.split("|")]
        for one in wanted:
            if one not in names:
                raise InputError(f"groups: the data have no feature {one!r}.{suggest(one, names)}")
        found[name.strip()] = [names.index(one) for one in wanted]
    return found
