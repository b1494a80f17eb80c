"""A vector in a file: ``.npy``, or a ``.csv`` or Parquet table of one row, whose columns are the features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import DataError
from exitlens.modalities.files.arrays import check_finite, read_npy
from exitlens.modalities.files.series import read_table
from exitlens.types.scaling import VectorPreprocess

VECTOR_FILES = (".npy", ".csv", ".parquet")


def read_vector(path: Path, preprocess: VectorPreprocess, name: str = "") -> Tensor:  # -> (F,) float32
    """A file's vector with the features that ``preprocess`` has, not yet normalised.

    Raises:
        DataError: a file that cannot be read, or holds several rows, other features or gaps.
    """
    name = name or str(path)
    if path.suffix.lower() == ".npy":
        found, names = read_npy(path, name), tuple[str, ...]()
    elif path.suffix.lower() in VECTOR_FILES:
        table, names = read_table(path, name)
        if len(table) != 1:
            raise DataError(f"{name}: expected one row, a vector, got {len(table)}: pass tables of many by --data")
        found = table[0]
    else:
        raise DataError(f"{name}: it is no vector: expected {', '.join(VECTOR_FILES)}")
    if found.ndim != 1:
        raise DataError(f"{name}: expected an array (F,), got {found.shape}: a file holds one vector")
    values = torch.from_numpy(pick_features(found[None], names, preprocess, name)[0])
    check_finite(values, name, preprocess.names)
    return values


def pick_features(table: Any, names: Sequence[str], preprocess: VectorPreprocess, name: str) -> Any:  # (N,*) -> (N,F)
    """The columns that a network takes, in its order: by their names, where both have them.

    Raises:
        DataError: a feature that is not there, or another number of them.
    """
    if preprocess.names and names:
        missing = [one for one in preprocess.names if one not in names]
        if missing:
            raise DataError(f"{name}: it has no feature {missing[0]!r}, but {list(names)}: name the columns as in training")
        return table[:, [list(names).index(one) for one in preprocess.names]]
    if table.shape[1] != len(preprocess.mean):
        raise DataError(f"{name}: expected {len(preprocess.mean)} features as in training, got {table.shape[1]}")
    return table
