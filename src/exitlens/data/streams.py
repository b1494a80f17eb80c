"""Unlabelled samples as batches of a network's inputs, read while they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from exitlens.data.loading.readers import ImageFiles
from exitlens.data.loading.workers import choose_workers, decode_batches
from exitlens.errors import DataError, InputError, require
from exitlens.types import Preprocess, TextPreprocess


class _Stream:
    """What both have: the number of batches, and what has been read so far."""

    def __init__(self, total: int, batch_size: int) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size: expected an integer of 1 or more, got {batch_size!r}")
        self.bad: list[str] = []
        self.total, self._batch_size = total, batch_size

    def __len__(self) -> int:
        """How many batches, where everything can be read."""
        return -(-self.total // self._batch_size)


class ImageStream(_Stream):
    """Image files as normalised batches ``(B,C,H,W)``, read while they are asked for; every batch but the last is full.

    Args:
        files: image files, in the order of the answers.
        preprocess: size, mean and standard deviation; the number of means says whether images are grey or colour.
        batch_size: images in a batch.
        skip_bad: leave out files that cannot be read and list them in :attr:`bad`; otherwise the first of them ends the
            iteration with a :class:`DataError`, after the images before it.
        workers: processes that decode; by default one for each core, at most 8.

    Attributes:
        files: the images in the batches so far, in order.
        bad: the files that could not be read so far, each with the reason.
        total: how many files there are to read.
    """

    def __init__(
        self,
        files: Sequence[Path],
        preprocess: Preprocess,
        batch_size: int,
        skip_bad: bool = False,
        workers: int | None = None,
    ) -> None:
        require(preprocess, Preprocess, "preprocess")
        super().__init__(len(files), batch_size)
        self.files: list[Path] = []
        self._all, self._preprocess, self._skip_bad = tuple(files), preprocess, skip_bad
        self._workers = choose_workers(workers, len(self))

    def __iter__(self) -> Iterator[Tensor]:
        self.files, self.bad = [], []
        reader = ImageFiles(Path(), map(str, self._all), self._preprocess)
        plan = [range(at, min(at + self._batch_size, self.total)) for at in range(0, self.total, self._batch_size)]
        held = torch.empty(0, *reader.shape, dtype=torch.uint8)  # read, but too few for a batch
        rows: list[int] = []
        for part, found in zip(plan, decode_batches(reader, plan, reader.shape, self._workers), strict=True):
            first = found.bad[0][0] if found.bad and not self._skip_bad else self.total  # nothing after it is used
            good = [part[place] for place in found.good if part[place] < first]
            self.bad += [reason for _, reason in found.bad[: None if self._skip_bad else 1]]
            rows += good
            held = torch.cat([held, found.pixels[: len(good)]])
            while len(held) >= self._batch_size:
                yield self._close_batch(held[: self._batch_size], rows[: self._batch_size])
                held, rows = held[self._batch_size :], rows[self._batch_size :]
            if first < self.total:
                break
        if rows:
            yield self._close_batch(held, rows)
        if self.bad and not self._skip_bad:
            mend = "remove it, or pass --skip-bad (skip_bad=True) to leave out files that cannot be read"
            raise DataError(f"data: {self.bad[0]}: {mend if self.total > 1 else 'give another image'}")

    def _close_batch(self, pixels: Tensor, rows: Sequence[int]) -> Tensor:
        self.files += [self._all[row] for row in rows]
        return self._preprocess.normalise(pixels)


class TextStream(_Stream):
    """Texts as batches of network input, encoded while they are asked for.

    Args:
        texts: N texts.
        names: N names, for the answers.
        preprocess: how texts become token ids.
        batch_size: texts in a batch.

    Attributes:
        files: names of the texts in the batches so far, in order.
        bad: always empty: a text that was read can be encoded.
        total: N.
    """

    def __init__(self, texts: Sequence[str], names: Sequence[str], preprocess: TextPreprocess, batch_size: int) -> None:
        require(preprocess, TextPreprocess, "preprocess")
        super().__init__(len(texts), batch_size)
        if len(names) != len(texts):
            raise InputError(f"names: expected {len(texts)}, one per text; got {len(names)}")
        self.files: list[str] = []
        self._texts, self._names, self._preprocess = tuple(texts), tuple(names), preprocess

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.files = []
        for at in range(0, self.total, self._batch_size):
            self.files += self._names[at : at + self._batch_size]
            yield self._preprocess.encode(self._texts[at : at + self._batch_size])
