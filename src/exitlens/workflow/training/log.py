"""What a training run tells of itself: a line an epoch, a CSV log, TensorBoard events. A row is one epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exitlens.errors import import_extra
from exitlens.io import write_text


def format_epoch(row: dict[str, Any], epochs: int) -> str:
    """One epoch for people: loss, validation accuracy of every exit, attention CC of the early exits."""
    accuracy = " ".join(f"{100 * a:.1f}" for a in row["accuracy"])
    cc = " ".join(f"{c:.2f}" for c in row["cc"])
    agreement = f" | map CC with final {cc}" if cc else ""
    labels = f" | micro-F1 {' '.join(f'{value:.3f}' for value in row['f1'])}" if "f1" in row else ""
    return f"epoch {row['epoch']}/{epochs}: loss {row['loss']['total']:.3f} | val accuracy {accuracy}{labels}{agreement}"


def write_log(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Writes the whole history as CSV, atomically."""
    rows = [flatten_row(row) for row in history]
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))  # a resumed run may have begun with fewer
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def flatten_row(row: dict[str, Any]) -> dict[str, float]:
    """One epoch as named numbers: ``loss_total``, ``accuracy_exit0``, ``cc_exit0`` and so on."""
    flat = {"epoch": row["epoch"], "seconds": round(row["seconds"], 2)}
    flat |= {f"loss_{name}": value for name, value in row["loss"].items()}
    flat |= {"val_loss": row["val_loss"]} if "val_loss" in row else {}
    flat |= {f"accuracy_exit{k}": value for k, value in enumerate(row["accuracy"])}
    flat |= {f"f1_exit{k}": value for k, value in enumerate(row.get("f1", ()))}
    return flat | {f"cc_exit{k}": value for k, value in enumerate(row["cc"])}


@contextmanager
def open_tensorboard(out_dir: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that writes a row to TensorBoard, or does nothing without ``out_dir`` (extra ``log``)."""
    if out_dir is None:
        yield lambda row: None
        return
    writer = import_extra("torch.utils.tensorboard", "log", "fit(tensorboard=True)").SummaryWriter(str(out_dir))

    def write(row: dict[str, Any]) -> None:
        for name, value in flatten_row(row).items():
            writer.add_scalar(name, value, row["epoch"])

    try:
        yield write
    finally:
        writer.close()
