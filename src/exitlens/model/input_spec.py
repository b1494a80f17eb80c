"""What a network takes, checked before any stage runs, so that no error comes from deep inside PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from exitlens.modalities import Modality, find_modality, recognise_example
from exitlens.types.inputs import InputFormat, Inputs, list_tensors


class InputSpec(InputFormat):
    """The inputs of a network, and the check of what is passed to it."""

    @property
    def modality(self) -> Modality:
        """Their kind."""
        return find_modality(self.names, self.shape, self.dtypes, self.shapes).adapt(self)

    def check(self, inputs: Inputs, name: str, like: Tensor) -> tuple[Tensor, ...]:
        """The tensors, in the order that the first stage takes them; see :meth:`exitlens.modalities.base.Modality.check`."""
        return self.modality.check(inputs, self, name, like)


def check_example(example: Any) -> tuple[int, ...]:
    """Shape of one sample of an example; raises :class:`InputError` unless it is a batch of a known kind of input."""
    recognise_example(example)
    return tuple(list_tensors(example)[0].shape[1:])
