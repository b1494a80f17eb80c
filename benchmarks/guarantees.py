"""Count how often certified thresholds break their promises, over many calibrations, with what they save and when the drift watch warns.

Cells: splits-NAME (1,000 calibration/test splits of a real trace), further-NAME (with a gate, and limits on each class), synthetic (2,000 draws with known risk), labels (1,000 draws of
samples with several labels), groups (1,000 draws of correlated groups), watch-groups (the drift watch on such), families (the warning
without groups), swaps (1,000 draws of swapped pairs), saving-NAME (against
hindsight, RC-EENN's single threshold and CRC), drift, time. Needs `make demo-full`; an hour.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

import exitlens as xl
from benchmarks import populations
from benchmarks.harness import NORMAL, Job, Promise, Study, spread, table, take_turns
from benchmarks.results import Runs, Tree
from exitlens.data.demo import CLASSES, load_garments
from exitlens.functional import certification
from exitlens.functional.groups import (
    measure_likeness,
    pair_groups,
    shuffle_groups,
    split_groups,
    split_trace,
    weigh_samples,
)
from exitlens.functional.maps import geometric_mean
from exitlens.functional.risk import Risk, accuracy_drop, disagreement, false_negative_drop, select_exits
from exitlens.functional.routing import find_first_firing, fit_gate, score_early_exits, stack_trace_features
from exitlens.functional.scores import fit_temperatures
from exitlens.functional.search import find_candidates, order_path, quantise
from exitlens.model.swaps import OBJECT, ObservedTrial
from exitlens.workflow.binding import bound_share

DELTAS, LIMITS, GROUP_LIMITS = (0.05, 0.1, 0.2), (0.005, 0.01, 0.02, 0.05), (0.02, 0.05, 0.1)
BROKEN_DELTA = 0.1  # of promises that are made to be broken, and have to be
SETS = {  # risks that are certified together
    "accuracy drop": ("accuracy",),
    "disagreement": ("disagreement",),
    "divergence": ("divergence",),
    "all three": ("accuracy", "disagreement", "divergence"),
}
GATED = "accuracy drop, with a gate"
FURTHER_SETS = {"accuracy drop of each class": ("class",), GATED: ("accuracy",)}
LABEL_SETS = {"accuracy drop": ("accuracy",), "missed labels": ("missed",), "both": ("accuracy", "missed")}
KINDS = {"accuracy": "ternary", "disagreement": "binary", "divergence": "unit", "missed": "signed"}
DRAWN, WATCHED = 300, 150  # groups that calibrate; groups that calibrate the drift watch, and as many that are watched
GROUP_KINDS = ("size says nothing", "large groups lose more", "copies of one sample")
EQUAL = "named, all the same"  # groups count the same, whatever their size
MODES = {"named": ("accuracy drop", "all three"), EQUAL: ("accuracy drop",), "not named": ("accuracy drop", "all three")}
Rows = list[list[float]]  # limit, delta, 1 if a risk is above its limit, cost
Thresholds = dict[tuple[float, float], tuple[float, ...]]  # by limit and delta
ListRisks = Callable[[float], list[Risk]]  # for a limit
Halves = tuple[Tensor, Tensor]  # rows that propose a path, and that test it


def list_cells(quick: bool = False) -> dict[str, Job]:
    def count(whole: int) -> int:
        return 6 if quick else whole

    return {
        "drift": partial(measure_drift, count(200)),
        **{f"saving-{name}": partial(measure_savings, name, count(200)) for name in populations.TRACES},
        **{f"splits-{name}": partial(count_on_splits, name, count(1000), SETS) for name in populations.TRACES},
        **{f"further-{name}": partial(count_on_splits, name, count(400), FURTHER_SETS) for name in populations.TRACES},
        "synthetic": partial(count_draws, "synthetic", count(2000), count(300)),
        "labels": partial(count_draws, "labels", count(1000), count(150)),
        "groups": partial(count_on_groups, count(1000)),
        "swaps": partial(count_on_swaps, count(1000)),
        "watch-groups": partial(watch_on_groups, count(200)),
        "families": partial(measure_families, 1 if quick else 4),
        "time": partial(time_calibration, 2 if quick else 7),
    }


# How often a certified policy breaks its promise: over splits of real traces, and over draws whose risks are known


@cache
def find_losses(population: str) -> dict[str, Tensor]:
    trace = populations.recall_trace(population)
    losses = {"accuracy": accuracy_drop(trace), "disagreement": disagreement(trace), "divergence": trace.divergence}
    return losses | ({"missed": false_negative_drop(trace)} if trace.task == "multilabel" else {})


def list_risks(population: str, names: Sequence[str], limit: float) -> list[Risk]:
    losses = find_losses(population)
    if names == ("class",):
        labels = populations.recall_trace(population).require_labels("class")
        return [Risk(f"class {c}", losses["accuracy"], limit, "ternary", labels == c) for c in labels.unique().tolist()]
    return [Risk(name, losses[name], limit, KINDS[name]) for name in names]  # type: ignore[arg-type]


def certify(
    scores: Tensor, cost: Tensor, list_risks: ListRisks, limits: Sequence[float], halves: Halves, further: int = 0
) -> Thresholds:
    """Return what ``calibrate`` finds: rows of one half propose a path, those of the other test it; then ``further`` steps beyond."""
    first, second = halves
    levels, thresholds = quantise(scores[first]), {}
    pool = find_candidates(levels.index, [risk.at(first) for risk in list_risks(limits[1])], cost)
    applied = levels.apply(scores[second])
    for limit in limits:
        risks = list_risks(limit)
        path = order_path(pool, [limit] * len(risks))
        for delta in DELTAS:
            tests = certification.choose_tests(levels.index, [risk.at(first) for risk in risks], path, len(second), delta)
            tested = [risk.at(second) for risk in risks]
            cuts = certification.run_fixed_sequence_test(applied, tested, path, tests, delta).cuts
            if further:
                at = [candidate.cuts for candidate in path].index(cuts) if cuts is not None else -1
                cuts = path[min(at + further, len(path) - 1)].cuts if path else None
            never = (math.inf,) * scores.shape[1]
            thresholds[limit, delta] = never if cuts is None else levels.thresholds(cuts)
    return thresholds


def judge(
    scores: Tensor, cost: Tensor, risks: Sequence[Risk], thresholds: Thresholds, weights: Tensor | None = None
) -> Rows:
    """Return for all thresholds whether a (weighted) mean risk is above its limit, and the cost."""
    rows = []
    for (limit, delta), cuts in thresholds.items():
        exits = find_first_firing(scores, cuts)
        means = [risk.mean(exits) if weights is None else float(risk.losses(exits).double() @ weights) for risk in risks]
        rows.append([limit, delta, float(max(means) > limit + 1e-9), cost[exits].double().mean().item()])
    return rows


def split_halves(rows: Tensor) -> Halves:
    cut = max(1, round(certification.PATH_SHARE * len(rows)))
    return rows[:cut], rows[cut:]


def judge_split(
    population: str, known: Tensor, test: Tensor, sets: Mapping[str, Sequence[str]], score: str = "", further: int = 0
) -> dict[str, Rows]:
    """Certify sets of risks on known rows, and judge on test rows; for a ``score``, the part that proposes fits temperatures."""
    trace, halves = populations.recall_trace(population), split_halves(known)
    policy, judged = xl.Policy.never(trace.num_exits), {}
    if score:
        temperatures = fit_temperatures(trace.logits, trace.labels, halves[0])
        policy = xl.Policy.never(trace.num_exits, score=score, temperatures=temperatures)  # type: ignore[arg-type]
    gated = fit_on_path(trace, policy, halves[0]) if GATED in sets else policy
    scores_by_policy = {policy: score_early_exits(trace, policy), gated: score_early_exits(trace, gated)}
    for label, names in sets.items():
        scores = scores_by_policy[gated if label == GATED else policy]
        thresholds = certify(scores, trace.cost, partial(list_risks, population, names), LIMITS, halves, further)
        risks = [risk.at(test) for risk in list_risks(population, names, 0)]
        judged[label] = judge(scores[test], trace.cost, risks, thresholds)
    return judged


def fit_on_path(trace: xl.Trace, policy: xl.Policy, rows: Tensor) -> xl.Policy:
    features, agrees = stack_trace_features(trace, policy), 1 - disagreement(trace)[:, :-1]
    return replace(policy, gate=fit_gate(features[rows], agrees[rows]))


def count_one_split(name: str, sets: Mapping[str, Sequence[str]], seed: int) -> dict[str, Rows]:
    return judge_split(name, *populations.split_randomly(name, populations.CALIBRATION, seed), sets, "max_probability")


def count_one_draw(population: str, further: int, seed: int) -> dict[str, Rows]:
    """Judge every set of risks on 1,000 samples drawn with replacement from one of three populations, whose risk counts."""
    name, everyone = f"{population}-{seed % 3}", torch.arange(len(populations.recall_trace(f"{population}-{seed % 3}")))
    known = torch.randint(len(everyone), (1000,), generator=torch.Generator().manual_seed(seed))
    sets, score = (LABEL_SETS, "decided") if population == "labels" else (SETS, "")
    judged = judge_split(name, known, everyone, sets, score, further)
    return {f"population {seed % 3}, {label}": rows for label, rows in judged.items()}


def summarise(outcomes: Sequence[dict[str, Rows]]) -> Tree:
    """Return the share of violations and the mean cost, by set of risks, limit and delta."""
    summary: Tree = {}
    for label in dict.fromkeys(label for outcome in outcomes for label in outcome):
        tables = np.array([outcome[label] for outcome in outcomes if label in outcome])  # (S, combinations, 4)
        for rows in tables.transpose(1, 0, 2):
            limits, deltas, broken, costs = rows.T
            row = {"limit": float(limits[0]), "delta": float(deltas[0]), "violations": float(broken.mean())}
            row |= {"cost": round(float(costs.mean()), 4), "draws": len(rows)}
            summary.setdefault(label, {})[f"limit {limits[0]}, delta {deltas[0]}"] = row
    return summary


def count_on_splits(name: str, count: int, sets: Mapping[str, Sequence[str]]) -> Tree:
    samples = len(populations.load_trace(name))  # trained and collected once, before the processes start
    outcomes = populations.run_in_parallel(count_one_split, name, sets, seeds=range(count))
    return {"splits": count, "calibration": populations.CALIBRATION, "samples": samples, "sets": summarise(outcomes)}


def count_draws(population: str, count: int, further: int) -> Tree:
    """Count over draws; also over draws where the test goes one step too far, which has to show."""
    outcomes = [
        populations.run_in_parallel(count_one_draw, population, i, seeds=range(n)) for i, n in enumerate((count, further))
    ]
    sound, broken = map(summarise, outcomes)
    return {"draws": count, "samples": 1000, "sets": sound, "broken": {"draws": further, "sets": broken}}


# Correlated groups of 1 to 50 samples, named and not: certificates, and the drift watch's false alarms


@cache
def prepare_groups(population: str) -> tuple[Tensor, dict[bool, Tensor]]:
    """Return scores, and the samples' weights in the mean risk by whether all groups count the same."""
    trace = populations.recall_trace(population)
    weights = {equal: weigh_samples(trace.groups, None if equal else populations.LARGEST) for equal in (True, False)}
    scores = score_early_exits(trace, xl.Policy.never(3))
    return scores, {equal: values / len(values) for equal, values in weights.items()}


