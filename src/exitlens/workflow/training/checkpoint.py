"""Checkpoints: the state of a network and of its optimiser in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from exitlens.io import read_tensors, write_tensors
from exitlens.model.backbones.weights import load_unique_state, unique_state
from exitlens.ranks import ALONE, Ranks
from exitlens.workflow.training.ema import WeightAverage
from exitlens.workflow.training.parameters import load_slots


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: Optimizer, note: Mapping[str, Any], average: WeightAverage | None = None
) -> None:
    """Writes the state of a module, of its optimiser and of the average of its weights, with a JSON note, atomically."""
    tensors = {f"net.{name}": value for name, value in unique_state(module).items()}
    tensors |= {} if average is None else average.dump()
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
    write_tensors(path, tensors, note)


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: Optimizer, average: WeightAverage | None = None, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Inverse of :func:`save_checkpoint`: loads module, optimiser and average in place and returns the note.

    Rank 0 alone reads the file.

    Raises :class:`BundleError` for a damaged file or one of another network.
    """
    tensors, note = ranks.share(lambda: read_tensors(path))
    state = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
    load_unique_state(module, state, str(path))
    if average is not None:
        average.restore(tensors)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            slots.setdefault(int(index), {})[slot] = value
    load_slots(optimizer, slots)
    return note
