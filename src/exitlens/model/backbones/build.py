"""Backbones by name: the small network, and those of torchvision, timm and transformers; what their weights take."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from exitlens.errors import InputError, first_line, import_extra, suggest
from exitlens.modalities import IMAGE, SERIES, TEXT, VECTOR, VOLUME, Modality, find_reader
from exitlens.model.backbones.sentences import EXTRA, Sentences
from exitlens.model.backbones.small import SmallMLP, SmallResNet
from exitlens.model.backbones.weights import Match, load_state, report_match, restart_classifier
from exitlens.model.network import NetworkInfo
from exitlens.types.inputs import Inputs
from exitlens.types.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from exitlens.types.weights import Say

Config = dict[str, Any] | None  # of a transformers model
_SMALL = (IMAGE, SERIES, VOLUME, VECTOR)
TOKENIZER, PROCESSOR = "tokenizer.json", "preprocessor_config.json"
MODULES = "modules.json"  # of a SentenceTransformer
TOKENIZER_FILES = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
HALF = (0.5, 0.5, 0.5)
CODE = ("attn_implementation", "_attn_implementation", "experts_implementation", "auto_map")  # may name code on the Hub
INCEPTION = ("googlenet", "inception_v3")  # torchvision turns ImageNet's normalisation into this one inside; ours does not


def build_backbone(
    source: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    config: Config = None,
    vocabulary: int | None = None,
    say: Say | None = None,
    modality: Modality = IMAGE,
) -> nn.Module:
    """Build a backbone from its source.

    ``small``, ``torchvision:NAME``, ``timm:NAME`` (extra ``timm``), or ``hf:NAME`` (extra ``hf``): an image or text
    classifier of transformers from a directory, a model's name, or a model type such as ``hf:bert``.

    Args:
        num_classes: outputs of the backbone's own classifier. 0 makes of a text model of transformers an encoder, whose
            vectors have norm 1 and are the mean of its tokens, or what the directory of a ``SentenceTransformer`` says.
        in_channels: channels of the images, series or volumes, or features of vectors; torchvision's networks take 3.
        pretrained: load the library's default weights, but for the classifier if it has another number of classes. Weights
            that are not cached need network access.
        config: of a transformers model (from a bundle), instead of the one that the name stands for.
        vocabulary: size of the vocabulary of a text classifier with random weights.
        say: called with a line for each kind of tensor that pretrained weights did not fit.
        modality: the kind of inputs; ``small`` takes images, series, volumes and vectors.

    Examples:
        >>> backbone = xl.build_backbone("small", num_classes=10)
        >>> backbone(images).shape
        torch.Size([8, 10])
    """
    if source == "small":
        if pretrained:
            raise InputError("pretrained: 'small' has no pretrained weights. Fix: train it with exitlens fit")
        if modality not in _SMALL:
            raise InputError(f"backbone: 'small' does not take {modality.plural}")
        axes = len(modality.axes) - 1  # of locations
        return SmallResNet(num_classes, in_channels, axes=axes) if axes else SmallMLP(num_classes, in_channels)
    if modality not in (IMAGE, TEXT):
        raise InputError(f"backbone: {source} does not take {modality.plural}. Fix: use 'small', or a module of your own")
    family, _, name = source.partition(":")
    if family == "timm" and name:
        return _build_timm(name, num_classes, in_channels, pretrained, say)
    if family == "hf" and (name or config) and not num_classes:
        return _build_encoder(name, pretrained, config, say)
    if family == "hf" and (name or config):
        return _build_transformers(name, num_classes, in_channels, pretrained, config, vocabulary, say)
    if family != "torchvision" or not name:
        raise InputError(
            "backbone: expected 'small', 'torchvision:NAME' (torchvision:resnet18), 'timm:NAME' or 'hf:DIRECTORY', got "
            f"{source!r}"
        )
    if in_channels != 3:
        raise InputError(f"backbone: {source} takes 3-channel images, the data has {in_channels}. Fix: use backbone 'small'")
    return _build_torchvision(name, num_classes, pretrained, say)


def rebuild_backbone(info: NetworkInfo) -> nn.Module:
    """Build the backbone that a network was attached to, with random weights, from the record in its bundle.

    What the record says never fetches anything, and runs no code but that of the library it names.
    """
    if info.source.startswith("hf:") and info.config is None:
        raise InputError(f"backbone: {info.source} stands without its configuration. Fix: save the bundle again.")
    count = 0 if info.task == "embedding" else info.num_classes
    return build_backbone(info.source, count, info.channels, config=info.config, modality=info.modality)


def make_example(backbone: nn.Module, channels: int = 3, size: int = 0) -> Inputs:
    """Make an example input for a backbone: an image of ``size`` (0: 224), or as many tokens (0: 64) if it takes ids."""
    return find_reader(backbone.forward).make_example(channels, size)


def _build_torchvision(name: str, num_classes: int, pretrained: bool, say: Say | None) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError(f"backbone: torchvision has no model {name!r}.{suggest(name, known)}")
    # exits replace the auxiliary classifiers
    extra = {"aux_logits": False, "init_weights": not pretrained} if name in INCEPTION else {}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    if not pretrained:
        return network
    try:
        state = models.get_model_weights(name)["DEFAULT"].get_state_dict(progress=False, check_hash=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise InputError(
            f"pretrained: the weights of torchvision:{name} are not cached and cannot be downloaded ({error}). Fix: put the "
            "file into torch.hub's checkpoint folder, or train without --pretrained"
        ) from error
    load_state(network, state, f"torchvision:{name}").tell_misfits(say)
    return network


def _build_timm(name: str, num_classes: int, in_channels: int, pretrained: bool, say: Say | None) -> nn.Module:
    timm = import_extra("timm", "timm", f"backbone timm:{name}")
    if name.partition(".")[0] not in timm.list_models():
        raise InputError(f"backbone: timm has no model {name!r}.{suggest(name, timm.list_models())}")
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"pretrained: the weights of timm:{name} cannot be loaded ({error}). Fix: give a local file with "
            "--init-weights, or train without --pretrained"
        ) from error
    trained = (getattr(network, "pretrained_cfg", None) or {}).get("num_classes", num_classes)
    if pretrained and trained != num_classes:
        restart_classifier(network.get_classifier())  # type: ignore[operator]
        if say is not None:
            say(f"weights: timm:{name}: the classifier for {trained} classes is made anew, for {num_classes}")
    return network


def _build_encoder(name: str, pretrained: bool, config: Config, say: Say | None) -> Sentences:
    """Build a text encoder; ``config`` says how tokens are pooled, as :func:`read_config` wrote it."""
    if pretrained and (Path(name) / MODULES).is_file():
        package = import_extra("sentence_transformers", EXTRA, f"backbone hf:{name}")
        with _silence(import_extra("transformers", "hf", f"backbone hf:{name}")):
            return Sentences.read(package.SentenceTransformer(name, device="cpu")).eval()
    network = _build_transformers(name, 0, 3, pretrained, config, None, say)
    return Sentences(network, (config or {}).get("pooling", "mean")).eval()


def _build_transformers(
    name: str, num_classes: int, in_channels: int, pretrained: bool, config: Config, vocabulary: int | None, say: Say | None
) -> nn.Module:
    """Build an image or text classifier, from a directory, a model's name on the hub, or a model type such as ``bert``.

    With 0 classes it is the network without its classifier.
    """
    transformers = import_extra("transformers", "hf", f"backbone hf:{name}")
    settings = _read_settings(transformers, name) if config is None else transformers.AutoConfig.for_model(**_strip(config))
    settings.num_labels = num_classes or settings.num_labels
    if hasattr(settings, "num_channels"):
        settings.num_channels = in_channels
    if vocabulary is not None and not pretrained:
        settings.vocab_size = vocabulary
    auto = _find_auto_class(transformers, settings) if num_classes else transformers.AutoModel
    if not settings.architectures:  # the first of several (DeiT with or without a teacher)
        settings.architectures = [_list_classes(auto, settings)[0].__name__]
    if not pretrained:
        network: nn.Module = auto.from_config(copy.deepcopy(settings))
        return network.train()
    try:
        with _silence(transformers):
            options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
            network, notes = auto.from_pretrained(name, config=settings, **options)
    except (OSError, ValueError, AttributeError) as error:  # the last: of transformers 4, where there is no file
        raise InputError(
            f"pretrained: the weights of hf:{name} cannot be loaded ({first_line(error)}). Offline: copy the model's files "
            "(config.json and model.safetensors) into a directory and give hf:DIRECTORY, or train without --pretrained"
        ) from error
    expected = network.state_dict(keep_vars=True)
    clashes = {key: torch.Size(shape) for key, shape, _ in notes["mismatched_keys"]}
    fits = {key: key for key in expected if key not in clashes and key not in notes["missing_keys"]}
    loaded = {key: expected[key] for key in fits}
    loaded |= {key: torch.empty(shape, device="meta") for key, shape in clashes.items()}
    loaded |= {key: torch.empty(0, device="meta") for key in sorted(notes["unexpected_keys"])}
    report_match(f"hf:{name}", expected, loaded, Match(fits, {key: key for key in clashes})).tell_misfits(say)
    return network.train()


def _strip(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out what may name code on the Hub, such as a kernel for attention; ``read_config`` writes none of it."""
    return {key: _strip(value) if isinstance(value, dict) else value for key, value in config.items() if key not in CODE}


