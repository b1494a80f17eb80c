"""Tiles of images: sure ones leave at an exit, the others go on together, each with a halo of what surrounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.pixels import TINY, resize_probabilities
from exitlens.functional.routing import fires, needs_head
from exitlens.functional.scores import probabilities, score_of
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import gather
from exitlens.types import Policy, Prediction
from exitlens.types.settings import PIXEL_SCORES
from exitlens.types.tasks import find_answers, read_answers
from exitlens.types.tiles import Tiles

WINDOWS = 8  # that are computed at once


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


class _Walk:
    """Images ``(B,C,H,W)`` on their way through the exits: whole up to exit 0, then windows around the tiles that go on."""

    def __init__(self, engine: Engine, activations: Activations, tiles: Tiles) -> None:
        self.engine, self.tiles = engine, tiles
        self.count, self.size, device = len(activations[0]), activations[0].shape[2:], activations[0].device
        self.grid, self.sides = tiles.count(self.size), (tiles.side, tiles.side)
        images = torch.arange(self.count, device=device).repeat_interleave(self.grid[0] * self.grid[1])
        starts = torch.cartesian_prod(*(torch.arange(along, device=device) * tiles.side for along in self.grid))  # (T,2)
        self.places = self.parts = _Parts(images, starts.repeat(self.count, 1), self.size)
        self.batches, self.exit = [engine.enter(activations)], 0  # of windows a few, which fit in the processor's cache

    def answer(self, temperature: float | None = None) -> Tensor:
        """Run a stage and its head; return the probabilities of every cell, of images or of windows ``(n,C,h,w)``.

        Without a temperature nothing is compiled.
        """

        def run(batch: Activations) -> tuple[Activations, Tensor]:
            if temperature is None:
                activations, logits, *_ = self.engine.run_step(self.exit, batch, "logits")
                return activations, probabilities(logits, kind=PIXEL_SCORES[0])
            return self.engine.run_exit(self.exit, batch, temperature, PIXEL_SCORES[0])[:2]

        left, answers = zip(*map(run, self.batches), strict=True)
        self.batches, p = list(left), torch.cat(answers) if len(answers) > 1 else answers[0]
        finer = getattr(self.engine.heads[self.exit], "finer", 1)  # logits along a cell of the features
        _check_stride(p[..., ::finer, ::finer], self.parts.size, self.tiles)
        return p

    def paste(self, p: Tensor, kept: Tensor, tiles: Tensor, answer: Tensor) -> None:  # (n,C,h,w), (m,) bool, (k,), (B,C,H,W)
        """Write the probabilities of every pixel of the tiles that are kept, whose numbers are ``tiles``."""
        parts, places = self.parts.select(kept), self.places.select(tiles)
        for batch in torch.arange(len(tiles), device=tiles.device).split(WINDOWS):  # pixels of all would fill the memory
            rows, numbers = parts.rows[batch].unique(return_inverse=True)
            cut = replace(parts.select(batch), rows=numbers).cut(resize_probabilities(p[rows], parts.size), self.sides)
            places.select(batch).paste(cut, answer)

    def go_on(self, kept: Tensor) -> None:  # (m,) bool
        """Leave the other tiles behind."""
        parts, activations = self.parts.select(kept), self.batches[0]
        if len(self.batches) > 1:
            activations = tuple(torch.cat(each) for each in zip(*self.batches, strict=True))
        if self.exit == 0:
            activations, self.parts = _open_windows(activations, parts, self.tiles.window(self.size), self.tiles)
        else:
            activations = gather(activations, parts.rows)
            self.parts = replace(parts, rows=torch.arange(len(parts.rows), device=kept.device))
        self.batches = list(zip(*(each.split(WINDOWS) for each in activations), strict=True))
        self.exit += 1

    def skip(self) -> None:
        """Run a stage without its head; all tiles go on."""
        self.batches = [self.engine.run_stage(self.exit, batch) for batch in self.batches]
        self.go_on(torch.ones_like(self.parts.rows, dtype=torch.bool))


def run_tiles(engine: Engine, activations: Activations, policy: Policy, tiles: Tiles) -> Prediction:
    """Answer images ``(B,C,H,W)`` tile by tile (:class:`~exitlens.types.Tiles`)."""
    walk, answer = _Walk(engine, activations, tiles), None
    waiting = torch.arange(len(walk.parts.rows), device=walk.parts.rows.device)
    exits, scores = torch.zeros_like(waiting), waiting.float()
    for k in range(policy.num_exits):
        if not needs_head(policy, k):
            walk.skip()
            continue
        p = walk.answer(policy.temperatures[k])
        certainty = score_of(walk.parts.cut(p.amax(1, keepdim=True), walk.sides), policy.score)
        fired = fires(certainty, policy.thresholds[k]) if k < policy.num_exits - 1 else torch.ones_like(certainty) > 0
        exits[waiting[fired]], scores[waiting[fired]] = k, certainty[fired]
        if k == 0 and fired.any():
            answer = resize_probabilities(p, walk.size)  # later exits write over it
        elif fired.any():
            answer = p.new_empty(walk.count, p.shape[1], *walk.size) if answer is None else answer
            walk.paste(p, fired, waiting[fired], answer)
        waiting = waiting[~fired]
        if not len(waiting):
            break
        walk.go_on(~fired)
    assert answer is not None  # the final exit answers all that is left
    by_image, index = exits.view(walk.count, *walk.grid), torch.arange(walk.count, device=exits.device)
    most, least = by_image.flatten(1).amax(1), scores.view(walk.count, -1).amin(1)
    return Prediction(read_answers(answer, policy.task), most, least, answer, None, index, tile_exits=by_image)


def observe_tiles(engine: Engine, activations: Activations, tiles: Tiles) -> tuple[list[Tensor], list[Tensor]]:
    """Return what every exit says of the tiles that reach it, if none leaves before.

    These are logits of a tile's cells ``(B*T,C,h,w)``, and the classes of the images' pixels ``(B,H,W)``.
    """
    cells, classes = list[list[Tensor]](), list[list[Tensor]]()
    for image in zip(*(t.split(1) for t in activations), strict=True):  # all windows of one would fill the memory for many
        walk = _Walk(engine, image, tiles)
        every = torch.ones_like(walk.parts.rows, dtype=torch.bool)
        cells.append([])
        classes.append([])
        for k in range(len(engine.heads)):
            p = walk.answer()
            answer = resize_probabilities(p, walk.size) if k == 0 else p.new_empty(1, p.shape[1], *walk.size)
            if k:
                walk.paste(p, every, torch.arange(len(every), device=every.device), answer)
            cells[-1].append(walk.parts.cut(p, walk.sides).clamp_min(TINY).log())
            classes[-1].append(find_answers(answer, "segmentation").short())
            if k + 1 < len(engine.heads):
                walk.go_on(every)
    return [torch.cat(each) for each in zip(*cells, strict=True)], [torch.cat(each) for each in zip(*classes, strict=True)]


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
