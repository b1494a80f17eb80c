"""calibrate: from a trace to a frozen policy. It never touches a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from exitlens.errors import require
from exitlens.functional.calibration import run_calibration
from exitlens.types import CalibrationRequest, Policy, Temperatures, Trace


def calibrate(  # noqa: PLR0913
    trace: Trace,
    *,
    max_accuracy_drop: float | None = None,
    max_class_accuracy_drop: float | None = None,
    max_false_negative_drop: float | None = None,
    max_pixel_error_drop: float | None = None,
    max_miou_drop: float | None = None,
    max_missed_area: Mapping[str | int, float] | None = None,
    max_error_increase: float | None = None,
    max_deviation: float | None = None,
    max_distance: float | None = None,
    max_rank_change: float | None = None,
    max_disagreement: float | None = None,
    max_divergence: float | None = None,
    max_cue_drop: float | None = None,
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
    the policy of least risk (accuracy drop, or disagreement without labels; of numbers and vectors, distance from the final
    exit's) that spends no more; with both, the cheapest
    that keeps all.

    Without ``delta`` (**empirical mode**) the limits hold on these samples; new samples lose somewhat more. With ``folds``
    they also hold on held-out samples (cross-validation), which is about right for new data, on average. With ``delta``
    (**certified mode**) they hold for the data's distribution: with probability at least ``1 - delta`` over the draw of
    these samples, every risk is at most its limit, for any network, distribution and number of samples (Pareto Testing,
    arXiv 2210.07913; docs/concepts/guarantees.md). If nothing can be certified, the early exits never fire, and the policy
    says why and how many samples it would take. ``policy.certificate()`` states the promise in two sentences.

    If the trace names groups, only groups are independent: whole groups propose or test, each test takes one value from a
    group, and the promise is about the samples of new groups. If it names none, but successive samples look alike as frames
    of a video do, a :class:`~exitlens.errors.DataWarning` says so.

    Args:
        trace: independent samples (or groups of them) of the data to come, not used for training or testing.
        temperatures: a policy whose temperatures, fitted on other data, are used.

    The other arguments are the fields of :class:`~exitlens.CalibrationRequest`, which documents them.

    Raises:
        InputError: for a contradictory request, or one for which the trace lacks labels, timing or groups.
        CalibrationError: if no policy keeps every limit (empirical mode) or a budget (certified mode); for fewer than 10
            samples or groups in certified mode; if a limit needs labels and no sample has one of them; if ``temperatures``
            were fitted on samples of this trace.
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
    arguments = locals()  # each field of the request has an argument of its name
    request = CalibrationRequest(**{field.name: arguments[field.name] for field in fields(CalibrationRequest)})
    return run_calibration(trace, request)
