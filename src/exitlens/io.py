"""Files that appear complete or not at all: text, JSON, tensors, and manifests with checksums."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from exitlens.errors import BundleError


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path``: what is written there replaces ``path``, or is removed after an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON note as safetensors, atomically."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replace_atomically(path) as temporary:
        save_file(plain, temporary, metadata={"note": json.dumps(note)})


def write_manifest(path: Path, files: Sequence[Path], facts: Mapping[str, Any]) -> None:
    """Writes ``facts`` and the SHA-256 of every file as JSON, atomically."""
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    write_json(path, {**facts, "sha256": sums})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`write_tensors`; raises :class:`BundleError` if it is missing, truncated or not of this form."""
    if not path.is_file():
        raise BundleError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as handle:
            note = json.loads((handle.metadata() or {}).get("note", "{}"))
            return {name: handle.get_tensor(name) for name in handle.keys()}, note  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise BundleError(f"{path}: damaged or truncated ({error}): write it again from the source run") from error
