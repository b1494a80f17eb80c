"""Calibration: from a trace and a request to a policy with its record."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from exitlens.errors import CalibrationError, DataWarning, InputError, PolicyError
from exitlens.functional import search
from exitlens.functional.certification import FEWEST, PATH_SHARE, certify
from exitlens.functional.drift import summarize_reference
from exitlens.functional.groups import find_firsts, join_units, measure_likeness, shuffle_groups, split_trace
from exitlens.functional.risk import Budget, Risk, disagreement, list_budgets, list_risks, select_exits
from exitlens.functional.routing import (
    find_first_firing,
    fit_gate,
    match_confidences,
    score_early_exits,
    stack_trace_features,
)
from exitlens.functional.scores import fit_temperatures, routed_calibration_error
from exitlens.functional.scores import score as score_logits
from exitlens.types import Calibration, CalibrationRequest, Policy, Trace
from exitlens.types.policies import Certification
from exitlens.types.settings import (
    MISSED_AREA,
    NEED_LABELS,
    NUMBER_LIMITS,
    PIXEL_LIMITS,
    SAMPLE_LIMITS,
    VECTOR_LIMITS,
    CertificateRequest,
    SampleSketch,
)
from exitlens.types.tasks import ANSWERS, BY_LABELS, WITH_CLASSES, Task, choose_score


def run_calibration(trace: Trace, request: CalibrationRequest) -> Policy:
    """Calibrate as :func:`exitlens.calibrate` does, for a request as ``policy.calibration.request`` keeps it."""
    _check_task(trace, request)
    request = request.name_classes(trace.classes or tuple(map(str, range(trace.logits.shape[2]))))
    limits_of_labels = [name for name in request.risk_limits if name in NEED_LABELS]
    if trace.task == "multilabel" and trace.labels is not None and limits_of_labels:
        missing = (~trace.labels.any(0)).nonzero().flatten().tolist()
        if missing:
            shown = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise CalibrationError(
                f"labels: none of the {len(trace)} samples has label {shown}, so {limits_of_labels[0]} would say nothing of "
                "missing it. Fix: collect samples that have it, or leave its column out of logits and labels."
            )
    if request.equal_groups and trace.groups is None:
        raise InputError("equal_groups: this trace names no groups. Fix: name them (with_groups), or leave it out.")
    budgets = list_budgets(trace, request.max_cost, request.max_ms, request.percentile)
    if request.delta is not None:
        check_likeness(trace)
    choice = _choose_by_samples(trace, request, budgets) if request.delta is None else _certify(trace, request, budgets)
    return _record(trace, request, choice)


def _check_task(trace: Trace, request: CalibrationRequest) -> None:
    """Raise :class:`InputError` for what is asked of another task than the trace's."""
    kinds: dict[tuple[Task, ...], tuple[str, ...]] = {
        BY_LABELS: SAMPLE_LIMITS,
        ("segmentation",): (*PIXEL_LIMITS, MISSED_AREA),
        ("regression",): NUMBER_LIMITS,
        ("embedding",): VECTOR_LIMITS,
        WITH_CLASSES: ("max_disagreement",),
    }
    fitting, has = next(kinds[tasks] for tasks in kinds if trace.task in tasks), f"this trace has {ANSWERS[trace.task]}"
    for tasks, limits in kinds.items():
        foreign = [name for name in request.risk_limits if name.startswith(limits)]
        if foreign and trace.task not in tasks:
            what = " or ".join(ANSWERS[task] for task in tasks)
            raise InputError(f"{foreign[0]}: it is for {what}, {has}. Fix: pass {fitting[0]} or {fitting[1]}.")
    temperatures, is_classes = request.temperatures, trace.task in BY_LABELS
    if request.gate and not is_classes:
        raise InputError(f"gate: it is for classes or labels of whole samples, {has}. Fix: leave it out.")
    if temperatures is not None and not is_classes and set(temperatures.values) != {1.0}:
        raise InputError(f"temperatures: they are all 1 where logits are not kept, and {has}. Fix: leave them out.")


def check_likeness(trace: Trace) -> None:
    """Warn if the trace names no groups, but successive samples look alike."""
    likeness = measure_likeness(trace) if trace.groups is None else None
    if likeness is not None and likeness.is_suspicious:
        apart = "follow one another" if likeness.lag == 1 else f"come {likeness.lag} apart"
        warnings.warn(
            f"trace: samples of one answer that {apart} look alike (rank of their distance {likeness.rank:.2f}, of "
            "independent samples 0.5), as frames of one video or pictures of one object do. Then the certificate does not "
            "hold for new objects. Fix: name the groups (trace.with_groups(...), --group-by). If the data are only "
            "sorted, by kind or by date, nothing is wrong.",
            DataWarning,
            stacklevel=4,
        )


