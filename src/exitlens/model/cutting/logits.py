"""Which of a backbone's outputs are its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from exitlens.errors import AttachError

Shape = Callable[[Any], tuple[int, ...] | None]


def _get_shape(value: Any) -> tuple[int, ...] | None:
    """Shape of a tensor; ``None`` for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else None


def pick_logits(output: Any, shape: Shape = _get_shape) -> Any:
    """The logits ``(B,C)`` among what a forward returned: the tensor, the field ``logits``, or the one matrix there is.

    Named tuples of torchvision (GoogLeNet, Inception: auxiliary outputs in training) and the outputs of transformers have
    the field; a plain dict or tuple may hold other things, but one matrix only. Anything else is an :class:`AttachError`.
    """
    chosen = _choose(output, shape)
    found = shape(chosen)
    if found is None or len(found) != 2:
        raise AttachError(
            f"backbone: expected logits (B,C), a row for each sample; its forward returns {_describe(output, shape)}"
            + (_MAP_MEND if found is not None and len(found) > 2 else ". Mend: return the logits, or a dict with 'logits'")
        )
    return chosen


_MAP_MEND = (
    " (a map, as of an encoder-decoder with skips such as U-Net). Mend: exits classify whole samples, so make a classifier "
    "of the encoder: its last features, pooled, and a linear layer"
)


def _choose(output: Any, shape: Shape) -> Any:
    if isinstance(output, Mapping):
        if output.get("logits") is not None:
            return output["logits"]
        parts = list(output.values())
    elif getattr(output, "logits", None) is not None:
        return output.logits
    elif isinstance(output, tuple | list):
        parts = list(output)
    else:
        return output
    matrices = [part for part in parts if len(shape(part) or ()) == 2]
    if len(matrices) != 1:
        raise AttachError(
            f"backbone: its forward returns {_describe(output, shape)}, of which {len(matrices)} could be the logits (B,C). "
            "Mend: return the logits alone, or a dict or named tuple with the field 'logits'"
        )
    return matrices[0]


def _describe(output: Any, shape: Shape) -> str:
    def describe(value: Any) -> str:
        found = shape(value)
        return type(value).__name__ if found is None else f"a tensor {found}"

    if isinstance(output, Mapping):
        return "a dict of " + ", ".join(f"{name!r}: {describe(value)}" for name, value in output.items())
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of " + (", ".join(map(describe, output)) or "nothing")
    return describe(output)