def count_one_group_draw(seed: int) -> dict[str, Rows]:
    """Judge by how groups are named, and by set of risks, on groups drawn from one of three populations."""
    population = f"groups-{seed % 3}"
    trace, (scores, weights) = populations.recall_trace(population), prepare_groups(population)
    rows, drawn = populations.draw_groups(trace, DRAWN, torch.Generator().manual_seed(seed))
    ranks, judged = shuffle_groups(drawn, seed), {}
    halves = split_halves(torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)))
    for mode, label in ((mode, label) for mode, labels in MODES.items() for label in labels):
        parts = halves if mode == "not named" else split_groups(ranks, certification.PATH_SHARE)

        def list_drawn(limit: float, mode: str = mode, label: str = label, first: Tensor = parts[0]) -> list[Risk]:
            risks, equal = [risk.at(rows) for risk in list_risks(population, SETS[label], limit)], mode == EQUAL
            return risks if mode == "not named" else [risk.with_groups(ranks, first, equal=equal) for risk in risks]

        thresholds = certify(scores[rows], trace.cost, list_drawn, GROUP_LIMITS, parts)
        risks, name = list_risks(population, SETS[label], 0.0), f"{GROUP_KINDS[seed % 3]}, {mode}, {label}"
        judged[name] = judge(scores, trace.cost, risks, thresholds, weights[mode == EQUAL])
    return judged


