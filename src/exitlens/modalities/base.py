"""The interface of a kind of input: how it is recognised, checked, read, deleted from and drawn; and several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.baselines import Baseline, fill
from exitlens.functional.maps import all_finite, as_distribution, coarsen_map, enlarge, top_cells
from exitlens.functional.regions import find_nearest_outside, widen
from exitlens.modalities.parts import Part, list_array_parts, swap_within
from exitlens.types.inputs import InputFormat, Inputs
from exitlens.types.preprocessing import Preprocess, Preprocessing

Named = Mapping[str, Tensor]  # tensors by name, all of as many samples


class Modality:
    """One kind of input; a new one is a subclass in a file of its own and an entry in ``exitlens.modalities.MODALITIES``.

    By default a sample is one array of floats in the network's dtype, with its channels first.

    Attributes:
        name: name of a sample, for messages. plural: the same for several.
        axes: axes of a sample, channels first. expected: an example of it, for the error about another input.
        preprocess: the class that turns raw samples into inputs. reader: the public function for that.
        given: the sources that a command reads, for messages.
        argument: the argument of a backbone's ``forward`` that tells this kind; empty if none does.
        head: the kind of exit head that new networks get.
        grid: the grid on which maps are judged by default. side: the usual length of the axes of locations.
        baselines: what can stand in deleted places.
    """

    name: ClassVar[str]
    plural: ClassVar[str]
    axes: ClassVar[tuple[str, ...]]
    expected: ClassVar[str]
    preprocess: ClassVar[type[Preprocessing]]
    reader: ClassVar[str]
    given: ClassVar[str] = "these"
    argument: ClassVar[str] = ""
    head: ClassVar[Literal["evidence", "context"]] = "evidence"
    grid: tuple[int, ...] = (5, 5)
    side: ClassVar[int] = 224
    baselines: ClassVar[tuple[Baseline, ...]] = get_args(Baseline)

    @property
    def channel_axis(self) -> int:
        """The axis of channels or features in a sample."""
        return self.axes.index("C") if "C" in self.axes else 0

    def fits(self, names: Sequence[str], shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> bool:
        """True if tensors of these names, dtypes (none: floats) and shape of a sample are of this kind."""
        return not names and len(shape) == len(self.axes) and all(dtype.is_floating_point for dtype in dtypes)

    def adapt(self, given: InputFormat) -> Modality:
        """Return the kind with the details of one network's inputs."""
        return self

    def check(self, inputs: Inputs, given: InputFormat, name: str, like: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of a batch in the order of the first stage, or raise :class:`InputError`.

        ``inputs`` are a user's argument ``name``; ``given`` is the network's format, ``like`` one of its parameters.
        """
        if not isinstance(inputs, Tensor):
            raise InputError(f"{name}: expected a torch.Tensor, got {type(inputs).__name__}")
        got, shape = tuple(inputs.shape[1:]), given.shape
        fixed = {i for i, axis in enumerate(self.axes) if axis in ("C", "F")}
        if inputs.ndim != len(shape) + 1 or any(got[i] != shape[i] for i in fixed):
            hint = f". Fix: add the batch axis, {self.plural}[None]" if inputs.ndim == len(shape) else ""
            wanted = ",".join(("B", *(str(shape[i]) if i in fixed else axis for i, axis in enumerate(self.axes))))
            raise InputError(f"{name}: expected ({wanted}), got {tuple(inputs.shape)}{hint}")
        if len(inputs) == 0:
            raise InputError(f"{name}: the batch is empty. Fix: pass at least one {self.name}")
        if not inputs.is_floating_point():
            raise InputError(f"{name}: expected floats, got {inputs.dtype}. Fix: normalise them first ({self.reader})")
        if inputs.dtype != like.dtype or inputs.device != like.device:
            got_dtype, fix = f"{inputs.dtype} on {inputs.device}", f"convert with {self.plural}.to(...)"
            raise InputError(f"{name}: expected {like.dtype} on {like.device} as the network, got {got_dtype}. Fix: {fix}")
        if given.exact_size and got != shape:
            raise InputError(f"{name}: this network takes {shape} only, got {got}. Fix: resize the {self.plural}")
        axis = self.channel_axis
        sizes, expected = (each[:axis] + each[axis + 1 :] for each in (got, shape))
        if min(sizes, default=1) * 2 < min(expected, default=1):
            raise InputError(f"{name}: {sizes} is far below the network's {expected}")
        if not all_finite(inputs):
            fix = f"check how these {self.plural} are loaded"
            raise InputError(f"{name}: expected finite values, got NaN or Inf. Fix: {fix}")
        return (inputs,)

    def make_example(self, channels: int = 3, size: int = 0) -> Inputs:
        """Return zeros as an example of one sample for a backbone; size 0 takes the usual size."""
        return torch.zeros(1, *(channels if axis == "C" else size or self.side for axis in self.axes))

    def count_channels(self, shape: Sequence[int]) -> int:
        """Return the channels of a sample, for building a backbone."""
        return shape[self.channel_axis]

    def decode(self, path: Path, preprocess: Any) -> Tensor:
        """Read the file of one sample before it is normalised."""
        raise NotImplementedError

    def read(self, source: Path | str, preprocess: Any) -> Inputs:
        """Read a sample (its file, or the text itself) as a normalised batch of one."""
        return preprocess.normalise(self.decode(Path(source), preprocess))[None]  # type: ignore[no-any-return]

    def coarsen(self, maps: Tensor, grid: Sequence[int]) -> Tensor:  # (B,*S) -> (B,*grid)
        """Put maps on the grid on which all exits are judged, so that fine and coarse ones delete equal shares.

        Of signed maps the positive part is taken, after they were averaged. Maps of tokens or groups of features keep their
        grid, which all exits share.
        """
        return as_distribution(maps.float()) if len(self.axes) == 1 else coarsen_map(maps, grid)

    def check_deletion(self, given: InputFormat, baseline: Baseline = "mean") -> None:
        """Raise :class:`InputError` if nothing can be deleted from the inputs of a network, or not by this baseline."""
        if baseline not in self.baselines:
            problem = f"{baseline!r} has no meaning for {self.plural}, which have {' or '.join(map(repr, self.baselines))}"
            raise InputError(f"baseline: {problem}. Fix: leave it out")

    def spread(self, cells: Tensor, inputs: Tensor) -> Tensor:  # (B,*grid) bool -> (B,1,*S) bool, to broadcast
        """Spread cells of a grid over the locations of the inputs that they cover."""
        axis = 1 + self.channel_axis
        size = inputs.shape[1:axis] + inputs.shape[axis + 1 :]
        return (F.interpolate(cells[:, None].float(), size, mode="nearest") > 0.5).movedim(1, axis)

    def delete(self, inputs: Any, cells: Tensor, baseline: Baseline = "mean") -> Inputs:  # cells (B,*grid) bool
        """Return a batch in which the chosen cells have the mean of their channel, or what another baseline puts there."""
        axis, chosen = 1 + self.channel_axis, self.spread(cells, inputs)
        filled = fill(inputs.movedim(axis, 1), chosen.movedim(axis, 1), baseline).movedim(1, axis)
        return torch.where(chosen, filled, inputs)

    def exchange(self, inputs: Any, donors: Any, cells: Tensor) -> Inputs:  # cells (B,*grid) bool
        """Return a batch in which the chosen cells come from other samples, the donors ``(B,...)``."""
        return torch.where(self.spread(cells, inputs), donors, inputs)

    def keep_only(self, inputs: Any, donors: Any, cells: Tensor) -> Inputs:  # cells (B,*grid) bool
        """Return a batch in which all but the chosen cells comes from the donors, also what no map can show."""
        return self.exchange(inputs, donors, ~cells)

    def choose_region(self, maps: Tensor, inputs: Any, area: float) -> Tensor:  # (B,*S) -> (B,*T) bool
        """Mark the top share ``area`` of the inputs' locations by maps enlarged to them, for :meth:`exchange`."""
        axis = 1 + self.channel_axis
        return top_cells(enlarge(maps, (*inputs.shape[1:axis], *inputs.shape[axis + 1 :])), area)

    def find_object(self, maps: Tensor, inputs: Any, region: Tensor) -> Tensor:  # (B,*S), (B,*T) bool -> (B,*T) bool
        """Mark what maps point at, for :meth:`exchange`: here, the ``region`` at their top (:meth:`choose_region`)."""
        return region

    def paint_over(self, inputs: Any, cells: Tensor) -> Inputs:  # cells (B,*grid) bool
        """Return a batch in which the chosen cells, and the rim that touches them, have the values of the nearest others."""
        axis = 1 + self.channel_axis
        index = find_nearest_outside(widen(self.spread(cells, inputs).squeeze(axis)))  # (B,S)
        values = inputs.movedim(axis, 1)
        painted: Tensor = values.flatten(2).gather(2, index[:, None].expand(-1, values.shape[1], -1))
        return painted.view_as(values).movedim(1, axis)

    def view_grid(self, inputs: Any) -> Tensor | None:  # -> (B,C,*S)
        """Return the inputs with their channels first, or ``None`` if their locations are no grid."""
        return None if len(self.axes) == 1 else inputs.movedim(1 + self.channel_axis, 1)

    def insert(self, inputs: Any, cells: Tensor, baseline: Baseline = "mean") -> Inputs:  # cells (B,*grid) bool
        """Return a batch in which only the chosen cells are kept."""
        return self.delete(inputs, ~cells, baseline)

    def list_parts(self, inputs: Any, preprocess: object, least: int) -> list[Part]:
        """List the parts of samples that may carry a cue (see :mod:`exitlens.modalities.parts`).

        ``inputs`` are the samples; words count as parts if ``least`` of them have one of a kind.
        """
        return list_array_parts(inputs.shape, 1 + self.channel_axis, getattr(preprocess, "names", ()))

    def name_locations(self, sample: Sequence[Tensor], given: InputFormat, preprocess: object) -> tuple[str, ...]:
        """Name the locations of a sample (its tensors without the batch axis), if they have names."""
        return ()

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """Draw an exit's map over the sample as HTML with an accessible ``label``; empty if it cannot be drawn."""
        return ""


class SeveralInputs(Modality):
    """Inputs of different kinds, ``parts`` by name: maps, deletion and drawing are those of the first."""

    name, plural, axes = "sample", "samples", ()
    preprocess = Preprocess
    given = "samples"

    def __init__(self, parts: tuple[tuple[str, Modality], ...]) -> None:
        self.parts = parts
        self.first_name, self.first = parts[0]  # maps lie on it
        self.grid = self.first.grid

    def adapt(self, given: InputFormat) -> Modality:
        """Adapt the first kind."""
        return SeveralInputs(((self.first_name, self.first.adapt(given)), *self.parts[1:]))

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
                raise InputError(f"{name}: {len(tensors[0])} samples of {self.first_name!r}, {len(tensors[i])} of {part!r}")
        return tuple(tensors)

    def count_channels(self, shape: Sequence[int]) -> int:
        """Return the channels of the first."""
        return self.first.count_channels(shape)

    def read(self, source: Path | str, preprocess: Any) -> Inputs:
        """Refuse: a file holds one input only."""
        raise InputError(f"{source}: the network takes {[name for name, _ in self.parts]}: pass a dict of tensors")

    def coarsen(self, maps: Tensor, grid: Sequence[int]) -> Tensor:
        """Coarsen as the first kind does."""
        return self.first.coarsen(maps, grid)

    def check_deletion(self, given: InputFormat, baseline: Baseline = "mean") -> None:
        """Check the first kind."""
        self.first.check_deletion(given, baseline)

    def delete(self, inputs: Named, cells: Tensor, baseline: Baseline = "mean") -> Inputs:
        """Delete from the first; the others stay whole."""
        return {**inputs, self.first_name: self.first.delete(inputs[self.first_name], cells, baseline)}  # type: ignore[dict-item]

    def exchange(self, inputs: Named, donors: Named, cells: Tensor) -> Inputs:
        """Exchange cells of the first; the others stay."""
        exchanged = self.first.exchange(inputs[self.first_name], donors[self.first_name], cells)
        return {**inputs, self.first_name: exchanged}  # type: ignore[dict-item]

    def keep_only(self, inputs: Named, donors: Named, cells: Tensor) -> Inputs:
        """Keep cells of the first; the others come from the donors."""
        kept = self.first.keep_only(inputs[self.first_name], donors[self.first_name], cells)
        return {**donors, self.first_name: kept}  # type: ignore[dict-item]

    def choose_region(self, maps: Tensor, inputs: Named, area: float) -> Tensor:
        """Choose locations of the first."""
        return self.first.choose_region(maps, inputs[self.first_name], area)

    def find_object(self, maps: Tensor, inputs: Named, region: Tensor) -> Tensor:
        """Mark an object in the first."""
        return self.first.find_object(maps, inputs[self.first_name], region)

    def list_parts(self, inputs: Named, preprocess: object, least: int) -> list[Part]:
        """List the parts of the first, and each of the others as a whole."""
        of_first = self.first.list_parts(inputs[self.first_name], None, least)
        listed = [replace(part, swap=swap_within(self.first_name, part.swap)) for part in of_first]
        return listed + [Part("input", other, swap_within(other)) for other, _ in self.parts[1:]]

    def paint_over(self, inputs: Named, cells: Tensor) -> Inputs:
        """Paint over cells of the first."""
        return {**inputs, self.first_name: self.first.paint_over(inputs[self.first_name], cells)}  # type: ignore[dict-item]

    def view_grid(self, inputs: Named) -> Tensor | None:
        """View the first."""
        return self.first.view_grid(inputs[self.first_name])

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """Draw the map over the first."""
        return self.first.draw_map(sample, preprocess, attention, evidence, label)
