"""Tiles of images: sure ones leave at an exit, the others go on together, each with a halo of what surrounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.pixels import resize_probabilities
from exitlens.functional.routing import fires, needs_head
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
        """Return the parts that are chosen, ``(n,)`` bool, or places of them."""
        return _Parts(self.rows[chosen], self.starts[chosen], self.size)

    def cut(self, maps: Tensor, sides: Sequence[int]) -> Tensor:  # (B,C,h,w) -> (n,C,*sides over the stride)
        """Return the parts of maps, of ``sides`` pixels."""
        stride = self.size[0] // maps.shape[2]
        return torch.stack(self._find(maps, [side // stride for side in sides], stride))

    def paste(self, parts: Tensor, maps: Tensor) -> None:  # (n,C,h,w), (B,C,H,W)
        """Write the parts into maps of all pixels."""
        for place, part in zip(self._find(maps, parts.shape[2:], 1), parts, strict=True):
            place.copy_(part)

    def _find(self, maps: Tensor, sides: Sequence[int], stride: int) -> list[Tensor]:
        corners = zip(self.rows.tolist(), *(self.starts // stride).T.tolist(), strict=True)
        height, width = sides
        return [maps[i, :, top : top + height, left : left + width] for i, top, left in corners]


def run_tiles(engine: Engine, activations: Activations, policy: Policy, tiles: Tiles, finer: Sequence[int]) -> Prediction:
    """Answer images ``(B,C,H,W)`` tile by tile (:class:`~exitlens.types.Tiles`). ``finer``: logits along a cell, by exit."""
    count, size, device = len(activations[0]), activations[0].shape[2:], activations[0].device
    grid, window, sides = tiles.count(size), tiles.window(size), (tiles.side, tiles.side)
    images = torch.arange(count, device=device).repeat_interleave(grid[0] * grid[1])
    starts = torch.cartesian_prod(*(torch.arange(along, device=device) * tiles.side for along in grid))  # (T,2)
    places = parts = _Parts(images, starts.repeat(count, 1), size)
    waiting, exits, scores = torch.arange(len(images), device=device), torch.zeros_like(images), images.float()
    activations, answer = engine.enter(activations), None
    for k in range(policy.num_exits):
        if needs_head(policy, k):
            activations, p, *_ = engine.run_exit(k, activations, policy.temperatures[k], policy.score)
            _check_stride(p[..., :: finer[k], :: finer[k]], parts.size, tiles)
            certainty = score_of(parts.cut(p.amax(1, keepdim=True), sides), policy.score)  # by the largest probabilities
            fired = torch.ones_like(waiting, dtype=torch.bool)
            if k < policy.num_exits - 1:
                fired = fires(certainty, policy.thresholds[k])
            exits[waiting[fired]], scores[waiting[fired]] = k, certainty[fired]
            if fired.any() and k == 0:
                answer = resize_probabilities(p, size)  # later exits write over it
            elif fired.any():
                answer = p.new_empty(count, p.shape[1], *size) if answer is None else answer
                cut = replace(parts.select(fired), rows=torch.arange(int(fired.sum())))
                given = cut.cut(resize_probabilities(p[parts.rows[fired]], parts.size), sides)
                places.select(waiting[fired]).paste(given, answer)
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
    assert answer is not None  # the final exit answers all that is left
    by_image, index = exits.view(count, *grid), torch.arange(count, device=device)
    most, least = by_image.flatten(1).amax(1), scores.view(count, -1).amin(1)
    return Prediction(read_answers(answer, policy.task), most, least, answer, None, index, tile_exits=by_image)


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
