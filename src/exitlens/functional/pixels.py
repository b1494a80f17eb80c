"""One class a pixel: logits on the inputs' grid, scores of images, and counts of labels and answers with their measures.

All work on single images or on sums over many: the leading axes ``*S`` are those of samples and exits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.types.settings import PIXEL_SCORES
from exitlens.types.tasks import find_answers
from exitlens.types.traces import PixelSummary

SURE = 0.9  # probability of a pixel that counts as sure
LOW = 0.1  # share of the pixels below the low probability
ROWS = 8  # images enlarged at once, which bounds the memory
TINY = torch.finfo(torch.float32).tiny


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:  # (B,C,h,w) -> (B,C,H,W)
    """Return logits at another size, linearly about the centres of cells; of the same size they stay as they are."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def resize_probabilities(p: Tensor, size: Sequence[int]) -> Tensor:  # (B,C,h,w) -> (B,C,H,W)
    """Return the softmax of the resized logits, from their softmax ``p``, which knows them but for a constant of each cell.

    A constant of each cell is one of each pixel after interpolation, and softmax does not see it.
    """
    if tuple(p.shape[2:]) == tuple(size):
        return p
    return resize_logits(p.clamp_min(TINY).log(), size).softmax(1)


def split_tiles(x: Tensor, grid: Sequence[int]) -> Tensor:  # (B,*R,H,W) -> (B*T,*R,H/rows,W/columns)
    """Cut images into ``grid`` = (rows, columns) tiles, an image's tiles row by row."""
    tiles: Tensor = x.unflatten(-1, (grid[1], -1)).unflatten(-3, (grid[0], -1))  # (B,*R,rows,h,columns,w)
    return tiles.movedim((-4, -2), (1, 2)).flatten(0, 2)


def join_tiles(tiles: Tensor, grid: Sequence[int]) -> Tensor:  # (B*T,*R,h,w) -> (B,*R,H,W)
    """Put tiles together again: the inverse of :func:`split_tiles`."""
    images: Tensor = tiles.unflatten(0, (-1, *grid)).movedim((1, 2), (-4, -2))
    return images.flatten(-2).flatten(-3, -2)


def score_pixels(p: Tensor, kind: str) -> Tensor:  # (*S,C,h,w) -> (*S)
    """Return an image's certainty from the largest probability in each cell, see :data:`PIXEL_SCORES`.

    ``low_probability`` is the smallest value that nine tenths of the cells reach; ties do not matter.
    """
    top = p.amax(-3).flatten(-2)
    if kind == "mean_probability":
        return top.mean(-1)
    if kind == "sure_share":
        return (top >= SURE).float().mean(-1)
    return top.kthvalue(1 + int(LOW * (top.shape[-1] - 1))).values


def count_confusion(answers: Tensor, labels: Tensor, classes: int) -> Tensor:  # (B,H,W) each -> (B,C,C) int32
    """Count pixels by label (rows) and answer (columns); pixels whose label is no class count nowhere."""
    known = (labels >= 0) & (labels < classes)
    pairs = (labels.long() * classes + answers.long()).masked_fill(~known, classes**2).flatten(1)
    counts = torch.zeros(len(pairs), classes**2 + 1, dtype=torch.int32, device=pairs.device)
    counts.scatter_add_(1, pairs, torch.ones_like(pairs, dtype=torch.int32))
    return counts[:, :-1].view(-1, classes, classes)


def summarise(
    outputs: Sequence[Tensor], size: Sequence[int], labels: Tensor | None, grid: Sequence[int] = (1, 1)
) -> PixelSummary:
    """Return what a trace keeps of every exit's logits ``(B,C,h,w)``, whose answers are for inputs of ``size``.

    ``labels`` are ``(B,H,W)``, of that size. With a ``grid`` of several tiles, each of these counts as an image.
    """
    coarse = [split_tiles(logits.float(), grid) for logits in outputs]
    scores = [torch.stack([score_pixels(logits.softmax(1), kind) for kind in PIXEL_SCORES], 1) for logits in coarse]
    means, classes = [logits.mean((2, 3)) for logits in coarse], outputs[0].shape[1]
    differing, confusion = list[Tensor](), list[Tensor]()
    for rows in torch.arange(len(outputs[0])).split(ROWS):
        answers = [find_answers(resize_logits(logits[rows].float(), size), "segmentation") for logits in outputs]
        answers = [split_tiles(each, grid) for each in answers]
        differing.append(torch.stack([(each != answers[-1]).float().mean((1, 2)) for each in answers], 1))
        if labels is not None:
            confusion.append(
                torch.stack([count_confusion(each, split_tiles(labels[rows], grid), classes) for each in answers], 1)
            )
    return PixelSummary(
        scores=torch.stack(scores, 1),
        means=torch.stack(means, 1),
        disagreement=torch.cat(differing),
        confusion=torch.cat(confusion) if confusion else None,
    )


def measure_iou(confusion: Tensor) -> Tensor:  # (*S,C,C) -> (*S,C)
    """Return each class's intersection over union of labelled and answered pixels; NaN for a class in neither."""
    both = confusion.diagonal(dim1=-2, dim2=-1).double()
    union = confusion.sum(-1) + confusion.sum(-2) - both
    return both / torch.where(union > 0, union, torch.nan)


def measure_mean_iou(confusion: Tensor) -> Tensor:  # (*S,C,C) -> (*S)
    """Return the mean of :func:`measure_iou` over the classes that any label has; 1 without any labelled pixel."""
    present = confusion.sum(-1) > 0
    total = measure_iou(confusion).nan_to_num(0.0).mul(present).sum(-1)
    return torch.where(present.any(-1), total / present.sum(-1).clamp_min(1), 1.0).float()


def measure_missed(confusion: Tensor, label: int) -> Tensor:  # (*S,C,C) -> (*S)
    """Return the share of a class's labelled pixels that have another answer; 0 without any."""
    area = confusion[..., label, :].sum(-1)
    return (area - confusion[..., label, label]).float() / area.clamp_min(1)
