"""Series: floats ``(B,C,T)`` or ``(B,T,C)``, deleted from by their own mean over time, drawn as curves over shaded time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from exitlens.modalities.base import Modality
from exitlens.modalities.files.series import read_series
from exitlens.types.inputs import InputFormat, Inputs
from exitlens.types.scaling import SeriesPreprocess


class SeriesModality(Modality):
    """Series of which a sample is ``(C,T)``; see :class:`~exitlens.modalities.base.Modality`.

    Attributes:
        time_axis: of a batch.
    """

    name, plural, axes = "series", "series", ("C", "T")
    expected = "a float tensor (B,C,T) or (B,T,C) of series"
    preprocess = SeriesPreprocess
    reader = "xl.SeriesPreprocess.normalise"
    given = "a file of a series, or a folder of them"
    head = "context"
    grid = (16,)
    time_axis: ClassVar[int] = 2

    def adapt(self, given: InputFormat) -> Modality:
        """With the axis of time that the network's layers tell."""
        return TIME_FIRST if given.channels_last else SERIES

    def count_channels(self, shape: Sequence[int]) -> int:
        """Channels of a sample."""
        return shape[2 - self.time_axis]

    def make_example(self, channels: int = 1, size: int = 0) -> Inputs:
        """Zeros, 128 steps."""
        return torch.zeros(1, channels, size or 128).movedim(2, self.time_axis)

    def read(self, source: Path | str, preprocess: SeriesPreprocess) -> Inputs:
        """A file of one series, normalised."""
        return preprocess.normalise(read_series(Path(source), preprocess))[None]

    def delete(self, inputs: Inputs, cells: Tensor) -> Inputs:  # (B,C,T), (B,t) bool -> (B,C,T)
        """The chosen segments of time take the mean of their channel."""
        assert isinstance(inputs, Tensor)
        length = inputs.shape[self.time_axis]
        steps = (torch.arange(length, device=cells.device) * cells.shape[1]).div(length, rounding_mode="floor")
        chosen = cells[:, steps].unsqueeze(3 - self.time_axis)
        return torch.where(chosen, inputs.mean(self.time_axis, keepdim=True), inputs)

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """Curves of the channels, over time that is shaded where the exit attends."""
        from exitlens.modalities.drawing import draw_series  # matplotlib takes a while to import

        values = sample.float().cpu().movedim(self.time_axis - 1, 1)
        shown = preprocess.restore(sample.float().cpu()) if isinstance(preprocess, SeriesPreprocess) else values
        return draw_series(shown, attention, evidence, label)


class _TimeFirst(SeriesModality):
    """Series of which a sample is ``(T,C)``, as recurrent networks and transformers take them."""

    axes = ("T", "C")
    time_axis = 1


SERIES, TIME_FIRST = SeriesModality(), _TimeFirst()
