"""Volumes: floats ``(B,C,D,H,W)``, read from arrays and NIfTI, deleted from by each channel's mean."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.modalities.base import Modality
from exitlens.modalities.files.volume import read_volume
from exitlens.types.inputs import Inputs
from exitlens.types.scaling import VolumePreprocess


class VolumeModality(Modality):
    """See :class:`~exitlens.modalities.base.Modality`."""

    name, plural, axes = "volume", "volumes", ("C", "D", "H", "W")
    expected = "a float tensor (B,C,D,H,W) of volumes"
    preprocess = VolumePreprocess
    reader = "xl.VolumePreprocess.normalise"
    given = "a file of one volume, or a folder of them"

    def make_example(self, channels: int = 1, size: int = 0) -> Inputs:
        """Zeros, 32 voxels a side."""
        return torch.zeros(1, channels, *(size or 32,) * 3)

    def read(self, source: Path | str, preprocess: VolumePreprocess) -> Inputs:
        """A file of one volume, normalised."""
        return preprocess.normalise(read_volume(Path(source), preprocess))[None]

    def delete(self, inputs: Inputs, cells: Tensor) -> Inputs:  # (B,C,D,H,W), (B,d,h,w) bool -> (B,C,D,H,W)
        """The chosen cells take each channel's mean."""
        assert isinstance(inputs, Tensor)
        chosen = F.interpolate(cells[:, None].float(), inputs.shape[2:], mode="nearest") > 0.5  # (B,1,D,H,W)
        return torch.where(chosen, inputs.mean((2, 3, 4), keepdim=True), inputs)


VOLUME = VolumeModality()
