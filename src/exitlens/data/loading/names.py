"""Names of samples that are looked up when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, overload


class RowNames(Sequence[str]):
    """Names of the rows of a table's parts, made when they are asked for: what comes before the number, and how many."""

    def __init__(self, parts: Sequence[tuple[str, int]]) -> None:
        self._parts = tuple(parts)

    def __len__(self) -> int:
        return sum(count for _, count in self._parts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        for start, count in self._parts:
            if row < count:
                return f"{start}{row}"
            row -= count
        raise IndexError(index)


T = TypeVar("T")


class Picked(Sequence[T]):
    """Those of other values that stand at given rows, which may become more."""

    def __init__(self, values: Sequence[T], rows: Sequence[int]) -> None:
        self._values, self._rows = values, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._values[row] for row in self._rows[index]]
        return self._values[self._rows[index]]
