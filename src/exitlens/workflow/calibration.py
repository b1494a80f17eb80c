"""calibrate: from a trace to a frozen policy. It never touches a network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.errors import CalibrationError, DataWarning, InputError, PolicyError, require
from exitlens.functional.drift import summarize_reference
from exitlens.functional.groups import find_firsts, measure_likeness, shuffle_groups, split_groups
from exitlens.functional.risk import Budget, Risk, list_budgets, list_risks, select_exits
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.functional.scores import fit_temperatures, routed_calibration_error
from exitlens.functional.scores import score as score_logits
from exitlens.functional.thresholds.certification import FEWEST, PATH_SHARE, certify
from exitlens.functional.thresholds.path import find_held_out, split_folds
from exitlens.functional.thresholds.search import choose_gate, find_cheapest, find_safest, measure_harm, quantise
from exitlens.types import Calibration, CalibrationRequest, Policy, Temperatures, Trace
from exitlens.types.calibrations import Certification, DriftReference
from exitlens.types.requests import NEED_LABELS, Asking, SampleSketch
from exitlens.types.tasks import choose_score


def calibrate(  # noqa: PLR0913
    trace: Trace,
    *,
    max_accuracy_drop: float | None = None,
    max_class_accuracy_drop: float | None = None,
    max_false_negative_drop: float | None = None,
    max_disagreement: float | None = None,
    max_divergence: float | None = None,
    max_cost: float | None = None,
    max_ms: float | None = None,
    percentile: float | None = None,
    delta: float | None = None,
    score: str | None = None,
    temperature_scaling: bool = True,
    temperatures: Policy | Temperatures | None = None,
    gate: bool = False,
    equal_groups: bool = False,
    folds: int | None = None,
    seed: int = 0,
) -> Policy:
    """Choose per-exit thresholds on a trace.

    With limits on risks it returns the cheapest policy found that keeps all of them; with ``max_cost`` or ``max_ms`` alone,
    the policy of least risk (accuracy drop, or disagreement without labels) that spends no more; with both, the cheapest
    that keeps all.

    Without ``delta`` (**empirical mode**) the limits hold on these samples, and new ones lose more: the search finds what is
    good on its own samples partly by chance. With ``folds`` they also hold on held-out samples, each routed by what the
    others chose (cross-validation): about right for new data, on average. With ``delta`` (**certified mode**) they hold
    for the data's distribution: with probability at least ``1 - delta`` over the draw of these samples, every risk is at
    most its limit, for any network, distribution and number of samples (Pareto Testing, arXiv 2210.07913;
    docs/concepts/guarantees.md).
    ``policy.calibration`` records the request and what it rests on; ``policy.certificate()`` says it in two sentences.
    Where nothing can be certified the early exits never fire, and the policy says why and how many samples it would take.

    Where the trace names groups, only these are independent: whole groups propose or test, each test has one value for a
    group, and the promise is about the samples of new groups. Where it names none, but samples that follow one another
    look alike as frames of one video do, a :class:`~exitlens.errors.DataWarning` says so.

    Args:
        trace: independent samples (or groups of them) of the data to come, not used for training or testing.
        temperatures: a policy whose temperatures, fitted on other data, are used.

    The other arguments are the fields of :class:`~exitlens.CalibrationRequest`, which documents them.

    Raises:
        InputError: for a request that makes no sense, or that the trace cannot answer: no labels, timing or groups.
        CalibrationError: if no policy keeps every limit (empirical mode) or a budget (certified mode); for fewer than 10
            samples or groups in certified mode; for a limit that needs labels and a label that no sample has; if
            ``temperatures`` were fitted on samples of this trace.
        PolicyError: if ``temperatures`` are of another network.
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    if isinstance(temperatures, Policy):
        temperatures.check(trace.num_exits, trace.network, trace.task)
        record = temperatures.calibration
        fitted_on = () if record is None else record.fitted_on
        temperatures = Temperatures(temperatures.temperatures, fitted_on, temperatures.network)
    elif temperatures is not None:
        require(temperatures, Temperatures, "temperatures", "pass a policy whose temperatures were fitted on other data")
    request = CalibrationRequest(
        max_accuracy_drop=max_accuracy_drop,
        max_class_accuracy_drop=max_class_accuracy_drop,
        max_false_negative_drop=max_false_negative_drop,
        max_disagreement=max_disagreement,
        max_divergence=max_divergence,
        max_cost=max_cost,
        max_ms=max_ms,
        percentile=percentile,
        delta=delta,
        score=score,
        temperature_scaling=temperature_scaling,
        temperatures=temperatures,
        gate=gate,
        equal_groups=equal_groups,
        folds=folds,
        seed=seed,
    )
    return run_calibration(trace, request)


