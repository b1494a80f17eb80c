"""Rules: which rule for leaving early is most accurate at equal mean cost, and how far any rule is from an oracle's routing.

Cells are TASK-SEED. The networks are those of ``binding`` with EGT, trained here if they are missing. Whatever a rule fits, it fits on
data like the training data: calibration scenes, or validation data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import exitlens as xl
from benchmarks import binding
from benchmarks.harness import ROOT, Job, Study, interval, join_means, list_by_seed, save_svg, share_error, table
from benchmarks.results import Runs, Tree, list_seeds
from exitlens.functional.risk import disagreement
from exitlens.functional.routing import find_first_firing, fit_gate, score_early_exits, stack_trace_features
from exitlens.types.settings import SCORES

SEEDS = {"scenes": 3, "corner": 3, "motifs": 3, "vit": 3, "pictures": 3, "reviews": 3}
COSTS = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHOWN = (0.25, 0.4, 0.6)  # of these, in tables
STEPS = 41
EPS = 1e-6


class Judged(NamedTuple):
    """A rule on known and on test samples: what it compares with thresholds at the early exits, and which answers are right."""

    known: Tensor  # (M,K-1)
    scores: Tensor  # (N,K-1)
    correct: Tensor  # (N,K)


Rule = Callable[[xl.Trace, xl.Trace], Judged]


def by_score(kind: str, known: xl.Trace, test: xl.Trace) -> Judged:
    policy = replace(xl.calibrate(known, max_cost=1.0), score=kind)
    return Judged(*(score_early_exits(trace, policy) for trace in (known, test)), test.correct)


def by_gate(known: xl.Trace, test: xl.Trace) -> Judged:
    plain = xl.calibrate(known, max_cost=1.0)
    gated = replace(plain, gate=fit_gate(stack_trace_features(known, plain), 1 - disagreement(known)[:, :-1]))
    return Judged(*(score_early_exits(trace, gated) for trace in (known, test)), test.correct)


def by_patience(known: xl.Trace, test: xl.Trace) -> Judged:
    """Count how many exits have given this answer in a row (PABEE, arXiv 2006.04152); of equal counts, the surest first."""
    sure = by_score("max_probability", known, test)
    streaks = [count_streaks(trace.answers) for trace in (known, test)]
    return Judged(streaks[0] + 1e-3 * sure.known, streaks[1] + 1e-3 * sure.scores, test.correct)


def count_streaks(answers: Tensor) -> Tensor:  # (N,K) -> (N,K-1)
    streak, streaks = torch.zeros(len(answers)), []
    for k in range(answers.shape[1] - 1):
        same = answers[:, k] == answers[:, k - 1] if k else torch.zeros(len(answers), dtype=torch.bool)
        streak = torch.where(same, streak + 1, torch.zeros(len(answers)))
        streaks.append(streak)
    return torch.stack(streaks, 1)


def by_ensemble(known: xl.Trace, test: xl.Trace) -> Judged:
    """Answer by a weighted geometric mean of the exits so far, and leave by its confidence (ZTW, arXiv 2106.05409)."""
    assert known.labels is not None
    known_p, test_p = (F.log_softmax(torch.as_tensor(trace.logits), 2) for trace in (known, test))
    outputs = []
    for k in range(known.num_exits):
        weights = torch.full((k + 1,), 1.0 / (k + 1), requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

        def closure(k: int = k, weights: Tensor = weights, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(join(known_p, weights), known.labels)
            loss.backward()
            return loss

        optimizer.step(closure)
        outputs.append([F.softmax(join(p, weights.detach()), 1) for p in (known_p, test_p)])
    scores = [torch.stack([pair[i].max(1).values for pair in outputs[:-1]], 1) for i in range(2)]
    right = torch.stack([pair[1].argmax(1) == test.labels for pair in outputs], 1)
    return Judged(*scores, right)


def join(p: Tensor, weights: Tensor) -> Tensor:  # (N,K,C), (k,) -> (N,C)
    return (p[:, : len(weights)] * weights.clamp_min(0)[None, :, None]).sum(1)


def by_learning(known: xl.Trace, test: xl.Trace) -> Judged:
    """Estimate that going on would not rescue the answer, from all that the exits so far say (as in arXiv 2310.09163)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = [list_features(known, trace) for trace in (known, test)]
    columns: list[tuple[Tensor, Tensor]] = []
    for k in range(known.num_exits - 1):
        stays = ~(known.correct[:, -1] & ~known.correct[:, k])
        x = [torch.cat(part[: k + 1], 1).numpy() for part in features]
        if stays.all():
            columns.append((features[0][k][:, 0], features[1][k][:, 0]))
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[0], stays.numpy())
        first, second = (torch.from_numpy(model.predict_proba(part)[:, 1]).float() for part in x)
        columns.append((first, second))
    return Judged(*(torch.stack(part, 1) for part in zip(*columns, strict=True)), test.correct)


