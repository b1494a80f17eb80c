"""Training loops of other people against ``fit``: the blocks of docs/guides/loops.md, with the batches and starting weights of ``fit``.

Handwritten digits of scikit-learn, enlarged to 16x16, for a small convolutional network and a small transformer. Each cell is a network
and a seed; in it, ``fit`` of another seed shows how far networks differ that were trained apart. One thread, float32.
"""

from __future__ import annotations

import contextlib
import copy
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import exitlens as xl
from benchmarks.harness import (
    ROOT,
    Job,
    Promise,
    Study,
    join_means,
    list_by_seed,
    show_interval,
    spread,
    table,
    take_turns,
    use_one_thread,
)
from benchmarks.results import Runs, Tree
from exitlens.functional.maps import pearson

PAGE = ROOT / "docs" / "guides" / "loops.md"
LOOPS = {
    "bare loop": "A bare loop",
    "Lightning": "Lightning",
    "Trainer": "transformers.Trainer",
    "accelerate": "accelerate",
}  # headings
CONTROL = "another seed"
COMPILED = "compile"
NETS = {"conv": "convolutional", "vit": "transformer"}
SEEDS, BATCH, EPOCHS = 2, 32, 4
SIZES = {"train": 800, "validation": 200, "calibration": 200, "test": 597}