def run_calibration(trace: Trace, request: CalibrationRequest) -> Policy:
    """Do what :func:`calibrate` does, for a request as ``policy.calibration.request`` keeps it."""
    require(trace, Trace, "trace", "see exitlens.collect")
    _require_positives(trace, request)
    if request.equal_groups and trace.groups is None:
        raise InputError("equal_groups: this trace names no groups. Fix: collect it with groups, or leave equal_groups out.")
    budgets = list_budgets(trace, request.max_cost, request.max_ms, request.percentile)
    choice = _choose_by_samples(trace, request, budgets) if request.delta is None else _certify(trace, request, budgets)
    return _record(trace, request, choice)


class _Choice(NamedTuple):
    """What either mode of calibration came to: a policy without its record, and what the record is made of.

    ``scores`` ``(N,K-1)`` are those of the early exits under the policy.
    """

    policy: Policy
    fitted_on: tuple[SampleSketch, ...]
    risks: Sequence[Risk]
    scores: Tensor
    certification: Certification | None = None
    held_out: dict[str, float] | None = None


def _choose_by_samples(trace: Trace, request: CalibrationRequest, budgets: Sequence[Budget]) -> _Choice:
    """Empirical mode: limits hold on these samples, and with folds on held-out ones, too."""
    every, held_out = torch.arange(len(trace)), None
    folds = None if request.folds is None else split_folds(trace, request.folds, request.seed)
    risks = list_risks(trace, request.risk_limits, every)
    draft, fitted_on = _draft(trace, request, every, risks)
    scores = score_early_exits(trace, draft)
    if folds is not None:
        thresholds, held_out = find_held_out(scores, risks, trace.cost, budgets, folds)
    else:
        levels = quantise(scores)
        best = find_cheapest(levels, risks, trace.cost, budgets) if risks else find_safest(levels, trace, budgets)
        thresholds = levels.thresholds(best.cuts)
    return _Choice(replace(draft, thresholds=thresholds), fitted_on, risks, scores, held_out=held_out)


def _certify(trace: Trace, request: CalibrationRequest, budgets: Sequence[Budget]) -> _Choice:
    """Certified mode: some samples (or groups) propose a path of policies, and the others test it."""
    assert request.delta is not None
    groups = _order_groups(trace, request.seed)
    if trace.groups is None:
        _warn_of_families(trace)
    first, second = _split_samples(len(trace), request.seed) if groups is None else split_groups(groups, PATH_SHARE)
    risks = list_risks(trace, request.risk_limits, second)
    spending = _list_promised(budgets, len(trace), bool(risks))
    level, asking = _find_level(trace, request, request.delta)
    if groups is not None:
        risks, spending = (
            [risk.name_groups(groups, first, equal=request.equal_groups) for risk in kind] for kind in (risks, spending)
        )
    draft, fitted_on = _draft(trace, request, first, risks)
    scores = score_early_exits(trace, draft)
    harm = trace.cost if risks else measure_harm(trace)
    thresholds, certification = certify(scores, [*risks, *spending], harm, first, second, level)
    certification = replace(certification, delta=request.delta, asking=asking)
    cost = trace.cost[find_first_firing(scores, thresholds)].double().mean().item()
    is_affordable = request.max_cost is None or cost <= request.max_cost + 1e-6
    if asking > len(trace.askings):
        trace.askings.append(Asking(request, level, not certification.reason and is_affordable))
    if spending and certification.reason:  # the full network, which may always answer, is too slow
        raise CalibrationError(f"max_ms: no policy could be certified within {request.max_ms:g} ms: {certification.reason}")
    if not is_affordable:
        raise CalibrationError(
            f"max_cost: the cheapest policy that can be certified costs {cost:.3g}, more than {request.max_cost:.3g}. Fix: "
            f"collect more samples ({len(trace)} now), or raise a limit, and delta with it."
        )
    return _Choice(replace(draft, thresholds=thresholds), fitted_on, risks, scores, certification)


