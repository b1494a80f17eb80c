"""The record of a calibration: what was asked for, on which samples, and how it was tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from exitlens.errors import PolicyError
from exitlens.types.timings import Timing
from exitlens.types.traces import Trace

FORMAT = 2  # of Calibration.to_dict
WITH_GROUPS = 3  # the same, of a calibration on groups
WITH_TIMING = 4  # the same, with a limit in milliseconds (and groups or none)
WITH_FOLDS = 5  # the same, with folds (and times and groups or none)


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
class SampleSketch:
    """A trace's fingerprint and the smallest hashes of its samples: traces that share many samples share some of these."""

    data: str = ""
    sketch: tuple[str, ...] = ()

    @classmethod
    def from_trace(cls, trace: Trace, size: int = 64) -> SampleSketch:
        """The sketch of a trace's samples, with ``size`` hashes."""
        return cls(trace.fingerprint(), tuple(sorted(trace.hash_samples())[:size]))

    def overlaps(self, trace: Trace) -> bool:
        """Whether some of the samples are in the trace too, as far as their logits are equal."""
        return self.data == trace.fingerprint() or not set(self.sketch).isdisjoint(trace.hash_samples())


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
        limits: by name, ``max_cost`` and ``max_ms`` included.
        samples: of the trace. distinct_samples: of them, those with logits of their own. data: fingerprint of the trace.
        cost: mean cost on these samples. seed: of the split. rule: hash of the policy that all this is about.
        classes: how many classes were tested, and of how many, where every class has a limit.
        fitted_on: the samples that the temperatures were fitted on, through all policies that handed them on.
        reference: for the drift monitor; ``None`` in records older than it.
        certification: ``None`` where the limits hold on these samples only (empirical mode).
        groups: how many independent groups the samples come in; ``None`` where all samples are independent.
        percentile: how many of 100 samples ``max_ms`` is about; ``None``: their mean.
        timing: what a batch took at each exit; ``None`` where that was not measured.
        folds: parts of the samples on which thresholds that the others chose keep the limits; ``None``: not asked for.
        held_out: by name, what the samples of all folds lost so, on average; of limits on every class, one for each.

    Examples:
        >>> xl.calibrate(trace, max_disagreement=0.5).calibration.limits
        {'max_disagreement': 0.5}
    """

    limits: Mapping[str, float]
    samples: int
    distinct_samples: int = 0
    data: str = ""
    cost: float = 1.0
    seed: int = 0
    rule: str = ""
    classes: tuple[int, int] | None = None
    fitted_on: tuple[SampleSketch, ...] = field(default=(), repr=False)
    reference: DriftReference | None = field(default=None, repr=False)
    certification: Certification | None = None
    groups: int | None = None
    percentile: float | None = None
    timing: Timing | None = None
    folds: int | None = None
    held_out: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; without folds, groups and times as versions that know none wrote it."""
        found = asdict(self) | {"timing": None if self.timing is None else self.timing.to_dict()}
        if self.folds is not None:
            return {"format": WITH_FOLDS, **found}
        del found["folds"], found["held_out"]
        if self.timing is not None:
            return {"format": WITH_TIMING, **found}
        del found["percentile"], found["timing"]
        if self.groups is not None:
            return {"format": WITH_GROUPS, **found}
        del found["groups"]
        if (tested := found["certification"]) is not None:
            kept = {name: value for name, value in tested.items() if name not in ("path_groups", "largest_group")}
            tests = tuple({k: v for k, v in test.items() if k != "groups"} for test in tested["tests"])
            found["certification"] = kept | {"tests": tests}
        return {"format": FORMAT, **found}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_dict`; also reads the ``chosen_by`` of bundles of format 1.

        Raises:
            PolicyError: for a record that is damaged, or of a later format.
        """
        try:
            found = dict(values) if "format" in values else _rename_former(values)
            if found.pop("format") not in (FORMAT, WITH_GROUPS, WITH_TIMING, WITH_FOLDS):
                known = f"expected format {FORMAT} to {WITH_FOLDS}"
                raise PolicyError(f"calibration: {known}, got {values['format']}: update exitlens")
            found["limits"] = dict(found["limits"])
            found["fitted_on"] = tuple(SampleSketch(s["data"], tuple(s["sketch"])) for s in found.get("fitted_on", ()))
            if found.get("classes") is not None:
                found["classes"] = tuple(found["classes"])
            if (reference := found.get("reference")) is not None:
                edges, counts = (tuple(map(tuple, reference[name])) for name in ("edges", "counts"))
                found["reference"] = DriftReference(edges, counts, float(reference["confidence"]))
            if found.get("folds") is not None:
                found["folds"] = int(found["folds"])
                found["held_out"] = {str(name): float(lost) for name, lost in found["held_out"].items()}
            if (timing := found.get("timing")) is not None:
                found["timing"] = Timing.from_dict(timing)
            if (certification := found.get("certification")) is not None:
                tests = tuple(RiskTest(**test) for test in certification["tests"])
                found["certification"] = Certification(**certification | {"tests": tests})
            return cls(**found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PolicyError(f"calibration: expected what calibrate wrote, got a damaged record ({error})") from error


def _rename_former(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("limits", "samples", "data", "cost", "seed", "rule", "classes", "fitted_on", "reference")
    found = {"format": FORMAT, "distinct_samples": values.get("distinct", values["samples"])}
    found |= {name: values[name] for name in kept if name in values}
    if values.get("mode") == "certified":
        same = {name: values[name] for name in ("delta", "path_samples", "reason", "samples_needed") if name in values}
        renamed = {"path_length": values["path"], "steps_tested": values["walked"], "tests": values["tested"]}
        found["certification"] = same | renamed
    return found
