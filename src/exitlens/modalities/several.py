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
    """Inputs of different kinds, ``parts`` by name: maps, deletion and drawing are those of the first."""

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
        """Return the kind that maps lie on."""
        return self.parts[0][1]

    def adapt(self, given: InputFormat) -> Modality:
        """Adapt the first kind."""
        return SeveralInputs(((self.parts[0][0], self.first.adapt(given)), *self.parts[1:]))

    def check(self, inputs: Inputs, given: InputFormat, name: str, like: Tensor) -> tuple[Tensor, ...]:
        """Check each input by its kind, and that all have as many samples."""
        if not isinstance(inputs, Mapping) or not set(given.names) <= set(inputs):
            got = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise InputError(f"{name}: expected a dict with {list(given.names)}, got {got}")
        tensors = list[Tensor]()
        for i, (part, kind) in enumerate(self.parts):
            at = slice(i, i + 1)
            each = replace(given, names=(), shape=given.shapes[i], vocabulary=given.vocabulary[at], dtypes=given.dtypes[at])
            tensors += kind.check(inputs[part], each, f"{name}[{part!r}]", like)
            if len(tensors[i]) != len(tensors[0]):
                raise InputError(f"{name}: {len(tensors[0])} samples of {self.parts[0][0]!r}, {len(tensors[i])} of {part!r}")
        return tuple(tensors)

    def make_example(self, channels: int = 3, size: int = 0) -> Inputs:
        """Return an example of each kind."""
        examples = {name: kind.make_example(channels, size) for name, kind in self.parts}
        return {name: example for name, example in examples.items() if isinstance(example, Tensor)}

    def count_channels(self, shape: Sequence[int]) -> int:
        """Return the channels of the first."""
        return self.first.count_channels(shape)

    def read(self, source: Path | str, preprocess: Any) -> Inputs:
        """Refuse: a file holds one input only."""
        raise InputError(f"{source}: the network takes {[name for name, _ in self.parts]}: pass a dict of tensors")

    def coarsen(self, maps: Tensor, grid: Sequence[int]) -> Tensor:
        """Coarsen as the first kind does."""
        return self.first.coarsen(maps, grid)

    def delete(self, inputs: Inputs, cells: Tensor) -> Inputs:
        """Delete from the first; the others stay whole."""
        assert isinstance(inputs, Mapping)
        name = self.parts[0][0]
        return {**inputs, name: self.first.delete(inputs[name], cells)}  # type: ignore[dict-item]

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """Draw the map over the first."""
        return self.first.draw_map(sample, preprocess, attention, evidence, label)
