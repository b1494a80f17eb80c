"""load: an edge bundle, checked before anything of it is used."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exitlens_runtime.errors import BundleError, ExitlensRuntimeError, InputError, PolicyError
from exitlens_runtime.network import EdgeNetwork
from exitlens_runtime.routing import Array, Policy
from exitlens_runtime.sessions import count_threads, open_session

FORMAT = 1
MANIFEST, POLICY, GOLDEN = "manifest.json", "policy.json", "golden.npz"
POLICIES, DEFAULT = "policies.json", "default"  # those with a name, and what the bundle's own is called among them
NAME = re.compile("[a-z0-9_-]{1,40}")
TOLERANCE = 1e-4  # of the largest absolute value
NEAR = 1e-3  # of a threshold, either exit may answer
OTHERWISE = (
    "this processor or backend computes something else than where it was exported: pass check=False to use it all the same"
)


def load(
    directory: str | Path,
    *,
    policy: str | Path | Mapping[str, Any] | None = None,
    backend: str = "onnxruntime",
    threads: int = 0,
    check: bool = True,
) -> EdgeNetwork:
    """Opens what ``exitlens export`` wrote.

    Args:
        directory: the edge bundle.
        policy: in place of the bundle's own: the name of one that is in it, or another policy of the same network: a file
            ``policy.json`` or its contents. It may use the exits that are in the bundle.
        backend: what runs the files: ``onnxruntime``, or ``openvino`` (the extra ``openvino``).
        threads: that one call uses; 0: all processors.
        check: run the samples that came with the bundle and compare with what the library answered.

    Raises:
        BundleError: a missing, altered or truncated file, a newer format, or other answers than the library's.
        PolicyError: a policy of another network, or a name that none has.
        BackendError: the backend is missing, too old or cannot run a file.
    """
    source = Path(directory)
    manifest = read_manifest(source)
    if not isinstance(threads, int) or threads < 0:
        raise InputError(f"threads: expected an integer of 0 or more, got {threads!r}")
    policies, count = read_policies(source, manifest), threads or count_threads()
    chosen = _choose_policy(policies, policy)
    try:
        sessions = {
            int(one["exit"]): open_session(backend, source / one["file"], count, one["inputs"], one["outputs"])
            for one in manifest["segments"]
        }
        net = EdgeNetwork(manifest, sessions, chosen, policies)
    except ExitlensRuntimeError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{source / MANIFEST}: expected what exitlens wrote ({error!r}): export again") from error
    for name in policies:
        try:
            net.with_policy(name)
        except PolicyError as error:
            raise PolicyError(f"{source / (POLICY if name == DEFAULT else POLICIES)}, {name}: {error}") from error
    if check:
        check_golden(net, source / GOLDEN)
    return net


def read_policies(source: Path, manifest: Mapping[str, Any]) -> dict[str, Policy]:
    """By name: ``default``, the bundle's own, then the others; raises an error of ours for an entry that is no policy."""
    found = {DEFAULT: Policy.from_dict(read_json(source / POLICY))}
    named = read_json(source / POLICIES) if POLICIES in manifest["sha256"] else {}
    if not isinstance(named, dict) or any(name == DEFAULT or not NAME.fullmatch(name) for name in named):
        raise BundleError(f"{source / POLICIES}: expected policies by names a-z, 0-9, _ and -: export again")
    for name, values in named.items():
        try:
            found[name] = Policy.from_dict(values)
        except PolicyError as error:
            raise PolicyError(f"{source / POLICIES}, {name}: {error}") from error
    return found


def _choose_policy(policies: Mapping[str, Policy], policy: str | Path | Mapping[str, Any] | None) -> Policy:
    if policy is None or isinstance(policy, Mapping):
        return policies[DEFAULT] if policy is None else Policy.from_dict(policy)
    if isinstance(policy, str) and policy in policies:
        return policies[policy]
    if isinstance(policy, str) and NAME.fullmatch(policy) and not Path(policy).exists():
        raise PolicyError(f"policy: the bundle has {list(policies)}, none named {policy!r}: give one of these, or a file")
    try:
        return Policy.from_dict(json.loads(Path(policy).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PolicyError(f"policy: {policy} cannot be read ({error}): give a policy.json that exitlens wrote") from error


def read_manifest(source: Path) -> dict[str, Any]:
    """The manifest, once every file is what it says."""
    if not (source / MANIFEST).is_file():
        raise BundleError(f"{source}: no edge bundle (no {MANIFEST}): give a directory that exitlens export wrote")
    manifest = read_json(source / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sha256"), dict) or "segments" not in manifest:
        raise BundleError(f"{source / MANIFEST}: not of an edge bundle: give a directory that exitlens export wrote")
    form = manifest.get("format")
    if not isinstance(form, int) or not 1 <= form <= FORMAT:
        raise BundleError(f"{source / MANIFEST}: expected a format from 1 to {FORMAT}, got {form}: update exitlens-runtime")
    named = [one.get("file") if isinstance(one, dict) else None for one in manifest["segments"]]
    if not all(isinstance(name, str) and name in manifest["sha256"] for name in named):
        raise BundleError(f"{source / MANIFEST}: it names files without a checksum ({named}): export again")
    for name, checksum in manifest["sha256"].items():
        path = source / name
        if Path(name).name != name or not path.is_file():
            raise BundleError(f"{path}: missing: copy the bundle again from where it was exported")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != checksum:
            raise BundleError(f"{path}: altered or truncated (its checksum differs): copy the bundle again")
    return manifest


def read_json(path: Path) -> Any:
    """A JSON file; raises :class:`BundleError` where it is missing or none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as JSON ({error}): copy the bundle again") from error


def check_golden(net: EdgeNetwork, path: Path) -> None:
    """Raises :class:`BundleError` unless the network says here what the library said where it was exported.

    Logits and maps of every exit, and the exits and labels that the bundle's own policy leads to, and one
    under which some samples leave at every exit.
    """
    try:
        with np.load(path) as file:
            golden: dict[str, Array] = dict(file)
        inputs = {name: golden[name] for name in net.input_names}
        labels, exits = golden["labels"], golden["exits"]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path}: cannot be read ({error}): copy the bundle again") from error
    for name, found in net.compute_outputs(inputs).items():
        known = golden.get(name)
        if known is None:
            raise BundleError(f"{path}: it lacks {name}: export again")
        off = np.abs(found - known).max()
        if not off <= TOLERANCE * max(np.abs(known).max(), 1.0):
            raise BundleError(f"{path}: {name} is off by {off:.2g}: {OTHERWISE}")
    own = Policy.from_dict(read_json(path.parent / POLICY))
    _check_answers(net, own, inputs, (exits, labels), path)
    if "parting" in golden:
        parting = replace(own, thresholds=tuple(golden["parting"].tolist()), gate=None)
        _check_answers(net, parting, inputs, (golden["parted_exits"], golden["parted_labels"]), path)


def _check_answers(
    net: EdgeNetwork, policy: Policy, inputs: dict[str, Array], known: tuple[Array, Array], path: Path
) -> None:
    exits, labels = known
    early, late = (net.with_policy(policy.shift(by)).predict(inputs) for by in (-NEAR, NEAR))
    if not ((early.exits <= exits) & (exits <= late.exits)).all():
        raise BundleError(f"{path}: other exits answer than in the library: {OTHERWISE}")
    sure = early.exits == late.exits
    if not (early.labels == labels)[sure].all():
        raise BundleError(f"{path}: other labels than the library's: {OTHERWISE}")
