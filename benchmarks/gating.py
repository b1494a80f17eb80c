"""Gating: at equal cost, which rule for leaving early holds when a cue moves: confidence, patience, our gate, or the oracle?

Cells are TASK/CONDITION-SEED, and certify/TASK-SEED: what binding is certified, and seen on other data. Thresholds come from data like the training data. Networks are those of ``binding``, trained here if they
are missing, which takes five minutes on a core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import exitlens as xl
from benchmarks import binding
from benchmarks.binding import AGREEMENT, open_task, plant_patch, plant_texture, train
from benchmarks.harness import Job, Promise, Study, join_means, list_by_seed, promise_table, table
from benchmarks.results import Runs, Tree, list_seeds
from benchmarks.tasks import Task, make_scene_set
from exitlens.data.sets import SampleSet
from exitlens.functional.risk import disagreement
from exitlens.functional.routing import find_first_firing, fit_gate, score_early_exits, stack_trace_features
from exitlens.types.policies import GATE_FEATURES

SEEDS = {"scenes": 10, "texture": 3, "corner": 3, "vit": 3, "motifs": 3}
TITLES = {
    "scenes": "Colour of the background (80 %)",
    "texture": "Texture of the background (85 %), on which nothing was chosen",
    "corner": "A patch in the corner (85 %)",
    "vit": "Colour of the background (80 %), transformer",
    "motifs": "Level of a series (90 %)",
}
CONDITIONS = {
    "without": ("without EGT", {"loss": xl.EGTLoss(weight=0.0)}),
    "cosine": (
        "EGT's first form: cosine, final attention, no ramp",
        {"loss": xl.EGTLoss(distance="cosine", target="attention", reach="network", weight=1.0, ramp_share=0.0)},
    ),
    "egt": binding.CONDITIONS["egt"],
    "rely": binding.CONDITIONS["rely"],
}
AGREES, MOVED = (
    {"corner": "right"},
    {"scenes": ("disagreeing", "unseen"), "vit": ("disagreeing", "unseen"), "corner": ("wrong",)},
)
MOVED |= {"texture": ("disagreeing", "unseen"), "motifs": ("independent",)}
RULES = "confidence", "patience", "attention", "gate", "oracle"  # attention: the gate without margins and the exit before
RANKED = "confidence", "attention", "gate"
COSTS, STEPS, SURE = (0.25, 0.3, 0.4, 0.5, 0.6), 41, 0.5
GAIN, BETTER = 2.0, 0.05
CERTIFY, CERTIFIED, NEAR = "certify/", ("scenes", "pictures"), 0.03


def list_cells(quick: bool = False) -> dict[str, Job]:
    """List all cells, seed by seed."""
    seeds = {f"{task}/{name}": count for task, count in SEEDS.items() for name in CONDITIONS}
    certified = {f"{CERTIFY}{task}-{seed}": partial(certify, task, seed, quick) for task in CERTIFIED for seed in range(3)}
    return list_by_seed(partial(measure_cell, quick=quick), seeds) | certified


def measure_cell(name: str, condition: str, seed: int, quick: bool = False) -> Tree:
    most = 96 if quick else None
    task = open_task(name, seed, most)
    folder = Path("runs/binding") / ("quick" if quick else "") / f"{name}-{condition}-{seed}"
    net, _ = train(task, seed, folder, CONDITIONS[condition][1])
    traces = {test: xl.collect(net, data, batch_size=250) for test, data in task.tests.items()}
    return compare_rules(xl.collect(net, load_calibration(task, name, seed, most), batch_size=250), traces)


def certify(name: str, seed: int, quick: bool = False) -> Tree:
    """Return the binding that half of the test data certify, and that seen on the other half, with ``rely_on="map"``."""
    task = open_task(name, seed, 96 if quick else None)
    folder = Path("runs/binding") / ("quick" if quick else "") / f"{name}-rely-{seed}"
    net, _ = train(task, seed, folder, CONDITIONS["rely"][1])
    policy = xl.calibrate(xl.collect(net, task.validation, batch_size=250), max_accuracy_drop=0.02)
    data = next(iter(task.tests.values()))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tensor_split(2)
    first, other = (xl.certify_binding(net, data.subset(rows.sort().values), policy, samples=2000).binding for rows in order)
    assert first is not None
    assert other is not None
    return {"share": first.share, "seen": first.seen, "other": other.seen, "samples": first.samples, "others": other.samples}


def load_calibration(task: Task, name: str, seed: int, most: int | None) -> SampleSet:
    """Return samples like the training data, of which no network was trained."""
    if name == "motifs":
        return task.validation
    agreement = 0.8 if name in ("scenes", "vit") else 0.1
    data = make_scene_set("calibration", seed, 2, agreement, most)
    plant = {"corner": plant_patch, "texture": plant_texture}.get(name)
    return data if plant is None else plant(data, AGREEMENT, seed + 4)


def compare_rules(known: xl.Trace, tests: Mapping[str, xl.Trace]) -> Tree:
    """Return, for every test set, each rule's accuracy at equal mean costs, the gate's gain, and the ranking of sure answers."""
    policies = make_policies(known)
    measured: Tree = {"accuracy": {}, "gain": {}, "gain_error": {}, "auroc": {}, "exits": {}}
    for test, trace in tests.items():
        curves = {}
        for rule in RULES:
            curves[rule] = trace_curve(score(rule, policies, known), score(rule, policies, trace), trace)
            measured["accuracy"].setdefault(test, {})[rule] = [100 * row.mean().item() for row in curves[rule]]
        gains = 100 * (curves["gate"] - curves["confidence"])  # (costs,N)
        measured["gain"][test] = gains.mean(1).tolist()
        measured["gain_error"][test] = (gains.std(1) / math.sqrt(gains.shape[1])).tolist()
        measured["auroc"][test] = {rule: rank_sure(policies, rule, trace) for rule in RANKED}
        measured["exits"][test] = trace.correct.float().mean(0).tolist()
    return measured


def make_policies(known: xl.Trace) -> dict[str, xl.Policy]:
    plain = xl.calibrate(known, max_cost=1.0)
    features, agrees = stack_trace_features(known, plain), 1 - disagreement(known)[:, :-1]
    of_map = torch.tensor([name in ("confidence", "entropy") for name in GATE_FEATURES])
    chosen = {"attention": features * of_map, "gate": features}
    return {"confidence": plain} | {name: replace(plain, gate=fit_gate(x, agrees)) for name, x in chosen.items()}


def score(rule: str, policies: Mapping[str, xl.Policy], trace: xl.Trace) -> Tensor:  # -> (N,K-1)
    """Return what a rule compares with thresholds at every early exit."""
    if rule in policies:
        return score_early_exits(trace, policies[rule])
    confidence, answers = score_early_exits(trace, policies["confidence"]), trace.answers
    if rule == "oracle":
        return (answers[:, :-1] == answers[:, -1:]).float() + 1e-3 * confidence
    streak, streaks = torch.zeros(len(trace)), []  # how many exits have given this answer in a row (PABEE, arXiv 2006.04152)
    for k in range(trace.num_exits - 1):
        same = answers[:, k] == answers[:, k - 1] if k else torch.zeros(len(trace), dtype=torch.bool)
        streak = torch.where(same, streak + 1, torch.zeros(len(trace)))
        streaks.append(streak)
    return torch.stack(streaks, 1) + 1e-3 * confidence  # of equal streaks, the surest first


def trace_curve(known: Tensor, scores: Tensor, trace: xl.Trace) -> Tensor:  # (M,E), (N,E) -> (costs,N)
    """Return how right each sample is, on average, at mean costs of ``COSTS``: a mixture of the two policies next to each.

    At every exit the same share of the known samples that come there leaves.
    """
    points = []
    for share in torch.linspace(0, 1, STEPS).tolist():
        thresholds, left = list[float](), torch.ones(len(known), dtype=torch.bool)
        for column in known.T:
            here = column[left]
            level = here.quantile(1 - share).item() if share and len(here) else math.inf
            thresholds.append(level)
            left &= column < level
        exits = find_first_firing(scores, thresholds)
        points.append((trace.cost[exits].mean().item(), trace.correct.gather(1, exits[:, None])[:, 0].float()))
    points.sort(key=lambda point: point[0])
    costs = torch.tensor([cost for cost, _ in points])
    rows = []
    for cost in COSTS:
        above = int((costs < cost).sum().clamp(1, len(points) - 1))
        low, high = costs[above - 1].item(), costs[above].item()
        share = 0.0 if high <= low else min(max((cost - low) / (high - low), 0.0), 1.0)
        rows.append(torch.lerp(points[above - 1][1], points[above][1], share))
    return torch.stack(rows)


def rank_sure(policies: Mapping[str, xl.Policy], rule: str, trace: xl.Trace) -> list[float | None]:
    """Return for each early exit how well a rule's score tells right from wrong among the surer half of its answers."""
    from sklearn.metrics import roc_auc_score

    areas: list[float | None] = []
    confidence, scores = (score(name, policies, trace) for name in ("confidence", rule))
    for k in range(trace.num_exits - 1):
        sure = confidence[:, k] >= confidence[:, k].quantile(1 - SURE)
        right = trace.correct[sure, k]
        areas.append(float(roc_auc_score(right, scores[sure, k])) if 0 < int(right.sum()) < len(right) else None)
    return areas


