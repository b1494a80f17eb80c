"""What the columns of tables hold, and their values: words, and encoded images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exitlens.data.checks import SEPARATOR
from exitlens.data.formats.columns import Kind
from exitlens.data.loading.readers import EncodedImages, read_regular
from exitlens.errors import DataError, ExitlensError
from exitlens.types import Preprocess


def to_word(value: object, names: Sequence[str] = ()) -> str | None:
    """A value as a word: the name of a class, a whole number without a point; ``None`` where there is none (NaN, too).

    Of a list, its values' words with :data:`~exitlens.data.checks.SEPARATOR` between.
    """
    if isinstance(value, list | tuple):
        words = [to_word(one, names) for one in value]
        return None if None in words else SEPARATOR.join(word or "" for word in words)
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)) else None


def classify(package: Any, feature: Any) -> Kind:
    """What a column of ``datasets`` (the package) holds, by its feature."""
    if isinstance(feature, package.Image) or (isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()):
        return "image"
    if isinstance(feature, package.ClassLabel):
        return "class"
    if _lists_numbers(package, feature):
        return "list"
    inner = find_inner(feature)
    if inner is not None:
        return "words" if classify(package, inner) in ("class", "string") else "other"
    dtype = str(getattr(feature, "dtype", "")) if isinstance(feature, package.Value) else ""
    if dtype.startswith(("int", "uint", "bool")):
        return "integer"
    if dtype in ("string", "large_string"):
        return "string"
    if dtype.startswith(("float", "double", "decimal")):
        return "float"
    return "bytes" if dtype in ("binary", "large_binary") else "other"


def _lists_numbers(package: Any, feature: Any) -> bool:
    """Whether it is a list of numbers, or of lists of them: a series, or one for each channel."""
    for _ in range(2):
        feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        if isinstance(feature, package.Value):
            return str(feature.dtype).startswith(("int", "uint", "float", "double"))
    return False


def find_inner(feature: Any) -> Any:
    """What the values of a column of lists are; ``None`` for other columns."""
    if isinstance(feature, list):
        return feature[0]
    found = getattr(feature, "feature", None)
    return None if isinstance(found, dict) else found


class TableImages(EncodedImages):
    """The images of a table's column: encoded bytes, or paths of files.

    Args:
        rows: a data set of one column, not decoded.
        names: what errors call the rows.
        preprocess: see :class:`EncodedImages`.
        root: what paths are relative to.
    """

    def __init__(self, rows: Any, names: Sequence[str], preprocess: Preprocess, root: Path) -> None:
        super().__init__(preprocess)
        self._rows, self._names, self._root = rows, names, root

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """The source, part and number of the row, from 0."""
        return self._names[index]

    def read_bytes(self, index: int) -> bytes:
        """See :meth:`EncodedImages.read_bytes`."""
        try:
            (value,) = self._rows[index].values()
            path = value.get("path") if isinstance(value, dict) else value
            content = value.get("bytes") if isinstance(value, dict) else value
            if isinstance(content, bytes):
                return content
            if isinstance(path, str):
                return read_regular(self._root / path, self.name(index))
        except ExitlensError:
            raise
        except Exception as error:  # pyarrow's and the system's
            raise DataError(f"{self.name(index)}: cannot be read ({type(error).__name__}: {error})") from error
        raise DataError(f"{self.name(index)}: has no image")
