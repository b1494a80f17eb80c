"""Series: floats ``(B,C,T)``, read from tables, arrays and sounds, deleted from by each channel's mean."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.modalities.base import Modality
from exitlens.modalities.files.series import read_series
from exitlens.types.inputs import Inputs
from exitlens.types.scaling import SeriesPreprocess


class SeriesModality(Modality):
    """See :class:`~exitlens.modalities.base.Modality`."""

    name, plural, axes = "series", "series", ("C", "T")
    expected = "a float tensor (B,C,T) of series"
    preprocess = SeriesPreprocess
    reader = "xl.SeriesPreprocess.normalise"
    given = "a file of one series, or a folder of them"

    def make_example(self, channels: int = 1, size: int = 0) -> Inputs:
        """Zeros, 128 steps."""
        return torch.zeros(1, channels, size or 128)

    def read(self, source: Path | str, preprocess: SeriesPreprocess) -> Inputs:
        """A file of one series, normalised."""
        return preprocess.normalise(read_series(Path(source), preprocess))[None]

    def delete(self, inputs: Inputs, cells: Tensor) -> Inputs:  # (B,C,T), (B,t) bool -> (B,C,T)
        """The chosen steps take each channel's mean."""
        assert isinstance(inputs, Tensor)
        chosen = F.interpolate(cells[:, None].float(), inputs.shape[2:], mode="nearest") > 0.5  # (B,1,T)
        return torch.where(chosen, inputs.mean(2, keepdim=True), inputs)


SERIES = SeriesModality()
