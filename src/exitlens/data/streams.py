"""Samples without labels as batches of a network's inputs, read while they are asked for."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from exitlens.data.batches import Batch
from exitlens.data.files import ArrayFiles, list_names, make_reader
from exitlens.data.formats import find_format, open_rows
from exitlens.data.lines import NumberFile, TextFiles, peek_kinds
from exitlens.data.readers import EncodedImages, ImageFiles, PackedStrings, Picked, PixelCache, refuse_bad
from exitlens.data.rows import SAMPLES, ColumnChoice, Source, check_rows, join_rows, match_groups
from exitlens.data.sets import find_kind
from exitlens.data.sources import Target, arrange_arrays
from exitlens.data.workers import choose_workers, decode_batches
from exitlens.errors import DataError, InputError, require
from exitlens.modalities import IMAGE, SERIES, TEXT, VECTOR, VOLUME, Modality
from exitlens.modalities.series import list_columns
from exitlens.types.preprocessing import ArrayPreprocess, Preprocess, Preprocessing, VectorPreprocess
from exitlens.types.settings import COUNT, check_number

AS_FOUND = ColumnChoice()
FileReader = EncodedImages | ArrayFiles


class Listing(NamedTuple):
    """N samples of a source, all its parts one after the other."""

    names: Sequence[Any]  # files, ``shard.tar/member.jpg``, ``table:row``, ``table:part:row``, ``texts.csv:line``, or keys
    content: FileReader | Sequence[str | None] | Tensor  # a reader of the samples, the texts, or the samples (N,*S)
    rows: Sequence[int] | None = None  # to read, ascending: the complete ones as far as is known; default: all
    groups: Sequence[Any] | None = None  # names of the groups, if there are any
    bad: Sequence[str] = ()  # what is wrong with other samples and files


class SampleStream:
    """Samples as batches of a network's inputs, read while they are asked for; every batch but the last is full.

    A batch of samples with groups is ``(inputs, None, group ids)``. A sample that cannot be read ends the iteration with a
    :class:`DataError`, after the samples before it; ``skip_bad`` leaves it out.

    Attributes:
        files: names of the samples in the batches so far, in order.
        groups: their groups, or ``None``.
        bad: the samples that could not be read so far, each with the reason.
        total: number of samples to read, and of those that are known to be bad.
    """

    def __init__(
        self, listing: Listing, preprocess: Any, batch_size: int, skip_bad: bool = False, workers: int | None = None
    ) -> None:
        names, content, rows, groups, bad = listing
        check_number("batch_size", batch_size, COUNT)
        self._names, self._content, self._groups, self._known_bad = names, content, groups, tuple(bad)
        self._rows = range(len(names)) if rows is None else rows
        self._numbers = {} if groups is None else {group: i for i, group in enumerate(sorted(set(groups)))}
        self.preprocess, self._batch_size, self._skip_bad = preprocess, batch_size, skip_bad
        self._workers = choose_workers(workers, len(self))
        self.total = len(self._rows) + len(bad)
        self.bad, self._bad_rows, self._places = list[str](), set[int](), dict[int, int]()
        self._restart()

    def _restart(self) -> None:
        self._read = array("q")
        self.bad[:] = self._known_bad
        self.files: Sequence[Any] = Picked(self._names, self._read)
        self.groups = None if self._groups is None else Picked(self._groups, self._read)

    def __len__(self) -> int:
        """Return the number of batches if everything can be read."""
        return -(-len(self._rows) // self._batch_size)

    def take_drawn(self, choose: Callable[[int, Tensor | None], Tensor]) -> Self:
        """Return a stream of the samples that ``choose`` draws from their number and groups ``(N,)``.

        Samples that could not be read so far are not counted. What the drawn stream cannot read is in ``bad`` of both.
        """
        rows, groups = [row for row in self._rows if row not in self._bad_rows], self._groups
        ids = None if groups is None else torch.tensor([self._numbers[groups[row]] for row in rows])
        drawn = copy(self)
        drawn._places = {rows[i]: i for i in choose(len(rows), ids).tolist()}
        drawn._rows = list(drawn._places)
        drawn.total = len(drawn._rows) + len(self._known_bad)
        drawn._workers = min(self._workers, len(drawn))
        drawn._restart()
        return drawn

    def find_places(self) -> Tensor:
        """Return where the samples that were read stand in the stream that they were drawn from, ``(n,)``."""
        return torch.tensor([self._places[row] for row in self._read])

    def __iter__(self) -> Iterator[Any]:
        self._restart()
        plan = [self._rows[at : at + self._batch_size] for at in range(0, len(self._rows), self._batch_size)]
        if isinstance(self._content, Sequence | Tensor):
            for rows in plan:
                if isinstance(self._content, Tensor):
                    yield self._close(self.preprocess.normalise(self._content[list(rows)]), rows)
                else:
                    yield self._close(self.preprocess.encode([self._content[row] or "" for row in rows]), rows)
            return
        for values, rows in self._decode(self._content, plan):
            yield self._close(self.preprocess.normalise(values), rows)
        if len(self.bad) > len(self._known_bad) and not self._skip_bad:
            if len(self._names) == 1:
                raise DataError(f"data: {self.bad[-1]}. Fix: give another one")
            raise refuse_bad(self.bad[-1], "remove it")

    def _decode(self, reader: FileReader, plan: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield full batches of good samples and their rows, up to the first bad one unless it may be skipped."""
        dtype = torch.uint8 if isinstance(self.preprocess, Preprocess) else torch.float32
        held, rows = torch.empty(0, *reader.shape, dtype=dtype), list[int]()  # read, but too few for a batch
        for part, decoded in zip(plan, decode_batches(reader, plan, reader.shape, self._workers, dtype=dtype), strict=True):
            stop = decoded.bad[0][0] if decoded.bad and not self._skip_bad else None  # nothing after this row is used
            good = [part[place] for place in decoded.good if stop is None or part[place] < stop]
            self.bad += [reason for _, reason in decoded.bad[: None if self._skip_bad else 1]]
            self._bad_rows |= {row for row, _ in decoded.bad}
            rows += good
            held = torch.cat([held, decoded.values[: len(good)]])
            while len(held) >= self._batch_size:
                yield held[: self._batch_size], rows[: self._batch_size]
                held, rows = held[self._batch_size :], rows[self._batch_size :]
            if stop is not None:
                break
        if rows:
            yield held, rows

    def _close(self, inputs: Any, rows: Sequence[int]) -> Any:
        """Return the batch of these rows, with its groups if there are any."""
        self._read.extend(rows)
        if self._groups is None:
            return inputs
        return Batch(inputs, None, torch.tensor([self._numbers[self._groups[row]] for row in rows]))


