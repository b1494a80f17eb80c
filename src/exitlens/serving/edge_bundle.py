"""An edge bundle as something to serve: its ONNX files in place of stages and heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from exitlens.edge.export import FORMAT, GOLDEN, MANIFEST, POLICIES, POLICY
from exitlens.errors import BundleError, ExitlensError, PolicyError
from exitlens.functional.routing import needs_head
from exitlens.io import read_json, verify_checksums
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.onnx_engine import FileEngine, OnnxFile
from exitlens.model.engine.onnx_files import ATTENTION, LOGITS, is_close
from exitlens.model.engine.tuning import Tuning
from exitlens.model.info import InputSpec, NetworkInfo
from exitlens.types import Policy
from exitlens.types.policies import DEFAULT, check_fit


class EdgeParts(NamedTuple):
    """What a bundle says of its network; see :class:`~exitlens.serving.models.ServedModel`."""

    info: NetworkInfo
    spec: InputSpec
    cost: tuple[float, ...]
    policies: Mapping[str, Policy]
    open_engine: Callable[[], AbstractContextManager[Engine]]
    exits: frozenset[int]


def open_edge(source: Path) -> EdgeParts:
    """What ``exitlens export`` wrote; raises :class:`BundleError` for anything else, :class:`PolicyError` for its policy."""
    manifest = read_json(source / MANIFEST)
    form = manifest.get("format")
    if form != FORMAT:
        raise BundleError(f"{source / MANIFEST}: expected format {FORMAT}, got {form}. Fix: export the network again.")
    verify_checksums(source, manifest)
    try:
        info, spec = read_network(manifest)
        paths = [str(one["file"]) for one in manifest["segments"]]
        if not set(paths) <= set(manifest["sha256"]):  # whose names are plain
            raise ValueError(f"no checksum for some of {paths}")
        files = {
            int(one["exit"]): OnnxFile(source / name, one["inputs"], one["outputs"])
            for one, name in zip(manifest["segments"], paths, strict=True)
        }
        cost = tuple(map(float, manifest["cost"]))
        named = {DEFAULT: read_json(source / POLICY)}
        named |= read_json(source / POLICIES) if POLICIES in manifest["sha256"] else {}
        policies = {name: Policy.from_dict(values) for name, values in named.items()}
    except ExitlensError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{source / MANIFEST}: expected what exitlens export writes ({error!r}): export again") from error
    for name, policy in policies.items():
        check_fit(policy, len(cost), str(manifest["network"]) if policy.network else "", name, info.task)
        missing = [k for k in range(len(cost)) if needs_head(policy, k) and k not in files]
        if missing:
            raise PolicyError(f"{name}: it uses exits {missing}, the bundle has {sorted(files)}: export with this policy")
    check_golden(source / GOLDEN, FileEngine(files, Tuning(backend="onnx")), manifest)
    return EdgeParts(info, spec, cost, policies, lambda: _open(files), frozenset(files))


@contextmanager
def _open(files: Mapping[int, OnnxFile]) -> Iterator[Engine]:
    engine = FileEngine(files, Tuning(backend="onnx"))
    with engine.mode():
        yield engine


def read_network(manifest: Mapping[str, Any]) -> tuple[NetworkInfo, InputSpec]:
    """How the network was made, as far as an edge bundle says it, and what it takes."""
    names = tuple(str(one["name"]) for one in manifest["inputs"])
    shape, kinds = tuple(manifest["inputs"][0]["shape"]), [str(one["dtype"]) for one in manifest["inputs"]]
    tokens = tuple(kinds) if kinds[0].startswith("int") else ()
    names = names if tokens or len(names) > 1 else ()
    described = manifest["preprocess"]
    several = len(names) > 1 and any(one.startswith("float") for one in kinds)
    shapes = tuple(tuple(one["shape"]) for one in manifest["inputs"]) if several else ()
    info = NetworkInfo(
        at=("",) * (int(manifest["num_exits"]) - 1),
        num_classes=int(manifest["num_classes"]),
        final="head",
        input_shape=shape,
        classes=tuple(manifest["classes"]),
        inputs=names,
        dtypes=tuple(kinds) if several else tokens,
        input_shapes=shapes,
        map_offsets=tuple(map(tuple, manifest["map_offsets"])),
        task=manifest.get("task", "classes"),
    )
    if described is not None:
        info = replace(info, preprocess=info.modality.preprocess.from_dict(described))
    dtypes = tuple(getattr(torch, one) for one in kinds)
    known = tuple(manifest["vocabulary"])
    return info, InputSpec(names, shape, True, known, int(manifest["prefix"]), dtypes, shapes=shapes)


def check_golden(path: Path, engine: FileEngine, manifest: Mapping[str, Any]) -> None:
    """Raises :class:`BundleError` unless the files say here what the library said where they were written."""
    try:
        with np.load(path) as file:
            golden = {name: torch.from_numpy(file[name]) for name in file.files}
        given = tuple(golden[one["name"]] for one in manifest["inputs"])
        with engine.mode():
            outputs = engine.compute_outputs(given)
        pairs = [
            (values, golden[f"{name}_{k}"])
            for k, found in zip(engine.opened, outputs, strict=True)
            for name, values in zip((LOGITS, ATTENTION), found, strict=True)
        ]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path}: cannot be read ({error}): copy the bundle again") from error
    if not all(is_close(values, known) for values, known in pairs):
        raise BundleError(f"{path}: this machine computes something else than where it was exported: export it here")
