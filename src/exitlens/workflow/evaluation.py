"""evaluate: what a policy does on a trace, beside what chance would do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import require
from exitlens.functional import scores
from exitlens.functional.maps import skill
from exitlens.functional.risk import accuracy_drop, disagreement, false_negatives, select_exits
from exitlens.functional.routing import route, score_early_exits
from exitlens.functional.search import find_frontier, quantise
from exitlens.types import ExitLatency, Policy, Trace
from exitlens.types.outputs import exit_name
from exitlens.types.settings import DECIDED
from exitlens.types.traces import format_ms

HIGHER_IS_CLOSER = ("cc", "cosine", "sim", "iou")


@dataclass(frozen=True)
class ExitRow:
    """One exit over the whole data set, as if it answered everything, and the share the policy lets it answer.

    Attributes:
        calibration_error, brier, risk_coverage: expected calibration error (15 bins), Brier score (in [0, 2]) and the area
            under the risk-coverage curve by maximum probability (the mean error rate over all coverages), with the policy's
            temperatures. With several labels per sample the first two average over every label of every sample (``brier`` in
            [0, 1]), and the curve ranks samples by how decided they are.
        consistency: maps a measure to ``{"value", "null", "uniform", "skill"}``: the mean, the shuffled-image null, the
            uniform null, and the skill over the shuffled-image null (only for measures where more is closer).
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
        f1: micro-F1 of the routed answers. exit_f1: the same of every exit's answers.
        false_negative_rate: mean over samples of the share of their labels that the routed answer lacks (0 for samples
            without labels). exit_false_negative_rate: the same of every exit's answers.
        false_negative_drop: the routed answers' rate less the final exit's.
    """

    f1: float
    false_negative_rate: float
    false_negative_drop: float
    exit_f1: tuple[float, ...]
    exit_false_negative_rate: tuple[float, ...]

    def __str__(self) -> str:
        drop = self.false_negative_drop
        more = f"{abs(100 * drop):.1f} points {'fewer' if drop < -0.0005 else 'more'} than the final exit"
        exits = " ".join(f"{value:.3f}" for value in self.exit_f1)
        return f"micro-F1 {self.f1:.3f} (exits {exits}), false negatives {_percent(self.false_negative_rate)} ({more})"


@dataclass(frozen=True, repr=False)
class Report:
    """The result of :func:`evaluate`. Every accuracy is ``None`` without labels.

    With several labels per sample, an answer counts as right if all of its labels are (subset accuracy).

    Attributes:
        accuracy: of the routed answers. accuracy_drop: final exit's accuracy minus that.
        disagreement: share of routed answers that differ from the final exit's.
        divergence: mean divergence of the map at the exit taken from the final map; 0 if the exits have no maps.
        cost: mean cost in units of the plain backbone. exit_shares: per exit.
        overthinking: shares of samples that an early exit had right already and the final one has right too (wasteful) or
            wrong (destructive).
        exits: one row per exit. curve: (cost, accuracy) points of the best policies on this trace, cheapest first, each
            better than those before it; (cost, agreement) without labels. It is fitted on this trace: optimistic.
        samples: N.
        classes: one row per class that has samples, in label order; empty without labels.
        ms: mean over samples of the time that a batch takes at their exit, if the trace has timings.
        timing: these timings, and the machine, batch size and spread that belong to them.
        calibration_error: distance between confidence and accuracy, averaged over the routed answers (15 bins).
        labels: further measures for several labels per sample; else, and without labels, ``None``.

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
        off, drop = self.calibration_error, self.accuracy_drop
        error = "" if off is None else f"\nconfidences are off by {_percent(off)} on average"
        change = f"drop {_percent(None if drop is None else abs(drop))}"
        if drop is not None and drop <= -0.0005:
            change = f"{-100 * drop:.1f} points more accurate than the final exit"
        has_maps = any(row.consistency for row in self.exits) or self.divergence > 0
        maps = f"divergence {self.divergence:.3f}" if has_maps else "no maps"
        return (
            f"routed: {kind}accuracy {_percent(self.accuracy)}, {change}, "
            f"cost {self.cost:.3f}, {maps}, {self.samples} samples{timed}{labels}{error}"
        )

    def __repr__(self) -> str:
        timed, wide = ([], []) if self.timing is None else (["ms"], [7])
        head = ["exit", *timed, "cost", "accuracy", "agrees", "share", "CC", "null", "skill"]
        rows = [head, *([str(row.exit), *row.format_cells()] for row in self.exits)]
        widths = (5, *wide, 6, 9, 7, 6, 6, 6, 6)
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
    require(trace, Trace, "trace", "see exitlens.collect")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    exits = route(trace, policy)
    labels, timing = trace.labels, trace.timing
    correct = None if labels is None else trace.correct.float()
    rows = tuple(_measure_exit(trace, policy, k, exits, correct) for k in range(trace.num_exits))
    return Report(
        accuracy=None if correct is None else select_exits(correct, exits).mean().item(),
        accuracy_drop=None if correct is None else select_exits(accuracy_drop(trace), exits).mean().item(),
        disagreement=select_exits(disagreement(trace), exits).mean().item(),
        divergence=select_exits(trace.divergence, exits).mean().item(),
        cost=trace.cost[exits].double().mean().item(),
        exit_shares=tuple(row.share for row in rows),
        overthinking=None if correct is None else scores.overthinking(correct),
        exits=rows,
        curve=_find_curve(trace, policy),
        samples=len(trace),
        classes=() if labels is None or correct is None else _measure_classes(trace, labels, correct, exits),
        ms=None if timing is None else torch.tensor(timing.ms, dtype=torch.float64)[exits].mean().item(),
        timing=timing,
        labels=None if labels is None or trace.task != "multilabel" else _measure_labels(trace, labels, exits),
        calibration_error=None if labels is None else scores.routed_calibration_error(trace, policy.temperatures, exits),
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


def _measure_exit(trace: Trace, policy: Policy, k: int, exits: Tensor, correct: Tensor | None) -> ExitRow:
    takes = exits == k
    accuracy = when_taken = error = brier = area = None
    if trace.labels is not None and correct is not None:
        right = correct[:, k]
        accuracy, when_taken = right.mean().item(), right[takes].mean().item() if takes.any() else None
        rated = scores.rate_probabilities(trace.logits[:, k], trace.labels, policy.temperatures[k])
        error, brier = scores.expected_calibration_error(rated.confidence, rated.correct), rated.squared_error.mean().item()
        is_decided = trace.task == "multilabel"
        certainty = scores.score(trace.logits[:, k], DECIDED, policy.temperatures[k]) if is_decided else rated.confidence
        area = scores.risk_coverage(certainty, right).mean().item()
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
    )


def _find_curve(trace: Trace, policy: Policy) -> tuple[tuple[float, float], ...]:
    """Return cost and accuracy (or agreement with the final exit) along the frontier of this trace."""
    risk, best = disagreement(trace), 1.0
    if trace.labels is not None:
        risk, best = accuracy_drop(trace), trace.correct[:, -1].float().mean().item()
    index = quantise(score_early_exits(trace, policy)).index
    return tuple((point.cost, best - point.risk) for point in find_frontier(index, risk, trace.cost))
