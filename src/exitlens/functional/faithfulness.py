"""Whether a map shows what the answer depends on: what to delete or insert, and how much lies in the object."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.functional.maps import as_distribution, regrid
from exitlens.types.inputs import MASK, Inputs


def cells_to_pixels(cells: Tensor, size: tuple[int, int]) -> Tensor:  # (B,h,w) bool -> (B,1,H,W) bool
    """Enlarges a grid of chosen cells to pixels (nearest)."""
    return F.interpolate(cells[:, None].float(), size, mode="nearest") > 0.5


def evaluation_map(attention: Tensor, grid: tuple[int, int]) -> Tensor:  # (B,h,w) -> (B,*grid)
    """The map on the grid that all exits are judged on, so that fine and coarse ones delete equal areas (texts: as is)."""
    if attention.ndim == 2:
        return attention.float()
    size = tuple(min(a, g) for a, g in zip(attention.shape[1:], grid, strict=True))
    return as_distribution(regrid(attention.float(), size))


def random_map(maps: Tensor, seed: int = 0) -> Tensor:  # (B,*grid) -> (B,*grid)
    """Maps of independent uniform numbers (0 at the padding of texts): the control that deletes cells blindly."""
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed)).to(maps.device)
    return noise.clamp_min(1e-6) * (maps != 0) if maps.ndim == 2 else noise


def delete(inputs: Inputs, cells: Tensor) -> Inputs:  # images (B,C,H,W), (B,h,w) bool; texts, (B,N) bool
    """Replaces the chosen cells by the image's own mean colour; masks the chosen tokens of a text out, as if padding.

    The latter is the erasure of ERASER (arXiv 1911.03429, section 4). A text that would be left without a token stays whole.
    """
    if isinstance(inputs, Tensor):
        where = cells_to_pixels(cells, (inputs.shape[2], inputs.shape[3]))
        return torch.where(where, inputs.mean((2, 3), keepdim=True), inputs)
    left = inputs[MASK] * ~cells
    return {**inputs, MASK: torch.where(left[:, 1:].any(1, keepdim=True), left, inputs[MASK])}


def insert(inputs: Inputs, cells: Tensor) -> Inputs:
    """Keeps only the chosen cells, on the image's own mean colour; of a text the chosen tokens and the first (the class)."""
    others = ~cells
    if not isinstance(inputs, Tensor):
        others = others.clone()
        others[:, 0] = False
    return delete(inputs, others)


def energy_in_mask(attention: Tensor, masks: Tensor) -> Tensor:  # (B,h,w), (B,H,W) bool -> (B,)
    """Share of the attention that lies on the object, the object's coverage of each cell counted by area."""
    coverage = regrid(masks.float(), tuple(attention.shape[1:]))
    return (attention * coverage).flatten(1).sum(1)


def pointing_game(attention: Tensor, masks: Tensor) -> Tensor:  # (B,h,w), (B,H,W) bool -> (B,) float
    """1 where the map's largest cell touches the object, else 0."""
    coverage = regrid(masks.float(), tuple(attention.shape[1:])).flatten(1)
    peak = attention.flatten(1).argmax(1, keepdim=True)
    return (coverage.gather(1, peak).squeeze(1) > 0).float()
