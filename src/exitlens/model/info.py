"""The inputs that a network takes, and the record of how it was made, which a bundle stores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.maps import place
from exitlens.modalities import Modality, find_modality
from exitlens.model.heads import HeadKind
from exitlens.model.layouts import Kind
from exitlens.types.inputs import MASK, Groups, InputFormat, Inputs
from exitlens.types.preprocessing import Preprocessing
from exitlens.types.tasks import TASKS, Task

Final = Literal["head", "keep"]


class InputSpec(InputFormat):
    """The inputs that a network takes, with their check."""

    @property
    def modality(self) -> Modality:
        """Their modality."""
        return find_modality(self.names, self.shape, self.dtypes, self.shapes).adapt(self)

    def check(self, inputs: Inputs, name: str, like: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors in the first stage's order; see :meth:`exitlens.modalities.base.Modality.check`."""
        return self.modality.check(inputs, self, name, like)


@dataclass(frozen=True)
class NetworkInfo:
    """Record of how a network was made, sufficient to build it again, and of what its inputs and outputs mean."""

    at: tuple[str, ...]  # names of the modules that early exits follow
    num_classes: int
    final: Final
    input_shape: tuple[int, ...]  # of a sample: (C,H,W) for an image, (N,) for a text; with several inputs, the first's
    source: str = ""  # empty for the user's own module, which ``xl.load(dir, backbone=...)`` takes
    classes: tuple[str, ...] = ()
    preprocess: Preprocessing | None = None
    layout: Kind | None = None
    inputs: tuple[str, ...] = ()  # names; empty for one tensor alone
    dtypes: tuple[str, ...] = ()  # of tokens and masks; empty for floats, which have the network's dtype
    config: dict[str, Any] | None = None  # of a transformers model
    head: HeadKind = "evidence"
    map_offsets: tuple[tuple[float, ...], ...] = ()  # of every exit's map from its cells, in cells; empty if there is none
    feature_offsets: tuple[tuple[float, ...], ...] = ()  # the same for its features, whose grid a neck may change
    input_shapes: tuple[tuple[int, ...], ...] = ()  # of several inputs of different kinds
    groups: Groups = ()  # for a vector, the groups of features that maps lie on
    task: Task = "classes"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"task: expected one of {TASKS}, got {self.task!r}")

    @property
    def modality(self) -> Modality:
        """Modality of the inputs."""
        dtypes = [getattr(torch, name) for name in self.dtypes]
        return find_modality(self.inputs, self.input_shape, dtypes, self.input_shapes)

    @property
    def channels(self) -> int:
        """Channels of a sample, for building the backbone again."""
        return self.modality.count_channels(self.input_shape)

    def place(self, k: int, maps: Tensor) -> Tensor:
        """Move maps ``(...,*S)`` of exit k to their place in the image, to be drawn, deleted or compared with a mask."""
        return place(maps, self.map_offsets[k]) if self.map_offsets else maps

    def place_relevance(self, k: int, maps: Tensor) -> Tensor:
        """Move maps on the grid of exit k's features, as :meth:`place` does."""
        return place(maps, self.feature_offsets[k]) if self.feature_offsets else maps

    def example(self, like: Tensor) -> Inputs:
        """Return an example with which :func:`exitlens.attach` makes the network again, on the device of ``like``."""
        dtypes = [getattr(torch, name) for name in self.dtypes] or [like.dtype] * max(1, len(self.inputs))
        shapes = self.input_shapes or [self.input_shape] * len(dtypes)
        pairs = zip(shapes, dtypes, strict=True)
        zeros = [torch.zeros(1, *shape, dtype=dtype, device=like.device) for shape, dtype in pairs]
        named = dict(zip(self.inputs, zeros, strict=False))
        if MASK in named:
            named[MASK] = torch.ones_like(named[MASK])
        return named or zeros[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self) | {"preprocess": None if self.preprocess is None else self.preprocess.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkInfo:
        """Inverse of :meth:`to_dict`."""
        info = cls(**{name: _to_tuples(value) for name, value in values.items() if name != "preprocess"})
        preprocess = values["preprocess"]
        return info if preprocess is None else replace(info, preprocess=info.modality.preprocess.from_dict(preprocess))


def _to_tuples(value: Any) -> Any:
    return tuple(map(_to_tuples, value)) if isinstance(value, list | tuple) else value