def list_promises(runs: Runs) -> Iterator[Promise]:
    for task in CERTIFIED:
        if ours := list_seeds(runs, f"{CERTIFY}{task}"):
            error = mean(math.sqrt(run["other"] * (1 - run["other"]) / run["others"]) for run in ours)
            what = f"{task}, certified binding at 20 % below what other test data show"
            yield Promise.of_mean(
                f"gating|certify|{task}", what, [run["other"] - run["share"] for run in ours], "<=", NEAR, error
            )
    for task in SEEDS:
        for condition, (title, _) in CONDITIONS.items():
            ours = list_seeds(runs, f"{task}/{condition}")
            for test in MOVED[task] if ours else ():
                for i, cost in enumerate(COSTS[:3]):
                    what = f"{task}, {title}, {test}: points gained by the gate at a cost of {cost:g}"
                    error = mean(run["gain_error"][test][i] for run in ours)
                    key = f"gating|{task}|{condition}|{test}|{i}"
                    yield Promise.of_mean(key, what, [run["gain"][test][i] for run in ours], ">=", GAIN, error)
                pairs = [
                    list(zip(run["auroc"][test]["gate"], run["auroc"][test]["confidence"], strict=True)) for run in ours
                ]
                for k in range(len(pairs[0])):
                    gains = [a - b for a, b in (pair[k] for pair in pairs) if a is not None and b is not None]
                    what = f"{task}, {title}, {test}: exit {k}, AUROC of sure answers above confidence's"
                    if gains:
                        yield Promise.of_mean(f"gating|{task}|{condition}|{test}|{k}|auroc", what, gains, ">=", BETTER)


