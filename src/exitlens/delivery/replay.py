"""Replays what a policy that adapts has logged: what any thresholds would have cost and broken, as a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from exitlens.errors import DataError, InputError
from exitlens.functional.adapting import average, choose_thresholds, count_effective, select_losses
from exitlens.functional.certification import upper_bound
from exitlens.functional.routing import find_first_firing
from exitlens.io import read_json
from exitlens.model.engine.adapting import DAMAGED, read_observed
from exitlens.model.engine.journal import SCORED_BY, SETTINGS, Line, list_files, read_lines
from exitlens.types import Policy
from exitlens.types.policies import read_levels, write_levels
from exitlens.types.settings import LimitedLoss

SIDE = 0.025  # chance that the true share is above the upper end of an interval, and as much below the lower
PARTS, LEAST = 48, 40  # parts of a picture at most, and audits in each at least
LOSSES = {"disagreement": "other answers, %", "divergence": "divergence, %", "binding": "answers that do not bind, %"}
BEST = "best in hindsight"


@dataclass(frozen=True)
class Log:
    """Observed samples of a journal, in the order of their times, which stand for all that were answered.

    Attributes:
        times: ``(n,)`` seconds since 1970. scores, losses: ``(n,K-1)``. exits: ``(n,)`` where they would have left.
        weights: ``(n,)`` how many answered samples each stands for, over their mean.
        levels: times with the thresholds from then on.
        facts: what the journal was made with.
    """

    times: Tensor
    scores: Tensor
    losses: Tensor
    exits: Tensor
    weights: Tensor
    levels: Sequence[tuple[float, tuple[float, ...]]]
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Replayed:
    """What thresholds would have done: over observed samples, which stand for all."""

    name: str
    thresholds: tuple[float, ...] | None  # None: those of each moment
    cost: float
    cost_error: float
    loss: float  # share of answers that would not have been the final exit's, or the mean of what else was limited
    interval: tuple[float, float]  # with 95 % confidence
    exits: tuple[float, ...]  # share of the answers of each exit

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite thresholds become the string ``"never"``."""
        return vars(self) | {"thresholds": None if self.thresholds is None else write_levels(self.thresholds)}


def find_journal(folder: Path, version: str = "") -> Path:
    """Return the folder of a journal: this one, or the only one below it, or there that of a version of a bundle."""
    below = [path.parent for path in sorted(folder.rglob(SETTINGS))]
    chosen = [path for path in below if path == folder] or [path for path in below if path.name == version] or below
    if len(chosen) != 1:
        names = ", ".join(map(str, chosen)) or "none"
        raise InputError(f"log: expected the folder of one journal in {folder}, got {names}. Fix: name one of them.")
    return chosen[0]


def read_log(folder: Path, since: float = -math.inf, until: float = math.inf) -> Log:
    """Read what was logged between two times; raise :class:`DataError` if nothing was."""
    facts = read_json(folder / SETTINGS)
    if not isinstance(facts, dict) or not {"limit", "loss", "warm_up", *SCORED_BY} <= facts.keys():
        raise DataError(
            f"log: {folder / SETTINGS} is damaged, or of another version. Fix: name the folder of another journal."
        )
    lines = sorted((line for path in list_files(folder) for line in read_lines(path)), key=lambda line: float(line["time"]))
    lines = [line for line in lines if since <= line["time"] <= until]
    parts = read_observed(lines, len(facts["temperatures"]) - 1)
    seen = [(float(line["time"]), part.select_finite()) for part, line in parts]
    times = torch.cat([torch.full((len(part.exits),), time, dtype=torch.float64) for time, part in seen] or [torch.empty(0)])
    if (count := len(times)) < 2:
        words = "Fix: choose a longer time."
        raise DataError(f"log: expected 2 observed samples or more in this time, got {count} in {folder}. {words}")
    columns = (torch.cat([getattr(part, name) for _, part in seen]) for name in ("scores", "losses", "exits", "weights"))
    scores, losses, exits, weights = columns
    return Log(times, scores, losses, exits, weights / weights.mean(), _list_levels(lines), facts)


def _list_levels(lines: Sequence[Line]) -> list[tuple[float, tuple[float, ...]]]:
    """Return when thresholds moved, of the process that wrote last: each has thresholds of its own."""
    levels: list[tuple[float, tuple[float, ...]]] = []
    for line in lines:
        with suppress(*DAMAGED):
            given = tuple(float(level) for level in read_levels(line["status"]["thresholds"]))
            if line["place"] == lines[-1]["place"] and (not levels or levels[-1][1] != given):
                levels.append((float(line["time"]), given))
    return levels


def replay(log: Log, policies: Mapping[str, Policy], cost: Sequence[float]) -> list[Replayed]:
    """Return what was done, what policies of the same scores would have done, and the best thresholds in hindsight.

    Raises :class:`InputError` for the costs of a network with another number of exits.
    """
    if len(cost) != log.scores.shape[1] + 1:
        words = "Fix: name the bundle that wrote the log."
        raise InputError(f"bundle: expected one of {log.scores.shape[1] + 1} exits, got {len(cost)}. {words}")
    rows = [_judge("as it was", None, log.exits, log, cost)]
    best = choose_thresholds(log.scores, log.losses, torch.tensor(cost), float(log.facts["limit"]), log.weights)
    tried = {name: policy.thresholds for name, policy in policies.items() if compares_logged_scores(policy, log)}
    tried[BEST] = best
    return rows + [_judge(name, levels, find_first_firing(log.scores, levels), log, cost) for name, levels in tried.items()]


