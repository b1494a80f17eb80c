"""Vectors of features: floats ``(B,F)``. Maps lie on groups of features, or on a token for each; else there are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.modalities.base import Modality
from exitlens.modalities.files.vector import read_vector
from exitlens.types.inputs import Groups, InputFormat, Inputs
from exitlens.types.scaling import VectorPreprocess


class VectorModality(Modality):
    """See :class:`~exitlens.modalities.base.Modality`.

    The hidden units of a multi-layer perceptron are no locations: what they add to an answer says nothing of the features
    that they mix. So its exits have no maps, unless features are named as groups (``xl.attach(..., groups=...)``), or the
    network has a token for each feature.

    Args:
        groups: of the network at hand.
    """

    name, plural, axes = "vector", "vectors", ("F",)
    expected = "a float tensor (B,F) of vectors of features"
    preprocess = VectorPreprocess
    reader = "xl.VectorPreprocess.normalise"
    given = "a table of features"

    def __init__(self, groups: Groups = ()) -> None:
        self.groups = groups

    def adapt(self, given: InputFormat) -> Modality:
        """With the groups of features that the maps of the network lie on."""
        return VectorModality(given.groups) if given.groups else self

    def count_channels(self, shape: Sequence[int]) -> int:
        """Features of a sample."""
        return shape[0]

    def make_example(self, channels: int = 16, size: int = 0) -> Inputs:
        """Zeros."""
        return torch.zeros(1, size or channels)

    def read(self, source: Path | str, preprocess: VectorPreprocess) -> Inputs:
        """A file of one vector, normalised."""
        return preprocess.normalise(read_vector(Path(source), preprocess))[None]

    def coarsen(self, maps: Tensor, grid: Sequence[int]) -> Tensor:  # (B,G) -> (B,G)
        """Every exit's map has the same groups: it stays as it is."""
        return maps.float()

    def delete(self, inputs: Inputs, cells: Tensor) -> Inputs:  # (B,F), (B,G) bool -> (B,F)
        """The features of the chosen groups take the value 0: the mean, of features that are standardised."""
        assert isinstance(inputs, Tensor)
        members = make_members(self.groups, inputs.shape[1]).to(cells.device) if self.groups else None  # (G,F)
        if members is None and cells.shape[1] != inputs.shape[1]:
            raise InputError(
                f"net: its maps have {cells.shape[1]} locations and its vectors {inputs.shape[1]} features: name groups of "
                "features, xl.attach(..., groups={'blood': [0, 1], ...})"
            )
        chosen = cells if members is None else (cells.float() @ members.float()) > 0
        return inputs.masked_fill(chosen, 0.0)

    def name_locations(self, sample: Sequence[Tensor], given: InputFormat, preprocess: object) -> tuple[str, ...]:
        """Names of the groups, or of the features where the network knows them."""
        if self.groups:
            return tuple(name for name, _ in self.groups)
        return tuple(preprocess.names) if isinstance(preprocess, VectorPreprocess) else ()


def make_members(groups: Groups, features: int) -> Tensor:  # -> (G,F) bool
    """Which features each group has."""
    members = torch.zeros(len(groups), features, dtype=torch.bool)
    for row, (_, chosen) in enumerate(groups):
        members[row, list(chosen)] = True
    return members


VECTOR = VectorModality()
