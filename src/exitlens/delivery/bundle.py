"""save and load: a network with its policy as a directory of safetensors and JSON (no pickle, no code)."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitlens.errors import (
    BundleError,
    ExitlensError,
    InputError,
    MissingExtraError,
    OutputExistsError,
    ReachWarning,
    require,
)
from exitlens.io import read_json, read_tensors, replace_directory, verify_checksums, write_manifest, write_tensors
from exitlens.model.attach import attach
from exitlens.model.backbones.build import rebuild_backbone
from exitlens.model.backbones.weights import load_unique_state, unique_state
from exitlens.model.engine.onnx_engine import Home, OnnxEngine, OnnxFiles
from exitlens.model.engine.onnx_files import Written
from exitlens.model.engine.tuning import Tuning, name_network
from exitlens.model.info import NetworkInfo
from exitlens.model.network import ExitNet
from exitlens.types import Policy
from exitlens.types.named_policies import DEFAULT, check_fit, check_name, check_named
from exitlens.types.tasks import Task

# In format 1 the policy's record was untyped (Policy.from_dict reads both), up to format 2 context heads had other layers,
# and up to format 3 every network had a tuning: one with everything off, and nothing measured, stood for none.
FORMAT, OTHER_NECKS, ALWAYS_TUNED = 4, 2, 3
WEIGHTS, NETWORK, POLICY, MANIFEST = "weights.safetensors", "network.json", "policy.json", "manifest.json"
POLICIES = "policies.json"  # only where there are any with a name; readers of before them pass it over


def save(
    net: ExitNet,
    policy: Policy | None,
    directory: str | Path,
    *,
    policies: Mapping[str, Policy] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a bundle: weights, how the network is built, the policies, and a checksum of each.

    A network that is tuned to ``backend="onnx"`` takes its ONNX files along.

    Args:
        net: any network; one around a module of your own is loaded with ``load(directory, backbone=...)``.
        policy: of this network, or ``None``.
        directory: a new directory; it appears complete or not at all.
        policies: further ones of this network by name, which :func:`load_policies` reads. A name has 1 to 40 characters
            a-z, 0-9, _ and -; ``default`` is what ``policy`` is called.
        overwrite: replace an existing bundle, with all its policies.

    Raises:
        OutputExistsError: if the directory exists; PolicyError: for a policy of another network; InputError: for a name
            that no policy may have.

    Examples:
        >>> path = xl.save(net, policy, "bundle")
        >>> sorted(file.name for file in path.iterdir())
        [...]
    """
    require(net, ExitNet, "net")
    require(policy, Policy | None, "policy", "see exitlens.calibrate")
    require(directory, str | Path, "directory")
    target = Path(directory).resolve()
    fingerprint = net.fingerprint()
    if policy is not None:
        policy.check(net.num_exits, net.identity(), net.info.task)
    named = {} if policies is None else policies
    check_named(named, net.num_exits, net.identity(), net.info.task)
    if target.exists() and not (overwrite and (target / MANIFEST).exists()):
        hint = "pass overwrite=True" if (target / MANIFEST).exists() else "it is not a bundle"
        raise OutputExistsError(f"directory: {target} exists ({hint}): choose another directory")
    with replace_directory(target, _list_own(target)) as temporary:
        _write_files(temporary, net, policy, named, fingerprint)
    return target


def _write_files(
    directory: Path, net: ExitNet, policy: Policy | None, named: Mapping[str, Policy], fingerprint: str
) -> None:
    write_tensors(directory / WEIGHTS, unique_state(net), {})
    facts: dict[str, Any] = {"fingerprint": fingerprint, "channels_last": net.is_channels_last}
    facts["tuning"] = net.tuning.to_dict() if net.is_tuned else None
    facts["dtype"] = str(next(net.head(0).parameters()).dtype).removeprefix("torch.")
    _write_json(directory / NETWORK, net.info.to_dict() | facts)
    _write_json(directory / POLICY, None if policy is None else policy.to_dict())
    if named:
        _write_json(directory / POLICIES, {name: one.to_dict() for name, one in named.items()})
    parts = _copy_onnx(directory, net)
    names = (WEIGHTS, NETWORK, POLICY, *([POLICIES] if named else []))
    files = [directory / name for name in names] + [part.path for part in parts]
    write_manifest(directory / MANIFEST, files, {"format": FORMAT, "onnx": [part.to_dict() for part in parts]})