def write_tables(runs: Runs) -> list[str]:
    lines = []
    for task, title in TITLES.items():
        rows = []
        for condition, (name, _) in CONDITIONS.items():
            ours = list_seeds(runs, f"{task}/{condition}")
            for test in (AGREES.get(task, "agreeing"), *MOVED[task]) if ours else ():
                parts = [[run["accuracy"][test][rule] for run in ours] for rule in RULES]
                areas = [join_means([run["auroc"][test][rule] for run in ours], 2) for rule in RANKED]
                rows.append([name, test, str(len(ours)), *(join_means(values, 1) for values in parts), *areas])
        costs = " / ".join(f"{cost:g}" for cost in COSTS)
        head = [
            "",
            "test data",
            "seeds",
            *(f"{rule}, % at {costs}" for rule in RULES),
            *(f"AUROC, {rule}" for rule in RANKED),
        ]
        lines += [f"**{title}**", "", *table(head, rows), ""] if rows else []
    rows = []
    for task in CERTIFIED:
        if ours := list_seeds(runs, f"{CERTIFY}{task}"):
            values = [join_means([[100 * run[part]] for run in ours], 1) for part in ("share", "seen", "other")]
            rows.append([task, str(len(ours)), str(ours[0]["samples"]), *values])
    if rows:
        head = [
            "certified binding, area 20 %",
            "seeds",
            "samples",
            "certified, %",
            "seen on them, %",
            "seen on other test data, %",
        ]
        lines += [*table(head, rows), ""]
    return [*lines, *promise_table(list_promises(runs))]


STUDY = Study("gating", list_cells, list_promises, {"gating": write_tables}, processes=2)