@contextmanager
def _silence(transformers: Any) -> Iterator[None]:
    """Keep the load report and progress bars of transformers out of the user's terminal."""
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
    """Return a ``tokenizer.json`` for ``hf:DIRECTORY`` or ``hf:NAME``: its own, made from other files, or ``None``."""
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
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except Exception:  # not there, no network, or damaged: many kinds
        return None
    backend, known = getattr(tokenizer, "backend_tokenizer", None), len(tokenizer.get_vocab())
    has_words = known > len(tokenizer.all_special_tokens)  # without words, its own file is missing
    return str(backend.to_str()) if backend is not None and has_words else None


def read_config(module: nn.Module) -> dict[str, Any] | None:
    """Return the configuration from which this classifier or text encoder is built again; ``None`` for other modules."""
    if isinstance(module, Sentences):
        config = getattr(module.encoder, "config", None)
        return None if config is None else json.loads(config.to_json_string(use_diff=False)) | {"pooling": module.pooling}
    if not type(module).__module__.startswith("transformers."):
        return None
    transformers = import_extra("transformers", "hf", "backbone")
    settings = getattr(module, "config", None)
    try:
        is_classifier = type(module) in _list_classes(_find_auto_class(transformers, settings), settings)
    except InputError:
        return None
    return json.loads(settings.to_json_string(use_diff=False)) or None if is_classifier and settings is not None else None


