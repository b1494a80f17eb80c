"""Predictions on a cluster: a class for Ray Data's ``map_batches`` (extra ``ray``; docs/guides/several_machines.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from exitlens.delivery.run_directory import load_calibrated, require_preprocess
from exitlens.errors import DataError, InputError, require
from exitlens.modalities import TEXT
from exitlens.modalities.image import decode_image, read_image, to_pixels
from exitlens.types.inputs import Inputs
from exitlens.types.preprocessing import Preprocess, TextPreprocess
from exitlens.types.settings import COUNT, check_number
from exitlens.types.tasks import name_answers
from exitlens.workflow.inference import predict

COLUMNS = ("label", "exit", "confidence", "cost", "error")  # of every answer
Columns = dict[str, Any]  # arrays (B,...) by name, as Ray Data gives and takes them


class Predictor:
    """Answers batches of rows. Every actor loads the bundle once; rows keep their order and their other columns.

    ::

        four = ray.data.ActorPoolStrategy(size=4)
        rows.map_batches(Predictor, fn_constructor_args=("runs/x", "image"), batch_size=64, compute=four)

    It adds the columns ``label`` (the class's name), ``exit``, ``confidence``, ``cost`` (as a fraction of the plain
    backbone's) and ``error``, which is empty for rows that were answered.

    Args:
        bundle: a bundle or run directory with a policy, on a path that every machine sees.
        column: the column to read. Images are encoded bytes (also as ``{"bytes": ...}``, as in the ``datasets`` library),
            paths, ``uint8`` arrays ``(H,W)``, ``(H,W,1)`` or ``(H,W,3)``, or ``float32`` arrays ``(C,H,W)``, which go to
            the network unchanged. Texts are strings.
        keep: the other columns to keep, such as keys; by default all but ``column``.
        skip_bad: give a row that cannot be read an ``error``, an empty label, exit -1 and cost 0, instead of ending the job.
        threads: PyTorch's threads in every actor: as many as the CPUs that Ray reserves for it.
    """

    def __init__(
        self, bundle: str | Path, column: str, *, keep: Sequence[str] | None = None, skip_bad: bool = False, threads: int = 1
    ) -> None:
        require(column, str, "column")
        check_number("threads", threads, COUNT)
        if isinstance(keep, str):
            raise InputError(f"keep: expected a list of columns, got {keep!r}")
        torch.set_num_threads(threads)
        self.net, self.policy = load_calibrated(Path(bundle))
        self.column, self.keep, self.skip_bad = column, keep, skip_bad
        self._read: Callable[[Any, str], Any]
        self._join: Callable[[list[Any]], Inputs]
        if self.net.input_spec.modality is TEXT:
            self._read, self._join = _read_text, require_preprocess(self.net, TextPreprocess).encode
        else:
            self._read, self._join = partial(_read_image, require_preprocess(self.net, Preprocess)), torch.stack

    def __call__(self, batch: Columns) -> Columns:
        """Return the rows with their answers."""
        if self.column not in batch:
            raise InputError(f"column: expected one of the rows' columns {sorted(batch)}, got {self.column!r}")
        names = [name for name in batch if name != self.column] if self.keep is None else list(self.keep)
        if missing := [name for name in names if name not in batch]:
            raise InputError(f"keep: expected some of the rows' columns {sorted(batch)}, got {missing[0]!r}")
        if taken := sorted({*COLUMNS} & {*names}):
            raise InputError(f"keep: {taken} are names of the answer's columns. Fix: rename them, or keep others.")
        cells, samples, readable = batch[self.column], [], []
        errors = np.full(len(cells), "", dtype=object)
        for i, cell in enumerate(cells):
            try:
                samples.append(self._read(cell, f"row {i} of its batch"))
                readable.append(i)
            except DataError as error:
                if not self.skip_bad:
                    keys = {name: batch[name][i] for name in names}
                    raise DataError(f"data: {error} {keys}. Fix: remove it, or pass skip_bad=True.") from error
                errors[i] = str(error)
        label, exits = np.full(len(cells), "", dtype=object), np.full(len(cells), -1)
        confidence, cost = np.full(len(cells), np.nan), np.zeros(len(cells))
        if readable:
            pred = predict(self.net, self._join(samples), self.policy)
            label[readable] = name_answers(pred.labels, self.net.info.classes)
            exits[readable], confidence[readable] = pred.exits.cpu().numpy(), pred.confidence.cpu().numpy()
            cost[readable] = self.net.cost[pred.exits.cpu()].numpy()
        answers = dict(zip(COLUMNS, (label, exits, confidence, cost, errors), strict=True))
        return {name: batch[name] for name in names} | answers


def _read_text(cell: Any, name: str) -> str:
    if not isinstance(cell, str) or not cell.strip():
        raise DataError(f"{name}: expected a text, got {cell!r:.60}")
    return str(cell)


def _read_image(preprocess: Preprocess, cell: Any, name: str) -> Tensor:
    """Return a cell of a table as the network's input."""
    size, channels = preprocess.size, len(preprocess.mean)
    if isinstance(cell, dict):  # the struct of an Image feature
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return preprocess.normalise(decode_image(cell, name, size, channels))
    if isinstance(cell, str):
        return preprocess.normalise(read_image(Path(cell), size, channels))
    if isinstance(cell, np.ndarray) and cell.dtype == np.float32 and cell.ndim == 3:
        return torch.from_numpy(cell)
    if isinstance(cell, np.ndarray) and cell.dtype == np.uint8 and (cell.ndim == 2 or cell.shape[2:] in ((1,), (3,))):
        picture = Image.fromarray(cell[..., 0] if cell.shape[2:] == (1,) else cell)
        return preprocess.normalise(to_pixels(picture.convert("L" if channels == 1 else "RGB"), size, channels))
    got = f"{cell.dtype} {cell.shape}" if isinstance(cell, np.ndarray) else type(cell).__name__
    raise DataError(f"{name}: expected an image (bytes, a path or an array (H,W,C) of uint8), got {got}")
