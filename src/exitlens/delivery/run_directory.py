"""Runs: setting one up from names, the record of its data, its policies, and the samples that later verbs read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import Progress

from exitlens.data.batches import iterate_inputs
from exitlens.data.formats import find_format, find_samples, hash_source
from exitlens.data.rows import KEY, ROLES, ColumnChoice, parse_columns
from exitlens.data.sets import KINDS, SampleSet, check_files, set_reading
from exitlens.data.sources import NAMES, DataSource, Target, open_source, read_parts
from exitlens.data.splits import Split, take_split
from exitlens.data.streams import SampleStream, open_stream
from exitlens.data.texts import RawTexts, TextSet
from exitlens.delivery.bundle import find_bundle, load, load_policies
from exitlens.errors import (
    BundleError,
    DataError,
    ExitlensError,
    InputError,
    OutputExistsError,
    PolicyError,
    import_extra,
    suggest,
)
from exitlens.io import make_directory, read_json, write_json
from exitlens.modalities import TEXT, find_reader
from exitlens.model.attach import attach
from exitlens.model.backbones.build import (
    HALF,
    PROCESSOR,
    TOKENIZER,
    Normalisation,
    build_backbone,
    read_normalisation,
    read_tokenizer,
)
from exitlens.model.backbones.weights import Say, load_weights
from exitlens.model.cutting.placement import check_places
from exitlens.model.network import ExitNet
from exitlens.ranks import ALONE, DistributedContext
from exitlens.types import Policy, Trace
from exitlens.types.inputs import can_be_channels_last, list_tensors
from exitlens.types.policies import DEFAULT
from exitlens.types.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    Preprocessing,
    TextPreprocess,
    VectorPreprocess,
)
from exitlens.types.settings import Asking, NetworkSettings, ReadSettings, read_record
from exitlens.workflow.training.record import SETTINGS

ASKINGS = "askings.json"  # beside the bundle's files: certificates that were asked for, by the samples asked
P = TypeVar("P", bound=Preprocessing)
DATA, SKIP_BAD = "data.json", "skip_bad"
AS_RECORDED = ReadSettings()  # the run's own data
TEXT_LENGTH = 64
BAD_AT_START = 100
LARGE = 128  # pixels of a side, for networks made for 224 and more
OWN = "own"
NORMALISATIONS = {
    "imagenet": Normalisation(IMAGENET_MEAN, IMAGENET_STD, "of ImageNet"),
    "half": Normalisation(HALF, HALF, "0.5 and 0.5, as asked for"),
}


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
    words = settings.exits  # names such as layer1,layer2, or a number
    exits = int(words) if words.lstrip("-").isdigit() else [name.strip() for name in words.split(",") if name.strip()]
    if isinstance(exits, list) and exits and settings.has_weights:
        with torch.random.fork_rng(devices=[]):  # unknown names are reported before weights are downloaded or read
            check_places(build(), exits, example)
    plain = build(pretrained=settings.pretrained, say=say)
    reads = train.modality if backbone == "small" else find_reader(plain.forward)
    if reads is not train.modality:
        raise InputError(f"backbone: {backbone} reads {reads.plural}, the data are {train.modality.plural}")
    positions = getattr(getattr(plain, "config", None), "max_position_embeddings", None)
    if isinstance(train, TextSet) and isinstance(positions, int) and 0 < positions < train.preprocess.length:
        raise InputError(
            f"size: expected at most the {positions} positions of {backbone}, got {train.preprocess.length} tokens. "
            f"Fix: use --size {positions} or less."
        )
    if not words:
        usual = ["layer1", "layer2", "layer3"]
        exits = usual if settings.placement == "cost" and set(usual) <= dict(plain.named_children()).keys() else 3
    if settings.init_weights is not None:
        report = load_weights(plain, settings.init_weights, strict=settings.strict_weights)
        if say is not None:
            say(str(report))
    net = attach(
        plain,
        exits,
        len(train.classes),
        example,
        final="keep" if settings.keep_final else "head",
        placement=settings.placement,
        head=settings.head or train.modality.head,  # type: ignore[arg-type]
        groups=read_groups(settings.groups, train.preprocess) if settings.groups else None,
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


@contextmanager
def record_source(
    out: Path, source: DataSource, *, resume: bool, skip_bad: bool = False, ranks: DistributedContext = ALONE
) -> Iterator[None]:
    """Record a run's data in its directory before training starts, and whether what cannot be read is left out.

    If training fails before it writes anything, the record is taken back, so that a corrected call can use ``out`` again.
    Once it has begun, an error about a file that cannot be read says how to go on. Raises :class:`OutputExistsError` if the
    directory is in use and ``resume`` is not set.
    """
    ranks.share(lambda: _write_source(out, source, resume, skip_bad))
    try:
        yield
    except ExitlensError as error:
        if isinstance(error, DataError) and error.is_skippable and (out / SETTINGS).exists():
            error.add_note(f"the run so far is in {out}: the same command with --resume --skip-bad goes on")
        if ranks.is_first and [path.name for path in out.iterdir()] == [DATA]:
            (out / DATA).unlink()
            out.rmdir()
        raise


def _write_source(out: Path, source: DataSource, resume: bool, skip_bad: bool) -> None:
    path = out / DATA
    if out.exists() and any(out.iterdir()) and not resume:
        raise OutputExistsError(f"out: {out} exists and is not empty. Fix: choose another directory, or pass --resume.")
    if path.exists() and _parse_record(path)[0] != source:
        raise DataError(
            f"data: {path} was made with other data. Fix: pass the same files (none added or removed), or another --out."
        )
    make_directory(out, "out")
    write_json(path, source.to_dict() | ({SKIP_BAD: True} if skip_bad else {}))


def remembers_skipping(path: Path, data: str = "") -> bool:
    """Return whether a run left out what could not be read of its data; false for other ``data`` and without a record."""
    try:
        source, skipped = read_source(path)
    except ExitlensError:
        return False
    return skipped and (
        data in ("", source.name) or (data not in NAMES and Path(data).resolve() == Path(source.name).resolve())
    )


def read_source(path: Path) -> tuple[DataSource, bool]:
    """Read which data a run was trained on, and whether it left out what could not be read of them."""
    record = path / DATA
    if not record.is_file():
        record = find_bundle(path).parent / DATA
    if not record.is_file():
        raise DataError(f"data: {path} does not say which data it was trained on. Fix: pass --data.")
    return _parse_record(record)


def _parse_record(path: Path) -> tuple[DataSource, bool]:
    try:
        record = json.loads(path.read_text())
        skip_bad = record.pop(SKIP_BAD, False) is True
        return DataSource(**record), skip_bad
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}). Fix: pass --data.") from error


def read_recorded_exits(out: Path, network: NetworkSettings) -> NetworkSettings:
    """Return the settings to resume a run with: the exits are those placed when it began, if there are as many."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # no run, or a damaged one: fit says so
        names = json.loads((out / SETTINGS).read_text())["network"]["at"]
        if str(len(names)) == (network.exits or "3"):
            return replace(network, exits=",".join(names), placement="cost")
    return network