class ImageStream(SampleStream):
    """Image files as normalised batches ``(B,C,H,W)``, read while they are asked for; every batch but the last is full.

    Args:
        files: in the order of the answers.
        preprocess: size, mean and standard deviation; the number of means says whether images are grey or colour.
        batch_size: images in a batch.
        skip_bad: leave out images that cannot be read and list them in ``bad``; otherwise the first of them ends the
            iteration with a :class:`~exitlens.errors.DataError`.
        workers: processes that decode; by default one for each core, at most 8.

    Examples:
        >>> stream = xl.data.ImageStream(sorted(Path("photos").rglob("*.png")), scenes.preprocess, batch_size=3)
        >>> [len(batch) for batch in stream]
        [3, 1]
    """

    def __init__(
        self,
        files: Sequence[Path] | Sequence[str],
        preprocess: Preprocess,
        batch_size: int,
        skip_bad: bool = False,
        workers: int | None = None,
    ) -> None:
        require(preprocess, Preprocess, "preprocess")
        listing = Listing(files, ImageFiles(Path(), map(str, files), preprocess))
        super().__init__(listing, preprocess, batch_size, skip_bad, workers)


def open_stream(
    preprocess: Preprocessing,
    data: str,
    batch_size: int,
    choice: ColumnChoice = AS_FOUND,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    cache: Path | None = None,
    without: Collection[str] = (),
) -> SampleStream:
    """Stream the samples of a source without labels, in batches.

    ``preprocess`` is that of the network; its class says what the samples are. ``data`` is a file of one sample or a folder
    of them, a file of rows, a table or shards. ``cache`` is a directory for decoded pixels, ``without`` has names of samples
    to leave out.
    """
    if cache is not None and not isinstance(preprocess, Preprocess):
        raise InputError(f"cache: it is for images, these data are {find_kind(preprocess).plural}. Fix: leave it out")
    listing = list_samples(preprocess, data, choice, skip_bad)
    if cache is not None and isinstance(listing.content, EncodedImages):
        listing.content.cache = PixelCache(cache)
    if without:
        left_out, rows = set(without), range(len(listing.names)) if listing.rows is None else listing.rows
        listing = listing._replace(rows=[i for i in rows if listing.names[i] not in left_out])
    return SampleStream(listing, preprocess, batch_size, skip_bad, workers)


