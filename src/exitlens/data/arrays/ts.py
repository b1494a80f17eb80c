"""Files ``.ts``: the format of sktime and aeon for labelled series, read whole.

A header of lines with ``@`` says what there is; below ``@data`` each line is one series, its channels and its label with
colons between, the values with commas.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.data.arrays.raw import RawPart
from exitlens.data.rows import open_file
from exitlens.errors import DataError

SUFFIX = ".ts"
_PART = re.compile(r"^(.+)_(train|test|validation|val|calibration)$", re.IGNORECASE)


class _Header(NamedTuple):
    """What the lines with ``@`` say: whether there are labels, names of classes (or none) and channels (0: not said)."""

    has_labels: bool
    classes: tuple[str, ...]
    channels: int


class TsFile(NamedTuple):
    """The series of one file.

    Attributes:
        part: they, before they have one shape.
        classes: names, in the header's order; empty where it does not say them.
        lines: of the file, from 1.
    """

    part: RawPart
    classes: tuple[str, ...]
    lines: Sequence[int]


def find_ts_files(path: Path) -> dict[str, Path]:
    """The files of a source by part: one file, or ``NAME_TRAIN.ts`` and ``NAME_TEST.ts`` in a folder.

    Raises:
        DataError: files whose names say no part, or of several data sets.
    """
    if not path.is_dir():
        return {"": path}
    files = sorted(one for one in path.iterdir() if one.suffix.lower() == SUFFIX and not one.name.startswith("."))
    if len(files) == 1:
        return {"": files[0]}
    matches = [_PART.match(one.stem) for one in files]
    names = {match[1] for match in matches if match}
    if not all(matches) or len(names) != 1:
        raise DataError(
            f"data: {path} has {', '.join(one.name for one in files[:4])}: expected NAME_TRAIN.ts and NAME_TEST.ts"
        )
    return {match[2].lower(): one for match, one in zip(matches, files, strict=True) if match}


def read_ts(path: Path, labelled: bool = True) -> TsFile:
    """Reads one file; a series that is not as the header says gets a fault.

    Args:
        path: the file.
        labelled: its labels are needed.

    Raises:
        DataError: a file that cannot be read, has no labels, or is of another kind (with time stamps, for regression).
    """
    series: list[Tensor | None] = []
    labels: list[str | None] = []
    faults: list[str] = []
    lines = array("q")
    with open_file(path) as file:
        numbered = ((number, raw.decode("utf-8", "replace").strip()) for number, raw in enumerate(file, 1))
        rows = ((number, line) for number, line in numbered if line and not line.startswith(("#", "%")))
        header = _read_header(rows, path, labelled)
        for number, line in rows:
            *channels, label = line.split(":") if header.has_labels else [*line.split(":"), ""]
            found = _parse_series(channels, header, label.strip())
            series.append(None if isinstance(found, str) else found)
            faults.append(found if isinstance(found, str) else "")
            labels.append(label.strip() or None)
            lines.append(number)
    if not series:
        raise DataError(f"data: {path} has no series: expected one in each line below @data")
    return TsFile(RawPart(lambda i: f"{path}, line {lines[i]}", labels, series, faults=faults), header.classes, lines)


def _read_header(rows: Iterable[tuple[int, str]], path: Path, labelled: bool) -> _Header:
    said: dict[str, list[str]] = {}
    for _, line in rows:
        key, *words = line.split()
        if key.lower() == "@data":
            break
        if not key.startswith("@"):
            raise DataError(f"data: {path} is no .ts file: expected lines such as @classLabel above @data, got {line!r:.40}")
        said[key.lower()] = words
    else:
        raise DataError(f"data: {path} is no .ts file: it has no line @data")

    def is_true(key: str) -> bool:
        return bool(said.get(key)) and said[key][0].lower() == "true"

    if is_true("@timestamps"):
        raise DataError(f"data: {path} has time stamps, expected values at equal steps: write it with @timeStamps false")
    if labelled and not is_true("@classlabel"):
        raise DataError(f"data: {path} has no class labels: expected @classLabel true and their names")
    dimensions = said.get("@dimensions") or said.get("@dimension") or ["1" if is_true("@univariate") else "0"]
    if not dimensions[0].isdecimal():
        raise DataError(f"data: {path}: @dimensions: expected a number of channels, got {dimensions[0]!r:.40}")
    has_labels = is_true("@classlabel") or is_true("@targetlabel")
    classes = tuple(said["@classlabel"][1:]) if labelled else ()
    return _Header(has_labels, classes, int(dimensions[0]))


def _parse_series(channels: Sequence[str], header: _Header, label: str) -> Tensor | str:
    """One series ``(C,T)``, or what is wrong with it."""
    if header.channels and len(channels) != header.channels:
        return f"{len(channels)} channel(s), the header says {header.channels}"
    if header.classes and label not in header.classes:
        return f"the class {label!r:.40}, which the header does not name ({', '.join(header.classes[:5])})"
    found: list[list[float]] = []
    for number, text in enumerate(channels):
        try:
            found.append([float(word) if word.strip() != "?" else float("nan") for word in text.split(",")])
        except ValueError:
            return f"expected numbers with commas between in channel {number}, got {text.strip()!r:.40}"
    counts = {len(values) for values in found}
    if len(counts) != 1:
        return f"its channels have {min(counts, default=0)} to {max(counts, default=0)} steps: they need as many each"
    return torch.tensor(found, dtype=torch.float32)
