"""One class a pixel: how fast networks with exits are at a certified loss of mean IoU, beside static networks of equal time.

Cells: TASK/BACKBONE-KIND-SEED, where KIND is ``exits`` (ours), ``full`` (the plain network), ``narrow-N`` (N % of the channels) or
``cut-N`` (the decoder of exit N is the last one), both distilled from the full one; after them TASK/BACKBONE-time-SEED, which wants an idle
machine; TASK/BACKBONE-broken-SEED (1,000 certificates on draws of test images, with -tiles of their tiles); and ``memory`` (of collecting
2,000 large images).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import exitlens as xl
from benchmarks import drawings
from benchmarks.harness import Job, Promise, Study, join_means, promise_table, run_alone, table
from benchmarks.results import Runs, Tree
from benchmarks.static import FINAL, FULL, TIME, interpolate
from benchmarks.tasks import build_pretrained
from benchmarks.traces import read_peak_memory
from benchmarks.truth import lock
from exitlens.data.demo import CLASSES, load_garments
from exitlens.delivery.benchmark import answer_at, pin_threads, time_calls
from exitlens.functional.groups import sum_groups
from exitlens.functional.pixels import count_confusion, measure_mean_iou
from exitlens.functional.risk import list_risks
from exitlens.model.backbones.build import read_normalisation
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.process import keep_memory
from exitlens.model.timing import Work, describe_machine, interleave
from exitlens.types.inputs import split_rows
from exitlens.types.settings import PIXEL_SCORES, CalibrationRequest
from exitlens.types.tiles import Tiles
from exitlens.workflow.collection import LARGEST_DENSE

SIDE, OBJECTS, TRAIN, HELD, TEST = 48, 3, 4000, 1000, 2000  # pixels, garments an image, images
WIDE, GARMENT, CHUNK = 384, (22, 34), 50  # pixels: of wide scenes and of garments in them; images
WIDE_VALIDATION, WIDE_CALIBRATION, WIDE_TEST = 100, 600, 300
PICTURES, PICTURE_SIDE = Path("runs/segmentation/pictures"), 96  # of as many drawings each
BATCH, SEEDS = 64, 3
LIMIT, DELTA = 0.01, 0.1  # mean loss of an image's mean IoU, certified
DRAWS, DRAWN = 1000, 300
BATCHES, ROUNDS, SECONDS = (1, 16), 7, 60.0
SPEED, GAIN, MEGABYTES = 2.0, 0.01, 500
EXITS, BROKEN = "exits", "broken"
BROKEN_TILES = "scenes", "unet"  # where certificates of tiles are counted, too
HELD_TO = {FINAL: "its final exit", FULL: "the plain network"}  # what may be lost counts from there
LIMITS: dict[str, dict[str, Any]] = {
    "mean IoU": {"max_miou_drop": 0.03},
    "wrong pixels": {"max_pixel_error_drop": 0.01},
    "missed background": {"max_missed_area": {0: 0.1}},
    "disagreement": {"max_disagreement": 0.05},
}


class UNet(nn.Module):
    """An encoder of four levels and a decoder with skip connections (arXiv 1505.04597), with batch norm."""

    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        stem, *deeper = widths
        self.stem = _block(3, stem)
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _block(a, b)) for a, b in zip(widths, deeper, strict=False))
        self.grow = nn.Upsample(scale_factor=2, mode="bilinear")
        pairs = list(zip(widths, deeper, strict=False))[::-1]
        self.up = nn.ModuleList(_block(a + b, a) for a, b in pairs)
        self.last = nn.Conv2d(stem, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B,C,H,W)``."""
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()
        for up in self.up:
            x = up(torch.cat([levels.pop(), self.grow(x)], 1))
        return self.last(x)  # type: ignore[no-any-return]