def list_samples(preprocess: Preprocessing, data: str, choice: ColumnChoice = AS_FOUND, skip_bad: bool = False) -> Listing:
    """List the samples of a source without reading images and files; the arguments are those of :func:`open_stream`."""
    kind = find_kind(preprocess)
    source = _open_source(kind, data, choice)
    if source is None:
        return _list_files(Path(data), kind, preprocess, choice)
    role = next(role for role, modality in SAMPLES.items() if modality is kind)
    columns = source.find_columns(choice, role, preprocess.names if isinstance(preprocess, VectorPreprocess) else ())
    rows = join_rows([*source.list_rows(columns, joined=True, skip_bad=skip_bad).values()])
    if isinstance(preprocess, ArrayPreprocess):
        rows = arrange_arrays({"": rows}, data, Target(known=preprocess))[0][""]
    good, bad = check_rows({"": rows}, skip_bad)
    names = rows.names
    if rows.keys is not None:
        names = PackedStrings((key or "").strip() for key in rows.keys)
        (key, count), *_ = Counter(names[i] for i in good[""]).most_common(1) or [("", 0)]
        if count > 1:
            where = f"{count} rows of {columns.key!r}"
            raise DataError(f"columns: the key {key!r} stands in {where}. Fix: name a column that tells rows apart")
    content: Any = rows.texts if rows.arrays is None else rows.arrays
    if rows.images is not None:
        content = rows.images(preprocess)  # type: ignore[arg-type]
    groups = None if rows.groups is None else [group or "" for group in rows.groups]
    return Listing(names, content, good[""], groups, (*rows.damage, *bad))


def _open_source(kind: Modality, data: str, choice: ColumnChoice) -> Source | None:
    """Open a source whose rows are samples; ``None`` for files of one sample each."""
    path, is_array = Path(data), kind not in (IMAGE, TEXT)
    form = find_format(data, choice.columns, [choice.group_by], labelled=is_array)
    if kind is TEXT and form in (None, "folder", "texts"):
        return TextFiles(path)
    if not is_array:
        if form in ("numbers", "series", "arrays", "texts"):
            has = "texts" if form == "texts" else "series, volumes or vectors"
            raise InputError(f"data: {data} holds {has}, the network takes {kind.plural}. Fix: give {kind.plural}")
        return None if form in (None, "folder") else open_rows(data, form)
    suffix = path.suffix.lower()
    may_have_rows = suffix == ".csv" and kind is not VOLUME
    if may_have_rows and (kind is VECTOR or choice.columns or (path.is_file() and "list" in peek_kinds(path).values())):
        return NumberFile(path)
    kinds = list_columns(path) if suffix == ".parquet" else {}
    is_one_series = kind is SERIES and bool(kinds) and all(kinds.values())
    is_table = form in ("parquet", "arrow", "saved", "hub") and kind in (VECTOR, SERIES) and not is_one_series
    if form is not None and (is_table or (form == "series" and kind is SERIES)):
        return open_rows(data, form)
    if kind is VECTOR:
        raise DataError(f"data: {path} is not a table of numbers: expected .csv, Parquet or Arrow, a vector in each row")
    return None


def _list_files(path: Path, kind: Modality, preprocess: Any, choice: ColumnChoice) -> Listing:
    if choice.columns:
        raise InputError(f"columns: {path} holds files of one {kind.name} each, without columns. Fix: leave them out")
    if not path.exists():
        raise DataError(f"data: no file or folder {path}. Fix: give {kind.given}")
    root, files = (path, list_names(path, kind)) if path.is_dir() else (Path(), [str(path)])
    names = PackedStrings(str(root / name) for name in files)
    groups = match_groups(choice.group_by, files) if choice.group_by else None
    return Listing(names, make_reader(Path(), names, preprocess), groups=groups)
