"""One network: how faithful every map is, what it takes, and what relevance adds to an explanation.

Milliseconds are processor time of one thread, for one image at a time, all methods in turn: other processes hardly count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import exitlens as xl
from benchmarks.relevance.makers import Maker, list_makers
from benchmarks.relevance.networks import Subject
from exitlens.functional.attribution import draw_random_map, rank_locations, share_of_possible
from exitlens.functional.scores import probabilities
from exitlens.model.attribution import occlude, perturb
from exitlens.model.timing import describe_machine
from exitlens.types.outputs import exit_name

GRID, FRACTION, BATCH, WARM_UP = (5, 5), 0.2, 50, 2
FEW = 5  # images at once where maps are made: integrated gradients take 16 times as many, with all that a way back needs
ATTENTION = "attention"
Times = dict[str, list[float]]
Work = Callable[[Tensor, Tensor], Any]  # an image (1,C,H,W), its answer (1,)


def measure(subject: Subject, rounds: int) -> dict[str, Any]:
    """Everything about one network."""
    net, images = subject.net.eval(), subject.images.inputs
    torch.set_num_threads(1)
    with torch.no_grad():
        labels = torch.cat([net(part)[-1].logits.argmax(1) for part in images.split(BATCH)])
    makers = list_makers(net)
    judged = judge(net, images, labels, makers)
    taken = time_makers(net, images, labels, makers, rounds)
    for name, row in judged.items():
        row["ms"] = spread(taken[name if name in makers else ATTENTION])
    return {
        "title": subject.title,
        "images": len(images),
        "locations": " x ".join(str(n) for n in xl.compute_relevance(net, images[:1]).shape[1:]),
        "rounds": rounds,
        "machine": describe_machine(1),
        "maps": judged,
        "explain": time_explanations(net, images, rounds),
    }


def judge(net: xl.ExitNet, images: Tensor, labels: Tensor, makers: Mapping[str, Maker]) -> dict[str, dict[str, Any]]:
    """Deletion and insertion by every map, as shares of what the occlusion oracle reaches over random cells.

    The exits' attention maps are judged by the answers of their own exits, all others by the final exit's. All maps are averaged to
    the coarsest grid among them first.
    """
    pairs = list(zip(images.split(FEW), labels.split(FEW), strict=True))
    others = {name: torch.cat([make(*pair) for pair in pairs]) for name, make in makers.items()}
    last, coarsen = net.num_exits - 1, net.input_spec.modality.coarsen
    batches = [
        (slice(i, i + len(part)), part) for i, part in zip(range(0, len(images), BATCH), images.split(BATCH), strict=True)
    ]
    with net.open_engine() as engine:
        parts = [engine.compute_outputs(engine.enter(net.check_input(part))) for _, part in batches]
        outputs = [tuple(map(torch.cat, zip(*one, strict=True))) for one in zip(*parts, strict=True)]
        plain, attention = [probabilities(logits) for logits, _ in outputs], [maps for _, maps in outputs]
        maps = {f"attention, {exit_name(k, last + 1)}": (k, net.info.place(k, one)) for k, one in enumerate(attention)}
        maps |= {name: (last, one) for name, one in others.items()}
        grid = tuple(map(min, zip(GRID, *(one.shape[1:] for _, one in maps.values()), strict=True)))
        exits, found = [k for k, _ in maps.values()], [coarsen(one, grid) for _, one in maps.values()]
        own = found[: last + 1]
        mine = perturb(net, engine, batches, plain, found, FRACTION, exits)
        control = perturb(net, engine, batches, plain, [draw_random_map(one) for one in own], FRACTION)
        ranked = [rank_locations(drops, None) for drops in occlude(net, engine, batches, plain, own)]
        best = perturb(net, engine, batches, plain, ranked, FRACTION)
    cells = " x ".join(map(str, grid))
    rows: dict[str, dict[str, Any]] = {name: {"judged_at": k, "grid": cells} for name, (k, _) in maps.items()}
    for what, values, blind, top in zip(("deletion", "insertion"), mine, control, best, strict=True):
        for (name, (k, _)), one in zip(maps.items(), values, strict=True):
            share, error = share_of_possible(one, blind[k], top[k])
            rows[name] |= {what: one.mean().item(), f"{what}_random": blind[k].mean().item()}
            rows[name] |= {f"{what}_oracle": top[k].mean().item(), f"{what}_share": [share, error]}
    return rows


def time_makers(net: xl.ExitNet, images: Tensor, labels: Tensor, makers: Mapping[str, Maker], rounds: int) -> Times:
    """Milliseconds of a map of one image, and of the attention maps of all exits, which come with the answer."""

    def attend(image: Tensor, _: Tensor) -> None:
        with net.open_engine() as engine:
            engine.compute_outputs(engine.enter(net.check_input(image)))

    return time_in_turns({ATTENTION: attend, **makers}, images, labels, rounds)


def time_explanations(net: xl.ExitNet, images: Tensor, rounds: int) -> dict[str, Any]:
    """What relevance adds to an explanation that stops at the answer, over the forward pass of the stages that ran."""

    def run(stages: Sequence[Callable[..., Any]], image: Tensor, _: Tensor) -> None:
        with torch.inference_mode():
            activations = (image,)
            for stage in stages:
                activations = stage(*activations)

    found = {}
    for k in range(net.num_exits):
        policy = xl.Policy(tuple(0.0 if j == k else math.inf for j in range(net.num_exits - 1)))  # exit k answers
        works = {
            "forward": partial(run, list(net.stages)[: k + 1]),
            "explain": partial(_explain, net, policy, False),
            "with_relevance": partial(_explain, net, policy, True),
        }
        taken = time_in_turns(works, images, torch.zeros(len(images)), 2 * rounds)
        ratios = [(w - e) / f for w, e, f in zip(taken["with_relevance"], taken["explain"], taken["forward"], strict=True)]
        found[str(k)] = {**{f"{name}_ms": spread(values) for name, values in taken.items()}, "ratio": spread(ratios)}
    return found


def _explain(net: xl.ExitNet, policy: xl.Policy, relevance: bool, image: Tensor, _: Tensor) -> None:
    xl.explain(net, image, policy, final=False, relevance=relevance)


def time_in_turns(works: Mapping[str, Work], images: Tensor, labels: Tensor, rounds: int) -> Times:
    """Milliseconds of every call; each round has another image, and another order."""
    times: Times = {name: [] for name in works}
    for turn in range(rounds + WARM_UP):
        i = turn % len(images)
        for name in list(works)[:: 1 if turn % 2 else -1]:
            started = time.process_time()
            works[name](images[i : i + 1], labels[i : i + 1])
            if turn >= WARM_UP:
                times[name].append(1000 * (time.process_time() - started))
    return times


def spread(values: Sequence[float]) -> list[float]:
    """Median and quartiles."""
    return [round(float(v), 4) for v in np.percentile(values, (50, 25, 75))]
