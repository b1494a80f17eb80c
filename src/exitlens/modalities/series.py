"""Series: floats ``(B,C,T)`` or ``(B,T,C)``, whose deletion fills in the mean over time; drawn as curves.

A file holds one series: ``.npy``, a ``.csv`` or Parquet table with a row for each step and a column for each channel, or a
sound (WAV, FLAC, Ogg; extra ``audio``), as its waveform or its log-mel spectrogram.
"""

from __future__ import annotations

import csv
import io
import math
import struct
from collections.abc import Sequence
from html import escape
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from exitlens.errors import DataError, InputError, first_line, import_extra, is_installed
from exitlens.modalities.arrays import check_count, check_finite, open_regular, pick_rows, read_npy
from exitlens.modalities.base import Modality
from exitlens.types.inputs import InputFormat
from exitlens.types.preprocessing import MelSpectrogram, SeriesPreprocess

SOUND_FILES = (".wav", ".flac", ".ogg")
SERIES_FILES = (".npy", ".csv", ".parquet", *SOUND_FILES)
CLOCKS = ("time", "timestamp", "datetime", "date", "", "__index_level_0__")  # columns of times, which are no channels
WIDTH, HEIGHT, MOST_CURVES, MOST_POINTS = 320, 90, 6, 640  # of a drawing, in pixels
FLOOR = 1e-10  # power of a mel band: silence is log(FLOOR)
_UNKNOWN = (0, 0xFFFFFFFF)  # sizes that programs write when they cannot go back to the start of a file


class SeriesModality(Modality):
    """Series with samples ``(C,T)``."""

    name, plural, axes = "series", "series", ("C", "T")
    expected = "a float tensor (B,C,T) or (B,T,C) of series"
    preprocess = SeriesPreprocess
    reader = "xl.data.SeriesPreprocess.normalise"
    given = "a file of a series, or a folder of them"
    head = "context"
    grid, side = (16,), 128

    def adapt(self, given: InputFormat) -> Modality:
        """Take the axis of time from the network's layers."""
        return TIME_FIRST if given.channels_last else SERIES

    def decode(self, path: Path, preprocess: SeriesPreprocess) -> Tensor:
        """Read a file of one series with the channels, spectrogram and length of ``preprocess``."""
        return arrange_series(decode_series(path), preprocess, str(path))

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """Draw the first channels as curves, each scaled to its range, over bars that are darker where the exit attends."""
        from matplotlib import colormaps  # it takes a while to import
        from matplotlib.colors import to_hex

        from exitlens.display import COLOURS, pick_exit_colour, shades

        values = sample.float().cpu()
        if isinstance(preprocess, SeriesPreprocess):
            values = preprocess.restore(values)  # (C,T)
        else:
            values = values.movedim(self.axes.index("T"), 1)
        heat, width, parts = shades(attention[None])[0].tolist(), WIDTH / len(attention), list[str]()
        for i, share in enumerate(heat):
            colour = to_hex(colormaps[COLOURS](share))
            tip = f"{i + 1} of {len(heat)}: {100 * attention[i]:.1f} % of the attention, evidence {evidence[i]:+.3f}"
            place = f'x="{i * width:.2f}" y="0" width="{width:.2f}" height="{HEIGHT}"'
            fill = f'fill="{colour}" fill-opacity="{0.15 + 0.6 * share:.2f}"'
            parts.append(f"<rect {place} {fill}><title>{tip}</title></rect>")
        steps = torch.linspace(0, values.shape[1] - 1, min(values.shape[1], MOST_POINTS)).round().long()
        x = (steps.float() + 0.5) / values.shape[1] * WIDTH
        count = min(len(values), MOST_CURVES)
        for c, row in enumerate(values[:count]):
            low, high = row.min().item(), row.max().item()
            y = HEIGHT - 5 - (row[steps] - low) / max(high - low, 1e-12) * (HEIGHT - 10)
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
            stroke = f'stroke="{"currentColor" if count == 1 else pick_exit_colour(c, count)}" stroke-width="1.2"'
            tip = f"channel {c}: {low:.4g} to {high:.4g}"
            parts.append(f'<polyline points="{points}" fill="none" {stroke}><title>{tip}</title></polyline>')
        size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        words = f'role="img" aria-label="{escape(label)}"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {words}>{"".join(parts)}</svg>'


