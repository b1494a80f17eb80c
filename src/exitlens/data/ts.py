"""Files ``.ts``: the format of sktime and aeon for labelled series, read whole.

A header of lines with ``@`` says what there is; below ``@data`` each line is one series, its channels and its label with
colons between, the values with commas.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.data.columns import Columns, Role
from exitlens.data.lines import open_file
from exitlens.data.rows import Reading, Rows, Source, looks_like_pattern, match_groups
from exitlens.errors import DataError, InputError

SUFFIX = ".ts"
_PART = re.compile(r"^(.+)_(train|test|validation|val|calibration)$", re.IGNORECASE)


class _Header(NamedTuple):
    """What the lines with ``@`` say: labels or not, names of classes (or none) and channels (0: not said)."""

    has_labels: bool
    classes: tuple[str, ...]
    channels: int


def find_ts_files(path: Path) -> dict[str, Path]:
    """Return the files of a source by part: one file, or ``NAME_TRAIN.ts`` and ``NAME_TEST.ts`` in a folder.

    Raises:
        DataError: files whose names say no part, or of several data sets.
    """
    if not path.is_dir():
        return {"": path}
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX and not file.name.startswith("."))
    if len(files) == 1:
        return {"": files[0]}
    matches = [_PART.match(file.stem) for file in files]
    if not all(matches) or len({match[1] for match in matches if match}) != 1:
        names = ", ".join(file.name for file in files[:4])
        raise DataError(f"data: {path} has {names}: expected NAME_TRAIN.ts and NAME_TEST.ts")
    return {match[2].lower(): file for match, file in zip(matches, files, strict=True) if match}


def read_ts(path: Path, labelled: bool = True) -> Rows:
    """Read one file; a series that is not as the header says gets a fault.

    Raises:
        DataError: a file that cannot be read, lacks the labels that are needed, or is of another kind (with time stamps, for
            regression).
    """
    series: list[Tensor | None] = []
    labels: list[str | None] = []
    names: list[str] = []
    faults: dict[int, str] = {}
    with open_file(path) as file:
        numbered = ((number, raw.decode("utf-8", "replace").strip()) for number, raw in enumerate(file, 1))
        rows = ((number, line) for number, line in numbered if line and not line.startswith(("#", "%")))
        header = _read_header(rows, path, labelled)
        for number, line in rows:
            *channels, label = line.split(":") if header.has_labels else [*line.split(":"), ""]
            values = _parse_series(channels, header, label.strip())
            if isinstance(values, str):
                faults[len(series)] = values
            series.append(None if isinstance(values, str) else values)
            labels.append(label.strip() or None)
            names.append(f"{path}:{number}")
    if not series:
        raise DataError(f"data: {path} has no series: expected one in each line below @data")
    return Rows(names, series=series, labels=labels if labelled else None, faults=faults, classes=header.classes)


def _read_header(rows: Iterable[tuple[int, str]], path: Path, labelled: bool) -> _Header:
    fields: dict[str, list[str]] = {}
    for _, line in rows:
        key, *words = line.split()
        if key.lower() == "@data":
            break
        if not key.startswith("@"):
            raise DataError(
                f"data: {path} is not a .ts file: expected lines such as @classLabel above @data, got {line!r:.40}"
            )
        fields[key.lower()] = words
    else:
        raise DataError(f"data: {path} is not a .ts file: it has no line @data")

    def is_true(key: str) -> bool:
        return bool(fields.get(key)) and fields[key][0].lower() == "true"

    if is_true("@timestamps"):
        raise DataError(
            f"data: {path} has time stamps, expected values at equal steps. Fix: write it with @timeStamps false"
        )
    if labelled and not is_true("@classlabel"):
        raise DataError(f"data: {path} has no class labels: expected @classLabel true and their names")
    dimensions = fields.get("@dimensions") or fields.get("@dimension") or ["1" if is_true("@univariate") else "0"]
    if not dimensions[0].isdecimal():
        raise DataError(f"data: {path}: @dimensions: expected a number of channels, got {dimensions[0]!r:.40}")
    has_labels = is_true("@classlabel") or is_true("@targetlabel")
    classes = tuple(fields["@classlabel"][1:]) if labelled else ()
    return _Header(has_labels, classes, int(dimensions[0]))


def _parse_series(channels: Sequence[str], header: _Header, label: str) -> Tensor | str:
    """Return one series ``(C,T)``, or what is wrong with it."""
    if header.channels and len(channels) != header.channels:
        return f"{len(channels)} channel(s), the header says {header.channels}"
    if header.classes and label not in header.classes:
        return f"the class {label!r:.40}, which the header does not name ({', '.join(header.classes[:5])})"
    values: list[list[float]] = []
    for number, text in enumerate(channels):
        try:
            values.append([float(word) if word.strip() != "?" else float("nan") for word in text.split(",")])
        except ValueError:
            return f"expected numbers with commas between in channel {number}, got {text.strip()!r:.40}"
    counts = {len(steps) for steps in values}
    if len(counts) != 1:
        return f"its channels have {min(counts, default=0)} to {max(counts, default=0)} steps: expected as many in each"
    return torch.tensor(values, dtype=torch.float32)


class TsFiles(Source):
    """One ``.ts`` file, or a folder of a training and a test file."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), {})

    def find_columns(self, reading: Reading, wanted: Role | None = None, features: Collection[str] = ()) -> Columns:
        """Refuse words for columns, which these files do not have; samples without labels may be grouped by their names."""
        pattern = reading.group_by if wanted is not None and looks_like_pattern(reading.group_by) else ""
        if any(reading._replace(group_by="" if pattern else reading.group_by)):
            words = "columns, group_by, split_by, task"
            raise InputError(f"{words}: {self.name} is a .ts file, without columns. Fix: leave them out")
        return Columns("series", ("series",), ("label",) if wanted is None else (), pattern=pattern)

    def list_rows(self, columns: Columns, *, joined: bool = False, skip_bad: bool = False) -> dict[str, Rows]:
        """Read every file."""
        parts = {part: read_ts(file, bool(columns.labels)) for part, file in find_ts_files(Path(self.name)).items()}
        if not columns.pattern:
            return parts
        return {part: rows._replace(groups=match_groups(columns.pattern, rows.names)) for part, rows in parts.items()}
