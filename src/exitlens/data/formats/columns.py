"""Which columns of a table hold the images or texts and their labels, found by type and by usual names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from exitlens.errors import DataError, InputError, suggest

Kind = Literal["image", "class", "integer", "string", "list", "bytes", "other"]  # list: of classes, integers or strings
ROLES = ("image", "text", "label")
KEY = "key"  # what names a row, where there are no labels
IMAGE_NAMES = (
    "image",
    "img",
    "picture",
    "photo",
    "pixels",
    "file_name",
    "filename",
    "file",
    "image_path",
    "path",
    "filepath",
)
TEXT_NAMES = ("text", "txt", "sentence", "review", "content", "document", "comment", "body")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "y", "cls")


class Columns(NamedTuple):
    """Names of columns: ``image`` or ``text`` is empty; several of labels, of 0 and 1, stand in ``label`` as ``a|b``."""

    image: str
    text: str
    label: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns of labels: one of words, or several of 0 and 1."""
        return split_labels(self.label)

    def __str__(self) -> str:
        sample = f"images from {self.image!r}" if self.image else f"texts from {self.text!r}"
        return f"{sample}, labels from {self.label!r}"


def split_labels(label: str) -> tuple[str, ...]:
    """The columns that ``label=a|b`` names."""
    return tuple(part.strip() for part in label.split("|"))


def parse_columns(words: str, roles: tuple[str, ...] = ROLES) -> dict[str, str]:
    """Reads ``"image=NAME,label=NAME"`` (or ``text=NAME``); raises :class:`InputError` for anything else.

    ``label=A|B|C`` names several columns, of 0 and 1.
    """
    found: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        role, _, name = (part.strip() for part in word.partition("="))
        if role not in roles or not name or role in found:
            last = f"{roles[-1]}=NAME"
            raise InputError(f"columns: expected image=NAME or text=NAME, and {last}, with commas between, got {words!r}")
        parts = split_labels(name) if role == "label" else (name,)
        if not all(parts) or len(set(parts)) < len(parts):
            raise InputError(f"columns: expected several different columns of labels as label=A|B|C, got {words!r}")
        found[role] = "|".join(parts)
    if {"image", "text"} <= found.keys():
        raise InputError(f"columns: expected image=NAME or text=NAME, got both in {words!r}")
    return found


def find_columns(kinds: Mapping[str, Kind], given: str, origin: str, reserved: Iterable[str] = ()) -> Columns:
    """The columns to read.

    Args:
        kinds: what each column holds.
        given: of ``--columns``, see :func:`parse_columns`; what it names is taken, whatever its kind.
        origin: the source's name, for errors.
        reserved: columns with other uses (group, split), which are not guessed to be labels or texts.

    Raises:
        DataError: a column that is not there, none that fits, or several without a usual name.
    """
    words, shown = parse_columns(given), _list_kinds(kinds)
    free = _find_free(kinds, words, origin, reserved)
    image, text, label = (words.get(role, "") for role in ROLES)
    if not image and not text:
        image = _pick_image(free, shown, origin)
    if not label:
        label = _pick_label({n: k for n, k in free.items() if n != image}, bool(image), shown, origin)
    if not image and not text:
        strings = [name for name, kind in free.items() if kind == "string" and name != label]
        text = _pick(strings, TEXT_NAMES) or _refuse("image or text", strings, shown, origin)
    return Columns(image, text, label)


def find_inputs(
    kinds: Mapping[str, Kind], given: str, origin: str, wanted: Literal["image", "text"], reserved: Iterable[str] = ()
) -> tuple[str, str]:
    """The column of images (or texts) to read without labels, and the one of keys, if that is given.

    Args:
        kinds: what each column holds.
        given: of ``--columns``: ``image=NAME`` or ``text=NAME``, and ``key=NAME``; ``label=NAME`` is known not to be a text.
        origin: the source's name, for errors.
        wanted: what the network takes.
        reserved: columns with other uses, which are not guessed.

    Raises:
        InputError: a column of what the network does not take; DataError: as :func:`find_columns`.
    """
    words, shown = parse_columns(given, (*ROLES, KEY)), _list_kinds(kinds)
    check_wanted(words, wanted)
    free = _find_free(kinds, words, origin, reserved)
    key = words.get(KEY, "")
    if wanted in words:
        return words[wanted], key
    if wanted == "image":
        return _pick_image(free, shown, origin) or _refuse("image", [], shown, origin, "image=NAME"), key
    strings = [name for name, kind in free.items() if kind == "string"]
    texts = [name for name in strings if name.lower() not in LABEL_NAMES] or strings
    return _pick(texts, TEXT_NAMES) or _refuse("text", texts, shown, origin, "text=NAME"), key


def check_wanted(words: Mapping[str, str], wanted: Literal["image", "text"]) -> None:
    """Raises :class:`InputError` where columns of images are given for a network of texts, or the reverse."""
    other = "text" if wanted == "image" else "image"
    if other in words:
        raise InputError(f"columns: the network takes {wanted}s: give {wanted}=NAME in place of {other}={words[other]}")


def _list_kinds(kinds: Mapping[str, Kind]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _find_free(kinds: Mapping[str, Kind], words: Mapping[str, str], origin: str, reserved: Iterable[str]) -> dict[str, Kind]:
    """The columns that nobody named; raises :class:`DataError` for a named one that is not there."""
    named = [(role, part) for role, name in words.items() for part in (split_labels(name) if role == "label" else (name,))]
    for role, name in named:
        if name not in kinds:
            shown = _list_kinds(kinds)
            raise DataError(f"data: {origin} has no column {name!r} for the {role}s; it has {shown}.{suggest(name, kinds)}")
    return {name: kind for name, kind in kinds.items() if name not in {*reserved, *(name for _, name in named)}}


def _pick(names: Iterable[str], usual: tuple[str, ...]) -> str:
    """The one name, or the most usual of several, or none."""
    by_word = {name.lower(): name for name in names}
    if len(by_word) == 1:
        return next(iter(by_word.values()))
    return next((by_word[word] for word in usual if word in by_word), "")


def _pick_image(kinds: Mapping[str, Kind], shown: str, origin: str) -> str:
    for wanted in ("image", "bytes"):
        found = [name for name, kind in kinds.items() if kind == wanted]
        if found:
            return _pick(found, IMAGE_NAMES) or _refuse("image", found, shown, origin)
    paths = [name for name, kind in kinds.items() if kind == "string" and name.lower() in IMAGE_NAMES]
    return _pick(paths, IMAGE_NAMES)


def _pick_label(kinds: Mapping[str, Kind], of_images: bool, shown: str, origin: str) -> str:
    classes = [name for name, kind in kinds.items() if kind == "class"]
    if classes:
        return _pick(classes, LABEL_NAMES) or _refuse("label", classes, shown, origin)
    plain = [name for name, kind in kinds.items() if kind in ("integer", "string", "list")]
    usual = [name for name in plain if name.lower() in LABEL_NAMES]
    if not usual and not of_images:
        plain = [name for name in plain if kinds[name] in ("integer", "list")]  # a lone string is the text
    return _pick(usual or plain, LABEL_NAMES) or _refuse("label", plain, shown, origin)


def _refuse(role: str, found: list[str], shown: str, origin: str, mend: str = "image=NAME,label=NAME (or text=NAME)") -> str:
    unclear = (
        f"several columns could hold the {role} ({', '.join(found)})" if found else f"no column is known to hold the {role}"
    )
    raise DataError(f"data: {origin}: {unclear}: name them by --columns {mend}. It has {shown}")
