"""A pretrained network on pictures that its training did not see: drawings of Debian's openclipart on varied backgrounds.

Cells: exits-SEED certifies policies for the network of ``truth`` on its task ``pictures``, which is trained here if it is missing;
pair-SEED compares it with the plain one of its seed on the same pictures; step-0 is the processor time of a training step. What
the networks know and where they look is among the results of ``truth``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exitlens as xl
from benchmarks.drawings import BACKBONE, SIZE, load_pictures
from benchmarks.harness import Job, Promise, Study, promise_table, spread, table, take_turns
from benchmarks.results import Runs, Tree, list_seeds
from benchmarks.tasks import PICTURES, TASKS
from benchmarks.truth import EGT, PLAIN, find_folder, list_accuracy, train
from benchmarks.truth import STUDY as TRUTH
from exitlens.model.backbones.build import build_backbone
from exitlens.model.timing import describe_machine
from exitlens.types.outputs import exit_name
from exitlens.workflow.training.optimizer import make_optimizer

SEEDS = (0, 1, 2)
LIMITS, DELTA = (0.02, 0.03, 0.05), 0.1  # accuracy drops that policies are certified for
LEAST_DIFFERENCE, MOST_RATIO = -0.3, 1.15


def list_cells(quick: bool = False) -> dict[str, Job]:
    kinds = {"exits": certify, "pair": compare}
    cells = {f"{kind}-{seed}": partial(measure, seed) for seed in SEEDS for kind, measure in kinds.items()}
    return {"step-0": partial(time_steps, 1, 4) if quick else time_steps, **({} if quick else cells)}


def certify(seed: int) -> Tree:
    """Certify policies of a network with exits, and try them on the test pictures."""
    net, result = train(TASKS["pictures"](seed), EGT, seed, find_folder("pictures", EGT, seed))
    (calibration, drawings), (test, test_drawings) = (load_pictures(PICTURES, part) for part in ("calibration", "test"))
    trace, known = xl.collect(net, test), xl.collect(net, calibration).with_groups(drawings)
    facts = {"epochs": len(result.history), "pictures": len(trace), "drawings": len(test_drawings.unique())}
    facts |= {"calibration_pictures": len(known), "calibration_drawings": len(drawings.unique())}
    policies = {}
    for name, (limit, named) in POLICIES.items():
        alone = replace(known) if named else replace(known, groups=None)  # each limit is asked alone
        report = xl.evaluate(trace, xl.calibrate(alone, max_accuracy_drop=limit, delta=DELTA))
        policies[name] = {"cost": report.cost, "drop": report.accuracy_drop}
    return {**facts, "area": test.masks.float().mean().item(), "policies": policies}


POLICIES = {  # by name: limit, and whether it is said which pictures show one drawing
    f"{limit}, {'by drawing' if named else 'by picture'}": (limit, named) for limit in LIMITS for named in (True, False)
}


def compare(seed: int) -> Tree:
    """Subtract the plain network from the final exit on the same pictures, with the standard error over drawings."""
    task, (test, drawings) = TASKS["pictures"](seed), load_pictures(PICTURES, "test")
    nets = [train(task, name, seed, find_folder("pictures", name, seed))[0] for name in (PLAIN, EGT)]
    plain, exits = (xl.collect(net, test).correct[:, -1:].double() for net in nets)
    difference = exits - plain
    return {"difference": difference.mean().item(), "error": spread_by_drawing(difference, drawings).item()}


def spread_by_drawing(values: Tensor, drawings: Tensor) -> Tensor:  # (N,K), (N,) -> (K,)
    """Return the standard error of means over pictures, had other drawings been drawn (bootstrap of whole drawings)."""
    ids, place = drawings.unique(return_inverse=True)
    sums = torch.zeros(len(ids), values.shape[1], dtype=torch.float64).index_add_(0, place, values.double())
    counts = place.bincount(minlength=len(ids)).double()
    draws = torch.randint(len(ids), (2000, len(ids)), generator=torch.Generator().manual_seed(0))
    return (sums[draws].sum(1) / counts[draws].sum(1)[:, None]).std(0)


def time_steps(rounds: int = 9, batch: int = 64, size: int = SIZE, classes: int = 16) -> Tree:
    """Time a training step with exits against one of the plain backbone in plain PyTorch, in turn, by one thread's processor time."""
    torch.set_num_threads(1)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,))
    loss = xl.EGTLoss().for_network(attends=False)
    plain = build_backbone(BACKBONE, classes)
    exits = xl.attach(build_backbone(BACKBONE, classes), 3, classes, images[:1], head="context")
    steps = {
        "plain": prepare_step(plain, lambda logits: F.cross_entropy(logits.float(), labels), images),
        "exits": prepare_step(exits, lambda outputs: loss(outputs, labels, 0.5).total, images, separate_maps=True),
    }
    seconds = take_turns(steps, rounds)
    ratios = [e / p for e, p in zip(seconds["exits"], seconds["plain"], strict=True)]
    facts = {"machine": describe_machine(torch.get_num_threads()), "batch": batch, "rounds": rounds}
    return facts | {"ratio": spread(ratios, ends=(25, 75))}


