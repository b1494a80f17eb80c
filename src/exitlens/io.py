"""Files written so that a crash leaves the old one or the new one; tensors with a JSON note as safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from exitlens.errors import BundleError


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically: to a temporary file beside ``path``, flushed to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Writes atomically: to a temporary file beside ``path``, flushed to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, temporary, metadata={"note": json.dumps(note)})
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`write_tensors`.

    Raises:
        BundleError: for a file that is missing, truncated or not of this form.
    """
    if not path.is_file():
        raise BundleError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as handle:
            note = json.loads((handle.metadata() or {}).get("note", "{}"))
            return {name: handle.get_tensor(name) for name in handle.keys()}, note  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise BundleError(f"{path}: damaged or truncated ({error}): write it again from the source run") from error
