"""Log-mel spectrograms of sounds, with the filters of ``librosa.filters.mel(htk=True, norm=None)`` and of torchaudio."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.types.preprocessing import MelSpectrogram

FLOOR = 1e-10  # power: silence is log(FLOOR)


def count_samples(settings: MelSpectrogram, rate: float) -> tuple[int, int, int]:
    """Return the samples of the window, of the hop, and of the transform, which is the next power of two."""
    window, hop = (max(1, round(rate * ms / 1000)) for ms in (settings.window_ms, settings.hop_ms))
    return window, hop, 1 << (window - 1).bit_length()


def make_mel_filters(settings: MelSpectrogram, rate: float) -> Tensor:  # -> (bins, bands)
    """Return triangles over the bins of the transform, of equal width on the mel scale ``2595 log10(1 + f / 700)``."""
    high = settings.high_hz or rate / 2
    if high > rate / 2 or settings.low_hz >= high:
        raise InputError(f"low_hz, high_hz: expected bands below half the rate, {rate / 2:g} Hz, got up to {high:g} Hz")
    size = count_samples(settings, rate)[2]
    low_mel, high_mel = (2595 * math.log10(1 + hz / 700) for hz in (settings.low_hz, high))
    mels = torch.linspace(low_mel, high_mel, settings.bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)  # (bands + 2,) Hz
    bins = torch.linspace(0, rate / 2, size // 2 + 1, dtype=torch.float64)[:, None]  # (bins,1) Hz
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])  # (bins,bands)
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    if bool((filters.sum(0) == 0).any()):
        raise InputError(f"bands: {settings.bands} are too many for {settings.window_ms:g} ms at {rate:g} Hz: use fewer")
    return filters.float()


def compute_log_mel(waveform: Tensor, settings: MelSpectrogram, rate: float) -> Tensor:  # (..., N) -> (..., bands, T)
    """Return each band's log power, ``T = 1 + N // hop``; step ``t`` is centred at sample ``t * hop``, with silent ends."""
    filters = make_mel_filters(settings, rate)
    window, hop, size = count_samples(settings, rate)
    options: dict[str, Any] = {"center": True, "pad_mode": "constant", "return_complex": True}
    spectrum = torch.stft(waveform.float(), size, hop, window, torch.hann_window(window), **options)  # (...,bins,T)
    return (filters.T @ spectrum.abs().square()).clamp(min=FLOOR).log()
