"""How a network was made: what a bundle records of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from exitlens.model.heads import HeadKind
from exitlens.model.layouts import Kind
from exitlens.types import Preprocess, TextPreprocess, preprocess_from_dict
from exitlens.types.inputs import MASK, Inputs

Final = Literal["head", "keep"]


@dataclass(frozen=True)
class NetworkInfo:
    """How a network was made: enough to build it again, and what its inputs and outputs mean.

    ``source`` is empty for a module of the user's own; such a bundle is loaded with ``xl.load(dir, backbone=...)``.
    """

    at: tuple[str, ...]
    num_classes: int
    final: Final
    input_shape: tuple[int, ...]  # (C,H,W) of an image, (N,) of a text
    source: str = ""
    classes: tuple[str, ...] = ()
    preprocess: Preprocess | TextPreprocess | None = None
    layout: Kind | None = None
    inputs: tuple[str, ...] = ()  # names; empty for one tensor alone
    dtypes: tuple[str, ...] = ()  # of the tokens and masks of texts
    config: dict[str, Any] | None = None  # of a transformers model
    head: HeadKind = "evidence"  # bundles of before it was recorded have these

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = asdict(self)
        values["preprocess"] = None if self.preprocess is None else self.preprocess.to_dict()
        return values

    def example(self, like: Tensor) -> Inputs:
        """An example with which :func:`exitlens.attach` makes the network again, on the device of ``like``."""
        if len(self.input_shape) == 3:
            return torch.zeros(1, *self.input_shape, dtype=like.dtype, device=like.device)
        ones = [torch.ones(1, *self.input_shape, dtype=getattr(torch, d), device=like.device) for d in self.dtypes]
        named = {name: t if name == MASK else torch.zeros_like(t) for name, t in zip(self.inputs, ones, strict=False)}
        return named or torch.zeros_like(ones[0])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkInfo:
        """Inverse of :meth:`to_dict`."""
        fields = dict(values)
        for name in ("at", "input_shape", "classes", "inputs", "dtypes"):
            fields[name] = tuple(fields[name])
        fields["preprocess"] = None if fields["preprocess"] is None else preprocess_from_dict(fields["preprocess"])
        return cls(**fields)
