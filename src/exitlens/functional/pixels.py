"""One class a pixel: logits on the inputs' grid, scores of images, and counts of labels and answers with their measures.

All work on single images or on sums over many: the leading axes ``*S`` are those of samples and exits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.types.settings import PIXEL_SCORES
from exitlens.types.tasks import IGNORE, find_answers
from exitlens.types.traces import PixelSummary

SURE = 0.9  # probability of a pixel that counts as sure
LOW = 0.1  # share of the pixels below the low probability
TOLERANCE = 0.0075  # distance at which borders still match, as a share of the image's diagonal
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


def find_borders(labels: Tensor) -> Tensor:  # (B,H,W) -> (B,H,W) int16
    """Return the class of each pixel that has a neighbour (of four) of another class, :data:`IGNORE` elsewhere.

    Pixels without a class border on nothing, nor does the edge of the image.
    """
    labels, is_border = labels.short(), torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        first, second = labels.narrow(axis, 0, labels.shape[axis] - 1), labels.narrow(axis, 1, labels.shape[axis] - 1)
        differs = (first != second) & (first != IGNORE) & (second != IGNORE)
        is_border.narrow(axis, 0, labels.shape[axis] - 1).logical_or_(differs)
        is_border.narrow(axis, 1, labels.shape[axis] - 1).logical_or_(differs)
    return labels.masked_fill(~is_border, IGNORE)


def match_borders(at: Tensor, borders: Tensor, others: Tensor, reach: int) -> Tensor:  # (n,3), (B,H,W) each -> (n,) bool
    """Return which border pixels have one of their class in ``others`` within ``reach`` pixels (Euclidean).

    ``at`` has their places: sample, row and column.
    """
    padded = F.pad(others, (reach,) * 4, value=IGNORE).flatten()
    height, width = (side + 2 * reach for side in others.shape[1:])
    place = (at[:, 0] * height + at[:, 1] + reach) * width + at[:, 2] + reach
    told, left = borders[tuple(at.T)], torch.arange(len(at), device=at.device)
    steps = [
        (down**2 + right**2, down * width + right) for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)
    ]
    for _, step in sorted(step for step in steps if step[0] <= reach**2):  # most match at once
        left = left[padded[place[left] + step] != told[left]]
    matched = torch.ones_like(told, dtype=torch.bool)
    matched[left] = False
    return matched


def count_borders(answers: Tensor, labels: Tensor, classes: int, grid: Sequence[int] = (1, 1)) -> Tensor:
    """Count border pixels ``(B*T,C,4)`` int32 of each class: matched and all of the answers ``(B,H,W)``, and of the labels.

    Borders match within :data:`TOLERANCE` of the image's diagonal (Csurka et al., BMVC 2013), rounded up to whole pixels, as
    the DAVIS benchmark does (Perazzi et al., CVPR 2016). With a ``grid`` of several tiles, each of these counts as an image.
    """
    count, height, width = labels.shape
    truth = find_borders(labels)
    told = find_borders(torch.where(labels == IGNORE, IGNORE, answers))
    reach, counts = math.ceil(TOLERANCE * math.hypot(height, width)), list[Tensor]()
    for borders, others in ((told, truth), (truth, told)):
        at = (borders != IGNORE).nonzero()  # few of all pixels
        tile = (at[:, 0] * grid[0] + at[:, 1] * grid[0] // height) * grid[1] + at[:, 2] * grid[1] // width
        bins = tile * classes + borders[tuple(at.T)]
        for kept in (bins[match_borders(at, borders, others, reach)], bins):
            counts.append(kept.bincount(minlength=count * grid[0] * grid[1] * classes))
    return torch.stack(counts, -1).int().view(-1, classes, 4)


def enlarge_answers(logits: Tensor, size: Sequence[int]) -> Tensor:  # (B,C,h,w) -> (B,H,W) int16
    """Return the class of every pixel of inputs of ``size``, of a few images at a time."""
    parts = logits.float().split(ROWS)
    return torch.cat([find_answers(resize_logits(part, size), "segmentation").short() for part in parts])


def summarise(
    cells: Sequence[Tensor], answers: Sequence[Tensor], labels: Tensor | None, grid: Sequence[int] = (1, 1)
) -> PixelSummary:
    """Return what a trace keeps of every exit's logits of cells ``(B*T,C,h,w)`` and classes of pixels ``(B,H,W)``.

    ``labels`` are ``(B,H,W)``, too. With a ``grid`` of T tiles, each of these counts as an image.
    """
    scores = [torch.stack([score_pixels(p, kind) for kind in PIXEL_SCORES], 1) for p in (c.softmax(1) for c in cells)]
    means, classes = [logits.mean((2, 3)) for logits in cells], cells[0].shape[1]
    differing, confusion, borders = list[Tensor](), list[Tensor](), list[Tensor]()
    for rows in torch.arange(len(answers[0])).split(ROWS):
        told = [each[rows] for each in answers]
        if labels is not None:
            borders.append(torch.stack([count_borders(each, labels[rows], classes, grid) for each in told], 1))
        told = [split_tiles(each, grid) for each in told]
        differing.append(torch.stack([(each != told[-1]).float().mean((1, 2)) for each in told], 1))
        if labels is not None:
            confusion.append(
                torch.stack([count_confusion(each, split_tiles(labels[rows], grid), classes) for each in told], 1)
            )
    return PixelSummary(
        scores=torch.stack(scores, 1),
        means=torch.stack(means, 1),
        disagreement=torch.cat(differing),
        confusion=torch.cat(confusion) if confusion else None,
        borders=torch.cat(borders) if borders else None,
    )


def count_classes(confusion: Tensor) -> Tensor:  # (*S,C,C) -> (*S,3,C)
    """Return the numbers of pixels of each class that are right, labelled and answered."""
    return torch.stack([confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2)], -2)


def measure_iou(confusion: Tensor) -> Tensor:  # (*S,C,C) -> (*S,C)
    """Return each class's intersection over union of labelled and answered pixels; NaN for a class in neither."""
    return _divide_by_union(count_classes(confusion))


