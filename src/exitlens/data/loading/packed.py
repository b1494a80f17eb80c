"""Many strings, and the tokens of many texts, in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from exitlens.types import TextPreprocess

ENCODED_AT_ONCE = 1024  # texts; the tokenizer's own record of each takes kilobytes


class PackedStrings(Sequence[str]):
    """Strings in one block of bytes: a million file names or texts take their bytes and sixteen more each.

    Worker processes share the block; of a list of strings every process would come to own a copy.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._starts, self._ends = array("q"), array("q")
        for string in strings:
            self.append(string)

    def append(self, string: str) -> None:
        """Adds one at the end."""
        self._starts.append(len(self._bytes))
        self._bytes += string.encode("utf-8", "surrogatepass")  # half a surrogate is what file names have for odd bytes
        self._ends.append(len(self._bytes))

    def subset(self, indices: Tensor) -> PackedStrings:
        """Those at ``indices`` (``(n,)`` integers); the bytes are shared."""
        part = PackedStrings()
        part._bytes = self._bytes
        rows = torch.arange(len(self))[indices].numpy()
        part._starts, part._ends = (array("q", np.array(one)[rows].tobytes()) for one in (self._starts, self._ends))
        return part

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._bytes[self._starts[index] : self._ends[index]].decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        """Whether a sequence has the same strings."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it can grow

    def __repr__(self) -> str:
        return f"PackedStrings({self[:3]}{'...' if len(self) > 3 else ''}, {len(self)} strings)"


def pack_strings(strings: Iterable[str]) -> PackedStrings:
    """The same strings, packed unless they are."""
    return strings if isinstance(strings, PackedStrings) else PackedStrings(strings)


class PackedTokens:
    """Token ids of N texts without their padding, encoded once: four bytes for each token.

    Args:
        texts: N texts, one or more.
        preprocess: how they become token ids.

    Raises:
        InputError: for texts that cannot be encoded.
    """

    def __init__(self, texts: Sequence[str], preprocess: TextPreprocess) -> None:
        self._length, self._padding = preprocess.length, 0
        pieces, counts = [], []
        for at in range(0, max(len(texts), 1), ENCODED_AT_ONCE):
            found = preprocess.encode(texts[at : at + ENCODED_AT_ONCE])
            ids, mask = found["input_ids"], found["attention_mask"].bool()  # (n,L), padded at the end
            pieces.append(ids[mask].int())
            counts.append(mask.sum(1))
            if not mask.all():
                self._padding = int(ids[~mask][0])
        self._ids, self._counts = torch.cat(pieces), torch.cat(counts)  # (T,), (N,)
        self._starts = self._counts.cumsum(0) - self._counts  # (N,)

    def __len__(self) -> int:
        return len(self._counts)

    def subset(self, indices: Tensor) -> PackedTokens:
        """Those of the texts at ``indices`` (``(n,)`` integers); the ids are shared."""
        part = PackedTokens.__new__(PackedTokens)
        part._length, part._padding, part._ids = self._length, self._padding, self._ids
        part._starts, part._counts = self._starts[indices], self._counts[indices]
        return part

    def take(self, indices: Tensor | slice) -> dict[str, Tensor]:  # (n,) integers
        """``input_ids`` and ``attention_mask`` ``(n,L)`` ``int64``, as :meth:`TextPreprocess.encode` gives them."""
        starts, counts = self._starts[indices], self._counts[indices]
        places = torch.arange(self._length)
        mask = places < counts[:, None]  # (n,L)
        ids = torch.full(mask.shape, self._padding)
        ids[mask] = self._ids[(starts[:, None] + places)[mask]].long()
        return {"input_ids": ids, "attention_mask": mask.long()}
