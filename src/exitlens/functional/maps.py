"""Maps over locations: as distributions, compared with each other, of relevance, and measured against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exitlens.errors import InputError
from exitlens.types.tasks import Task, find_answers

EPS = 1e-12
SPREAD_STEPS = 12  # halvings of the range of a power


def all_finite(x: Tensor) -> bool:
    """Return whether all elements are finite: by their sum, or one by one if that overflows."""
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())


def as_distribution(x: Tensor) -> Tensor:  # (B,*S) -> (B,*S)
    """Scale non-negative maps so that each sums to 1; a map that is zero everywhere becomes uniform."""
    flat = x.flatten(1).clamp_min(0)
    total = flat.sum(1, keepdim=True)
    uniform = torch.full_like(flat, 1.0 / flat.shape[1])
    return torch.where(total > EPS, flat / total.clamp_min(EPS), uniform).view_as(x)


def find_locations(*maps: Tensor) -> Tensor | None:  # (B,*S) each -> (B,*S) bool
    """Return the positions of a sequence that are no padding: where any of the maps is not 0; ``None`` for grids."""
    return torch.stack([m != 0 for m in maps]).any(0) if maps[0].ndim == 2 else None


def energy(features: Tensor) -> Tensor:  # (B,D,*S) -> (B,*S)
    """Return the channel energy ``sum_d f_d^2`` as a distribution: attention transfer (arXiv 1612.03928, eq. 1, p=2)."""
    return as_distribution(features.float().square().sum(1))


def regrid(x: Tensor, size: tuple[int, ...]) -> Tensor:  # (B,*S) -> (B,*size)
    """Average maps over the areas of a coarser grid; the mean is kept, so renormalise a distribution afterwards."""
    old = tuple(x.shape[1:])
    if old == tuple(size):
        return x
    if len(old) != len(size) or any(new > now for new, now in zip(size, old, strict=True)):
        raise InputError(f"size: a map of {old} can only be averaged down to a coarser grid, got {tuple(size)}")
    pools: tuple[Callable[..., Tensor], ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    return pools[len(old) - 1](x[:, None], tuple(size))[:, 0]


def on_common_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two batches of distributions on the coarser of their grids (per axis), each renormalised to sum 1."""
    size = tuple(min(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True))
    return as_distribution(regrid(a, size)), as_distribution(regrid(b, size))


def geometric_mean(maps: Sequence[Tensor], sharpness: float = 1.0) -> Tensor:  # (B,*S) each -> (B,*T)
    """Return the normalised power ``sharpness`` of the geometric mean of distributions, on their coarsest grid (per axis).

    A location counts as far as all maps agree that it does. Padding (0 in all maps) stays 0. The result is detached.
    """
    size = tuple(min(sides) for sides in zip(*(each.shape[1:] for each in maps), strict=True))
    together = torch.stack([as_distribution(regrid(each.detach(), size)) for each in maps])
    logs = (sharpness * together.clamp_min(EPS).log().mean(0)).masked_fill((together == 0).all(0), -torch.inf)
    return logs.flatten(1).softmax(1).view_as(logs)


def keep_spread(maps: Tensor, share: float) -> Tensor:  # (B,*S) -> (B,*S)
    """Flatten the distributions whose perplexity, ``exp`` of the entropy, is below a ``share`` of their locations.

    They are raised to the power in [0, 1] at which the perplexity is that share, found by bisection. Padding stays 0.
    """
    locations = find_locations(maps)
    real = torch.ones_like(maps, dtype=torch.bool) if locations is None else locations
    logs = maps.clamp_min(EPS).log().masked_fill(~real, -torch.inf).flatten(1)  # (B,N)
    least = (share * real.flatten(1).sum(1)).clamp_min(1).log()
    lower, upper = torch.full_like(least, EPS), torch.ones_like(least)  # 0 times the logarithm of padding is no number

    def is_spread(power: Tensor) -> Tensor:  # (B,) -> (B,) bool
        return entropy((power[:, None] * logs).softmax(1)) >= least

    enough = is_spread(upper)
    for _ in range(SPREAD_STEPS):
        middle = (lower + upper) / 2
        good = is_spread(middle)
        lower, upper = torch.where(good, middle, lower), torch.where(good, upper, middle)
    flat = (lower[:, None] * logs).softmax(1).view_as(maps)
    return torch.where(enough.view(-1, *[1] * (maps.ndim - 1)), maps, flat)