def _find_auto_class(transformers: Any, settings: Any) -> Any:
    """Return the Auto class for a configuration: for images, or for texts."""
    for auto in (transformers.AutoModelForImageClassification, transformers.AutoModelForSequenceClassification):
        if type(settings) in auto._model_mapping:
            return auto
    raise InputError(
        f"backbone: transformers has no image or text classifier for {type(settings).__name__}. Fix: choose another model"
    )


def _list_classes(auto: Any, settings: Any) -> tuple[type, ...]:
    classes = auto._model_mapping[type(settings)]
    return tuple(classes) if isinstance(classes, list | tuple) else (classes,)


def _read_settings(transformers: Any, name: str) -> Any:
    known = transformers.CONFIG_MAPPING
    if name in known and not Path(name).exists():
        return transformers.AutoConfig.for_model(name)
    try:
        return transformers.AutoConfig.from_pretrained(name)
    except Exception as error:  # a damaged configuration raises many kinds
        if Path(name).is_dir():
            problem = f"transformers cannot read its config.json ({first_line(error)})"
            problem = problem if (Path(name) / "config.json").is_file() else "it holds no config.json"
            raise InputError(f"backbone: hf:{name} is a folder, but {problem}") from error
        hint = "" if "/" in name or not get_close_matches(name, list(known), 1, 0.75) else suggest(name, known)
        raise InputError(
            f"backbone: hf:{name} has no configuration here and none can be downloaded ({first_line(error)}). Fix: give a "
            f"directory with config.json (hf:DIRECTORY), or a model type such as hf:bert.{hint}"
        ) from error


