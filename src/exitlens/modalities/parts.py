"""Parts of inputs that may carry a cue, and how each is swapped between two samples: places, channels, levels, words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from exitlens.types.cues import CueKind, Ignorable
from exitlens.types.inputs import MASK, Inputs, find_inner, find_tokens_name

SCALES = {1: (4, 8, 16), 2: (2, 4, 8), 3: (2, 4)}  # cells along every axis of places, by the number of axes
MOST_CHANNELS, MOST_WORDS = 64, 1000  # limits on the channels, and on the words of a vocabulary, that are tried
ALIKE = 0.5  # of the neighbours of two words, at least as much is shared by words of a kind

Swap = Callable[[Inputs, Inputs], Inputs]  # samples and donors (B,...) -> samples with the donors' part


@dataclass(frozen=True)
class Part:
    """A part of every sample, which another sample's can replace.

    Attributes:
        kind: the kind of part. name: for people.
        swap: takes samples and donors, and returns the samples with the part of the donors.
        ignore: what training should ignore if the part is a cue: a mask ``(*S)``, names of channels, or words.
        present: ``(N,)`` ``bool``, the samples that have it; ``None``: all have.
        spares_object: what should tell the class stays as it is, so that even the final exit should not go along.
    """

    kind: CueKind
    name: str
    swap: Swap
    ignore: Ignorable = None
    present: Tensor | None = None
    spares_object: bool = False


def cut_grid(size: Sequence[int], cells: int) -> Iterator[Tensor]:  # -> (*S) bool each
    """Yield the cells of a grid with ``cells`` cells along every axis, or as many as the axis has places."""
    edges = [[round(i * side / min(cells, side)) for i in range(min(cells, side) + 1)] for side in size]
    for cell in product(*(range(len(each) - 1) for each in edges)):
        mask = torch.zeros(*size, dtype=torch.bool)
        mask[tuple(slice(each[i], each[i + 1]) for each, i in zip(edges, cell, strict=True))] = True
        yield mask


def name_place(mask: Tensor) -> str:  # (*S) bool
    """Return the ranges of a cell of a grid, such as ``rows 0 to 9, columns 30 to 39``."""
    axes = ("steps",) if mask.ndim == 1 else ("slices", "rows", "columns")[-mask.ndim :]
    ranges = zip(axes, mask.nonzero().amin(0).tolist(), mask.nonzero().amax(0).tolist(), strict=True)
    return ", ".join(f"{axis} {first} to {last}" for axis, first, last in ranges)


def swap_channels(inputs: Tensor, donors: Tensor, axis: int, channels: Sequence[int]) -> Tensor:  # (B,...) each
    """Take these channels whole from the donors."""
    swapped = inputs.movedim(axis, 1).clone()
    swapped[:, list(channels)] = donors.movedim(axis, 1)[:, list(channels)]
    return swapped.movedim(1, axis)


def swap_levels(inputs: Tensor, donors: Tensor, axis: int, channels: Sequence[int]) -> Tensor:  # (B,...) each
    """Give these channels the donors' mean and standard deviation over all places, and leave the rest as it is.

    This is instance normalisation with the statistics of another sample (AdaIN, arXiv 1703.06868, eq. 8), at the input.
    """
    swapped, other = (each.movedim(axis, 1)[:, list(channels)].float() for each in (inputs, donors))
    places = tuple(range(2, swapped.ndim))
    (mean, std), (mean_other, std_other) = (
        (each.mean(places, keepdim=True), each.std(places, correction=0, keepdim=True)) for each in (swapped, other)
    )
    result = inputs.movedim(axis, 1).clone()
    result[:, list(channels)] = ((swapped - mean) / std.clamp_min(1e-6) * std_other + mean_other).to(inputs.dtype)
    return result.movedim(1, axis)


def swap_textures(inputs: Tensor, donors: Tensor, axis: int) -> Tensor:  # (B,...) each
    """Give every channel the donors' amplitudes of all frequencies but 0, and leave phases and means as they are.

    Shapes and their places are in the phases, textures in the amplitudes (Fourier-based swaps: arXiv 2105.11120).
    """
    places = tuple(i for i in range(1, inputs.ndim) if i != axis)
    spectrum, other = (torch.fft.rfftn(each.float(), dim=places) for each in (inputs, donors))
    amplitude = other.abs()
    first = tuple(0 if i in places else slice(None) for i in range(inputs.ndim))
    amplitude[first] = spectrum.abs()[first]
    size = [inputs.shape[i] for i in places]
    swapped: Tensor = torch.fft.irfftn(torch.polar(amplitude, spectrum.angle()), s=size, dim=places)
    return swapped.to(inputs.dtype)


def swap_place(inputs: Tensor, donors: Tensor, axis: int, mask: Tensor) -> Tensor:  # (B,...) each
    """Take the places of a mask ``(*S)`` from the donors."""
    return torch.where(mask.to(inputs.device).unsqueeze(axis - 1), donors, inputs)


def list_array_parts(shape: Sequence[int], axis: int, names: Sequence[str]) -> list[Part]:
    """List the parts of samples of floats, of ``shape`` with the batch axis; ``names`` are those of the channels, if any."""
    size, count = (*shape[1:axis], *shape[axis + 1 :]), shape[axis]
    names = names or [str(i) for i in range(count)]

    def make(kind: CueKind, name: str, change: Callable[..., Tensor], ignore: Ignorable = None, **rest: Any) -> Part:
        return Part(kind, name, partial(change, axis=axis, **rest), ignore)

    parts = [
        make("place", name_place(mask), swap_place, mask, mask=mask)
        for cells in SCALES[len(size)]
        for mask in cut_grid(size, cells)
    ]
    is_picture = len(size) == 2 and count in (1, 3)
    name = ("colour" if count == 3 else "brightness") if is_picture else "level"
    parts.append(make("level", name, swap_levels, None, channels=range(count)))
    parts.append(make("texture", "texture", swap_textures))
    if not is_picture and 1 < count <= MOST_CHANNELS:
        parts += [make("channel", name, swap_channels, (name,), channels=[i]) for i, name in enumerate(names)]
        parts += [make("level", f"level of {name}", swap_levels, (name,), channels=[i]) for i, name in enumerate(names)]
    return parts


def list_feature_parts(groups: Sequence[tuple[str, Sequence[int]]]) -> list[Part]:
    """List groups of a vector's features, each a part of its own."""
    return [
        Part("channel", name, partial(swap_channels, axis=1, channels=list(features)), (name,)) for name, features in groups
    ]