def count_on_groups(count: int) -> Tree:
    outcomes = populations.run_in_parallel(count_one_group_draw, seeds=range(count))
    return {"draws": count, "groups": DRAWN, "sets": summarise(outcomes)}


def watch_groups(named: bool, seed: int) -> bool:
    """Return whether the monitor warns within 150 new groups of an unchanged population."""
    trace, rng = populations.recall_trace(f"groups-{seed % 3}"), torch.Generator().manual_seed(seed)
    rows, drawn = populations.draw_groups(trace, WATCHED, rng)
    known = replace(trace.select(rows), groups=drawn if named else None)
    policy = xl.calibrate(known, max_accuracy_drop=0.1, temperature_scaling=False, seed=seed)
    rows, drawn = populations.draw_groups(trace, WATCHED, rng)
    pred = populations.answer_on_paper(trace.select(rows), policy)
    return xl.DriftMonitor(policy, seed=seed).update(pred, drawn if named else None).alarm


def watch_on_groups(count: int) -> Tree:
    shares = {
        name: {"alarms": sum(populations.run_in_parallel(watch_groups, named, seeds=range(count))) / count}
        for name, named in (("named", True), ("not named", False))
    }
    return {"runs": count, "groups": WATCHED, **shares}


# Which data make calibrate warn that samples look alike: independent ones should not, pictures of few objects should

