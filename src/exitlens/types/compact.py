"""Logits of many classes in few numbers: the largest with their classes, and the sum that the others add to the softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError

LARGEST = 16  # logits that are kept as they are
NODES = 32  # for the sum over the others
RATIO = 3000.0  # of the farthest node's distance to the nearest's, at most


@dataclass(frozen=True, repr=False)
class CompactLogits:
    """Logits ``(*S,C)`` without keeping C numbers: what classes, scores and likelihoods at any temperature are made of.

    With ``x = z_max - z`` the distance of a logit from the largest, all of these are made of the largest logits, the
    label's, and the sum of ``exp(-x/T)`` (and of ``x exp(-x/T)``) over the others. As a function of ``x`` the exponential
    is interpolated at :data:`NODES` Chebyshev nodes in ``log x``, between the nearest and the farthest of the others. So
    that sum is one over nodes (:meth:`nodes`), with weights for every temperature. docs/measured/traces.md
    says how exact that is.

    Indexing works like that of the tensor that it stands for, but not along the classes: ``logits[rows]``, ``logits[:, k]``.

    Attributes:
        top: ``(*S,m)`` the largest logits, the largest first. classes: ``(*S,m)`` whose they are.
        label: ``(*S)`` the logit of the label; ``None`` without labels.
        span: ``(*S,2)`` distances of the nearest and of the farthest of the other logits.
        weights: ``(*S,n)`` of the nodes. num_classes: C.

    Examples:
        >>> xl.collect(net, scenes, compact=True).logits.shape
        torch.Size([64, 3, 10])
    """

    top: Tensor
    classes: Tensor
    label: Tensor | None
    span: Tensor
    weights: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        lead = self.top.shape[:-1]
        shapes = {"classes": self.top.shape, "label": lead, "span": (*lead, 2), "weights": (*lead, self.weights.shape[-1])}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise InputError(f"logits: expected {name} {tuple(shape)} beside top, got {tuple(value.shape)}")

    @property
    def shape(self) -> torch.Size:
        """``(*S,C)``."""
        return torch.Size((*self.top.shape[:-1], self.num_classes))

    @property
    def ndim(self) -> int:
        """Axes, that of the classes included."""
        return self.top.ndim

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, at: Any) -> CompactLogits:
        depth = len(at) if isinstance(at, tuple) else 1
        if depth >= self.ndim or at is Ellipsis or (isinstance(at, tuple) and any(part is Ellipsis for part in at)):
            raise InputError(
                f"logits: only the {self.top.shape[-1]} largest of {self.num_classes} are kept: there is no indexing along "
                "the classes: collect the trace with compact=False, or read .top and .classes"
            )
        parts: dict[str, Any] = {name: None if part is None else part[at] for name, part in self.parts().items()}
        return CompactLogits(**parts, num_classes=self.num_classes)

    def __repr__(self) -> str:
        return f"CompactLogits({', '.join(map(str, self.shape))}: the {self.top.shape[-1]} largest)"

    def parts(self) -> dict[str, Tensor | None]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "num_classes"}

    def argmax(self, dim: int = -1) -> Tensor:  # -> (*S)
        """The classes of the largest logits; ``dim`` has to be that of the classes."""
        if dim not in (-1, self.ndim - 1):
            raise InputError(f"dim: expected -1, the axis of the classes, got {dim}: of others not all logits are kept")
        return self.classes[..., 0].long()

    def split(self, rows: int) -> list[CompactLogits]:
        """Parts of so many rows."""
        return [self[start : start + rows] for start in range(0, len(self), rows)]

    def nodes(self) -> Tensor:  # -> (*S,n) float64
        """Distances of the nodes from the largest logit."""
        centre, half, shift = scale_distances(self.span)
        places = chebyshev_nodes(self.weights.shape[-1])
        return (centre[..., None] + half[..., None] * places).exp() - shift[..., None]


Logits = Tensor | CompactLogits


def chebyshev_nodes(count: int) -> Tensor:  # -> (n,) float64
    """Chebyshev nodes in (-1, 1), descending."""
    return (math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count).cos()


def scale_distances(span: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (*S,2) -> (*S) each, float64
    """``log(x + shift)`` runs over ``centre ± half``; the shift keeps the ratio of the ends within :data:`RATIO`."""
    near, far = span.double().unbind(-1)
    shift = ((far - RATIO * near) / (RATIO - 1)).clamp_min(0)
    low, high = (near + shift).clamp_min(1e-30).log(), (far + shift).clamp_min(1e-30).log()
    return (low + high) / 2, (high - low) / 2, shift
