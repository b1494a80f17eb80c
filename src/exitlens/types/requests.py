"""CalibrationRequest: everything that a calibration can be asked for, checked and documented here alone, recorded verbatim.

Most options of the command line come from its fields and their descriptions, so this module imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from exitlens.errors import InputError, require

SCORES = ("max_probability", "entropy", "margin")  # of one class
DECIDED = "decided"  # the score of several labels: how sure the least sure of them is
ALL_SCORES = (*SCORES, DECIDED)

NEED_LABELS = ("max_accuracy_drop", "max_class_accuracy_drop", "max_false_negative_drop")
RISK_LIMITS = (*NEED_LABELS, "max_disagreement", "max_divergence")

Record = TypeVar("Record")


def read_record(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Rebuild a dataclass from the JSON of its ``asdict``, where tuples are lists, by the types of its fields."""
    hints = get_type_hints(kind)
    return kind(**{name: _read_value(hints.get(name), value) for name, value in values.items()})


def _read_value(kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(kind) is UnionType:  # X | None
        kind = get_args(kind)[0]
    if is_dataclass(kind) and isinstance(kind, type):
        return read_record(kind, value)
    if get_origin(kind) is tuple:
        first, *_ = get_args(kind)
        return tuple(_read_value(first, item) for item in value)
    if get_origin(kind) is Mapping:
        return {name: _read_value(get_args(kind)[1], item) for name, item in value.items()}
    return float(value) if kind is float else value


@dataclass(frozen=True)
class SampleSketch:
    """A trace's fingerprint and the smallest hashes of its samples: traces that share many samples share some of these."""

    data: str = ""
    sketch: tuple[str, ...] = ()


@dataclass(frozen=True)
class Temperatures:
    """Temperatures fitted by an earlier calibration.

    Attributes:
        values: one for each exit.
        fitted_on: samples that they were fitted on.
        network: fingerprint of their network; empty fits any.

    Examples:
        >>> xl.types.Temperatures((1.4, 1.2, 1.1)).values
        (1.4, 1.2, 1.1)
    """

    values: tuple[float, ...]
    fitted_on: tuple[SampleSketch, ...] = ()
    network: str = ""


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """What :func:`exitlens.calibrate` is asked for. A policy's record keeps it, so that it can be repeated.

    Attributes:
        max_accuracy_drop: Accuracy that may be lost, in [0, 1]; 0.01 is one point. Final accuracy minus routed accuracy;
            needs labels. With several labels per sample, an answer is right if all of them are (subset accuracy).
        max_class_accuracy_drop: Accuracy that may be lost in every class, in [0, 1]. Needs labels. With several labels per
            sample: how much more often each label may be missed in the samples that have it.
        max_false_negative_drop: Share of a sample's labels that may be missed in addition, on average, in [0, 1]. For
            networks that give several labels; needs labels. A sample without labels counts as 0.
        max_disagreement: Share of answers that may differ from the final exit's, in [0, 1].
        max_divergence: Mean divergence allowed between the attention map that answers and the final one, in [0, 1].
        max_cost: Mean cost allowed on these samples, as a fraction of the plain backbone's.
        max_ms: Milliseconds that a batch may take at the exits taken, on average. Needs a trace with measured times
            (``collect(..., cost="time")``). Every sample counts with the time of a batch that leaves at its exit: for
            ``timing.batch_size`` 1 their mean is the mean latency, for larger batches about the mean time of a batch.
            Times are taken as measured; a certificate covers which exits samples take.
        percentile: Share of samples, in (0, 100], that must keep max_ms; without it, their mean must.
        delta: Certify the limits for new data, with this chance of being wrong, such as 0.1. Needs a limit on a risk, or
            ``max_ms``. Without it the limits hold on these samples only (empirical mode).
        score: Confidence score: max_probability (the default), entropy or margin; for several labels decided.
        temperature_scaling: Fit a temperature to each exit first, by likelihood. Needs labels and is skipped without them.
            Certified mode fits on the samples that propose thresholds, which do not test them.
        temperatures: Temperatures fitted on other data, used instead.
        gate: Let an exit fire only where its attention map can be trusted. Needs ``max_divergence``. A
            :class:`~exitlens.types.Gate` estimates how far the map is from the final one; it is fitted on the same samples
            as the temperatures, and kept if it makes the policy cheaper.
        equal_groups: Certify means over groups, large or small, instead of over samples. Needs ``delta`` and groups. By
            default a group counts as its size (at most that of the largest group that proposed thresholds), so that the
            promise is about new samples, as reports measure it.
        folds: Number of cross-validation folds, such as 5, so that the limits also hold on held-out samples. Each part is
            routed by thresholds that the others choose. Temperatures and gate are fitted on all samples.
        seed: Seed of the split into samples (or groups) that propose thresholds and those that test them, or into folds.

    Raises:
        InputError: if no limit is given, a value is out of range, or two of them do not go together.

    Examples:
        >>> request = xl.calibrate(trace, max_disagreement=0.5).calibration.request
        >>> request.limits, request.score
        ({'max_disagreement': 0.5}, None)
    """

    max_accuracy_drop: float | None = None
    max_class_accuracy_drop: float | None = None
    max_false_negative_drop: float | None = None
    max_disagreement: float | None = None
    max_divergence: float | None = None
    max_cost: float | None = None
    max_ms: float | None = None
    percentile: float | None = None
    delta: float | None = None
    score: str | None = None
    temperature_scaling: bool = True
    temperatures: Temperatures | None = None
    gate: bool = False
    equal_groups: bool = False
    folds: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.limits:
            raise InputError(f"limits: expected at least one of {', '.join(RISK_LIMITS)}, max_cost or max_ms, got none")
        for name in (*RISK_LIMITS, "max_cost"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                raise InputError(f"{name}: expected a number in [0, 1], got {value!r}. Fix: pass 0.01 for one per cent.")
        check_score(self.score)
        for name in ("temperature_scaling", "gate", "equal_groups"):
            require(getattr(self, name), bool, name)
        if self.temperatures is not None:
            require(self.temperatures, Temperatures, "temperatures")
        if self.gate and self.max_divergence is None:
            raise InputError("gate: it lowers the divergence of early answers. Fix: pass max_divergence, too.")
        if not _is_integer(self.seed) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed: expected an integer of 0 or more, below 2**63, got {self.seed!r}")
        self._check_times()
        self._check_mode()

    def _check_times(self) -> None:
        if self.max_ms is not None and not (_is_number(self.max_ms) and 0 < self.max_ms < math.inf):
            raise InputError(f"max_ms: expected milliseconds above 0, got {self.max_ms!r}")
        if self.percentile is not None and self.max_ms is None:
            raise InputError("percentile: it is the share of samples to be answered within max_ms. Fix: pass max_ms, too.")
        if self.percentile is not None and not (_is_number(self.percentile) and 0 < self.percentile <= 100):
            raise InputError(
                f"percentile: expected a number in (0, 100], got {self.percentile!r}. Fix: pass 95 for 95 of 100 samples."
            )
        if self.percentile == 100 and self.delta is not None:
            raise InputError(
                "percentile: samples never show that all samples are fast. Fix: with delta, pass less than 100."
            )

    def _check_mode(self) -> None:
        if self.delta is not None:
            if not (_is_number(self.delta) and 0 < self.delta < 1):
                raise InputError(
                    f"delta: expected a number between 0 and 1, got {self.delta!r}. Fix: pass 0.1 for 90 % confidence."
                )
            if not self.risk_limits and self.max_ms is None:
                raise InputError("delta: it certifies limits on risks. Fix: pass max_accuracy_drop or another one, too.")
        elif self.equal_groups:
            raise InputError("equal_groups: it is about a certificate. Fix: pass delta, or leave equal_groups out.")
        if self.folds is None:
            return
        if self.delta is not None:
            raise InputError("folds: delta promises more. Fix: pass one of the two.")
        if not self.risk_limits:
            raise InputError("folds: they are about limits on risks. Fix: pass one of these limits, or leave folds out.")
        if not _is_integer(self.folds) or self.folds < 2:
            raise InputError(f"folds: expected an integer of 2 or more, got {self.folds!r}. Fix: pass folds=5.")

    @property
    def risk_limits(self) -> dict[str, float]:
        """The limits on risks that were given, by name."""
        return {name: value for name in RISK_LIMITS if (value := getattr(self, name)) is not None}

    @property
    def limits(self) -> dict[str, float]:
        """All limits that were given, by name: on risks, ``max_cost`` and ``max_ms``."""
        spending = {"max_cost": self.max_cost, "max_ms": self.max_ms}
        return self.risk_limits | {name: value for name, value in spending.items() if value is not None}

    def for_any_network(self) -> CalibrationRequest:
        """Return the request for a network with other scores, such as an int8 copy; given temperatures are kept."""
        return self if self.temperatures is None else replace(self, temperatures=replace(self.temperatures, network=""))


@dataclass(frozen=True)
class Asking:
    """One certificate that the samples of a trace were asked for.

    Attributes:
        request: verbatim.
        level: level of the tests: the request's ``delta`` less the levels that refused askings had spent.
        granted: whether it was given; its level is then free again for the next asking.
    """

    request: CalibrationRequest
    level: float
    granted: bool


def check_score(score: str | None) -> None:
    """Raise :class:`InputError` for a score that does not exist; ``None`` is the usual one."""
    if score is not None and score not in ALL_SCORES:
        raise InputError(f"score: expected one of {ALL_SCORES}, got {score!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_integer(value)
