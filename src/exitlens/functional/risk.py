"""Risks: the mean loss of samples by leaving at the exits they take, and limits on it; and budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor

from exitlens.errors import CalibrationError, InputError, suggest
from exitlens.functional.groups import average_groups, sum_groups, weigh_samples
from exitlens.functional.pixels import average_iou, count_classes, measure_missed
from exitlens.types import Trace
from exitlens.types.settings import MISSED_AREA, NUMBER_LIMITS, PIXEL_LIMITS, VECTOR_LIMITS
from exitlens.types.traces import AnswerSummary, ExitLatency, format_ms

ROOM = 1e-6  # costs are float32
PART = 4096  # samples whose counts are added to those of their groups at once


@dataclass(frozen=True)
class Risk:
    """One risk of a routing, and the limit on it."""

    name: str
    values: Tensor  # (N,K) each sample's loss at each exit; 0 at the final one, unless it is absolute or spending
    limit: float  # on the mean, in [0, 1]
    kind: Literal["binary", "ternary", "unit", "signed"]  # losses are 0 or 1; -1, 0 or 1; in [0, 1]; in [-1, 1]
    rows: Tensor | None = None  # (N,) bool: the samples in the mean; None: all
    groups: Tensor | None = None  # (N,) in [0, G), numbered at random; None: all samples are independent
    largest: int | None = None  # a group's weight is its size, capped at this; None: all groups weigh the same
    is_absolute: bool = False  # of the exit alone, so that even the final exit may exceed the limit

    def at(self, where: Tensor) -> Self:
        """Return the same risk on some of the samples (indices)."""
        rows, groups = (None if column is None else column[where] for column in (self.rows, self.groups))
        return replace(self, values=self.values[where], rows=rows, groups=groups)

    def with_groups(self, groups: Tensor, first: Tensor, *, equal: bool) -> Self:
        """Return the risk over groups, weighted by size (at most the largest group's in ``first``), or all equally."""
        present = groups[first] if self.rows is None else groups[first][self.rows[first]]
        largest = int(present.bincount().max()) if len(present) else 1
        return replace(self, groups=groups, largest=None if equal else largest)

    def losses(self, exits: Tensor) -> Tensor:  # (N,) -> (n,)
        """Return the losses of its samples at the exits they take."""
        losses = select_exits(self.values, exits)
        return losses if self.rows is None else losses[self.rows]

    def mean(self, exits: Tensor) -> float:  # (N,)
        """Return the risk on these samples; NaN if it is about none of them."""
        groups = self._select_groups()
        weights = 1.0 if groups is None else weigh_samples(groups, self.largest)
        return (self.losses(exits).double() * weights).mean().item()

    def units(self, exits: Tensor) -> Tensor:  # (N,) -> (n,)
        """Return one value of at most 1 for each independent unit (a sample, or else a group), for a test of their mean.

        The expected value exceeds the limit exactly if the risk does. For groups of size n (capped at ``largest``) and mean
        loss m, the risk is E[n m] / E[n]. It exceeds the limit exactly if E[limit + n (m - limit) / largest] does.
        """
        losses, groups = self.losses(exits), self._select_groups()
        if groups is None:
            return losses
        means, sizes = average_groups(losses, groups)
        if self.largest is None:
            return means
        return self.limit + sizes.clamp_max(self.largest) / self.largest * (means - self.limit)

    def column(self) -> Tensor:  # -> (N,K)
        """Return values whose mean over all samples is the risk."""
        values, groups = self.values, self._select_groups()
        if groups is not None:
            weights = values.new_zeros(len(values))
            where = slice(None) if self.rows is None else self.rows
            weights[where] = weigh_samples(groups, self.largest).to(values.dtype)
            values = values * weights[:, None]
        if self.rows is None:
            return values
        return values * self.rows[:, None] * (len(self.rows) / max(1, int(self.rows.sum())))

    def _select_groups(self) -> Tensor | None:
        return self.groups if self.groups is None or self.rows is None else self.groups[self.rows]


@dataclass(frozen=True)
class PooledRisk(Risk):
    """A risk of images whose tiles leave each for itself and are counted together.

    ``values`` are what a tile adds to its image's loss if all others go to the end. They order policies; whether a limit is
    kept is decided by the losses themselves. In a group of several images each of them counts, as for whole images.
    """

    counts: Tensor = field(kw_only=True)  # (N,K,*M), which add up over the tiles of an image
    images: Tensor = field(kw_only=True)  # (N,) integers
    measure: Callable[[Tensor], Tensor] = field(kw_only=True)  # of an image's counts (n,*M), its loss (n,)

    def at(self, where: Tensor) -> Self:
        """Return the same risk on some of the samples (indices)."""
        return replace(super().at(where), counts=self.counts[where], images=self.images[where])

    def with_groups(self, groups: Tensor, first: Tensor, *, equal: bool) -> Self:
        """Return the risk over groups, weighted by their numbers of images, or all equally."""
        proposing = replace(self, groups=groups).at(first)._select_groups()
        largest = int(proposing.bincount().max()) if proposing is not None and len(proposing) else 1
        return replace(self, groups=groups, largest=None if equal else largest)

    def losses(self, exits: Tensor) -> Tensor:  # (N,) -> (n,)
        """Return the loss of every image, less the final exit's unless the risk is absolute."""
        rows = torch.arange(len(exits)) if self.rows is None else self.rows.nonzero()[:, 0]
        losses = self.measure(sum_groups(self.counts[rows, exits[rows]], self.images[rows]))
        return losses if self.is_absolute else losses - self.measure(sum_groups(self.counts[rows, -1], self.images[rows]))

    def column(self) -> Tensor:  # -> (N,K)
        """Return values whose mean over all samples is near the risk, and the risk itself where losses add up over tiles."""
        images, groups = self._number_images(), self._select_groups()
        count, column = int(images.max()) + 1 if len(images) else 0, torch.zeros_like(self.values)
        weights = torch.ones(count, dtype=torch.float64) if groups is None else weigh_samples(groups, self.largest)
        where = slice(None) if self.rows is None else self.rows
        scale = weights[images] * (len(self.values) / max(1, count))
        column[where] = self.values[where] * scale[:, None].to(column.dtype)
        return column

    def _number_images(self) -> Tensor:  # -> (m,) of the samples that count, in [0, n)
        numbers: Tensor = (self.images if self.rows is None else self.images[self.rows]).unique(return_inverse=True)[1]
        return numbers

    def _select_groups(self) -> Tensor | None:  # -> (n,) of each image
        groups = super()._select_groups()
        if groups is None or not len(groups):
            return groups
        images = self._number_images()
        return groups.new_empty(int(images.max()) + 1).scatter_(0, images, groups)  # all tiles of one have the same


@dataclass(frozen=True)
class Budget:
    """A limit on the mean price of the exits that are taken."""

    name: str  # in words, for the records of tests
    asked: str  # the request in words, for errors
    prices: Tensor  # (K,) in [0, 1], never falling
    limit: float  # on their mean
    is_promised: bool = False  # by a certificate; otherwise it holds on the samples at hand

    @property
    def is_kept_by_all(self) -> bool:
        """True if no policy can exceed it."""
        return self.prices[-1].item() <= self.limit

    def keeps(self, exits: Tensor) -> bool:  # (N,)
        """Return whether the mean price of these exits is within the limit."""
        return self.prices[exits].mean().item() <= self.limit + ROOM

    @property
    def last_free(self) -> int | None:
        """The last exit without a price, if the limit is on the share of samples that go further."""
        return None if self.is_kept_by_all or self.prices[0] > 0 else int((self.prices == 0).sum()) - 1

    def to_risk(self, count: int) -> Risk:
        """Return the budget as a risk of ``count`` samples, so that it can be tested; leaving early lowers this risk."""
        values = self.prices.float().expand(count, -1)
        return Risk(self.name, values, self.limit, "binary" if bool(((values == 0) | (values == 1)).all()) else "unit")


def accuracy_drop(trace: Trace) -> Tensor:  # -> (N,K)
    """Return ``1[exit wrong] - 1[final wrong]``, in {-1, 0, 1}; its mean is the accuracy lost by answering at that exit.

    With one class a pixel it is the share of an image's pixels that are wrong, less the final exit's, in [-1, 1].
    """
    accuracy = trace.require_accuracy("accuracy_drop")
    return accuracy[:, -1:] - accuracy


def false_negatives(answers: Tensor, labels: Tensor) -> Tensor:  # (N,...,C), (N,...,C) bool -> (N,...)
    """Return the share of a sample's labels that an answer lacks; 0 for a sample without labels."""
    return (labels & ~answers).sum(-1).float() / labels.sum(-1).clamp_min(1)


def false_negative_drop(trace: Trace) -> Tensor:  # -> (N,K)
    """Return the share of a sample's labels that the exit misses, less the final exit's, in [-1, 1]."""
    labels = trace.require_labels("max_false_negative_drop")
    if trace.task != "multilabel":
        raise InputError("max_false_negative_drop: it is for several labels a sample. Fix: pass max_accuracy_drop instead.")
    missed = false_negatives(trace.answers, labels[:, None])
    return missed - missed[:, -1:]


def disagreement(trace: Trace) -> Tensor:  # -> (N,K)
    """Return ``1[answer differs from the final exit's]``, with several labels in any of them; the data needs no labels.

    With one class a pixel it is the share of an image's pixels that differ, in [0, 1], and of numbers and vectors their
    distance from the final exit's, at most 1.
    """
    return trace.disagreement


def pixel_error_drop(trace: Trace, limit: float) -> Risk:
    """Return the risk that more of an image's (or a tile's) labelled pixels are wrong than at the final exit, as a share."""
    labelled = find_labelled(trace, "max_pixel_error_drop")
    return Risk("max_pixel_error_drop", accuracy_drop(trace), limit, "signed", None if labelled.all() else labelled)


def find_labelled(trace: Trace, purpose: str) -> Tensor:  # -> (N,) bool
    """Return which images have a labelled pixel; nothing can be said of the others, so they count nowhere."""
    labelled = trace.require_confusion(purpose)[:, 0].sum((1, 2)) > 0
    if not labelled.any():
        raise InputError(f"labels: {purpose} needs labelled pixels and no image has any. Fix: check the masks.")
    return labelled


def missed_area(trace: Trace, name: str, limit: float) -> Risk:
    """Return the risk that an exit misses of a class's pixels, as a share of them, on the images that have any.

    Unlike the others, it is that of the exit alone: the final exit's own misses count, too.
    """
    counts, classes = trace.require_confusion("max_missed_area"), trace.classes
    label = classes.index(name) if name in classes else int(name) if name.isdecimal() else -1
    if not 0 <= label < counts.shape[-1]:
        known = f"{', '.join(classes)} or a number below {counts.shape[-1]}" if classes else f"0 to {counts.shape[-1] - 1}"
        raise InputError(f"max_missed_area: expected classes among {known}, got {name!r}.{suggest(name, classes)}")
    if not counts[:, 0, label].any():
        raise CalibrationError(
            f"max_missed_area: no image has {name!r}, so nothing can be said of missing it. Fix: collect some that have it."
        )
    area = counts[..., label, :].sum(-1)
    missed = torch.stack([area - counts[..., label, label], area], -1)  # (N,K,2)
    risk = Risk(f"{MISSED_AREA}{name}", measure_missed(counts, label), limit, "unit", is_absolute=True)
    return _count_images(trace, risk, missed, lambda sums: sums[..., 0].float() / sums[..., 1].clamp_min(1), area[:, 0] > 0)


def mean_iou_drop(trace: Trace, limit: float) -> Risk:
    """Return the risk of losing an image's mean IoU: the final exit's, over the classes of its label, less the exit's."""
    labelled, counts = find_labelled(trace, "max_miou_drop"), count_classes(trace.require_confusion("max_miou_drop"))
    losses = -average_iou(counts)
    risk = Risk("max_miou_drop", losses - losses[:, -1:], limit, "signed")
    return _count_images(trace, risk, counts, lambda sums: -average_iou(sums), labelled)


def _count_images(trace: Trace, risk: Risk, counts: Tensor, measure: Callable[[Tensor], Tensor], has_part: Tensor) -> Risk:
    """Return the risk of the images that have a part in it ``(N,)``, by counts ``(N,K,*M)`` of images or of their tiles."""
    if trace.images is None:
        return replace(risk, rows=None if has_part.all() else has_part)
    images, values = trace.images.unique(return_inverse=True)[1], list[Tensor]()
    final, sizes = sum_groups(counts[:, -1], images), images.bincount()
    for rows in torch.arange(len(trace)).split(PART):
        whole, tiles = final[images[rows], None], counts[rows].long()
        alone = measure(whole + tiles - tiles[:, -1:]) - measure(whole)
        values.append(alone + measure(whole) / sizes[images[rows], None] * risk.is_absolute)
    rows = torch.zeros(len(sizes), dtype=torch.bool).index_fill_(0, images[has_part], True)[images]
    known = {"values": torch.cat(values), "rows": None if rows.all() else rows}
    return PooledRisk(**vars(risk) | known, counts=counts, images=images, measure=measure)


def answer_risk(trace: Trace, name: str, limit: float) -> Risk:
    """Return a risk of numbers or vectors, clipped to [0, 1], and an increase of error to [-1, 1]."""
    kept = trace.logits
    assert isinstance(kept, AnswerSummary)  # limits of other tasks were refused
    if name == "max_error_increase":
        if kept.error is None:
            raise InputError(f"labels: {name} needs targets and this trace has none: collect it on labelled data")
        return Risk(name, (kept.error - kept.error[:, -1:]).clamp(-1, 1), limit, "signed")
    if name == "max_rank_change":
        if kept.overlap is None:
            raise InputError(f"{name}: this trace has no probes. Fix: collect it with probes=, vectors of the final exit.")
        return Risk(name, 1 - kept.overlap, limit, "unit")
    return Risk(name, trace.disagreement, limit, "unit")


def has_swaps(trace: Trace) -> bool:
    """Return whether any of the trace's samples was swapped."""
    return bool(trace.swaps) and bool((trace.swaps["unit"] >= 0).any())


def cue_drop(trace: Trace, limit: float) -> Risk:
    """Return the risk ``1[answer changes under the swap] - 1[final answer changes]``, of the samples that were swapped."""
    if not has_swaps(trace):
        raise InputError("max_cue_drop: this trace has no swaps. Fix: collect it with swapped=2000 (--swapped 2000)")
    changed = trace.swaps["changed"].float()
    return Risk("max_cue_drop", changed - changed[:, -1:], limit, "ternary", trace.swaps["unit"] >= 0)


def select_exits(values: Tensor, exits: Tensor) -> Tensor:  # (N,K), (N,) -> (N,)
    """Return the value of every sample at the exit it takes."""
    return values.gather(1, exits[:, None]).squeeze(1)


def list_risks(trace: Trace, limits: Mapping[str, float], rows: Tensor) -> list[Risk]:
    """Return the limited risks; a limit on every class makes a risk for each class among the deciding ``rows``."""
    risks = []
    for name, limit in limits.items():
        if name == "max_accuracy_drop":
            risks.append(Risk(name, accuracy_drop(trace), limit, "ternary"))
        elif name == "max_disagreement":
            risks.append(Risk(name, disagreement(trace), limit, "unit" if trace.task == "segmentation" else "binary"))
        elif name in PIXEL_LIMITS:
            risks.append(pixel_error_drop(trace, limit) if name == "max_pixel_error_drop" else mean_iou_drop(trace, limit))
        elif name in (*NUMBER_LIMITS, *VECTOR_LIMITS):
            risks.append(answer_risk(trace, name, limit))
        elif name.startswith(MISSED_AREA):
            risks.append(missed_area(trace, name.removeprefix(MISSED_AREA), limit))
        elif name == "max_divergence":
            if trace.num_exits > 1 and not trace.has_maps:
                raise InputError("max_divergence: the network's exits have no maps that could differ. Fix: leave it out.")
            risks.append(Risk(name, trace.divergence.clamp(0, 1), limit, "unit"))
        elif name == "max_cue_drop":
            risks.append(cue_drop(trace, limit))
        elif name == "max_false_negative_drop":
            risks.append(Risk(name, false_negative_drop(trace), limit, "signed"))
        elif trace.task == "classes":
            labels, drop = trace.require_labels(name), accuracy_drop(trace)
            classes = labels[rows].unique().tolist()
            risks += [Risk(f"{name}, class {c}", drop, limit, "ternary", labels == c) for c in classes]
        else:  # missing a label, in the samples that have it
            labels, missed = trace.require_labels(name), (~trace.answers).float()
            drops, present = missed - missed[:, -1:], labels[rows].any(0).nonzero().flatten().tolist()
            risks += [Risk(f"{name}, class {c}", drops[..., c], limit, "ternary", labels[:, c]) for c in present]
    return risks


def list_budgets(trace: Trace, max_cost: float | None, max_ms: float | None, percentile: float | None) -> list[Budget]:
    """Return the budgets, or raise :class:`CalibrationError` if not even the first exit keeps them."""
    budgets = []
    if max_cost is not None:
        if max_cost + ROOM < (first := trace.cost[0].item()):
            raise CalibrationError(
                f"max_cost: got {max_cost:.3g}, but the first exit alone costs {first:.3g} of the backbone. Fix: pass more."
            )
        # costs above 1 (heads) are prices, too; as shares of the largest they are in [0, 1]
        top, asked = trace.cost[-1].double().item(), f"max_cost {max_cost:g}"
        budgets.append(Budget("mean cost over the final exit's", asked, trace.cost.double() / top, max_cost / top))
    if max_ms is not None:
        if trace.timing is None:
            raise InputError("max_ms: this trace has no measured times: collect it with cost='time' (--cost time)")
        budgets.append(_limit_time(trace.timing, max_ms, percentile))
    return budgets


def _limit_time(timing: ExitLatency, max_ms: float, percentile: float | None) -> Budget:
    ms = torch.tensor(timing.ms, dtype=torch.float64)
    if max_ms < timing.ms[0]:
        raise CalibrationError(
            f"max_ms: got {max_ms:g}, but even the first exit takes {format_ms(timing.ms[0])} ms ({timing.where()}). Fix: "
            f"allow {timing.ms[0]:.4g} ms or more, or take a faster network or smaller batches."
        )
    if percentile is None:
        return Budget("mean time over the final exit's", f"max_ms {max_ms:g}", ms / ms[-1], max_ms / timing.ms[-1], True)
    asked = f"max_ms {max_ms:g} for {percentile:g} % of the samples"
    return Budget(f"share of samples slower than {max_ms:g} ms", asked, (ms > max_ms).double(), 1 - percentile / 100, True)
