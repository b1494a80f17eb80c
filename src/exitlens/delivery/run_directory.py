"""Run directories: the record of a run's data, its policies, and the samples that later verbs read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from exitlens.data.formats import find_format, find_samples, hash_source
from exitlens.data.rows import KEY, ROLES, ColumnChoice, parse_columns
from exitlens.data.sets import SampleSet, set_reading
from exitlens.data.sources import NAMES, DataSource, Target, open_source, read_parts
from exitlens.data.splits import Split, take_split
from exitlens.data.streams import SampleStream, open_stream
from exitlens.data.texts import RawTexts
from exitlens.delivery.bundle import find_bundle, load, load_policies
from exitlens.delivery.hub import fetch_bundle, is_address
from exitlens.errors import BundleError, DataError, ExitlensError, InputError, OutputExistsError, PolicyError
from exitlens.io import make_directory, read_json, write_json
from exitlens.model.network import ExitNet
from exitlens.ranks import ALONE, DistributedContext
from exitlens.types import Policy, Trace
from exitlens.types.inputs import draw_samples
from exitlens.types.policies import DEFAULT, RECORDS
from exitlens.types.preprocessing import Preprocessing, TextPreprocess
from exitlens.types.settings import AS_RECORDED, CertificateRequest, NetworkSettings, ReadSettings, read_record
from exitlens.types.tasks import BY_LABELS, USUAL_SCORES
from exitlens.workflow.inference import predict_stream
from exitlens.workflow.training.record import SETTINGS

PROBES = 1000  # vectors that a limit on changed ranks is about
REQUESTS = "certificate_requests.json"  # beside the bundle's files: certificates that were asked for, by the samples asked
P = TypeVar("P", bound=Preprocessing)
DATA, SKIP_BAD, NETWORK = "data.json", "skip_bad", "network"  # the file, and what it has beside the fields of the source


@contextmanager
def record_source(
    out: Path,
    source: DataSource,
    *,
    resume: bool,
    skip_bad: bool = False,
    network: NetworkSettings | None = None,
    ranks: DistributedContext = ALONE,
) -> Iterator[None]:
    """Record a run's data and network before training starts, and whether what cannot be read is left out.

    If training fails before it writes anything, the record is taken back, so that a corrected call can use ``out`` again.
    Once it has begun, an error about a file that cannot be read says how to go on. Raises :class:`OutputExistsError` if the
    directory is in use and ``resume`` is not set.
    """
    ranks.share(lambda: _write_source(out, source, resume, skip_bad, network))
    try:
        yield
    except ExitlensError as error:
        if isinstance(error, DataError) and error.is_skippable and (out / SETTINGS).exists():
            error.add_note(f"the run so far is in {out}: the same command with --resume --skip-bad goes on")
        if ranks.is_first and [path.name for path in out.iterdir()] == [DATA]:
            (out / DATA).unlink()
            out.rmdir()
        raise


def _write_source(out: Path, source: DataSource, resume: bool, skip_bad: bool, network: NetworkSettings | None) -> None:
    path = out / DATA
    if out.exists() and any(out.iterdir()) and not resume:
        raise OutputExistsError(f"out: {out} exists and is not empty. Fix: choose another directory, or pass --resume.")
    if path.exists() and _parse_record(path)[0] != source:
        raise DataError(
            f"data: {path} was made with other data. Fix: pass the same files (none added or removed), or another --out."
        )
    make_directory(out, "out")
    record = asdict(source) | ({SKIP_BAD: True} if skip_bad else {})
    if NETWORK in (known := read_json(path) if path.exists() else {}):
        record[NETWORK] = known[NETWORK]  # what the run began with, though a call that is refused may name another
    elif network is not None:
        record[NETWORK] = {name: str(value) if isinstance(value, Path) else value for name, value in vars(network).items()}
    write_json(path, record)


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
    record = _find_record(path)
    if not record.is_file():
        raise DataError(f"data: {path} does not say which data it was trained on. Fix: pass --data.")
    return _parse_record(record)


def read_network(path: Path) -> NetworkSettings:
    """Read which network a run began with; raise :class:`DataError` unless ``exitlens fit`` trained it."""
    try:
        values = json.loads(_find_record(path).read_text())[NETWORK]
        weights = values.pop("init_weights")
        return NetworkSettings(**values, init_weights=None if weights is None else Path(weights))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"run: {path} does not say which network it began with. Fix: train it, or go on, by exitlens fit."
        ) from error


def _find_record(path: Path) -> Path:
    record = path / DATA  # which nothing on the Hub has
    return record if record.is_file() or is_address(path) else find_bundle(path).parent / DATA


def _parse_record(path: Path) -> tuple[DataSource, bool]:
    try:
        record = json.loads(path.read_text())
        skip_bad = record.pop(SKIP_BAD, False) is True
        record.pop(NETWORK, None)
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
    source = fetch_bundle(path)
    net, policy = load(source)
    policies = load_policies(source) if name or policy is None else {DEFAULT: policy}
    if (policy := policies.get(name or DEFAULT)) is not None:
        return net, policy
    fix = f"Fix: run exitlens calibrate --bundle {path}"
    if name not in ("", DEFAULT):
        raise PolicyError(f"policy: {path} has none named {name!r}, but {list(policies)}. {fix} --name {name}")
    others = f" of its own, but {list(policies)} by name" if policies else " yet"
    raise PolicyError(f"bundle: {path} has no policy{others}. {fix}")


@contextmanager
def keep_certificate_requests(path: Path, trace: Trace) -> Iterator[None]:
    """Give a trace the certificates that its samples were asked for before, and store those asked for meanwhile."""
    ledger, key = find_bundle(path) / REQUESTS, trace.fingerprint()
    known = read_json(ledger) if ledger.is_file() else {}
    trace.certificate_requests[:] = (read_record(CertificateRequest, request) for request in known.get(key, ()))
    before = list(trace.certificate_requests)
    try:
        yield
    finally:
        if trace.certificate_requests != before:
            write_json(ledger, known | {key: [asdict(request) for request in trace.certificate_requests]})


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
        source = _open_built_in(net, data, reading.root) if data else read_source(path)[0]
        recorded = net.info.preprocess if isinstance(net.info.preprocess, source.modality.preprocess) else None
        samples = source.load(split, classes=net.info.classes, skip_bad=skip_bad, preprocess=recorded)
    return set_reading(samples, reading.workers, reading.cache)


def _open_built_in(net: ExitNet, data: str, root: str) -> DataSource:
    task = "" if net.info.task in BY_LABELS else net.info.task  # told by the data
    return open_source(data, root=root, size=net.info.input_shape[-1], task=task)


def load_probes(path: Path, net: ExitNet) -> Tensor:  # (P,D)
    """Return the final exit's vectors of samples that a run was trained on, to compare ranks by."""
    train = load_samples(path, net, "train")
    inputs = train.subset(draw_samples(len(train), PROBES)).inputs
    never = Policy.never(net.num_exits, score=USUAL_SCORES["embedding"])
    return torch.cat([pred.labels for pred in predict_stream(net, inputs, never)])


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
    rule = {name: value for name, value in policy.to_dict().items() if name not in ("network", *RECORDS)}
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