class _TimeFirst(SeriesModality):
    """Series with samples ``(T,C)``, as recurrent networks and transformers take them."""

    axes = ("T", "C")


SERIES, TIME_FIRST = SeriesModality(), _TimeFirst()


class RawSeries(NamedTuple):
    """A series as stored in a file: ``values (C,T)`` ``float32``, names of the channels if any, samples a second or 0."""

    values: Tensor
    names: tuple[str, ...] = ()
    rate: float = 0.0


def decode_series(path: Path) -> RawSeries:
    """Decode a sound, an array ``(T,)`` or ``(C,T)``, or a table, whose columns of times (:data:`CLOCKS`) are left out."""
    name, suffix = str(path), path.suffix.lower()
    if suffix in SOUND_FILES:
        values, rate = read_sound(path, name)
        return RawSeries(values, (), rate)
    if suffix == ".npy":
        array = read_npy(path, name)
        if array.ndim not in (1, 2):
            raise DataError(f"{name}: expected one series in a file, (T,) or (C,T), got an array {array.shape}")
        raw = RawSeries(torch.from_numpy(array.reshape(-1, array.shape[-1])))
    elif suffix in (".csv", ".parquet"):
        table, names = read_table(path, name)
        raw = RawSeries(torch.from_numpy(np.ascontiguousarray(table.T)), names)
    else:
        raise DataError(f"{name}: not a file of a series: expected {', '.join(SERIES_FILES)}")
    check_finite(raw.values, name, raw.names)
    return raw


def arrange_series(raw: RawSeries, preprocess: SeriesPreprocess, name: str) -> Tensor:  # -> (C,T) float32
    """Give a decoded series the channels, spectrogram and length of ``preprocess``."""
    if preprocess.rate and raw.rate and raw.rate != preprocess.rate:
        fix = f"resample it, for example with ffmpeg -i IN -ar {preprocess.rate:g} OUT, or scipy.signal.resample_poly"
        raise DataError(f"{name}: its sampling rate is {raw.rate:g} Hz, the network's {preprocess.rate:g} Hz. Fix: {fix}")
    if preprocess.mel is not None:
        return make_spectrogram(raw.values, preprocess.mel, preprocess.rate, preprocess.length, name)
    values, expected = pick_rows(raw.values, raw.names, preprocess.names, f"{name}: no channel"), len(preprocess.mean)
    if len(values) != expected:
        hint = ". Fix: transpose it, channels come first" if values.shape[1] == expected else ""
        raise DataError(f"{name}: expected {expected} channel(s) as in training, got {len(values)}{hint}")
    return fit_length(values, preprocess.length) if preprocess.length else values


def fit_length(values: Tensor, length: int) -> Tensor:  # (..., T) -> (..., length)
    """Cut a series at its end, or fill it with zeros there."""
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]))


def describe_raw(raw: RawSeries, length: int, mel: MelSpectrogram | None) -> SeriesPreprocess:
    """Return the preprocessing for series like this one, with mean 0 and standard deviation 1 until they are measured."""
    channels = len(raw.values) if mel is None else mel.bands
    names = raw.names if mel is None else ()
    return SeriesPreprocess((0.0,) * channels, (1.0,) * channels, length=length, rate=raw.rate, names=names, mel=mel)


