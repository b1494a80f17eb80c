"""evaluate: what a policy does on a trace, beside chance; sweep and its like: what a network offers at every cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.functional import scores
from exitlens.functional.groups import split_trace
from exitlens.functional.maps import skill
from exitlens.functional.pixels import measure_border_f1, measure_iou, measure_mean_iou
from exitlens.functional.risk import (
    accuracy_drop,
    cue_drop,
    disagreement,
    false_negatives,
    find_labelled,
    has_swaps,
    mean_iou_drop,
    select_exits,
)
from exitlens.functional.routing import find_first_firing, route, score_early_exits
from exitlens.functional.search import Cuts, default_loss, find_frontier, quantise
from exitlens.types import ExitLatency, Policy, Trace
from exitlens.types.outputs import exit_name
from exitlens.types.policies import ConfidenceInterval, CostAccuracy, SweepPoint
from exitlens.types.settings import COUNT, DECIDED, PROPER_SHARE, check_number
from exitlens.types.tasks import choose_score
from exitlens.types.traces import AnswerSummary, format_ms, rate_pixels

HIGHER_IS_CLOSER = ("cc", "cosine", "sim", "iou")


@dataclass(frozen=True)
class ExitRow:
    """One exit over the whole data set, as if it answered everything, and the share the policy lets it answer.

    Attributes:
        calibration_error, brier, risk_coverage: expected calibration error (15 bins), Brier score (in [0, 2]) and the area
            under the risk-coverage curve by maximum probability (mean error rate over all coverages), with the policy's
            temperatures. With several labels per sample the first two average over labels (``brier`` in [0, 1]), and the
            curve ranks samples by how decided they are.
        rescued, spoiled: shares of samples that the final exit has right and this one wrong, and the other way round.
        warning: AUROC of the policy's score as a sign of the first: the chance that a sample that the final exit would
            rescue scores lower than another; ``None`` if there is none, and at the final exit.
        consistency: by measure ``{"value", "null", "uniform", "skill"}``: the mean, the shuffled-image null, the uniform
            null, and the skill over the shuffled-image null (only for measures where more is closer).
        ms: measured time of a batch that leaves here, if the trace has timings.
    """

    exit: int
    cost: float
    accuracy: float | None
    agreement: float
    calibration_error: float | None
    brier: float | None
    risk_coverage: float | None
    share: float
    accuracy_when_taken: float | None
    consistency: Mapping[str, Mapping[str, float]]
    ms: float | None = None
    rescued: float | None = None
    spoiled: float | None = None
    warning: float | None = None

    def format_cells(self) -> list[str]:
        """Return milliseconds (if known), cost, accuracy, agreement, share, and the map's CC with its null and skill."""
        cc = self.consistency.get("cc", {})
        similarity = [f"{cc[name]:.2f}" if name in cc else "-" for name in ("value", "null", "skill")]
        spent = [*([] if self.ms is None else [format_ms(self.ms)]), f"{self.cost:.3f}"]
        return [*spent, _percent(self.accuracy), _percent(self.agreement), _percent(self.share), *similarity]


@dataclass(frozen=True)
class ClassRow:
    """The samples of one class (or with one label): their number, and the accuracy of the routed and the final answers.

    With several labels per sample, accuracy is the share of these samples whose answer contains the label.
    """

    label: int
    samples: int
    accuracy: float
    final_accuracy: float


@dataclass(frozen=True)
class LabelReport:
    """Measures for several labels per sample, beside subset accuracy (all labels of a sample right).

    Attributes:
        f1, exit_f1: micro-F1 of the routed answers, and of every exit's.
        false_negative_rate, exit_false_negative_rate: mean over samples of the share of their labels that the answer lacks
            (0 for samples without labels), of the routed answers and of every exit's.
        false_negative_drop: the routed answers' rate less the final exit's.
    """

    f1: float
    false_negative_rate: float
    false_negative_drop: float
    exit_f1: tuple[float, ...]
    exit_false_negative_rate: tuple[float, ...]

    def __str__(self) -> str:
        drop, exits = self.false_negative_drop, " ".join(f"{value:.3f}" for value in self.exit_f1)
        more = f"{abs(100 * drop):.1f} points {'fewer' if drop < -0.0005 else 'more'} than the final exit"
        return f"micro-F1 {self.f1:.3f} (exits {exits}), false negatives {_percent(self.false_negative_rate)} ({more})"