class _Choice(NamedTuple):
    """The outcome of either mode: a policy without its record, and what goes into the record."""

    policy: Policy
    fitted_on: tuple[SampleSketch, ...]
    risks: Sequence[Risk]
    scores: Tensor  # (N,K-1), of the early exits under the policy
    certification: Certification | None = None
    held_out: dict[str, float] | None = None


def _choose_by_samples(trace: Trace, request: CalibrationRequest, budgets: Sequence[Budget]) -> _Choice:
    """Choose in empirical mode: limits hold on these samples, and with folds also on held-out ones."""
    every, held_out = torch.arange(len(trace)), None
    folds = None if request.folds is None else search.split_folds(trace, request.folds, request.seed)
    risks = list_risks(trace, request.risk_limits, every)
    draft, fitted_on = _draft(trace, request, every)
    scores = score_early_exits(trace, draft)
    if folds is not None:
        thresholds, held_out = search.choose_by_folds(scores, risks, trace.cost, budgets, folds)
    else:
        levels = search.quantise(scores)
        best = (
            search.find_cheapest(levels, risks, trace.cost, budgets) if risks else search.find_safest(levels, trace, budgets)
        )
        thresholds = levels.thresholds(best.cuts)
    return _Choice(replace(draft, thresholds=thresholds), fitted_on, risks, scores, held_out=held_out)


def _certify(trace: Trace, request: CalibrationRequest, budgets: Sequence[Budget]) -> _Choice:
    """Choose in certified mode: some samples (or groups) propose a path of policies, and the others test it."""
    assert request.delta is not None
    if trace.num_groups < FEWEST:
        is_grouped = trace.num_groups < len(trace)
        unit, samples = ("groups", f" (of {len(trace)} samples)") if is_grouped else ("samples", "")
        raise CalibrationError(
            f"trace: {trace.num_groups} {unit}{samples} are too few to certify anything. Fix: collect {FEWEST} {unit} or "
            "more, preferably some hundreds."
        )
    units = None
    if request.max_cue_drop is not None and trace.swaps:  # swaps make groups depend on one another, in this risk alone
        units = join_units(trace.groups, trace.swaps["unit"])
        if (count := len(units[trace.swaps["unit"] >= 0].unique())) < FEWEST:
            raise CalibrationError(
                f"max_cue_drop: the swapped samples form {count} independent units, too few to certify anything. Fix: swap "
                "more samples, and give collect data that have groups rather than name groups afterwards."
            )
    units, proposing, testing = split_trace(trace, PATH_SHARE, request.seed, units)
    risks = list_risks(trace, request.risk_limits, testing)
    promised = [budget for budget in budgets if budget.is_promised]
    spending = [budget.to_risk(len(trace)) for budget in promised if not budget.is_kept_by_all]
    if promised and not spending and not risks:
        raise InputError(
            "delta: no exit takes longer than max_ms, so there is nothing to certify. Fix: leave delta out, or limit a risk."
        )
    level, number = _find_level(trace, request, request.delta)
    groups = (
        shuffle_groups(trace.groups, request.seed) if trace.groups is not None and trace.num_groups < len(trace) else None
    )

    def count_units(risk: Risk) -> Risk:
        known = units if risk.name == "max_cue_drop" else groups
        return risk if known is None else risk.with_groups(known, proposing, equal=request.equal_groups)

    risks, spending = list(map(count_units, risks)), list(map(count_units, spending))
    draft, fitted_on = _draft(trace, request, proposing)
    scores = score_early_exits(trace, draft)
    price = trace.cost if risks else search.default_loss(trace)
    thresholds, certification = certify(scores, [*risks, *spending], price, proposing, testing, groups, level=level)
    certification = replace(certification, delta=request.delta, request_number=number)
    cost = trace.cost[find_first_firing(scores, thresholds)].double().mean().item()
    is_affordable = request.max_cost is None or cost <= request.max_cost + 1e-6
    is_granted = not certification.reason and is_affordable
    asked = CertificateRequest(request, level, is_granted, trace.hash_units())
    trace.certificate_requests[number - 1 : number] = [asked]
    if spending and certification.reason:  # the full network, which may always answer, is too slow
        raise CalibrationError(f"max_ms: no policy could be certified within {request.max_ms:g} ms: {certification.reason}")
    if not is_affordable:
        raise CalibrationError(
            f"max_cost: the cheapest policy that can be certified costs {cost:.3g}, more than {request.max_cost:.3g}. Fix: "
            f"collect more samples ({len(trace)} now), or raise a limit, and delta with it."
        )
    return _Choice(replace(draft, thresholds=thresholds), fitted_on, risks, scores, certification)