class Order(Sampler[int]):
    """Draws every pass over the data anew, the same for every loop."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        self.seed += 1
        return iter(torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed)).tolist())


def list_cells(quick: bool = False) -> dict[str, Job]:
    measure = partial(measure_loops, epochs=1) if quick else measure_loops
    return {**list_by_seed(measure, dict.fromkeys(NETS, SEEDS)), COMPILED: partial(measure_compiled, 1 if quick else 9)}


def read_block(heading: str) -> str:
    """Return the first block of code under a heading of the page."""
    block = re.search(rf"^## {re.escape(heading)}\n.*?^```py(?:thon)?\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert block is not None, heading
    return block[1]


def load_digits() -> dict[str, TensorDataset]:
    from sklearn import datasets

    digits = datasets.load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images, labels = F.interpolate(pixels, scale_factor=2).repeat(1, 3, 1, 1), torch.tensor(digits.target)
    parts = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(list(SIZES.values()))
    return {name: TensorDataset(images[part], labels[part]) for name, part in zip(SIZES, parts, strict=True)}


def build_network(kind: str, seed: int, example: Tensor) -> xl.ExitNet:
    torch.manual_seed(seed)
    if kind == "vit":
        from torchvision.models import VisionTransformer

        transformer = VisionTransformer(16, 4, num_layers=3, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10)
        return xl.attach(transformer, 2, 10, example)
    blocks = (
        nn.Sequential(nn.Conv2d(given, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU())
        for given, channels, stride in ((3, 16, 1), (16, 32, 2), (32, 48, 2))
    )
    plain = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    return xl.attach(plain, ["0", "1"], 10, example, head="context")


def measure_loops(kind: str, seed: int, epochs: int = EPOCHS) -> Tree:
    use_one_thread()
    data = load_digits()
    example, (images, labels) = data["train"].tensors[0][:1], data["test"].tensors
    start = build_network(kind, seed, example)
    reference = train_by_fit(copy.deepcopy(start), data, seed, epochs)
    maps = [out.attention for out in answer(reference, images)]
    trained = {CONTROL: train_by_fit(build_network(kind, seed + 100, example), data, seed + 100, epochs)}
    trained |= {loop: train_by_block(loop, copy.deepcopy(start), data, seed, epochs) for loop in LOOPS}
    tree: Tree = {"fit": {"accuracy": score(reference, images, labels)}}
    for name, net in trained.items():
        cc = [
            float(pearson(out.attention, map_of_fit).mean())
            for out, map_of_fit in zip(answer(net, images), maps, strict=True)
        ]
        tree[name] = {"accuracy": score(net, images, labels), "maps": cc}
    return tree


def train_by_fit(net: xl.ExitNet, data: dict[str, TensorDataset], seed: int, epochs: int) -> xl.ExitNet:
    loader = DataLoader(data["train"], BATCH, sampler=Order(SIZES["train"], seed * 1000))
    xl.fit(net, loader, data["validation"], epochs=epochs, amp=False, channels_last=False, progress=False)
    return net


def train_by_block(loop: str, net: xl.ExitNet, data: dict[str, TensorDataset], seed: int, epochs: int) -> xl.ExitNet:
    """Run a block of the page on this network and these data, with the batches of ``fit``."""
    from transformers import Trainer

    order = Order(SIZES["train"], seed * 1000)
    names = {"train": data["train"], "val": data["validation"], "cal": data["calibration"], "net": net, "epochs": epochs}
    loader = DataLoader(data["train"], BATCH, sampler=order)

    def open_loader(trainer: Trainer) -> DataLoader[Tensor]:  # Trainer would shuffle by itself
        return DataLoader(data["train"], BATCH, sampler=order, collate_fn=trainer.data_collator)

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        patch.object(Trainer, "get_train_dataloader", open_loader),
    ):
        exec(compile(read_block(LOOPS[loop]), str(PAGE), "exec"), {"torch": torch, "xl": xl, "loader": loader, **names})
    return net


def measure_compiled(rounds: int) -> Tree:
    """Time training steps of the small network with and without torch.compile, by one thread."""
    use_one_thread()
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 40, 40), torch.arange(BATCH) % 10
    start = xl.attach("small", ["layer1", "layer2", "layer3"], 10, images[:1], head="context")
    works = {}
    for name in ("eager", "compiled"):
        net = copy.deepcopy(start)
        model = net.with_loss(steps=1000, epochs=1).train()
        optimizer = torch.optim.AdamW(net.parameters(), 1e-4, fused=True)
        works[name] = partial(take_step, torch.compile(model) if name == "compiled" else model, optimizer, images, labels)
    seconds = take_turns(works, rounds, warm_up=3)
    ratios = [a / b for a, b in zip(seconds["eager"], seconds["compiled"], strict=True)]
    return {"seconds": {name: spread(values, 3) for name, values in seconds.items()}, "speedup": spread(ratios, 2)}


def take_step(
    model: Callable[..., Any], optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, turn: int
) -> None:
    terms, _ = model(images, labels, turn)
    terms.total.backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def answer(net: xl.ExitNet, images: Tensor) -> tuple[xl.ExitOutput, ...]:
    outputs: tuple[xl.ExitOutput, ...] = net.eval()(images)
    return outputs


def score(net: xl.ExitNet, images: Tensor, labels: Tensor) -> list[float]:
    return [float((out.logits.argmax(1) == labels).float().mean()) for out in answer(net, images)]


def select(runs: Runs, kind: str) -> list[Tree]:
    return [run for name, run in runs.items() if name.rpartition("-")[0] == kind]


def list_promises(runs: Runs) -> Iterator[Promise]:
    for kind, title in NETS.items():
        for loop in LOOPS if (chosen := select(runs, kind)) else ():
            what = f"{title}, {loop}: largest difference of an exit's accuracy from `fit`, points"
            yield Promise(f"loops|{kind}|{loop}|accuracy", what, find_gap(chosen, loop), "<=", 0.5, exact=True)
            least = min(min(run[loop]["maps"]) for run in chosen)
            what = f"{title}, {loop}: least correlation of an exit's maps with those of `fit`"
            yield Promise(f"loops|{kind}|{loop}|maps", what, least, ">=", 0.99, exact=True)


def find_gap(chosen: list[Tree], loop: str) -> float:
    """Return the largest difference of an exit's accuracy from ``fit``, over runs and exits, in points."""
    pairs = (zip(run[loop]["accuracy"], run["fit"]["accuracy"], strict=True) for run in chosen)
    return 100 * max(abs(a - b) for pair in pairs for a, b in pair)


def write_table(runs: Runs) -> list[str]:
    rows = []
    for kind, title in NETS.items():
        chosen = select(runs, kind)
        for loop in ("fit", *LOOPS, CONTROL) if chosen else ():
            accuracy, apart, maps = join_means([run[loop]["accuracy"] for run in chosen], 1, 100), "", ""
            if loop != "fit":
                apart, maps = f"{find_gap(chosen, loop):.2f}", f"{min(min(run[loop]['maps']) for run in chosen):.3f}"
            rows.append([title, f"`fit`, {loop}" if loop == CONTROL else loop, accuracy, apart, maps])
    head = ["network", "loop", "accuracy at exits 0 / 1 / final, %", "largest difference from `fit`, points"]
    return table([*head, "least correlation of maps with those of `fit`"], rows)


def write_compiled(runs: Runs) -> list[str]:
    measured = runs.get(COMPILED)
    if measured is None:
        return []
    eager, compiled = (show_interval(measured["seconds"][name], 3) for name in ("eager", "compiled"))
    return table(
        ["eager step, s", "compiled step, s", "times as fast"], [[eager, compiled, show_interval(measured["speedup"])]]
    )


STUDY = Study("loops", list_cells, list_promises, {"loops": write_table, "compiled": write_compiled})
