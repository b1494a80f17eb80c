"""A network's inputs: one tensor, or several by name (tokens with their padding mask), the batch axis first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter

import torch
from torch import Tensor

Inputs = Tensor | Mapping[str, Tensor]
MASK = "attention_mask"  # (B,N): 1 for a token, 0 for padding


def list_input_names(inputs: Inputs) -> tuple[str, ...]:
    """Names of the tensors; none for a single tensor."""
    return () if isinstance(inputs, Tensor) else tuple(inputs)


def list_tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors, in the order of their names."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs.values())


def map_inputs(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same inputs with every tensor changed."""
    return change(inputs) if isinstance(inputs, Tensor) else {name: change(value) for name, value in inputs.items()}


def count_rows(inputs: Inputs) -> int:
    """Samples in the batch."""
    return len(list_tensors(inputs)[0])


def split_rows(inputs: Inputs, size: int) -> list[Inputs]:
    """Batches of at most ``size`` samples, in order."""
    return [map_inputs(inputs, itemgetter(slice(at, at + size))) for at in range(0, count_rows(inputs), size)]


def draw_samples(count: int, most: int, seed: int = 0) -> Tensor:
    """Indices of at most ``most`` of ``count`` samples, drawn at random and sorted."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values
