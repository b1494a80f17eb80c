"""Sounds in files (WAV, FLAC, Ogg; extra ``audio``), as waveforms or as the log-mel spectrograms that networks take."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor

from exitlens.errors import DataError, import_extra
from exitlens.functional.spectrogram import compute_log_mel, count_samples
from exitlens.modalities.files.arrays import check_count, check_finite, open_regular
from exitlens.types.scaling import MelSpectrogram

SOUND_FILES = (".wav", ".flac", ".ogg")
_UNKNOWN = (0, 0xFFFFFFFF)  # sizes that programs write which cannot go back to the start of a file


def read_sound(path: Path, name: str) -> tuple[Tensor, float]:  # -> (C,N) float32 in [-1, 1], rate
    """Decodes a sound; the header is checked first.

    Raises:
        DataError: an empty, truncated or damaged file, or one that is too long; MissingExtraError: without ``soundfile``.
    """
    package = import_extra("soundfile", "audio", f"reading {name}")
    with open_regular(path, name) as file:
        _check_riff(file.read(8), path.stat().st_size, name)
        file.seek(0)
        try:
            with package.SoundFile(file) as sound:
                frames, channels, rate = sound.frames, sound.channels, float(sound.samplerate)
                if frames <= 0:
                    raise DataError(f"{name}: it is empty: a sound of no samples; leave it out")
                check_count((channels, frames), name)
                found = sound.read(dtype="float32", always_2d=True)  # (N,C)
        except (RuntimeError, OSError, ValueError, TypeError) as error:  # soundfile's are RuntimeErrors
            raise DataError(f"{name}: cannot be read as a sound ({type(error).__name__}: {error})") from error
    if len(found) < frames:
        raise DataError(f"{name}: it is truncated: {len(found):,} of {frames:,} samples are there: copy it again")
    values = torch.from_numpy(found.T.copy())
    check_finite(values, name)
    return values, rate


def _check_riff(start: bytes, size: int, name: str) -> None:
    """Raises :class:`DataError` where a WAV file is shorter than it says: libsndfile would read what is there."""
    if len(start) == 8 and start[:4] == b"RIFF":
        (said,) = struct.unpack("<I", start[4:])
        if said not in _UNKNOWN and said + 8 > size:
            raise DataError(f"{name}: it is truncated: {size:,} of {said + 8:,} bytes are there: copy it again")


def make_spectrogram(waveform: Tensor, mel: MelSpectrogram, rate: float, length: int, name: str) -> Tensor:
    """The log-mel spectrogram ``(bands,T)`` of a sound ``(C,N)``, its channels averaged first.

    Args:
        waveform: ``(C,N)``.
        mel: settings.
        rate: samples in a second.
        length: steps T; the sound is cut, or silence follows it. 0: as long as it is.
        name: of the file, for errors.
    """
    hop = count_samples(mel, rate)[1]
    if waveform.shape[1] < hop:
        raise DataError(f"{name}: {waveform.shape[1]} samples are less than one step of {hop}: leave it out")
    mono = waveform.mean(0)  # (N,)
    if length:
        mono = torch.nn.functional.pad(mono, (0, (length - 1) * hop + 1 - len(mono)))
    found = compute_log_mel(mono, mel, rate)  # (bands,T)
    return found[:, :length] if length else found