class ResNetDecoder(nn.Module):
    """Our residual network with the decoder of DeepLabv3+ (arXiv 1802.02611, fig. 2), without its pyramid of dilated convolutions."""

    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        stem, *deeper = widths
        body, low, high = SmallResNet(classes, 3, stem, deeper), deeper[0], deeper[-1]
        self.stem, self.layer1 = body.stem, body.layer1
        self.deep = nn.Sequential(body.layer2, body.layer3, body.layer4)
        self.grow = nn.Upsample(scale_factor=2, mode="bilinear")
        self.mix = _block(low + high, low)
        self.last = nn.Sequential(nn.Conv2d(low, classes, 1), nn.Upsample(scale_factor=2, mode="bilinear"))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B,C,H,W)``."""
        low = self.layer1(self.stem(x))
        return self.last(self.mix(torch.cat([low, self.grow(self.deep(low))], 1)))  # type: ignore[no-any-return]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Backbone:
    """A network by the width of its channels, where its exits are, and what of it rivals have less of."""

    make: Callable[[int, Sequence[int]], nn.Module]  # of classes and channels
    widths: tuple[int, ...]
    at: tuple[str, ...]
    final: str
    narrow: tuple[int, ...] = (50, 71)  # per cent of the channels
    cut: tuple[int, ...] = (0, 1)  # exits whose decoder may be the last
    settings: Mapping[str, Any] = field(default_factory=lambda: {"epochs": 15, "batch_size": BATCH})  # of ``fit``
    necks: float = 0.12  # of the backbone's work for all necks; usual ones left early exits further behind the final one
    frozen: int = 0  # epochs of the exits on the trained plain network, which stays as it is; 0: exits are trained with it

    def build(
        self, classes: int, example: Tensor, at: Sequence[str], percent: int = 100, plain: xl.ExitNet | None = None
    ) -> xl.ExitNet:
        """Return a network, on the weights of a plain one if it is given."""
        widths = [8 * round(width * percent / 800) for width in self.widths]
        heads, every = (len(places) + (self.final == "head") for places in (at, self.at))
        settings: Any = {"task": "segmentation", "final": self.final, "neck_share": self.necks * max(heads, 1) / every}
        module = self.make(classes, widths)
        if plain is not None:  # its network without exits has the module's own weights
            xl.attach(module, [], classes, example, **settings).load_state_dict(plain.state_dict())
        return xl.attach(module.train(plain is None), list(at), classes, example, **settings)

    @property
    def held_to(self) -> Mapping[str, str]:
        """What ours may lose something to; a frozen network's final exit is the plain network."""
        return {to: HELD_TO[to] for to in HELD_TO if to == FULL or not self.frozen}

    def build_cut(self, classes: int, example: Tensor, exit_: int) -> xl.ExitNet:
        """Return the network up to an exit, and the decoder there, without the rest."""
        net = self.build(classes, example, self.at[exit_ : exit_ + 1])
        return xl.ExitNet(
            [net.stage(0)], [net.head(0)], net.cost[:1].clone(), net.head_share, replace(net.info, at=()), net.input_spec
        )


BACKBONES = {
    "small": Backbone(
        lambda classes, widths: SmallResNet(classes, 3, widths[0], widths[1:]),
        (32, 48, 96, 128, 128),
        ("layer1", "layer2", "layer3"),
        "head",
        settings={"epochs": 30, "batch_size": BATCH},  # 51 % mean IoU after 10, 55 % after 30
    ),
    "unet": Backbone(UNet, (24, 48, 96, 128), ("down.1", "down.2", "up.0"), "keep"),
    "slim": Backbone(UNet, (16, 32, 64, 96), ("stem",), "keep", (50,), (0,), necks=0.05, frozen=6),
    "resnet": Backbone(ResNetDecoder, (24, 48, 64, 96, 96), ("layer1",), "keep", (50,), (0,), necks=0.05, frozen=6),
    "lite0": Backbone(
        lambda classes, _: build_pretrained(classes),
        (),
        ("blocks.2.0", "blocks.4.0", "blocks.5.1"),
        "head",
        narrow=(),  # which would have no weights from ImageNet
        cut=(0, 1, 2),
        settings={"recipe": "pretrained", "epochs": 6, "batch_size": 32},
    ),
}


@dataclass(frozen=True)
class Data:
    train: xl.data.ImageSet
    held: xl.data.ImageSet  # for the best epoch
    validation: xl.data.ImageSet
    test: xl.data.ImageSet
    load_calibration: Callable[[], xl.data.ImageSet]


def load_scenes(seed: int, quick: bool) -> Data:
    """Return scenes with three garments, the later ones on the earlier."""
    parts = {"train": TRAIN, "validation": HELD, "calibration": HELD, "test": TEST}
    sets = {
        name: xl.demo.label_pixels(
            xl.demo.load_scenes(name, seed=seed, size=SIDE, limit=32 if quick else count), OBJECTS, seed
        )
        for name, count in parts.items()
    }
    calibration = sets.pop("calibration")
    return Data(**sets, held=sets["validation"], load_calibration=lambda: calibration)


