"""load: open an edge bundle, once every file of it has been checked."""

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
from exitlens_runtime.hub import fetch_bundle
from exitlens_runtime.network import EdgeNetwork, Prediction
from exitlens_runtime.routing import Array, Policy
from exitlens_runtime.sessions import count_threads, open_session

FORMAT = 2
MANIFEST, POLICY, GOLDEN = "manifest.json", "policy.json", "golden.npz"
POLICIES, DEFAULT = "policies.json", "default"  # the named policies, and the name of the bundle's own among them
NAME = re.compile("[a-z0-9_-]{1,40}")
TOLERANCE = 1e-4  # of the largest absolute value
NEAR = 1e-3  # of a threshold, either exit may answer
AGAIN, COPY = "Fix: export the network again.", "Fix: copy the bundle again from where it was exported."
SKIP = "This processor or backend computes other numbers than the exporter's. Fix: pass check=False to use it nevertheless."


def load(
    directory: str | Path,
    *,
    policy: str | Path | Mapping[str, Any] | None = None,
    backend: str = "onnxruntime",
    threads: int = 0,
    check: bool = True,
) -> EdgeNetwork:
    """Open an edge bundle, which ``exitlens export`` wrote.

    Args:
        directory: the edge bundle, or its address on the Hugging Face Hub: ``hf://user/name`` or
            ``hf://user/name@revision`` (the extra ``hub``).
        policy: replaces the bundle's own policy: the name of another one in it, a ``policy.json`` of the same network, or
            the contents of one. It may use only exits that are in the bundle.
        backend: ``onnxruntime``, or ``openvino`` (the extra ``openvino``).
        threads: number of threads for a call; 0: one for each processor.
        check: run the samples that came with the bundle, and compare the answers with the library's.

    Raises:
        BundleError: for a missing, altered or truncated file, another format, or other answers than the library's.
        HubError: for an address that nothing can be fetched from.
        PolicyError: for a policy of another network, or an unknown name.
        BackendError: if the backend is missing, too old, or cannot run a file.
    """
    source = fetch_bundle(directory)
    manifest = read_manifest(source)
    if not isinstance(threads, int) or threads < 0:
        raise InputError(f"threads: expected an integer of 0 or more, got {threads!r}")
    policies, count = _read_policies(source, manifest), threads or count_threads()
    chosen = _choose_policy(policies, policy)
    try:
        sessions = {
            int(part["exit"]): open_session(backend, source / part["file"], count, part["inputs"], part["outputs"])
            for part in manifest["segments"]
        }
        net = EdgeNetwork(manifest, sessions, chosen, policies)
    except ExitlensRuntimeError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{source / MANIFEST}: expected what exitlens wrote, got {error!r}. {AGAIN}") from error
    for name in policies:
        try:
            net.with_policy(name)
        except PolicyError as error:
            raise PolicyError(f"{source / (POLICY if name == DEFAULT else POLICIES)}, {name}: {error}") from error
    if check:
        _check_golden(net, policies[DEFAULT], source / GOLDEN)
    return net


def _read_policies(source: Path, manifest: Mapping[str, Any]) -> dict[str, Policy]:
    """Return the bundle's own policy as ``default``, followed by the named ones."""
    policies = {DEFAULT: Policy.from_dict(_read_json(source / POLICY))}
    named = _read_json(source / POLICIES) if POLICIES in manifest["sha256"] else {}
    if not isinstance(named, dict) or any(name == DEFAULT or not NAME.fullmatch(name) for name in named):
        raise BundleError(f"{source / POLICIES}: expected policies by names of a-z, 0-9, _ and -. {AGAIN}")
    for name, values in named.items():
        try:
            policies[name] = Policy.from_dict(values)
        except PolicyError as error:
            raise PolicyError(f"{source / POLICIES}, {name}: {error}") from error
    return policies


