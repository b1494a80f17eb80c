"""Held to librosa's filters as transformers has them in NumPy, and to sines whose band is known."""

import math

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.modalities.series import FLOOR, compute_log_mel, count_samples, make_mel_filters

RATE = 8000.0
MEL = xl.data.MelSpectrogram(bands=20, low_hz=50.0)


@pytest.fixture(scope="module")
def oracle():
    return pytest.importorskip("transformers.audio_utils")


def test_window_hop_and_transform():
    assert count_samples(MEL, RATE) == (200, 80, 256)
    assert count_samples(xl.data.MelSpectrogram(window_ms=32, hop_ms=16), RATE) == (256, 128, 256)


@pytest.mark.parametrize("settings", [MEL, xl.data.MelSpectrogram(bands=12, low_hz=100, high_hz=3000)])
def test_filters_are_the_oracles(settings, oracle):
    found = make_mel_filters(settings, RATE)
    how = {"min_frequency": settings.low_hz, "max_frequency": settings.high_hz or RATE / 2, "sampling_rate": int(RATE)}
    expected = oracle.mel_filter_bank(129, settings.bands, norm=None, mel_scale="htk", **how)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_the_spectrogram_is_the_oracles(oracle):
    sound = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    window = np.zeros(256)
    window[28:228] = oracle.window_function(200, "hann", periodic=True)
    how = {"fft_length": 256, "power": 2.0, "center": True, "pad_mode": "constant", "mel_floor": FLOOR, "log_mel": "log"}
    filters = make_mel_filters(MEL, RATE).numpy()
    expected = oracle.spectrogram(sound.numpy().astype(np.float64), window, 256, 80, mel_filters=filters, **how)
    found = compute_log_mel(sound, MEL, RATE)
    assert found.shape == (20, 1 + 2000 // 80)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_a_sine_sounds_in_its_band_and_silence_in_none():
    edges = np.linspace(*(2595 * math.log10(1 + hz / 700) for hz in (50, 4000)), 22)
    for band in (3, 12, 18):
        hz = 700 * (10 ** (edges[band + 1] / 2595) - 1)
        found = compute_log_mel(torch.sin(2 * math.pi * hz * torch.arange(4000) / RATE), MEL, RATE)
        assert found[:, 10:-10].mean(1).argmax() == band
    silent = compute_log_mel(torch.zeros(3, 800), MEL, RATE)
    torch.testing.assert_close(silent, torch.full((3, 20, 11), math.log(FLOOR)))


@pytest.mark.parametrize("settings", [xl.data.MelSpectrogram(bands=200), xl.data.MelSpectrogram(high_hz=5000)])
def test_bands_that_cannot_be(settings):
    with pytest.raises(xl.errors.InputError, match=r"too many for 25 ms at 8000 Hz|below half the rate, 4000 Hz"):
        compute_log_mel(torch.zeros(800), settings, RATE)