def swap_within(name: str, swap: Swap | None = None) -> Swap:
    """Return a swap of one of several inputs, as a whole without a ``swap`` of its parts."""

    def change(inputs: Any, donors: Any) -> Inputs:
        return {**inputs, name: donors[name] if swap is None else swap(inputs[name], donors[name])}

    return change


def group_words(ids: Tensor, inner: Tensor, least: int) -> list[list[int]]:  # (N,L) integers, (N,L) bool
    """Group the tokens that at least ``least`` texts have by their neighbours: words of a kind stand in the same places.

    Two words are alike if the distributions of what comes before them, and of what comes after them, both share
    :data:`ALIKE` (Bhattacharyya's coefficient). Each word, the most frequent first, joins the kind that is most like it
    (Harris, Distributional structure, 1954). ``inner`` is True where a token is neither padding nor an end.
    """
    texts, places = inner.nonzero().T
    words = ids[texts, places]
    pairs = torch.unique(torch.stack([words, texts]), dim=1)
    counts = torch.bincount(pairs[0], minlength=int(ids.max()) + 2)  # texts that have the word
    top = counts.argsort(descending=True, stable=True)[:MOST_WORDS]
    known = top[counts[top] >= max(1, least)]
    if not len(known):
        return []
    row = torch.full((len(counts),), -1).scatter(0, known, torch.arange(len(known)))
    sides = []
    for step in (-1, 1):
        beside = ids[texts, (places + step).clamp(0, ids.shape[1] - 1)]
        table = torch.zeros(len(known), len(counts))
        is_known = row[words] >= 0
        table.index_put_((row[words][is_known], beside[is_known]), torch.ones(int(is_known.sum())), accumulate=True)
        sides.append(table)
    kinds, sums = list[list[int]](), list[list[Tensor]]()
    for i, word in enumerate(known.tolist()):
        scores = [min(_share(side[i], total) for side, total in zip(sides, each, strict=True)) for each in sums]
        best = max(range(len(kinds)), key=scores.__getitem__, default=-1)
        if best >= 0 and scores[best] >= ALIKE:
            kinds[best].append(word)
            sums[best] = [total + side[i] for side, total in zip(sides, sums[best], strict=True)]
        else:
            kinds.append([word])
            sums.append([side[i] for side in sides])
    return kinds


def _share(counts: Tensor, others: Tensor) -> float:
    """Return Bhattacharyya's coefficient of two distributions, given as counts."""
    total = counts.sum() * others.sum()
    return (counts * others).sqrt().sum().item() / math.sqrt(total.item()) if total > 0 else 0.0


def swap_words(inputs: Mapping[str, Tensor], donors: Mapping[str, Tensor], words: Tensor) -> Inputs:
    """Put the donors' tokens among ``words`` in the place of the samples' tokens among them, one after the other."""
    name = find_tokens_name(inputs)
    has, offers = (torch.isin(each[name], words.to(each[name].device)) & find_inner(each[MASK]) for each in (inputs, donors))
    order = (~offers).to(torch.uint8).argsort(dim=1, stable=True)  # the donors' words first
    source = order.gather(1, (has.cumsum(1) - 1).clamp_min(0) % offers.sum(1, keepdim=True).clamp_min(1))
    chosen = has & offers.any(1, keepdim=True)
    return {**inputs, name: torch.where(chosen, donors[name].gather(1, source), inputs[name])}


def list_word_parts(inputs: Mapping[str, Tensor], name_tokens: Callable[[Tensor], Sequence[str]], least: int) -> list[Part]:
    """List the kinds of words that at least ``least`` of these texts have, by :func:`group_words`."""
    ids, inner = inputs[find_tokens_name(inputs)], find_inner(inputs[MASK])
    parts = []
    for kind in group_words(ids, inner, least):
        words = torch.tensor(kind)
        present = (torch.isin(ids, words) & inner).any(1)
        if len(kind) > 1 and int(present.sum()) >= least:
            names = tuple(name_tokens(words))
            parts.append(Part("words", ", ".join(names), partial(swap_words, words=words), names, present))
    return parts