def _choose_policy(policies: Mapping[str, Policy], policy: str | Path | Mapping[str, Any] | None) -> Policy:
    if policy is None or isinstance(policy, Mapping):
        return policies[DEFAULT] if policy is None else Policy.from_dict(policy)
    if isinstance(policy, str) and policy in policies:
        return policies[policy]
    if isinstance(policy, str) and NAME.fullmatch(policy) and not Path(policy).exists():
        raise PolicyError(f"policy: expected one of {list(policies)} or a file, got {policy!r}")
    try:
        return Policy.from_dict(json.loads(Path(policy).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PolicyError(f"policy: {policy} cannot be read ({error}). Fix: pass a policy.json of exitlens.") from error


def read_manifest(source: Path) -> dict[str, Any]:
    """Return the manifest, after checking the format and every file's checksum."""
    path = source / MANIFEST
    if not path.is_file():
        raise BundleError(f"{source}: no edge bundle (no {MANIFEST}). Fix: pass a directory that exitlens export wrote.")
    manifest = _read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sha256"), dict) or "segments" not in manifest:
        raise BundleError(f"{path}: not of an edge bundle. Fix: pass a directory that exitlens export wrote.")
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{path}: expected format {FORMAT}, got {manifest.get('format')}. Fix: export the network again with "
            "a matching version of exitlens."
        )
    names = [part.get("file") if isinstance(part, dict) else None for part in manifest["segments"]]
    if not all(isinstance(name, str) and name in manifest["sha256"] for name in names):
        raise BundleError(f"{path}: it names files without a checksum ({names}). {AGAIN}")
    for name, checksum in manifest["sha256"].items():
        path = source / name
        if Path(name).name != name or not path.is_file():
            raise BundleError(f"{path}: missing. {COPY}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != checksum:
                raise BundleError(f"{path}: altered or truncated (its checksum differs). {COPY}")
    return manifest


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as JSON ({error}). {COPY}") from error


def _check_golden(net: EdgeNetwork, policy: Policy, path: Path) -> None:
    """Raise :class:`BundleError` unless the network answers here as the library did at export.

    Logits and maps of every exit are compared, and exits and labels under the bundle's own policy and under one that lets
    some samples leave at every exit.
    """
    try:
        with np.load(path) as file:
            golden: dict[str, Array] = dict(file)
        inputs = {name: golden[name] for name in net.input_names}
        parting = replace(policy, thresholds=tuple(golden["parting"].tolist()), gate=None)
        outputs = net.compute_outputs(inputs)
        wanted = {name: golden[name] for name in outputs}
        answers = ((policy, golden["exits"], golden["labels"]), (parting, golden["parted_exits"], golden["parted_labels"]))
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path}: cannot be read ({error}). {AGAIN}") from error
    for name, values in outputs.items():
        off = np.abs(values - wanted[name]).max()
        if not off <= TOLERANCE * max(np.abs(wanted[name]).max(), 1.0):
            raise BundleError(f"{path}: {name} is off by {off:.2g}. {SKIP}")
    for used, exits, labels in answers:
        early, late = (net.with_policy(used.shift(by)).predict(inputs) for by in (-NEAR, NEAR))
        if not ((early.exits <= exits) & (exits <= late.exits)).all():
            raise BundleError(f"{path}: other exits answer than in the library. {SKIP}")
        if not _match_labels(early, labels)[early.exits == exits].all():
            raise BundleError(f"{path}: other labels than the library's. {SKIP}")


def _match_labels(pred: Prediction, labels: Array) -> Array:
    """Tell where labels are the expected ones; those of pixels may be others that are nearly as probable.

    Numbers and vectors may be off by rounding.
    """
    if labels.dtype.kind == "f":
        return np.isclose(pred.labels, labels, TOLERANCE, TOLERANCE * np.abs(labels).max())
    same: Array = pred.labels == labels
    if labels.ndim == 3:
        given = np.take_along_axis(pred.probabilities, labels[:, None].astype(np.int64), 1)[:, 0]
        same = pred.probabilities.max(1) - given < NEAR
    return same
