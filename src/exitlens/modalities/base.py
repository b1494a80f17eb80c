"""What a kind of input says of itself: how it is recognised, checked, read, deleted from and drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.faithfulness import coarsen_map
from exitlens.functional.maps import all_finite
from exitlens.types.inputs import InputFormat, Inputs
from exitlens.types.preprocessing import Preprocessing


class Modality(ABC):
    """One kind of input; a new one is a subclass in a file of its own and an entry in ``exitlens.modalities.MODALITIES``.

    Where nothing else is said, a sample is one array of floats in the network's dtype, its channels first.

    Attributes:
        name: of one sample, for messages. plural: of several.
        axes: of a sample, channels first. expected: an example of it, for the message to whoever passes something else.
        preprocess: the class that makes inputs of raw samples. reader: what people call for that.
        given: what a command takes them from, for messages.
        argument: of a backbone's ``forward`` by which it is known to take this kind; empty if none tells.
        needed_to_delete: name of the tensor that deletion works on, if it needs one of its own.
        head: the kind of exit head that new networks get.
        grid: on which maps are judged, unless somebody says otherwise.
    """

    name: ClassVar[str]
    plural: ClassVar[str]
    axes: ClassVar[tuple[str, ...]]
    expected: ClassVar[str]
    preprocess: ClassVar[type[Preprocessing]]
    reader: ClassVar[str]
    given: ClassVar[str] = "these"
    argument: ClassVar[str] = ""
    needed_to_delete: ClassVar[str] = ""
    head: ClassVar[Literal["evidence", "context"]] = "evidence"
    grid: tuple[int, ...] = (5, 5)

    def fits(self, names: Sequence[str], shape: Sequence[int], dtypes: Sequence[torch.dtype]) -> bool:
        """Whether tensors of these names and dtypes, and this shape of a sample, are of this kind (no dtypes: floats)."""
        return not names and len(shape) == len(self.axes) and all(dtype.is_floating_point for dtype in dtypes)

    def adapt(self, given: InputFormat) -> Modality:
        """The same kind for the inputs of one network, where there is more to know than the kind."""
        return self

    def check(self, inputs: Inputs, given: InputFormat, name: str, like: Tensor) -> tuple[Tensor, ...]:
        """The tensors of a batch, in the order in which the first stage takes them.

        Args:
            inputs: what somebody passed.
            given: what the network takes.
            name: of the argument, for the message.
            like: a parameter of the network: its device and dtype.

        Raises:
            InputError: if the network cannot take the inputs.
        """
        if not isinstance(inputs, Tensor):
            raise InputError(f"{name}: expected a torch.Tensor, got {type(inputs).__name__}")
        got, shape = tuple(inputs.shape[1:]), given.shape
        fixed = {i for i, axis in enumerate(self.axes) if axis in ("C", "F")}
        if inputs.ndim != len(shape) + 1 or any(got[i] != shape[i] for i in fixed):
            hint = f" (add the batch axis: {self.plural}[None])" if inputs.ndim == len(shape) else ""
            wanted = ",".join(("B", *(str(shape[i]) if i in fixed else axis for i, axis in enumerate(self.axes))))
            raise InputError(f"{name}: expected ({wanted}), got {tuple(inputs.shape)}{hint}")
        if len(inputs) == 0:
            raise InputError(f"{name}: the batch is empty: pass at least one {self.name}")
        if not inputs.is_floating_point():
            raise InputError(f"{name}: expected floats, got {inputs.dtype}: normalise them first ({self.reader})")
        if inputs.dtype != like.dtype or inputs.device != like.device:
            raise InputError(
                f"{name}: expected {like.dtype} on {like.device} as the network, got {inputs.dtype} on "
                f"{inputs.device}: convert with {self.plural}.to(...)"
            )
        if given.exact_size and got != shape:
            raise InputError(f"{name}: this network takes {shape} only, got {got}: resize the {self.plural}")
        axis = self.axes.index("C") if "C" in self.axes else 0
        sizes, own = (one[:axis] + one[axis + 1 :] for one in (got, shape))
        if min(sizes, default=1) * 2 < min(own, default=1):
            raise InputError(f"{name}: {sizes} is far below the network's {own}")
        if not all_finite(inputs):
            raise InputError(f"{name}: expected finite values, got NaN or Inf: check the loading of these {self.plural}")
        return (inputs,)

    @abstractmethod
    def make_example(self, channels: int = 3, size: int = 0) -> Inputs:
        """An example of one sample for a backbone; size 0: what is usual."""

    def count_channels(self, shape: Sequence[int]) -> int:
        """Channels of a sample, for building a backbone."""
        return shape[0]

    @abstractmethod
    def read(self, source: Path | str, preprocess: Any) -> Inputs:
        """A sample (its file, or the text itself) as a batch of one, through an object of :attr:`preprocess`."""

    def coarsen(self, maps: Tensor, grid: Sequence[int]) -> Tensor:  # (B,*S) -> (B,*grid)
        """Maps on the grid on which all exits are judged, so that fine and coarse ones delete equal shares."""
        return coarsen_map(maps, grid)

    def check_deletion(self, given: InputFormat) -> None:
        """Raises :class:`InputError` if nothing can be deleted from the inputs of a network that takes these."""
        if self.needed_to_delete and self.needed_to_delete not in given.names:
            wanted = f"to delete from {self.plural} it has to take {self.needed_to_delete!r}"
            raise InputError(f"net: {wanted}: attach with an example that has it")

    @abstractmethod
    def delete(self, inputs: Inputs, cells: Tensor) -> Inputs:  # cells (B,*grid) bool
        """A batch in which the chosen cells say nothing any more."""

    def insert(self, inputs: Inputs, cells: Tensor) -> Inputs:  # cells (B,*grid) bool
        """A batch in which only the chosen cells are kept."""
        return self.delete(inputs, ~cells)

    def name_locations(self, sample: Sequence[Tensor], given: InputFormat, preprocess: object) -> tuple[str, ...]:
        """What stands at each location of a sample (its tensors without the batch axis), where that has a name."""
        return ()

    def draw_map(self, sample: Tensor, preprocess: object, attention: Tensor, evidence: Tensor, label: str) -> str:
        """An exit's map over the sample as HTML, ``label`` for those who do not see it; empty where it cannot be drawn."""
        return ""
