"""Run directories: finding a run's bundle, policy, data and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from exitlens.data.assemble import Target, read_parts
from exitlens.data.columns import KEY, ROLES, parse_columns
from exitlens.data.formats import Format, find_format, find_samples, find_unlabelled_format, hash_source
from exitlens.data.rows import Reading
from exitlens.data.sets import set_reading
from exitlens.data.sources import NAMES, open_source
from exitlens.data.splits import SampleSet, Split, take_split
from exitlens.data.streams import SampleStream, open_stream
from exitlens.data.texts import RawTexts
from exitlens.delivery.bundle import MANIFEST, find_bundle, load, load_policies, save
from exitlens.delivery.run_data import read_source, remembers_skipping
from exitlens.errors import BundleError, InputError, PolicyError
from exitlens.model.network import ExitNet
from exitlens.types import Policy, Preprocessing, TextPreprocess
from exitlens.types.named_policies import DEFAULT
from exitlens.workflow.training.run import SETTINGS

P = TypeVar("P", bound=Preprocessing)


def shorten_names(paths: Sequence[Path]) -> list[str]:
    """Names each run or bundle after its directory, numbered where two are alike."""
    names: list[str] = []
    for path in paths:
        name = path.name if path.name != "bundle" else path.resolve().parent.name
        name = name or path.resolve().name
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def read_recorded_exits(out: Path, exits: str, placement: str) -> tuple[str, str]:
    """``exits`` and ``placement`` to resume a run with: the exits placed when it began, if there are as many."""
    try:
        names = json.loads((out / SETTINGS).read_text())["network"]["at"]
    except (OSError, ValueError, KeyError, TypeError):  # no run, or a damaged one: fit says so
        return exits, placement
    return (",".join(names), "cost") if str(len(names)) == (exits or "3") else (exits, placement)


def load_calibrated(path: Path, name: str = "") -> tuple[ExitNet, Policy]:
    """Loads the network and a policy of a run or bundle: its own, or the one of that name.

    Raises :class:`PolicyError` if it has no such policy.
    """
    net, policy = load(path)
    policies = load_policies(path) if name or policy is None else {DEFAULT: policy}
    if (found := policies.get(name or DEFAULT)) is not None:
        return net, found
    words = f"run exitlens calibrate --bundle {path}"
    if name not in ("", DEFAULT):
        raise PolicyError(f"policy: {path} has none named {name!r}, but {list(policies)}: {words} --name {name}")
    others = f" of its own, but {list(policies)} by name" if policies else " yet"
    raise PolicyError(f"bundle: {path} has no policy{others}: {words}")


def load_named(path: Path) -> dict[str, Policy]:
    """The policies of a run or bundle beside its own, by name."""
    return {name: policy for name, policy in load_policies(path).items() if name != DEFAULT}


def save_trained(net: ExitNet, directory: Path, *, overwrite: bool) -> list[str]:
    """Saves a network where a bundle of it may be, with those of that bundle's policies that were chosen for it as it is.

    Returns the names of those that are left out: of other weights, or another precision.
    """
    known = load_policies(directory) if (directory / MANIFEST).is_file() else {}
    kept = {name: policy for name, policy in known.items() if policy.network == net.identity()}
    left = [name for name in known if name not in kept]
    save(net, kept.pop(DEFAULT, None), directory, policies=kept, overwrite=overwrite)
    return left


def require_preprocess(net: ExitNet, kind: type[P]) -> P:
    """How samples become the network's inputs; raises :class:`BundleError` if there is no record, or it takes others."""
    if isinstance(net.info.preprocess, kind):
        return net.info.preprocess
    own = net.input_spec.modality
    if own.preprocess is not kind:
        raise BundleError(f"bundle: its network takes {own.plural}: give {own.given}")
    raise BundleError(f"bundle: it does not say how {own.plural} become inputs: net.describe(preprocess=...) and save again")


