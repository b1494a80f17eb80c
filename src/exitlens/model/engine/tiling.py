"""Tiles of images: sure ones leave at an exit, the others go on together, each with a halo of what surrounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.pixels import join_tiles, resize_probabilities
from exitlens.functional.routing import decide, needs_head
from exitlens.functional.scores import score_of
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import gather
from exitlens.types import Policy, Prediction
from exitlens.types.tasks import read_answers
from exitlens.types.tiles import Tiles


@dataclass(frozen=True)
class _Parts:
    """Parts of maps: of images, or of windows that were cut from images."""

    rows: Tensor  # (n,) the map of each part
    starts: Tensor  # (n,2) row and column where the part begins in it, in pixels
    size: Sequence[int]  # height and width of the maps, in pixels

    def select(self, chosen: Tensor) -> _Parts:
        """Return the parts that are chosen, ``(n,)`` bool."""
        return _Parts(self.rows[chosen], self.starts[chosen], self.size)

    def cut(self, maps: Tensor, sides: Sequence[int]) -> Tensor:  # (B,C,h,w) -> (n,C,*sides over the stride)
        """Return the parts of maps, of ``sides`` pixels."""
        stride = self.size[0] // maps.shape[2]
        height, width = (side // stride for side in sides)
        corners = zip(self.rows.tolist(), *(self.starts // stride).T.tolist(), strict=True)
        return torch.stack([maps[i, :, top : top + height, left : left + width] for i, top, left in corners])


def run_tiles(engine: Engine, activations: Activations, policy: Policy, tiles: Tiles, finer: Sequence[int]) -> Prediction:
    """Answer images ``(B,C,H,W)`` tile by tile (:class:`~exitlens.types.Tiles`). ``finer``: logits along a cell, by exit."""
    size, device = activations[0].shape[2:], activations[0].device
    grid, window, sides = tiles.count(size), tiles.window(size), (tiles.side, tiles.side)
    images = torch.arange(len(activations[0]), device=device).repeat_interleave(grid[0] * grid[1])
    starts = torch.cartesian_prod(*(torch.arange(count, device=device) * tiles.side for count in grid))  # (T,2)
    parts = _Parts(images, starts.repeat(len(activations[0]), 1), size)
    waiting, exits, scores = torch.arange(len(images), device=device), torch.zeros_like(images), images.float()
    activations, answers = engine.enter(activations), list[tuple[Tensor, Tensor]]()
    for k in range(policy.num_exits):
        if needs_head(policy, k):
            activations, p, *_ = engine.run_exit(k, activations, policy.temperatures[k], policy.score)
            _check_stride(p[..., :: finer[k], :: finer[k]], parts.size, tiles)
            cells = parts.cut(p, sides)
            certainty = score_of(cells, policy.score)
            fired = torch.ones_like(waiting, dtype=torch.bool)
            if k < policy.num_exits - 1:
                fired = decide(policy, k, cells, certainty, None).fired
            exits[waiting[fired]], scores[waiting[fired]] = k, certainty[fired]
            if fired.any():
                answers.append((waiting[fired], parts.select(fired).cut(resize_probabilities(p, parts.size), sides)))
            if fired.all():
                break
            waiting, parts = waiting[~fired], parts.select(~fired)
            rows = (~fired).nonzero()[:, 0]
        else:
            activations, rows = engine.run_stage(k, activations), torch.arange(len(waiting), device=device)
        if k == 0:
            activations, parts = _open_windows(activations, parts, window, tiles)
        else:
            activations = gather(activations, rows)
            parts = _Parts(torch.arange(len(rows), device=device), parts.starts, window)
    order = torch.cat([places for places, _ in answers]).argsort()
    p = join_tiles(torch.cat([answer for _, answer in answers])[order], grid)  # (B,C,H,W)
    by_image, index = exits.view(len(p), *grid), torch.arange(len(p), device=device)
    least = scores.view(len(p), -1).amin(1)
    return Prediction(read_answers(p, policy.task), by_image.flatten(1).amax(1), least, p, None, index, tile_exits=by_image)


def _open_windows(
    activations: Activations, parts: _Parts, window: Sequence[int], tiles: Tiles
) -> tuple[Activations, _Parts]:
    """Cut what crosses into windows around tiles, which are moved into the image at its edges."""
    for each in activations:
        _check_stride(each, parts.size, tiles)
    room = torch.tensor([whole - part for whole, part in zip(parts.size, window, strict=True)], device=parts.starts.device)
    begins = (parts.starts - tiles.halo).clamp_min(0).minimum(room)
    around = _Parts(parts.rows, begins, parts.size)
    cut = tuple(around.cut(each, window) for each in activations)
    return cut, _Parts(torch.arange(len(begins), device=begins.device), parts.starts - begins, window)


def _check_stride(maps: Tensor, size: Sequence[int], tiles: Tiles) -> None:
    if maps.ndim != 4 or size[0] * maps.shape[3] != size[1] * maps.shape[2]:
        raise InputError(f"tiles: what crosses between stages has to be maps of the image, got {tuple(maps.shape)}")
    tiles.check_stride(size[0] / maps.shape[2])
