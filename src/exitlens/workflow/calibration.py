"""calibrate: from a trace to a frozen policy. It never touches a network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import CalibrationError, DataWarning, InputError, require
from exitlens.functional.drift import summarize_reference
from exitlens.functional.grouping.groups import find_firsts, shuffle_groups, split_groups
from exitlens.functional.grouping.likeness import measure_likeness
from exitlens.functional.limits import check_limits, require_positives
from exitlens.functional.risk import Budget, Risk, list_budgets, list_risks, select_exits
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.functional.scores import fit_temperatures, score
from exitlens.functional.thresholds.certification import FEWEST, PATH_SHARE, certify
from exitlens.functional.thresholds.holdout import find_held_out, split_folds
from exitlens.functional.thresholds.search import choose_gate, find_cheapest, find_safest, measure_harm, quantise
from exitlens.types import Calibration, Policy, Trace
from exitlens.types.calibrations import Certification, DriftReference, SampleSketch
from exitlens.types.tasks import choose_score


def calibrate(
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
    temperatures: Policy | None = None,
    gate: bool = False,
    equal_groups: bool = False,
    folds: int | None = None,
    seed: int = 0,
) -> Policy:
    """Chooses per-exit thresholds on a trace.

    With limits on risks it returns the cheapest policy found that keeps all of them; with ``max_cost`` or ``max_ms`` alone,
    the policy of least risk (accuracy drop, or disagreement without labels) that spends no more; with both, the cheapest
    that keeps all, or an error if there is none.

    Without ``delta`` (empirical mode) the limits hold on these samples, and new ones lose more: the search finds what is
    good on its own samples partly by chance. With ``folds`` they also hold on held-out samples, each routed by what the
    others chose (cross-validation): about right for new data, on average. With ``delta`` (**certified mode**) they hold
    for the data's distribution: with probability at least ``1 - delta`` over the draw of these samples, every risk is at
    most its limit, for any network, distribution and number of samples (Pareto Testing, arXiv 2210.07913;
    docs/concepts/guarantees.md).
    ``policy.calibration`` records what was promised and by which tests; ``policy.certificate()`` says it in two sentences.
    Where nothing can be certified the early exits never fire, and the policy says why and how many samples it would take.

    Where the trace names groups, only these are independent: whole groups propose or test, each test has one value for a
    group, and the promise is about the samples of new groups. Where it names none, but samples that follow one another
    look alike as frames of one video do, a :class:`~exitlens.DataWarning` says so.

    Args:
        trace: independent samples (or groups of them) of the data to come, not used for training or testing.
        max_accuracy_drop: limit in [0, 1] on final accuracy minus routed accuracy; needs labels. Of several labels, an
            answer is right if all of them are (subset accuracy).
        max_class_accuracy_drop: the same for the samples of every class; needs labels. Of several labels, how much more
            often each is missed in the samples that have it.
        max_false_negative_drop: of several labels: limit in [0, 1] on the mean share of a sample's labels that the answer
            lacks, less that which the final exit's lacks (0 for samples that have none); needs labels.
        max_disagreement: limit in [0, 1] on the share of answers that differ from the final exit's.
        max_divergence: limit in [0, 1] on the mean divergence of the attention map at the exit taken.
        max_cost: limit on the mean cost, as a fraction of the plain backbone's, on these samples.
        max_ms: limit in milliseconds on what a batch takes at the exits taken, by the trace's timing (``collect(...,
            cost="time")``): of every sample counts the time of a batch that leaves at its exit. Without ``percentile`` their
            mean is limited: for single samples (``timing.batch_size`` 1) the mean latency, for larger batches about the
            mean time of a batch. The times are taken as they were measured; what is certified is which exits samples take.
        percentile: in (0, 100]: at least this many of 100 samples take an exit whose time is at most ``max_ms``.
        delta: in (0, 1): how likely the promise may be wrong; at least one limit on a risk, or ``max_ms``, is needed.
        score: ``max_probability`` (the default), ``entropy`` or ``margin``; of several labels ``decided``.
        temperature_scaling: first fit a temperature for each exit by NLL (needs labels; skipped without them). Certified
            mode fits on the samples that propose the path, which do not test it.
        temperatures: a policy whose temperatures, fitted on other data, are used instead.
        gate: also fit a :class:`~exitlens.types.Gate`, which lets exits fire only where their map is estimated to be near
            the final one, and keep it if it makes the policy cheaper; needs ``max_divergence``. Fitted on the same samples
            as the temperatures.
        equal_groups: certify means over groups, large or small: of a sample in a new group drawn at random. By default a
            group counts as its size, so that the promise is about new samples, as reports measure it; a group larger than
            all that proposed the path counts as the largest of them.
        folds: parts of the samples (or groups); each in turn is routed by thresholds that the others choose, and over all of
            them the limits hold on average. 5 or 10 are usual; the search is made once more for each.
            Temperatures and gate are fitted on all samples.
        seed: of the split into samples (or groups) that propose the path and those that test it, or into folds.

    Raises:
        InputError: no limit, a limit or ``delta`` out of range, or labels missing for a limit that needs them; ``max_ms``
            for a trace without timing; ``percentile`` without it; ``equal_groups`` without groups or without ``delta``;
            ``folds`` with ``delta`` or without a limit on a risk.
        CalibrationError: if no policy keeps every limit (empirical mode), ``max_cost`` or ``max_ms`` (certified mode: none
            that can be certified); for fewer than 10 samples or groups in certified mode; for a limit that needs labels and
            a label that no sample has; if ``temperatures`` were fitted on samples of this trace. PolicyError: if they are of
            another network.
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    given = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_class_accuracy_drop": max_class_accuracy_drop,
        "max_false_negative_drop": max_false_negative_drop,
        "max_disagreement": max_disagreement,
        "max_divergence": max_divergence,
    }
    spend: Any = {"max_cost": max_cost, "max_ms": max_ms, "percentile": percentile}
    limits = check_limits(given, **spend, delta=delta, score=score, gate=gate, folds=folds)
    score = choose_score(score, trace.task)
    require_positives(trace, limits)
    require(temperature_scaling, bool, "temperature_scaling")
    _check_equal_groups(trace, delta, equal_groups)
    budgets = list_budgets(trace, **spend)
    groups = _order_groups(trace, delta, seed)
    if delta is not None and trace.groups is None:
        _warn_of_families(trace)
    first, second = _split_samples(len(trace), delta, seed) if groups is None else split_groups(groups, PATH_SHARE)
    parts = None if folds is None else split_folds(trace, folds, seed)
    risks = list_risks(trace, limits, first if delta is None else second)
    spent = [] if delta is None else _list_promised(budgets, len(trace), bool(risks))
    if groups is not None:
        risks, spent = ([one.name_groups(groups, first, equal=equal_groups) for one in some] for some in (risks, spent))
    fitted, fitted_on = _choose_temperatures(trace, first, temperature_scaling, temperatures)
    unset = Policy.never(trace.num_exits, score=score, temperatures=fitted, network=trace.network)
    unset = replace(unset, gate=choose_gate(trace, unset, first, risks) if gate else None)
    scores, certification, held_out = score_early_exits(trace, unset), None, None
    if delta is None:
        thresholds, held_out = _search(scores, risks, trace, budgets, parts)
    else:
        harm = trace.cost if risks else measure_harm(trace)
        thresholds, certification = certify(scores, [*risks, *spent], harm, first, second, delta)
        _check_spent(certification, spent, max_ms)
    asked = limits | {name: spend[name] for name in ("max_cost", "max_ms") if spend[name] is not None}
    named = trace.num_groups if trace.num_groups < len(trace) else None
    record = Calibration(asked, len(trace), seed=seed, fitted_on=fitted_on, certification=certification, groups=named)
    record = replace(record, percentile=percentile, timing=trace.timing, folds=folds, held_out=held_out)
    return _record(trace, replace(unset, thresholds=thresholds), record, risks, scores)


