"""Unlabelled samples as batches of a network's inputs, read while they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from exitlens.data.batches import Batch
from exitlens.data.checks import refuse_bad
from exitlens.data.loading.names import Picked
from exitlens.data.loading.readers import ImageFiles, Reader
from exitlens.data.loading.workers import choose_workers, decode_batches
from exitlens.errors import DataError, InputError, require
from exitlens.types import Preprocess, TextPreprocess
from exitlens.types.inputs import Inputs


class _Stream:
    """What both have: the number of batches, and what has been read so far."""

    def __init__(
        self,
        names: Sequence[Any],
        batch_size: int,
        rows: Sequence[int] | None,
        groups: Sequence[Any] | None,
        bad: Sequence[str],
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size: expected an integer of 1 or more, got {batch_size!r}")
        if groups is not None and len(groups) != len(names):
            raise InputError(f"groups: expected {len(names)}, one per sample; got {len(groups)}")
        self._rows = range(len(names)) if rows is None else rows
        self._names, self._groups, self._known = names, groups, tuple(bad)
        self._numbers = {} if groups is None else {group: i for i, group in enumerate(sorted(set(groups)))}
        self._batch_size = batch_size
        self.total = len(self._rows) + len(bad)
        self._restart()

    def _restart(self) -> None:
        self._read = array("q")
        self.bad = list(self._known)
        self.files: Sequence[Any] = Picked(self._names, self._read)
        self.groups = None if self._groups is None else Picked(self._groups, self._read)

    def __len__(self) -> int:
        """How many batches, where everything can be read."""
        return -(-len(self._rows) // self._batch_size)

    def _close(self, inputs: Inputs, rows: Sequence[int]) -> Any:
        """The batch of these rows, with its groups where there are some."""
        self._read.extend(rows)
        if self._groups is None:
            return inputs
        return Batch(inputs, None, torch.tensor([self._numbers[self._groups[row]] for row in rows]))


class DecodedStream(_Stream):
    """Samples as normalised batches, decoded while they are asked for; every batch but the last is full.

    Args:
        names: N of them, of what ``reader`` gives, in the order of the answers.
        preprocess: how samples become inputs.
        batch_size: samples in a batch.
        skip_bad: as of :class:`ImageStream`, like ``workers``, ``rows``, ``groups`` and ``bad``.
        reader: gives N samples.
        shape: of each.
        dtype: of each.

    Attributes:
        preprocess: as given.
        files: names of the samples in the batches so far, in order.
        groups: their groups, or ``None``.
        bad: what could not be read so far, each with the reason.
        total: how many samples there are to read, and what is known to be bad.
    """

    def __init__(
        self,
        names: Sequence[Any],
        preprocess: Any,
        batch_size: int,
        skip_bad: bool = False,
        workers: int | None = None,
        *,
        reader: Reader,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        rows: Sequence[int] | None = None,
        groups: Sequence[Any] | None = None,
        bad: Sequence[str] = (),
    ) -> None:
        super().__init__(names, batch_size, rows, groups, bad)
        if len(reader) != len(names):
            raise InputError(f"reader: expected {len(names)} samples, one per name; got {len(reader)}")
        self.preprocess = preprocess
        self._reader, self._shape, self._dtype, self._skip_bad = reader, tuple(shape), dtype, skip_bad
        self._workers = choose_workers(workers, len(self))

    def __iter__(self) -> Iterator[Any]:
        self._restart()
        plan = [self._rows[at : at + self._batch_size] for at in range(0, len(self._rows), self._batch_size)]
        held = torch.empty(0, *self._shape, dtype=self._dtype)  # read, but too few for a batch
        rows: list[int] = []
        decoded = decode_batches(self._reader, plan, self._shape, self._workers, dtype=self._dtype)
        for part, found in zip(plan, decoded, strict=True):
            stop = found.bad[0][0] if found.bad and not self._skip_bad else None  # nothing after this row is used
            good = [part[place] for place in found.good if stop is None or part[place] < stop]
            self.bad += [reason for _, reason in found.bad[: None if self._skip_bad else 1]]
            rows += good
            held = torch.cat([held, found.values[: len(good)]])
            while len(held) >= self._batch_size:
                yield self._close(self.preprocess.normalise(held[: self._batch_size]), rows[: self._batch_size])
                held, rows = held[self._batch_size :], rows[self._batch_size :]
            if stop is not None:
                break
        if rows:
            yield self._close(self.preprocess.normalise(held), rows)
        if len(self.bad) > len(self._known) and not self._skip_bad:
            if len(self._names) == 1:
                raise DataError(f"data: {self.bad[-1]}: give another one")
            raise refuse_bad(self.bad[-1], "remove it")


class ImageStream(DecodedStream):
    """Image files as normalised batches ``(B,C,H,W)``, read while they are asked for; every batch but the last is full.

    Args:
        files: N image files, or names of what ``reader`` gives, in the order of the answers.
        preprocess: size, mean and standard deviation; the number of means says whether images are grey or colour.
        batch_size: images in a batch.
        skip_bad: leave out files that cannot be read and list them in :attr:`bad`; otherwise the first of them ends the
            iteration with a :class:`DataError`, after the images before it.
        workers: processes that decode; by default one for each core, at most 8.
        reader: gives the pixels of N images; by default those of the files.
        rows: those of the N to read, ascending; by default all.
        groups: N words: images with the same one belong together. A batch then is ``(images, None, group ids)``.
        bad: what is known to be bad before anything is read.

    Attributes:
        preprocess: as given.
        files: the images in the batches so far, in order.
        groups: their groups, or ``None``.
        bad: what could not be read so far, each with the reason.
        total: how many images there are to read, and what is known to be bad.

    Examples:
        >>> stream = xl.ImageStream(sorted(Path("photos").rglob("*.png")), scenes.preprocess, batch_size=3)
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
        *,
        reader: Reader | None = None,
        rows: Sequence[int] | None = None,
        groups: Sequence[Any] | None = None,
        bad: Sequence[str] = (),
    ) -> None:
        require(preprocess, Preprocess, "preprocess")
        own = ImageFiles(Path(), map(str, files), preprocess) if reader is None else reader
        rest: Any = {"dtype": torch.uint8, "rows": rows, "groups": groups, "bad": bad}
        shape = (len(preprocess.mean), *preprocess.size)
        super().__init__(files, preprocess, batch_size, skip_bad, workers, reader=own, shape=shape, **rest)


