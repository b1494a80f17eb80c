"""Which columns of a table hold the samples and their labels, found by type and by usual names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from exitlens.errors import DataError, InputError, suggest

Kind = Literal["image", "class", "integer", "float", "string", "bytes", "list", "words", "other"]
# list: of numbers; words: a list of classes or strings
SAMPLES = ("image", "text", "series", "features")
ROLES = (*SAMPLES, "label")
MEND = "image=NAME,label=NAME (or text=NAME, series=NAME, features=A|B)"
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
SERIES_NAMES = ("series", "signal", "values", "x", "data", "audio")
TEXT_NAMES = ("text", "txt", "sentence", "review", "content", "document", "comment", "body")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "y", "cls")


class Columns(NamedTuple):
    """Names of columns: of the four kinds of samples, one is not empty; labels of 0 and 1 stand in ``label`` as ``a|b``."""

    image: str
    text: str
    label: str
    series: str = ""
    features: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns of labels: one of words, or several of 0 and 1."""
        return split_labels(self.label)

    def __str__(self) -> str:
        if self.features:
            count = len(self.features)
            shown = ", ".join(self.features) if count < 8 else f"{', '.join(self.features[:3])}, ..., {self.features[-1]}"
            return f"vectors of {count} features ({shown}), labels from {self.label!r}"
        kinds = {"images": self.image, "texts": self.text, "series": self.series}
        sample = next(f"{kind} from {name!r}" for kind, name in kinds.items() if name)
        return f"{sample}, labels from {self.label!r}"


def split_features(word: str) -> tuple[str, ...]:
    """The names in ``a|b|c``; raises :class:`InputError` where one comes twice."""
    names = tuple(filter(None, map(str.strip, word.split("|"))))
    if len(set(names)) < len(names):
        raise InputError(f"columns: expected different features with | between, got {word!r}")
    return names


def split_labels(label: str) -> tuple[str, ...]:
    """The columns that ``label=a|b`` names."""
    return tuple(part.strip() for part in label.split("|"))


def parse_columns(words: str, roles: tuple[str, ...] = ROLES) -> dict[str, str]:
    """Reads ``"image=NAME,label=NAME"`` (or ``text=NAME``, ``series=NAME``, ``features=A|B``); else :class:`InputError`.

    ``label=A|B|C`` names several columns, of 0 and 1.
    """
    found: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        role, _, name = (part.strip() for part in word.partition("="))
        if role not in roles or not name or role in found:
            last = f"{roles[-1]}=NAME"
            kinds = "image=NAME, text=NAME, series=NAME or features=A|B"
            raise InputError(f"columns: expected {kinds}, and {last}, with commas between, got {words!r}")
        parts = split_labels(name) if role == "label" else (name,)
        if not all(parts) or len(set(parts)) < len(parts):
            raise InputError(f"columns: expected several different columns of labels as label=A|B|C, got {words!r}")
        found[role] = "|".join(parts)
    if len(found.keys() & set(SAMPLES)) > 1:
        raise InputError(f"columns: expected image=NAME, text=NAME, series=NAME or features=A|B, got several: {words!r}")
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
    image, text, series, label = (words.get(role, "") for role in ("image", "text", "series", "label"))
    features = split_features(words.get("features", ""))
    named = bool(image or text or series or features)
    if not named:
        image = _pick_image(free, shown, origin)
    if not label:
        label = "" if named or image else _find_lone_label(free)
        rest = {name: kind for name, kind in free.items() if name != image}
        label = label or _pick_label(rest, bool(image or series or features), shown, origin)
    if named or image:
        return Columns(image, text, label, series, features)
    rest = {name: kind for name, kind in free.items() if name != label}
    strings, lists, numbers = (
        [n for n, k in rest.items() if k in kind] for kind in (("string",), ("list",), ("integer", "float"))
    )
    if lists and not any(name.lower() in TEXT_NAMES for name in strings):
        return Columns("", "", label, _pick(lists, SERIES_NAMES) or _refuse("series", lists, shown, origin))
    if numbers and not strings and len(numbers) == len(rest):
        return Columns("", "", label, "", tuple(numbers))
    return Columns("", _pick(strings, TEXT_NAMES) or _refuse("image or text", strings, shown, origin), label)


