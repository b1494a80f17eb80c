"""Groups of samples that belong together (frames of one video, pictures of one patient), found and named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.errors import DataError, InputError


class Groups(NamedTuple):
    """``ids (N,)`` ``int64``, the place of each sample's group in the sorted ``names``."""

    ids: Tensor
    names: tuple[str, ...]


def number_groups(values: Sequence[str], names: Iterable[str] = ()) -> Groups:
    """Numbers the groups of N samples; give ``names`` of all parts of a source, so that all of them count alike."""
    known = tuple(sorted({*values, *names}))
    numbers = {name: i for i, name in enumerate(known)}
    return Groups(torch.tensor([numbers[value] for value in values], dtype=torch.int64), known)


def looks_like_pattern(word: str) -> bool:
    """Whether it has characters that regular expressions have and names of columns have not."""
    return any(sign in word for sign in "\\()[]*+?^$|{}")


def match_groups(pattern: str, names: Sequence[str]) -> list[str]:
    """The group of each file name: what the pattern's first parentheses match, or all that it matches without any.

    Args:
        pattern: a regular expression, found anywhere in the name.
        names: of files, with their class folder.

    Raises:
        InputError: no regular expression; DataError: names that it does not match.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"group_by: {pattern!r} is no regular expression ({error})") from error
    found = [compiled.search(name) for name in names]
    values = [match and match[1 if compiled.groups else 0] for match in found]
    missing = [name for name, value in zip(names, values, strict=True) if not value]
    if missing:
        raise DataError(
            f"group_by: {pattern!r} finds no group in {len(missing)} of {len(names)} file names, such as {missing[0]!r}: "
            "it has to match in every one"
        )
    return [str(value) for value in values]
