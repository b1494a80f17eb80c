"""Backgrounds that carry no answer: gradients, noise with the spectrum of photographs, stripes, and clutter of flat shapes."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter


def draw_background(size: int, rng: Generator, hue: float | None = None) -> np.ndarray:  # -> (size,size,3) in [0, 1]
    """One background; ``hue`` in [0, 1) tints it (a cue that a network may learn instead of the object), else any colours."""
    kind = _KINDS[rng.integers(len(_KINDS))]
    picture = kind(size, rng, _draw_palette(5, rng, hue))
    light = 1 + rng.uniform(-0.3, 0.3) * _ramp(size, rng)[..., None]
    return np.clip(picture * light + rng.normal(0, 0.02, picture.shape), 0, 1)


def _draw_palette(count: int, rng: Generator, hue: float | None) -> np.ndarray:  # -> (count,3)
    """Colours near one another as often as not, since few photographs have all colours."""
    base, spread = (rng.uniform(), rng.choice([0.08, 0.5])) if hue is None else (hue, 0.04)
    hues = base + rng.uniform(-spread, spread, count)
    saturation = rng.uniform(0.1, 0.8, count) if hue is None else rng.uniform(0.5, 0.8, count)
    value = rng.uniform(0.15, 1.0, count)
    return np.array([colorsys.hsv_to_rgb(h % 1, s, v) for h, s, v in zip(hues, saturation, value, strict=True)])


def _ramp(size: int, rng: Generator) -> np.ndarray:  # -> (size,size) from -1 to 1 along a random direction
    angle, line = rng.uniform(0, 2 * np.pi), np.linspace(-1, 1, size)
    ramp = np.cos(angle) * line[None, :] + np.sin(angle) * line[:, None]
    return ramp / np.abs(ramp).max()


def _mix(level: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colours along the palette at levels in [0, 1]."""
    stops = np.linspace(0, 1, len(palette))
    return np.stack([np.interp(level, stops, palette[:, channel]) for channel in range(3)], axis=-1)


def _draw_gradient(size: int, rng: Generator, palette: np.ndarray) -> np.ndarray:
    return _mix((_ramp(size, rng) + 1) / 2, palette[: rng.integers(2, 4)])


def _draw_noise(size: int, rng: Generator, palette: np.ndarray) -> np.ndarray:
    """Amplitudes fall with frequency to the power of about one, as in photographs (Field 1987)."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.uniform(size=frequency.shape))
    noise = np.fft.irfft2(phases * frequency ** -rng.uniform(0.9, 1.8), (size, size))
    return _mix(np.clip(0.5 + noise / (4 * noise.std()), 0, 1), palette)


def _draw_stripes(size: int, rng: Generator, palette: np.ndarray) -> np.ndarray:
    cycles, sharpness = rng.uniform(2, 12), rng.uniform(0.8, 6)
    wave = np.sin(np.pi * cycles * _ramp(size, rng))
    if rng.uniform() < 0.5:
        wave = wave * np.sin(np.pi * cycles * _ramp(size, rng))
    return _mix(0.5 + 0.5 * np.tanh(sharpness * wave), palette[:3])


def _draw_clutter(size: int, rng: Generator, palette: np.ndarray) -> np.ndarray:
    """Many ellipses and bars of flat colour, a little out of focus."""
    picture = np.broadcast_to(palette[0], (size, size, 3)).copy()
    y, x = np.mgrid[0 : 1 : 1j * size, 0 : 1 : 1j * size]
    for _ in range(rng.integers(8, 40)):
        angle, (cx, cy), (a, b) = rng.uniform(0, np.pi), rng.uniform(0, 1, 2), rng.uniform(0.02, 0.22, 2)
        u, v = np.cos(angle) * (x - cx) + np.sin(angle) * (y - cy), np.cos(angle) * (y - cy) - np.sin(angle) * (x - cx)
        inside = (u / a) ** 2 + (v / b) ** 2 < 1 if rng.uniform() < 0.6 else (abs(u) < a) & (abs(v) < b)
        picture[inside] = np.clip(palette[rng.integers(len(palette))] + rng.normal(0, 0.06, 3), 0, 1)
    return gaussian_filter(picture, (s := rng.uniform(0, 0.012) * size, s, 0))


_KINDS: tuple[Callable[[int, Generator, np.ndarray], np.ndarray], ...] = (
    _draw_gradient,
    _draw_noise,
    _draw_noise,
    _draw_stripes,
    _draw_clutter,
    _draw_clutter,
)
