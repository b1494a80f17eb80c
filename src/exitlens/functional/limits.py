"""What can be asked of a calibration: checked by itself, so that nothing is collected for a request that cannot be met."""

from __future__ import annotations

from collections.abc import Mapping

from exitlens.errors import InputError, require
from exitlens.types import SCORES


def check_limits(
    given: Mapping[str, float | None],
    *,
    max_cost: float | None = None,
    delta: float | None = None,
    score: str = "max_probability",
    gate: bool = False,
) -> dict[str, float]:
    """The limits on risks that were given, of ``given`` by name.

    Args:
        given: limits by the names of :func:`exitlens.calibrate`; ``None`` for those that are not asked for. The others: as
            there.

    Raises:
        InputError: no limit, or one out of range; a ``delta``, score or gate that does not fit.
    """
    limits = {name: value for name, value in given.items() if value is not None}
    if not limits and max_cost is None:
        raise InputError(f"limits: expected at least one of {', '.join(given)} or max_cost, got none")
    for name, value in [*limits.items(), *([] if max_cost is None else [("max_cost", max_cost)])]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{name}: expected a number in [0, 1] (0.01 is one per cent), got {value!r}")
    if score not in SCORES:
        raise InputError(f"score: expected one of {SCORES}, got {score!r}")
    if delta is not None:
        if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
            raise InputError(f"delta: expected a number between 0 and 1 (0.1: the promise holds with 90 %), got {delta!r}")
        if not limits:
            raise InputError("delta: it certifies limits on risks: give max_accuracy_drop or another one, beside max_cost")
    require(gate, bool, "gate")
    if gate and "max_divergence" not in limits:
        raise InputError("gate: it lowers the divergence of early answers: give max_divergence, too")
    return limits