def load_wide(seed: int, quick: bool) -> Data:
    """Return large scenes with three small garments, and small parts of others to learn from."""
    counts = {"train": TRAIN // 4, "validation": HELD // 4, "calibration": WIDE_CALIBRATION, "test": WIDE_TEST}
    counts = dict.fromkeys(counts, 16) if quick else counts
    scenes = {split: partial(draw_wide, split, count, seed) for split, count in counts.items()}
    train, held = (crop(scenes[split](), seed) for split in ("train", "validation"))
    few = draw_wide("validation", 16 if quick else WIDE_VALIDATION, seed + SEEDS)
    validation, test = (join(list(each)) for each in (few, scenes["test"]()))
    return Data(train, held, validation, test, lambda: join(list(scenes["calibration"]())))


def draw_wide(split: Any, count: int, seed: int) -> Iterator[xl.data.ImageSet]:
    """Yield some scenes at a time, since intermediate results take a multiple of their memory."""
    garments, labels = load_garments(split)
    scale = (GARMENT[0] / WIDE, GARMENT[1] / WIDE)
    for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count].split(CHUNK):
        draw = 100 * seed + int(rows[0])
        made = xl.demo.make_scenes(
            garments[rows], labels[rows], CLASSES, background_agreement=0.8, seed=draw, size=WIDE, scale=scale
        )
        yield xl.demo.label_pixels(made, OBJECTS, draw)


def crop(scenes: Iterator[xl.data.ImageSet], seed: int) -> xl.data.ImageSet:
    """Cut four small parts from each scene: three with a pixel of a garment, and one anywhere."""
    rng, parts = torch.Generator().manual_seed(seed), list[xl.data.ImageSet]()
    for chunk in scenes:
        images, labels = list[Tensor](), list[Tensor]()
        for image, label in zip(chunk.images, chunk.labels, strict=True):
            places = (label > 0).nonzero()
            chosen = places[torch.randint(len(places), (3,), generator=rng)] - torch.randint(
                4, SIDE - 4, (3, 2), generator=rng
            )
            anywhere = torch.randint(WIDE - SIDE + 1, (1, 2), generator=rng)
            for top, left in torch.cat([chosen.clamp(0, WIDE - SIDE), anywhere]).tolist():
                where = (..., slice(top, top + SIDE), slice(left, left + SIDE))
                images.append(image[where].clone())
                labels.append(label[where].clone())
        parts.append(xl.data.ImageSet(torch.stack(images), torch.stack(labels), chunk.classes, None, chunk.preprocess))
    return join(parts)


def join(parts: Sequence[xl.data.ImageSet]) -> xl.data.ImageSet:
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return xl.data.ImageSet(images, labels, parts[0].classes, None, parts[0].preprocess)


def load_pictures(seed: int, quick: bool) -> Data:
    """Return pictures of three drawings; every seed has the same."""
    folder = drawings.open_folder(PICTURES, objects=OBJECTS)
    sides, scale = (PICTURE_SIDE, PICTURE_SIDE), read_normalisation(drawings.BACKBONE)
    preprocess = xl.data.Preprocess(sides, scale.mean, scale.std)

    def load(name: str) -> xl.data.ImageSet:
        part = xl.data.load_masks(folder / name, preprocess)
        return part.subset(torch.arange(32 if quick else len(part))).load()

    train, validation, test = map(load, ("train", "validation", "test"))
    return Data(train, validation, validation, test, partial(load, "calibration"))


@dataclass(frozen=True)
class Task:
    load: Callable[[int, bool], Data]  # of seed and quick
    ways: tuple[Tiles | None, ...] = (None,)  # to leave: with the whole image, or by tile
    timed: int = 192  # images


TASKS = {
    "scenes": Task(load_scenes),
    "wide": Task(load_wide, (None, Tiles(32, 16), Tiles(32, 8)), 32),
    "pictures": Task(load_pictures),
}
GROUPS = [
    ("wide", "slim"),
    ("wide", "resnet"),
    ("scenes", "small"),
    ("scenes", "unet"),
    ("pictures", "lite0"),
]  # task and backbone