FAMILIES = ((41, 25), (400, 5), (1000, 2), (10, 100))  # objects, pictures of each
ORDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they come": lambda labels: torch.arange(len(labels)),
    "sorted by class": lambda labels: labels.argsort(stable=True),
    "shuffled": lambda labels: torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)),
}


def measure_families(epochs: int) -> Tree:
    net = populations.train_scene_net(epochs)
    rest = [xl.demo.load_scenes(split) for split in ("validation", "calibration", "test")]
    sets = {f"independent, {split}": data for split, data in zip(("validation", "calibration", "test"), rest, strict=True)}
    sets["independent, 500 of calibration"] = rest[1].first(500)
    images, labels = load_garments("test")
    for count, size in FAMILIES:
        rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(count))[:count].repeat_interleave(size)
        scenes = xl.demo.make_scenes(images[rows], labels[rows], CLASSES, background_agreement=0.8, seed=7)
        sets[f"{count:,} garments in {size} scenes each"] = scenes
    return {name: measure_orders(xl.collect(net, data, batch_size=128)) for name, data in sets.items()}


def measure_orders(trace: xl.Trace) -> Tree:
    measured = {}
    for order, rearrange in ORDERS.items():
        likeness = measure_likeness(trace.select(rearrange(trace.labels)))
        rank, deviation = round(likeness.rank, 3), round(likeness.deviation, 1)
        measured[order] = {"rank": rank, "deviation": deviation, "warned": likeness.is_suspicious}
    return measured


# What certified policies save: against hindsight, RC-EENN's single threshold (arXiv 2405.20915) and CRC


def measure_one_saving(name: str, seed: int) -> dict[str, tuple[float, float]]:
    """Return the cost on the test samples at delta 0.1, limit 1 %, and 1 if the limit is broken there: ours and the others."""
    limit, delta = 0.01, 0.1
    trace = populations.recall_trace(name)
    known, test = map(trace.select, populations.split_randomly(name, populations.CALIBRATION, seed))
    drop = accuracy_drop(test)

    def judge_policy(policy: xl.Policy) -> tuple[float, float]:
        exits = xl.route(test, policy)
        broken = select_exits(drop, exits).double().mean().item() > limit + 1e-9
        return test.cost[exits].double().mean().item(), float(broken)

    policies = {
        "ours": xl.calibrate(known, max_accuracy_drop=limit, delta=delta, seed=seed),
        "hindsight": xl.calibrate(test, max_accuracy_drop=limit),
        **choose_single_thresholds(known, limit, delta, seed),
    }
    return {label: judge_policy(policy) for label, policy in policies.items()}


def choose_single_thresholds(trace: xl.Trace, limit: float, delta: float, seed: int = 0) -> dict[str, xl.Policy]:
    """Return policies of one threshold for all exits (RC-EENN), by four ways to accept it: a walk down stops at the first refusal.

    As for ours, samples that do not test fit temperatures and propose thresholds, the quantiles of their scores. A tenth is enough:
    without a path through thresholds of several exits there is less to propose.
    """
    _, proposing, testing = split_trace(trace, 0.1, seed)
    never = xl.Policy.never(trace.num_exits, temperatures=fit_temperatures(trace.logits, trace.labels, proposing))
    scores, levels = score_early_exits(trace, never).double(), torch.linspace(1, 0, 400, dtype=torch.float64)
    grid = scores[proposing].flatten().quantile(levels).tolist()
    scores, losses = scores[testing], accuracy_drop(trace)[testing]
    rows = [select_exits(losses, find_first_firing(scores, (t,) * scores.shape[1])).double().numpy() for t in grid]
    count, half = len(testing), (1 + limit) / 2
    accepts: dict[str, Callable[[np.ndarray], bool]] = {
        "UCB (betting)": lambda v: certification.betting((v + 1) / 2, half, delta) <= delta,
        "LTT (Hoeffding-Bentkus)": lambda v: certification.hoeffding_bentkus((v.mean() + 1) / 2, count, half) <= delta,
        "LTT (our paired test)": lambda v: (
            certification.paired(int((v > 0).sum()), int((v < 0).sum()), count, limit) <= delta
        ),
        "CRC (in expectation only)": lambda v: count / (count + 1) * v.mean() + 1 / (count + 1) <= limit,
    }
    policies = {}
    for name, accept in accepts.items():
        chosen = math.inf
        for threshold, values in zip(grid, rows, strict=True):
            if not accept(values):
                break
            chosen = threshold
        policies[f"single threshold, {name}"] = replace(never, thresholds=(chosen,) * scores.shape[1])
    return policies