class TextStream(_Stream):
    """Texts as batches of network input, encoded while they are asked for.

    Args:
        texts: N texts; a sequence that reads them when they are asked for is read in that way.
        names: N names, for the answers.
        preprocess: how texts become token ids.
        batch_size: texts in a batch.
        rows: as of :class:`ImageStream`, like the next two.
        groups: likewise.
        bad: likewise.

    Attributes:
        preprocess: as given.
        files: names of the texts in the batches so far, in order.
        groups: their groups, or ``None``.
        bad: what was known to be bad: a text that was read can be encoded.
        total: how many texts there are to read, and what is known to be bad.
    """

    def __init__(
        self,
        texts: Sequence[str],
        names: Sequence[str],
        preprocess: TextPreprocess,
        batch_size: int,
        *,
        rows: Sequence[int] | None = None,
        groups: Sequence[Any] | None = None,
        bad: Sequence[str] = (),
    ) -> None:
        require(preprocess, TextPreprocess, "preprocess")
        super().__init__(names, batch_size, rows, groups, bad)
        if len(names) != len(texts):
            raise InputError(f"names: expected {len(texts)}, one per text; got {len(names)}")
        self._texts, self.preprocess = texts, preprocess

    def __iter__(self) -> Iterator[Any]:
        self._restart()
        for at in range(0, len(self._rows), self._batch_size):
            rows = self._rows[at : at + self._batch_size]
            yield self._close(self.preprocess.encode([self._texts[row] for row in rows]), rows)