def list_features(known: xl.Trace, trace: xl.Trace) -> list[Tensor]:  # (N,5) by exit
    policy = xl.calibrate(known, max_cost=1.0)
    kinds = [score_early_exits(trace, replace(policy, score=kind)) for kind in SCORES]
    streaks = count_streaks(trace.answers)
    return [
        torch.stack([torch.logit(kinds[0][:, k].float(), EPS), *(kind[:, k].float() for kind in kinds), streaks[:, k]], 1)
        for k in range(trace.num_exits - 1)
    ]


def by_oracle(known: xl.Trace, test: xl.Trace) -> Judged:
    """Leave first where the answer is right, or where no later one is; of equal ones, the surest first."""
    sure = by_score("max_probability", known, test)
    ready = []
    for trace in (known, test):
        later = trace.correct.flip(1).cummax(1).values.flip(1)[:, 1:]
        ready.append((trace.correct[:, :-1] | ~later).float())
    return Judged(ready[0] + 1e-3 * sure.known, ready[1] + 1e-3 * sure.scores, test.correct)


RULES: dict[str, tuple[str, Rule]] = {
    "max_probability": ("maximum probability", partial(by_score, "max_probability")),
    "entropy": ("entropy", partial(by_score, "entropy")),
    "margin": ("margin", partial(by_score, "margin")),
    "patience": ("patience (PABEE)", by_patience),
    "ensemble": ("ensemble of the exits so far (ZTW)", by_ensemble),
    "learned": ("learned decision", by_learning),
    "gate": ("our gate", by_gate),
    "oracle": ("oracle", by_oracle),
}


def trace_curve(judged: Judged, cost: Tensor, costs: Sequence[float]) -> Tensor:  # -> (costs,N)
    """Return how right each sample is, on average, at each mean cost: a mixture of the two policies next to it.

    At every exit the same share of the known samples that come there leaves. Where even the cheapest policy costs more, it is that.
    """
    points = []
    for share in torch.linspace(0, 1, STEPS).tolist():
        thresholds, left = list[float](), torch.ones(len(judged.known), dtype=torch.bool)
        for column in judged.known.T:
            here = column[left]
            level = here.quantile(1 - share).item() if share and len(here) else math.inf
            thresholds.append(level)
            left &= column < level
        exits = find_first_firing(judged.scores, thresholds)
        points.append((cost[exits].mean().item(), judged.correct.gather(1, exits[:, None])[:, 0].float()))
    points.sort(key=lambda point: point[0])
    known_costs = torch.tensor([each for each, _ in points])
    rows = []
    for each in costs:
        above = int((known_costs < each).sum().clamp(1, len(points) - 1))
        low, high = known_costs[above - 1].item(), known_costs[above].item()
        share = 0.0 if high <= low else min(max((each - low) / (high - low), 0.0), 1.0)
        rows.append(torch.lerp(points[above - 1][1], points[above][1], share))
    return torch.stack(rows)


def list_cells(quick: bool = False) -> dict[str, Job]:
    return list_by_seed(partial(measure_cell, quick=quick), SEEDS)


def measure_cell(name: str, seed: int, quick: bool = False) -> Tree:
    most = 96 if quick else None
    task = binding.open_task(name, seed, most)
    folder = Path("runs/binding") / ("quick" if quick else "") / f"{name}-egt-{seed}"
    net, _ = binding.train(task, seed, folder, binding.CONDITIONS["egt"][1])
    known = xl.collect(net, binding.load_calibration(task, name, seed, most), batch_size=250)
    measured: Tree = {"cost": net.cost.tolist(), "curve": {}, "gain_error": {}, "exits": {}, "samples": {}}
    for test, data in task.tests.items():
        trace = xl.collect(net, data, batch_size=250)
        curves = {rule: trace_curve(judge(known, trace), trace.cost, COSTS) for rule, (_, judge) in RULES.items()}
        usual = curves["max_probability"]
        measured["curve"][test] = {rule: [100 * row.mean().item() for row in rows] for rule, rows in curves.items()}
        gains = {rule: 100 * (rows - usual) for rule, rows in curves.items() if rule != "max_probability"}
        measured["gain_error"][test] = {
            rule: (rows.std(1) / math.sqrt(rows.shape[1])).tolist() for rule, rows in gains.items()
        }
        measured["exits"][test] = trace.correct.float().mean(0).tolist()
        measured["samples"][test] = len(trace)
    return measured


