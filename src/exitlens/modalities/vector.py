"""Vectors: floats ``(B,F)``, read from tables, deleted from by the training data's mean."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from exitlens.modalities.base import Modality
from exitlens.modalities.files.vector import read_vector
from exitlens.types.inputs import Inputs
from exitlens.types.scaling import VectorPreprocess


class VectorModality(Modality):
    """See :class:`~exitlens.modalities.base.Modality`."""

    name, plural, axes = "vector", "vectors", ("F",)
    expected = "a float tensor (B,F) of vectors"
    preprocess = VectorPreprocess
    reader = "xl.VectorPreprocess.normalise"
    given = "a table of numbers, or a file of one vector"

    def make_example(self, channels: int = 16, size: int = 0) -> Inputs:
        """Zeros, 16 features."""
        return torch.zeros(1, size or channels)

    def read(self, source: Path | str, preprocess: VectorPreprocess) -> Inputs:
        """A file of one vector, normalised."""
        return preprocess.normalise(read_vector(Path(source), preprocess))[None]

    def delete(self, inputs: Inputs, cells: Tensor) -> Inputs:  # (B,F), (B,F) bool -> (B,F)
        """The chosen features take the mean of the training data, which is 0 once normalised."""
        assert isinstance(inputs, Tensor)
        return torch.where(cells, torch.zeros_like(inputs), inputs)


VECTOR = VectorModality()
