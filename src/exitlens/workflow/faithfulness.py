"""faithfulness: do the maps show what the answers depend on? Deletion, insertion, masks, and controls."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.data.splits import SampleSet
from exitlens.errors import InputError
from exitlens.functional import faithfulness as measures
from exitlens.functional.maps import find_locations, top_cells
from exitlens.functional.similarity import pearson
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.heads import EvidenceHead
from exitlens.model.network import ExitNet
from exitlens.types import ExitOutput
from exitlens.types.inputs import Inputs, count_rows, draw_samples, split_rows


@dataclass(frozen=True)
class Faithfulness:
    """Means over the images, one number an exit (final last).

    Attributes:
        deletion: drop in the probability of the exit's own answer after deleting the top 20 % of the map's cells.
        deletion_random: the same for random cells: the control.
        insertion: probability of the answer with only the top 20 % of cells kept; insertion_random: the control.
        randomised_cc: Pearson CC of the map with that of the same head with random weights; near 1 would mean that the
            map does not depend on what the head learned. ``None`` for a kept classifier.
        energy_in_mask, pointing_game: where the data has masks, else ``None``.
        grid: the grid all maps are averaged to before cells are chosen.
        samples: images used.
    """

    deletion: tuple[float, ...]
    deletion_random: tuple[float, ...]
    insertion: tuple[float, ...]
    insertion_random: tuple[float, ...]
    randomised_cc: tuple[float | None, ...]
    energy_in_mask: tuple[float, ...] | None
    pointing_game: tuple[float, ...] | None
    grid: tuple[int, int]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def faithfulness(
    net: ExitNet,
    data: SampleSet,
    *,
    samples: int = 1000,
    fraction: float = 0.2,
    grid: tuple[int, int] = (5, 5),
    seed: int = 0,
) -> Faithfulness:
    """Measures every exit's map on the same images and grid (deletion as in RISE, arXiv 1806.07421, at one point).

    Deleted cells take the image's mean colour; deleted tokens of a text are masked out (arXiv 1911.03429). Maps of images
    are averaged to ``grid`` first, so that a fine map and a coarse one delete the same area.

    Args:
        net: in any mode; used in evaluation mode and given back as it was.
        data: an :class:`~exitlens.data.images.ImageSet`, :class:`~exitlens.data.texts.TextSet` or another
            :class:`~exitlens.data.splits.SampleSet`; with masks, the mask measures are taken too.
        samples: at most this many of the set, drawn at random where there are more (folders are sorted by class).
        fraction: share of cells deleted or inserted.
        grid: evaluation grid; an exit with a coarser map is judged on its own.
        seed: of that draw, the random cells and the randomised heads.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction: expected a share in (0, 1), got {fraction}")
    data = data.subset(draw_samples(len(data), samples, seed).sort().values)
    images = data.inputs
    net.check_input(images, "data")
    modality = net.input_spec.modality
    modality.check_deletion(net.input_spec)
    with switch_mode(net, False), torch.no_grad():
        plain = _outputs(net, images)
        maps = [modality.coarsen(out.attention, grid) for out in plain]
        blind = [measures.draw_random_map(m, seed) for m in maps]
        drops, keeps = _perturb(net, images, plain, maps, fraction)
        drops_random, keeps_random = _perturb(net, images, plain, blind, fraction)
        randomised = _randomised(net, images, plain, seed)
    masks = data.masks
    return Faithfulness(
        drops,
        drops_random,
        keeps,
        keeps_random,
        randomised,
        None if masks is None else tuple(measures.energy_in_mask(o.attention, masks).mean().item() for o in plain),
        None if masks is None else tuple(measures.pointing_game(o.attention, masks).mean().item() for o in plain),
        grid,
        len(data),
    )


def _outputs(net: ExitNet, images: Inputs, batch_size: int = 250) -> list[ExitOutput]:
    parts = [net(chunk) for chunk in split_rows(images, batch_size)]
    return [ExitOutput(*(torch.cat(field) for field in zip(*column, strict=True))) for column in zip(*parts, strict=True)]


def _perturb(
    net: ExitNet, images: Inputs, plain: Sequence[ExitOutput], maps: Sequence[Tensor], fraction: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per exit: drop after deletion, and probability after insertion, of the answer given on the whole image."""
    drops: list[float] = []
    keeps: list[float] = []
    modality = net.input_spec.modality
    for k, (out, chosen) in enumerate(zip(plain, maps, strict=True)):
        p = out.logits.softmax(1)
        answer = p.argmax(1, keepdim=True)
        cells = top_cells(chosen, fraction, find_locations(chosen))
        without = _exit_probabilities(net, modality.delete(images, cells), k).gather(1, answer)
        drops.append((p.gather(1, answer) - without).mean().item())
        keeps.append(_exit_probabilities(net, modality.insert(images, cells), k).gather(1, answer).mean().item())
    return tuple(drops), tuple(keeps)


def _exit_probabilities(net: ExitNet, images: Inputs, exit_index: int, batch_size: int = 250) -> Tensor:
    """Softmax of one exit; the stages after it are not run."""
    parts = []
    for chunk in split_rows(images, batch_size):
        activations = net.check_input(chunk)
        for stage in list(net.stages)[: exit_index + 1]:
            activations = stage(*activations)
        parts.append(net.head(exit_index).classify(*activations).softmax(1))
    return torch.cat(parts)


def _randomised(net: ExitNet, images: Inputs, plain: Sequence[ExitOutput], seed: int) -> tuple[float | None, ...]:
    """Head-randomisation check (arXiv 1810.03292): every head's weights replaced by random ones of the same spread."""
    generator = torch.Generator().manual_seed(seed)
    others = [_random_head(head, generator) if isinstance(head, EvidenceHead) else None for head in net.heads]
    sums, start = [0.0] * len(others), 0
    for chunk in split_rows(images, 250):
        activations, stop = net.check_input(chunk), start + count_rows(chunk)
        for k, (stage, other) in enumerate(zip(net.stages, others, strict=True)):
            activations = stage(*activations)
            if other is not None:
                sums[k] += pearson(plain[k].attention[start:stop], other(*activations).attention).sum().item()
        start = stop
    return tuple(None if other is None else total / start for other, total in zip(others, sums, strict=True))


def _random_head(head: EvidenceHead, generator: torch.Generator) -> EvidenceHead:
    other = copy.deepcopy(head)
    for module in other.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            noise = torch.randn(module.weight.shape, generator=generator)
            module.weight.copy_(noise * module.weight.std(correction=0).clamp_min(1e-3))
    return other