def list_kinds(backbone: Backbone) -> list[str]:
    return [FULL, EXITS, *(f"narrow-{n}" for n in backbone.narrow), *(f"cut-{k}" for k in backbone.cut)]


def list_cells(quick: bool = False) -> dict[str, Job]:
    cells: dict[str, Job] = {"memory": partial(measure_memory, 40 if quick else 2000)}
    groups = [(seed, task, name) for seed in range(SEEDS) for task, name in GROUPS]
    for seed, task, name in groups:
        for kind in list_kinds(BACKBONES[name]):
            cells[f"{task}/{name}-{kind}-{seed}"] = partial(measure_network, task, name, kind, seed, quick)
        if TASKS[task].ways == (None,):
            cells[f"{task}/{name}-{BROKEN}-{seed}"] = partial(count_broken, task, name, seed, 6 if quick else DRAWS, quick)
    task, name = BROKEN_TILES
    cells[f"{task}/{name}-tiles-{BROKEN}-0"] = partial(
        count_broken, task, name, 0, 6 if quick else DRAWS, quick, Tiles(16, 8)
    )
    return cells | {
        f"{task}/{name}-{TIME}-{seed}": partial(measure_times, task, name, seed, quick) for seed, task, name in groups
    }


def build(name: str, kind: str, classes: int, example: Tensor, seed: int, plain: xl.ExitNet | None = None) -> xl.ExitNet:
    torch.manual_seed(seed)
    backbone, (word, _, number) = BACKBONES[name], kind.partition("-")
    if word == "cut":
        return backbone.build_cut(classes, example, int(number))
    return backbone.build(classes, example, backbone.at if word == EXITS else (), int(number or 100), plain)


def train(task: str, name: str, kind: str, seed: int, data: Data, quick: bool = False) -> xl.ExitNet:
    """Return a network, trained here if it is not there; all but the full one learn from it as well, or stand on it."""
    folder = Path("runs") / ("segmentation-quick" if quick else "segmentation") / task / f"{name}-{kind}-{seed}"
    backbone, full = BACKBONES[name], None if kind == FULL else train(task, name, FULL, seed, data, quick)
    is_frozen = kind == EXITS and backbone.frozen > 0
    net = build(name, kind, len(data.train.classes), data.train.first(1).inputs, seed, full if is_frozen else None)
    net.describe(classes=data.train.classes, preprocess=data.train.preprocess)
    settings: dict[str, Any] = {**backbone.settings, "amp": True, "channels_last": True}
    settings |= {"epochs": backbone.frozen, "freeze_backbone": True} if is_frozen else {"teacher": full}
    settings |= {"epochs": 1} if quick else {}
    settings |= {} if kind == EXITS else {"loss": xl.EGTLoss(weight=0.0)}
    settings |= {"augment": "flip", "seed": seed, "out_dir": folder, "resume": True, "progress": False}
    with lock(folder):  # cells that run in parallel may need the same network
        xl.fit(net, data.train, data.held, **settings)
    return net.eval()


def measure_network(task: str, name: str, kind: str, seed: int, quick: bool = False) -> Tree:
    """Train a network, and measure mean IoU (over the data set, unless it says otherwise) on validation and test images."""
    data = TASKS[task].load(seed, quick)
    net = train(task, name, kind, seed, data, quick)
    validation, trace = (xl.collect(net, part, batch_size=BATCH) for part in (data.validation, data.test))
    measured: Tree = {"validation": find_ious(validation)[-1], "ious": find_ious(trace), "images": len(trace)}
    if kind != EXITS:
        return measured
    policies = certify(net, train(task, name, FULL, seed, data, quick), data, task, name)
    points = {to: measure_routed(net, data.test, trace, policy) for to, policy in policies.items()}
    return measured | {"cost": net.cost.tolist(), "points": points}


