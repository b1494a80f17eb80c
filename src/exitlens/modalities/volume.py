"""Volumes: floats ``(B,C,D,H,W)``, deleted from by their own mean, drawn as projections along every axis."""

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
    given = "a file of a volume, or a folder of them"
    head = "context"
    grid = (3, 3, 3)

    def make_example(self, channels: int = 1, size: int = 0) -> Inputs:
        """Zeros, 32 cells a side."""
        return torch.zeros(1, channels, *(size or 32,) * 3)

    def read(self, source: Path | str, preprocess: VolumePreprocess) -> Inputs:
        """A file of one volume, normalised."""
        return preprocess.normalise(read_volume(Path(source), preprocess))[None]

    def delete(self, inputs: Inputs, cells: Tensor) -> Inputs:  # (B,C,D,H,W), (B,d,h,w) bool -> (B,C,D,H,W)
        """The chosen blocks take the mean of their channel."""
        assert isinstance(inputs, Tensor)
        chosen = F.interpolate(cells[:, None].float(), inputs.shape[2:], mode="nearest") > 0.5  # (B,1,D,H,W)
        return torch.where(chosen, inputs.mean((2, 3, 4), keepdim=True), inputs)

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """Maximum projections of the first channel along every axis, under squares, and the slice that is attended most."""
        from exitlens.modalities.drawing import draw_volume  # matplotlib takes a while to import

        shown = preprocess.restore(sample.float().cpu()) if isinstance(preprocess, VolumePreprocess) else sample
        return draw_volume(shown.float().cpu()[0], attention, evidence, label)


VOLUME = VolumeModality()