def compares_logged_scores(policy: Policy, log: Log) -> bool:
    """Return whether a policy compares the scores that were logged."""
    values = policy.to_dict()
    return all(values[name] == log.facts[name] for name in SCORED_BY)


def _judge(name: str, levels: tuple[float, ...] | None, exits: Tensor, log: Log, cost: Sequence[float]) -> Replayed:
    weights, losses = log.weights.double(), select_losses(log.losses, exits).double()
    costs = torch.tensor(cost, dtype=torch.float64)[exits]
    (spent, spent_error), (lost, _) = (_estimate(values, weights) for values in (costs, losses))
    shares = tuple((exits.bincount(weights, minlength=len(cost)) / weights.sum()).tolist())
    return Replayed(name, levels, spent, spent_error, lost, _find_interval(losses, weights), shares)


def _estimate(values: Tensor, weights: Tensor) -> tuple[float, float]:  # (n,), (n,)
    """Return a weighted mean and its standard error."""
    mean = average(values, weights)
    squares = (weights * (values - mean)).square().sum().item() * len(values) / (len(values) - 1)
    return mean, math.sqrt(squares) / weights.sum().item()


def _find_interval(losses: Tensor, weights: Tensor) -> tuple[float, float]:  # (n,), (n,)
    """Return a 95 % interval of a weighted mean of losses in [0, 1]: that of a share of as many samples as tell as much.

    It is exact for shares of equal weight, and an approximation otherwise.
    """
    mean, error = _estimate(losses, weights)
    variance = error**2 * (1 - 1 / len(losses))
    count = mean * (1 - mean) / variance if variance else count_effective(weights)
    return 1 - upper_bound((1 - mean) * count, count, SIDE), upper_bound(mean * count, count, SIDE)


def tabulate_replay(rows: Sequence[Replayed], loss: str = "disagreement") -> list[list[str]]:
    """Return rows of text, the head first; ``loss`` is what was limited."""
    table = [["thresholds", "cost ± its standard error", LOSSES[loss], "its 95 % interval", "share of the exits, %"]]
    for row in rows:
        low, high = (100 * end for end in row.interval)
        shares = " / ".join(f"{100 * share:.0f}" for share in row.exits)
        table.append(
            [
                row.name,
                f"{row.cost:.3f} ± {row.cost_error:.3f}",
                f"{100 * row.loss:.2f}",
                f"{low:.2f} to {high:.2f}",
                shares,
            ]
        )
    return table


@dataclass(frozen=True)
class Course:
    """Means over parts of the time: what a picture shows.

    Attributes:
        times: seconds since 1970, of the parts. cost, losses: of each part, by the names of thresholds.
        moments: times at which thresholds moved, and the last. levels: for each early exit, its threshold from then on.
    """

    times: list[float]
    cost: dict[str, list[float]]
    losses: dict[str, list[float]]
    moments: list[float]
    levels: list[list[float]]
    limit: float
    loss: LimitedLoss


def summarize_course(log: Log, policies: Mapping[str, Policy], cost: Sequence[float]) -> Course:
    """Return the course of what was done, and of what policies of the same scores would have done."""
    parts = torch.arange(len(log)).tensor_split(max(1, min(PARTS, len(log) // LEAST)))
    taken = {"as it was": log.exits}
    taken |= {
        name: find_first_firing(log.scores, each.thresholds)
        for name, each in policies.items()
        if compares_logged_scores(each, log)
    }
    costs = {name: torch.tensor(cost, dtype=torch.float64)[exits] for name, exits in taken.items()}
    losses = {name: select_losses(log.losses, exits).double() for name, exits in taken.items()}

    def average_parts(values: Tensor) -> list[float]:
        return [average(values[part], log.weights[part]) for part in parts]

    return Course(
        average_parts(log.times),
        {name: average_parts(values) for name, values in costs.items()},
        {name: average_parts(values) for name, values in losses.items()},
        [*(time for time, _ in log.levels), float(log.times[-1])],
        [[given[k] for _, given in (*log.levels, log.levels[-1])] for k in range(log.scores.shape[1])],
        float(log.facts["limit"]),
        log.facts["loss"],
    )


def draw_course(course: Course) -> Figure:
    """Draw cost, losses and thresholds over time."""
    figure = Figure((7.2, 5.6), layout="constrained")
    above, middle, below = figure.subplots(3, sharex=True)
    when, moments = ([datetime.fromtimestamp(time, UTC) for time in times] for times in (course.times, course.moments))
    for name, values in course.cost.items():
        above.plot(when, values, label=name)
        middle.plot(when, [100 * loss for loss in course.losses[name]], label=name)
    middle.axhline(100 * course.limit, color="0.4", lw=1, ls=":", label="limit")
    for k, levels in enumerate(course.levels):
        shown = [math.nan if level == math.inf else level for level in levels]
        below.step(moments, shown, where="post", label=f"exit {k}")
    for axes, text in ((above, "cost"), (middle, LOSSES[course.loss]), (below, "threshold")):
        axes.set_ylabel(text)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    above.set_title("Observed samples. Where a threshold has no line, no sample leaves early.", fontsize=9)
    figure.autofmt_xdate()
    return figure