def entropy(maps: Tensor) -> Tensor:  # (B,*S) -> (B,)
    """Return the entropy of distributions, in nats."""
    flat = maps.flatten(1)
    return -(flat * flat.clamp_min(EPS).log()).sum(1)


def place(x: Tensor, offset: Sequence[float]) -> Tensor:  # (...,*S) -> (...,*S)
    """Move maps by an offset in cells along their last axes, by linear interpolation.

    Mass that would leave the map stays in its edge cells, so that sums are kept.
    """
    for axis, by in enumerate(offset, x.ndim - len(offset)):
        if by:
            x = (x.movedim(axis, -1) @ make_shift(x.shape[axis], by).to(x)).movedim(-1, axis)
    return x


def make_shift(count: int, by: float) -> Tensor:  # -> (count,count), rows sum to 1
    """Return the matrix that moves the last axis of ``x`` by so many cells: ``x @`` the matrix."""
    goal = (torch.arange(count, dtype=torch.float64) + by).clamp(0, count - 1)
    return (1 - (goal[:, None] - torch.arange(count)).abs()).clamp_min(0)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:  # (B,*S) -> (B,*size)
    """Enlarge maps linearly, for pictures and regions of inputs; measures of agreement compare maps on the coarser grid."""
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    return F.interpolate(x[:, None].float(), tuple(size), mode=mode, align_corners=False)[:, 0]


def class_evidence(evidence: Tensor, labels: Tensor) -> Tensor:  # (B,C,*S), (B,) -> (B,*S)
    """Return the evidence of one class per sample, centred over the classes at every location: it *distinguishes* it."""
    index = labels.view(-1, 1, *[1] * (evidence.ndim - 2)).expand(-1, 1, *evidence.shape[2:])
    return evidence.gather(1, index).squeeze(1) - evidence.mean(1)


def label_evidence(evidence: Tensor, labels: Tensor) -> Tensor:  # (B,C,*S), (B,C) -> (B,*S)
    """Return the mean evidence of a sample's labels, or, if it has none, minus the mean evidence of all labels."""
    has_labels = labels.any(1, keepdim=True)
    weights = torch.where(has_labels, labels.float(), -torch.ones_like(evidence.flatten(2)[..., 0]))  # (B,C)
    weights = weights / weights.abs().sum(1, keepdim=True)
    return torch.einsum("bc,bc...->b...", weights, evidence)


def class_maps(logits: Tensor) -> Tensor:  # (B,C,h,w) -> (B,C,h,w)
    """Return for each class where its logit is large: the softmax over the locations, which sums to 1."""
    return logits.float().flatten(2).softmax(2).view_as(logits)


def present_classes(labels: Tensor, classes: int) -> Tensor:  # (B,H,W) -> (B,C) bool
    """Return the classes that any pixel of a sample has."""
    flat = labels.flatten(1).long().clamp(0, classes)  # what counts nowhere comes last
    counts = torch.zeros(
        flat.shape[0], classes + 1, dtype=torch.bool, device=labels.device
    )  # torch.export takes len as fixed
    return counts.scatter_(1, flat, True)[:, :classes]


def attend_classes(logits: Tensor) -> Tensor:  # (B,C,h,w) -> (B,h,w)
    """Return the mean of the :func:`class_maps` of the classes that are the answer anywhere: it sums to 1."""
    answered = present_classes(logits.argmax(1), logits.shape[1]).float()
    weights = answered / answered.sum(1, keepdim=True)
    return torch.einsum("bc,bchw->bhw", weights, class_maps(logits))


