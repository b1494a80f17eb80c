"""A network's inputs: one tensor, or several by name (tokens with their padding mask), the batch axis first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor, nn

from exitlens.errors import InputError, require

Inputs = Tensor | Mapping[str, Tensor]
Groups = tuple[tuple[str, tuple[int, ...]], ...]  # names of groups of features, and which features they have
MASK = "attention_mask"  # (B,N): 1 for a token, 0 for padding


@dataclass(frozen=True)
class InputFormat:
    """The kind of inputs that a network takes."""

    names: tuple[str, ...]  # the tensors' names; empty for one tensor alone
    shape: tuple[int, ...]  # one sample's: (C,H,W) of an image, (N,) of a text; with several inputs, the first's
    exact_size: bool = False  # samples of another size do not fit (texts never do)
    vocabulary: tuple[int | None, ...] = (None,)  # each tensor's number of tokens that its embedding knows
    prefix: int = 0  # tokens in front of a text that get no attention
    dtypes: tuple[torch.dtype, ...] = ()  # those of the traced tensors, to which tokens and masks are converted
    channels_last: bool = False  # a sample of a series is (T,C), not (C,T)
    groups: Groups = ()  # named groups of a vector's features, on which maps lie
    shapes: tuple[tuple[int, ...], ...] = ()  # one sample's, for each of several inputs; empty if all have the same


def list_input_names(inputs: Inputs) -> tuple[str, ...]:
    """Return the names of the tensors; none for a single tensor."""
    return () if isinstance(inputs, Tensor) else tuple(inputs)


def list_shapes(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """Return the shape of a sample of each of several inputs, if some are floats: tokens and their mask are one input."""
    if isinstance(inputs, Tensor) or not any(t.is_floating_point() for t in inputs.values()):
        return ()
    return tuple(tuple(t.shape[1:]) for t in inputs.values())


def list_tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the tensors, in the order of their names."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs.values())


def map_inputs(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return the same inputs with every tensor changed."""
    return change(inputs) if isinstance(inputs, Tensor) else {name: change(value) for name, value in inputs.items()}


def find_tokens_name(texts: Mapping[str, Tensor]) -> str:
    """Return the name of the tokens beside their padding mask."""
    return next(name for name in texts if name != MASK)


def find_inner(mask: Tensor) -> Tensor:  # (N,L) of 1 and 0 -> (N,L) bool
    """Return where the tokens of texts are, without the first and the last one, which mark the ends."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return (position > 0) & (position < (mask * position).amax(1, keepdim=True)) & (mask > 0)


def count_rows(inputs: Inputs) -> int:
    """Return the number of samples in the batch."""
    return len(list_tensors(inputs)[0])


def split_rows(inputs: Inputs, size: int) -> list[Inputs]:
    """Split inputs into batches of at most ``size`` samples, in order."""
    return [map_inputs(inputs, itemgetter(slice(at, at + size))) for at in range(0, count_rows(inputs), size)]


def take_rows(inputs: Inputs, rows: Tensor) -> Inputs:  # (n,) integers
    """Return the samples in these rows."""
    return map_inputs(inputs, lambda tensor: tensor[rows.to(tensor.device)])


def replace_rows(inputs: Inputs, rows: Tensor, others: Inputs) -> Inputs:  # (n,) integers
    """Return the same inputs with other samples in these rows."""

    def put(tensor: Tensor, values: Tensor) -> Tensor:
        return tensor.index_copy(0, rows.to(tensor.device), values.to(tensor.dtype))

    if isinstance(inputs, Tensor) or isinstance(others, Tensor):
        assert isinstance(inputs, Tensor)
        assert isinstance(others, Tensor)
        return put(inputs, others)
    return {name: put(value, others[name]) for name, value in inputs.items()}


def draw_donors(count: int, share: float, tries: int = 1) -> tuple[Tensor, ...]:  # -> (n,) integers each
    """Draw a share of the rows of a batch from the global generator, and ``tries`` times another row for each of them.

    A batch of one sample has no other: then there are no rows.
    """
    rows = torch.randperm(count)[: round(share * count) if count > 1 else 0]
    return rows, *((rows + torch.randint(1, max(count, 2), rows.shape)) % max(count, 1) for _ in range(tries))


def can_be_channels_last(module: nn.Module) -> bool:
    """Return whether the weights can be in the memory format ``channels_last``: with five axes (volumes) they cannot."""
    return all(p.ndim < 5 for p in module.parameters())


def set_channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor of four axes in the memory format ``channels_last``, and any other unchanged."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def draw_samples(count: int, limit: int, seed: int = 0) -> Tensor:
    """Draw at most ``limit`` of ``count`` indices, in random order (folders are sorted by class)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit]


def check_labels(labels: Tensor, batch: int, classes: int, name: str = "labels") -> None:
    """Raise :class:`InputError` unless there are ``batch`` integers in ``[0, classes)`` (checked on the CPU only)."""
    require(labels, Tensor, name, "torch.tensor(labels) makes one")
    if labels.shape != (batch,) or labels.is_floating_point():
        raise InputError(f"{name}: expected ({batch},) integers, got {tuple(labels.shape)} {labels.dtype}")
    if labels.device.type == "cpu" and not bool(((labels >= 0) & (labels < classes)).all()):
        low, high = int(labels.min()), int(labels.max())
        raise InputError(f"{name}: expected values in [0, {classes}), got {low} to {high}")
