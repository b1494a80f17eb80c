"""evaluate: what a policy does on a trace, beside what chance would do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from exitlens.errors import require
from exitlens.functional.maps import skill
from exitlens.functional.risk import accuracy_drop, disagreement, false_negatives, select_exits
from exitlens.functional.routing import route, score_early_exits
from exitlens.functional.scores import (
    expected_calibration_error,
    micro_f1,
    overthinking,
    rate_probabilities,
    risk_coverage,
    routed_calibration_error,
    score,
)
from exitlens.functional.thresholds.search import find_frontier, quantise
from exitlens.types import ExitLatency, Policy, Trace
from exitlens.types.outputs import exit_name
from exitlens.types.requests import DECIDED
from exitlens.types.traces import format_ms

HIGHER_IS_CLOSER = ("cc", "cosine", "sim", "iou")


@dataclass(frozen=True)
class ExitRow:
    """One exit over the whole data set (everything answered there), and the share the policy lets it answer.

    ``ms``: of a batch that leaves there, where the trace has measured times.

    ``calibration_error`` (15 bins), ``brier`` (in [0, 2]) and ``risk_coverage`` (area under the risk-coverage curve by
    maximum probability: the mean error rate over all coverages) use the policy's temperatures. Of several labels, the
    first two are about every label of every sample (``brier`` in [0, 1]), and the curve is by how decided a sample is.

    ``consistency`` maps a measure to ``{"value", "null", "uniform", "skill"}``: the mean, the shuffled-image null, the
    uniform null, and the skill over the shuffled-image null (only for measures where more is closer).
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
        """For people: milliseconds if known, cost, accuracy, agreement, share, and the map's CC with its null and skill."""
        agreed = self.consistency.get("cc", {})
        cc = [f"{agreed[name]:.2f}" if name in agreed else "-" for name in ("value", "null", "skill")]
        spent = [*([] if self.ms is None else [format_ms(self.ms)]), f"{self.cost:.3f}"]
        return [*spent, _percent(self.accuracy), _percent(self.agreement), _percent(self.share), *cc]


@dataclass(frozen=True)
class ClassRow:
    """The samples of one class: how many, and how many of the routed and of the final exit's answers are right.

    Of several labels: of the samples that have the label, in how many it is found.
    """

    label: int
    samples: int
    accuracy: float
    final_accuracy: float


