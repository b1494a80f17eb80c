"""Whether a map shows what the answer depends on: the grid it is judged on, its control, and how much lies on the object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exitlens.functional.maps import as_distribution, find_locations, regrid


def coarsen_map(maps: Tensor, grid: Sequence[int]) -> Tensor:  # (B,*S) -> (B,*grid)
    """Maps averaged to a grid, or their own where that is coarser, as distributions."""
    return as_distribution(regrid(maps.float(), tuple(min(n, g) for n, g in zip(maps.shape[1:], grid, strict=False))))


def draw_random_map(maps: Tensor, seed: int = 0) -> Tensor:  # (B,*grid) -> (B,*grid)
    """Maps of independent uniform numbers (0 at padding): the control that deletes cells blindly."""
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed)).to(maps.device)
    real = find_locations(maps)
    return noise if real is None else noise.clamp_min(1e-6) * real


def energy_in_mask(attention: Tensor, masks: Tensor) -> Tensor:  # (B,h,w), (B,H,W) bool -> (B,)
    """Share of the attention that lies on the object, the object's coverage of each cell counted by area."""
    coverage = regrid(masks.float(), tuple(attention.shape[1:]))
    return (attention * coverage).flatten(1).sum(1)


def pointing_game(attention: Tensor, masks: Tensor) -> Tensor:  # (B,h,w), (B,H,W) bool -> (B,) float
    """1 where the map's largest cell touches the object, else 0."""
    coverage = regrid(masks.float(), tuple(attention.shape[1:])).flatten(1)
    peak = attention.flatten(1).argmax(1, keepdim=True)
    return (coverage.gather(1, peak).squeeze(1) > 0).float()


def rank_locations(values: Tensor, real: Tensor | None) -> Tensor:  # (B,*S), (B,*S) bool -> (B,*S)
    """A map of ranks: 0 at padding, else from 1 up, in the order of ``values``, which may be negative."""
    flat = values.flatten(1)
    flat = flat if real is None else flat.masked_fill(~real.flatten(1), -torch.inf)
    ranks = flat.argsort(dim=1).argsort(dim=1).to(values.dtype) + 1
    ranks = ranks if real is None else ranks * real.flatten(1)
    return ranks.view(values.shape)


def share_of_possible(values: Tensor, control: Tensor, best: Tensor) -> tuple[float | None, float | None]:
    """``(value - control) / (best - control)`` of means over samples, and its standard error by the delta method.

    Args:
        values: ``(N,)`` of the map; control: of random cells; best: of the reference, all of the same samples.

    Returns:
        ``(None, None)`` where the reference's mean is not above the control's.
    """
    gain, possible = (values - control).double(), (best - control).double()
    if possible.mean() <= 0:
        return None, None
    share = (gain.mean() / possible.mean()).item()
    spread = (gain - share * possible).square().mean().sqrt() / possible.mean() / len(gain) ** 0.5
    return share, spread.item()
