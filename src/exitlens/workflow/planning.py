"""plan_samples: how many calibration samples a certificate takes, before they are collected or from those at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import binom
from torch import Tensor

from exitlens.errors import CalibrationError, InputError, require
from exitlens.functional.calibration import check_likeness, run_calibration
from exitlens.functional.certification import FEWEST, PATH_SHARE, SPARE, binomial, paired
from exitlens.functional.groups import join_units
from exitlens.functional.routing import route
from exitlens.functional.scores import fit_temperatures
from exitlens.progress import show_progress
from exitlens.types import CalibrationRequest, SamplePlan, Temperatures, Trace
from exitlens.types.plans import CHANCE, PlannedCase, PlannedSize
from exitlens.types.settings import COUNT, check_number
from exitlens.types.traces import number_groups

STEP, REACH, LEAST_REACH = 2**0.5, 8, 1000  # from one size to the next; the largest, in sizes of the trace, and at least
LOST, DIFFERING = (0.0, 0.25, 0.5, 0.75), (0.02, 0.05, 0.1, 0.2)  # what is assumed without a trace
MOST = 10_000_000  # samples; more are none that anybody collects


def plan_samples(
    request: CalibrationRequest, trace: Trace | None = None, *, draws: int = 40, seed: int = 0, progress: bool = False
) -> SamplePlan:
    """Tell how many samples (or groups) the certificate that is asked for takes, and what it would save.

    With a trace, calibration is repeated on samples that are drawn from it with replacement (Efron 1979), in sizes from 10
    to eight times the trace (1,000 at least): how often it gives a certificate, and what the policy then costs on the whole
    trace. The number needed is read off a rising line through the shares that got one. It is about samples like these: a
    small trace knows little of the rest, and beyond its own size it repeats itself, so that costs are somewhat too good. If
    the trace names groups, whole groups are drawn. No certificate is asked for, so that ``delta`` is not spent, and the
    trace stays good for calibration.

    Without a trace, the number follows from what early answers lose: for the safest policy, whose losses the test sees,
    at the chance of 0.9, by the binomial or the paired test of docs/concepts/guarantees.md.

    Args:
        request: with ``delta`` and limits; without a trace, ``max_accuracy_drop`` or ``max_disagreement`` alone.
        trace: any samples of the data to come, such as a first batch of them.
        draws: of each size; a quarter beyond two sizes in turn at which all got a certificate, which tell only the cost.
        seed: of these draws.

    Raises:
        InputError: no ``delta``, or a limit that needs a trace, or for which the trace lacks what :func:`exitlens.calibrate`
            would miss, too.

    Examples:
        >>> request = xl.CalibrationRequest(max_disagreement=0.1, delta=0.1)
        >>> print(xl.plan_samples(request))
        37 independent samples if early answers lose nothing, more if they do
        >>> xl.plan_samples(request, trace, draws=5).at_hand
        64
    """
    require(request, CalibrationRequest, "request")
    check_number("draws", draws, COUNT)
    if request.delta is None:
        raise InputError("request: without delta nothing is certified, so any samples will do. Fix: pass delta=0.1.")
    if trace is None:
        return SamplePlan(request, cases=tuple(_list_cases(request, request.delta)))
    require(trace, Trace, "trace", "see exitlens.collect")
    check_likeness(trace)
    if trace.num_exits < 2:
        raise InputError("trace: its network has no early exits, so there is nothing to certify. Fix: attach one.")
    asked = request
    labels = trace.class_labels
    if request.temperatures is None and request.temperature_scaling and labels is not None:
        values = fit_temperatures(trace.class_logits, labels, torch.arange(len(trace)))  # once, not in every draw
        asked = replace(request, temperatures=Temperatures(values))
    draw = _Draws(trace, asked)
    allowed = run_calibration(trace, replace(asked, delta=None, equal_groups=False)).calibration
    assert allowed is not None
    sizes: list[PlannedSize] = []
    with show_progress(progress) as bar:
        steps = _list_sizes(draw.count)
        task = bar.add_task("calibrating on drawn samples", total=sum(steps))
        for number, units in enumerate(steps):
            rng = torch.Generator().manual_seed(seed + number)
            is_sure = [size.certified for size in sizes[-2:]] == [1.0, 1.0]
            count = math.ceil(draws / 4) if is_sure else draws
            advance = partial(bar.advance, task, units / count)
            outcomes = [draw.try_calibration(units, rng, advance) for _ in range(count)]
            costs = np.array([cost for _, cost in outcomes])
            low, high = np.quantile(costs, (0.1, 0.9)).tolist()
            sizes.append(PlannedSize(units, sum(got for got, _ in outcomes) / count, float(costs.mean()), low, high))
    return SamplePlan(request, draw.unit, draw.count, find_needed(sizes), tuple(sizes), allowed.cost)


class _Draws:
    """Draws samples or groups of a trace with replacement, and calibrates on them."""

    def __init__(self, trace: Trace, request: CalibrationRequest) -> None:
        self._trace, self._request = trace, request
        units = trace.groups if trace.num_groups < len(trace) else None
        if request.max_cue_drop is not None and trace.swaps:
            units = join_units(units, trace.swaps["unit"])
        numbers = torch.arange(len(trace)) if units is None else units.unique(return_inverse=True)[1]
        self.count = int(numbers.max()) + 1
        self.unit = "samples" if self.count == len(trace) else "groups"
        if request.max_cue_drop is not None:
            self.unit = "independent units (two swapped samples or more)"
        self._order, self._sizes = numbers.argsort(stable=True), numbers.bincount()
        self._starts = self._sizes.cumsum(0) - self._sizes

    def try_calibration(self, units: int, rng: torch.Generator, advance: Callable[[], None]) -> tuple[bool, float]:
        """Return whether so many units got a certificate, and the cost of the policy on the whole trace."""
        advance()
        drawn = torch.randint(self.count, (units,), generator=rng)
        sizes = self._sizes[drawn]
        place = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        rows = self._order[self._starts[drawn].repeat_interleave(sizes) + place]
        sample = _tell_apart(self._trace.select(rows), torch.arange(units).repeat_interleave(sizes))
        try:
            policy = run_calibration(sample, replace(self._request, seed=int(torch.randint(2**31, (1,), generator=rng))))
        except CalibrationError:  # too few, or no policy within a budget
            return False, self._trace.cost[-1].item()
        assert policy.calibration is not None
        assert policy.calibration.certification is not None
        cost = self._trace.cost[route(self._trace, policy)].double().mean().item()
        return not policy.calibration.certification.reason, cost


def _tell_apart(sample: Trace, copy: Tensor) -> Trace:
    """Return the sample with groups, and units of swaps, of their own for every unit that was drawn."""
    if sample.groups is None and not sample.swaps:
        return sample
    if sample.swaps:
        unit = sample.swaps["unit"]
        sample = replace(sample, swaps={**sample.swaps, "unit": torch.where(unit < 0, unit, _number(unit, copy))})
    groups, images = (None if ids is None else _number(ids, copy) for ids in (sample.groups, sample.images))
    return replace(sample, groups=groups, images=images)


def _number(ids: Tensor, copy: Tensor) -> Tensor:
    return number_groups(copy * (int(ids.max()) + 1) + ids)


def _list_sizes(count: int) -> list[int]:
    """List sizes from the least on by equal factors, and the number at hand itself."""
    steps = math.ceil(math.log(max(REACH * count, LEAST_REACH) / FEWEST, STEP)) + 1
    return sorted({round(FEWEST * STEP**i) for i in range(steps)} | ({count} if count >= FEWEST else set()))


def find_needed(sizes: list[PlannedSize]) -> int | None:
    """Return the size at which a rising line through the shares, linear in the logarithm of the size, reaches the chance."""
    line = isotonic_regression([size.certified for size in sizes]).x
    if line[-1] < CHANCE:
        return None
    after = int((line >= CHANCE).argmax())
    if after == 0:
        return sizes[0].units
    ends = math.log(sizes[after - 1].units), math.log(sizes[after].units)
    return math.ceil(math.exp(np.interp(CHANCE, line[after - 1 : after + 1], ends)))


def _list_cases(request: CalibrationRequest, delta: float) -> Iterator[PlannedCase]:
    limits = request.limits
    if len(limits) > 1 or not limits.keys() <= {"max_accuracy_drop", "max_disagreement"} or request.equal_groups:
        asked = " and ".join([*limits, *(["equal_groups"] if request.equal_groups else [])])
        raise InputError(
            f"trace: how much {asked} vary, only a trace says. Fix: pass one (--bundle), or max_accuracy_drop or "
            "max_disagreement alone."
        )
    ((name, limit),) = limits.items()
    if limit == 0:
        raise InputError(f"{name}: that nothing at all is lost can never be shown. Fix: raise the limit.")
    for share in LOST:
        lost = share * limit
        for differing in DIFFERING if name == "max_accuracy_drop" else (lost,):
            if differing >= lost:
                passes = partial(_passes, lost, differing, limit, delta, is_paired=name == "max_accuracy_drop")
                yield PlannedCase(lost, differing, _find_least(passes))


def _find_least(passes: Callable[[int], bool]) -> int | None:
    """Return the least number of samples, as many as propose a path counted, with which the test passes."""
    high = FEWEST
    while not passes(high):
        if (high := 2 * high) > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return max(FEWEST, math.ceil(high / (1 - PATH_SHARE)))


def _passes(lost: float, differing: float, limit: float, delta: float, count: int, *, is_paired: bool) -> bool:
    """Return whether a test on so many samples passes with the chance that is planned for, of losses that are known."""
    if not is_paired:
        return binomial(binom.ppf(CHANCE, count, lost) / count, count, limit) <= delta
    # among the pairs that differ, as many as are usual, this many speak against the early answer at most
    pairs = round(count * differing)
    more = int(binom.ppf(CHANCE, pairs, (differing + lost) / (2 * differing)))
    return paired(more, pairs - more, count, limit, spare=min(SPARE, delta / 20)) <= delta
