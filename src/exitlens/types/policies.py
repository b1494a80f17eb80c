"""Policies: when each early exit answers."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exitlens.errors import InputError, PolicyError, require
from exitlens.types.calibrations import Calibration, write_certificate
from exitlens.types.outputs import exit_name, format_threshold
from exitlens.types.settings import ALL_SCORES
from exitlens.types.tasks import ANSWERS, USUAL_SCORES, Task, task_of_score

GATE_FEATURES = ("confidence", "entropy", "change")  # of the answer; of the map; of the map since the exit before


@dataclass(frozen=True)
class Gate:
    """Decides which maps of early exits can be trusted: a limit on their estimated divergence from the final map.

    The estimate is linear in :data:`GATE_FEATURES` and clipped to [0, 1]. Where it is above the limit, an exit's score
    counts as 0, so that only a threshold of 0 (always) lets the exit fire.

    Args:
        weights: K-1 rows: one number for each of :data:`GATE_FEATURES`, and a constant.
        limits: K-1 numbers; ``math.inf`` trusts every map.

    Examples:
        >>> gate = xl.types.Gate(weights=((0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)), limits=(0.5, math.inf))
        >>> xl.Policy(thresholds=(0.9, 0.9), gate=gate).gate.limits
        (0.5, inf)
    """

    weights: tuple[tuple[float, ...], ...]
    limits: tuple[float, ...]

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "weights", tuple(tuple(float(w) for w in row) for row in self.weights))
            object.__setattr__(self, "limits", tuple(float(limit) for limit in self.limits))
        except (TypeError, ValueError) as error:
            raise PolicyError(f"gate: expected rows of numbers as weights, and numbers as limits ({error})") from error
        if len(self.weights) != len(self.limits) or any(len(row) != len(GATE_FEATURES) + 1 for row in self.weights):
            raise PolicyError(f"gate: expected a limit and {len(GATE_FEATURES) + 1} weights for each early exit, got {self}")
        if not all(math.isfinite(w) for row in self.weights for w in row) or any(math.isnan(v) for v in self.limits):
            raise PolicyError(f"gate: expected finite weights and limits that are numbers, got {self}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite limits become the string ``"none"``."""
        return asdict(self) | {"limits": ["none" if limit == math.inf else limit for limit in self.limits]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Gate:
        """Inverse of :meth:`to_dict`."""
        return cls(values["weights"], tuple(math.inf if limit == "none" else limit for limit in values["limits"]))


@dataclass(frozen=True)
class Policy:
    """When each early exit answers: exit k fires at ``score >= thresholds[k]``; the final exit always answers.

    Args:
        thresholds: K-1 numbers; ``math.inf`` means never.
        score: ``max_probability``, ``entropy`` (1 minus normalised entropy) or ``margin`` (top-1 minus top-2). For networks
            that give several labels ``decided``: the smallest of max(p, 1 - p) over the labels' sigmoids.
        temperatures: K positive numbers that divide the logits first; by default all 1.
        network: fingerprint of the network that it was chosen for; empty fits any.
        calibration: the record of how it was chosen; ``None`` for a policy made by hand.
        gate: lets exits fire only where their explanation can be trusted; ``None``: the score alone decides.

    Examples:
        >>> policy = xl.Policy(thresholds=(0.9, math.inf))  # exit 0 fires at 0.9 or more, exit 1 never
        >>> policy.num_exits, xl.Policy.from_dict(policy.to_dict()) == policy
        (3, True)
    """

    thresholds: tuple[float, ...]
    score: str = "max_probability"
    temperatures: tuple[float, ...] = ()
    network: str = ""
    calibration: Calibration | None = None
    gate: Gate | None = None

    def __post_init__(self) -> None:
        try:
            thresholds = tuple(float(t) for t in self.thresholds)
            temperatures = tuple(float(t) for t in self.temperatures) or (1.0,) * (len(thresholds) + 1)
        except (TypeError, ValueError) as error:
            raise PolicyError(f"thresholds and temperatures: expected sequences of numbers ({error})") from error
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "temperatures", temperatures)
        if any(math.isnan(t) or t == -math.inf for t in thresholds):
            raise PolicyError(f"thresholds: expected numbers (math.inf: never, 0: always), got {thresholds}")
        if self.score not in ALL_SCORES:
            raise PolicyError(f"score: expected one of {ALL_SCORES}, got {self.score!r}")
        if len(temperatures) != self.num_exits or not all(0 < t < math.inf for t in temperatures):
            raise PolicyError(f"temperatures: expected {self.num_exits} positive finite numbers, got {temperatures}")
        if self.gate is not None and (not isinstance(self.gate, Gate) or len(self.gate.limits) != len(thresholds)):
            raise PolicyError(f"gate: expected a Gate for {len(thresholds)} early exits, got {self.gate!r}")
        if self.calibration is not None and not isinstance(self.calibration, Calibration):
            raise PolicyError(f"calibration: expected a Calibration or None, got {type(self.calibration).__name__}")

    def _repr_html_(self) -> str:
        from exitlens.display import html_table

        thresholds = [*(format_threshold(t, 4) for t in self.thresholds), "answers the rest"]
        pairs = enumerate(zip(thresholds, self.temperatures, strict=True))
        rows = [[exit_name(k, self.num_exits), threshold, f"{temperature:.3f}"] for k, (threshold, temperature) in pairs]
        promise = self.certificate() if self.calibration else "Thresholds by hand: nothing is promised."
        return html_table(["exit", f"threshold ({self.score})", "temperature"], rows, promise)

    @property
    def num_exits(self) -> int:
        """K, the final exit included."""
        return len(self.thresholds) + 1

    @property
    def task(self) -> Task:
        """The kind of answer of the networks that it is for."""
        return task_of_score(self.score)

    @classmethod
    def never(cls, num_exits: int, **values: Any) -> Policy:
        """Return the policy whose early exits never fire: the final exit answers every sample."""
        return cls((math.inf,) * (num_exits - 1), **values)

    def check(self, num_exits: int, network: str = "", task: Task | None = None) -> None:
        """Raise :class:`PolicyError` unless it fits ``num_exits`` and, if they are given, the network and its task."""
        if self.num_exits != num_exits:
            raise PolicyError(
                f"policy: it has {len(self.thresholds)} thresholds for {self.num_exits} exits, the network or trace has "
                f"{num_exits} exits: calibrate a policy for it"
            )
        if task is not None and task != self.task:
            raise PolicyError(
                f"policy: its score {self.score!r} is for {ANSWERS[self.task]}, the network or trace has {ANSWERS[task]}: "
                f"calibrate one for it, or by hand give score={USUAL_SCORES[task]!r}"
            )
        if self.network and network and self.network != network:
            raise PolicyError(
                f"policy: it was calibrated for network {self.network}, this is {network}: calibrate one for this network"
            )

    def rule(self) -> str:
        """Return a hash of everything that decides: all but the calibration."""
        values = {name: value for name, value in self.to_dict().items() if name != "calibration"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_changed(self) -> bool:
        """True if it is not the policy that was calibrated."""
        record = self.calibration
        return record is not None and bool(record.rule) and record.rule != self.rule()

    def certificate(self) -> str:
        """Return the promise about this policy and what it rests on, in two sentences (docs/concepts/guarantees.md)."""
        if self.is_changed:
            return "Nothing is promised: this policy is not the one that was calibrated, something in it was changed since."
        return write_certificate(self.calibration, self.network, self.task)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite thresholds become the string ``"never"``."""
        return {
            "thresholds": ["never" if t == math.inf else t for t in self.thresholds],
            "score": self.score,
            "temperatures": list(self.temperatures),
            "network": self.network,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "gate": None if self.gate is None else self.gate.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Inverse of :meth:`to_dict`; raises :class:`PolicyError` if something is missing."""
        missing = [name for name in ("thresholds", "score", "temperatures", "network") if name not in values]
        if missing:
            raise PolicyError(f"policy: {', '.join(missing)} missing: expected what to_dict gave")
        thresholds = tuple(math.inf if t == "never" else float(t) for t in values["thresholds"])
        gate, record = values.get("gate"), values.get("calibration")
        calibration = None if record is None else Calibration.from_dict(record)
        gate = None if gate is None else Gate.from_dict(gate)
        return cls(thresholds, values["score"], tuple(values["temperatures"]), values["network"], calibration, gate)


DEFAULT = "default"  # the name of a bundle's own policy


def check_name(name: object, argument: str) -> None:
    """Raise :class:`InputError`, which names the argument, unless the name may be given to a policy of a bundle."""
    if not isinstance(name, str) or not re.fullmatch("[a-z0-9_-]{1,40}", name):
        raise InputError(f"{argument}: expected names of 1 to 40 characters a-z, 0-9, _ and -, got {name!r:.80}")
    if name == DEFAULT:
        raise InputError(f"{argument}: {DEFAULT!r} is what the bundle's own policy is called: choose another name")


def check_named(policies: Mapping[str, Policy], num_exits: int, network: str, task: Task | None = None) -> None:
    """Check every name and policy; errors say which policy they are about."""
    require(policies, Mapping, "policies", "names and policies")
    for name, policy in policies.items():
        check_name(name, "policies")
        require(policy, Policy, f"policies, {name}", "see exitlens.calibrate")
        check_fit(policy, num_exits, network, f"policies, {name}", task)


def check_fit(policy: Policy, num_exits: int, network: str, place: str, task: Task | None = None) -> None:
    """Check a policy by :meth:`Policy.check`; errors say which policy it is: ``place``."""
    try:
        policy.check(num_exits, network, task)
    except PolicyError as error:
        raise PolicyError(f"{place}: {str(error).removeprefix('policy: ')}") from error


@dataclass(frozen=True)
class ConfidenceInterval:
    """A mean over samples, with its confidence band.

    Examples:
        >>> xl.sweep(trace)[0].cost
        ConfidenceInterval(value=..., low=..., high=...)
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SweepPoint:
    """One policy of the frontier, and its results on samples that did not choose it.

    Attributes:
        cost: mean, in units of the plain backbone. agreement: share of answers that equal the final exit's.
        divergence: mean, of the map at the exit taken. accuracy: ``None`` without labels.

    Examples:
        >>> point = xl.sweep(trace)[0]
        >>> point.policy.num_exits, point.accuracy.low <= point.accuracy.value <= point.accuracy.high
        (3, True)
    """

    policy: Policy
    cost: ConfidenceInterval
    agreement: ConfidenceInterval
    divergence: ConfidenceInterval
    accuracy: ConfidenceInterval | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"policy": self.policy.to_dict()}


@dataclass(frozen=True)
class CostAccuracy:
    """A point of a paper's curve: mean cost and accuracy on the test data.

    Examples:
        >>> xl.measure_anytime(trace)[0]
        CostAccuracy(cost=..., accuracy=...)
    """

    cost: float
    accuracy: float