def _find_level(trace: Trace, request: CalibrationRequest, delta: float) -> tuple[float, int]:
    """Return the level to test at, and the number of this asking among those of the trace's samples.

    As the fallback procedure does (Wiens 2003): what was granted keeps its level for the next asking, what was refused has
    spent it. So the probability that any certificate is wrong which these samples give is at most the largest ``delta``.
    """
    for number, asking in enumerate(trace.askings, 1):
        if asking.request == request:
            return asking.level, number
    spent = sum(asking.level for asking in trace.askings if not asking.granted)
    if delta - spent < 1e-6:
        raise CalibrationError(
            f"delta: these samples refused a certificate before, which spent a level of {spent:.3g}, so nothing is left of "
            f"{delta:g}: asking until one is given would spoil it. Fix: collect new samples, or pass delta above "
            f"{spent:.3g}. Next time ask for the loosest limit first: stricter ones cost nothing until one is refused."
        )
    return delta - spent, len(trace.askings) + 1


def _draft(
    trace: Trace, request: CalibrationRequest, rows: Tensor, risks: Sequence[Risk]
) -> tuple[Policy, tuple[SampleSketch, ...]]:
    """Return a policy without thresholds whose temperatures and gate are fitted on ``rows``, and what they rest on."""
    score = choose_score(request.score, trace.task)
    temperatures, fitted_on = _choose_temperatures(trace, request, rows)
    policy = Policy.never(trace.num_exits, score=score, temperatures=temperatures, network=trace.network)
    return replace(policy, gate=choose_gate(trace, policy, rows, risks) if request.gate else None), fitted_on


def _choose_temperatures(
    trace: Trace, request: CalibrationRequest, rows: Tensor
) -> tuple[tuple[float, ...], tuple[SampleSketch, ...]]:
    given = request.temperatures
    if given is not None:
        if given.network and trace.network and given.network != trace.network:
            raise PolicyError(
                f"temperatures: they were fitted for network {given.network}, this trace is of {trace.network}"
            )
        if any(map(trace.shares_samples, given.fitted_on)):
            raise CalibrationError(
                "temperatures: they were fitted on samples of this trace. Fix: calibrate on samples that nothing was fitted "
                "on, or leave temperatures out (they are then fitted on a part that is not tested)."
            )
        return given.values, given.fitted_on
    if not request.temperature_scaling or trace.labels is None:
        return (1.0,) * trace.num_exits, ()
    return fit_temperatures(trace.logits, trace.labels, rows), (trace.sketch(),)


def _require_positives(trace: Trace, request: CalibrationRequest) -> None:
    """Raise :class:`CalibrationError` if a limit is about labels, and none of the samples has one of them."""
    needing = [name for name in request.risk_limits if name in NEED_LABELS]
    if trace.task != "multilabel" or trace.labels is None or not needing:
        return
    missing = (~trace.labels.any(0)).nonzero().flatten().tolist()
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise CalibrationError(
            f"labels: none of the {len(trace)} samples has label {shown}, so {needing[0]} would say nothing of missing it. "
            "Fix: collect samples that have it, or leave its column out of logits and labels."
        )