def measure_savings(name: str, count: int) -> Tree:
    populations.load_trace(name)
    outcomes = populations.run_in_parallel(measure_one_saving, name, seeds=range(count))
    costs, broken = ({label: float(np.mean([row[label][i] for row in outcomes])) for label in outcomes[0]} for i in (0, 1))
    shares = {label: (1 - cost) / (1 - costs["hindsight"]) for label, cost in costs.items()}
    apart = {label: [row[label][0] - (label != "ours") * row["ours"][0] for row in outcomes] for label in costs}
    errors = {label: float(np.std(v, ddof=1)) / math.sqrt(count) / (1 - costs["hindsight"]) for label, v in apart.items()}
    return {"splits": count, "costs": costs, "broken": broken, "share_of_hindsight": shares, "errors": errors}


# How often certificates about swaps are broken: all pairs of some scenes are swapped, so that the risk of a draw is known

SWAPPED, DRAWN_SWAPS, CUE_LIMITS = 300, 2000, (0.01, 0.02, 0.05)


@cache
def swap_all_pairs() -> tuple[xl.Trace, xl.Policy, Tensor, Tensor]:
    """Return a trace of scenes, a policy, and ``(N,N)`` and ``(N,N,K)``: which answers change if the row takes from the column.

    The first is about the answer at the exit taken, outside its own map, the second about all exits, outside the final map.
    """
    path = populations.FOLDER / "swaps.pt"
    net, scenes = populations.train_scene_net(), xl.demo.load_scenes("test").first(SWAPPED)
    trace = xl.collect(net, scenes)
    policy = xl.calibrate(xl.collect(net, xl.demo.load_scenes("calibration")), max_accuracy_drop=0.02)
    if path.exists():
        return trace, policy, *torch.load(path)
    taken, every = torch.zeros(SWAPPED, SWAPPED), torch.zeros(SWAPPED, SWAPPED, net.num_exits)
    rows, exits = torch.arange(SWAPPED), xl.route(trace, policy)
    with net.open_engine() as engine:
        trial = ObservedTrial(net, engine, lambda rows: scenes.subset(rows).inputs, SWAPPED, lambda: None)
        hide, final = trial.choose_top(geometric_mean(trial.maps), OBJECT), trial.choose_top(trial.maps[-1], OBJECT)
        for shift in range(SWAPPED):
            partner = rows.roll(shift)
            every[rows, partner] = trial.find_changes(rows, [partner], final, final, trial.exits)
            for k in exits.unique().tolist():
                here = (exits == k).nonzero()[:, 0]
                keep = trial.choose_top(trial.maps[k], 0.2)
                taken[here, partner[here]] = trial.find_changes(here, [partner[here]], keep, hide, (k,))[:, 0]
    torch.save((taken, every), path)
    return trace, policy, taken, every


def count_one_swap_draw(seed: int) -> dict[str, list[float]]:
    """Return, by promise, whether it is broken, what it promises less what is true, and for limits the cost."""
    trace, policy, taken, every = swap_all_pairs()
    drawn, samples = (
        torch.randint(SWAPPED, (DRAWN_SWAPS,), generator=torch.Generator().manual_seed(seed)),
        torch.arange(DRAWN_SWAPS),
    )
    partner, unit = pair_groups(samples, seed)
    share, _ = bound_share(taken[drawn, drawn[partner]], samples, unit, BROKEN_DELTA)
    truth = 1 - taken.mean().item()
    judged = {"binding": [float(share > truth), share - truth, 1.0]}
    changed = every[drawn, drawn[partner]].bool()
    known = replace(trace.select(drawn), swaps={"changed": changed, "unit": unit})
    for limit in CUE_LIMITS:
        chosen = xl.calibrate(known, max_cue_drop=limit, delta=BROKEN_DELTA, seed=seed, temperatures=policy)
        exits = xl.route(trace, chosen)
        drop = (every.gather(2, exits[:, None, None].expand(-1, SWAPPED, 1))[..., 0] - every[..., -1]).mean().item()
        judged[f"cue drop {limit:g}"] = [float(drop > limit), limit - drop, trace.cost[exits].mean().item()]
        known.certificate_requests.clear()  # each limit is judged alone
    return judged


def count_on_swaps(count: int) -> Tree:
    swap_all_pairs()
    outcomes = populations.run_in_parallel(count_one_swap_draw, seeds=range(count))
    rows = {}
    for label in outcomes[0]:
        broken, room, cost = np.array([outcome[label] for outcome in outcomes]).mean(0)
        rows[label] = {"violations": float(broken), "room": float(room), "cost": float(cost)}
    return {"draws": count, "samples": DRAWN_SWAPS, "rows": rows}


# How soon a monitor warns when backgrounds change, and how often it does when nothing changes


CHANGES = {"at once": 0, "after 1,000": 1000, "after 5,000": 5000}  # samples before the change