class Normalisation(NamedTuple):
    """``(pixels - mean) / std`` of pixels in [0, 1], a value for each channel, and where the numbers come from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std} ({self.origin})"


NORMALISATIONS = {
    "imagenet": Normalisation(IMAGENET_MEAN, IMAGENET_STD, "of ImageNet"),
    "half": Normalisation(HALF, HALF, "0.5 and 0.5, as asked for"),
}


def read_normalisation(source: str) -> Normalisation | None:
    """Return the normalisation that a source's weights were trained with, by its library's records; ``None`` without any."""
    family, _, name = source.partition(":")
    readers = {"timm": _read_timm, "torchvision": _read_torchvision, "hf": _read_transformers}
    return readers[family](name) if family in readers and name else None


def _read_timm(name: str) -> Normalisation | None:
    known = import_extra("timm", "timm", f"backbone timm:{name}").get_pretrained_cfg(name, allow_unregistered=True)
    if known is None:
        return None
    tag = f".{known.tag}" if known.tag and "." not in name else ""
    return _make(known.mean, known.std, f"of timm's {name}{tag}")


def _read_torchvision(name: str) -> Normalisation | None:
    from torchvision import models

    if name in INCEPTION:
        return Normalisation(HALF, HALF, f"of torchvision's {name}, whose weights come from TensorFlow")
    try:
        weights = models.get_model_weights(name)["DEFAULT"]
    except (ValueError, KeyError):
        return None
    transforms = weights.transforms()
    return _make(getattr(transforms, "mean", None), getattr(transforms, "std", None), f"of torchvision's {weights}")


def _read_transformers(name: str) -> Normalisation | None:
    path = Path(name) / PROCESSOR if Path(name).is_dir() else None
    if path is None:
        transformers = import_extra("transformers", "hf", f"backbone hf:{name}")
        if name in transformers.CONFIG_MAPPING:
            return None
        with suppress(OSError, ValueError):  # not there, or no network: building the backbone reports that
            cached = transformers.utils.cached_file(name, PROCESSOR, _raise_exceptions_for_missing_entries=False)
            path = None if cached is None else Path(cached)
    if path is None or not path.is_file():
        return None
    try:
        values: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        # a white pixel's value before it is normalised (1 if bytes become [0, 1]), and what is subtracted from it
        top, shift = 255 * float(values.get("rescale_factor", 1 / 255)), float(values.get("rescale_offset") or False)
        if values.get("do_rescale", True) is False:
            top, shift = 255.0, 0.0
        if not 0 < top < math.inf:
            raise ValueError(f"rescale_factor {values['rescale_factor']}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"backbone: {path} is damaged ({type(error).__name__}: {error}). Fix: copy it again") from error
    top = 1.0 if math.isclose(top, 1.0, rel_tol=1e-4) else top
    if values.get("do_normalize", True) is False:
        unchanged = ", which takes pixels in [0, 1] as they are" if (top, shift) == (1.0, 0.0) else ""
        return _make((shift / top,) * 3, (1 / top,) * 3, f"of {name}{unchanged}")
    stated = _make(values.get("image_mean"), values.get("image_std"), f"of {name}")
    if stated is None or (top, shift) == (1.0, 0.0):
        return stated
    return _make([(m + shift) / top for m in stated.mean], [s / top for s in stated.std], stated.origin)


def _make(mean: Any, std: Any, origin: str) -> Normalisation | None:
    try:
        means, deviations = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError):
        return None
    is_usable = len(means) == len(deviations) == 3 and min(deviations) > 0 and all(map(math.isfinite, means + deviations))
    return Normalisation(means, deviations, origin) if is_usable else None