def top_cells(x: Tensor, fraction: float, real: Tensor | None = None) -> Tensor:  # (B,*S) -> (B,*S) bool
    """Mark the ``ceil(fraction * locations)`` largest cells of each map; ties go to the earlier cell.

    ``fraction`` is in (0, 1]; ``real`` ``(B,*S)`` bool tells locations from padding, which is never chosen.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction: expected a number in (0, 1], got {fraction}")
    flat = x.flatten(1)
    if real is None:
        keep = max(1, -int(-fraction * flat.shape[1] // 1))
        order = flat.argsort(dim=1, descending=True, stable=True)[:, :keep]
        return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True).view(x.shape)
    locations = real.flatten(1)
    order = flat.masked_fill(~locations, -torch.inf).argsort(dim=1, descending=True, stable=True)
    keeps = (fraction * locations.sum(1, keepdim=True)).ceil().clamp_min(1)  # (B,1)
    first = torch.arange(flat.shape[1], device=flat.device)[None] < keeps
    return (torch.zeros_like(locations).scatter_(1, order, first) & locations).view(x.shape)


def pool_moments(features: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, standard deviation and maximum of features ``(B,D,*S)`` over locations, ``(B,D)`` each.

    ``real`` ``(B,*S)`` bool chooses the locations, by default all; where a sample has none, all three are 0.
    """
    flat = features.flatten(2).float()
    if real is None:
        return flat.mean(2), flat.std(2, correction=0), flat.amax(2)
    keep = real.flatten(1)[:, None]  # (B,1,N)
    count = keep.sum(2).clamp_min(1)
    mean = flat.masked_fill(~keep, 0).sum(2) / count
    variance = ((flat - mean[..., None]).square() * keep).sum(2) / count
    largest = flat.masked_fill(~keep, -torch.inf).amax(2)
    return mean, variance.sqrt(), largest.masked_fill(~keep.any(2), 0)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence KL(p ‖ q) in nats of two distributions over locations."""
    p, q = p.flatten(1), q.flatten(1)
    terms = p * p.clamp_min(EPS).log() - p * q.clamp_min(EPS).log()  # xlogy's gradient at 0 would be infinite
    return terms.sum(1).clamp_min(0)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence divided by ln 2: symmetric, in [0, 1]."""
    p, q = p.flatten(1), q.flatten(1)
    middle = (p + q) / 2
    return ((kl(p, middle) + kl(q, middle)) / (2 * math.log(2))).clamp(0, 1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of two maps as vectors (the published consistency figure)."""
    return torch.cosine_similarity(a.flatten(1), b.flatten(1), dim=1, eps=EPS)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Return the Pearson correlation over locations (CC of saliency benchmarks); 0 if a map is constant."""
    real = find_locations(a, b)
    a, b = _centre(a, real), _centre(b, real)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norms > EPS, (a * b).sum(1) / norms.clamp_min(EPS), torch.zeros_like(norms))


def sim(p: Tensor, q: Tensor) -> Tensor:
    """Return the histogram intersection of two distributions (SIM of saliency benchmarks), in [0, 1]."""
    return torch.minimum(p.flatten(1), q.flatten(1)).sum(1)


def _centre(x: Tensor, real: Tensor | None) -> Tensor:  # (B,*S) -> (B,S)
    """Subtract the mean over the locations; 0 elsewhere."""
    x = x.flatten(1)
    if real is None:
        return x - x.mean(1, keepdim=True)
    inside = real.flatten(1).to(x.dtype)
    return (x - (x * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True).clamp_min(1)) * inside


def top_iou(a: Tensor, b: Tensor, fraction: float = 0.2) -> Tensor:
    """Return the intersection over union of the top ``fraction`` of cells."""
    real = find_locations(a, b)
    top_a, top_b = top_cells(a, fraction, real).flatten(1), top_cells(b, fraction, real).flatten(1)
    return (top_a & top_b).sum(1) / (top_a | top_b).sum(1)