@dataclass(frozen=True)
class LabelReport:
    """What there is to say of several labels beside subset accuracy (all labels of a sample right).

    Attributes:
        f1: micro-F1 of the routed answers. exit_f1: of every exit's.
        false_negative_rate: mean over samples of the share of their labels that the routed answer lacks (0 for samples that
            have none). exit_false_negative_rate: of every exit's answers.
        false_negative_drop: of the routed answers, less the final exit's.
    """

    f1: float
    false_negative_rate: float
    false_negative_drop: float
    exit_f1: tuple[float, ...]
    exit_false_negative_rate: tuple[float, ...]

    def __str__(self) -> str:
        missed = f"false negatives {_percent(self.false_negative_rate)} ({_describe_more(self.false_negative_drop)})"
        return f"micro-F1 {self.f1:.3f} (exits {' '.join(f'{value:.3f}' for value in self.exit_f1)}), {missed}"


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`evaluate` found. Labels are needed for all accuracies; without them they are ``None``.

    Of several labels, an answer is right if all of them are (subset accuracy).

    Attributes:
        accuracy: of the routed answers. accuracy_drop: final exit's accuracy minus that.
        disagreement: share of routed answers that differ from the final exit's.
        divergence: mean divergence of the map at the exit taken from the final map; 0 where exits have no maps.
        cost: mean cost in units of the plain backbone. exit_shares: per exit.
        overthinking: shares of samples that an early exit had right already and the final one has right too (wasteful) or
            wrong (destructive).
        exits: one row per exit. curve: (cost, accuracy) points of the best policies on this trace, cheapest first, each
            better than those before it; (cost, agreement) without labels. It is fitted on this trace: optimistic.
        samples: N.
        classes: one row per class that has samples, in label order; none without labels.
        ms: the mean over samples of what a batch takes at the exit that they take, where the trace has measured times.
        timing: these times, and the machine, batch size and spread that belong to them.
        calibration_error: how far confidence is from accuracy, on average over the routed answers (15 bins).
        labels: what else there is to say of several labels; ``None`` for one class a sample, and without labels.

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
        """The classes of the lowest routed accuracy, the worst first; of equal ones those that lose most."""
        return sorted(self.classes, key=lambda row: (row.accuracy, row.accuracy - row.final_accuracy, row.label))[:count]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"timing": None if self.timing is None else self.timing.to_dict()}

    def _repr_html_(self) -> str:
        from exitlens.display import html_table

        spent = ["cost"] if self.timing is None else ["ms", "cost"]
        head = ["exit", *spent, "accuracy", "agrees with final", "share", "map's CC with final", "by chance", "skill"]
        rows = [[exit_name(row.exit, len(self.exits)), *row.format_cells()] for row in self.exits]
        return html_table(head, rows, self._summary())

    def _summary(self) -> str:
        timed = "" if self.timing is None or self.ms is None else f"; {format_ms(self.ms)} ms on average, {self.timing}"
        kind, labels = ("", "") if self.labels is None else ("subset ", f"\n{self.labels}")
        off = self.calibration_error
        error = "" if off is None else f"\nconfidences are off by {_percent(off)} on average"
        has_maps = any(row.consistency for row in self.exits) or self.divergence > 0
        maps = f"divergence {self.divergence:.3f}" if has_maps else "no maps"
        return (
            f"routed: {kind}accuracy {_percent(self.accuracy)}, {_describe_drop(self.accuracy_drop)}, "
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


def _describe_drop(drop: float | None) -> str:
    """Accuracy lost against the final exit, or gained."""
    if drop is None or drop > -0.0005:
        return f"drop {_percent(None if drop is None else abs(drop))}"
    return f"{-100 * drop:.1f} points more accurate than the final exit"


def _describe_more(extra: float) -> str:
    """False negatives against the final exit's: so many points more, or fewer."""
    return f"{abs(100 * extra):.1f} points {'fewer' if extra < -0.0005 else 'more'} than the final exit"


def evaluate(trace: Trace, policy: Policy) -> Report:
    """Apply a policy to a trace on paper.

    Args:
        trace: of test data, which nothing was chosen on.
        policy: any policy of this network, or one made by hand.

    Raises:
        PolicyError: if the policy does not fit the trace.

    Examples:
        >>> report = xl.evaluate(trace, policy)
        >>> report.samples, len(report.exit_shares)
        (64, 3)
    """
    require(trace, Trace, "trace", "see exitlens.collect")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    exits = route(trace, policy)
    correct = None if trace.labels is None else trace.correct.float()
    rows = tuple(_row(trace, policy, k, exits, correct) for k in range(trace.num_exits))
    return Report(
        accuracy=None if correct is None else select_exits(correct, exits).mean().item(),
        accuracy_drop=None if correct is None else select_exits(accuracy_drop(trace), exits).mean().item(),
        disagreement=select_exits(disagreement(trace), exits).mean().item(),
        divergence=select_exits(trace.divergence, exits).mean().item(),
        cost=trace.cost[exits].double().mean().item(),
        exit_shares=tuple(row.share for row in rows),
        overthinking=None if correct is None else overthinking(correct),
        exits=rows,
        curve=_curve(trace, policy),
        samples=len(trace),
        calibration_error=None if correct is None else routed_calibration_error(trace, policy.temperatures, exits),
        ms=None if trace.timing is None else torch.tensor(trace.timing.ms, dtype=torch.float64)[exits].mean().item(),
        timing=trace.timing,
        classes=() if trace.labels is None or correct is None else _classes(trace, trace.labels, correct, exits),
        labels=None if trace.labels is None or trace.task != "multilabel" else _report_labels(trace, trace.labels, exits),
    )


def _report_labels(trace: Trace, labels: Tensor, exits: Tensor) -> LabelReport:
    answers = trace.answers  # (N,K,C)
    missed = false_negatives(answers, labels[:, None])  # (N,K)
    rate, rates = select_exits(missed, exits).mean().item(), missed.mean(0).tolist()
    routed = answers[torch.arange(len(trace)), exits]
    each = tuple(micro_f1(exit_answers, labels) for exit_answers in answers.unbind(1))
    return LabelReport(micro_f1(routed, labels), rate, rate - rates[-1], each, tuple(rates))


def _classes(trace: Trace, labels: Tensor, correct: Tensor, exits: Tensor) -> tuple[ClassRow, ...]:
    if trace.task == "multilabel":
        answers, rows = trace.answers, torch.arange(len(trace))
        told, final = ((labels & told_by).sum(0).tolist() for told_by in (answers[rows, exits], answers[:, -1]))
        counted = enumerate(zip(labels.sum(0).tolist(), told, final, strict=True))
        return tuple(ClassRow(c, n, told_by / n, other / n) for c, (n, told_by, other) in counted if n)
    right = torch.stack([select_exits(correct, exits), correct[:, -1]], 1)  # (N,2)
    present, place, counts = labels.unique(return_inverse=True, return_counts=True)
    means = right.new_zeros(len(present), 2).index_add_(0, place, right) / counts[:, None]
    rated = zip(present.tolist(), counts.tolist(), means.tolist(), strict=True)
    return tuple(ClassRow(label, count, routed, final) for label, count, (routed, final) in rated)


def _row(trace: Trace, policy: Policy, k: int, exits: Tensor, correct: Tensor | None) -> ExitRow:
    takes = exits == k
    error = brier = area = None
    if trace.labels is not None and correct is not None:
        rated = rate_probabilities(trace.logits[:, k], trace.labels, policy.temperatures[k])
        error, brier = expected_calibration_error(rated.confidence, rated.correct), rated.squared_error.mean().item()
        sure = rated.confidence
        if trace.task == "multilabel":
            sure = score(trace.logits[:, k], DECIDED, policy.temperatures[k])
        area = risk_coverage(sure, correct[:, k]).mean().item()
    return ExitRow(
        exit=k,
        cost=trace.cost[k].item(),
        accuracy=None if correct is None else correct[:, k].mean().item(),
        agreement=1 - disagreement(trace)[:, k].mean().item(),
        calibration_error=error,
        brier=brier,
        risk_coverage=area,
        share=takes.float().mean().item(),
        accuracy_when_taken=None if correct is None or not takes.any() else correct[takes, k].mean().item(),
        consistency={name: _consistency(trace, name, k) for name in trace.similarity},
        ms=None if trace.timing is None else trace.timing.ms[k],
    )


def _consistency(trace: Trace, name: str, k: int) -> dict[str, float]:
    value = trace.similarity[name][:, k].mean().item()
    null = trace.null[name][:, k].mean().item() if name in trace.null else math.nan
    row = {"value": value, "null": null}
    if name in trace.uniform_null:
        row["uniform"] = trace.uniform_null[name][:, k].mean().item()
    return row | {"skill": skill(value, null)} if name in HIGHER_IS_CLOSER else row


def _curve(trace: Trace, policy: Policy) -> tuple[tuple[float, float], ...]:
    """Cost against accuracy (or agreement with the final exit) along the frontier of this trace."""
    risk = disagreement(trace) if trace.labels is None else accuracy_drop(trace)
    best = 1.0
    if trace.labels is not None:
        best = trace.correct[:, -1].float().mean().item()
    index = quantise(score_early_exits(trace, policy)).index
    return tuple((point.cost, best - point.risk) for point in find_frontier(index, risk, trace.cost))