def _divide_by_union(counts: Tensor) -> Tensor:  # (*S,3,C) -> (*S,C)
    both, labelled, answered = counts.double().unbind(-2)
    union = labelled + answered - both
    return both / torch.where(union > 0, union, torch.nan)


def measure_mean_iou(confusion: Tensor) -> Tensor:  # (*S,C,C) -> (*S)
    """Return the mean of :func:`measure_iou` over the classes that any label has; 1 without any labelled pixel."""
    return average_iou(count_classes(confusion))


def average_iou(counts: Tensor) -> Tensor:  # (*S,3,C) -> (*S)
    """Return what :func:`measure_mean_iou` does, from :func:`count_classes`."""
    present = counts[..., 1, :] > 0
    total = _divide_by_union(counts).nan_to_num(0.0).mul(present).sum(-1)
    return torch.where(present.any(-1), total / present.sum(-1).clamp_min(1), 1.0).float()


def measure_border_f1(borders: Tensor) -> Tensor:  # (N,*S,C,4) -> (*S)
    """Return the boundary F1 score: the mean over images of the mean over the classes with a border in an image's label.

    Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013, section 3.3; classes that only
    the answer has are not among those of the mean. NaN without any border.
    """
    right, told, met, truth = borders.double().unbind(-1)
    precision, recall = right / told.clamp_min(1), met / truth.clamp_min(1)
    f1 = 2 * precision * recall / (precision + recall).clamp_min(TINY)
    return f1.masked_fill(truth == 0, torch.nan).nanmean(-1).nanmean(0)


def measure_missed(confusion: Tensor, label: int) -> Tensor:  # (*S,C,C) -> (*S)
    """Return the share of a class's labelled pixels that have another answer; 0 without any."""
    area = confusion[..., label, :].sum(-1)
    return (area - confusion[..., label, label]).float() / area.clamp_min(1)
