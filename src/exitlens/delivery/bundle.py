"""Bundles: a network with its policies as a directory of safetensors and JSON (no pickle, no code)."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitlens.delivery.card import write_card
from exitlens.delivery.hub import fetch_bundle, refuse_address
from exitlens.errors import (
    BundleError,
    ExitlensError,
    InputError,
    MissingExtraError,
    OutputExistsError,
    ReachWarning,
    WeightsWarning,
    require,
)
from exitlens.io import read_json, read_tensors, replace_directory, verify_checksums, write_manifest, write_tensors
from exitlens.model.attach import OtherHead, attach
from exitlens.model.backbones.build import rebuild_backbone
from exitlens.model.backbones.weights import load_unique_state, unique_state
from exitlens.model.cascade import cascade
from exitlens.model.engine.onnx_files import Home, OnnxEngine, Written
from exitlens.model.engine.tuning import Tuning, name_network
from exitlens.model.network import ExitNet, NetworkInfo
from exitlens.types import Policy
from exitlens.types.inputs import can_be_channels_last
from exitlens.types.policies import DEFAULT, check_name, check_named
from exitlens.types.tasks import BY_LABELS, Task
from exitlens.workflow.evaluation import Report
from exitlens.workflow.training.record import BEST, LOG, SETTINGS

KIND, FORMAT = "exitlens", 1
WEIGHTS, NETWORK, POLICY, MANIFEST = "weights.safetensors", "network.json", "policy.json", "manifest.json"
POLICIES = "policies.json"  # only where there are policies with names
UNFINISHED = "unfinished"  # in the manifest: the epoch of a training run that has not ended, and the time of its file
DAMAGES = (ExitlensError, KeyError, TypeError, ValueError, AttributeError, IndexError)  # raised by damaged JSON

Backbone = nn.Module | Sequence[nn.Module | None] | None  # several: of a cascade


def save(
    net: ExitNet,
    policy: Policy | None,
    directory: str | Path,
    *,
    policies: Mapping[str, Policy] | None = None,
    overwrite: bool = False,
    card: bool | Report = False,
) -> Path:
    """Write a bundle: weights, how the network is built, its policies, and a checksum of each file.

    A network that is tuned to ``backend="onnx"`` takes its ONNX files along.

    Args:
        net: any network; one around a module of your own is loaded with ``load(directory, backbone=...)``.
        policy: calibrated for this network, or ``None``.
        directory: a new directory; it appears complete or not at all.
        policies: further policies of this network by name, which :func:`load_policies` reads. A name has 1 to 40 characters
            a-z, 0-9, _ and -; ``default`` is reserved for ``policy``.
        overwrite: replace an existing bundle, with all its policies.
        card: also write a model card, ``README.md``, from the bundle's record (extra ``hub``), with the figures of a
            :class:`~exitlens.Report` of test samples if one is given. Text of your own in a card that is there stays.
    """
    require(net, ExitNet, "net")
    require(policy, Policy | None, "policy", "see exitlens.calibrate")
    require(directory, str | Path, "directory")
    require(card, bool | Report, "card", "True, or what xl.evaluate gave")
    target = refuse_address(Path(directory)).resolve()
    if policy is not None:
        policy.check(net.num_exits, net.identity(), net.info.task)
    named = policies or {}
    check_named(named, net.num_exits, net.identity(), net.info.task)
    if target.exists() and not (overwrite and (target / MANIFEST).exists()):
        fix = "pass overwrite=True, or " if (target / MANIFEST).exists() else "it is not a bundle: "
        raise OutputExistsError(f"directory: {target} exists. Fix: {fix}choose another directory.")
    _write_bundle(net, dict(named) if policy is None else {DEFAULT: policy, **named}, target, {})
    if card:
        write_card(target, card if isinstance(card, Report) else None)
    return target


def _write_bundle(net: ExitNet, policies: Mapping[str, Policy], target: Path, facts: Mapping[str, Any]) -> None:
    network = net.info.to_dict() | {
        "fingerprint": net.fingerprint(),
        "channels_last": net.is_channels_last,
        "tuning": net.tuning.to_dict() if net.is_tuned else None,
        "dtype": str(net.weight.dtype).removeprefix("torch."),
    }
    engine = None
    if net.is_tuned and (net.tuning.backend, net.tuning.precision) == ("onnx", "float32"):
        with suppress(MissingExtraError):  # tuned on another machine; where ONNX is installed, its files are written again
            engine = net.engine.select()
    with _replace_files(target) as temporary:
        write_tensors(temporary / WEIGHTS, unique_state(net), {})
        _write_json(temporary / NETWORK, network)
        parts = engine.files if isinstance(engine, OnnxEngine) else ()
        parts = [part._replace(path=Path(shutil.copy(part.path, temporary))) for part in parts]
        files = [WEIGHTS, NETWORK, *_write_policies(temporary, policies), *(part.path.name for part in parts)]
        _write_manifest(temporary, files, {"onnx": [part.to_dict() for part in parts], **facts})


def _write_policies(directory: Path, policies: Mapping[str, Policy]) -> list[str]:
    values = {name: policy.to_dict() for name, policy in policies.items()}
    _write_json(directory / POLICY, values.pop(DEFAULT, None))
    if values:
        _write_json(directory / POLICIES, values)
    return [POLICY, POLICIES] if values else [POLICY]


def _write_manifest(directory: Path, files: list[str], facts: Mapping[str, Any]) -> None:
    write_manifest(directory / MANIFEST, [directory / name for name in files], {"kind": KIND, "format": FORMAT, **facts})


def _write_json(path: Path, value: Any) -> None:
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path.name}: expected values that JSON can hold ({error}). Fix: see policy.calibration."
        ) from error
    path.write_text(text + "\n")


def _replace_files(target: Path) -> AbstractContextManager[Path]:
    """Yield a temporary directory, which replaces the files that an existing bundle lists; others in its directory stay."""
    manifest = read_json(target / MANIFEST) if (target / MANIFEST).is_file() else {}
    sums = manifest.get("sha256") if isinstance(manifest, dict) else None
    return replace_directory(
        target, {WEIGHTS, NETWORK, POLICY, POLICIES, MANIFEST, *(sums if isinstance(sums, dict) else ())}
    )


def replace_network(directory: Path, net: ExitNet, policies: Mapping[str, Policy]) -> None:
    """Replace the network of a run or bundle and all its policies; an unfinished training remains marked as such."""
    source = find_bundle(directory)
    facts = {name: fact for name, fact in _verify_files(source).items() if name == UNFINISHED}
    _write_bundle(net, policies, source, facts)


def replace_policy(directory: Path, policy: Policy, name: str = "") -> None:
    """Replace the default policy of a run or bundle, or the one of that name; the others stay."""
    source = find_bundle(directory)
    manifest = _verify_files(source)
    num_exits, network, task = _read_identity(source)
    policies = read_policies(source, manifest, num_exits, network, task) | {name or DEFAULT: policy}
    policy.check(num_exits, network, task, name or "policy")
    with _replace_files(source) as temporary:
        others = [file for file in manifest.pop("sha256") if file not in (POLICY, POLICIES)]
        for file in others:
            shutil.copy(source / file, temporary)
        _write_manifest(temporary, others + _write_policies(temporary, policies), manifest)


def load(
    directory: str | Path, *, backbone: Backbone = None, heads: Mapping[int, OtherHead] | None = None
) -> tuple[ExitNet, Policy | None]:
    """Read a bundle back: the network in evaluation mode, and its policy (``None`` if it has none).

    Args:
        directory: what :func:`save` wrote, or a run directory. Of a run that has not ended, the best epoch so far is taken,
            with a :class:`~exitlens.errors.WeightsWarning`. Or an address on the Hugging Face Hub, ``hf://user/name`` or
            ``hf://user/name@revision`` (extra ``hub``): safetensors, JSON and ONNX are fetched, and nothing is run.
        backbone: the plain module, for networks that were attached to a module of your own; its weights are replaced. For a
            cascade, the modules of its members (``None`` for one that has a source).
        heads: heads of your own, as :func:`exitlens.attach` took them; their weights are replaced.

    Raises:
        BundleError: a missing, altered or truncated file, another format, or a backbone that does not fit.
        HubError: an address that nothing can be fetched from.

    Examples:
        >>> path = xl.save(net, policy, "bundle")
        >>> same, policy = xl.load("bundle")
        >>> torch.equal(same(images)[-1].logits, net(images)[-1].logits)
        True
    """
    require(directory, str | Path, "directory")
    require(backbone, nn.Module | Sequence | None, "backbone", "the plain module that exits were attached to")
    source = find_bundle(fetch_bundle(directory), backbone)
    manifest = _verify_files(source)
    values, policy_values = read_json(source / NETWORK), read_json(source / POLICY)
    try:
        tuning = values.pop("tuning")
        facts = {name: values.pop(name) for name in ("fingerprint", "channels_last", "dtype")}
        info = NetworkInfo.from_dict(values)
        net = _build(info, backbone, heads).to(getattr(torch, facts["dtype"]))
        net.info = info
        if tuning is not None:
            net.tuning = Tuning.from_dict(tuning)
    except (*DAMAGES, RuntimeError) as error:
        raise BundleError(f"{source}: the network cannot be built as {NETWORK} says: {error}") from error
    policy = None if policy_values is None else _read_policy(policy_values, f"{source / POLICY}, {DEFAULT}")
    tensors, _ = read_tensors(source / WEIGHTS)
    load_unique_state(net, tensors, str(source / WEIGHTS))
    if facts["channels_last"]:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if net.fingerprint() != facts["fingerprint"]:
        raise BundleError(f"{source}: the weights are not those it was saved with. Fix: copy the bundle again.")
    if manifest["onnx"]:
        net.engine.use_files(_keep_onnx(source, manifest))
    if policy is not None:
        policy.check(net.num_exits, net.identity(), net.info.task)
    if mark := manifest.get(UNFINISHED):
        warnings.warn(
            f"{source.parent}: its training has not ended; the weights are those of epoch {mark['epoch']}, the best so far. "
            "Fix: go on with exitlens fit --resume.",
            WeightsWarning,
            stacklevel=2,
        )
    return net.eval(), policy


def load_policies(directory: str | Path) -> dict[str, Policy]:
    """Read the policies of a bundle, without building its network.

    Args:
        directory: what :func:`save` wrote, the run directory that holds it, or an address as in :func:`load`.

    Returns:
        By name: ``default``, which :func:`load` gives, if there is one; then the others in the order they were saved in.
    """
    require(directory, str | Path, "directory")
    return _read_bundle_policies(find_bundle(fetch_bundle(directory)))


def _read_bundle_policies(source: Path) -> dict[str, Policy]:
    return read_policies(source, _verify_files(source), *_read_identity(source))


def read_policies(source: Path, manifest: Mapping[str, Any], num_exits: int, network: str, task: Task) -> dict[str, Policy]:
    """Read the policies of a bundle or edge bundle as :func:`load_policies` does; they have to fit such a network."""
    default, named = read_json(source / POLICY), read_json(source / POLICIES) if POLICIES in manifest["sha256"] else {}
    if not isinstance(named, dict):
        raise BundleError(f"{source / POLICIES}: expected policies by name, got {type(named).__name__}. Fix: save it again.")
    policies = {} if default is None else {DEFAULT: _read_policy(default, f"{source / POLICY}, {DEFAULT}")}
    for name, values in named.items():
        try:
            check_name(name, str(source / POLICIES))
        except InputError as error:
            raise BundleError(str(error)) from error
        policies[name] = _read_policy(values, f"{source / POLICIES}, {name}")
    for name, policy in policies.items():
        policy.check(num_exits, network, task, f"{source / (POLICY if name == DEFAULT else POLICIES)}, {name}")
    return policies


def _read_policy(values: Any, place: str) -> Policy:
    try:
        return Policy.from_dict(values)
    except DAMAGES as error:
        raise BundleError(f"{place}: expected a policy as exitlens writes it ({error!r}). Fix: save it again.") from error


def _read_identity(source: Path) -> tuple[int, str, Task]:
    """Read the number of exits, the name that policies know the network by, and its task."""
    values = read_json(source / NETWORK)
    try:
        precision = "float32" if values["tuning"] is None else Tuning.from_dict(values["tuning"]).numbers
        return len(values["at"]) + 1, name_network(values["fingerprint"], precision), values.get("task", "classes")
    except DAMAGES as error:
        raise BundleError(f"{source / NETWORK}: expected what exitlens wrote ({error!r}). Fix: save it again.") from error


def _keep_onnx(source: Path, manifest: dict[str, Any]) -> list[Written]:
    """Copy ONNX files that have a checksum to a place that remains when the bundle is replaced."""
    home = Home()
    try:
        parts = [Written.from_dict(values, home.path, home) for values in manifest["onnx"]]
        unknown = {str(values["file"]) for values in manifest["onnx"]} - set(manifest["sha256"])  # whose names are plain
        if unknown:
            raise ValueError(f"no checksum for {sorted(unknown)}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{source / MANIFEST}: its ONNX files are not described as exitlens does it ({error!r}). Fix: save it again."
        ) from error
    for part in parts:
        shutil.copy(source / part.path.name, part.path)
    return parts


def _verify_files(source: Path) -> dict[str, Any]:
    """Return the manifest; raise :class:`BundleError` unless the bundle's files are those that it lists."""
    manifest = read_json(source / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sha256"), dict):
        raise BundleError(f"{source / MANIFEST}: expected checksums. Fix: copy the bundle again.")
    if "segments" in manifest:
        raise BundleError(f"{source}: an edge bundle, without weights for PyTorch. Fix: exitlens_runtime.load reads it.")
    if (manifest.get("kind"), manifest.get("format")) != (KIND, FORMAT):
        is_newer, form = manifest.get("kind") == KIND, manifest.get("format")
        given = str(form) if is_newer else "one of an exitlens before formats were numbered anew"
        again = "save it again with this version: exitlens fit with the same data, then exitlens calibrate"
        raise BundleError(
            f"{source}: expected a bundle of format {FORMAT}, got {given}. Fix: {'update exitlens' if is_newer else again}."
        )
    verify_checksums(source, {"sha256": dict.fromkeys((WEIGHTS, NETWORK, POLICY)) | manifest["sha256"]})
    return manifest | {"onnx": manifest.get("onnx", [])}


def _build(info: NetworkInfo, backbone: Backbone, heads: Mapping[int, OtherHead] | None = None) -> ExitNet:
    if info.members:
        if heads:
            raise BundleError("it is a cascade, whose members have heads of their own. Fix: leave heads out.")
        given: Any = [None] * len(info.members) if backbone is None else backbone
        if not isinstance(given, Sequence) or len(given) != len(info.members):
            raise BundleError(f"it is a cascade. Fix: load(..., backbone=[...]) with its {len(info.members)} members.")
        try:
            nets = [_build(member, module) for member, module in zip(info.members, given, strict=True)]
        except BundleError as error:
            raise BundleError(
                "it has members of your own. Fix: load(..., backbone=[...]) with the modules of all."
            ) from error
        for net, member in zip(nets, info.members, strict=True):
            net.info = member
        return cascade(nets, info.example(next(nets[-1].parameters())), classes=info.classes)
    if isinstance(backbone, Sequence):
        raise BundleError("it is no cascade. Fix: load(..., backbone=MODULE).")
    if info.classes and len(info.classes) != info.num_classes:
        raise ValueError(f"{len(info.classes)} class names for {info.num_classes} classes")
    if backbone is None:
        if not info.source:
            raise BundleError("it is around a module of your own. Fix: load(..., backbone=that module).")
        backbone = rebuild_backbone(info)
    example = info.example(next(backbone.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReachWarning)  # it was said where the network was made
        shape: dict[str, Any] = {name: getattr(info, name) for name in ("final", "end", "layout", "head", "neck_share")}
        shape |= {"groups": dict(info.groups) or None, "task": None if info.task in BY_LABELS else info.task}
        return attach(backbone, info.at, info.num_classes, example, heads=heads, **shape)


def find_bundle(path: Path, backbone: Backbone = None) -> Path:
    """Return ``path`` if it is a bundle, or the bundle in it if it is a run directory; otherwise raise ``BundleError``.

    A training that was stopped has left none: it is written here, from the best epoch so far, again when the run goes on.
    """
    for candidate in (refuse_address(path), path / "bundle"):
        if (candidate / MANIFEST).is_file():
            break
    else:
        candidate = path / "bundle"
        if not (path / SETTINGS).is_file():
            raise BundleError(
                f"bundle: expected a bundle or a run directory, got {path}, which has no {MANIFEST} and no {SETTINGS}. "
                "Fix: give what exitlens fit or save wrote; a repository of the Hub is hf://USER/NAME."
            )
        if not (path / BEST).is_file():
            raise BundleError(
                f"bundle: the training in {path} ended before its first epoch did. Fix: go on with exitlens fit --resume."
            )
    best = candidate.parent / BEST
    if best.is_file():
        manifest = read_json(candidate / MANIFEST) if (candidate / MANIFEST).is_file() else {UNFINISHED: {"time": None}}
        mark = manifest.get(UNFINISHED) if isinstance(manifest, dict) else None
        if mark and mark["time"] != best.stat().st_mtime_ns:  # written from an earlier epoch of a run that has gone on
            _save_unfinished(candidate.parent, backbone)
    return candidate


def _save_unfinished(run: Path, backbone: Backbone) -> None:
    """Write a run's bundle from its best epoch so far; policies of the same weights stay."""
    record, (state, note) = read_json(run / SETTINGS), read_tensors(run / BEST)
    try:
        info = NetworkInfo.from_dict(record["network"])
        net = _build(info, backbone)
        net.info = replace(info, map_offsets=net.info.map_offsets, feature_offsets=net.info.feature_offsets)
        epochs, patience = record["settings"]["epochs"], record["settings"].get("patience")
        mark = {"epoch": note["epoch"], "time": (run / BEST).stat().st_mtime_ns}
    except (*DAMAGES, RuntimeError) as error:
        raise BundleError(f"{run}: the network cannot be built as {SETTINGS} says: {error}") from error
    load_unique_state(net, state, str(run / BEST))
    if can_be_channels_last(net):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept, _ = _keep_policies(net, run / "bundle")
    with (run / LOG).open(newline="") as file:
        count = sum(1 for _ in csv.DictReader(file))
    is_over = count >= epochs or (patience is not None and count - mark["epoch"] >= patience)
    _write_bundle(net.eval(), kept, run / "bundle", {} if is_over else {UNFINISHED: mark})


def save_trained(net: ExitNet, directory: Path, *, overwrite: bool) -> list[str]:
    """Save a network with the policies of the bundle it replaces that fit it; return the names of the others."""
    kept, dropped = _keep_policies(net, directory)
    save(net, kept.pop(DEFAULT, None), directory, policies=kept, overwrite=overwrite)
    return dropped


def _keep_policies(net: ExitNet, bundle: Path) -> tuple[dict[str, Policy], list[str]]:
    """Return the policies of a bundle (if it exists) that were chosen for this network, and the names of the others."""
    policies = _read_bundle_policies(bundle) if (bundle / MANIFEST).is_file() else {}
    network = net.identity()
    kept = {name: policy for name, policy in policies.items() if policy.network == network}
    return kept, [name for name in policies if name not in kept]
