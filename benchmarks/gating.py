"""Gating: at equal cost, which rule for leaving early holds when a cue moves: confidence, patience, our gate, or the oracle?

Cells are TASK/CONDITION-SEED; certify/TASK-SEED: what binding is certified, and seen on other data; refusals: whether library, runtime
and server refuse the same answers; time: of the gate at an exit. Thresholds come from data like the training data. Networks are those of
``binding``, trained here if they are missing, which takes five minutes on a core.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor

import exitlens as xl
import exitlens_runtime
from benchmarks import binding, populations, rules, serving
from benchmarks.binding import open_task, train
from benchmarks.edge import find_near
from benchmarks.harness import Job, Promise, Study, join_means, list_by_seed, promise_table, table, take_turns
from benchmarks.load import Array, Spec, make_infer_request, run_load
from benchmarks.performance import make_scenes
from benchmarks.results import Runs, Tree, list_seeds
from benchmarks.servers import start_ours
from exitlens.data.sets import SampleSet
from exitlens.functional.risk import disagreement
from exitlens.functional.routing import fit_gate, score_early_exits, stack_trace_features
from exitlens.model.timing import interval
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
RULES = "confidence", "patience", "attention", "gate", "oracle"  # attention: the gate without evidence
RANKED = "confidence", "attention", "gate"
COSTS, SURE = (0.25, 0.3, 0.4), 0.5
LIMITS = {"disagreement": (0.01, 0.02, 0.05), "divergence": (0.2, 0.4, 0.6, 0.8)}  # divergence: over exit 0's mean
GAIN, BETTER, MOST_MS = 2.0, 0.05, 0.03
COUNT, ROUNDS, OFTEN = 10_000, 200, 10  # images to refuse; rounds of timing, and answers in each
CERTIFY, CERTIFIED, NEAR = "certify/", ("scenes", "pictures"), 0.03


def list_cells(quick: bool = False) -> dict[str, Job]:
    """List all cells, seed by seed."""
    seeds = {f"{task}/{name}": count for task, count in SEEDS.items() for name in CONDITIONS}
    certified = {f"{CERTIFY}{task}-{seed}": partial(certify, task, seed, quick) for task in CERTIFIED for seed in range(3)}
    alone = {
        "refusals": partial(compare_refusals, 300 if quick else COUNT),
        "time": partial(time_gate, 5 if quick else ROUNDS),
    }
    return list_by_seed(partial(measure_cell, quick=quick), seeds) | certified | alone


def measure_cell(name: str, condition: str, seed: int, quick: bool = False) -> Tree:
    most = 96 if quick else None
    task = open_task(name, seed, most)
    folder = Path("runs/binding") / ("quick" if quick else "") / f"{name}-{condition}-{seed}"
    net, _ = train(task, seed, folder, CONDITIONS[condition][1])
    traces = {test: xl.collect(net, data, batch_size=250) for test, data in task.tests.items()}
    known = xl.collect(net, binding.load_calibration(task, name, seed, most), batch_size=250)
    return compare_rules(known, traces) | {"saved": save_cost(known, traces[AGREES.get(name, "agreeing")])}


def save_cost(known: xl.Trace, test: xl.Trace) -> Tree:
    """Return, at equal limits, cost and what is limited on test data like the training data, without and with the gate."""
    rows: Tree = {}
    for kind, limits in LIMITS.items():
        for share in limits:
            limit = share if kind == "disagreement" else share * float(known.divergence[:, 0].mean())
            policies = [xl.calibrate(known, **{f"max_{kind}": limit}, gate=gate) for gate in (False, True)]  # type: ignore[arg-type]
            plain, gated = (xl.evaluate(test, policy) for policy in policies)
            risks = {"risk": getattr(plain, kind), "risk_gated": getattr(gated, kind)}
            rows[f"{kind} {share:g}"] = {"limit": limit, "cost": plain.cost, "cost_gated": gated.cost} | risks
    return rows


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


def compare_refusals(count: int) -> Tree:
    """Count answers of runtime and server to which the gate sent other samples, or trusts by more than 1e-4 less or more."""
    net, folder = populations.train_scene_net(), Path("runs/gating/refusals")
    known = xl.demo.load_scenes("calibration")
    net.describe(classes=known.classes, preprocess=known.preprocess)
    policy = xl.calibrate(xl.collect(net, known, batch_size=250), max_disagreement=0.02, gate=True)
    images = make_scenes(net, count, seed=12)
    preds = [xl.predict(net, batch, policy) for batch in images.split(250)]
    names = "labels", "exits", "trust", "refused"
    ours = {name: torch.cat([getattr(pred, name) for pred in preds]).numpy() for name in names}
    near, answered_by = find_near(net, policy, images), dict[str, dict[str, Array]]()
    bundle, edge = (
        xl.save(net, policy, folder / "bundle", overwrite=True),
        xl.export(net, policy, folder / "edge", overwrite=True),
    )
    runtime, parts = exitlens_runtime.load(edge), images.numpy()
    answers = [runtime.predict(parts[at : at + 64]) for at in range(0, count, 64)]
    answered_by["runtime"] = {name: np.concatenate([getattr(answer, name) for answer in answers]) for name in names}
    outputs = {"label": "labels", "exit": "exits", "trust": "trust"}
    requests = [make_infer_request(parts[at : at + 4], list(outputs)) for at in range(0, count, 4)]
    with start_ours(bundle, parts[0], batching=serving.PATIENT) as server:
        every = np.arange(len(requests))
        trial = run_load(Spec(server.port, requests, every / 100, every, connections=8, grace=60.0, keep=True))
    read = [serving.read_outputs(answer) for answer in trial.answers]
    answered_by["server"] = {
        ours: np.concatenate([part[1][name] for part in read if part]) for name, ours in outputs.items()
    }
    measured: Tree = {"samples": count, "refused": int((ours["refused"] >= 0).sum()), "near": int(near.sum())}
    for name, answered in answered_by.items():
        differs = np.abs(answered.pop("trust") - ours["trust"]) > 1e-4
        differs |= np.any([values != ours[field] for field, values in answered.items()], 0)
        measured[name] = {"others": int((differs & ~near).sum()), "others_near": int((differs & near).sum())}
    return measured


def time_gate(rounds: int) -> Tree:
    """Return milliseconds that the gate takes at an exit, one image, the small network, untuned and in ONNX Runtime."""
    torch.set_num_threads(1)
    tuned, data = copy.deepcopy(populations.train_scene_net()), xl.demo.load_scenes("calibration")
    tuned.tune(data.first(64).inputs, backend="onnx")
    return {
        name: time_exits(net, data, rounds) for name, net in (("untuned", populations.train_scene_net()), ("onnx", tuned))
    }


def time_exits(net: xl.ExitNet, data: SampleSet, rounds: int) -> Tree:
    """Return median, low and high of what the gate adds in paired rounds, and the time of an answer without it."""
    known, image = xl.collect(net, data, batch_size=250), data.first(1).inputs
    never = (2.0,) * (net.num_exits - 1)  # every early exit is computed, and none answers
    policies = {
        name: replace(xl.calibrate(known, max_cost=1.0, gate=name == "gate"), thresholds=never) for name in ("plain", "gate")
    }
    works = {name: partial(predict_often, net, image, policy) for name, policy in policies.items()}
    seconds = take_turns(works, rounds, warm_up=rounds // 10, clock=time.perf_counter)
    paired = [1000 * (a - b) / OFTEN / len(never) for a, b in zip(seconds["gate"], seconds["plain"], strict=True)]
    plain = 1000 * median(seconds["plain"]) / OFTEN
    return {"ms": interval(paired).to_list(), "plain_ms": plain}


def predict_often(net: xl.ExitNet, image: Tensor, policy: xl.Policy, turn: int) -> None:
    for _ in range(OFTEN):
        xl.predict(net, image, policy)


def compare_rules(known: xl.Trace, tests: Mapping[str, xl.Trace]) -> Tree:
    """Return, for every test set, each rule's accuracy at equal mean costs, the gate's gain, and the ranking of sure answers."""
    policies = make_policies(known)
    measured: Tree = {"accuracy": {}, "gain": {}, "gain_error": {}, "auroc": {}, "exits": {}}
    for test, trace in tests.items():
        curves = {}
        for rule in RULES:
            curves[rule] = rules.trace_curve(judge(rule, policies, known, trace), trace.cost, COSTS)
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


def judge(rule: str, policies: Mapping[str, xl.Policy], known: xl.Trace, test: xl.Trace) -> rules.Judged:
    """Return what a rule compares with thresholds at every early exit."""
    if rule == "patience":
        return rules.by_patience(known, test)
    scores = [score(rule, policies, trace) for trace in (known, test)]
    return rules.Judged(*scores, test.correct)


def score(rule: str, policies: Mapping[str, xl.Policy], trace: xl.Trace) -> Tensor:  # -> (N,K-1)
    if rule == "oracle":
        same = trace.answers[:, :-1] == trace.answers[:, -1:]
        return same.float() + 1e-3 * score_early_exits(trace, policies["confidence"])
    return score_early_exits(trace, policies[rule])


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
            gaps = [run["other"] - run["share"] for run in ours]
            yield Promise.of_mean(f"gating|certify|{task}", what, gaps, "<=", NEAR, error)
            what = f"{task}, certified binding at 20 %: trainings in which other test data show less than was certified"
            yield Promise(f"gating|broken|{task}", what, sum(gap < -error for gap in gaps), "<=", 0, exact=True)
    for task, (condition, (title, _)) in itertools.product(SEEDS, CONDITIONS.items()):
        ours = list_seeds(runs, f"{task}/{condition}")
        for test in MOVED[task] if ours and condition != "rely" else ():  # which leaves nothing to refuse
            key, what = f"gating|{task}|{condition}|{test}", f"{task}, {title}, {test}"
            error = mean(mean(run["gain_error"][test]) for run in ours)
            gains = [mean(run["gain"][test]) for run in ours]
            words = f"{what}: points gained by the gate, mean over the costs"
            yield Promise.of_mean(f"{key}|gain", words, gains, ">=", GAIN, error)
            better = [a - b for run in ours for a, b in [average_areas(run["auroc"][test])]]
            if not any(map(math.isnan, better)):
                yield Promise.of_mean(
                    f"{key}|auroc", f"{what}: AUROC of sure answers above confidence's", better, ">=", BETTER
                )
    for name, counts in ((name, counts) for name, counts in runs.get("refusals", {}).items() if isinstance(counts, dict)):
        what = f"{name}: answers other than the library's with a gate, of {runs['refusals']['samples']:,}"
        yield Promise(f"gating|refusals|{name}", what, counts["others"], "<=", 0, exact=True)
    for name, measured in runs.get("time", {}).items():
        what = f"milliseconds that the gate takes at an exit, one image, the small network, {name}"
        yield Promise.of_median(f"gating|time|{name}", what, measured["ms"], "<=", MOST_MS)


def average_areas(areas: Mapping[str, list[float | None]]) -> tuple[float, float]:
    """Return the gate's and confidence's AUROC, averaged over the exits that have both; NaN without such exits."""
    pairs = [(a, b) for a, b in zip(areas["gate"], areas["confidence"], strict=True) if a is not None and b is not None]
    return (mean(a for a, _ in pairs), mean(b for _, b in pairs)) if pairs else (math.nan, math.nan)


def write_savings(runs: Runs) -> list[str]:
    rows = []
    for task, (condition, (title, _)) in itertools.product(SEEDS, CONDITIONS.items()):
        ours = [run["saved"] for run in list_seeds(runs, f"{task}/{condition}") if "saved" in run]
        changes = (
            {limit: [100 * (run[limit]["cost_gated"] / run[limit]["cost"] - 1) for run in ours] for limit in ours[0]}
            if ours
            else {}
        )
        if changes:
            rows.append(
                [task, title, str(len(ours)), *(join_means([[value] for value in values], 1) for values in changes.values())]
            )
    limits = [f"{kind} {100 * value:g} %" for kind, values in LIMITS.items() for value in values]
    return [
        "Change of the cost by the gate, %, at equal limits on samples like the training data that did not choose the policy: mean over "
        "independent trainings. Limits on divergence are shares of exit 0's mean divergence.",
        "",
        *table(["", "trained", "seeds", *limits], rows),
    ]


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


TABLES = {"gating": write_tables, "gate": write_savings}
STUDY = Study("gating", list_cells, list_promises, TABLES, processes=2, alone="time|refusals")