def write_tables(runs: Runs) -> list[str]:
    lines: list[str] = []
    for task in SEEDS:
        ours = list_seeds(runs, task)
        for test in ours[0]["curve"] if ours else ():
            rows = []
            for rule, (title, _) in RULES.items():
                cells = [f"{mean(read_curve(run, test, rule)[COSTS.index(cost)] for run in ours):.1f}" for cost in SHOWN]
                gains = [show_gain(ours, test, rule, COSTS.index(cost)) for cost in SHOWN if rule != "max_probability"]
                rows.append([title, " / ".join(cells), *(gains or [""] * len(SHOWN))])
            costs = " / ".join(f"{cost:g}" for cost in SHOWN)
            exits = join_means([run["exits"][test] for run in ours], 1, 100)
            lines += [
                f"**{binding.TITLES[task]}, {test}** ({len(ours)} seed{'s' if len(ours) > 1 else ''}; exits alone {exits} %)",
                "",
                *table(
                    ["rule", f"accuracy, % at cost {costs}", *(f"over max. probability at {cost:g}" for cost in SHOWN)], rows
                ),
                "",
            ]
    return lines


def read_curve(run: Tree, test: str, rule: str) -> list[float]:
    """Return accuracy at every cost; an oracle never spends more to be worse."""
    values: list[float] = run["curve"][test][rule]
    return list(itertools.accumulate(values, max)) if rule == "oracle" else values


def show_gain(ours: Sequence[Tree], test: str, rule: str, i: int) -> str:
    gains = [read_curve(run, test, rule)[i] - read_curve(run, test, "max_probability")[i] for run in ours]
    middle, half = interval(gains, mean(run["gain_error"][test][rule][i] for run in ours))
    return f"{middle:.2f} ± {half:.2f}" if math.isfinite(half) else f"{middle:.2f} (no interval)"


def plot_rules(runs: Runs, path: Path = ROOT / "docs" / "measured" / "rules.svg") -> None:
    """Plot accuracy against cost for every task's first test set; the band is the oracle's and the usual rule's 95 % interval."""
    from matplotlib.figure import Figure

    tasks = [task for task in SEEDS if list_seeds(runs, task)]
    figure = Figure(figsize=(8.4, 2.9 * math.ceil(len(tasks) / 2)), layout="constrained")
    places = np.atleast_1d(figure.subplots(math.ceil(len(tasks) / 2), 2)).ravel()
    for axes, task in zip(places, tasks, strict=False):
        ours = list_seeds(runs, task)
        test = next(iter(ours[0]["curve"]))
        for i, (rule, (title, _)) in enumerate(RULES.items()):
            curves = np.array([read_curve(run, test, rule) for run in ours])
            middle, style = curves.mean(0), {"oracle": ":", "max_probability": "-"}.get(rule, "-")
            axes.plot(
                COSTS, middle, style, color=f"C{i}", lw=1.6 if rule in ("oracle", "max_probability") else 1, label=title
            )
            if rule in ("oracle", "max_probability"):
                errors = [100 * share_error([value / 100], ours[0]["samples"][test]) for value in middle]
                halves = [
                    math.hypot(half if math.isfinite(half := interval(column.tolist())[1]) else 0.0, 1.96 * error)
                    for column, error in zip(curves.T, errors, strict=True)
                ]
                axes.fill_between(COSTS, middle - halves, middle + halves, color=f"C{i}", alpha=0.12, lw=0)
        axes.set_title(f"{task}, {test}: accuracy (%) by mean cost", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.locator_params(nbins=5)
    for axes in places[len(tasks) :]:
        axes.axis("off")
    figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    save_svg(figure, path)


STUDY = Study("rules", list_cells, tables={"rules": write_tables}, finish=plot_rules, processes=2)