@dataclass(frozen=True)
class PixelReport:
    """Measures for one class a pixel, from counts summed over all images of the data.

    Attributes:
        mean_iou, exit_mean_iou: mean over the classes that any label has of intersection over union, of the routed answers
            and of every exit's.
        mean_iou_drop: the final exit's mean IoU less the routed one.
        iou, final_iou: for each class, of the routed and of the final answers; ``None`` for a class that is nowhere.
        accuracy, exit_accuracy: share of labelled pixels that are right.
        image_mean_iou_drop: mean over images of the drop of an image's mean IoU, which ``max_miou_drop`` limits.
        classes: names of the classes, if the trace knows them.
        boundary_f1, exit_boundary_f1: boundary F1 score, of the routed answers and of every exit's: the mean over images (or
            the trace's tiles) of the mean over the classes with a border in the label. ``None`` without a border.
    """

    mean_iou: float
    mean_iou_drop: float
    exit_mean_iou: tuple[float, ...]
    iou: tuple[float | None, ...]
    final_iou: tuple[float | None, ...]
    accuracy: float
    exit_accuracy: tuple[float, ...]
    image_mean_iou_drop: float
    classes: tuple[str, ...] = ()
    boundary_f1: float | None = None
    exit_boundary_f1: tuple[float, ...] | None = None

    def tabulate(self) -> list[list[str]]:
        """Return the IoU of every class, routed and of the final exit, as rows of a table, the head first."""
        rows = [["class", "IoU", "final exit's"]]
        for label, (routed, final) in enumerate(zip(self.iou, self.final_iou, strict=True)):
            cells = ["-" if value is None else f"{value:.3f}" for value in (routed, final)]
            rows.append([self.classes[label] if self.classes else str(label), *cells])
        return rows

    def __str__(self) -> str:
        borders = "" if self.boundary_f1 is None else f"; boundary F1 {self.boundary_f1:.3f}"
        drop, exits = self.mean_iou_drop, " ".join(f"{value:.3f}" for value in self.exit_mean_iou)
        more = f"{abs(100 * drop):.1f} points {'above' if drop < -0.0005 else 'below'} the final exit"
        return f"mean IoU {self.mean_iou:.3f} (exits {exits}), {more}; accuracy of pixels {_percent(self.accuracy)}{borders}"


@dataclass(frozen=True)
class AnswerReport:
    """Measures for numbers and vectors, of the routed answers and of every exit's.

    Attributes:
        distance, exit_distance: mean distance from the final exit's answer: for numbers the absolute difference, in spreads
            of the training targets; for vectors 1 - cosine.
        mae, rmse, r2: mean absolute error and root mean squared error of numbers, in their units (of several, over all of
            them), and R², 1 less the squared error over that of each number's mean on these samples, ``None`` if a number
            is the same in all of them. ``None`` without targets, as for vectors.
        exit_mae, exit_rmse, exit_r2: the same of every exit.
        overlap, exit_overlap: mean share of a vector's ten nearest probes that are the final vector's, too; ``None`` without
            probes.
    """

    distance: float
    exit_distance: tuple[float, ...]
    mae: float | None = None
    rmse: float | None = None
    r2: float | None = None
    exit_mae: tuple[float, ...] | None = None
    exit_rmse: tuple[float, ...] | None = None
    exit_r2: tuple[float, ...] | None = None
    overlap: float | None = None
    exit_overlap: tuple[float, ...] | None = None

    def _list_known(self) -> list[tuple[str, float, tuple[float, ...]]]:
        named = {
            "mean absolute error": (self.mae, self.exit_mae),
            "RMSE": (self.rmse, self.exit_rmse),
            "R²": (self.r2, self.exit_r2),
            "distance from the final exit's": (self.distance, self.exit_distance),
            "share of the nearest probes": (self.overlap, self.exit_overlap),
        }
        return [(name, value, exits) for name, (value, exits) in named.items() if value is not None and exits is not None]

    def tabulate(self) -> list[list[str]]:
        """Return every measure, routed and of every exit, as rows of a table, the head first."""
        rows = [["", "routed", *(exit_name(k, len(self.exit_distance)) for k in range(len(self.exit_distance)))]]
        rows += [[name, *(f"{x:.4g}" for x in (value, *exits))] for name, value, exits in self._list_known()]
        return rows

    def __str__(self) -> str:
        lists = [(name, value, " ".join(f"{x:.4g}" for x in exits)) for name, value, exits in self._list_known()]
        return "; ".join(f"{name} {value:.4g} (exits {exits})" for name, value, exits in lists)


