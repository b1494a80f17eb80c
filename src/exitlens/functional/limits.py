"""What may be asked of a calibration: limits on risks, budgets and what goes with them, checked before anything is done."""

from __future__ import annotations

from collections.abc import Mapping

from exitlens.errors import CalibrationError, InputError, require
from exitlens.types import Trace
from exitlens.types.tasks import check_score

NEED_LABELS = ("max_accuracy_drop", "max_class_accuracy_drop", "max_false_negative_drop")


def check_limits(
    given: Mapping[str, float | None],
    *,
    max_cost: float | None = None,
    max_ms: float | None = None,
    percentile: float | None = None,
    delta: float | None = None,
    score: str | None = None,
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
    check_score(score)
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


def require_positives(trace: Trace, limits: Mapping[str, float]) -> None:
    """Raises :class:`CalibrationError` where limits are about labels of which one belongs to no sample of the trace."""
    needing = [name for name in limits if name in NEED_LABELS]
    if trace.task != "multilabel" or trace.labels is None or not needing:
        return
    missing = (~trace.labels.any(0)).nonzero().flatten().tolist()
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise CalibrationError(
            f"labels: none of the {len(trace)} samples has label {shown}, so {needing[0]} would say nothing of missing it: "
            "collect samples that have it, or leave its column out of logits and labels"
        )