def measure_routed(net: xl.ExitNet, images: xl.data.ImageSet, trace: xl.Trace, policy: xl.Policy) -> Tree:
    """Return what predictions by a policy lose and cost, beside a trace of the whole images."""
    tiles = find_tiles(policy)
    parts = [images.subset(rows) for rows in torch.arange(len(images)).split(LARGEST_DENSE)]
    answers = [xl.predict(net, part.inputs, policy, tiles=tiles) for part in parts]
    exits = torch.cat([(each.exits if each.tile_exits is None else each.tile_exits).flatten() for each in answers])
    counts = torch.cat([count_confusion(answers[i].labels, part.labels, len(part.classes)) for i, part in enumerate(parts)])
    overhead = 1.0 if tiles is None else tiles.find_overhead(parts[0].images.shape[2:])
    cost = net.cost[0] + (net.cost - net.cost[0]) * overhead
    return {
        "mean_iou": measure_mean_iou(counts.sum(0)).item(),
        "cost": cost[exits].mean().item(),
        "side": 0 if tiles is None else tiles.side,
        "lost_by_image": (measure_mean_iou(trace.logits.confusion[:, -1]) - measure_mean_iou(counts)).mean().item(),  # type: ignore[union-attr]
        "exit_shares": (exits.bincount(minlength=net.num_exits) / len(exits)).tolist(),
    }


def find_tiles(policy: xl.Policy) -> Tiles | None:
    return None if policy.calibration is None else policy.calibration.tiles


def find_ious(trace: xl.Trace) -> list[float]:
    """Return the mean IoU of every exit over the whole data set."""
    return measure_mean_iou(trace.logits.confusion.sum(0)).tolist()  # type: ignore[union-attr]


def certify(net: xl.ExitNet, plain: xl.ExitNet, data: Data, task: str, name: str) -> dict[str, xl.Policy]:
    """Certify thresholds on calibration images, by the way to leave and the score that are the cheapest on validation images.

    Held to the plain network, ours may lose as much more as its final exit is better on validation images (or worse: less).
    They are kept beside the networks, for the cell that times them.
    """
    kept = Path("runs") / "segmentation" / task / f"policies-{net.identity()}.json"
    if kept.exists():
        return {to: xl.Policy.from_dict(values) for to, values in json.loads(kept.read_text()).items()}
    full = measure_mean_iou(xl.collect(plain, data.validation, batch_size=BATCH).logits.confusion[:, -1])  # type: ignore[union-attr]
    choices = dict[str, list[tuple[float, int, str, float]]]()
    for way, tiles in enumerate(TASKS[task].ways):
        trace = xl.collect(net, data.validation, batch_size=BATCH, tiles=tiles)
        counts = trace.logits.confusion[:, -1]  # type: ignore[union-attr]
        ours = measure_mean_iou(counts if tiles is None else sum_groups(counts, trace.images))
        limits = {FINAL: LIMIT, FULL: max(LIMIT + (ours - full).mean().item(), 1e-4)}
        for to, score in product(BACKBONES[name].held_to, PIXEL_SCORES):
            cost = xl.evaluate(trace, xl.calibrate(trace, max_miou_drop=limits[to], score=score)).cost
            choices.setdefault(to, []).append((cost, way, score, limits[to]))
    policies = {}
    for to, tried in choices.items():
        _, way, score, limit = min(tried)
        tiles = TASKS[task].ways[way]
        calibration = xl.collect(net, data.load_calibration(), batch_size=BATCH, tiles=tiles)  # samples of its own for each
        policies[to] = xl.calibrate(calibration, max_miou_drop=limit, delta=DELTA, score=score)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({to: policy.to_dict() for to, policy in policies.items()}))
    return policies


def count_broken(task: str, name: str, seed: int, draws: int, quick: bool = False, tiles: Tiles | None = None) -> Tree:
    """Certify each limit on draws of the test images with replacement, whose mean loss over all test images is known."""
    data = TASKS[task].load(seed, quick)
    trace = xl.collect(train(task, name, EXITS, seed, data, quick), data.test, batch_size=BATCH, tiles=tiles)
    return draw_certificates(trace, LIMITS, draws, DRAWN, DELTA)


