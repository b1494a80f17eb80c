"""Policies: when each early exit answers, and the record of what that was calibrated for and how it was tested."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from exitlens.errors import InputError, PolicyError, require
from exitlens.types.outputs import exit_name, format_threshold
from exitlens.types.settings import ALL_SCORES, MISSED_AREA, CalibrationRequest, SampleSketch, read_record
from exitlens.types.tasks import ANSWERS, BY_LABELS, USUAL_SCORES, Task, task_of_score
from exitlens.types.tiles import Tiles
from exitlens.types.traces import ExitLatency

FORMAT = 1  # of Calibration.to_dict
RECORDS = "calibration", "binding"  # parts of a policy that decide nothing


@dataclass(frozen=True)
class RiskTest:
    """The test of one risk, on samples that did not propose the policy."""

    name: str
    limit: float
    test: str
    samples: int
    mean: float | None  # None: there were no such samples
    p_value: float
    groups: int | None = None  # None: all samples are independent


@dataclass(frozen=True)
class Certification:
    """The record of a certification, or of why it was refused."""

    delta: float  # the chance that the promise is wrong
    level: float  # the tests' level: delta, less what earlier requests on these samples have spent
    request_number: int  # counts the certificates requested from these samples, from 1
    path_samples: int  # number of samples that proposed the path; the others tested it
    path_length: int  # number of policies
    steps_tested: int
    tests: tuple[RiskTest, ...]  # those that the accepted policy passed; if there is none, those of the first policy
    reason: str = ""  # why the early exits never fire; empty if a policy was accepted
    samples_needed: int | None = None  # estimated samples (or groups) for a certificate; None: no number is enough
    path_groups: int | None = None  # number of groups that proposed the path; None: all samples are independent
    largest_group: int | None = None  # a group's weight is its size, capped at this; None: all groups weigh the same


@dataclass(frozen=True)
class DriftReference:
    """Counts of calibration samples by exit and by score at that exit, highest score first, for the drift monitor."""

    edges: tuple[tuple[float, ...], ...]  # between the cells of each exit, increasing
    counts: tuple[tuple[int, ...], ...]
    confidence: float  # the mean score

    def __post_init__(self) -> None:
        fits = [len(edges) + 1 for edges in self.edges] == [len(counts) for counts in self.counts]
        if not fits or sum(map(sum, self.counts)) < 1:
            raise PolicyError("calibration: expected counts for the cells of its drift reference: calibrate again")


@dataclass(frozen=True)
class Calibration:
    """The request of :func:`exitlens.calibrate` and what its answer rests on; part of a :class:`~exitlens.Policy`.

    Attributes:
        request: verbatim; ``exitlens.functional.calibration.run_calibration(trace, request)`` repeats it on another trace.
        samples: number of samples. distinct_samples: number of different logits among them. data, sketch: of the trace.
        cost: mean cost on these samples. rule: hash of the policy that the record is about.
        calibration_error: mean gap between confidence and accuracy of the routed answers on these samples, which also fitted
            the temperatures; ``None`` without labels.
        map_null: mean correlation of each exit's map with the final map of another sample; ``None`` without maps.
        classes: number of classes tested, and of all classes, if every class has a limit.
        fitted_on: the samples that the temperatures were fitted on, here or for the policies that they were taken from.
        reference: for the drift monitor.
        certification: ``None`` if the limits hold on these samples only (empirical mode).
        groups: number of independent groups of samples; ``None`` if all samples are independent.
        timing: time of a batch at each exit; ``None`` if it was not measured.
        held_out: mean loss of held-out samples over all folds, by the name of the risk.
        tiles: the samples are these parts of images; ``None`` if they are whole.

    Examples:
        >>> xl.calibrate(trace, max_disagreement=0.5).calibration.limits
        {'max_disagreement': 0.5}
    """

    request: CalibrationRequest
    samples: int
    distinct_samples: int = 0
    data: str = ""
    sketch: tuple[str, ...] = field(default=(), repr=False)
    cost: float = 1.0
    rule: str = ""
    calibration_error: float | None = None
    map_null: tuple[float, ...] | None = None
    classes: tuple[int, int] | None = None
    fitted_on: tuple[SampleSketch, ...] = field(default=(), repr=False)
    reference: DriftReference | None = field(default=None, repr=False)
    certification: Certification | None = None
    groups: int | None = None
    timing: ExitLatency | None = None
    held_out: Mapping[str, float] | None = None
    tiles: Tiles | None = None

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were asked for, by name."""
        return self.request.limits

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_dict`; raises :class:`PolicyError` for a damaged record or another format."""
        record = dict(values)
        if (written := record.pop("format", None)) != FORMAT:
            raise PolicyError(
                f"calibration: expected a record of format {FORMAT}, got {written!r}: another version of exitlens wrote it. "
                "Fix: calibrate again with this version."
            )
        try:
            return read_record(cls, record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PolicyError(f"calibration: expected what calibrate wrote, got a damaged record ({error})") from error


_TESTS = {
    "binomial": "exact binomial test",
    "paired": "exact test for pairs",
    "hoeffding_bentkus": "Hoeffding-Bentkus bound",
    "betting": "betting bound",
    "group_betting": "betting bound on means of groups",
    "signed_betting": "betting bound on losses and gains",
}


def write_certificate(record: Calibration | None, network: str, task: Task = "classes") -> str:
    """Return two sentences: the promise, and what it rests on."""
    if record is None:
        return "Nothing is promised: these thresholds were set by hand. Calibrate with delta=0.1 for a certificate."
    limits = ", ".join(_describe_limit(name, limit, record) for name, limit in record.limits.items())
    tested = record.certification
    if tested is None and record.request.folds is not None:
        losses = {f"{_name(name)} {loss:.4f}": loss for name, loss in (record.held_out or {}).items()}
        held_out = _list_worst(losses, "the largest")
        drawn = f"{record.samples:,} samples" + ("" if record.groups is None else f" of {record.groups:,} groups")
        return (
            f"Nothing is promised for new data. The limits ({limits}) hold on the {drawn}, and by cross-validation in "
            f"{record.request.folds} folds, each routed by what the others chose ({held_out}). Expect new "
            "data to lose about that much; by chance it can be somewhat more or less. Calibrate with delta=0.1 for a "
            "certificate."
        )
    if tested is None:
        return (
            f"Nothing is promised for new data: the limits ({limits}) hold on the {record.samples:,} "
            "samples that chose the thresholds. Calibrate with folds=5 for limits that other samples keep, or with "
            "delta=0.1 for a certificate."
        )
    sure = f"{100 * (1 - tested.delta):.4g} %"
    if tested.reason:
        more = " The full network itself may miss more than that." if record.request.max_missed_area else ""
        return (
            "The early exits never fire, so every answer and map is the full network's: nothing cheaper could be promised "
            f"with {sure} confidence under these limits ({limits}).{more} Reason: {tested.reason}. The samples have "
            f"spent a level of {tested.level:.3g} on this: another limit needs other samples, or more delta than before."
        )
    promises = " and ".join(
        _describe_promise(name, limit, record, task) for name, limit in record.limits.items() if name != "max_cost"
    )
    rest = record.samples - tested.path_samples
    seen = _list_worst({_describe_test(test): test.p_value for test in tested.tests}, "nearest to failing")
    drawn, tests = f"new data drawn like the {record.samples:,} calibration samples", f"{rest:,} samples"
    if record.groups is not None and tested.path_groups is not None:
        drawn = f"new groups drawn like the {record.groups:,} groups of the calibration ({record.samples:,} samples)"
        tests = f"{record.groups - tested.path_groups:,} groups ({rest:,} samples)"
    text = (
        f"With {sure} confidence, on {drawn}, the network{f' {network}' if network else ''} under this policy {promises}. "
        f"This was tested on {tests} that did not propose the thresholds ({seen}), and early exits "
        f"made the mean cost {100 * record.cost:.3g} % of the full network's."
    )
    return text + _list_caveats(record, tested)


def _list_caveats(record: Calibration, tested: Certification) -> str:
    """Return sentences about earlier requests, groups and repeated samples; empty if there are none."""
    text, largest = "", tested.largest_group
    if tested.request_number > 1:
        text += (
            f" It is certificate {tested.request_number} that these samples were asked for: the confidence is that in all "
            f"that were given, and this one was tested at level {tested.level:.3g}."
        )
    if record.groups is not None:
        larger = "sample counts as 1" if largest == 1 else f"{largest:,} samples counts as {largest:,}" if largest else ""
        text += " Only groups count as independent. " + (
            f"A group counts as many times as it has samples, but one of more than {larger}."
            if larger
            else "Every group counts the same, large or small: the means are over groups."
        )
    if record.distinct_samples != record.samples:
        once = "distinct" if record.groups is None else "in one group only"
        text += (
            f" But only {record.distinct_samples:,} of the samples are {once}: repeated samples are not independent draws, "
            "and the promise does not count for them."
        )
    return text


def _describe_limit(name: str, limit: float, record: Calibration) -> str:
    if name != "max_ms" or record.timing is None:
        return f"{_name(name)} at most {limit:.4g}"
    share = record.request.percentile
    what = "mean time" if share is None else f"time of {share:g} % of the samples"
    return f"{what} at most {limit:g} ms for {record.timing.where()}"


def _describe_promise(name: str, limit: float, record: Calibration, task: Task) -> str:
    if name == "max_ms" and record.timing is not None:
        times = f"as measured: {record.timing.list_ms()}"
        if (share := record.request.percentile) is None:
            return f"answers at exits that take at most {limit:g} ms on average ({times})"
        return f"answers at least {share:g} % of the samples at exits that take at most {limit:g} ms ({times})"
    tested, known = record.classes or (0, 0)
    where = "every class" if tested == known else f"each of the {tested} classes of {known} that were tested"
    points = f"{100 * limit:.4g} point{'' if limit == 0.01 else 's'}"
    if task == "multilabel" and name == "max_accuracy_drop":
        return f"gets all labels of a sample right at most {points} less often than the full network"
    if task == "multilabel" and name == "max_class_accuracy_drop":
        label = where.replace("classes", "labels").replace("class", "label")
        return f"finds {label}, where a sample has it, at most {points} less often than the full network"
    if name.startswith(MISSED_AREA):
        missed = name.removeprefix(MISSED_AREA)
        return f"misses at most {100 * limit:.4g} % of the area of {missed}, on average over the images that have it"
    part = "an image" if record.tiles is None else "a tile"
    if task == "segmentation" and name == "max_disagreement":
        return f"answers at most {100 * limit:.4g} % of {part}'s pixels unlike the full network, on average"
    spread = f"{100 * limit:.4g} % of the spread of the training targets"
    return {
        "max_error_increase": f"errs by at most {spread} more than the full network, on average (increases of more than one "
        "spread count as one)",
        "max_deviation": f"answers at most {spread} away from the full network, on average (more than one spread counts as "
        "one)",
        "max_distance": f"gives vectors whose cosine with the full network's is at least {1 - limit:.6g} on average "
        "(below 0 it counts as 0)",
        "max_rank_change": f"loses at most {100 * limit:.4g} % of the ten nearest probes of the full network's vectors, on "
        "average",
        "max_pixel_error_drop": f"gets at most {points} more of {part}'s pixels wrong than the full network, on average",
        "max_miou_drop": f"loses at most {points} of an image's mean IoU against the full network, on average over images",
        "max_accuracy_drop": f"is at most {points} less accurate than the full network",
        "max_class_accuracy_drop": f"is at most {points} less accurate than the full network in {where}",
        "max_disagreement": f"gives another answer than the full network to at most {100 * limit:.4g} % of the samples",
        "max_false_negative_drop": f"misses at most {points} more of the labels that a sample has than the full network, on "
        "average",
        "max_cue_drop": f"changes its answer at most {points} more often than the full network when everything outside the "
        "object comes from another sample",
        "max_divergence": "looks where the full network looks (mean Jensen-Shannon divergence of its attention maps at most "
        f"{limit:.4g})",
    }[name]


def _list_worst(numbers: Mapping[str, float], label: str) -> str:
    """Return all texts, or of many (one for each class) that with the largest number."""
    return "; ".join(numbers) if len(numbers) <= 4 else f"{label} of {len(numbers)}: {max(numbers, key=numbers.__getitem__)}"


def _describe_test(test: RiskTest) -> str:
    seen = "none seen" if test.mean is None else f"{test.mean:.4f} seen"
    if test.name == "max_cue_drop":
        seen += f" in {test.groups:,} independent units of {test.samples:,} swapped samples"
    return f"{_name(test.name)} {seen}, {_TESTS[test.test]}, p = {test.p_value:.2g}"


def _name(name: str) -> str:
    return name.removeprefix("max_").replace("_", " ")


# the odds of the confidence; the answer's margin without the tenth of the locations that add most; the share of the map
# that supports the answer; the map's entropy
GATE_FEATURES = "confidence", "margin_without_tenth", "supporting_share", "entropy"


@dataclass(frozen=True)
class Gate:
    """Decides by more than confidence whether early answers leave: by its estimate that the final exit answers the same.

    The estimate is a logistic function of :data:`GATE_FEATURES` (``exitlens.functional.routing``), and is compared with the
    policy's thresholds in place of the score. An answer that rests on few places needs more confidence than others.

    Args:
        weights: K-1 rows: one number for each of :data:`GATE_FEATURES`, and a constant.
        confidences: K-1 scores from which on as many samples would leave without the gate, to tell which it refuses;
            empty: not known.

    Examples:
        >>> gate = xl.types.Gate(weights=((1, 0.5, 2, 0, -1.0), (1, 0.2, 2, 0, -1.0)))
        >>> xl.Policy(thresholds=(0.9, 0.9), gate=gate).gate.weights[0][0]
        1.0
    """

    weights: tuple[tuple[float, ...], ...]
    confidences: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "weights", tuple(tuple(float(w) for w in row) for row in self.weights))
            object.__setattr__(self, "confidences", tuple(float(level) for level in self.confidences))
        except (TypeError, ValueError) as error:
            raise self._refuse("expected rows of numbers as weights, and numbers as confidences", error) from error
        count, size = len(self.weights), len(GATE_FEATURES) + 1
        if lengths := [len(row) for row in self.weights if len(row) != size]:
            raise self._refuse(f"expected {size} weights for each early exit", lengths[0])
        if len(self.confidences) not in (0, count):
            raise self._refuse(f"expected a confidence for each of {count} early exits or none", len(self.confidences))
        odd = [w for row in self.weights for w in row if not math.isfinite(w)] + [
            v for v in self.confidences if math.isnan(v)
        ]
        if odd:
            raise self._refuse("expected finite weights, and confidences that are numbers", odd[0])

    @staticmethod
    def _refuse(expected: str, got: object) -> PolicyError:
        return PolicyError(f"gate: {expected}, got {got}. Fix: take the gate that calibrate(gate=True) chose, unchanged.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite confidences become the string ``"never"``."""
        return asdict(self) | {"confidences": ["never" if level == math.inf else level for level in self.confidences]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Gate:
        """Inverse of :meth:`to_dict`; raises :class:`PolicyError` for anything else."""
        if not isinstance(values, Mapping) or "weights" not in values:
            raise cls._refuse("expected weights and confidences", f"{values!r:.80}")
        return cls(values["weights"], read_levels(values.get("confidences", ())))


def write_levels(levels: Iterable[float]) -> list[float | str]:
    """Return thresholds JSON-ready: ``"never"`` for infinite ones."""
    return ["never" if level == math.inf else level for level in levels]


def read_levels(levels: Any) -> Any:
    """Return the numbers, infinity for each "never"; what is no sequence is left for the record to refuse."""
    return tuple(math.inf if t == "never" else t for t in levels) if isinstance(levels, list | tuple) else levels


@dataclass(frozen=True)
class BindingCertificate:
    """The promise of :func:`exitlens.certify_binding`: how many answers stay when what their maps leave out is replaced.

    Attributes:
        area: share of the locations that was to be shown. delta: the chance that the promise is wrong.
        share: of the answers, which is promised. seen: the share among the samples.
        samples: their number. groups: number of independent groups; ``None`` if all samples are independent.
        by_exit: for each exit, the number of samples that left there and the share seen among them, which is not promised;
            ``None`` if there were none.
        rule: hash of the policy that it is about.
        shown: mean share of the locations that was shown, which is larger where there are few of them.
        distinct: number of different samples. data: what they are recognised by.
    """

    area: float
    delta: float
    share: float
    seen: float
    samples: int
    groups: int | None
    by_exit: tuple[tuple[int, float | None], ...]
    rule: str
    shown: float
    distinct: int
    data: SampleSketch = field(default=SampleSketch("", ()), repr=False)

    def __str__(self) -> str:
        share = math.floor(1000 * self.share) / 10  # no more than is promised
        text = (
            f"The top {100 * self.shown:.3g} % of a map decides at least {share} % of the answers, with "
            f"{100 * (1 - self.delta):.4g} % confidence: so many stay when everything else comes from another sample."
        )
        if self.distinct < self.samples:
            text += f" But only {self.distinct:,} of the {self.samples:,} samples are distinct, and repeats prove nothing."
        return text

    def describe(self, k: int) -> str:
        """Return the promise in one sentence, with what was seen where answers leave at exit k."""
        count, seen = self.by_exit[k]
        known = "" if seen is None else f"; seen at this exit: {100 * seen:.0f} % of {count:,}"
        return (
            f"The top {100 * self.shown:.3g} % of a map decides at least {math.floor(100 * self.share)} % of the answers "
            f"({100 * (1 - self.delta):.4g} % confidence{known})."
        )


@dataclass(frozen=True)
class Policy:
    """When each early exit answers: exit k fires at ``score >= thresholds[k]``; the final exit always answers.

    Args:
        thresholds: K-1 numbers; ``math.inf`` means never.
        score: ``max_probability``, ``entropy`` (1 minus normalised entropy) or ``margin`` (top-1 minus top-2). For networks
            that give several labels ``decided``: the smallest of max(p, 1 - p) over the labels' sigmoids. For one class a
            pixel, from the largest probability in each cell of the exit's grid: ``mean_probability``; ``low_probability``,
            which nine tenths of them reach; or ``sure_share``, of those of 0.9 or more. For numbers ``closeness``,
            exp(-error) with the error that the head expects, in spreads, or ``stability``, exp(-distance) from the answer of
            the exit before (0 at exit 0); for vectors ``vector_closeness`` and ``vector_stability``, with 1 - cosine.
        temperatures: K positive numbers that divide the logits first; by default all 1.
        network: fingerprint of the network that it was chosen for; empty fits any.
        calibration: the record of how it was chosen; ``None`` for a policy made by hand.
        gate: compares its estimates with the thresholds, in place of the score; ``None``: the score alone decides.
        binding: how many answers rest on what maps show; ``None``: nothing is promised of that.

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
    binding: BindingCertificate | None = None

    def __post_init__(self) -> None:
        try:
            thresholds = tuple(float(t) for t in self.thresholds)
            temperatures = tuple(float(t) for t in self.temperatures) or (1.0,) * (len(thresholds) + 1)
        except (TypeError, ValueError) as error:
            raise PolicyError(
                f"thresholds and temperatures: expected sequences of numbers, such as (0.9, 0.8) ({error})"
            ) from error
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "temperatures", temperatures)
        if any(math.isnan(t) or t == -math.inf for t in thresholds):
            raise PolicyError(f"thresholds: expected numbers (math.inf: never, 0: always), got {thresholds}")
        if self.score not in ALL_SCORES:
            raise PolicyError(f"score: expected one of {ALL_SCORES}, got {self.score!r}")
        if len(temperatures) != self.num_exits or not all(0 < t < math.inf for t in temperatures):
            raise PolicyError(f"temperatures: expected {self.num_exits} positive finite numbers, got {temperatures}")
        if self.task not in BY_LABELS and (self.gate is not None or set(temperatures) != {1.0}):
            wrong = "gate: it is for" if self.gate is not None else "temperatures: those other than 1 are for"
            raise PolicyError(
                f"{wrong} classes or labels of whole samples, its score {self.score!r} is for {ANSWERS[self.task]}: leave "
                "them out"
            )
        for name, kind in (("calibration", Calibration), ("gate", Gate), ("binding", BindingCertificate)):
            if not isinstance(value := getattr(self, name), kind | None):
                raise PolicyError(
                    f"{name}: expected a {kind.__name__} or None, got {type(value).__name__}. Fix: read what to_dict wrote "
                    "with Policy.from_dict."
                )
        if self.gate is not None and len(self.gate.weights) != len(thresholds):
            raise PolicyError(
                f"gate: expected a Gate for {len(thresholds)} early exits, got one for {len(self.gate.weights)}. Fix: "
                "calibrate with gate=True for this network."
            )
        if self.binding is not None and len(self.binding.by_exit) != self.num_exits:
            raise PolicyError(
                f"binding: expected a certificate for {self.num_exits} exits, got one for {len(self.binding.by_exit)}. Fix: "
                "certify this policy with certify_binding."
            )

    def _repr_html_(self) -> str:
        from exitlens.display import html_table

        thresholds = [*(format_threshold(t, 4) for t in self.thresholds), "answers the rest"]
        pairs = enumerate(zip(thresholds, self.temperatures, strict=True))
        rows = [[exit_name(k, self.num_exits), threshold, f"{temperature:.3f}"] for k, (threshold, temperature) in pairs]
        compared = self.score if self.gate is None else "trust of the gate"
        return html_table(["exit", f"threshold ({compared})", "temperature"], rows, self.certificate())

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

    def check(self, num_exits: int, network: str = "", task: Task | None = None, place: str = "policy") -> None:
        """Raise :class:`PolicyError` unless it fits ``num_exits`` and, if they are given, the network and its task.

        The error begins with the ``place`` where the policy stands.
        """
        if self.num_exits != num_exits:
            raise PolicyError(
                f"{place}: it has {len(self.thresholds)} thresholds for {self.num_exits} exits, the network or trace has "
                f"{num_exits} exits: calibrate a policy for it"
            )
        if task is not None and task != self.task:
            raise PolicyError(
                f"{place}: its score {self.score!r} is for {ANSWERS[self.task]}, the network or trace has {ANSWERS[task]}: "
                f"calibrate one for it, or by hand give score={USUAL_SCORES[task]!r}"
            )
        if self.network and network and self.network != network:
            raise PolicyError(
                f"{place}: it was calibrated for network {self.network}, this is {network}: calibrate one for this network"
            )

    def check_tiles(self, tiles: Tiles | None) -> None:
        """Raise :class:`PolicyError` if it was calibrated on other tiles, or on whole images and not on tiles."""
        record = self.calibration
        if record is not None and record.tiles != tiles:
            has, wanted = (str(each or "whole images") for each in (record.tiles, tiles))
            raise PolicyError(
                f"policy: it was calibrated on {has}, this is for {wanted}. Fix: collect and calibrate on {wanted}."
            )

    def rule_hash(self) -> str:
        """Return a hash of everything that decides, which is all but the records."""
        values = {name: value for name, value in self.to_dict().items() if name not in RECORDS}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_changed(self) -> bool:
        """True if it is not the policy that was calibrated."""
        record = self.calibration
        return record is not None and bool(record.rule) and record.rule != self.rule_hash()

    def certificate(self) -> str:
        """Return the promises about this policy, in two or three sentences (docs/concepts/guarantees.md)."""
        text = write_certificate(self.calibration, self.network, self.task)
        if self.is_changed:
            text = "Nothing is promised: this policy is not the one that was calibrated, something in it was changed since."
        if self.binding is None or self.binding.rule != self.rule_hash():
            return text
        return f"{text.replace('Nothing is promised', 'Nothing is promised of accuracy and cost', 1)} {self.binding}"

    def describe_binding(self, k: int) -> str:
        """Return the promise about binding for answers at exit k; empty if none was made of this very policy."""
        return "" if self.binding is None or self.binding.rule != self.rule_hash() else self.binding.describe(k)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite thresholds become the string ``"never"``."""
        return {
            "thresholds": write_levels(self.thresholds),
            "score": self.score,
            "temperatures": list(self.temperatures),
            "network": self.network,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "gate": None if self.gate is None else self.gate.to_dict(),
            "binding": None if self.binding is None else asdict(self.binding),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Inverse of :meth:`to_dict`; raises :class:`PolicyError` if something is missing."""
        missing = [name for name in ("thresholds", "score", "temperatures", "network") if name not in values]
        if missing:
            raise PolicyError(f"policy: {', '.join(missing)} missing: expected what to_dict gave")
        gate, record = values.get("gate"), values.get("calibration")
        calibration = None if record is None else Calibration.from_dict(record)
        gate = None if gate is None else Gate.from_dict(gate)
        binding = None if (given := values.get("binding")) is None else read_binding(given)
        thresholds = read_levels(values["thresholds"])
        return cls(thresholds, values["score"], values["temperatures"], values["network"], calibration, gate, binding)


def read_binding(values: Mapping[str, Any]) -> BindingCertificate:
    """Return the certificate that ``asdict`` gave; raise :class:`PolicyError` if it is damaged."""
    try:
        binding = read_record(BindingCertificate, dict(values))
        for k in range(len(binding.by_exit)):
            binding.describe(k)  # else a damaged number would stop an answer
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise PolicyError(
            f"binding: expected what certify_binding wrote, got a damaged record ({error}). Fix: certify the policy again."
        ) from error
    return binding


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
        policy.check(num_exits, network, task, f"policies, {name}")


@dataclass(frozen=True)
class ConfidenceInterval:
    """A mean over samples, with its confidence band."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Int8Report:
    """Effect of int8 on the calibration samples, in pairs (float32, int8).

    Attributes:
        directory: the edge bundle.
        policy: calibrated on the bundle's own answers.
        agreement: for every exit, the share of samples with the same label in both.
        exit_accuracy: accuracy of every exit; ``None`` without labels.
        accuracy: accuracy of the answers, each under its own policy; ``None`` without labels.
        exit_shares: share of the samples that each exit answers.

    Examples:
        >>> shares = (0.5, 0.3, 0.2), (0.5, 0.3, 0.2)
        >>> report = xl.types.Int8Report(Path("int8"), policy, (0.99, 1.0, 1.0), None, None, shares)
        >>> report.to_dict()["agreement"]
        (0.99, 1.0, 1.0)
    """

    directory: Path
    policy: Policy
    agreement: tuple[float, ...]
    exit_accuracy: tuple[tuple[float, ...], tuple[float, ...]] | None
    accuracy: tuple[float, float] | None
    exit_shares: tuple[tuple[float, ...], tuple[float, ...]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return vars(self) | {"directory": str(self.directory), "policy": self.policy.to_dict()}


@dataclass(frozen=True)
class SweepPoint:
    """One policy of the frontier, and its results on samples that did not choose it.

    Attributes:
        cost: mean, in units of the plain backbone. agreement: share of answers that equal the final exit's.
        divergence: mean, of the map at the exit taken. accuracy: ``None`` without labels.
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
    """A point of a paper's curve: mean cost and accuracy on the test data, as :func:`exitlens.measure_anytime` gives it."""

    cost: float
    accuracy: float
