"""Risks: what a sample loses by leaving at an exit, the mean of that under a routing, and limits on it; budgets likewise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from exitlens.errors import CalibrationError, InputError, require
from exitlens.functional.grouping.groups import average_groups, weigh_samples
from exitlens.types import SCORES, Trace
from exitlens.types.timings import Timing, format_ms

ROOM = 1e-6  # costs are float32


@dataclass(frozen=True)
class Risk:
    """One risk of a routing, and the limit on it.

    Attributes:
        values: ``(N,K)``: what each sample loses at each exit; 0 at the final one, but for what is spent.
        limit: on the mean, in [0, 1].
        kind: ``binary``: 0 or 1; ``ternary``: -1, 0 or 1; ``unit``: in [0, 1].
        rows: ``(N,)`` bool: the samples whose mean it is; ``None``: all.
        groups: ``(N,)`` in [0, G), numbered so that the order says nothing about the losses; ``None``: all samples are
            independent.
        largest: a group counts as its size, at most as this; ``None``: every group counts the same.
    """

    name: str
    values: Tensor
    limit: float
    kind: Literal["binary", "ternary", "unit"]
    rows: Tensor | None = None
    groups: Tensor | None = None
    largest: int | None = None

    def at(self, where: Tensor) -> Risk:
        """The same risk on some of the samples (indices)."""
        rows, groups = (None if one is None else one[where] for one in (self.rows, self.groups))
        return replace(self, values=self.values[where], rows=rows, groups=groups)

    def name_groups(self, groups: Tensor, first: Tensor, *, equal: bool) -> Risk:
        """The same risk with groups; of different size, they count as that, at most as the largest among ``first``."""
        there = groups[first] if self.rows is None else groups[first][self.rows[first]]
        largest = int(there.bincount().max()) if len(there) else 1
        return replace(self, groups=groups, largest=None if equal else largest)

    def losses(self, exits: Tensor) -> Tensor:  # (N,) -> (n,)
        """What the samples that it is about lose at the exits they take."""
        found = select_exits(self.values, exits)
        return found if self.rows is None else found[self.rows]

    def mean(self, exits: Tensor) -> float:  # (N,)
        """The risk on these samples; NaN where it is about none of them."""
        losses = self.losses(exits).double()
        if self.groups is None:
            return losses.mean().item()
        return (losses * weigh_samples(self._their_groups(), self.largest)).mean().item()

    def units(self, exits: Tensor) -> Tensor:  # (N,) -> (n,)
        """A value for each independent unit, at most 1: the risk is above its limit exactly where their mean is.

        A unit is a sample or a group. A group's value is the mean of its losses, drawn towards the limit as far as it counts
        for less than the largest: of groups with sizes n and means m, the ratio E[n m] / E[n] is above the limit exactly
        where E[limit + n (m - limit) / largest] is.
        """
        losses = self.losses(exits)
        if self.groups is None:
            return losses
        means, sizes = average_groups(losses, self._their_groups())
        if self.largest is None:
            return means
        return self.limit + sizes.clamp_max(self.largest) / self.largest * (means - self.limit)

    def column(self) -> Tensor:  # -> (N,K)
        """Values whose mean over all samples is the risk."""
        found = self.values
        if self.groups is not None:
            weights = found.new_zeros(len(found))
            where = slice(None) if self.rows is None else self.rows
            weights[where] = weigh_samples(self._their_groups(), self.largest).to(found.dtype)
            found = found * weights[:, None]
        if self.rows is None:
            return found
        return found * self.rows[:, None] * (len(self.rows) / max(1, int(self.rows.sum())))

    def _their_groups(self) -> Tensor:
        assert self.groups is not None
        return self.groups if self.rows is None else self.groups[self.rows]


@dataclass(frozen=True)
class Budget:
    """A limit on the mean price of the exits that are taken.

    Attributes:
        name: in words, for the records of tests. asked: what was asked for, for errors.
        prices: ``(K,)`` in [0, 1], never falling. limit: on their mean.
        is_promised: whether a certificate covers it; otherwise it holds on the samples at hand.
    """

    name: str
    asked: str
    prices: Tensor
    limit: float
    is_promised: bool = False

    @property
    def is_kept_by_all(self) -> bool:
        """Whether no policy can exceed it."""
        return self.prices[-1].item() <= self.limit

    def keeps(self, exits: Tensor) -> bool:  # (N,)
        """Whether the mean price of these exits is within the limit."""
        return self.prices[exits].mean().item() <= self.limit + ROOM

    @property
    def last_free(self) -> int | None:
        """The last exit that adds nothing, where a limit is on the share of samples that go further."""
        return None if self.is_kept_by_all or self.prices[0] > 0 else int((self.prices == 0).sum()) - 1

    def to_risk(self, count: int) -> Risk:
        """As the risk of ``count`` samples, for tests: unlike other risks, leaving early lowers it."""
        values = self.prices.float().expand(count, -1)
        return Risk(self.name, values, self.limit, "binary" if bool(((values == 0) | (values == 1)).all()) else "unit")


def predictions(trace: Trace) -> Tensor:  # -> (N,K)
    """The class each exit answers (a temperature never changes it)."""
    return trace.logits.argmax(-1)


def accuracy_drop(trace: Trace) -> Tensor:  # -> (N,K)
    """``1[exit wrong] - 1[final wrong]``, in {-1, 0, 1}; its mean is the accuracy lost by answering at that exit."""
    labels = trace.require_labels("accuracy_drop")
    wrong = (predictions(trace) != labels[:, None]).float()
    return wrong - wrong[:, -1:]


def disagreement(trace: Trace) -> Tensor:  # -> (N,K)
    """``1[answer differs from the final exit's]``; needs no labels."""
    answers = predictions(trace)
    return (answers != answers[:, -1:]).float()


def select_exits(values: Tensor, exits: Tensor) -> Tensor:  # (N,K), (N,) -> (N,)
    """The value of every sample at the exit it takes."""
    return values.gather(1, exits[:, None]).squeeze(1)


def list_risks(trace: Trace, limits: Mapping[str, float], rows: Tensor) -> list[Risk]:
    """The risks that are limited; for a limit on every class, one for each class among the ``rows`` that decide."""
    risks = []
    for name, limit in limits.items():
        if name == "max_accuracy_drop":
            risks.append(Risk(name, accuracy_drop(trace), limit, "ternary"))
        elif name == "max_disagreement":
            risks.append(Risk(name, disagreement(trace), limit, "binary"))
        elif name == "max_divergence":
            if trace.num_exits > 1 and not trace.has_maps:
                raise InputError("max_divergence: the network's exits have no maps that could differ: leave it out")
            risks.append(Risk(name, trace.divergence.clamp(0, 1), limit, "unit"))
        else:
            labels, drop = trace.require_labels(name), accuracy_drop(trace)
            classes = labels[rows].unique().tolist()
            risks += [Risk(f"{name}, class {c}", drop, limit, "ternary", labels == c) for c in classes]
    return risks


def list_budgets(trace: Trace, max_cost: float | None, max_ms: float | None, percentile: float | None) -> list[Budget]:
    """The budgets that were asked for.

    Raises:
        InputError: for ``max_ms`` where the trace has no timing. CalibrationError: where not even the first exit is within.
    """
    found = []
    if max_cost is not None:
        if max_cost + ROOM < trace.cost[0]:
            first = f"the first exit alone costs {trace.cost[0].item():.3g} of the backbone"
            raise CalibrationError(f"max_cost: got {max_cost:.3g}, but {first}")
        # costs above 1 (heads) are prices, too; as shares of the largest they are in [0, 1]
        top = trace.cost[-1].double().item()
        found.append(
            Budget("mean cost over the final exit's", f"max_cost {max_cost:g}", trace.cost.double() / top, max_cost / top)
        )
    if max_ms is not None:
        if trace.timing is None:
            raise InputError("max_ms: this trace has no measured times: collect it with cost='time' (--cost time)")
        found.append(_limit_time(trace.timing, max_ms, percentile))
    return found


def _limit_time(timing: Timing, max_ms: float, percentile: float | None) -> Budget:
    ms = torch.tensor(timing.ms, dtype=torch.float64)
    if max_ms < timing.ms[0]:
        raise CalibrationError(
            f"max_ms: got {max_ms:g}, but even the first exit takes {format_ms(timing.ms[0])} ms ({timing.where()}): allow "
            f"{timing.ms[0]:.4g} ms or more, or take a faster network or smaller batches"
        )
    if percentile is None:
        return Budget("mean time over the final exit's", f"max_ms {max_ms:g}", ms / ms[-1], max_ms / timing.ms[-1], True)
    asked = f"max_ms {max_ms:g} for {percentile:g} % of the samples"
    return Budget(f"share of samples slower than {max_ms:g} ms", asked, (ms > max_ms).double(), 1 - percentile / 100, True)


def check_limits(
    given: Mapping[str, float | None],
    *,
    max_cost: float | None = None,
    max_ms: float | None = None,
    percentile: float | None = None,
    delta: float | None = None,
    score: str = "max_probability",
    gate: bool = False,
    folds: int | None = None,
) -> dict[str, float]:
    """The limits that are not ``None``, checked with the other arguments of :func:`exitlens.calibrate`.

    Needs no trace, so a bad request is refused (:class:`InputError`) before anything is collected.
    """
    limits = {name: value for name, value in given.items() if value is not None}
    if not limits and max_cost is None and max_ms is None:
        raise InputError(f"limits: expected at least one of {', '.join(given)}, max_cost or max_ms, got none")
    for name, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{name}: expected a number in [0, 1] (0.01 is one per cent), got {value!r}")
    _check_budgets(max_cost, max_ms, percentile, delta)
    if score not in SCORES:
        raise InputError(f"score: expected one of {SCORES}, got {score!r}")
    if delta is not None:
        if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
            raise InputError(f"delta: expected a number between 0 and 1 (0.1: the promise holds with 90 %), got {delta!r}")
        if not limits and max_ms is None:
            raise InputError("delta: it certifies limits on risks: give max_accuracy_drop or another one, beside max_cost")
    require(gate, bool, "gate")
    if gate and "max_divergence" not in limits:
        raise InputError("gate: it lowers the divergence of early answers: give max_divergence, too")
    if folds is not None and (delta is not None or not limits):
        why = "they are about limits on risks: give one" if delta is None else "delta promises more: give one of the two"
        raise InputError(f"folds: {why}, or leave folds out")
    if folds is not None and (isinstance(folds, bool) or not isinstance(folds, int) or folds < 2):
        raise InputError(f"folds: expected an integer of 2 or more, such as 5, got {folds!r}")
    return limits


def _check_budgets(max_cost: float | None, max_ms: float | None, percentile: float | None, delta: float | None) -> None:
    if max_cost is not None and not (_is_number(max_cost) and 0 <= max_cost <= 1):
        raise InputError(f"max_cost: expected a number in [0, 1] (0.01 is one per cent), got {max_cost!r}")
    if max_ms is not None and not (_is_number(max_ms) and 0 < max_ms < float("inf")):
        raise InputError(f"max_ms: expected milliseconds above 0, got {max_ms!r}")
    if percentile is None:
        return
    if max_ms is None:
        raise InputError("percentile: it says how many samples are to be answered within max_ms: give max_ms, too")
    if not (_is_number(percentile) and 0 < percentile <= 100):
        raise InputError(f"percentile: expected a number above 0, at most 100 (95: of 100 samples 95), got {percentile!r}")
    if percentile == 100 and delta is not None:
        raise InputError("percentile: that all samples are fast can never be shown from some: with delta, less than 100")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
