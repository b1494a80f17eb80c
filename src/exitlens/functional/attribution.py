"""Relevance: where an answer depends on given features, to first order; and measures of maps against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exitlens.errors import InputError
from exitlens.functional.maps import as_distribution, find_locations, regrid
from exitlens.types.tasks import Task, find_answers


def class_score(logits: Tensor, labels: Tensor) -> Tensor:  # (B,C), (B,) -> (B,)
    """Return a class's logit less the mean of all classes' logits, in float32: it *distinguishes* the class."""
    logits = logits.float()
    return logits.gather(1, labels[:, None].long()).squeeze(1) - logits.mean(1)


def choose_explained(logits: Tensor, task: Task) -> Tensor:  # (B,C) -> (B,) int64, or (B,C) bool
    """Return the answers, which explanations are about; with several labels and none told, the strongest label."""
    if task == "classes":
        return logits.argmax(1)
    told = find_answers(logits, task)
    strongest = torch.zeros_like(told).scatter_(1, logits.argmax(1, keepdim=True), True)
    return torch.where(told.any(1, keepdim=True), told, strongest)


def answer_score(logits: Tensor, task: Task, answers: Tensor | None = None) -> Tensor:  # (B,C) -> (B,)
    """Return :func:`class_score` of the answers (by default these logits'), or the sum of several labels' logits."""
    answers = choose_explained(logits, task) if answers is None else answers
    return class_score(logits, answers) if task == "classes" else (logits.float() * answers).sum(1)


def gradient_x_input(scores: Tensor, *features: Tensor, retain_graph: bool = False) -> Tensor:
    """Return what features add to the scores, to first order: gradient times value (arXiv 1605.01713), detached, float32.

    For a network that is linear from the features to the score it is exact, and sums to the score less its value at 0.

    Args:
        scores: ``(B,)``, each computed from its own row of the features.
        features: ``(B,...)``, of which the first that the scores depend on counts.
        retain_graph: keep the graph for another pass.
    """
    gradients: tuple[Tensor | None, ...] = ()
    if scores.requires_grad:
        gradients = torch.autograd.grad(scores.sum(), features, retain_graph=retain_graph, allow_unused=True)
    for gradient, values in zip(gradients, features, strict=False):
        if gradient is not None:
            return gradient.float() * values.detach().float()
    raise InputError(
        "relevance: no gradient leads from the answer back to the features: part of the network runs without ("
        "torch.no_grad, detach). Fix: let gradients through, or use attention maps and EGTLoss(target='mean')"
    )


def mix_target(
    relevance: Tensor, attention: Tensor, share: bool, sharpness: float = 1.0
) -> Tensor:  # (B,*S), (B,*T) -> (B,*U)
    """Return the positive part of relevance to the power of ``sharpness``, as a distribution on the coarser of the grids.

    With ``share`` it is multiplied by the attention, so that a location counts if it matters *and* is looked at. A sample
    whose answer depends positively on no location keeps the attention.
    """
    size = tuple(min(m, n) for m, n in zip(relevance.shape[1:], attention.shape[1:], strict=True))
    positive, seen = regrid(relevance.clamp_min(0), size), regrid(attention.detach().float(), size)
    target = positive * seen if share else positive
    scale = target.flatten(1).amax(1).clamp_min(torch.finfo(target.dtype).tiny).view(-1, *[1] * (target.ndim - 1))
    has_any = (target.flatten(1).amax(1) > 0).view(scale.shape)
    return as_distribution(torch.where(has_any, target / scale, seen) ** sharpness)


def coarsen_map(maps: Tensor, grid: Sequence[int]) -> Tensor:  # (B,*S) -> (B,*grid)
    """Average maps to a grid, unless their own is coarser, and return them as distributions."""
    return as_distribution(regrid(maps.float(), tuple(min(n, g) for n, g in zip(maps.shape[1:], grid, strict=False))))


def draw_random_map(maps: Tensor, seed: int = 0) -> Tensor:  # (B,*grid) -> (B,*grid)
    """Draw maps of independent uniform numbers (0 at padding): the control that deletes cells blindly."""
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed)).to(maps.device)
    real = find_locations(maps)
    return noise if real is None else noise.clamp_min(1e-6) * real


def energy_in_mask(attention: Tensor, masks: Tensor) -> Tensor:  # (B,h,w), (B,H,W) bool -> (B,)
    """Return the share of the attention on the object; a cell counts by the area that the object covers."""
    coverage = regrid(masks.float(), tuple(attention.shape[1:]))
    return (attention * coverage).flatten(1).sum(1)


def pointing_game(attention: Tensor, masks: Tensor) -> Tensor:  # (B,h,w), (B,H,W) bool -> (B,) float
    """Return 1 if the map's largest cell touches the object, else 0."""
    coverage = regrid(masks.float(), tuple(attention.shape[1:])).flatten(1)
    peak = attention.flatten(1).argmax(1, keepdim=True)
    return (coverage.gather(1, peak).squeeze(1) > 0).float()


def rank_locations(values: Tensor, real: Tensor | None) -> Tensor:  # (B,*S), (B,*S) bool -> (B,*S)
    """Return a map of ranks: 0 at padding, else from 1 up, in the order of ``values``, which may be negative."""
    flat = values.flatten(1)
    flat = flat if real is None else flat.masked_fill(~real.flatten(1), -torch.inf)
    ranks = flat.argsort(dim=1).argsort(dim=1).to(values.dtype) + 1
    ranks = ranks if real is None else ranks * real.flatten(1)
    return ranks.view(values.shape)


def share_of_possible(values: Tensor, control: Tensor, best: Tensor) -> tuple[float | None, float | None]:
    """Return ``(value - control) / (best - control)`` of means over samples ``(N,)``, and its error by the delta method.

    Both are ``None`` if the mean of ``best`` is not above that of ``control``.
    """
    gain, possible = (values - control).double(), (best - control).double()
    if possible.mean() <= 0:
        return None, None
    share = (gain.mean() / possible.mean()).item()
    spread = (gain - share * possible).square().mean().sqrt() / possible.mean() / len(gain) ** 0.5
    return share, spread.item()