@dataclass(frozen=True, repr=False)
class Report:
    """The result of :func:`evaluate`. Every accuracy is ``None`` without labels.

    With several labels per sample, an answer counts as right if all of its labels are (subset accuracy). With one class a
    pixel, accuracy, disagreement and the curve are means over images of the share of their pixels, and what is about whole
    answers (overthinking, oracle, classes, calibration) is missing. Numbers and vectors have no accuracy either:
    disagreement is their distance from the final exit's answer, at most 1, and ``answers`` has the rest.

    Attributes:
        accuracy, accuracy_drop: of the routed answers, and the final exit's accuracy minus that.
        disagreement: share of routed answers that differ from the final exit's.
        divergence: mean divergence of the map at the exit taken from the final map; 0 if the exits have no maps.
        cost, exit_shares: mean cost in units of the plain backbone, and the share of samples at each exit.
        overthinking: shares of samples that an early exit had right already and the final one has right too (wasteful) or
            wrong (destructive).
        curve: (cost, accuracy) points of the best policies on this trace, cheapest first, each better than those before it;
            (cost, agreement) without labels. It is fitted on this trace: optimistic.
        oracle: (cost, accuracy) points if every sample left at its first right exit up to exit k, or else at exit 0: what no
            rule can pass; empty without labels.
        classes: one row per class that has samples, in label order; empty without labels.
        ms, timing: mean over samples of the time that a batch takes at their exit, if the trace has timings, and these.
        cue_drop: how much more often the routed answers change than final ones when everything outside the object comes from
            another sample; ``None`` if the trace has no swaps.
        calibration_error: distance between confidence and accuracy, averaged over the routed answers (15 bins).
        labels: further measures for several labels per sample; else, and without labels, ``None``.
        pixels: further measures for one class a pixel; else, and without labels, ``None``.
        answers: measures for numbers and vectors; else ``None``.

    Examples:
        >>> report = xl.evaluate(trace, policy)
        >>> sum(report.exit_shares), report.exits[0].exit
        (1.0, 0)
    """

    accuracy: float | None
    accuracy_drop: float | None
    disagreement: float
    divergence: float
    cost: float
    exit_shares: tuple[float, ...]
    overthinking: tuple[float, float] | None
    exits: tuple[ExitRow, ...]
    curve: tuple[tuple[float, float], ...]
    samples: int
    classes: tuple[ClassRow, ...] = ()
    ms: float | None = None
    timing: ExitLatency | None = None
    labels: LabelReport | None = None
    calibration_error: float | None = None
    cue_drop: float | None = None
    oracle: tuple[tuple[float, float], ...] = ()
    pixels: PixelReport | None = None
    answers: AnswerReport | None = None

    def list_worst_classes(self, count: int = 10) -> list[ClassRow]:
        """Return the classes of lowest routed accuracy, worst first; on a tie, those that lose most come first."""
        return sorted(self.classes, key=lambda row: (row.accuracy, row.accuracy - row.final_accuracy, row.label))[:count]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        from exitlens.display import html_table

        spent = ["cost"] if self.timing is None else ["ms", "cost"]
        head = ["exit", *spent, "accuracy", "agrees with final", "share", "map's CC with final", "by chance", "skill"]
        rows = [[exit_name(row.exit, len(self.exits)), *row.format_cells()] for row in self.exits]
        return html_table(head, rows, self._summary())

    def _summary(self) -> str:
        timed = "" if self.timing is None or self.ms is None else f"; {format_ms(self.ms)} ms on average, {self.timing}"
        kind, labels = ("", "") if self.labels is None else ("subset ", f"\n{self.labels}")
        labels += "" if self.pixels is None else f"\n{self.pixels}"
        labels += "" if self.answers is None else f"\n{self.answers}"
        off, drop, error = self.calibration_error, self.accuracy_drop, ""
        if off is not None:
            error = f"\ncalibration error of the routed answers: confidences are off by {_percent(off)} on average"
        change = f"drop {_percent(None if drop is None else abs(drop))}"
        if drop is not None and drop <= -0.0005:
            change = f"{-100 * drop:.1f} points more accurate than the final exit"
        has_maps = any(row.consistency for row in self.exits) or self.divergence > 0
        maps = f"divergence {self.divergence:.3f}" if has_maps else "no maps"
        if self.cue_drop is not None:
            more = f"{abs(100 * self.cue_drop):.1f} points {'less' if self.cue_drop < 0 else 'more'} often"
            error += f"\nwith another sample's background, answers change {more} than the final exit's"
        quality = f"{kind}accuracy {_percent(self.accuracy)}, {change}, " if self.answers is None else ""
        return f"routed: {quality}cost {self.cost:.3f}, {maps}, {self.samples} samples{timed}{labels}{error}"

    def __repr__(self) -> str:
        timed, wide = ([], []) if self.timing is None else (["ms"], [7])
        head = ["exit", *timed, "cost", "accuracy", "agrees", "share", "CC", "null", "skill"]
        rows = [head, *([exit_name(row.exit, len(self.exits)), *row.format_cells()] for row in self.exits)]
        widths = (7, *wide, 6, 9, 7, 6, 6, 6, 6)
        lines = [" ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([*lines, self._summary()])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def evaluate(trace: Trace, policy: Policy) -> Report:
    """Apply a policy to a trace on paper.

    Args:
        trace: of test data on which nothing was chosen.
        policy: any policy of this network, or one made by hand; another network's raises :class:`PolicyError`.

    Examples:
        >>> report = xl.evaluate(trace, policy)
        >>> report.samples, len(report.exit_shares)
        (64, 3)
    """
    exits = route(trace, policy)
    labels, timing = trace.class_labels, trace.timing
    correct, known = trace.accuracy if trace.has_accuracy else None, torch.ones(len(trace), dtype=torch.bool)
    if correct is not None and trace.task == "segmentation":
        known = find_labelled(trace, "evaluate")
    early = score_early_exits(trace, policy)
    rows = tuple(_measure_exit(trace, policy, k, exits, correct, early, known) for k in range(trace.num_exits))
    return Report(
        accuracy=None if correct is None else select_exits(correct, exits)[known].mean().item(),
        accuracy_drop=None if correct is None else select_exits(accuracy_drop(trace), exits)[known].mean().item(),
        disagreement=select_exits(disagreement(trace), exits).mean().item(),
        divergence=select_exits(trace.divergence, exits).mean().item(),
        cost=trace.cost[exits].double().mean().item(),
        exit_shares=tuple(row.share for row in rows),
        overthinking=None if labels is None or correct is None else scores.overthinking(correct),
        exits=rows,
        curve=_find_curve(trace, policy),
        samples=len(trace),
        classes=() if labels is None or correct is None else _measure_classes(trace, labels, correct, exits),
        ms=None if timing is None else torch.tensor(timing.ms, dtype=torch.float64)[exits].mean().item(),
        timing=timing,
        labels=None if labels is None or trace.task != "multilabel" else _measure_labels(trace, labels, exits),
        calibration_error=None if labels is None else scores.routed_calibration_error(trace, policy.temperatures, exits),
        cue_drop=cue_drop(trace, 1.0).mean(exits) if has_swaps(trace) else None,
        oracle=() if labels is None or correct is None else scores.find_oracle_curve(correct, trace.cost),
        pixels=_measure_pixels(trace, exits) if trace.task == "segmentation" and trace.is_labelled else None,
        answers=_measure_answers(trace, trace.logits, exits) if isinstance(trace.logits, AnswerSummary) else None,
    )


def _measure_answers(trace: Trace, kept: AnswerSummary, exits: Tensor) -> AnswerReport:
    measures: dict[str, Any] = {}
    for name, values in (("distance", kept.distance), ("overlap", kept.overlap)):
        if values is not None:
            measures |= {name: select_exits(values, exits).mean().item(), f"exit_{name}": tuple(values.mean(0).tolist())}
    if trace.labels is None:
        return AnswerReport(**measures)
    wrong = kept.values.double() - trace.labels[:, None].double()  # (N,K,C)
    total = (trace.labels.double() - trace.labels.double().mean(0)).square().sum(0)
    for prefix, errors in (("", wrong[torch.arange(len(trace)), exits][:, None]), ("exit_", wrong)):
        rows = {"mae": errors.abs().mean((0, 2)), "rmse": errors.square().mean((0, 2)).sqrt()}
        rows |= {"r2": (1 - errors.square().sum(0) / total).mean(1)} if bool((total > 0).all()) else {}
        for name, row in rows.items():
            measures[prefix + name] = tuple(row.tolist()) if prefix else row.item()
    return AnswerReport(**measures)


def _measure_pixels(trace: Trace, exits: Tensor) -> PixelReport:
    counts, rows, borders = trace.require_confusion("evaluate").long(), torch.arange(len(trace)), trace.borders
    routed, totals = counts[rows, exits].sum(0), counts.sum(0)  # (C,C), (K,C,C)
    mean_iou, exit_mean_iou = measure_mean_iou(routed).item(), tuple(measure_mean_iou(totals).tolist())

    def list_iou(confusion: Tensor) -> tuple[float | None, ...]:
        return tuple(None if math.isnan(value) else value for value in measure_iou(confusion).tolist())

    return PixelReport(
        mean_iou=mean_iou,
        mean_iou_drop=exit_mean_iou[-1] - mean_iou,
        exit_mean_iou=exit_mean_iou,
        iou=list_iou(routed),
        final_iou=list_iou(totals[-1]),
        accuracy=rate_pixels(routed).item(),
        exit_accuracy=tuple(rate_pixels(totals).tolist()),
        image_mean_iou_drop=mean_iou_drop(trace, 1.0).mean(exits),
        classes=trace.classes,
        boundary_f1=None if borders is None else measure_border_f1(borders[rows, exits]).item(),
        exit_boundary_f1=None if borders is None else tuple(measure_border_f1(borders).tolist()),
    )


def _measure_labels(trace: Trace, labels: Tensor, exits: Tensor) -> LabelReport:
    answers = trace.answers  # (N,K,C)
    missed = false_negatives(answers, labels[:, None])  # (N,K)
    rate, rates = select_exits(missed, exits).mean().item(), missed.mean(0).tolist()
    f1 = scores.micro_f1(answers[torch.arange(len(trace)), exits], labels)
    exit_f1 = tuple(scores.micro_f1(exit_answers, labels) for exit_answers in answers.unbind(1))
    return LabelReport(f1, rate, rate - rates[-1], exit_f1, tuple(rates))


def _measure_classes(trace: Trace, labels: Tensor, correct: Tensor, exits: Tensor) -> tuple[ClassRow, ...]:
    if trace.task == "multilabel":
        answers = trace.answers
        told = answers[torch.arange(len(trace)), exits], answers[:, -1]
        sums = [labels.sum(0), *((labels & answer).sum(0) for answer in told)]
    else:
        weights = torch.ones(len(labels)), select_exits(correct, exits), correct[:, -1]
        sums = [labels.bincount(weight) for weight in weights]
    table = enumerate(torch.stack(sums, 1).tolist())
    return tuple(ClassRow(label, int(n), routed / n, final / n) for label, (n, routed, final) in table if n)


def _measure_exit(
    trace: Trace, policy: Policy, k: int, exits: Tensor, correct: Tensor | None, early: Tensor, known: Tensor
) -> ExitRow:  # early (N,K-1): what is compared with thresholds; known (N,) bool: samples with labels
    takes = exits == k
    accuracy = when_taken = error = brier = area = rescued = spoiled = warning = None
    if correct is not None:
        right, rated_here = correct[:, k], takes & known
        accuracy, when_taken = right[known].mean().item(), right[rated_here].mean().item() if rated_here.any() else None
    if trace.labels is not None and correct is not None:
        rated = scores.rate_probabilities(trace.class_logits[:, k], trace.labels, policy.temperatures[k])
        error, brier = scores.expected_calibration_error(rated.confidence, rated.correct), rated.squared_error.mean().item()
        is_decided = trace.task == "multilabel"
        certainty = scores.score(trace.logits[:, k], DECIDED, policy.temperatures[k]) if is_decided else rated.confidence
        area = scores.risk_coverage(certainty, right).mean().item()
        better, worse = correct[:, -1] > right, correct[:, -1] < right
        rescued, spoiled = better.double().mean().item(), worse.double().mean().item()
        if k < trace.num_exits - 1:
            warning = scores.rank_area(-early[:, k], better)
    consistency = {}
    for name, values in trace.similarity.items():
        value = values[:, k].mean().item()
        row = {"value": value, "null": trace.null[name][:, k].mean().item() if name in trace.null else math.nan}
        if name in trace.uniform_null:
            row["uniform"] = trace.uniform_null[name][:, k].mean().item()
        consistency[name] = row | {"skill": skill(value, row["null"])} if name in HIGHER_IS_CLOSER else row
    return ExitRow(
        exit=k,
        cost=trace.cost[k].item(),
        accuracy=accuracy,
        agreement=1 - disagreement(trace)[:, k].mean().item(),
        calibration_error=error,
        brier=brier,
        risk_coverage=area,
        share=takes.float().mean().item(),
        accuracy_when_taken=when_taken,
        consistency=consistency,
        ms=None if trace.timing is None else trace.timing.ms[k],
        rescued=rescued,
        spoiled=spoiled,
        warning=warning,
    )


def _find_curve(trace: Trace, policy: Policy) -> tuple[tuple[float, float], ...]:
    """Return cost and accuracy (or agreement with the final exit) along the frontier of this trace."""
    risk, best = disagreement(trace), 1.0
    if trace.has_accuracy:
        risk, best = accuracy_drop(trace), trace.accuracy[:, -1].mean().item()
    index = quantise(score_early_exits(trace, policy)).index
    return tuple((point.cost, best - point.risk) for point in find_frontier(index, risk, trace.cost))


PRICES = (0.0, 0.3, 1.0, 3.0)  # how many errors a divergence of 1 weighs


def sweep(trace: Trace, *, score: str | None = None, level: float = 0.95, most: int = 60, seed: int = 0) -> list[SweepPoint]:
    """Return the frontier of accuracy, divergence and cost, cheapest first: what to ask of :func:`exitlens.calibrate`.

    Policies are found on one half of the samples (or groups) and measured on the other, so no point flatters itself. The
    bands hold for all points of one measure at once (Gaussian multiplier bootstrap of the largest deviation, arXiv
    1212.6906).

    Args:
        trace: 10 samples (or groups) or more; without labels, agreement with the final exit takes the place of accuracy.
        score: ``max_probability`` (the default), ``entropy`` or ``margin``; with several labels per sample ``decided``.
        seed: decides how the samples are split in halves.

    Examples:
        >>> points = xl.sweep(trace)
        >>> points[0].cost.value <= points[-1].cost.value  # cheapest first
        True
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    score = choose_score(score, trace.task)
    if trace.num_groups < 10:
        what = "samples" if trace.groups is None else "groups"
        raise InputError(f"trace: expected 10 {what} or more, got {trace.num_groups}: half of them find the policies")
    check_number("level", level, PROPER_SHARE)
    check_number("most", most, COUNT)
    _, first, second = split_trace(trace, 0.5, seed)
    labels = trace.class_labels
    temperatures = () if labels is None else scores.fit_temperatures(trace.class_logits, labels, first)
    base = Policy.never(trace.num_exits, score=score, temperatures=temperatures, network=trace.network)
    levels = quantise(score_early_exits(trace, base)[first])
    risk = default_loss(trace)
    vectors: dict[Cuts, None] = {}
    for mixed in [*(risk + price * trace.divergence for price in PRICES), trace.divergence]:
        vectors |= {p.cuts: None for p in find_frontier(levels.index, mixed[first], trace.cost)}
    cuts = _keep_undominated(list(vectors), levels.index, [risk[first], trace.divergence[first]], trace.cost)
    if len(cuts) > most:
        cuts = [cuts[i] for i in torch.linspace(0, len(cuts) - 1, most).round().long().unique().tolist()]
    policies = [replace(base, thresholds=levels.thresholds(c)) for c in cuts]
    exits = [find_first_firing(score_early_exits(trace, policy), policy.thresholds)[second] for policy in policies]
    measures = {"cost": trace.cost[None].expand(len(second), -1), "agreement": 1 - disagreement(trace)[second]}
    measures["divergence"] = trace.divergence[second]
    if trace.has_accuracy:
        measures["accuracy"] = trace.accuracy[second]
    groups = None if trace.groups is None or trace.num_groups == len(trace) else trace.groups[second]
    bands = {
        name: _find_bands(torch.stack([select_exits(values, e) for e in exits]), level, groups)
        for name, values in measures.items()
    }
    return [SweepPoint(policy, **{name: points[i] for name, points in bands.items()}) for i, policy in enumerate(policies)]


def _keep_undominated(pool: Sequence[Cuts], index: Tensor, risks: Sequence[Tensor], cost: Tensor) -> list[Cuts]:
    """Return the cuts that no others beat in cost and in every risk, cheapest first."""
    routed = [find_first_firing(index, cuts) for cuts in pool]
    columns = [cost[None].expand(len(index), -1), *risks]
    rows = [[select_exits(values, exits).double().mean() for values in columns] for exits in routed]
    table = torch.tensor(rows, dtype=torch.float64)
    beaten = (table[:, None] >= table[None]).all(2) & (table[:, None] > table[None]).any(2)
    kept = (~beaten.any(1)).nonzero().squeeze(1)
    return [pool[i] for i in kept[table[kept, 0].argsort()].tolist()]


def _find_bands(values: Tensor, level: float, groups: Tensor | None = None, draws: int = 500) -> list[ConfidenceInterval]:
    """Return simultaneous bands for the means of all rows of ``values`` ``(P,n)``; ``groups`` is ``(n,)``."""
    x = values.double()
    means, count = x.mean(1), len(x[0])
    residuals, errors = x - means[:, None], x.std(1, correction=0) / count**0.5
    if groups is not None:
        ids, numbers = groups.unique(return_inverse=True)
        residuals = torch.zeros(len(x), len(ids), dtype=torch.float64).index_add(1, numbers, residuals)
        errors = residuals.norm(dim=1) / count
    noise = torch.randn(residuals.shape[1], draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    deviations = (residuals @ noise / count).abs() / errors.clamp_min(1e-12)[:, None]
    width = deviations.amax(0).quantile(level) * errors
    return [ConfidenceInterval(m, m - w, m + w) for m, w in zip(means.tolist(), width.tolist(), strict=True)]


def measure_anytime(trace: Trace) -> list[CostAccuracy]:
    """Return the accuracy of each exit if it answers every sample, on a labelled trace.

    This is the anytime curve of MSDNet (arXiv 1703.09844, section 5.2).

    Examples:
        >>> [round(point.cost, 2) for point in xl.measure_anytime(trace)] == [round(cost, 2) for cost in trace.cost.tolist()]
        True
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    correct = trace.require_accuracy("measure_anytime").double().mean(0)
    return [CostAccuracy(cost, right) for cost, right in zip(trace.cost.tolist(), correct.tolist(), strict=True)]


def measure_budgeted_batch(
    validation: Trace, test: Trace, *, score: str | None = None, points: int = 40
) -> list[CostAccuracy]:
    """Return accuracy at mean costs under MSDNet's protocol (arXiv 1703.09844, section 5.2), for comparison with papers.

    Exit k answers a share proportional to ``q^k`` of the samples, the surest of those that reach it; the thresholds
    that do so on ``validation`` are applied to ``test``. :func:`exitlens.calibrate` finds better thresholds, exit by exit.

    Args:
        validation: chooses thresholds; needs no labels. test: labelled.
        score: ``max_probability`` (MSDNet's, the default), ``entropy`` or ``margin``; with several labels per sample
            ``decided``; without temperatures.
        points: number of values of ``q``, from almost all samples at the first exit to almost all at the last.

    Examples:
        >>> half = torch.arange(32)
        >>> xl.measure_budgeted_batch(trace.select(half), trace.select(half + 32), points=2)
        [CostAccuracy(cost=..., accuracy=...), ...]
    """
    for name, trace in (("validation", validation), ("test", test)):
        require(trace, Trace, name, "see exitlens.collect")
    networks = {validation.network, test.network} - {""}
    if (validation.num_exits, validation.task) != (test.num_exits, test.task) or len(networks) > 1:
        raise InputError("validation, test: expected traces of one network: collect both with it")
    check_number("points", points, COUNT)
    correct = test.require_accuracy("measure_budgeted_batch").double()
    policy = Policy.never(test.num_exits, score=choose_score(score, test.task))
    known, tested = score_early_exits(validation, policy), score_early_exits(test, policy)
    curve = []
    for q in torch.logspace(-1.5, 1.5, points).tolist():
        shares = torch.tensor([q**k for k in range(test.num_exits)], dtype=torch.float64)
        rest, thresholds = torch.arange(len(known)), []
        for k, share in enumerate((shares / shares.sum()).tolist()[:-1]):
            order = known[rest, k].argsort(descending=True)
            leaving = min(len(rest), round(share * len(known)))
            thresholds.append(known[rest[order[leaving - 1]], k].item() if leaving else math.inf)
            rest = rest[order[leaving:]]
        exits = find_first_firing(tested, thresholds)
        curve.append(CostAccuracy(test.cost[exits].double().mean().item(), select_exits(correct, exits).mean().item()))
    return curve