def _search(
    scores: Tensor, risks: Sequence[Risk], trace: Trace, budgets: Sequence[Budget], folds: Tensor | None
) -> tuple[tuple[float, ...], dict[str, float] | None]:
    """Thresholds in empirical mode, and with folds what held-out samples lost."""
    if folds is not None:
        return find_held_out(scores, risks, trace.cost, budgets, folds)
    levels = quantise(scores)
    best = find_cheapest(levels, risks, trace.cost, budgets) if risks else find_safest(levels, trace, budgets)
    return levels.thresholds(best.cuts), None


def _list_promised(budgets: Sequence[Budget], count: int, beside_risks: bool) -> list[Risk]:
    """Budgets that a certificate has to cover, as risks; those that no policy exceeds need no test."""
    promised = [one for one in budgets if one.is_promised]
    if promised and not beside_risks and all(one.is_kept_by_all for one in promised):
        raise InputError(
            "delta: no exit takes longer than max_ms, so there is nothing to certify: leave delta out, or limit a risk"
        )
    return [one.to_risk(count) for one in promised if not one.is_kept_by_all]


def _check_spent(certification: Certification, spent: Sequence[Risk], max_ms: float | None) -> None:
    """Raises :class:`CalibrationError` if nothing was certified: the full network, which may always answer, is too slow."""
    if spent and certification.reason:
        raise CalibrationError(f"max_ms: no policy could be certified within {max_ms:g} ms: {certification.reason}")