def _copy_onnx(directory: Path, net: ExitNet) -> list[Written]:
    """The files that it answers by; none where it answers by PyTorch."""
    if not net.is_tuned or (net.tuning.backend, net.tuning.precision) != ("onnx", "float32"):
        return []
    try:
        engine = net.engine
    except MissingExtraError:  # of a bundle that came from another machine; where it is installed they are written again
        return []
    files = engine.files.files if isinstance(engine, OnnxEngine) else ()
    return [one._replace(path=Path(shutil.copy(one.path, directory))) for one in files]


def _list_own(target: Path) -> set[str]:
    """Names that files of a bundle have there."""
    manifest = read_json(target / MANIFEST) if (target / MANIFEST).is_file() else {}
    known = manifest.get("sha256") if isinstance(manifest, dict) else None
    return {WEIGHTS, NETWORK, POLICY, POLICIES, MANIFEST, *(known if isinstance(known, dict) else ())}


def find_bundle(path: Path) -> Path:
    """The bundle in a run directory, or the bundle itself; raises :class:`BundleError` if neither is there."""
    for candidate in (path, path / "bundle"):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise BundleError(f"bundle: {path} is no bundle and holds none (no {MANIFEST}): give what exitlens fit wrote")


def load(directory: str | Path, *, backbone: nn.Module | None = None) -> tuple[ExitNet, Policy | None]:
    """Reads a bundle back: the network in evaluation mode, and its policy (``None`` if it has none).

    Args:
        directory: what :func:`save` wrote, or the run directory that holds it.
        backbone: the plain module, for networks that were attached to a module of your own; its weights are replaced.

    Raises:
        BundleError: a missing, altered or truncated file, another format version, or a backbone that does not fit.

    Examples:
        >>> path = xl.save(net, policy, "bundle")
        >>> same, policy = xl.load("bundle")
        >>> torch.equal(same(images)[-1].logits, net(images)[-1].logits)
        True
    """
    require(directory, str | Path, "directory")
    require(backbone, nn.Module | None, "backbone", "the plain module that exits were attached to")
    source = find_bundle(Path(directory))
    manifest = _verify_files(source)
    form = manifest["format"]
    values, policy_values = read_json(source / NETWORK), read_json(source / POLICY)
    if form <= OTHER_NECKS and values.get("head") == "context":
        raise BundleError(f"{source}: of an earlier exitlens, whose context heads had other layers: train it again")
    try:
        tuning = _read_tuning(values.pop("tuning", None), form)
        facts = {name: values.pop(name) for name in ("fingerprint", "channels_last", "dtype")}
        net = _build(NetworkInfo.from_dict(values), backbone).to(getattr(torch, facts["dtype"]))
        policy = None if policy_values is None else Policy.from_dict(policy_values)
    except (ExitlensError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise BundleError(f"{source}: the network cannot be built as {NETWORK} says: {error}") from error
    tensors, _ = read_tensors(source / WEIGHTS)
    load_unique_state(net, tensors, str(source / WEIGHTS))
    if facts["channels_last"]:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if net.fingerprint() != facts["fingerprint"]:
        raise BundleError(f"{source}: the weights are not those it was saved with: copy the bundle again")
    if tuning is not None:
        net.tuning = tuning
    if manifest.get("onnx"):
        net.use_onnx_files(_keep_onnx(source, manifest))
    if policy is not None:
        policy.check(net.num_exits, net.identity(), net.info.task)
    return net.eval(), policy


def load_policies(directory: str | Path) -> dict[str, Policy]:
    """Reads the policies of a bundle, without building its network.

    Args:
        directory: what :func:`save` wrote, or the run directory that holds it.

    Returns:
        By name: ``default``, which :func:`load` gives, if there is one; then the others in the order they were saved in.

    Raises:
        BundleError: a missing, altered or truncated file, another format version, or an entry that is no policy;
            PolicyError: a policy of another network. Both name the file and the entry.

    Examples:
        >>> path = xl.save(net, policy, "bundle", policies={"last": xl.Policy.never(3)})
        >>> list(xl.load_policies("bundle"))
        ['default', 'last']
    """
    require(directory, str | Path, "directory")
    source = find_bundle(Path(directory))
    manifest = _verify_files(source)
    own, named = read_json(source / POLICY), {}
    if POLICIES in manifest["sha256"]:
        named = read_json(source / POLICIES)
        if not isinstance(named, dict):
            raise BundleError(f"{source / POLICIES}: expected policies by name, got {type(named).__name__}: save it again")
    num_exits, network, task = _read_identity(source, manifest["format"])
    policies = {} if own is None else {DEFAULT: _read_policy(own, f"{source / POLICY}, {DEFAULT}")}
    for name, values in named.items():
        try:
            check_name(name, str(source / POLICIES))
        except InputError as error:
            raise BundleError(str(error)) from error
        policies[name] = _read_policy(values, f"{source / POLICIES}, {name}")
    for name, policy in policies.items():
        check_fit(policy, num_exits, network, f"{source / (POLICY if name == DEFAULT else POLICIES)}, {name}", task)
    return policies


def _read_policy(values: Any, place: str) -> Policy:
    try:
        return Policy.from_dict(values)
    except (ExitlensError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BundleError(f"{place}: expected a policy as exitlens writes it ({error!r}): save it again") from error


def _read_identity(source: Path, form: int) -> tuple[int, str, Task]:
    """How many exits the network has, what policies name it by, and what it answers."""
    values = read_json(source / NETWORK)
    try:
        tuning = _read_tuning(values.get("tuning"), form)
        precision = "float32" if tuning is None else tuning.numbers
        return len(values["at"]) + 1, name_network(values["fingerprint"], precision), values.get("task", "classes")
    except (ExitlensError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{source / NETWORK}: expected what exitlens wrote ({error!r}): save it again") from error


def _keep_onnx(source: Path, manifest: dict[str, Any]) -> OnnxFiles:
    """Copies of the ONNX files, which stay when the bundle is replaced; of files with a checksum in the manifest alone."""
    home = Home()
    try:
        parts = [Written.from_dict(one, home.path) for one in manifest["onnx"]]
        unknown = {str(one["file"]) for one in manifest["onnx"]} - set(manifest["sha256"])  # whose names are plain
        if unknown:
            raise ValueError(f"no checksum for {sorted(unknown)}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{source / MANIFEST}: its ONNX files are not described as exitlens does ({error!r})") from error
    for part in parts:
        shutil.copy(source / part.path.name, part.path)
    return OnnxFiles(parts, home)


def _read_tuning(values: dict[str, Any] | None, form: int) -> Tuning | None:
    """The tuning that was set; ``None``: none was, and the network answers as suits it here."""
    tuning = None if values is None else Tuning.from_dict(values)
    unset = tuning is not None and form <= ALWAYS_TUNED and tuning == Tuning() and not tuning.measured
    return None if unset else tuning


def _verify_files(source: Path) -> dict[str, Any]:
    """The manifest; raises :class:`BundleError` unless the bundle's files are those that it lists."""
    manifest = read_json(source / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sha256"), dict):
        raise BundleError(f"{source / MANIFEST}: expected checksums: copy the bundle again")
    form = manifest.get("format")
    if not isinstance(form, int) or not 1 <= form <= FORMAT:
        raise BundleError(f"{source / MANIFEST}: expected a format from 1 to {FORMAT}, got {form}: update exitlens")
    verify_checksums(source, {"sha256": dict.fromkeys((WEIGHTS, NETWORK, POLICY)) | manifest["sha256"]})
    return manifest


def _build(info: NetworkInfo, backbone: nn.Module | None) -> ExitNet:
    if info.classes and len(info.classes) != info.num_classes:
        raise ValueError(f"{len(info.classes)} class names for {info.num_classes} classes")
    if backbone is None:
        if not info.source:
            raise BundleError("it is around a module of your own: load(..., backbone=that module)")
        backbone = rebuild_backbone(info)
    example = info.example(next(backbone.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReachWarning)  # it was said where the network was made
        how: dict[str, Any] = {"final": info.final, "layout": info.layout, "head": info.head}
        net = attach(backbone, info.at, info.num_classes, example, groups=dict(info.groups) or None, **how)
    net.info = info
    return net


def _write_json(path: Path, value: Any) -> None:
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path.name}: it holds a value that JSON cannot ({error}); see policy.calibration") from error
    path.write_text(text + "\n")