def read_sound(path: Path, name: str) -> tuple[Tensor, float]:  # -> (C,N) float32 in [-1, 1], samples a second
    """Decode a sound, whose header is checked first."""
    package = import_extra("soundfile", "audio", f"reading {name}")
    with open_regular(path, name) as file:
        start, size = file.read(8), path.stat().st_size
        if len(start) == 8 and start[:4] == b"RIFF":  # libsndfile would read what is there of a truncated WAV file
            (stated,) = struct.unpack("<I", start[4:])
            if stated not in _UNKNOWN and stated + 8 > size:
                raise DataError(f"{name}: it is truncated: {size:,} of {stated + 8:,} bytes are there. Fix: copy it again")
        file.seek(0)
        try:
            with package.SoundFile(file) as sound:
                frames, channels, rate = sound.frames, sound.channels, float(sound.samplerate)
                if frames <= 0:
                    raise DataError(f"{name}: it is empty: a sound without samples. Fix: leave it out")
                check_count((channels, frames), name)
                samples = sound.read(dtype="float32", always_2d=True)  # (N,C)
        except (RuntimeError, OSError, ValueError, TypeError) as error:  # soundfile's are RuntimeErrors
            raise DataError(f"{name}: cannot be read as a sound ({type(error).__name__}: {error})") from error
    if len(samples) < frames:
        raise DataError(f"{name}: it is truncated: {len(samples):,} of {frames:,} samples are there. Fix: copy it again")
    values = torch.from_numpy(samples.T.copy())
    check_finite(values, name)
    return values, rate


def count_samples(settings: MelSpectrogram, rate: float) -> tuple[int, int, int]:
    """Return the samples of the window, of the hop, and of the transform, which is the next power of two."""
    window, hop = (max(1, round(rate * ms / 1000)) for ms in (settings.window_ms, settings.hop_ms))
    return window, hop, 1 << (window - 1).bit_length()


def make_mel_filters(settings: MelSpectrogram, rate: float) -> Tensor:  # -> (bins, bands)
    """Return the filters of ``librosa.filters.mel(htk=True, norm=None)`` and of torchaudio.

    They are triangles over the bins of the transform, of equal width on the mel scale ``2595 log10(1 + f / 700)``.
    """
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


def make_spectrogram(waveform: Tensor, mel: MelSpectrogram, rate: float, length: int, name: str) -> Tensor:
    """Return the log-mel spectrogram ``(bands,T)`` of a sound ``(C,N)``, whose channels are averaged first.

    ``length`` is T: longer sounds are cut, shorter ones followed by silence; 0 keeps their length.
    """
    hop = count_samples(mel, rate)[1]
    if waveform.shape[1] < hop:
        raise DataError(f"{name}: {waveform.shape[1]} samples are less than one step of {hop}. Fix: leave it out")
    mono = waveform.mean(0)  # (N,)
    if length:
        mono = torch.nn.functional.pad(mono, (0, (length - 1) * hop + 1 - len(mono)))
    bands = compute_log_mel(mono, mel, rate)  # (bands,T)
    return bands[:, :length] if length else bands


def read_table(path: Path, name: str) -> tuple[Any, tuple[str, ...]]:
    """Return a table's numbers ``(rows, columns)`` ``float32`` and its columns' names, without columns of times."""
    values, names = _read_parquet(path, name) if path.suffix.lower() == ".parquet" else _read_csv(path, name)
    if not names:
        return values, ()
    kept = [i for i, column in enumerate(names) if column.lower() not in CLOCKS]
    if not kept:
        raise DataError(f"{name}: no channels, only {list(names)}. Fix: give each channel a column of numbers")
    return values[:, kept], tuple(names[i] for i in kept)


