"""Classifiers of Hugging Face transformers, from a directory, a name, a model type or a configuration."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitlens.errors import InputError, import_extra, suggest
from exitlens.model.backbones.matching import Match, Say, report_match, tell_misfits
from exitlens.model.backbones.weights import check_fit

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


def build_transformers(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    config: dict[str, Any] | None = None,
    vocabulary: int | None = None,
    say: Say | None = None,
) -> nn.Module:
    """An image or text classifier of transformers, with random weights unless ``pretrained``.

    Args:
        name: a directory with ``config.json`` (and weights), a model's name on the hub, or a model type such as ``bert``
            for its default configuration. The others: as for :func:`~exitlens.model.backbones.build.build_backbone`.
        pretrained: also load the weights, from the directory, transformers' cache or its own download.

    Raises:
        MissingExtraError: without transformers; InputError: for a name that does not exist or is no classifier.
    """
    transformers = import_extra("transformers", "hf", f"backbone hf:{name}")
    settings = _read_settings(transformers, name) if config is None else transformers.AutoConfig.for_model(**config)
    settings.num_labels = num_classes
    if hasattr(settings, "num_channels"):
        settings.num_channels = in_channels
    if vocabulary is not None and not pretrained:
        settings.vocab_size = vocabulary
    kind = find_classifier(transformers, settings)
    if not settings.architectures:  # the first of several (DeiT with or without a teacher)
        settings.architectures = [_list_classes(kind, settings)[0].__name__]
    if not pretrained:
        made: nn.Module = kind.from_config(copy.deepcopy(settings))
        return made.train()
    try:
        with _silence(transformers):
            made, notes = kind.from_pretrained(name, config=settings, ignore_mismatched_sizes=True, output_loading_info=True)
    except (OSError, ValueError, AttributeError) as error:  # the last: of transformers 4, where there is no file
        raise InputError(
            f"pretrained: the weights of hf:{name} cannot be loaded ({_first_line(error)}). Offline: copy the model's files "
            "(config.json and model.safetensors) into a directory and give hf:DIRECTORY, or train without --pretrained"
        ) from error
    _tell_what_fits(made, notes, f"hf:{name}", say)
    return made.train()


def _tell_what_fits(made: nn.Module, notes: dict[str, Any], source: str, say: Say | None) -> None:
    """Says what transformers found no weights for; raises :class:`BundleError` where that is most of the network."""
    mine = made.state_dict(keep_vars=True)
    clashes = {name: torch.Size(theirs) for name, theirs, _ in notes["mismatched_keys"]}
    fits = {name: name for name in mine if name not in clashes and name not in notes["missing_keys"]}
    theirs = {name: mine[name] for name in fits}
    theirs |= {name: torch.empty(shape, device="meta") for name, shape in clashes.items()}
    theirs |= {name: torch.empty(0, device="meta") for name in sorted(notes["unexpected_keys"])}
    report = report_match(source, mine, theirs, Match(fits, {name: name for name in clashes}))
    check_fit(report, mine, theirs)
    tell_misfits(report, say)


@contextmanager
def _silence(transformers: Any) -> Iterator[None]:
    """Keeps the load report and progress bars of transformers out of the user's terminal."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def read_tokenizer(source: str) -> str | None:
    """The JSON of the tokenizer that comes with ``hf:DIRECTORY`` or ``hf:NAME``; ``None`` for none, and for model types.

    It is ``tokenizer.json`` of a directory; from other files (``vocab.txt`` and so on) transformers makes it.
    """
    family, _, name = source.partition(":")
    if family != "hf" or not name:
        return None
    directory = Path(name)
    if (directory / TOKENIZER).is_file():
        return (directory / TOKENIZER).read_text(encoding="utf-8")
    if directory.is_dir() and not any((directory / file).is_file() for file in TOKENIZER_FILES):
        return None
    transformers = import_extra("transformers", "hf", f"backbone {source}")
    if name in transformers.CONFIG_MAPPING and not directory.is_dir():
        return None
    try:
        with _silence(transformers):
            made = transformers.AutoTokenizer.from_pretrained(name)
    except Exception:  # not there, no network, or damaged: many kinds
        return None
    backend, known = getattr(made, "backend_tokenizer", None), len(made.get_vocab()) - len(made.all_special_tokens)
    return str(backend.to_str()) if backend is not None and known > 0 else None  # none known: its own file is missing


def read_config(module: nn.Module) -> dict[str, Any] | None:
    """The configuration from which transformers can build a classifier again; ``None`` for other modules."""
    if not type(module).__module__.startswith("transformers."):
        return None
    transformers = import_extra("transformers", "hf", "backbone")
    settings = getattr(module, "config", None)
    try:
        same = type(module) in _list_classes(find_classifier(transformers, settings), settings)
    except InputError:
        return None
    values: dict[str, Any] = json.loads(settings.to_json_string(use_diff=False)) if same and settings is not None else {}
    return values or None


def find_classifier(transformers: Any, settings: Any) -> Any:
    """The Auto class for a configuration: of images, or of texts."""
    for kind in (transformers.AutoModelForImageClassification, transformers.AutoModelForSequenceClassification):
        if type(settings) in kind._model_mapping:
            return kind
    raise InputError(
        f"backbone: transformers has no image or text classifier for {type(settings).__name__}: choose another model"
    )


def _list_classes(kind: Any, settings: Any) -> tuple[type, ...]:
    found = kind._model_mapping[type(settings)]
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def _read_settings(transformers: Any, name: str) -> Any:
    known = transformers.CONFIG_MAPPING
    if name in known and not Path(name).exists():
        return transformers.AutoConfig.for_model(name)
    try:
        return transformers.AutoConfig.from_pretrained(name)
    except Exception as error:  # a damaged configuration raises many kinds
        if Path(name).is_dir():
            there = (Path(name) / "config.json").is_file()
            why = f"its config.json is none of transformers ({_first_line(error)})" if there else "it holds no config.json"
            raise InputError(f"backbone: hf:{name} is a folder, but {why}") from error
        hint = "" if "/" in name or not get_close_matches(name, list(known), 1, 0.75) else suggest(name, known)
        raise InputError(
            f"backbone: hf:{name} has no configuration here and none can be downloaded ({_first_line(error)}). Mend: give a "
            f"directory with config.json (hf:DIRECTORY), or a model type such as hf:bert.{hint}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]
