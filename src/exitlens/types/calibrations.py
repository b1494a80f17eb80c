"""The record of a calibration: what was asked for, on which samples, and how it was tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from exitlens.errors import PolicyError
from exitlens.types.requests import CalibrationRequest, SampleSketch
from exitlens.types.timings import Timing

FORMAT = 1  # of Calibration.to_dict


@dataclass(frozen=True)
class RiskTest:
    """The test of one risk, on samples that did not propose the policy; ``mean`` is ``None`` where there were none.

    ``groups``: how many independent groups these samples come in; ``None`` where all samples are independent.
    """

    name: str
    limit: float
    test: str
    samples: int
    mean: float | None
    p_value: float
    groups: int | None = None


@dataclass(frozen=True)
class Certification:
    """How a policy was certified, or why none could be.

    Attributes:
        delta: how likely the promise may be wrong.
        path_samples: how many samples proposed the path; the others tested it.
        path_length: policies on the path. steps_tested: how many of them were tested.
        tests: of the accepted policy; where there is none, of the first that was refused.
        reason: why the early exits never fire; empty where a policy was accepted.
        samples_needed: about how many samples (groups, where there are some) a certificate would take, where that is known.
        path_groups: how many groups proposed the path; ``None`` where all samples are independent.
        largest_group: a group counts as its size, at most as this; ``None``: every group counts the same.
    """

    delta: float
    path_samples: int
    path_length: int
    steps_tested: int
    tests: tuple[RiskTest, ...]
    reason: str = ""
    samples_needed: int | None = None
    path_groups: int | None = None
    largest_group: int | None = None


@dataclass(frozen=True)
class DriftReference:
    """Calibration samples counted for :class:`~exitlens.Monitor`, by exit and by score at that exit, the surest first.

    ``edges`` between the cells of each exit increase; ``confidence`` is the mean score.
    """

    edges: tuple[tuple[float, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    confidence: float

    def __post_init__(self) -> None:
        fits = [len(edges) + 1 for edges in self.edges] == [len(counts) for counts in self.counts]
        if not fits or sum(map(sum, self.counts)) < 1:
            raise PolicyError("calibration: expected counts for the cells of its drift reference: calibrate again")


@dataclass(frozen=True)
class Calibration:
    """What :func:`exitlens.calibrate` was asked for and what it rests on; part of a :class:`~exitlens.Policy`.

    Attributes:
        request: verbatim; ``exitlens.workflow.calibration.run_calibration(trace, request)`` repeats it on another trace.
        samples: of the trace. distinct_samples: how many of them have logits of their own. data: fingerprint of the trace.
        cost: mean cost on these samples. rule: hash of the policy that all this is about.
        classes: how many classes were tested, and of how many, where every class has a limit.
        fitted_on: the samples that the temperatures were fitted on, through all policies that handed them on.
        reference: for the drift monitor.
        certification: ``None`` where the limits hold on these samples only (empirical mode).
        groups: how many independent groups the samples come in; ``None`` where all samples are independent.
        timing: what a batch took at each exit; ``None`` where that was not measured.
        held_out: by name, the mean loss of the samples of all folds; one for each class where every class has a limit.

    Examples:
        >>> xl.calibrate(trace, max_disagreement=0.5).calibration.limits
        {'max_disagreement': 0.5}
    """

    request: CalibrationRequest
    samples: int
    distinct_samples: int = 0
    data: str = ""
    cost: float = 1.0
    rule: str = ""
    classes: tuple[int, int] | None = None
    fitted_on: tuple[SampleSketch, ...] = field(default=(), repr=False)
    reference: DriftReference | None = field(default=None, repr=False)
    certification: Certification | None = None
    groups: int | None = None
    timing: Timing | None = None
    held_out: Mapping[str, float] | None = None

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were asked for, by name, ``max_cost`` and ``max_ms`` included."""
        return self.request.limits

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        timing = None if self.timing is None else self.timing.to_dict()
        return {"format": FORMAT, **asdict(self), "timing": timing}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_dict`.

        Raises:
            PolicyError: for a record that is damaged or of another format.
        """
        found = dict(values)
        if (written := found.pop("format", None)) != FORMAT:
            raise PolicyError(
                f"calibration: expected a record of format {FORMAT}, got {written!r}: another version of exitlens wrote it. "
                "Fix: calibrate again with this version."
            )
        try:
            found["request"] = CalibrationRequest.from_dict(found["request"])
            found["fitted_on"] = tuple(map(SampleSketch.from_dict, found["fitted_on"]))
            if found["classes"] is not None:
                found["classes"] = tuple(found["classes"])
            if (reference := found["reference"]) is not None:
                edges, counts = (tuple(map(tuple, reference[name])) for name in ("edges", "counts"))
                found["reference"] = DriftReference(edges, counts, float(reference["confidence"]))
            if (held_out := found["held_out"]) is not None:
                found["held_out"] = {str(name): float(loss) for name, loss in held_out.items()}
            if (timing := found["timing"]) is not None:
                found["timing"] = Timing.from_dict(timing)
            if (certification := found["certification"]) is not None:
                tests = tuple(RiskTest(**test) for test in certification["tests"])
                found["certification"] = Certification(**certification | {"tests": tests})
            return cls(**found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PolicyError(f"calibration: expected what calibrate wrote, got a damaged record ({error})") from error