def watch_stream(changes_at: int | None, seed: int) -> int | None:
    """Return the samples from the change (or the start) until the alarm; ``None``: none in 10,000 (500 after a change)."""
    before, after = populations.recall_trace("scenes-egt"), populations.recall_trace("scenes-egt-drifted")
    rng = torch.Generator().manual_seed(seed)
    known = before.select(torch.randint(len(before), (populations.CALIBRATION,), generator=rng))
    policy = xl.calibrate(known, max_accuracy_drop=0.01, delta=0.1, seed=seed)
    monitor = xl.DriftMonitor(policy, seed=seed)

    def stream(trace: xl.Trace, count: int) -> xl.Drift:
        rows = torch.randint(len(trace), (count,), generator=rng)
        return monitor.update(populations.answer_on_paper(trace.select(rows), policy))

    if changes_at is None:
        return stream(before, 10_000).since
    if changes_at:
        stream(before, changes_at)
    early = monitor.state().since
    since = stream(after, 500).since
    return None if since is None or early is not None else since - changes_at


def measure_drift(runs: int) -> Tree:
    populations.load_trace("scenes-egt"), populations.load_trace("scenes-egt-drifted")
    measured: Tree = {"runs": runs}
    for key, at in CHANGES.items():
        delays = sorted(d for d in populations.run_in_parallel(watch_stream, at, seeds=range(runs)) if d is not None)
        measured[key] = {"warned": len(delays) / runs, "median_delay": delays[len(delays) // 2] if delays else None}
    alarms = populations.run_in_parallel(watch_stream, None, seeds=range(1000, 1000 + runs))
    return measured | {"unchanged, 10,000 samples": {"alarms": sum(alarm is not None for alarm in alarms) / runs}}


def time_calibration(rounds: int) -> Tree:
    torch.set_num_threads(1)
    rng, count = torch.Generator().manual_seed(0), 50_000
    labels = torch.randint(0, 10, (count,), generator=rng)
    logits = torch.randn(count, 4, 10, generator=rng)
    logits += torch.tensor([2.0, 3.0, 4.0, 5.0])[None, :, None] * torch.nn.functional.one_hot(labels, 10)[:, None]
    divergence = torch.rand(count, 4, generator=rng) * torch.tensor([0.5, 0.3, 0.1, 0.0])
    trace = xl.Trace(logits, labels, divergence, torch.tensor([0.1, 0.3, 0.6, 1.0]))
    limits = {"max_accuracy_drop": 0.01, "max_disagreement": 0.1, "max_divergence": 0.1}
    works = {"calibrate": lambda seed: xl.calibrate(replace(trace), **limits, delta=0.1, seed=seed)}  # type: ignore[arg-type]
    seconds = [round(s, 3) for s in take_turns(works, rounds, warm_up=0, clock=time.perf_counter)["calibrate"]]
    return {"samples": count, "exits": 4, "seconds": seconds}


def list_promises(runs: Runs) -> Iterator[Promise]:
    for run, measured in runs.items():
        yield from promise_risks(run, measured) if "sets" in measured else promise_rest(run, measured)


def find_worst(sets: Tree, label: str, delta: float) -> float:
    return max(row["violations"] for row in sets[label].values() if row["delta"] == delta)


def promise_risks(run: str, measured: Tree) -> Iterator[Promise]:
    sets, not_named = measured["sets"], [label for label in measured["sets"] if "not named" in label]
    draws = {label: next(iter(rows.values()))["draws"] for label, rows in sets.items()}
    for label in [label for label in sets if label not in not_named]:
        for delta in sorted({row["delta"] for row in sets[label].values()}):
            key, what = f"violations|{run}|{label}|{delta}", f"{run}: {label}, delta {delta}: promises broken"
            yield Promise.of_share(key, what, find_worst(sets, label, delta), draws[label], "<=", delta)
    if run == "synthetic":
        broken = measured["broken"]
        most = max(find_worst(broken["sets"], label, BROKEN_DELTA) for label in broken["sets"])
        what = f"one step too far, delta {BROKEN_DELTA}: promises broken (must be many)"
        yield Promise.of_share("broken", what, most, broken["draws"] // 3, ">=", BROKEN_DELTA)
    if not_named:
        most, worst = max((find_worst(sets, label, BROKEN_DELTA), label) for label in not_named)
        what = f"groups not named, delta {BROKEN_DELTA}: promises broken (must be many)"
        yield Promise.of_share("groups not named", what, most, draws[worst], ">=", 2 * BROKEN_DELTA)


def promise_rest(run: str, measured: Tree) -> Iterator[Promise]:
    match run.partition("-")[0]:
        case "watch":
            named, other = measured["named"]["alarms"], measured["not named"]["alarms"]
            count, what = measured["runs"], "drift on groups: false alarms, share of runs"
            yield Promise.of_share("watch|named", what, named, count, "<=", 0.05)
            yield Promise.of_share("watch|not named", f"{what}, not named (must be many)", other, count, ">=", 0.5)
        case "families":
            false, missed = sum(list_warned(measured, True)), sum(1 - value for value in list_warned(measured, False))
            yield Promise("families|false", "sets of independent samples: warned of", false, "<=", 0, exact=True)
            what = "sets of families that lie side by side: not warned of"
            yield Promise("families|true", what, missed, "<=", 0, exact=True)
        case "saving":
            shares, errors = measured["share_of_hindsight"], measured.get("errors", {})
            for name in [name for name in shares if name != "hindsight"]:
                key, rival, less, bar = f"baseline|{name}|{run}", f"{name}'s", shares[name], 0.0
                if name == "ours":
                    key, rival, less, bar = f"hindsight|{run}", "hindsight's", 0.0, 0.85
                half = NORMAL * errors.get(name, math.inf)
                yield Promise.of_half(key, f"{run}: saving over {rival}", shares["ours"] - less, ">=", bar, half)
        case "swaps":
            for label, row in measured["rows"].items():
                what = f"{label}: certificates broken, at most delta = {BROKEN_DELTA:g}"
                yield Promise.of_share(f"swaps|{label}", what, row["violations"], measured["draws"], "<=", BROKEN_DELTA)
        case "drift":
            for key in CHANGES:
                what, warned = f"drift {key}: warned within 500 samples", measured[key]["warned"]
                yield Promise.of_share(f"drift|{key}", what, warned, measured["runs"], ">=", 0.95)
            what, alarms = "drift: false alarms in 10,000 samples, share of runs", measured["unchanged, 10,000 samples"]
            yield Promise.of_share("drift|false", what, alarms["alarms"], measured["runs"], "<=", 0.05)
        case "time":
            what = "50,000 samples, 4 exits, 3 risks: seconds on one core"
            yield Promise.of_median("time", what, spread(measured["seconds"]), "<=", 2)


def list_warned(measured: Tree, is_independent: bool) -> list[float]:
    """Return 1 for each set of independent (or shuffled) samples that is warned of, else 0; or so of the others."""
    return [
        float(likeness["warned"])
        for name, orders in measured.items()
        for order, likeness in orders.items()
        if ("independent" in name or order == "shuffled") == is_independent
    ]


def find_runs(runs: Runs, prefix: str) -> dict[str, Tree]:
    return {name.removeprefix(prefix): run for name, run in runs.items() if name.startswith(prefix)}


def show_worst(sets: Tree, labels: Iterable[str]) -> list[str]:
    return [", ".join(f"{find_worst(sets, label, delta):.3f}" for delta in DELTAS) for label in labels]


def write_draws(run: str, measured: Tree, names: Iterable[str]) -> list[list[str]]:
    """Return a row for each of three populations, and one for draws where the test goes one step too far."""
    broken = measured["broken"]
    parts = [(f"{run} {k}, a third of {measured['draws']:,} draws", measured, k) for k in (0, 1, 2)]
    parts.append((f"*one step too far*, {run} 1, a third of {broken['draws']} draws", broken, 1))
    return [[title, *show_worst(part["sets"], (f"population {k}, {name}" for name in names))] for title, part, k in parts]


def write_violations(runs: Runs) -> list[str]:
    rows = []
    for name, run in find_runs(runs, "splits-").items():
        rows.append([f"{name}, {run['splits']:,} splits of {run['samples']:,}", *show_worst(run["sets"], SETS)])
        further = runs.get(f"further-{name}")
        rows[-1] += show_worst(further["sets"], FURTHER_SETS) if further else [""] * len(FURTHER_SETS)
    return [
        "Share of calibrations after which a risk was above its limit (the worst over limits of 0.5, 1, 2 and 5 %), for δ = 0.05, 0.1, 0.2.",
        "Splits: 1,000 random draws (the last two columns: 400) of 2,000 calibration samples from a real trace, the risk taken on all other "
        "samples. Synthetic: 2,000 draws of 1,000 samples from three populations whose risks are known.",
        "",
        *table(
            ["", *SETS, *FURTHER_SETS],
            [*rows, *([*row, "", ""] for row in write_draws("synthetic", runs["synthetic"], SETS))],
        ),
    ]


def write_labels(runs: Runs) -> list[str]:
    measured = runs["labels"]
    return [
        f"Share of calibrations after which a risk was above its limit (the worst over limits of 0.5, 1, 2 and 5 %), for δ = 0.05, 0.1, 0.2: "
        f"{measured['draws']:,} draws of {measured['samples']:,} samples from three populations whose risks are known, five labels, temperatures "
        "fitted on the part that proposes. Missed labels: `max_false_negative_drop`.",
        "",
        *table(["", *LABEL_SETS], write_draws("labels", measured, LABEL_SETS)),
    ]


def write_savings(runs: Runs) -> list[str]:
    savings = find_runs(runs, "saving-")
    rows, timing = [], runs["time"]
    for label in next(iter(savings.values()))["costs"]:
        figures = [(run["costs"][label], run["share_of_hindsight"][label], run["broken"][label]) for run in savings.values()]
        rows.append([label, *(f"{cost:.3f} ({100 * a:.0f} %), above in {100 * b:.0f} %" for cost, a, b in figures)])
    seconds = sorted(timing["seconds"])
    return [
        "Mean cost at δ = 0.1, accuracy drop at most 1 %, 2,000 calibration samples; in brackets the saving as a share of what the best "
        "thresholds save that the *test* samples themselves would choose (hindsight), and how often the drop on the test samples was above 1 %.",
        "",
        *table(["", *savings], rows),
        "",
        f"{timing['samples']:,} samples, {timing['exits']} exits, three risks: {seconds[len(seconds) // 2]:.2f} s on one core (median of "
        f"{len(seconds)}; {seconds[0]:.2f} to {seconds[-1]:.2f}).",
    ]


def write_swaps(runs: Runs) -> list[str]:
    measured = runs["swaps"]
    rows = [
        [
            label,
            f"{row['violations']:.3f}",
            f"{100 * row['room']:.1f} points",
            "-" if label == "binding" else f"{row['cost']:.3f}",
        ]
        for label, row in measured["rows"].items()
    ]
    return [
        f"{measured['draws']:,} draws of {measured['samples']:,} scenes, with replacement, paired at random; δ = {BROKEN_DELTA:g}. All pairs of "
        "the scenes were swapped before, so what is true is known.",
        "",
        *table(["promise", "broken", "between promise and truth, mean", "mean cost"], rows),
    ]


def write_drifts(runs: Runs) -> list[str]:
    measured, rows = runs["drift"], []
    for key, at in CHANGES.items():
        title, figures = f"changes {key}{' samples' if at else ''}", measured[key]
        rows.append([title, f"{100 * figures['warned']:.1f} %", str(figures["median_delay"])])
    alarms = f"false alarms in {100 * measured['unchanged, 10,000 samples']['alarms']:.1f} % of the runs"
    rows.append(["never changes, 10,000 samples", alarms, ""])
    return [
        f"The demo's network, calibrated with a certificate; then backgrounds agree with the class in 10 % instead of 80 % of the scenes. {measured['runs']} runs each:",
        "",
        *table(["", "warned within 500 samples", "median delay"], rows),
    ]


def write_groups(runs: Runs) -> list[str]:
    measured, watched, rows = runs["groups"], runs["watch-groups"], []
    for label, cells in measured["sets"].items():
        kind, *modes, risks = label.split(", ")
        mode = ", ".join(modes)
        cost = next(row["cost"] for row in cells.values() if (row["limit"], row["delta"]) == (0.05, 0.1))
        shown = f"*{mode}*" if mode == "not named" else mode
        rows.append([kind, shown, risks, *show_worst(measured["sets"], [label]), f"{cost:.3f}"])
    named, other = (100 * watched[name]["alarms"] for name in ("named", "not named"))
    families = [
        [name, *(f"{x['rank']:.2f} ({x['deviation']:.0f})" + " **warned**" * x["warned"] for x in orders.values())]
        for name, orders in runs["families"].items()
    ]
    return [
        f"{measured['draws']:,} draws of {measured['groups']} groups of 1 to 50 samples, a third from each of three populations whose risks are known: of some "
        "groups the early exits are wrong about most samples, and sure. Share of calibrations after which a risk was above its limit (the worst over "
        "limits of 2, 5 and 10 %; the risk is the mean over samples, or over groups where all count the same), for δ = 0.05, 0.1, 0.2; mean cost at "
        "5 % and δ = 0.1.",
        "",
        *table(["population", "groups", "risks", "broken", "cost"], rows),
        "",
        f"The drift watch on {watched['groups']} new groups of the same populations, {watched['runs']} runs: false alarms in {named:.1f} % where groups "
        f"are named, in {other:.1f} % where they are not.",
        "",
        "The warning, for a network trained on other scenes: the mean rank at that distance in the order at which it is furthest below 0.5, and "
        "in brackets by how many standard errors.",
        "",
        *table(["", *ORDERS], families),
    ]


TABLES = {"labels": write_labels, "groups": write_groups, "swaps": write_swaps, "drift": write_drifts}
TABLES["guarantees"] = lambda runs: [*write_violations(runs), "", *write_savings(runs)]
STUDY = Study("guarantees", list_cells, list_promises, TABLES)
