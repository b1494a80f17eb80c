import math

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.functional.spectrogram import compute_log_mel
from exitlens.modalities import SERIES, arrays
from exitlens.modalities.series import make_spectrogram, read_sound

RATE = 8000
MEL = xl.data.MelSpectrogram(bands=16)
SOUND = np.sin(np.arange(2400) / 5) * 0.5


@pytest.fixture
def soundfile():
    return pytest.importorskip("soundfile")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_sounds_as_waveforms(suffix, soundfile, tmp_path):
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, np.stack([SOUND, -SOUND], 1), RATE)
    values, rate = read_sound(path, "x")
    assert (values.shape, rate) == ((2, 2400), RATE)
    np.testing.assert_allclose(values[0].numpy(), SOUND, atol=0.1 if suffix == "ogg" else 1e-4)
    np.testing.assert_allclose(values[1].numpy(), -SOUND, atol=0.1 if suffix == "ogg" else 1e-4)
    own = xl.data.SeriesPreprocess((0.0,) * 2, (0.5,) * 2, length=3000, rate=RATE)
    torch.testing.assert_close(SERIES.read(path, own)[0, :, :2400], values * 2)
    with pytest.raises(
        xl.errors.DataError, match=r"x\.\w+: its sampling rate is 8000 Hz, the network's 16000 Hz.*-ar 16000"
    ):
        SERIES.read(path, xl.data.SeriesPreprocess((0.0,) * 2, (0.5,) * 2, rate=16000.0))


def test_sounds_as_spectrograms(soundfile, tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, np.stack([SOUND, 0 * SOUND], 1), RATE)
    mono = read_sound(path, "x")[0].mean(0)
    own = xl.data.SeriesPreprocess((-1.0,) * 16, (2.0,) * 16, rate=RATE, mel=MEL)
    expected = (compute_log_mel(mono, MEL, RATE) + 1) / 2
    torch.testing.assert_close(SERIES.read(path, own), expected[None])
    for length in (1, 10, 31, 50):
        how = xl.data.SeriesPreprocess((-1.0,) * 16, (2.0,) * 16, rate=RATE, mel=MEL, length=length)
        found = SERIES.read(path, how)
        assert found.shape == (1, 16, length)
        same = max(0, min(length, 31) - 2)  # steps whose windows do not reach the cut
        torch.testing.assert_close(found[0, :, :same], expected[:, :same])
    assert found[0, :, -1].max() == pytest.approx((math.log(1e-10) + 1) / 2)  # silence
    with pytest.raises(xl.errors.DataError, match="x: 79 samples are less than one step of 80"):
        make_spectrogram(torch.zeros(1, 79), MEL, RATE, 0, "x")


def test_bad_sounds(soundfile, tmp_path, monkeypatch):
    path = tmp_path / "x.wav"
    soundfile.write(path, SOUND[:0], RATE)
    with pytest.raises(xl.errors.DataError, match="x: it is empty: a sound without samples"):
        read_sound(path, "x")
    soundfile.write(path, SOUND, RATE)
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    with pytest.raises(xl.errors.DataError, match="x: it is truncated: 3,844 of 4,844 bytes"):
        read_sound(path, "x")
    path.write_bytes(content[:4] + b"\xff\xff\xff\xff" + content[8:])  # as programs write it to a pipe
    assert read_sound(path, "x")[0].shape == (1, 2400)
    path.write_bytes(b"RIFF")
    with pytest.raises(xl.errors.DataError, match="x: cannot be read as a sound"):
        read_sound(path, "x")
    flac = tmp_path / "x.flac"
    soundfile.write(flac, np.random.default_rng(0).normal(size=20000) * 0.1, RATE)
    flac.write_bytes(flac.read_bytes()[:9000])
    with pytest.raises(xl.errors.DataError, match=r"x: (it is truncated|cannot be read)"):
        read_sound(flac, "x")
    soundfile.write(path, [0.0, math.nan], RATE, subtype="FLOAT")
    with pytest.raises(xl.errors.DataError, match=r"x: a gap .NaN. at step 1"):
        read_sound(path, "x")
    monkeypatch.setattr(arrays, "MOST_VALUES", 1)
    with pytest.raises(xl.errors.DataError, match="2 values are over the limit of 1"):
        read_sound(path, "x")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(xl.errors.MissingExtraError, match=r"reading x needs the package 'soundfile'.*exitlens\[audio\]"):
        read_sound(tmp_path / "x.wav", "x")