def _check_equal_groups(trace: Trace, delta: float | None, equal_groups: bool) -> None:
    require(equal_groups, bool, "equal_groups")
    if equal_groups and (delta is None or trace.groups is None):
        what = "this trace names no groups" if trace.groups is None else "it is about a certificate: give delta"
        raise InputError(f"equal_groups: {what}, or leave equal_groups out")


def _order_groups(trace: Trace, delta: float | None, seed: int) -> Tensor | None:
    """The groups in random order; ``None`` where a certificate counts samples, as it also does if no two share a group."""
    if delta is None or trace.groups is None or trace.num_groups == len(trace):
        return None
    _check_seed(seed)
    if trace.num_groups < FEWEST:
        raise CalibrationError(
            f"trace: {trace.num_groups} groups can certify nothing, however many samples they have ({len(trace)}): collect "
            f"{FEWEST} groups or more, better some hundred"
        )
    return shuffle_groups(trace.groups, seed)


def _warn_of_families(trace: Trace) -> None:
    found = measure_likeness(trace)
    if found is not None and found.is_suspicious:
        apart = "follow one another" if found.lag == 1 else f"come {found.lag} apart"
        warnings.warn(
            f"trace: samples of one answer that {apart} look alike (rank of their distance {found.rank:.2f}, of independent "
            "samples 0.5), as frames of one video or pictures of one object do. Then the certificate does not hold for new "
            "objects: name the groups (collect(..., groups=...), --group-by). If the data are only sorted, by kind or by "
            "date, nothing is wrong",
            DataWarning,
            stacklevel=3,
        )


def _split_samples(count: int, delta: float | None, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the samples that propose policies, and of those that test them (none in empirical mode)."""
    if delta is not None and count < FEWEST:
        raise CalibrationError(f"trace: {count} samples can certify nothing: collect {FEWEST} or more, better some hundred")
    _check_seed(seed)
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first = count if delta is None else max(1, round(PATH_SHARE * count))
    return rows[:first], rows[first:]


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed: expected an integer of 0 or more, below 2**63, got {seed!r}")


def _choose_temperatures(
    trace: Trace, rows: Tensor, scale: bool, given: Policy | None
) -> tuple[tuple[float, ...], tuple[SampleSketch, ...]]:
    """A temperature for each exit, and the samples that they were fitted on."""
    if given is not None:
        require(given, Policy, "temperatures", "a policy whose temperatures were fitted on other data")
        given.check(trace.num_exits, trace.network, trace.task)
        before = () if given.calibration is None else given.calibration.fitted_on
        if any(samples.overlaps(trace) for samples in before):
            raise CalibrationError(
                "temperatures: they were fitted on samples of this trace: calibrate on samples that nothing was fitted on, "
                "or leave temperatures out (they are then fitted on a part that is not tested)"
            )
        return given.temperatures, before
    if not scale or trace.labels is None:
        return (1.0,) * trace.num_exits, ()
    return fit_temperatures(trace.logits, trace.labels, rows), (SampleSketch.from_trace(trace),)


def _record(trace: Trace, policy: Policy, record: Calibration, risks: Sequence[Risk], scores: Tensor) -> Policy:
    """The policy with its record completed by what it does on the trace; ``scores`` ``(N,K-1)`` are the early exits'.

    Raises :class:`CalibrationError` if it costs more than was asked for.
    """
    exits = find_first_firing(scores, policy.thresholds)
    # scores as predictions report them, with a gate or without
    plain = scores if policy.gate is None else score_early_exits(trace, replace(policy, gate=None))
    final = score(trace.logits[:, -1], policy.score, policy.temperatures[-1])
    scores = torch.cat([plain, final[:, None]], 1)
    cost, max_cost = trace.cost[exits].double().mean().item(), record.limits.get("max_cost")
    if record.certification is not None and max_cost is not None and cost > max_cost + 1e-6:
        raise CalibrationError(
            f"max_cost: the cheapest policy that can be certified costs {cost:.3g}, more than {max_cost:.3g}: raise a limit "
            f"or delta, or collect more samples ({len(trace)} now)"
        )
    classes = sum(risk.rows is not None for risk in risks)
    record = replace(
        record,
        distinct_samples=_count_distinct(trace),
        data=trace.fingerprint(),
        cost=cost,
        rule=policy.rule(),
        classes=(classes, trace.logits.shape[2]) if classes else None,
        reference=_summarize_units(trace, exits, select_exits(scores, exits)),
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
