"""Samples that wait before a stage, gathered so that each row is copied once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from exitlens.model.cutting.stage import Activations


@dataclass
class Buffer:
    """Rows that were gathered one after the other into memory for ``capacity`` of them: each is copied once."""

    tensors: Activations  # rows of memory first, images as (B,H,W,C) where they are channels_last
    last: tuple[bool, ...]  # which are
    used: int

    @classmethod
    def like(cls, activations: Activations, capacity: int) -> Buffer:
        """Empty memory for rows such as these."""
        last = _find_channels_last(activations)
        rows = (t.permute(0, 2, 3, 1) if is_last else t for t, is_last in zip(activations, last, strict=True))
        return cls(tuple(t.new_empty(capacity, *t.shape[1:]) for t in rows), last, 0)

    def fits(self, activations: Activations, count: int) -> bool:
        """Whether ``count`` rows of ``activations`` can be added."""
        return self.last == _find_channels_last(activations) and self.used + count <= len(self.tensors[0])

    def gather(self, activations: Activations, rows: Tensor) -> None:
        """Adds rows of ``activations``."""
        end = self.used + len(rows)
        for t, mine, is_last in zip(activations, self.tensors, self.last, strict=True):
            torch.index_select(t.permute(0, 2, 3, 1) if is_last else t, 0, rows, out=mine[self.used : end])
        self.used = end

    def rows(self) -> Activations:
        """What was gathered, in the memory format that it had."""
        used = (t[: self.used] for t in self.tensors)
        return tuple(t.permute(0, 3, 1, 2) if is_last else t for t, is_last in zip(used, self.last, strict=True))


def _find_channels_last(activations: Activations) -> tuple[bool, ...]:
    return tuple(t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in activations)


@dataclass
class Pool:
    """Samples that wait for one stage, in the order in which they came."""

    places: list[Tensor] = field(default_factory=list)
    pieces: list[Activations | Buffer] = field(default_factory=list)
    count: int = 0
    since: float = float("inf")  # when the sample came in that waits longest

    def add(self, where: Tensor, activations: Activations, stay: Tensor | None, since: float, capacity: int) -> None:
        """Takes in all rows of ``activations``, or those that ``stay``."""
        if stay is None:
            self.pieces.append(activations)
        else:
            buffer = self.pieces[-1] if self.pieces else None
            if not isinstance(buffer, Buffer) or not buffer.fits(activations, len(stay)):
                buffer = Buffer.like(activations, max(capacity, len(stay)))
                self.pieces.append(buffer)
            buffer.gather(activations, stay)
        self.places.append(where)
        self.count += len(where)
        self.since = min(self.since, since)

    def take(self, size: int) -> tuple[Tensor, Activations, float]:
        """All that wait, if they are fewer than two micro-batches of ``size`` (0: however many), else one."""
        pieces = [piece.rows() if isinstance(piece, Buffer) else piece for piece in self.pieces]
        since, count = self.since, self.count
        where = self.places[0] if len(self.places) == 1 else torch.cat(self.places)
        activations = pieces[0] if len(pieces) == 1 else tuple(torch.cat(column) for column in zip(*pieces, strict=True))
        self.places, self.pieces, self.count, self.since = [], [], 0, float("inf")
        if size and count >= 2 * size:
            self.add(where[size:], tuple(t[size:] for t in activations), None, since, 0)
            where, activations = where[:size], tuple(t[:size] for t in activations)
        return where, activations, since

    def discard(self, gone: Tensor) -> None:
        """Leaves out the samples at these places."""
        if not any(bool(torch.isin(places, gone).any()) for places in self.places):
            return
        where, activations, since = self.take(0)
        stay = (~torch.isin(where, gone)).nonzero().squeeze(1)
        if len(stay):
            self.add(where[stay], tuple(gather(t, stay) for t in activations), None, since, 0)


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``x`` in the memory format of ``x``."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)  # whole rows of memory, copied once
    return x.index_select(0, rows)
