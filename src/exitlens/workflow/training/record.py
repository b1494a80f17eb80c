"""The directory of a training run: its arguments, checkpoints and log, and the launch that works on it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from exitlens.errors import ExitlensError, OutputExistsError, TrainingError
from exitlens.functional.losses import EGTLoss
from exitlens.io import make_directory, read_tensors, write_json, write_tensors, write_text
from exitlens.launch import count_restarts, name_launch
from exitlens.model.backbones.weights import load_unique_state, unique_state
from exitlens.model.network import ExitNet
from exitlens.ranks import ALONE, DistributedContext
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.debiasing import ShallowExpert
from exitlens.workflow.training.optimizer import WeightAverage, dump_slots, load_slots

LAST, BEST, LOG, SETTINGS = "last.safetensors", "best.safetensors", "log.csv", "settings.json"
GUIDE = "guide"  # directory of the guide's own run, in that of the run that it guides
QUALITIES = {"miou": "mean IoU", "accuracy": "accuracy", "r2": "R²", "cosine": "cosine"}  # the first in a row is monitored
LAUNCH = "launch"  # file that names the torchrun to which the run belongs
FREE = ("cache_features", "keep", "share_cores")  # settings that may change from one call to the next
PYTHON_ONLY = ("amp", "channels_last", "weight_decay")  # settings without an option on the command line
_OPTIONS = {  # settings of the loss by their options on the command line
    "weight": "--egt-weight",
    "target": "--egt-target",
    "reach": "--egt-reach",
    "every": "--egt-every",
    "label_smoothing": "--label-smoothing",
    "class_weights": "--class-weights",
    "source": "--backbone",
    "at": "--exits",
    "final": "--keep-final",
    "type": "--data",
    "length": "--data",
}
Kept = WeightAverage | ShallowExpert  # what a checkpoint holds besides network and optimiser, under names of its own


def describe_run(net: ExitNet, loss: EGTLoss, settings: TrainingSettings, train: Any) -> dict[str, Any]:
    """Return the record of a run as JSON values."""
    size = len(train) if isinstance(train, Dataset | DataLoader) and hasattr(train, "__len__") else None
    record = {
        "settings": asdict(settings),
        "loss": asdict(loss),
        "network": replace(net.info, map_offsets=(), feature_offsets=()).to_dict(),  # the offsets follow from weights
        "training_data": {"type": type(train).__name__, "length": size},
    }
    return json.loads(json.dumps(record))  # type: ignore[no-any-return]


def open_record(out_dir: Path, record: dict[str, Any], resume: bool) -> tuple[bool, str]:
    """Write a run's record; return whether there is an epoch to resume from, and a line about settings that changed."""
    path, note = out_dir / SETTINGS, ""
    if path.exists() and not resume:
        raise OutputExistsError(
            f"out_dir: {out_dir} holds a run already. Fix: pass resume=True (--resume) to go on, or another directory."
        )
    make_directory(out_dir, "out_dir")
    if path.exists():
        note = _compare(path, record)
    if name := name_launch():
        write_text(out_dir / LAUNCH, name + "\n")
    write_json(path, record)
    return (out_dir / LAST).exists(), note