def prepare_step(net: nn.Module, measure: Callable[[Any], Tensor], images: Tensor, **options: bool) -> Callable[[int], None]:
    """Return a training step in bfloat16 and channels_last with AdamW; the network gets the options."""
    net = net.to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer([{"params": list(net.parameters()), "lr": 1e-4}])

    def step(_: int) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(images, **options)
        optimizer.zero_grad(set_to_none=True)
        measure(outputs).backward()
        optimizer.step()

    return step


def list_promises(runs: Runs) -> Iterator[Promise]:
    pairs = list_seeds(runs, "pair")
    if len(pairs) == len(SEEDS):
        what = "pictures: final exit minus the plain network, points"
        points, error = ([100 * pair[key] for pair in pairs] for key in ("difference", "error"))
        yield Promise.of_mean("pictures|final", what, points, ">=", LEAST_DIFFERENCE, mean(error))
    if "step-0" in runs:
        what, step = "pictures: a training step with exits over the plain network's", runs["step-0"]
        yield Promise.of_median("pictures|step", what, step["ratio"], "<=", MOST_RATIO, quartiles_of=step["rounds"])


def write_networks(runs: Runs) -> list[str]:
    seeds = [seed for seed in SEEDS if f"pair-{seed}" in runs and f"exits-{seed}" in runs]
    (exits, pairs), truth = (list_seeds(runs, kind) for kind in ("exits", "pair")), TRUTH.read()
    plain, ours = ([truth[f"pictures/{name}-{seed}"] for seed in seeds] for name in (PLAIN, EGT))
    cost, skill = average(ours, "cost"), average(ours, "skill")
    energy = average([run["attention"] for run in ours], "energy_in_mask")
    rows = [["plain network", "1", *show_points(list_accuracy(plain, "test", 0)), "", ""]]
    for k in range(len(cost)):
        by_seed, agreement = show_points(list_accuracy(ours, "test", k)), f"{skill[k]:.2f}" if k < len(skill) else ""
        rows.append([exit_name(k, len(cost)), f"{cost[k]:.2f}", *by_seed, agreement, f"{100 * energy[k]:.0f} %"])
    differences, first = [100 * pair["difference"] for pair in pairs], exits[0]
    return [
        f"Accuracy in % on {first['pictures']:,} test pictures of {first['drawings']} drawings, {first['epochs']} epochs, for seeds "
        f"{', '.join(map(str, seeds))} and in the mean; skill of the maps' agreement with the final map; attention "
        f"that lies on the drawing, which covers {100 * mean(run['area'] for run in exits):.0f} % of a picture.",
        "",
        *table(["", "cost", *[f"seed {seed}" for seed in seeds], "mean", "skill", "on the drawing"], rows),
        "",
        f"Final exit minus the plain network: {', '.join(f'{value:+.1f}' for value in differences)} points, "
        f"{mean(differences):+.2f} in the mean. Other test drawings would move the "
        f"difference of one seed by {100 * mean(pair['error'] for pair in pairs):.1f} points (standard error over drawings).",
        "",
        *write_policies(exits),
    ]


def average(runs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [mean(values) for values in zip(*(run[key] for run in runs), strict=True)]


def show_points(values: Sequence[float]) -> list[str]:
    return [*(f"{100 * value:.1f}" for value in values), f"**{100 * mean(values):.1f}**"]


def write_policies(exits: Sequence[Tree]) -> list[str]:
    rows = []
    for name, (limit, _) in POLICIES.items():
        costs, drops = ([run["policies"][name][key] for run in exits] for key in ("cost", "drop"))
        broken = f"{sum(drop > limit for drop in drops)} of {len(exits)}"
        shown = ", ".join(f"{100 * drop:.1f}" for drop in drops)
        rows.append([f"{100 * limit:g} points, {name.partition(', ')[2]}", f"{mean(costs):.2f}", shown, broken])
    return [
        f"Policies certified (δ = 0.1) on {exits[0]['calibration_pictures']:,} pictures of {exits[0]['calibration_drawings']} "
        f"drawings, to lose at most {', '.join(f'{100 * limit:g}' for limit in LIMITS)} points: told which pictures show one drawing, and not.",
        "",
        *table(["limit", "cost on test pictures", "points lost, by seed", "above the limit"], rows),
    ]


def write_tables(runs: Runs) -> list[str]:
    lines = write_networks(runs)
    if "step-0" in runs:
        step = runs["step-0"]
        ratio, low, high = step["ratio"]
        lines += [
            "",
            f"A training step (batches of {step['batch']}, bfloat16, channels_last, one thread) takes {ratio:.2f} times the "
            f"plain network's (quartiles {low:.2f} and {high:.2f} of {step['rounds']} pairs of steps taken in turns; promised: at most "
            f"{MOST_RATIO}).",
        ]
    return [*lines, "", *promise_table(list_promises(runs))]


TABLES = {"pictures": write_tables, "photos": write_networks}
STUDY = Study("pictures", list_cells, list_promises, TABLES, processes=2, alone="step-*")
