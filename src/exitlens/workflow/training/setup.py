"""What `exitlens fit` sets up from names: image size and normalisation, the training and validation sets, the network."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from exitlens.data.batches import iterate_inputs
from exitlens.data.sets import KINDS, SampleSet, check_files, set_reading
from exitlens.data.sources import DataSource
from exitlens.data.texts import TextSet
from exitlens.errors import InputError, import_extra, suggest
from exitlens.modalities import TEXT, find_reader
from exitlens.model.attach import attach
from exitlens.model.backbones.build import (
    NORMALISATIONS,
    PROCESSOR,
    TOKENIZER,
    Normalisation,
    build_backbone,
    read_normalisation,
    read_tokenizer,
)
from exitlens.model.backbones.weights import load_weights
from exitlens.model.cutting.placement import check_places
from exitlens.model.network import ExitNet
from exitlens.types.inputs import can_be_channels_last, list_tensors
from exitlens.types.preprocessing import Preprocess, Preprocessing, TextPreprocess, VectorPreprocess
from exitlens.types.settings import AS_RECORDED, NetworkSettings, ReadSettings
from exitlens.types.tasks import BY_LABELS
from exitlens.types.weights import Say

TEXT_LENGTH = 64
BAD_AT_START = 100
LARGE = 128  # pixels of a side, for networks made for 224 and more
OWN = "own"


def choose_size(backbone: str, has_weights: bool) -> int:
    """Return the pixels of an image's sides for a backbone when nobody has chosen them; 0 means the data's own default.

    Large networks shrink small images to a map of a few cells, so torchvision's, and others with pretrained weights, get 128
    unless they take one size only. Most weights saw 224 pixels, which cost three times as much.
    """
    family, _, name = backbone.partition(":")
    if family == "hf" and (Path(name) / "config.json").is_file():
        with suppress(ValueError, AttributeError):  # a damaged file is refused where the network is built
            size = json.loads((Path(name) / "config.json").read_text(encoding="utf-8")).get("image_size")
            size = size[0] if isinstance(size, list) and size else size
            if isinstance(size, int):
                return size
            return LARGE if has_weights and (Path(name) / PROCESSOR).is_file() else 0
    if family == "timm":
        config = import_extra("timm", "timm", f"backbone {backbone}").get_pretrained_cfg(name, allow_unregistered=True)
        if config is not None and config.fixed_input_size:
            return int(config.input_size[-1])
        least = int(config.min_input_size[-1]) if config is not None and config.min_input_size else 0
        return max(LARGE, least) if has_weights else 0
    if family == "torchvision":
        return 224 if "vit" in name else LARGE  # vit_b_16, maxvit_t: built for that size
    return 0


def choose_normalisation(settings: NetworkSettings) -> tuple[Normalisation | None, str]:
    """Choose mean and std of a new network's images (``None``: the data's usual), with a line that says whose they are."""
    word, backbone = settings.normalise, settings.backbone
    if word not in ("", OWN, *NORMALISATIONS):
        raise InputError(f"normalise: expected one of {', '.join((OWN, *NORMALISATIONS))}, got {word!r}")
    if word in NORMALISATIONS:
        return NORMALISATIONS[word], f"pixels: {NORMALISATIONS[word]}"
    if not word and (not settings.has_weights or backbone == "small"):
        return None, ""
    if (normalisation := read_normalisation(backbone)) is not None:
        return normalisation, f"pixels: {normalisation}"
    silent, others = f"{backbone} does not say which mean and std its weights were trained with", " or ".join(NORMALISATIONS)
    if word == OWN:
        raise InputError(f"normalise: {silent}. Fix: choose {others}.")
    return None, f"pixels: {silent}, so those of the data are taken; choose others with --normalise {others}"


def load_training_sets(
    settings: NetworkSettings,
    source: DataSource,
    reading: ReadSettings = AS_RECORDED,
    say: Say | None = None,
    bar: Progress | None = None,
) -> tuple[SampleSet, SampleSet]:
    """Load the training and validation splits; texts use the backbone's own tokenizer, if it comes with one.

    With a ``bar``, bad image files of all splits are looked for first, unless they may be skipped.
    """
    preprocess, line = _choose_preprocess(settings, source)
    splits = source.load_splits(("train", "validation"), skip_bad=reading.skip_bad, preprocess=preprocess)
    if say is not None:
        for note in filter(None, (*splits.notes, line)):
            say(note)
    if bar is not None and not reading.skip_bad:
        check_files(splits.parts, reading.workers, bar)
    train, validation = (set_reading(splits.sets[name], reading.workers, reading.cache) for name in ("train", "validation"))
    return train, validation


def _choose_preprocess(settings: NetworkSettings, source: DataSource) -> tuple[Preprocessing | None, str]:
    """Choose how samples become inputs (``None``: the data's usual way), with a line that says so."""
    modality, backbone = source.modality, settings.backbone
    if settings.normalise and (modality is TEXT or modality in KINDS):
        raise InputError(f"normalise: it is for images, {source.name} has {modality.plural}. Fix: leave it out.")
    if modality in KINDS:
        return None, ""
    if modality is TEXT:
        if (tokenizer := read_tokenizer(backbone)) is not None:
            line = f"texts: tokens by the tokenizer of {backbone}"
            return TextPreprocess(tokenizer, source.size or TEXT_LENGTH), line
        line = f"texts: no tokenizer comes with {backbone}: the words of the data get numbers that its weights do not know"
        return None, line if settings.has_weights else ""
    if backbone.startswith("hf:") and (Path(backbone.removeprefix("hf:")) / TOKENIZER).is_file():
        raise InputError(f"backbone: {backbone} reads texts, {source.name} has images")
    normalisation, line = choose_normalisation(settings)
    if normalisation is None:
        return None, line
    return Preprocess((source.size or 64,) * 2, normalisation.mean, normalisation.std), line


def build_network(settings: NetworkSettings, train: SampleSet, *, seed: int = 0, say: Say | None = None) -> ExitNet:
    """Build the backbone for the data's classes and attach exits; convolutions are in the fast channels_last format."""
    torch.manual_seed(seed)
    backbone = settings.backbone
    if train.modality is TEXT and not backbone.startswith("hf:"):
        raise InputError(f"backbone: {backbone!r} reads images, the data are texts. Fix: use hf:DIRECTORY or hf:bert.")
    example = next(iterate_inputs(train.first(BAD_AT_START), 1))  # the first sample that can be read
    channels = train.modality.count_channels(list_tensors(example)[0].shape[1:])
    vocabulary = train.preprocess.vocabulary_size if isinstance(train, TextSet) else None
    build = partial(build_backbone, backbone, len(train.classes), channels, vocabulary=vocabulary, modality=train.modality)
    is_encoder = train.task == "embedding"
    if is_encoder and (not settings.pretrained or train.modality is not TEXT):
        raise InputError("task: vectors are those of a trained encoder of texts. Fix: --backbone hf:DIR --pretrained.")
    words = settings.exits  # names such as layer1,layer2, or a number
    exits = int(words) if words.lstrip("-").isdigit() else [name.strip() for name in words.split(",") if name.strip()]
    exits = exits or []
    if isinstance(exits, list) and exits and settings.has_weights:
        with torch.random.fork_rng(devices=[]):  # unknown names are reported before weights are downloaded or read
            check_places(build(), exits, example)
    plain = build(pretrained=settings.pretrained, say=say)
    reads = train.modality if backbone == "small" else find_reader(plain.forward)
    if reads is not train.modality:
        raise InputError(f"backbone: {backbone} reads {reads.plural}, the data are {train.modality.plural}")
    config: Any = getattr(plain.encoder if is_encoder else plain, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(train, TextSet) and isinstance(positions, int) and 0 < positions < train.preprocess.length:
        raise InputError(
            f"size: expected at most the {positions} positions of {backbone}, got {train.preprocess.length} tokens. "
            f"Fix: use --size {positions} or less."
        )
    if not words and not settings.end:
        usual = ["layer1", "layer2", "layer3"]
        exits = usual if settings.placement == "cost" and set(usual) <= dict(plain.named_children()).keys() else 3
    if settings.init_weights is not None:
        report = load_weights(plain, settings.init_weights, strict=settings.strict_weights)
        if say is not None:
            say(str(report))
    net = attach(
        plain,
        exits,
        config.hidden_size if is_encoder else len(train.classes),
        example,
        final="keep" if settings.keep_final or is_encoder else "head",
        end=settings.end,
        placement=settings.placement,
        head=settings.head or train.modality.head,  # type: ignore[arg-type]
        neck_share=settings.neck_share,
        groups=read_groups(settings.groups, train.preprocess) if settings.groups else None,
        task=None if train.task in BY_LABELS else train.task,
    )
    net.describe(source=backbone, classes=train.classes, preprocess=train.preprocess)
    return net.to(memory_format=torch.channels_last) if can_be_channels_last(net) else net  # type: ignore[call-overload]


def read_groups(words: str, preprocess: Preprocessing) -> dict[str, list[int]]:
    """Read groups of a vector's features from words such as ``"blood=age|pressure,heart=rate"``: the columns of each."""
    names = preprocess.names if isinstance(preprocess, VectorPreprocess) else ()
    if not names:
        raise InputError("groups: expected data that are vectors of named features. Fix: leave the groups out.")
    groups = dict[str, list[int]]()
    for part in filter(None, map(str.strip, words.split(","))):
        name, equals, members = part.partition("=")
        if not equals or not name.strip():
            raise InputError(f"groups: expected NAME=FEATURE|FEATURE,..., got {part!r:.60}")
        features = [feature.strip() for feature in members.split("|")]
        for feature in features:
            if feature not in names:
                raise InputError(f"groups: the data have no feature {feature!r}.{suggest(feature, names)}")
        groups[name.strip()] = [names.index(feature) for feature in features]
    return groups