def _find_level(trace: Trace, request: CalibrationRequest, delta: float) -> tuple[float, int]:
    """Return the level to test at, and the number of this request among those made of the trace's samples.

    By the fallback procedure (Wiens 2003; see docs/concepts/guarantees.md), a certificate that was granted passes
    its level on to the next request, and one that was refused has spent it. So the probability that any certificate from
    these samples is wrong is at most the largest ``delta``.
    """
    for number, earlier in enumerate(trace.certificate_requests, 1):
        if (earlier.request, earlier.units) == (request, trace.hash_units()):
            return earlier.level, number
    spent = sum(earlier.level for earlier in trace.certificate_requests if not earlier.granted)
    if delta - spent < 1e-6:
        raise CalibrationError(
            f"delta: these samples refused a certificate before, which spent a level of {spent:.3g}, so nothing is left of "
            f"{delta:g}: asking until one is given would spoil it. Fix: collect new samples, or pass delta above "
            f"{spent:.3g}. Next time ask for the loosest limit first: stricter ones cost nothing until one is refused."
        )
    return delta - spent, len(trace.certificate_requests) + 1


def _draft(trace: Trace, request: CalibrationRequest, rows: Tensor) -> tuple[Policy, tuple[SampleSketch, ...]]:
    """Return a policy without thresholds whose temperatures and gate are fitted on ``rows``, and sketches of these.

    The gate learns where the final exit answers the same; if divergence is limited, also where its map is near, or only that
    if nothing else is.
    """
    score, given = choose_score(request.score, trace.task), request.temperatures
    values: tuple[float, ...] = (1.0,) * trace.num_exits
    fitted_on: tuple[SampleSketch, ...] = ()
    if given is not None:
        if given.network and trace.network and given.network != trace.network:
            raise PolicyError(f"temperatures: they were fitted for network {given.network}, the trace is of {trace.network}")
        if any(map(trace.shares_samples, given.fitted_on)):
            raise CalibrationError(
                "temperatures: they were fitted on samples of this trace. Fix: calibrate on samples that nothing was fitted "
                "on, or leave temperatures out (they are then fitted on a part that is not tested)."
            )
        values, fitted_on = given.values, given.fitted_on
    elif request.temperature_scaling and trace.class_labels is not None:
        values, fitted_on = fit_temperatures(trace.class_logits, trace.class_labels, rows), (trace.sketch(),)
    policy = Policy.never(trace.num_exits, score=score, temperatures=values, network=trace.network)
    if not request.gate:
        return policy, fitted_on
    target = 1 - disagreement(trace)[:, :-1]
    if request.max_divergence is not None:
        target = target if len(request.risk_limits) > 1 else torch.ones_like(target)
        target = target * (1 - trace.divergence[:, :-1].clamp(0, 1))
    return replace(policy, gate=fit_gate(stack_trace_features(trace, policy)[rows], target[rows])), fitted_on


def _see_units(trace: Trace, exits: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:  # (N,), (N,) -> (n,), (n,)
    """Return what the drift monitor sees: exits and scores of one image in a group, of its latest and least sure tile."""
    if trace.images is not None:
        images = trace.images.unique(return_inverse=True)[1]
        exits = torch.zeros_like(exits).scatter_reduce_(0, images, exits, "amax", include_self=False)[images]
        scores = torch.zeros_like(scores).scatter_reduce_(0, images, scores, "amin", include_self=False)[images]
    rows = torch.arange(len(trace)) if trace.groups is None else find_firsts(trace.groups)
    return exits[rows], scores[rows]


def _record(trace: Trace, request: CalibrationRequest, choice: _Choice) -> Policy:
    """Return the chosen policy with its record: the request, and what the policy does on the trace."""
    policy = choice.policy
    exits = find_first_firing(choice.scores, policy.thresholds)
    # scores as predictions report them, with a gate or without
    plain = choice.scores if policy.gate is None else score_early_exits(trace, replace(policy, gate=None))
    if policy.gate is not None:
        policy = replace(policy, gate=match_confidences(policy.gate, plain, exits))
    final = score_logits(trace.logits[:, -1], policy.score, policy.temperatures[-1])
    scores = select_exits(torch.cat([plain, final[:, None]], 1), exits)
    classes = sum(", class " in risk.name for risk in choice.risks)
    hashes = trace.hash_samples()
    distinct = len(set(hashes))
    if trace.groups is not None:  # only logits in two groups are repeated
        distinct += len(trace) - len(set(zip(hashes, trace.groups.tolist(), strict=True)))
    seen = trace.sketch()
    record = Calibration(
        request,
        samples=len(trace),
        distinct_samples=distinct,
        data=seen.data,
        sketch=seen.sketch,
        cost=trace.cost[exits].double().mean().item(),
        rule=policy.rule_hash(),
        calibration_error=None
        if trace.class_labels is None
        else routed_calibration_error(trace, policy.temperatures, exits),
        map_null=tuple(trace.null["cc"].mean(0).tolist()) if "cc" in trace.null else None,
        classes=(classes, trace.logits.shape[2]) if classes else None,
        fitted_on=choice.fitted_on,
        reference=summarize_reference(*_see_units(trace, exits, scores), trace.num_exits),
        certification=choice.certification,
        groups=trace.num_groups if trace.num_groups < len(trace) else None,
        timing=trace.timing,
        held_out=choice.held_out,
        tiles=trace.tiles,
    )
    return replace(policy, calibration=record)
