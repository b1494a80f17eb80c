"""Is the first sentence of ``exitlens compare`` right? Ten tries on garments of Fashion-MNIST, judged by samples that it did not see.

Cells are tries, each with 7,000 garments of its own. Needs ``dataset-fashion-mnist``; some four minutes each on a core.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import exitlens as xl
from benchmarks.harness import NORMAL, Job, Promise, Study, promise_table, table
from benchmarks.results import Runs, Tree
from benchmarks.tasks import read_idx
from exitlens.data.demo import CLASSES
from exitlens.io import read_json
from exitlens.types.comparisons import Comparison, Contender
from exitlens.types.settings import read_record

TRIES = 10
SIZES = {"data/train": 3000, "data/validation": 300, "data/calibration": 700, "data/test": 1000, "fresh": 2000}
SETTINGS = "--backbone", "small", "--size", "32", "--exits", "3", "--epochs", "5", "--batch-size", "64"
EXITS, RIVAL, UNDECIDED, NONE = "the exits", "the rival", "undecided", "nothing as fast"


def list_cells(quick: bool = False) -> dict[str, Job]:
    return {str(number): partial(measure_try, number, quick) for number in range(1 if quick else TRIES)}


def measure_try(number: int, quick: bool = False) -> Tree:
    """Train, calibrate and compare as a user would, and compare the rival that is named again, on other samples."""
    folder = Path("runs/compare") / ("quick" if quick else str(number))
    shutil.rmtree(folder, ignore_errors=True)
    write_garments(folder, number, 10 if quick else 1)
    run = folder / "run"
    call("fit", "--data", folder / "data", *SETTINGS, "--out", run, "--seed", number)
    call("calibrate", "--bundle", run, "--max-accuracy-drop", "0.01")
    call("compare", run)
    told = read_record(Comparison, read_json(run / "beside" / "comparison.json"))
    if told.rival is None:
        return {"said": NONE, "rival": "", "right": False}  # what is left to say is about time alone
    ours, other = (find_right(path, folder / "fresh") for path in (run, next((run / "beside").glob(f"{told.rival.name}*"))))
    return judge(told.rival, 100 * (other - ours))


def write_garments(folder: Path, number: int, step: int) -> None:
    images, labels = (torch.cat(parts) for parts in zip(read_idx("train"), read_idx("t10k"), strict=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rows = iter(order[number * sum(SIZES.values()) :].tolist())
    for part, count in SIZES.items():
        for place in range(count // step):
            row = next(rows)
            path = folder / part / CLASSES[labels[row]] / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row, 0].numpy()).save(path)


def call(*words: object) -> None:
    command = [sys.executable, "-m", "exitlens", *map(str, words), "--json"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def find_right(path: Path, folder: Path) -> Tensor:  # -> (N,)
    net, policy = xl.load(path)
    trace = xl.collect(net, xl.data.load_folder(folder, net.info.preprocess, classes=net.info.classes))
    return trace.correct[torch.arange(len(trace)), xl.route(trace, policy)].double()


def judge(rival: Contender, gains: Tensor) -> Tree:  # gains: (N,) points over the exits, of fresh samples
    """Return what was said, the rival's gain then and now with intervals, and whether what was said holds.

    A choice is right if the sign of the difference is, and an undecided one if the two intervals overlap.
    """
    middle, half = gains.mean().item(), NORMAL * gains.std().item() / len(gains) ** 0.5
    _, low, high = rival.gain
    verdict = EXITS if high < 0 else RIVAL if low > 0 else UNDECIDED
    right = {EXITS: middle < 0, RIVAL: middle > 0, UNDECIDED: low - half <= middle <= high + half}[verdict]
    gained = {"told": list(rival.gain), "fresh": [middle, middle - half, middle + half]}
    return {"said": verdict, "rival": rival.name, "right": right} | gained


def list_promises(runs: Runs) -> Iterator[Promise]:
    if len(runs) == TRIES:
        right = sum(run["right"] for run in runs.values())
        yield Promise("compare|right", f"first sentences that are right, of {TRIES}", right, ">=", TRIES, exact=True)


def write_table(runs: Runs) -> list[str]:
    rows = []
    for name, run in sorted(runs.items()):
        gains = ["{:+.1f} ({:+.1f} to {:+.1f})".format(*run[when]) if when in run else "" for when in ("told", "fresh")]
        rows.append([name, run["said"], run["rival"], *gains, "yes" if run["right"] else "no"])
    head = ["try", "says", "rival", "its points over the exits, as told", "on fresh samples", "right"]
    return [*table(head, rows), "", *promise_table(list_promises(runs))] if rows else []


STUDY = Study("compare", list_cells, list_promises, {"compare": write_table}, processes=2)
