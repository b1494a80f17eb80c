"""Is the map or the measure wrong on Fashion-MNIST? The share of the oracle when deleted cells become something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.harness import NORMAL, Job, Study, join_means, table
from benchmarks.results import Runs, Tree
from benchmarks.tasks import build_network, fashion
from exitlens.functional.baselines import fill
from exitlens.functional.maps import draw_random_map, pair_samples, rank_locations, regrid, share_of_possible, top_cells

WATCHED, FRACTION, GRID = 500, 0.2, (5, 5)
SHARES, DROPS = ("attention", "relevance", "the garment itself"), ("drop by random cells", "drop by the oracle's")
Fill = Callable[[Tensor, Tensor], Tensor]  # images (B,C,H,W), chosen (B,1,H,W) bool -> (B,C,H,W)


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {"small-0": partial(measure, *((64, 1, 16) if quick else (10_000, 2, 200)))}


def measure(trained: int, epochs: int, judged: int) -> Tree:
    task = fashion(0)
    net, data = build_network(task, 0, exits=True), task.validation.subset(torch.arange(WATCHED, WATCHED + judged))
    watched, settings = task.validation.subset(torch.arange(WATCHED)), {**task.settings, "epochs": epochs, "progress": False}
    xl.fit(net, task.train.subset(torch.arange(trained)), watched, **settings)
    images, modality = data.inputs, net.eval().input_spec.modality
    with torch.no_grad():
        attention = [modality.coarsen(net.info.place(k, out.attention), GRID) for k, out in enumerate(net(images))]
    relevance = [modality.coarsen(xl.attribute(net, images, exit=k), GRID) for k in range(net.num_exits)]
    garment = (data.images[:, 0] > 0).float()  # (B,H,W)
    covered = regrid(garment, GRID)
    maps = dict(zip(SHARES, (attention, relevance, [covered] * net.num_exits), strict=True))
    on_garment = [(each * covered).flatten(1).sum(1).mean().item() for each in attention]
    facts = {"trained": trained, "epochs": epochs, "judged": judged, "on_garment": on_garment, "area": garment.mean().item()}
    return facts | {name: judge(net, images, maps, replace) for name, replace in list_fills(images.min().item()).items()}


def list_fills(black: float) -> Mapping[str, Fill]:
    """Return what deleted cells become; ``black`` is the value of the background."""
    return {
        "mean colour": lambda images, chosen: fill(images, chosen, "mean"),
        "black": lambda images, chosen: torch.full_like(images, black),
        "blurred": lambda images, chosen: fill(images, chosen, "blur"),
        "imputed": lambda images, chosen: fill(images, chosen, "road"),
        "another image": lambda images, chosen: images[pair_samples(len(images), 7)],
    }


@torch.inference_mode()
def judge(net: xl.ExitNet, images: Tensor, maps: Mapping[str, list[Tensor]], replace: Fill) -> Tree:
    """Return what cells cost at every exit and, for each kind of map, the share of the oracle and its standard error."""
    modality, plain = net.input_spec.modality, [out.logits.softmax(1) for out in net(images)]

    def drop(cells: Tensor) -> list[Tensor]:  # (B,*grid) bool -> (B,) for each exit
        chosen = modality.spread(cells, images)
        after = net(torch.where(chosen, replace(images, chosen), images))
        pairs = zip(plain, after, strict=True)
        return [(p - out.logits.softmax(1)).gather(1, p.argmax(1, keepdim=True)).squeeze(1) for p, out in pairs]

    single = torch.eye(GRID[0] * GRID[1], dtype=torch.bool).view(-1, 1, *GRID).expand(-1, len(images), *GRID)
    losses = [torch.stack(each, 1).view(-1, *GRID) for each in zip(*map(drop, single), strict=True)]
    blind = [drop(top_cells(draw_random_map(losses[0], seed), FRACTION)) for seed in range(3)]
    control = [torch.stack(each).mean(0) for each in zip(*blind, strict=True)]
    best = [drop(top_cells(rank_locations(loss, None), FRACTION))[k] for k, loss in enumerate(losses)]
    judged: Tree = dict(zip(DROPS, ([each.mean().item() for each in part] for part in (control, best)), strict=True))
    for name, kind in maps.items():
        drops = [drop(top_cells(each, FRACTION))[k] for k, each in enumerate(kind)]
        judged[name], judged[f"{name}, error"] = zip(*map(share_of_possible, drops, control, best), strict=True)
    return judged


def write_table(runs: Runs) -> list[str]:
    lines, names = [], list(list_fills(0.0))
    for run in runs.values():
        rows = [[name, *(join_means([run[name][column]], 2) for column in SHARES + DROPS)] for name in names]
        error = max(error or 0 for name in names for kind in SHARES for error in run[name][f"{kind}, error"])
        places = f"{join_means([run['on_garment']], 2)} of the attention is on the garment, whose area is {run['area']:.2f}"
        lines += [
            *table(["deleted cells become", *SHARES, *DROPS], rows),
            "",
            f"Shares are ± {NORMAL * error:.2f} at most; {places}.",
        ]
    return lines


STUDY = Study("fashion", list_cells, tables={"fashion": write_table})