def read_epochs(out_dir: Path) -> int | None:
    """Return the epochs of the run in a directory; ``None`` if there is no run, or its record is damaged."""
    try:
        epochs = json.loads((out_dir / SETTINGS).read_text())["settings"]["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return epochs if isinstance(epochs, int) else None


def _compare(path: Path, record: dict[str, Any]) -> str:
    """Return a line if there are more epochs than before; raise :class:`TrainingError` for any other difference."""
    try:
        before = json.loads(path.read_text())
        before["settings"] = json.loads(json.dumps(asdict(TrainingSettings(**before["settings"]))))
        changes = {
            name: (before[part].get(name), record[part].get(name))
            for part in record
            for name in sorted(before[part].keys() | record[part].keys())
            if name not in FREE and _differ(before[part].get(name), record[part].get(name))
        }
    except (ValueError, KeyError, TypeError, AttributeError, ExitlensError) as error:
        raise TrainingError(
            f"resume: {path} is damaged, or of another version ({error}). Fix: start again in another out_dir (--out)."
        ) from error
    note = ""
    if "epochs" in changes and changes["epochs"][0] < changes["epochs"][1]:
        fewer, epochs = changes.pop("epochs")
        note = f"epochs: {epochs}, {fewer} before: training goes on, with the learning rates of {epochs} epochs"
    lines = []
    for name, values in changes.items():
        has_option = name in TrainingSettings.__dataclass_fields__ and name not in PYTHON_ONLY
        option = _OPTIONS.get(name, f"--{name.replace('_', '-')}" if has_option else "")
        old, new = ("none" if value in (None, "") else f"{value}" for value in values)
        change = f"was {old}, is now {new}" if len(old + new) < 100 else "differs"
        lines.append(f"{name}{f' ({option})' if option else ''} {change}")
    if lines:
        raise TrainingError(
            f"resume: {path} was made with other arguments: {'; '.join(lines)}. "
            "Fix: pass the same values (more epochs are fine), or another out_dir (--out)."
        )
    return note


def _differ(before: object, now: object) -> bool:
    """Compare two recorded values; what is not there, as in the record of an earlier version, is an empty one."""
    empty: tuple[object, ...] = (None, "", [], {})
    return before != now and not (before in empty and now in empty)


def is_restarted(out_dir: Path) -> bool:
    """Return whether ``torchrun`` restarted its processes while they worked on this directory."""
    path = out_dir / LAUNCH
    return count_restarts() > 0 and path.is_file() and path.read_text().strip() == name_launch()


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: Optimizer, note: Mapping[str, Any], others: Sequence[Kept] = ()
) -> None:
    """Write the state of a module, its optimiser and others, with a JSON note, atomically."""
    tensors = {f"net.{name}": value for name, value in unique_state(module).items()}
    for other in others:
        tensors |= other.dump()
    write_tensors(path, tensors | dump_slots(optimizer, "optimizer"), note)


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: Optimizer, others: Sequence[Kept] = (), ranks: DistributedContext = ALONE
) -> dict[str, Any]:
    """Load what :func:`save_checkpoint` wrote in place, and return the note. Rank 0 alone reads the file."""
    tensors, note = ranks.share(lambda: read_tensors(path))
    state = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
    load_unique_state(module, state, str(path))
    for other in others:
        other.restore(tensors)
    load_slots(optimizer, tensors, "optimizer")
    return note


def format_epoch(row: dict[str, Any], epochs: int) -> str:
    """Return a line about an epoch: loss, validation accuracy (or the like) of every exit, CC of the early exits' maps."""
    accuracy = " ".join(f"{100 * a:.1f}" for a in row["accuracy"]) if "accuracy" in row else ""
    accuracy = f" | val accuracy {accuracy}" if accuracy else ""
    cc = " ".join(f"{c:.2f}" for c in row["cc"])
    agreement = f" | map CC with final {cc}" if cc else ""
    labels = "".join(
        f" | {title} {' '.join(f'{value:.3f}' for value in row[name])}"
        for name, title in {"f1": "micro-F1", **QUALITIES}.items()
        if name in row and name != "accuracy"
    )
    return f"epoch {row['epoch']}/{epochs}: loss {row['loss']['total']:.3f}{accuracy}{labels}{agreement}"


def find_quality(row: Mapping[str, Any]) -> list[float]:
    """Return what says how good every exit was in an epoch, larger is better."""
    return next(row[name] for name in QUALITIES if name in row)


def write_log(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Write the whole history as CSV, atomically."""
    rows, text = [flatten_row(row) for row in history], io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))  # micro-F1 is missing from an epoch without labels
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def flatten_row(row: dict[str, Any]) -> dict[str, float]:
    """Return an epoch as named numbers: ``loss_total``, ``accuracy_exit0``, ``cc_exit0`` and so on."""
    flat = {"epoch": row["epoch"], "seconds": round(row["seconds"], 2)}
    flat |= {f"loss_{name}": value for name, value in row["loss"].items()} | {"val_loss": row["val_loss"]}
    for name in ("accuracy", "f1", "miou", "r2", "cosine", "cc"):
        flat |= {f"{name}_exit{k}": value for k, value in enumerate(row.get(name, ()))}
    return flat