def _list_promised(budgets: Sequence[Budget], count: int, beside_risks: bool) -> list[Risk]:
    """Return the budgets that a certificate has to cover, as risks; those that no policy exceeds need no test."""
    promised = [budget for budget in budgets if budget.is_promised]
    if promised and not beside_risks and all(budget.is_kept_by_all for budget in promised):
        raise InputError(
            "delta: no exit takes longer than max_ms, so there is nothing to certify. Fix: leave delta out, or limit a risk."
        )
    return [budget.to_risk(count) for budget in promised if not budget.is_kept_by_all]


def _order_groups(trace: Trace, seed: int) -> Tensor | None:
    """Return the groups in random order, or ``None`` if no two samples share one, so that samples count."""
    if trace.groups is None or trace.num_groups == len(trace):
        return None
    if trace.num_groups < FEWEST:
        raise CalibrationError(
            f"trace: {trace.num_groups} groups can certify nothing, however many samples they have ({len(trace)}). Fix: "
            f"collect {FEWEST} groups or more, better some hundred."
        )
    return shuffle_groups(trace.groups, seed)


def _warn_of_families(trace: Trace) -> None:
    likeness = measure_likeness(trace)
    if likeness is not None and likeness.is_suspicious:
        apart = "follow one another" if likeness.lag == 1 else f"come {likeness.lag} apart"
        warnings.warn(
            f"trace: samples of one answer that {apart} look alike (rank of their distance {likeness.rank:.2f}, of "
            "independent samples 0.5), as frames of one video or pictures of one object do. Then the certificate does not "
            "hold for new objects: name the groups (collect(..., groups=...), --group-by). If the data are only sorted, by "
            "kind or by date, nothing is wrong",
            DataWarning,
            stacklevel=5,
        )


def _split_samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the samples that propose policies, and of those that test them."""
    if count < FEWEST:
        raise CalibrationError(
            f"trace: {count} samples can certify nothing. Fix: collect {FEWEST} or more, better some hundred."
        )
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first = max(1, round(PATH_SHARE * count))
    return rows[:first], rows[first:]


def _record(trace: Trace, request: CalibrationRequest, choice: _Choice) -> Policy:
    """Return the chosen policy with its record: what was asked for, and what it does on the trace."""
    policy = choice.policy
    exits = find_first_firing(choice.scores, policy.thresholds)
    # scores as predictions report them, with a gate or without
    plain = choice.scores if policy.gate is None else score_early_exits(trace, replace(policy, gate=None))
    final = score_logits(trace.logits[:, -1], policy.score, policy.temperatures[-1])
    scores = torch.cat([plain, final[:, None]], 1)
    classes = sum(risk.rows is not None for risk in choice.risks)
    record = Calibration(
        request,
        samples=len(trace),
        distinct_samples=_count_distinct(trace),
        data=trace.fingerprint(),
        cost=trace.cost[exits].double().mean().item(),
        rule=policy.rule(),
        calibration_error=None if trace.labels is None else routed_calibration_error(trace, policy.temperatures, exits),
        classes=(classes, trace.logits.shape[2]) if classes else None,
        fitted_on=choice.fitted_on,
        reference=_summarize_units(trace, exits, select_exits(scores, exits)),
        certification=choice.certification,
        groups=trace.num_groups if trace.num_groups < len(trace) else None,
        timing=trace.timing,
        held_out=choice.held_out,
    )
    return replace(policy, calibration=record)


def _count_distinct(trace: Trace) -> int:
    """Samples with logits of their own; with groups only logits that come in two groups count as repeated."""
    hashes = trace.hash_samples()
    if trace.groups is None:
        return len(set(hashes))
    in_groups = set(zip(hashes, trace.groups.tolist(), strict=True))
    return len(trace) - (len(in_groups) - len(set(hashes)))


def _summarize_units(trace: Trace, exits: Tensor, scores: Tensor) -> DriftReference:
    """The drift monitor's reference: all samples, or the first of each group."""
    if trace.groups is not None:
        rows = find_firsts(trace.groups)
        exits, scores = exits[rows], scores[rows]
    return summarize_reference(exits, scores, trace.num_exits)
