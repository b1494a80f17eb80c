"""Several inputs by name, such as an image and a vector: maps lie on the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from exitlens.errors import InputError
from exitlens.modalities.base import Modality
from exitlens.types.inputs import InputFormat, Inputs
from exitlens.types.preprocessing import Preprocess


class SeveralInputs(Modality):
    """Inputs of different kinds; see :class:`~exitlens.modalities.base.Modality`.

    Attributes:
        parts: the kind of each input, by name. The maps of the exits lie on the first, which is what is deleted from and
            drawn; the others are only checked.
    """

    name, plural, axes = "sample", "samples", ()
    expected = "several inputs by name"
    preprocess = Preprocess
    reader = "a dict of tensors"
    given = "samples"

    def __init__(self, parts: tuple[tuple[str, Modality], ...]) -> None:
        self.parts = parts
        self.grid = self.first.grid

    @property
    def first(self) -> Modality:
        """The kind that maps lie on."""
        return self.parts[0][1]

    def adapt(self, given: InputFormat) -> Modality:
        """With what there is to know of the first input."""
        return SeveralInputs(((self.parts[0][0], self.first.adapt(given)), *self.parts[1:]))

    def check(self, inputs: Inputs, given: InputFormat, name: str, like: Tensor) -> tuple[Tensor, ...]:
        """Each by its own kind, and as many samples of each."""
        if not isinstance(inputs, Mapping) or not set(given.names) <= set(inputs):
            got = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise InputError(f"{name}: expected a dict with {list(given.names)}, got {got}")
        found = list[Tensor]()
        for i, (part, kind) in enumerate(self.parts):
            own = replace(
                given,
                names=(),
                shape=given.shapes[i],
                vocabulary=given.vocabulary[i : i + 1],
                dtypes=given.dtypes[i : i + 1],
            )
            found += kind.check(inputs[part], own, f"{name}[{part!r}]", like)
            if len(found[i]) != len(found[0]):
                raise InputError(f"{name}: {len(found[0])} samples of {self.parts[0][0]!r}, {len(found[i])} of {part!r}")
        return tuple(found)

    def make_example(self, channels: int = 3, size: int = 0) -> Inputs:
        """Of each kind."""
        found = {name: kind.make_example(channels, size) for name, kind in self.parts}
        return {name: one for name, one in found.items() if isinstance(one, Tensor)}

    def count_channels(self, shape: Sequence[int]) -> int:
        """Of the first."""
        return self.first.count_channels(shape)

    def read(self, source: Path | str, preprocess: Any) -> Inputs:
        """A file holds one input only."""
        raise InputError(f"{source}: the network takes {[name for name, _ in self.parts]}: pass a dict of tensors")

    def coarsen(self, maps: Tensor, grid: Sequence[int]) -> Tensor:
        """As the first does."""
        return self.first.coarsen(maps, grid)

    def delete(self, inputs: Inputs, cells: Tensor) -> Inputs:
        """From the first; the others stay whole."""
        assert isinstance(inputs, Mapping)
        name = self.parts[0][0]
        return {**inputs, name: self.first.delete(inputs[name], cells)}  # type: ignore[dict-item]

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """Of the first."""
        return self.first.draw_map(sample, preprocess, attention, evidence, label)