def shorten_names(paths: Sequence[Path]) -> list[str]:
    """Names each run or bundle after its directory; equal names get numbers."""
    names: list[str] = []
    for path in paths:
        name = path.name if path.name != "bundle" else path.resolve().parent.name
        name = name or path.resolve().name
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def load_calibrated(path: Path, name: str = "") -> tuple[ExitNet, Policy]:
    """Load the network and a policy of a run or bundle (the default one, or that of the name), or raise PolicyError."""
    net, policy = load(path)
    policies = load_policies(path) if name or policy is None else {DEFAULT: policy}
    if (policy := policies.get(name or DEFAULT)) is not None:
        return net, policy
    fix = f"Fix: run exitlens calibrate --bundle {path}"
    if name not in ("", DEFAULT):
        raise PolicyError(f"policy: {path} has none named {name!r}, but {list(policies)}. {fix} --name {name}")
    others = f" of its own, but {list(policies)} by name" if policies else " yet"
    raise PolicyError(f"bundle: {path} has no policy{others}. {fix}")


@contextmanager
def keep_askings(path: Path, trace: Trace) -> Iterator[None]:
    """Give a trace the certificates that its samples were asked for before, and store those asked for meanwhile."""
    ledger, key = find_bundle(path) / ASKINGS, trace.fingerprint()
    known = read_json(ledger) if ledger.is_file() else {}
    trace.askings[:] = (read_record(Asking, asking) for asking in known.get(key, ()))
    before = len(trace.askings)
    try:
        yield
    finally:
        if len(trace.askings) > before:
            write_json(ledger, known | {key: [asdict(asking) for asking in trace.askings]})