def load_samples(
    path: Path,
    net: ExitNet,
    split: Split,
    data: str = "",
    root: str = "",
    *,
    skip_bad: bool = False,
    columns: str = "",
    group_by: str = "",
    workers: int | None = None,
    cache: Path | None = None,
) -> SampleSet:
    """Loads a split of a run's own data, or other labelled data, for its network.

    Other data are taken whole; if they come in named parts, the one for ``split`` is taken, or cut from their ``train``.

    Args:
        path: the run directory or bundle.
        net: its network.
        split: of the run's own data.
        data: other data, by name.
        root: folder of torchvision's files.
        skip_bad: leave out what cannot be read, which is done, too, of data of which the run left it out.
        columns: of other data from files: see :class:`~exitlens.data.sources.DataSource`.
        group_by: likewise.
        workers: processes that decode a lazy set, see :func:`set_reading`.
        cache: directory for the pixels of a lazy set, see :func:`set_reading`.
    """
    if not data and (columns or group_by):
        raise InputError("columns, group_by: they are for other data: pass --data, or leave them out")
    skip_bad = skip_bad or remembers_skipping(path, data)
    if data and data not in NAMES and (kind := find_format(data, columns, [group_by])) is not None:
        found = _load_files(net, split, data, kind, Reading(columns, group_by, task=net.info.task), skip_bad)
    else:
        source = open_source(data, root=root, size=net.info.input_shape[-1]) if data else read_source(path)
        own = net.info.preprocess if isinstance(net.info.preprocess, source.modality.preprocess) else None
        found = source.load(split, classes=net.info.classes, skip_bad=skip_bad, preprocess=own)
    return set_reading(found, workers, cache)


def _load_files(net: ExitNet, split: Split, data: str, kind: Format, reading: Reading, skip_bad: bool) -> SampleSet:
    preprocess = require_preprocess(net, find_samples(data, kind, reading).preprocess)
    parts = read_parts(data, kind, reading, Target(known=preprocess), net.info.classes, skip_bad)
    only = len(parts.sets) == 1
    found = next(iter(parts.sets.values())) if only else take_split(parts.sets, split, 0, data, parts.group_names)
    if isinstance(found, RawTexts):
        assert isinstance(preprocess, TextPreprocess)
        return found.encode(preprocess)
    return found


def stream_samples(
    net: ExitNet,
    data: str,
    *,
    batch_size: int,
    columns: str = "",
    group_by: str = "",
    skip_bad: bool = False,
    workers: int | None = None,
    cache: Path | None = None,
    without: Collection[str] = (),
    run: Path | None = None,
) -> SampleStream:
    """Streams the samples of a source without labels, in batches.

    Args:
        net: the network that takes them.
        data: a folder, a file of rows, a table or shards, see :func:`~exitlens.data.streams.open_stream`.
        batch_size: samples in a batch.
        columns: of tables, texts and shards.
        group_by: a column, or a regular expression on file names.
        skip_bad: leave out what cannot be read.
        workers: processes that decode images.
        cache: directory for decoded pixels.
        without: names of samples to leave out.
        run: a run directory or bundle: if these are its own data and it left out what cannot be read, so does this.
    """
    skip_bad = skip_bad or (run is not None and remembers_skipping(run, data))
    preprocess = require_preprocess(net, net.input_spec.modality.preprocess)
    reading = Reading(columns, group_by)
    return open_stream(
        preprocess, data, batch_size, reading, skip_bad=skip_bad, workers=workers, cache=cache, without=without
    )


def describe_origin(net: ExitNet, policy: Policy, data: str, columns: str = "") -> dict[str, Any]:
    """What the answers to ``data`` depend on, JSON-ready: runs that agree on it may write to the same file."""
    rule = {name: value for name, value in policy.to_dict().items() if name not in ("network", "calibration")}
    preprocess = net.info.preprocess.to_dict() if net.info.preprocess else {}
    reading = hashlib.sha256(json.dumps([preprocess, net.info.classes]).encode()).hexdigest()[:16]
    return {
        "network": net.identity(),
        "policy": rule,
        "preprocessing": reading,
        "input": f"{data} ({columns})" if columns else data,
        "contents": _hash_numbered(data, columns),
    }


def _hash_numbered(data: str, columns: str) -> str:
    """Tells other contents of a file whose rows are named by their number; empty where names say which sample it is."""
    kind = find_unlabelled_format(data, columns, "")
    named = kind in (None, "folder", "arrays", "shards", "hub") or KEY in parse_columns(columns, (*ROLES, KEY))
    return "" if kind is None or named else hash_source(data, kind)


def replace_policy(directory: Path, policy: Policy, name: str = "") -> None:
    """Replaces the policy of a run or bundle, or the one of that name; the others stay."""
    net, own = load(directory)
    named = load_named(directory) | ({name: policy} if name else {})
    save(net, own if name else policy, find_bundle(directory), policies=named, overwrite=True)