MEASURES = {"cc": pearson, "cosine": cosine, "sim": sim, "iou": top_iou, "kl": kl, "divergence": divergence}


def uniform(maps: Tensor) -> Tensor:
    """Return uniform maps of the same shape (0 at padding): those of a head that looks nowhere in particular."""
    real = find_locations(maps)
    return as_distribution(torch.ones_like(maps) if real is None else real.to(maps.dtype))


def transplant(other: Tensor, maps: Tensor) -> Tensor:
    """Cut maps of other samples to the locations that these maps have."""
    real = find_locations(maps)
    return other if real is None else as_distribution(other * real)


def skill(value: float, null: float) -> float:
    """Return ``(m - null) / (1 - null)``: 0 is chance, 1 is perfect; NaN if the null is already perfect."""
    return (value - null) / (1 - null) if null < 1 else math.nan


def pair_samples(count: int, seed: int) -> Tensor:
    """Draw another sample for each: a random cycle, so that no sample is its own partner."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(order).scatter(0, order, order.roll(1))


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
    """Return :func:`class_score` of the answers (by default these logits'), or the sum of several labels' logits.

    Of numbers it is how far they are from their means, so that what it depends on speaks for an answer unlike the others.
    """
    if task == "regression":
        return find_answers(logits.float(), task).abs().sum(1)
    answers = choose_explained(logits, task) if answers is None else answers
    return class_score(logits, answers) if task == "classes" else (logits.float() * answers).sum(1)


def gradient_x_input(scores: Tensor, *features: Tensor, retain_graph: bool = False) -> Tensor:
    """Return what features add to the scores, to first order: gradient times value (arXiv 1605.01713), detached, float32.

    For a network that is linear from the features to the score it is exact, and sums to the score less its value at 0. Each
    of the ``scores`` ``(B,)`` comes from its own row of the features; of several, the first that they depend on counts.
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
    relevance: Tensor, attention: Tensor, share: bool, sharpness: float = 1.0, size: Sequence[int] | None = None
) -> Tensor:  # (B,*S), (B,*T) -> (B,*size), by default the coarser of the grids
    """Return the positive part of relevance to the power of ``sharpness``, as a distribution.

    With ``share`` it is multiplied by the attention, so that a location counts if it matters *and* is looked at. Signed
    values are averaged to the grid before their positive part is taken, so that what cancels within a cell leaves nothing. A
    sample whose answer depends positively on no cell keeps the attention.
    """
    common = tuple(min(m, n) for m, n in zip(relevance.shape[1:], attention.shape[1:], strict=True))
    size = common if size is None else tuple(min(m, n) for m, n in zip(common, size, strict=True))
    signed, seen = regrid(relevance, common), regrid(attention.detach().float(), common)
    target, seen = regrid(signed * seen if share else signed, size).clamp_min(0), regrid(seen, size)
    scale = target.flatten(1).amax(1).clamp_min(torch.finfo(target.dtype).tiny).view(-1, *[1] * (target.ndim - 1))
    has_any = (target.flatten(1).amax(1) > 0).view(scale.shape)
    return as_distribution(torch.where(has_any, target / scale, seen) ** sharpness)


def coarsen_map(maps: Tensor, grid: Sequence[int]) -> Tensor:  # (B,*S) -> (B,*grid)
    """Average maps to a grid, unless their own is coarser, and return their positive parts as distributions."""
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


def average_over(fractions: Sequence[float], values: Sequence[Tensor]) -> Tensor:  # (N,) for each fraction -> (N,)
    """Return the area under a curve over its width, by the trapezoid rule: the mean between the first and last fraction."""
    points = torch.tensor(fractions, dtype=torch.float64, device=values[0].device)
    curve = torch.stack([each.double() for each in values], -1)  # (N,F)
    return (torch.trapezoid(curve, points) / (points[-1] - points[0])).float()


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
