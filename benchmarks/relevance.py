"""Relevance maps beside those of captum, pytorch-grad-cam and torchcam: how faithful they are, and what they take.

Cells: demo (needs `make demo-full`), lite0 (the network of `python -m benchmarks truth run pictures/egt-0`); some minutes in all.
Milliseconds are processor time of one thread, for one image at a time, all methods in turn: other processes hardly count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import exitlens as xl
from benchmarks.harness import Job, Promise, Study, show_interval, spread, table, take_turns
from benchmarks.results import Runs, Tree
from benchmarks.tasks import TASKS
from benchmarks.truth import EGT, find_folder, train
from exitlens.delivery.bundle import load
from exitlens.delivery.run_directory import load_samples
from exitlens.functional.maps import draw_random_map, rank_locations, share_of_possible
from exitlens.functional.scores import probabilities
from exitlens.model.attribution import METHODS, STEPS, Method, occlude, perturb
from exitlens.model.timing import describe_machine
from exitlens.types.inputs import draw_samples
from exitlens.types.outputs import exit_name

GRID, FRACTION, BATCH = (5, 5), 0.2, 50
FEW = 5  # images at once where maps are made: integrated gradients take 16 times as many, with all that a way back needs
TITLES = {
    "demo": "small network of `make demo-full`, 40 px",
    "lite0": "EfficientNet-Lite0 of `make bench STUDY=pictures`, 128 px",
}
Maker = Callable[[Tensor, Tensor], Tensor]  # (B,C,H,W), answers (B,) -> (B,h,w), signed where the method is


def list_cells(quick: bool = False) -> dict[str, Job]:
    rounds, counts = (2, (8, 8)) if quick else (20, (400, 100))
    return {name: partial(measure, name, count, rounds) for name, count in zip(TITLES, counts, strict=True)}


def measure(name: str, count: int, rounds: int) -> Tree:
    torch.set_num_threads(1)
    net, images = load_network(name, count)
    with torch.no_grad():
        labels = torch.cat([net(part)[-1].logits.argmax(1) for part in images.split(BATCH)])
    makers = list_makers(net)
    judged = judge(net, images, labels, makers)

    def attend(image: Tensor, _: Tensor) -> Tensor:  # the attention maps of all exits come with the answer
        with net.open_engine() as engine:
            return engine.compute_outputs(engine.enter(net.check_input(image)))[0][1]

    taken = time_images({"attention": attend, **makers}, images, labels, rounds)
    for title, row in judged.items():
        row["ms"] = find_quartiles(taken[title if title in makers else "attention"])
    locations = " x ".join(str(n) for n in xl.attribute(net, images[:1]).shape[1:])
    facts = {"title": TITLES[name], "images": len(images), "locations": locations, "rounds": rounds}
    return {**facts, "machine": describe_machine(1), "maps": judged, "explain": time_explanations(net, images, rounds)}


def load_network(name: str, count: int) -> tuple[xl.ExitNet, Tensor]:
    if name == "demo":
        net, _ = load(Path("runs/demo-full"))
        data = load_samples(Path("runs/demo-full"), net, "test")
    else:
        task = TASKS["pictures"](0)
        net, data = train(task, EGT, 0, find_folder("pictures", EGT, 0))[0], task.tests["test"]
    images = data.subset(draw_samples(len(data), count, 0).sort().values).inputs
    return net.eval(), images


# Makers of maps, all of them about the final exit's answer and the features of exit 0. Others get the network as their users would
# give it: a module that returns logits, with the layer in it. Captum is told the answers, the others find them. Signed maps are averaged
# to the cells before their positive parts are taken.


class WithLayer(nn.Module):
    """Images to the logits of the final exit, past a layer ``features``, whose output exit 0 reads."""

    def __init__(self, net: xl.ExitNet) -> None:
        super().__init__()
        self.net, self.features = net, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        features, *others = self.net.stage(0)(images)
        activations = (self.features(features), *others)
        for stage in list(self.net.stages)[1:]:
            activations = stage(*activations)
        return self.net.head(self.net.num_exits - 1).classify(*activations)


def list_makers(net: xl.ExitNet) -> dict[str, Maker]:
    """Return all makers by name; each has a module of its own, so that no hook of one library is called for another."""
    integrated = {"n_steps": STEPS, "method": "riemann_middle"}
    return {
        **{f"exitlens, {method.replace('_', ' ')}": make_ours(net, method) for method in METHODS},
        "captum, LayerGradientXActivation": make_captum(net, "LayerGradientXActivation"),
        "captum, LayerGradCam": make_captum(net, "LayerGradCam"),
        f"captum, LayerIntegratedGradients, {STEPS} steps": make_captum(net, "LayerIntegratedGradients", **integrated),
        **{f"pytorch-grad-cam, {name}": make_grad_cam(net, name) for name in ("GradCAM", "LayerCAM")},
        **{f"torchcam, {name}": make_torchcam(net, name) for name in ("GradCAM", "LayerCAM")},
    }


def make_ours(net: xl.ExitNet, method: Method) -> Maker:
    return lambda images, _: xl.attribute(net, images, method=method)


def make_captum(net: xl.ExitNet, name: str, **settings: Any) -> Maker:
    from captum import attr

    module = WithLayer(net).eval()
    method = getattr(attr, name)(module, module.features)

    return lambda images, labels: method.attribute(images, target=labels, **settings).detach().float().sum(1)


def make_grad_cam(net: xl.ExitNet, name: str) -> Maker:
    import pytorch_grad_cam

    module = WithLayer(net).eval()
    cam = getattr(pytorch_grad_cam, name)(module, [module.features])

    def make(images: Tensor, _: Tensor) -> Tensor:
        maps = torch.from_numpy(cam(images, targets=None))  # of the answers, in the images' size
        net.zero_grad()  # it leaves gradients of all weights
        return maps

    return make


def make_torchcam(net: xl.ExitNet, name: str) -> Maker:
    from torchcam import methods

    module = WithLayer(net).eval()
    cam = getattr(methods, name)(module, target_layer="features")

    def make(images: Tensor, _: Tensor) -> Tensor:
        scores = module(images)
        (maps,) = cam(scores.argmax(1).tolist(), scores)
        return maps.detach().nan_to_num(0.0)  # of a map that is 0 everywhere

    return make


def judge(net: xl.ExitNet, images: Tensor, labels: Tensor, makers: Mapping[str, Maker]) -> dict[str, Tree]:
    """Measure deletion and insertion by every map on the coarsest grid, as shares of what the occlusion oracle reaches over random cells.

    Attention maps are judged by the answers of their own exits, all others by the final exit's.
    """
    pairs = list(zip(images.split(FEW), labels.split(FEW), strict=True))
    others = {name: torch.cat([make(*pair) for pair in pairs]) for name, make in makers.items()}
    last, coarsen = net.num_exits - 1, net.input_spec.modality.coarsen
    parts = list(images.split(BATCH))
    batches = [(slice(i * BATCH, i * BATCH + len(part)), part) for i, part in enumerate(parts)]
    with net.open_engine() as engine:
        computed = [engine.compute_outputs(engine.enter(net.check_input(part))) for part in parts]
        outputs = [tuple(map(torch.cat, zip(*exits, strict=True))) for exits in zip(*computed, strict=True)]
        plain, attention = [probabilities(logits) for logits, _ in outputs], [maps for _, maps in outputs]
        maps = {f"attention, {exit_name(k, last + 1)}": (k, net.info.place(k, a)) for k, a in enumerate(attention)}
        maps |= {name: (last, relevance) for name, relevance in others.items()}
        grid = tuple(map(min, zip(GRID, *(values.shape[1:] for _, values in maps.values()), strict=True)))
        exits, coarse = [k for k, _ in maps.values()], [coarsen(values, grid) for _, values in maps.values()]
        of_exits = coarse[: last + 1]
        chosen = perturb(net, engine, batches, plain, coarse, FRACTION, exits)
        control = perturb(net, engine, batches, plain, [draw_random_map(values) for values in of_exits], FRACTION)
        ranked = [rank_locations(drops, None) for drops in occlude(net, engine, batches, plain, of_exits)]
        best = perturb(net, engine, batches, plain, ranked, FRACTION)
    cells = " x ".join(map(str, grid))
    rows: dict[str, Tree] = {name: {"judged_at": k, "grid": cells} for name, (k, _) in maps.items()}
    for what, values, blind, top in zip(("deletion", "insertion"), chosen, control, best, strict=True):
        for (name, (k, _)), drops in zip(maps.items(), values, strict=True):
            share, error = share_of_possible(drops, blind[k], top[k])
            rows[name] |= {what: drops.mean().item(), f"{what}_random": blind[k].mean().item()}
            rows[name] |= {f"{what}_oracle": top[k].mean().item(), f"{what}_share": [share, error]}
    return rows


def time_explanations(net: xl.ExitNet, images: Tensor, rounds: int) -> Tree:
    """Time what relevance adds to an explanation that stops at the answer, over the forward pass of the stages that ran."""

    @torch.inference_mode()
    def run(stages: Sequence[Callable[..., Any]], image: Tensor, _: Tensor) -> None:
        activations = (image,)
        for stage in stages:
            activations = stage(*activations)

    def explain(policy: xl.Policy, relevance: bool, image: Tensor, _: Tensor) -> None:
        xl.explain(net, image, policy, final=False, relevance=relevance)

    measured = {}
    for k in range(net.num_exits):
        policy = xl.Policy(tuple(0.0 if j == k else math.inf for j in range(net.num_exits - 1)))  # exit k answers
        works = {"forward": partial(run, list(net.stages)[: k + 1])}
        works |= {"explain": partial(explain, policy, False), "with_relevance": partial(explain, policy, True)}
        taken = time_images(works, images, torch.zeros(len(images)), 2 * rounds)
        ratios = [(w - e) / f for w, e, f in zip(taken["with_relevance"], taken["explain"], taken["forward"], strict=True)]
        middles = {f"{name}_ms": find_quartiles(values) for name, values in taken.items()}
        measured[str(k)] = {**middles, "ratio": find_quartiles(ratios)}
    return measured


def time_images(
    works: Mapping[str, Callable[[Tensor, Tensor], Any]], images: Tensor, labels: Tensor, rounds: int
) -> dict[str, list[float]]:
    """Return the milliseconds of every call with an image (1,C,H,W) and its answer (1,); each round has another image."""
    pairs = list(zip(images.split(1), labels.split(1), strict=True))
    turns = {name: lambda turn, work=work: work(*pairs[turn % len(pairs)]) for name, work in works.items()}
    return {name: [1000 * seconds for seconds in taken] for name, taken in take_turns(turns, rounds).items()}


find_quartiles = partial(spread, ends=(25, 75))


def list_promises(runs: Runs) -> Iterator[Promise]:
    for name, measured in runs.items():
        for k, times in measured["explain"].items():
            what = f"{name}: what relevance adds to explain, over the stages' forward pass, exit {k} answers"
            yield Promise.of_median(f"relevance|{name}|{k}", what, times["ratio"], "<=", 1.5, 2 * measured["rounds"])


def write_tables(runs: Runs) -> list[str]:
    lines: list[str] = []
    for measured in runs.values():
        maps = []
        for name, row in measured["maps"].items():
            shares = [row[f"{what}_share"] for what in ("deletion", "insertion")]
            maps.append([name, *("" if a is None else f"{a:.2f} ± {b:.2f}" for a, b in shares), show_ms(row["ms"])])
        times = []
        for k, row in measured["explain"].items():
            taken = [show_ms(row[f"{name}_ms"]) for name in ("forward", "explain", "with_relevance")]
            times.append(["final" if int(k) == len(measured["explain"]) - 1 else k, *taken, show_interval(row["ratio"])])
        head = ["exit that answers", "its stages, forward, ms", "explain, ms", "with relevance, ms"]
        lines += [
            *([""] if lines else []),
            f"**{measured['title']}**: {measured['images']} test images, features of exit 0 at {measured['locations']} locations, maps "
            f"judged at {next(iter(measured['maps'].values()))['grid']} cells.",
            "",
            *table(["map", "deletion share", "insertion share", "ms an image"], maps),
            "",
            *table([*head, "added, times the forward pass"], times),
        ]
    return lines


def show_ms(ms: Sequence[float]) -> str:
    return show_interval(ms, 2 if ms[0] < 10 else 1)


STUDY = Study("relevance", list_cells, list_promises, {"relevance": write_tables})
