"""Vectors of features: floats ``(B,F)``. Maps lie on groups of features, or on a token for each; else there are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from exitlens.errors import DataError, InputError
from exitlens.functional.baselines import Baseline
from exitlens.functional.maps import top_cells
from exitlens.modalities.arrays import check_finite, pick_rows, read_npy
from exitlens.modalities.base import Modality
from exitlens.modalities.parts import Part, list_feature_parts
from exitlens.modalities.series import read_table
from exitlens.types.inputs import Groups, InputFormat, Inputs
from exitlens.types.preprocessing import VectorPreprocess

VECTOR_FILES = (".npy", ".csv", ".parquet")


class VectorModality(Modality):
    """Vectors with samples ``(F,)``, whose maps lie on ``groups`` of features or on tokens (hidden units mix features)."""

    name, plural, axes = "vector", "vectors", ("F",)
    expected = "a float tensor (B,F) of vectors of features"
    preprocess = VectorPreprocess
    reader = "xl.data.VectorPreprocess.normalise"
    given = "a table of features"
    side = 16
    baselines = ("mean",)

    def __init__(self, groups: Groups = ()) -> None:
        self.groups = groups

    def adapt(self, given: InputFormat) -> Modality:
        """Take the groups of features from the network."""
        return VectorModality(given.groups) if given.groups else self

    def decode(self, path: Path, preprocess: VectorPreprocess) -> Tensor:
        """Read the features of ``preprocess`` from a ``.npy`` file or a table of one row."""
        name = str(path)
        if path.suffix.lower() == ".npy":
            array, names = read_npy(path, name), tuple[str, ...]()
        elif path.suffix.lower() in VECTOR_FILES:
            table, names = read_table(path, name)
            if len(table) != 1:
                raise DataError(f"{name}: expected one row, a vector, got {len(table)}. Fix: pass tables of many by --data")
            array = table[0]
        else:
            raise DataError(f"{name}: not a file of a vector: expected {', '.join(VECTOR_FILES)}")
        if array.ndim != 1:
            raise DataError(f"{name}: expected one vector in a file, (F,), got an array {array.shape}")
        values = pick_rows(torch.from_numpy(array), names, preprocess.names, f"{name}: no feature")
        if len(values) != len(preprocess.mean):
            raise DataError(f"{name}: expected {len(preprocess.mean)} features as in training, got {len(values)}")
        check_finite(values, name, preprocess.names)
        return values

    def spread(self, cells: Tensor, inputs: Tensor) -> Tensor:  # (B,G) bool -> (B,F) bool
        """Spread groups over their features."""
        if not self.groups:
            if cells.shape[1] != inputs.shape[1]:
                problem = f"its maps have {cells.shape[1]} locations and its vectors {inputs.shape[1]} features"
                fix = "name groups of features, xl.attach(..., groups={'blood': [0, 1], ...})"
                raise InputError(f"net: {problem}. Fix: {fix}")
            return cells
        members = torch.zeros(len(self.groups), inputs.shape[1], device=cells.device)  # (G,F)
        for row, (_, features) in enumerate(self.groups):
            members[row, list(features)] = 1.0
        return (cells.float() @ members) > 0

    def delete(self, inputs: Tensor, cells: Tensor, baseline: Baseline = "mean") -> Inputs:  # (B,F), (B,G) bool -> (B,F)
        """Set the features of the chosen groups to 0: the mean of standardised features."""
        return inputs.masked_fill(self.spread(cells, inputs), 0.0)

    def keep_only(self, inputs: Tensor, donors: Tensor, cells: Tensor) -> Inputs:  # (B,F) each, (B,G) bool -> (B,F)
        """Take all but the features of the chosen groups from the donors, also those that are in no group."""
        return torch.where(self.spread(cells, inputs), inputs, donors)

    def paint_over(self, inputs: Tensor, cells: Tensor) -> Inputs:
        """Return the inputs as they are: features have no neighbours whose values could be theirs."""
        return inputs

    def choose_region(self, maps: Tensor, inputs: Tensor, area: float) -> Tensor:  # (B,G) -> (B,G) bool
        """Mark the top share ``area`` of the groups."""
        return top_cells(maps, area)

    def list_parts(self, inputs: Tensor, preprocess: object, least: int) -> list[Part]:
        """List the groups of features, or every feature."""
        names = getattr(preprocess, "names", ()) or map(str, range(inputs.shape[1]))
        return list_feature_parts(self.groups or [(name, (i,)) for i, name in enumerate(names)])

    def name_locations(self, sample: Sequence[Tensor], given: InputFormat, preprocess: object) -> tuple[str, ...]:
        """Return the names of the groups, or of the features if the network knows them."""
        if self.groups:
            return tuple(name for name, _ in self.groups)
        return tuple(preprocess.names) if isinstance(preprocess, VectorPreprocess) else ()


VECTOR = VectorModality()
