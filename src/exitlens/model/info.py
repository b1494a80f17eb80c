"""How a network was made: what a bundle records of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.maps import place
from exitlens.modalities import Modality, find_modality
from exitlens.model.heads.exit_heads import HeadKind
from exitlens.model.layouts import Kind
from exitlens.types import Preprocessing
from exitlens.types.inputs import MASK, Groups, Inputs
from exitlens.types.tasks import TASKS, Task

_SELDOM = ("map_offsets", "feature_offsets", "input_shapes", "groups")
Final = Literal["head", "keep"]


@dataclass(frozen=True)
class NetworkInfo:
    """How a network was made: enough to build it again, and what its inputs and outputs mean.

    ``source`` is empty for a module of the user's own; such a bundle is loaded with ``xl.load(dir, backbone=...)``.
    """

    at: tuple[str, ...]
    num_classes: int
    final: Final
    input_shape: tuple[int, ...]  # (C,H,W) of an image, (N,) of a text; of several inputs, of the first
    source: str = ""
    classes: tuple[str, ...] = ()
    preprocess: Preprocessing | None = None
    layout: Kind | None = None
    inputs: tuple[str, ...] = ()  # names; empty for one tensor alone
    dtypes: tuple[str, ...] = ()  # of tokens and masks; empty for floats, which have the network's own
    config: dict[str, Any] | None = None  # of a transformers model
    head: HeadKind = "evidence"  # bundles of before it was recorded have these
    map_offsets: tuple[tuple[float, ...], ...] = ()  # of every exit's map, in cells; empty: none lies off its cells
    feature_offsets: tuple[tuple[float, ...], ...] = ()  # likewise of its features, which a neck may bring to another grid
    input_shapes: tuple[tuple[int, ...], ...] = ()  # of several inputs of different kinds, of each
    groups: Groups = ()  # of a vector: the groups of features that maps lie on
    task: Task = "classes"  # what it answers: one class for a sample, or (multilabel) any number of labels

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task: expected one of {TASKS}, got {self.task!r}")

    @property
    def modality(self) -> Modality:
        """The kind of its inputs."""
        dtypes = [getattr(torch, name) for name in self.dtypes]
        return find_modality(self.inputs, self.input_shape, dtypes, self.input_shapes)

    @property
    def channels(self) -> int:
        """Of a sample, for building the backbone again."""
        return self.modality.count_channels(self.input_shape)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; without what most networks have none of, as in bundles of before it was recorded."""
        values = asdict(self) | {"preprocess": None if self.preprocess is None else self.preprocess.to_dict()}
        if self.task == "classes":
            del values["task"]
        return {name: value for name, value in values.items() if name not in _SELDOM or value}

    def place(self, k: int, maps: Tensor) -> Tensor:
        """Maps ``(...,*S)`` of exit k, moved to where their locations lie in the image.

        Whatever draws a map over an image, deletes its cells or compares it with a mask takes it from here. The maps that
        exits return, losses, gates and divergences are not moved.
        """
        return place(maps, self.map_offsets[k]) if self.map_offsets else maps

    def place_relevance(self, k: int, maps: Tensor) -> Tensor:
        """As :meth:`place`, of maps on the grid of exit k's features."""
        return place(maps, self.feature_offsets[k]) if self.feature_offsets else maps

    def example(self, like: Tensor) -> Inputs:
        """An example with which :func:`exitlens.attach` makes the network again, on the device of ``like``."""
        dtypes = [getattr(torch, name) for name in self.dtypes] or [like.dtype] * max(1, len(self.inputs))
        shapes = self.input_shapes or [self.input_shape] * len(dtypes)
        both = zip(shapes, dtypes, strict=True)
        zeros = [torch.zeros(1, *shape, dtype=dtype, device=like.device) for shape, dtype in both]
        named = dict(zip(self.inputs, zeros, strict=False))
        if MASK in named:
            named[MASK] = torch.ones_like(named[MASK])
        return named or zeros[0]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkInfo:
        """Inverse of :meth:`to_dict`."""
        fields = dict(values)
        for name in ("at", "input_shape", "classes", "inputs", "dtypes"):
            fields[name] = tuple(fields[name])
        for name in _SELDOM:
            fields[name] = tuple(map(tuple, fields.get(name, ())))
        fields["groups"] = tuple((name, tuple(members)) for name, members in fields["groups"])
        described = fields.pop("preprocess")
        info = cls(**fields)
        return info if described is None else replace(info, preprocess=info.modality.preprocess.from_dict(described))