def _read_csv(path: Path, name: str) -> tuple[Any, tuple[str, ...]]:
    """Read all columns, with zeros for columns of times; a first line of numbers gives no names."""
    with open_regular(path, name) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "replace", newline="")
        head = [word.strip() for word in next((row for row in csv.reader(text) if row), [])]
        named = any(word and not _is_number(word) for word in head)
        if named and len(set(head)) < len(head):
            raise DataError(f"{name}: two columns have one name: {head}. Fix: rename one")
        text.seek(0)
        lines = (line for line in text if line.strip())
        first = [*islice(lines, named + 1)]  # numpy warns of no rows
        if len(first) <= named:
            raise DataError(f"{name}: it is empty{', except for its first line' if named else ''}. Fix: leave it out")
        clocks = {i: lambda _: 0.0 for i, word in enumerate(head) if named and word.lower() in CLOCKS}
        options: Any = {"comments": None, "delimiter": ",", "quotechar": '"', "ndmin": 2, "converters": clocks}
        try:
            values = np.loadtxt(chain(first[named:], lines), np.float64, **options)
        except (ValueError, IndexError):
            _explain_csv(path, head, named, name)
    if named and values.shape[1] != len(head):
        _explain_csv(path, head, named, name)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32), tuple(head) if named else ()


def _explain_csv(path: Path, head: Sequence[str], named: bool, name: str) -> NoReturn:
    """Name the line that is ragged, or the field that is not a number; numpy tells only the number of the row."""
    columns = head if named else [str(i) for i in range(len(head))]
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        for place, row in islice(((f"{name}, line {reader.line_num}", row) for row in reader if row), named, None):
            if len(row) != len(head):
                raise DataError(f"{place}: {len(row)} fields, the first line has {len(head)}. Fix: make them equal")
            for column, field in zip(columns, row, strict=True):
                if column.lower() in CLOCKS or _is_number(field):
                    continue
                if field.strip():
                    raise DataError(f"{place}: expected a number for column {column!r}, got {field!r:.40}")
                fill = "fill it (numpy.interp, pandas.DataFrame.interpolate), or leave the file out"
                raise DataError(f"{place}: a gap for column {column!r}. Fix: {fill}")
    raise DataError(f"{name}: not a table of numbers with commas between them. Fix: save it as CSV")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path, name: str) -> tuple[Any, tuple[str, ...]]:
    package = import_extra("pyarrow.parquet", "parquet", f"reading {name}")
    with open_regular(path, name) as file:
        try:
            table = package.ParquetFile(file)
            kinds = dict(zip(table.schema_arrow.names, map(str, table.schema_arrow.types), strict=True))
            for column, kind in kinds.items():
                if not _is_numeric(kind) and column.lower() not in CLOCKS:
                    raise DataError(f"{name}: its column {column!r} has {kind}, expected numbers. Fix: leave the column out")
            check_count((table.metadata.num_rows, len(kinds)), name)
            kept = [column for column, kind in kinds.items() if _is_numeric(kind)]
            with np.errstate(over="ignore", invalid="ignore"):
                columns = [table.read([column]).column(0).to_numpy().astype(np.float32) for column in kept]
        except DataError:
            raise
        except Exception as error:  # pyarrow raises many kinds
            raise DataError(f"{name}: cannot be read as Parquet ({type(error).__name__}: {first_line(error)})") from error
    if not columns:
        raise DataError(f"{name}: no columns of numbers. Fix: give each channel one")
    return np.stack(columns, 1), tuple(kept)


def list_columns(path: Path) -> dict[str, bool]:
    """Return which columns of a Parquet file hold numbers or times; empty if the file or pyarrow is unusable."""
    if not is_installed("pyarrow"):
        return {}
    schema = import_extra("pyarrow.parquet", "parquet", f"reading {path}").read_schema
    try:
        columns = schema(path)
    except Exception:  # pyarrow raises many kinds; whoever reads the file says what is wrong
        return {}
    pairs = zip(columns.names, map(str, columns.types), strict=True)
    return {column: _is_numeric(kind) or column.lower() in CLOCKS for column, kind in pairs}


def _is_numeric(kind: str) -> bool:
    return kind.startswith(("int", "uint", "float", "double", "halffloat", "bool"))