def draw_certificates(trace: xl.Trace, limits: Mapping[str, Mapping[str, Any]], draws: int, size: int, delta: float) -> Tree:
    """Certify each limit, by its label, on so many draws of the trace; return the share that is broken on all of it, and the mean cost."""
    everyone, broken = torch.arange(len(trace)), dict.fromkeys(limits, 0)
    risks = {label: list_risks(trace, CalibrationRequest(**each).risk_limits, everyone)[0] for label, each in limits.items()}
    cost: dict[str, list[float]] = {label: [] for label in limits}
    count = len(trace) if trace.images is None else len(trace.images.unique())
    rng, tiles = torch.Generator().manual_seed(0), torch.arange(len(trace) // count)  # of an image, or itself
    for draw in range(draws):
        for label, each in limits.items():  # each with samples of its own, since one certificate spends what they can say
            images = torch.randint(count, (size, 1), generator=rng)
            drawn = trace.select((images * len(tiles) + tiles).flatten())
            if trace.images is not None:
                copies = torch.arange(size).repeat_interleave(len(tiles))
                drawn = replace(drawn, groups=copies, images=copies)
            policy = xl.calibrate(drawn, **each, delta=delta, seed=draw)
            exits = xl.route(trace, policy)
            promised = min(policy.thresholds) < math.inf  # else the certificate was refused
            broken[label] += promised and risks[label].mean(exits) > risks[label].limit + 1e-9
            cost[label].append(trace.cost[exits].mean().item())
    return {label: {"draws": draws, "broken": broken[label] / draws, "cost": sum(cost[label]) / draws} for label in limits}


def measure_times(task: str, name: str, seed: int, quick: bool = False) -> Tree:
    """Time images on one core, all networks in turn and in the form that suits the full one.

    Static ones need no training, since weights change no time.
    """
    data, backbone = TASKS[task].load(seed, quick), BACKBONES[name]
    net = train(task, name, EXITS, seed, data, quick)
    policies = certify(net, train(task, name, FULL, seed, data, quick), data, task, name)
    measured = Tree(machine=describe_machine(1))
    images = data.test.first(16 if quick else TASKS[task].timed).inputs
    make = partial(build, name, classes=len(data.train.classes), example=images[:1], seed=seed)
    with pin_threads(1):
        for size in BATCHES:
            batches = split_rows(images, size)
            nets = {kind: make(kind).eval() for kind in list_kinds(backbone) if kind != EXITS}
            form = nets[FULL].tune(batches[0], precision="float32", seconds=0.2 if quick else 4.0, backend="torch")
            for each in (net, *nets.values()):
                each.tuning = replace(form, micro_batch=0)  # the whole batch
            runs: dict[str, Callable[..., Any]] = {kind: partial(answer_at, other, 0) for kind, other in nets.items()}
            runs |= {
                f"{EXITS} {to}": partial(xl.predict, net, policy=policy, tiles=find_tiles(policy))
                for to, policy in policies.items()
            }
            works: dict[str, Work] = {kind: time_calls(run, batches, form.keep_memory) for kind, run in runs.items()}
            times = interleave(works, rounds=2 if quick else ROUNDS, seconds=0.0 if quick else SECONDS)
            measured[f"batch {size}"] = {
                "ms": {kind: times.summary(kind, len(images))["ms"] for kind in works},
                "speed": {to: times.ratio(FULL, f"{EXITS} {to}").to_list() for to in policies},
            }
    return measured


def measure_memory(count: int) -> Tree:
    """Return what collecting so many images of 256 x 256, 10 classes and 4 exits takes above collecting 16."""
    few, many = (run_alone(collect_large, rows)["peak_mb"] for rows in (16, count))
    return {"images": count, "megabytes": many - few}


def collect_large(count: int) -> Tree:
    keep_memory(False)  # which run_alone asks for: a user's process gives back what a batch took
    torch.manual_seed(0)
    example = torch.zeros(1, 3, 256, 256)
    net = xl.attach(xl.build_backbone("small", 10, 3), ["layer1", "layer2", "layer3"], 10, example, task="segmentation")

    def make_batches() -> Iterator[tuple[Tensor, Tensor]]:
        rng = torch.Generator().manual_seed(1)
        for _ in range(0, count, 8):
            labels = torch.randint(10, (8, 256, 256), generator=rng)
            yield torch.randn(8, 3, 256, 256, generator=rng), labels

    xl.collect(net, make_batches())
    return {"peak_mb": read_peak_memory()}


# Promises: for each task and backbone, over the seeds of which everything is there


def find_seeds(runs: Runs, task: str, name: str) -> list[int]:
    kinds = [*list_kinds(BACKBONES[name]), TIME]
    return [seed for seed in range(SEEDS) if all(f"{task}/{name}-{kind}-{seed}" in runs for kind in kinds)]


def list_groups(runs: Runs) -> Iterator[tuple[str, str, list[int]]]:
    for task, name in GROUPS:
        if seeds := find_seeds(runs, task, name):
            yield task, name, seeds


def find_static(runs: Runs, task: str, name: str, seed: int, size: int, to: str) -> float:
    """Return the mean IoU of the best static network, by validation images, that takes as long as ours; between two, linearly."""
    ms = runs[f"{task}/{name}-{TIME}-{seed}"][f"batch {size}"]["ms"]
    rivals = {kind: runs[f"{task}/{name}-{kind}-{seed}"] for kind in ms if not kind.startswith(EXITS)}
    points = [(ms[kind][0], run["validation"], run["ious"][-1]) for kind, run in rivals.items()]
    return interpolate(points, ms[f"{EXITS} {to}"][0])


def list_promises(runs: Runs) -> Iterator[Promise]:
    if "memory" in runs:
        what = "collect, 2,000 images of 256 x 256, 10 classes, 4 exits: MB above 16 images"
        yield Promise("segmentation|memory", what, runs["memory"]["megabytes"], "<=", MEGABYTES, exact=True)
    for task, name, seeds in list_groups(runs):
        for to, words in BACKBONES[name].held_to.items():
            key, title = f"segmentation|{task}|{name}|{to}", f"{task}, {name}, held to {words}"
            routed = [runs[f"{task}/{name}-{EXITS}-{seed}"]["points"][to]["mean_iou"] for seed in seeds]
            before = [runs[f"{task}/{name}-{EXITS if to == FINAL else FULL}-{seed}"]["ious"][-1] for seed in seeds]
            lost = [100 * (start - end) for start, end in zip(before, routed, strict=True)]
            yield Promise.of_mean(f"{key}|lost", f"{title}: points of mean IoU lost to it", lost, "<=", 1.0)
            for size in BATCHES:
                timed = [runs[f"{task}/{name}-{TIME}-{seed}"][f"batch {size}"]["speed"][to][0] for seed in seeds]
                what = f"{title}: times as fast as the plain network, batch {size}"
                yield Promise.of_mean(f"{key}|speed|{size}", what, timed, ">=", SPEED)
                static = [find_static(runs, task, name, seed, size, to) for seed in seeds]
                gains = [100 * (ours - rival) for ours, rival in zip(routed, static, strict=True)]
                what = f"{title}: points of mean IoU above the static network of equal time, batch {size}"
                yield Promise.of_mean(f"{key}|gain|{size}", what, gains, ">=", 100 * GAIN)
    for cell, run in runs.items():
        for label, row in run.items() if f"-{BROKEN}-" in cell else ():
            what = f"{cell.replace(f'-{BROKEN}-', ', seed ')}: certificates of {label} that are broken"
            yield Promise.of_share(f"segmentation|{cell}|{label}", what, row["broken"], row["draws"], "<=", DELTA)


def write_table(runs: Runs) -> list[str]:
    rows = []
    for task, name in GROUPS:
        kinds = [(FULL, ""), *((EXITS, to) for to in BACKBONES[name].held_to)]
        kinds += [(kind, "") for kind in list_kinds(BACKBONES[name]) if kind not in (FULL, EXITS)]
        for kind, to in kinds:
            seeds = [seed for seed in range(SEEDS) if f"{task}/{name}-{kind}-{seed}" in runs]
            if not seeds:
                continue
            measured = [runs[f"{task}/{name}-{kind}-{seed}"] for seed in seeds]
            timed = [run for seed in seeds if (run := runs.get(f"{task}/{name}-{TIME}-{seed}"))]
            ious = [[run["points"][to]["mean_iou"] if to else run["ious"][-1]] for run in measured]
            cells = [f"{task}, {name}", f"exits, held to {HELD_TO[to]}" if to else kind, str(len(seeds))]
            cells += [join_means(ious, 1, 100), join_means([run["ious"] for run in measured], 1, 100) if to else ""]
            cells.append(join_means([[run["points"][to]["cost"]] for run in measured], 2) if to else "")
            times = f"{kind} {to}" if to else kind
            for size in BATCHES:
                ms = [[run[f"batch {size}"]["ms"][times][0]] for run in timed]
                cells.append(join_means(ms, 2) if ms else "")
            rows.append(cells)
    head = ["task, backbone", "network", "seeds", "mean IoU, %", "of every exit", "cost"]
    head += [f"ms an image, batch {size}" for size in BATCHES]
    return [*(table(head, rows) if rows else []), "", *promise_table(list_promises(runs))]


STUDY = Study("segmentation", list_cells, list_promises, {"segmentation": write_table}, alone=f"*-{TIME}-*")
