"""Sequences that make their items when they are asked for, and strings packed into little memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class LazySequence(Sequence[T], ABC):
    """A sequence whose items are made on demand by :meth:`get` of a subclass."""

    @abstractmethod
    def get(self, index: int) -> T:
        """Return the item at a place in ``[0, len(self))``."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        places = range(len(self))[index]
        return [self.get(i) for i in places] if isinstance(places, range) else self.get(places)


class RowNames(LazySequence[str]):
    """Names of the rows of several parts, each with a prefix, which comes before the number of a row, and a count."""

    def __init__(self, parts: Sequence[tuple[str, int]]) -> None:
        self._prefixes = [prefix for prefix, _ in parts]
        self._starts = [0, *accumulate(count for _, count in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def get(self, index: int) -> str:
        """Return prefix and number."""
        part = bisect_right(self._starts, index) - 1
        return f"{self._prefixes[part]}{index - self._starts[part]}"


class Picked(LazySequence[T]):
    """The items of another sequence at given rows, to which more rows may be added."""

    def __init__(self, values: Sequence[T], rows: Sequence[int]) -> None:
        self._values, self._rows = values, rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, index: int) -> T:
        """Return the item at a row."""
        return self._values[self._rows[index]]


class PackedStrings(LazySequence[str]):
    """Strings in one block of bytes: a million file names or texts take their bytes and sixteen more each.

    Worker processes share the block, whereas every process would come to own a copy of a list of strings.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._starts, self._ends = array("q"), array("q")
        for string in strings:
            self.append(string)

    def append(self, string: str) -> None:
        """Add a string at the end."""
        self._starts.append(len(self._bytes))
        self._bytes += string.encode("utf-8", "surrogatepass")  # file names have half a surrogate for odd bytes
        self._ends.append(len(self._bytes))

    def subset(self, indices: Tensor) -> PackedStrings:
        """Return the strings at ``indices`` (``(n,)`` integers), which share the bytes."""
        part = PackedStrings()
        part._bytes = self._bytes
        rows = torch.arange(len(self))[indices].numpy()
        part._starts, part._ends = (array("q", np.array(at)[rows].tobytes()) for at in (self._starts, self._ends))
        return part

    def __len__(self) -> int:
        return len(self._ends)

    def get(self, index: int) -> str:
        """Return the string at a place."""
        return self._bytes[self._starts[index] : self._ends[index]].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        """Tell if another sequence has the same strings."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it can grow

    def __repr__(self) -> str:
        return f"PackedStrings({self[:3]}{'...' if len(self) > 3 else ''}, {len(self)} strings)"


def pack_strings(strings: Iterable[str]) -> PackedStrings:
    """Pack strings unless they are packed."""
    return strings if isinstance(strings, PackedStrings) else PackedStrings(strings)
