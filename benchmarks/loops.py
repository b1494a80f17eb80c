"""Training loops of other people against ``fit``: the same batches and starting weights, the blocks of docs/guides/loops.md as they stand.

Handwritten digits of scikit-learn, enlarged to 16x16, for a small convolutional network and a small transformer. Each cell is a network
and a seed; in it, ``fit`` of another seed shows how far networks differ that were trained apart.
"""

from __future__ import annotations

import contextlib
import copy
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from statistics import mean
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import exitlens as xl
from benchmarks.harness import ROOT, Job, Promise, Study, list_by_seed, table
from benchmarks.results import Runs, Tree
from exitlens.functional.maps import pearson

PAGE = ROOT / "docs" / "guides" / "loops.md"
LOOPS = {"bare loop": "A bare loop", "Lightning": "Lightning", "Trainer": "transformers.Trainer", "accelerate": "accelerate"}  # headings
CONTROL = "another seed"
NETS = {"conv": "convolutional", "vit": "transformer"}
SEEDS, BATCH, EPOCHS = 3, 32, 8
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
    return list_by_seed(measure, dict.fromkeys(NETS, SEEDS))


def read_block(heading: str) -> str:
    """Return the first block of code under a heading of the page."""
    found = re.search(rf"^## {re.escape(heading)}\n.*?^```py(?:thon)?\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert found is not None, heading
    return found[1]


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
    widths = (3, 16, 32, 48)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, 1 + (b > 16), 1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in zip(widths, widths[1:], strict=False)
    ]
    return xl.attach(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)), ["0", "1"], 10, example)


def measure_loops(kind: str, seed: int, epochs: int = EPOCHS) -> Tree:
    data = load_digits()
    example, (images, labels) = data["train"].tensors[0][:1], data["test"].tensors
    start = build_network(kind, seed, example)
    reference = train_by_fit(copy.deepcopy(start), data, seed, epochs)
    maps = [out.attention for out in answer(reference, images)]
    trained = {CONTROL: train_by_fit(build_network(kind, seed + 100, example), data, seed + 100, epochs)}
    trained |= {loop: train_by_block(loop, copy.deepcopy(start), data, seed, epochs) for loop in LOOPS}
    tree: Tree = {"fit": {"accuracy": score(reference, images, labels)}}
    for name, net in trained.items():
        cc = [float(pearson(out.attention, own).mean()) for out, own in zip(answer(net, images), maps, strict=True)]
        tree[name] = {"accuracy": score(net, images, labels), "maps": cc}
    return tree


def train_by_fit(net: xl.ExitNet, data: dict[str, TensorDataset], seed: int, epochs: int) -> xl.ExitNet:
    loader = DataLoader(data["train"], BATCH, sampler=Order(SIZES["train"], seed * 1000))
    xl.fit(net, loader, data["validation"], epochs=epochs, amp=False, progress=False)
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
            for k, exit_name in enumerate(("exit 0", "exit 1", "final")):
                points = [100 * abs(run[loop]["accuracy"][k] - run["fit"]["accuracy"][k]) for run in chosen]
                what = f"{title}, {exit_name}: accuracy by {loop} apart from fit's, points"
                yield Promise.of_mean(f"loops|{kind}|{loop}|accuracy|{k}", what, points, "<=", 0.5)
                agreement = [run[loop]["maps"][k] for run in chosen]
                what = f"{title}, {exit_name}: correlation of maps by {loop} with fit's"
                yield Promise.of_mean(f"loops|{kind}|{loop}|maps|{k}", what, agreement, ">=", 0.95)


def write_table(runs: Runs) -> list[str]:
    rows = []
    for kind, title in NETS.items():
        chosen = select(runs, kind)
        for loop in ("fit", *LOOPS, CONTROL) if chosen else ():
            accuracy = " / ".join(f"{100 * mean(part):.1f}" for part in zip(*(run[loop]["accuracy"] for run in chosen), strict=True))
            apart, maps = "", ""
            if loop != "fit":
                gaps = [abs(a - b) for run in chosen for a, b in zip(run[loop]["accuracy"], run["fit"]["accuracy"], strict=True)]
                apart, maps = f"{100 * max(gaps):.2f}", f"{min(min(run[loop]['maps']) for run in chosen):.3f}"
            rows.append([title, loop if loop != CONTROL else f"`fit`, {loop}", accuracy, apart, maps])
    head = ["network", "loop", "accuracy at exits 0 / 1 / final, %", "largest difference from `fit`, points"]
    return table([*head, "least correlation of maps with `fit`'s"], rows)


STUDY = Study("loops", list_cells, list_promises, {"loops": write_table})
