"""Series and vectors as tables and files of many have them, and how they get one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.data.formats.labelled import Rows
from exitlens.errors import DataError
from exitlens.modalities.arrays import check_finite
from exitlens.modalities.series import RawSeries, arrange_series, describe_raw, fit_length
from exitlens.types import ArrayPreprocess, MelSpectrogram, SeriesPreprocess, VectorPreprocess


class ArrayReading(NamedTuple):
    """How arrays are read.

    Attributes:
        size: steps of a series, or voxels of a volume's sides; 0: as they come.
        mel: of sounds, the spectrogram to make.
        known: of an existing network; it comes before the others. ``None``: there is none yet.
    """

    size: int = 0
    mel: MelSpectrogram | None = None
    known: ArrayPreprocess | None = None


class RawPart(NamedTuple):
    """N samples of one part of a source; ``None`` stands for what is missing.

    Attributes:
        name: what errors call row ``i``.
        labels: class names.
        series: ``(C,T)`` each, or
        vectors: ``(N,F)`` ``float32``, NaN where there is no number.
        names: of the features.
        faults: what is wrong with every row, empty where nothing is known to be.
        groups: names of the groups, if there are any.
        splits: names of the splits, if a column has them.
    """

    name: Callable[[int], str]
    labels: Sequence[str | None]
    series: Sequence[Tensor | None] = ()
    vectors: Tensor | None = None
    names: tuple[str, ...] = ()
    faults: Sequence[str] = ()
    groups: Sequence[str | None] | None = None
    splits: Sequence[str | None] | None = None


class Arranged(NamedTuple):
    """Parts whose samples have one shape, how they become inputs (mean 0, std 1 as yet), and a line for people or none."""

    rows: dict[str, Rows]
    preprocess: ArrayPreprocess
    note: str = ""


def arrange_parts(parts: Mapping[str, RawPart], origin: str, how: ArrayReading) -> Arranged:
    """Gives the samples of all parts one shape; a row that cannot have it gets a fault.

    Raises:
        DataError: series of different length where no length is asked for; no series or vector at all.
    """
    first = next(iter(parts.values()))
    if first.vectors is not None:
        return _arrange_vectors(parts, origin, how)
    return _arrange_series(parts, origin, how)


def _arrange_vectors(parts: Mapping[str, RawPart], origin: str, how: ArrayReading) -> Arranged:
    names = next(iter(parts.values())).names
    known = how.known
    preprocess = known if isinstance(known, VectorPreprocess) else _start_vectors(names)
    if len(names) != len(preprocess.mean):
        raise DataError(
            f"data: {origin}: expected {len(preprocess.mean)} features as in training, got {len(names)}: {names}"
        )
    rows = {}
    for part, raw in parts.items():
        assert raw.vectors is not None
        faults = list(raw.faults) or [""] * len(raw.labels)
        wrong = (~torch.isfinite(raw.vectors)).any(1).nonzero().flatten().tolist()
        for i in wrong:
            faults[i] = faults[i] or _find_fault(raw.vectors[i], names)
        rows[part] = _to_rows(raw, raw.vectors, faults)
    return Arranged(rows, preprocess)


def _start_vectors(names: tuple[str, ...]) -> VectorPreprocess:
    return VectorPreprocess((0.0,) * len(names), (1.0,) * len(names), names)


def _arrange_series(parts: Mapping[str, RawPart], origin: str, how: ArrayReading) -> Arranged:
    good = [one for raw in parts.values() for one in raw.series if one is not None]
    if not good:
        reasons = [fault for raw in parts.values() for fault in raw.faults if fault]
        raise DataError(f"data: {origin} has no series that can be read{f': {reasons[0]}' if reasons else ''}")
    known = how.known
    preprocess = known if isinstance(known, SeriesPreprocess) else describe_raw(RawSeries(good[0]), how.size, None)
    lengths = torch.tensor([one.shape[1] for one in good])
    low, high = int(lengths.min()), int(lengths.max())
    if not preprocess.length and low < high:
        raise DataError(
            f"data: {origin} has series of {low} to {high} steps, and a network takes them in batches of one length: pass "
            "--size STEPS (size=STEPS) to cut longer ones, and to fill shorter ones with zeros, at the end"
        )
    length = preprocess.length or high
    rows = {}
    for part, raw in parts.items():
        faults, values = (
            list(raw.faults) or [""] * len(raw.labels),
            torch.zeros(len(raw.labels), len(preprocess.mean), length),
        )
        for i, one in enumerate(raw.series):
            if one is not None and not faults[i]:
                found = _fit(one, preprocess)
                faults[i] = found if isinstance(found, str) else ""
                values[i] = 0.0 if isinstance(found, str) else found
        rows[part] = _to_rows(raw, values, faults)
    return Arranged(rows, preprocess, describe_length(length, int((lengths > length).sum()), int((lengths < length).sum())))


def describe_length(length: int, cut: int, filled: int) -> str:
    """A line on series that are not as they were; none where all are."""
    if not cut and not filled:
        return ""
    return f"series: {length} steps; {cut} longer ones are cut, {filled} shorter ones filled with zeros, at the end"


def _fit(values: Tensor, preprocess: SeriesPreprocess) -> Tensor | str:
    try:
        check_finite(values, "x")
        return fit_length(arrange_series(RawSeries(values), preprocess, "x"), preprocess.length or values.shape[1])
    except DataError as error:
        return str(error).removeprefix("x: ")


def _find_fault(values: Tensor, names: Sequence[str]) -> str:
    try:
        check_finite(values, "x", names)
    except DataError as error:
        return str(error).removeprefix("x: ")
    return ""


def _to_rows(raw: RawPart, values: Tensor, faults: Sequence[str]) -> Rows:
    return Rows(raw.name, raw.labels, arrays=values, faults=faults, groups=raw.groups, splits=raw.splits)
