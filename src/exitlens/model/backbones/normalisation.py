"""The mean and standard deviation of the pixels that a backbone's weights were trained with."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from exitlens.errors import InputError, import_extra

PROCESSOR = "preprocessor_config.json"
HALF = (0.5, 0.5, 0.5)
INCEPTION = ("googlenet", "inception_v3")  # torchvision turns ImageNet's normalisation into this one inside; ours does not


class Normalisation(NamedTuple):
    """``(pixels - mean) / std`` of pixels in [0, 1], a value for each channel, and where the numbers come from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std} ({self.origin})"


def read_normalisation(source: str) -> Normalisation | None:
    """Return the normalisation that a source's own weights were trained with; builds nothing and reads no weights.

    timm has it in the configuration of its weights, torchvision in their transforms, a model of transformers in its
    ``preprocessor_config.json``. It is ``None`` if the library does not say, or the source does not exist.
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
        top, shift = _read_scale(values)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"backbone: {path} is damaged ({type(error).__name__}: {error}). Fix: copy it again") from error
    if values.get("do_normalize", True) is False:
        unchanged = ", which takes pixels in [0, 1] as they are" if (top, shift) == (1.0, 0.0) else ""
        return _make((shift / top,) * 3, (1 / top,) * 3, f"of {name}{unchanged}")
    stated = _make(values.get("image_mean"), values.get("image_std"), f"of {name}")
    if stated is None or (top, shift) == (1.0, 0.0):
        return stated
    return _make([(m + shift) / top for m in stated.mean], [s / top for s in stated.std], stated.origin)


def _read_scale(values: dict[str, Any]) -> tuple[float, float]:
    """Return a white pixel's value before it is normalised (1 if bytes become [0, 1]), and what is subtracted from it."""
    if values.get("do_rescale", True) is False:
        return 255.0, 0.0
    top, shift = 255 * float(values.get("rescale_factor", 1 / 255)), float(values.get("rescale_offset") or False)
    if not 0 < top < math.inf:
        raise ValueError(f"rescale_factor {values['rescale_factor']}")
    return (1.0 if math.isclose(top, 1.0, rel_tol=1e-4) else top), shift


def _make(mean: Any, std: Any, origin: str) -> Normalisation | None:
    try:
        means, deviations = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError):
        return None
    is_usable = len(means) == len(deviations) == 3 and min(deviations) > 0 and all(map(math.isfinite, means + deviations))
    return Normalisation(means, deviations, origin) if is_usable else None