def require_preprocess(net: ExitNet, kind: type[P]) -> P:
    """Return how samples become inputs; raise :class:`BundleError` without a record, or for a network of another kind."""
    if isinstance(net.info.preprocess, kind):
        return net.info.preprocess
    modality = net.input_spec.modality
    if modality.preprocess is not kind:
        raise BundleError(f"bundle: its network takes {modality.plural}. Fix: give {modality.given}.")
    raise BundleError(
        f"bundle: it does not say how {modality.plural} become inputs. Fix: net.describe(preprocess=...) and save it again."
    )


def load_samples(path: Path, net: ExitNet, split: Split, reading: ReadSettings = AS_RECORDED) -> SampleSet:
    """Load a split of the own data of a run (or bundle), or other labelled data, whole unless they come in named parts."""
    data = reading.data
    if not data and (reading.columns or reading.group_by):
        raise InputError("columns, group_by: they are for other data. Fix: pass --data, or leave them out.")
    skip_bad = reading.skip_bad or remembers_skipping(path, data)
    if data and data not in NAMES and (kind := find_format(data, reading.columns, [reading.group_by])) is not None:
        rows = ColumnChoice(reading.columns, reading.group_by, task=net.info.task)
        preprocess = require_preprocess(net, find_samples(data, kind, rows).preprocess)
        parts = read_parts(data, kind, rows, Target(known=preprocess), net.info.classes, skip_bad)
        only = len(parts.sets) == 1
        raw = next(iter(parts.sets.values())) if only else take_split(parts.sets, split, 0, data, parts.group_names)
        if isinstance(raw, RawTexts):
            assert isinstance(preprocess, TextPreprocess)
            samples: SampleSet = raw.encode(preprocess)
        else:
            samples = raw
    else:
        source = open_source(data, root=reading.root, size=net.info.input_shape[-1]) if data else read_source(path)[0]
        recorded = net.info.preprocess if isinstance(net.info.preprocess, source.modality.preprocess) else None
        samples = source.load(split, classes=net.info.classes, skip_bad=skip_bad, preprocess=recorded)
    return set_reading(samples, reading.workers, reading.cache)


def stream_samples(
    net: ExitNet, reading: ReadSettings, *, batch_size: int, without: Collection[str] = (), run: Path | None = None
) -> SampleStream:
    """Stream unlabelled samples in batches, without those named in ``without`` and what ``run`` left out of its data."""
    preprocess = require_preprocess(net, net.input_spec.modality.preprocess)
    return open_stream(
        preprocess,
        reading.data,
        batch_size,
        ColumnChoice(reading.columns, reading.group_by),
        skip_bad=reading.skip_bad or (run is not None and remembers_skipping(run, reading.data)),
        workers=reading.workers,
        cache=reading.cache,
        without=without,
    )


def describe_origin(net: ExitNet, policy: Policy, data: str, columns: str = "") -> dict[str, Any]:
    """Describe what the answers to ``data`` depend on, JSON-ready: runs that agree on it may write to the same file."""
    rule = {name: value for name, value in policy.to_dict().items() if name not in ("network", "calibration")}
    preprocess = net.info.preprocess.to_dict() if net.info.preprocess else {}
    kind = find_format(data, columns, labelled=False)
    named = kind in (None, "folder", "arrays", "shards", "hub") or KEY in parse_columns(columns, (*ROLES, KEY))
    return {
        "network": net.identity(),
        "policy": rule,
        "preprocessing": hashlib.sha256(json.dumps([preprocess, net.info.classes]).encode()).hexdigest()[:16],
        "input": f"{data} ({columns})" if columns else data,
        "contents": "" if kind is None or named else hash_source(data, kind),  # of rows that are named by their number
    }
