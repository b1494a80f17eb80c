"""Whether a map shows what the answer depends on: which pixels to delete or insert, and how much lies in the object."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.functional.maps import as_distribution, regrid


def cells_to_pixels(cells: Tensor, size: tuple[int, int]) -> Tensor:  # (B,h,w) bool -> (B,1,H,W) bool
    """Enlarges a grid of chosen cells to pixels (nearest)."""
    return F.interpolate(cells[:, None].float(), size, mode="nearest") > 0.5


def evaluation_map(attention: Tensor, grid: tuple[int, int]) -> Tensor:  # (B,h,w) -> (B,*grid)
    """The map on the grid that all exits are judged on, so that fine and coarse maps delete equal areas."""
    size = tuple(min(a, g) for a, g in zip(attention.shape[1:], grid, strict=True))
    return as_distribution(regrid(attention.float(), size))


def random_map(count: int, grid: tuple[int, ...], seed: int = 0) -> Tensor:  # -> (count,*grid)
    """Maps of independent uniform numbers: the control that deletes cells blindly."""
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def delete(images: Tensor, cells: Tensor) -> Tensor:  # (B,C,H,W), (B,h,w) bool -> (B,C,H,W)
    """Replaces the chosen cells by the image's own mean colour."""
    where = cells_to_pixels(cells, (images.shape[2], images.shape[3]))
    return torch.where(where, images.mean((2, 3), keepdim=True), images)


def insert(images: Tensor, cells: Tensor) -> Tensor:  # (B,C,H,W), (B,h,w) bool -> (B,C,H,W)
    """Keeps only the chosen cells, on the image's own mean colour."""
    return delete(images, ~cells)


def energy_in_mask(attention: Tensor, masks: Tensor) -> Tensor:  # (B,h,w), (B,H,W) bool -> (B,)
    """Share of the attention that lies on the object, the object's coverage of each cell counted by area."""
    coverage = regrid(masks.float(), tuple(attention.shape[1:]))
    return (attention * coverage).flatten(1).sum(1)


def pointing_game(attention: Tensor, masks: Tensor) -> Tensor:  # (B,h,w), (B,H,W) bool -> (B,) float
    """1 where the map's largest cell touches the object, else 0."""
    coverage = regrid(masks.float(), tuple(attention.shape[1:])).flatten(1)
    peak = attention.flatten(1).argmax(1, keepdim=True)
    return (coverage.gather(1, peak).squeeze(1) > 0).float()