def _find_lone_label(kinds: Mapping[str, Kind]) -> str:
    """The only column of words, where it has to be the label: beside lists, numbers none of which could be it, or three."""
    strings = [name for name, kind in kinds.items() if kind == "string"]
    found = set(kinds.values())
    usual = any(name.lower() in LABEL_NAMES for name in kinds if name not in strings)
    if len(strings) != 1 or strings[0].lower() in TEXT_NAMES or "class" in found or usual:
        return ""
    numbers = found <= {"string", "float", "integer"} and "float" in found and (len(kinds) > 3 or "integer" not in found)
    return strings[0] if numbers or "list" in found else ""


def find_array_inputs(
    kinds: Mapping[str, Kind],
    given: str,
    origin: str,
    wanted: Literal["series", "features"],
    names: Sequence[str] = (),
    reserved: Iterable[str] = (),
) -> tuple[tuple[str, ...], str]:
    """The columns of a series (or of features) to read without labels, and the one of keys, if that is given.

    Args:
        kinds: what each column holds.
        given: of ``--columns``: ``series=NAME`` or ``features=A|B``, and ``key=NAME``; ``label=NAME`` is known to be none.
        origin: the source's name, for errors.
        wanted: what the network takes.
        names: of the network's features, which are taken where all are there.
        reserved: columns with other uses, which are not guessed.

    Raises:
        InputError: a column of what the network does not take; DataError: as :func:`find_columns`.
    """
    words, shown = parse_columns(given, (*ROLES, KEY)), _list_kinds(kinds)
    check_wanted(words, wanted)
    free, key = _find_free(kinds, words, origin, reserved), words.get(KEY, "")
    if wanted in words:
        return split_features(words[wanted]), key
    if wanted == "series":
        lists = [name for name, kind in free.items() if kind == "list"]
        return (_pick(lists, SERIES_NAMES) or _refuse("series", lists, shown, origin, "series=NAME"),), key
    if names and set(names) <= free.keys():
        return tuple(names), key
    numbers = [n for n, k in free.items() if k in ("integer", "float") and n.lower() not in LABEL_NAMES]
    return tuple(numbers) or (_refuse("features", [], shown, origin, "features=A|B"),), key


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


def check_wanted(words: Mapping[str, str], wanted: str) -> None:
    """Raises :class:`InputError` where columns of images are given for a network of texts, and so on."""
    for other in SAMPLES:
        if other in words and other != wanted:
            kind = {"series": "series", "features": "vectors"}.get(wanted, f"{wanted}s")
            raise InputError(f"columns: the network takes {kind}: give {wanted}=NAME in place of {other}={words[other]}")


def _list_kinds(kinds: Mapping[str, Kind]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _find_free(kinds: Mapping[str, Kind], words: Mapping[str, str], origin: str, reserved: Iterable[str]) -> dict[str, Kind]:
    """The columns that nobody named; raises :class:`DataError` for a named one that is not there."""
    split = {"features": split_features, "label": split_labels}
    named = {name: role for role, word in words.items() for name in (split[role](word) if role in split else (word,))}
    for name, role in named.items():
        if name not in kinds:
            shown, roles = _list_kinds(kinds), role if role.endswith("s") else f"{role}s"
            raise DataError(f"data: {origin} has no column {name!r} for the {roles}; it has {shown}.{suggest(name, kinds)}")
    return {name: kind for name, kind in kinds.items() if name not in {*reserved, *named}}


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


def _pick_label(kinds: Mapping[str, Kind], lone_is_label: bool, shown: str, origin: str) -> str:
    classes = [name for name, kind in kinds.items() if kind == "class"]
    if classes:
        return _pick(classes, LABEL_NAMES) or _refuse("label", classes, shown, origin)
    plain = [name for name, kind in kinds.items() if kind in ("integer", "string", "words")]
    usual = [name for name, kind in kinds.items() if name.lower() in LABEL_NAMES and (name in plain or kind == "list")]
    if not usual and not lone_is_label:
        plain = [name for name in plain if kinds[name] in ("integer", "words")]  # a lone string is the text
    return _pick(usual or plain, LABEL_NAMES) or _refuse("label", plain, shown, origin)


def _refuse(role: str, found: list[str], shown: str, origin: str, mend: str = MEND) -> str:
    unclear = (
        f"several columns could hold the {role} ({', '.join(found)})" if found else f"no column is known to hold the {role}"
    )
    raise DataError(f"data: {origin}: {unclear}: name them by --columns {mend}. It has {shown}")
