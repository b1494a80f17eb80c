"""How series, volumes and vectors become a network's inputs: each channel by its mean and standard deviation in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from exitlens.errors import InputError


@dataclass(frozen=True)
class MelSpectrogram:
    """Settings of a log-mel spectrogram, in which a sound becomes a series with a channel for each band.

    Attributes:
        bands: how many, of equal width on the mel scale.
        window_ms: length of the Hann window, in milliseconds.
        hop_ms: from one step of the series to the next.
        low_hz: where the lowest band begins.
        high_hz: where the highest one ends; 0: at half the sampling rate.

    Raises:
        InputError: for values that make no spectrogram.

    Examples:
        >>> mel = xl.MelSpectrogram(bands=40, high_hz=4000.0)
        >>> scaling = xl.SeriesPreprocess(mean=(0.0,) * 40, std=(1.0,) * 40, rate=16000.0, mel=mel)
    """

    bands: int = 64
    window_ms: float = 25.0
    hop_ms: float = 10.0
    low_hz: float = 0.0
    high_hz: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.bands, int) or self.bands < 1:
            raise InputError(f"bands: expected an integer of 1 or more, got {self.bands!r}")
        if not 0 < self.hop_ms <= self.window_ms < math.inf:
            raise InputError(f"hop_ms, window_ms: expected 0 < hop <= window, got {self.hop_ms} and {self.window_ms}")
        if self.low_hz < 0 or not (self.high_hz == 0 or self.low_hz < self.high_hz < math.inf):
            raise InputError(f"low_hz, high_hz: expected 0 <= low < high (or high 0), got {self.low_hz} and {self.high_hz}")


@dataclass(frozen=True)
class _Scaling:
    """Channels standardised one by one; ``axes`` of a sample come after its channels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        found = [*self.mean, *self.std]
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0 or not all(map(math.isfinite, found)):
            raise InputError(
                f"mean, std: expected one or more of each, finite, std above 0; got {self.mean!r:.60} and {self.std!r:.60}"
            )

    def scaled(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """The same with another mean and standard deviation of every channel."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def _standardise(self, values: Tensor, axes: str) -> Tensor:  # (..., C, *S) -> (..., C, *S)
        trailing = axes.count(",")
        if not isinstance(values, Tensor) or values.ndim <= trailing or values.shape[-1 - trailing] != len(self.mean):
            seen = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"values: expected (...,{len(self.mean)}{axes}), got {seen}")
        if values.is_complex() or values.dtype == torch.bool:
            raise InputError(f"values: expected numbers, got {values.dtype}")
        mean, std = (torch.tensor(each).view(-1, *[1] * trailing) for each in (self.mean, self.std))
        return (values.float() - mean) / std

    def _restore(self, inputs: Tensor, trailing: int) -> Tensor:  # (..., C, *S) -> (..., C, *S)
        mean, std = (torch.tensor(each).view(-1, *[1] * trailing) for each in (self.mean, self.std))
        return inputs * std + mean


@dataclass(frozen=True)
class SeriesPreprocess(_Scaling):
    """How series become network input: ``(x - mean) / std`` of each channel.

    Attributes:
        mean: of each of C channels (with ``mel``, of each band), in the training data.
        std: likewise.
        length: steps T of every input: longer files are cut, shorter ones filled with zeros at the end. 0: as they come.
        rate: samples in a second (Hz) of the files; 0: unknown. A file that says another rate is refused.
        names: of the C channels, if they have names; tables are read by them.
        time_first: the network takes ``(T,C)`` in place of ``(C,T)``.
        mel: of sounds, the spectrogram that is the series; ``None``: the waveform is.

    Raises:
        InputError: for values that do not fit one another.

    Examples:
        >>> scaling = xl.SeriesPreprocess(mean=(1.0,), std=(2.0,))
        >>> scaling.normalise(torch.tensor([[[1.0, 3.0, 5.0]]]))
        tensor([[[0., 1., 2.]]])
    """

    length: int = 0
    rate: float = 0.0
    names: tuple[str, ...] = ()
    time_first: bool = False
    mel: MelSpectrogram | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names(self.names, len(self.mean))
        if not isinstance(self.length, int) or self.length < 0:
            raise InputError(f"length: expected steps, or 0 for any number of them, got {self.length!r}")
        if not 0 <= self.rate < math.inf:
            raise InputError(f"rate: expected samples in a second, or 0 where it is not known, got {self.rate}")
        if self.mel is not None and (len(self.mean) != self.mel.bands or not self.rate):
            raise InputError(
                f"mel: expected mean and std of {self.mel.bands} bands and a rate, got {len(self.mean)} and rate {self.rate}"
            )

    def normalise(self, values: Tensor) -> Tensor:  # (..., C, T) -> (..., C, T), or (..., T, C)
        """Standardises each channel; the length is left as it is, and a spectrogram is made where files are read."""
        found = self._standardise(values, ",T")
        return found.transpose(-1, -2) if self.time_first else found

    def restore(self, inputs: Tensor) -> Tensor:  # (..., C, T), or (..., T, C) -> (..., C, T)
        """Inverse of :meth:`normalise`."""
        return self._restore(inputs.transpose(-1, -2) if self.time_first else inputs, 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SeriesPreprocess:
        """Inverse of :meth:`to_dict`."""
        mel = values.get("mel")
        return cls(
            *_read_scaling(values),
            length=int(values.get("length", 0)),
            rate=float(values.get("rate", 0.0)),
            names=tuple(map(str, values.get("names", ()))),
            time_first=bool(values.get("time_first", False)),
            mel=None if mel is None else MelSpectrogram(**mel),
        )


@dataclass(frozen=True)
class VolumePreprocess(_Scaling):
    """How volumes become network input: resized to ``size``, then ``(x - mean) / std`` of each channel.

    Attributes:
        mean: of each of C channels, in the training data.
        std: likewise.
        size: ``(D,H,W)`` voxels of every input; files of another size are resized.

    Raises:
        InputError: for values that do not fit one another.

    Examples:
        >>> scaling = xl.VolumePreprocess(mean=(0.0,), std=(2.0,), size=(8, 8, 8))
        >>> scaling.normalise(torch.ones(1, 8, 8, 8)).mean()
        tensor(0.5000)
    """

    size: tuple[int, int, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) != 3 or min(self.size) < 1:
            raise InputError(f"size: expected depth, height and width of 1 voxel or more, got {self.size}")

    def normalise(self, values: Tensor) -> Tensor:  # (..., C, D, H, W) -> (..., C, D, H, W)
        """Standardises each channel; the size is left as it is."""
        return self._standardise(values, ",D,H,W")

    def restore(self, inputs: Tensor) -> Tensor:  # (..., C, D, H, W) -> (..., C, D, H, W)
        """Inverse of :meth:`normalise`."""
        return self._restore(inputs, 3)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VolumePreprocess:
        """Inverse of :meth:`to_dict`."""
        depth, height, width = map(int, values["size"])
        return cls(*_read_scaling(values), size=(depth, height, width))


@dataclass(frozen=True)
class VectorPreprocess(_Scaling):
    """How vectors become network input: ``(x - mean) / std`` of each feature.

    Attributes:
        mean: of each of F features, in the training data.
        std: likewise.
        names: of the F features, if they have names; tables are read by them.

    Raises:
        InputError: for values that do not fit one another.

    Examples:
        >>> scaling = xl.VectorPreprocess(mean=(0.0, 10.0), std=(1.0, 5.0), names=("age", "dose"))
        >>> scaling.normalise(torch.tensor([1.0, 20.0]))
        tensor([1., 2.])
    """

    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names(self.names, len(self.mean))

    def normalise(self, values: Tensor) -> Tensor:  # (..., F) -> (..., F)
        """Standardises each feature."""
        return self._standardise(values, "")

    def restore(self, inputs: Tensor) -> Tensor:  # (..., F) -> (..., F)
        """Inverse of :meth:`normalise`."""
        return self._restore(inputs, 0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VectorPreprocess:
        """Inverse of :meth:`to_dict`."""
        return cls(*_read_scaling(values), names=tuple(map(str, values.get("names", ()))))


ArrayPreprocess = SeriesPreprocess | VolumePreprocess | VectorPreprocess


def _check_names(names: Sequence[str], count: int) -> None:
    if names and (len(names) != count or len(set(names)) < count):
        raise InputError(f"names: expected {count} different ones, one for each channel, got {names!r:.100}")


def _read_scaling(values: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(map(float, values["mean"])), tuple(map(float, values["std"]))
