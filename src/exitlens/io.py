"""Files written so that a crash leaves the old one or the new one; tensors with a JSON note as safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

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


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with tensors that appear under several names kept once, copied out of shared storage."""
    seen: set[int] = set()
    state = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            state[name] = value.detach().clone()
    return state


def load_unique_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads what :func:`unique_state` gave into a module built the same way; all shapes are checked before any write.

    Raises:
        BundleError: missing, unexpected or misshapen tensors.
    """
    expected = unique_state(module)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        raise BundleError(f"{where}: tensors do not fit the network: missing {missing[:3]}, unexpected {extra[:3]}")
    for name, value in state.items():
        if value.shape != expected[name].shape or value.dtype != expected[name].dtype:
            raise BundleError(
                f"{where}: {name} is {tuple(value.shape)} {value.dtype}, the network has {tuple(expected[name].shape)} "
                f"{expected[name].dtype}"
            )
    module.load_state_dict(state, strict=False)


def save_checkpoint(path: Path, module: nn.Module, optimizer: Optimizer, note: Mapping[str, Any]) -> None:
    """Writes the state of a module and of its optimiser, with a JSON note, atomically."""
    tensors = {f"net.{name}": value for name, value in unique_state(module).items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
    write_tensors(path, tensors, note)


def load_checkpoint(path: Path, module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Inverse of :func:`save_checkpoint`: loads module and optimiser in place and returns the note.

    Raises:
        BundleError: a damaged file or one of another network.
    """
    tensors, note = read_tensors(path)
    state = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
    load_unique_state(module, state, str(path))
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return note
