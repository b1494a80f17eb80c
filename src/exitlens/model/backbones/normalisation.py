"""Which mean and standard deviation the pixels had that a backbone's weights were trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from exitlens.errors import InputError, import_extra

PROCESSOR = "preprocessor_config.json"
HALF = (0.5, 0.5, 0.5)
INCEPTION = ("googlenet", "inception_v3")  # torchvision turns ImageNet's normalisation into this one inside; ours does not


class Normalisation(NamedTuple):
    """``(pixels - mean) / std`` of pixels in [0, 1], a value for each channel, and who says so."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std} ({self.origin})"


def read_normalisation(source: str) -> Normalisation | None:
    """What a source's own weights were trained with, as its library says; nothing is built and no weights are read.

    Args:
        source: as for :func:`~exitlens.model.backbones.build.build_backbone`. timm has it in the configuration of its
            weights, torchvision in their transforms, a model of transformers in its ``preprocessor_config.json``.

    Returns:
        Three means and three standard deviations; ``None`` where nobody says, or the source does not exist.

    Raises:
        InputError: for a damaged ``preprocessor_config.json``; MissingExtraError: without timm or transformers.
    """
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
    given = weights.transforms()
    return _make(getattr(given, "mean", None), getattr(given, "std", None), f"of torchvision's {weights}")


def _read_transformers(name: str) -> Normalisation | None:
    path = Path(name) / PROCESSOR if Path(name).is_dir() else _find_on_hub(name)
    if path is None or not path.is_file():
        return None
    try:
        values: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"backbone: {path} is damaged ({type(error).__name__}: {error}): copy it again") from error
    if values.get("do_normalize", True) is False:
        return Normalisation((0.0,) * 3, (1.0,) * 3, f"of {name}, which takes pixels in [0, 1] as they are")
    return _make(values.get("image_mean"), values.get("image_std"), f"of {name}")


def _find_on_hub(name: str) -> Path | None:
    transformers = import_extra("transformers", "hf", f"backbone hf:{name}")
    if name in transformers.CONFIG_MAPPING:
        return None
    try:
        found = transformers.utils.cached_file(name, PROCESSOR, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # not there, or no network: where the backbone is built, that is said
        return None
    return None if found is None else Path(found)


def _make(mean: Any, std: Any, origin: str) -> Normalisation | None:
    try:
        means, deviations = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError):
        return None
    good = len(means) == len(deviations) == 3 and min(deviations) > 0
    return Normalisation(means, deviations, origin) if good else None
