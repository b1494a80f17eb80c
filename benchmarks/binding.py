"""Binding: do answers rest on what maps show, trained with EGT, with ``rely_on="map"`` and with ``ignore=``, and what does it cost?

Cells are TASK/CONDITION-SEED, judged on test data. Cells trial/TASK/CONDITION-SEED are what settings were chosen on: fewer scenes, of
seeds of their own, judged on validation data. A training takes about five minutes on a core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

import exitlens as xl
from benchmarks import series, tasks, truth
from benchmarks.harness import Job, Promise, Sense, Study, join_means, list_by_seed, promise_table, table
from benchmarks.results import Runs, Tree, list_seeds
from benchmarks.tasks import Task, build_network, make_scene_set
from exitlens.data.sets import SampleSet

SEEDS = {"scenes": 5, "corner": 3, "motifs": 3, "vit": 3, "pictures": 3, "reviews": 3, "wrong": 3}
TITLES = {
    "scenes": "Scenes whose background's colour names the class in 80 % of the training data",
    "corner": "Scenes with a patch in the corner whose stripes name the class in 85 % of the training data",
    "motifs": "Series with a motif for each class, whose level says the class, too, in 90 % of the training data (sharpness 1.15)",
    **{name: tasks.TITLES[name] for name in ("vit", "pictures", "reviews")},
    "wrong": "The same scenes, of whose training labels 5 % are wrong",
}
SIDE, PATCH = 40, 9  # pixels: the side of scenes, and of the patch in their corner
AGREEMENT, PATCHED = 0.85, 6000  # how often the patch names the class, and the scenes to train on
WRONG_LABELS = 0.05  # share of the labels that are drawn anew among the other classes
SAMPLES, SWAPPED = 1000, 300  # test samples to judge maps on; those of them that take parts of others
CONDITIONS = {
    "without": ("without EGT", {"loss": xl.EGTLoss(weight=0.0)}),
    "egt": ("EGT", {}),
    "rely": ('EGT, `rely_on="map"`', {"rely_on": "map"}),
    "ignore": ("EGT, `ignore` what must not matter", {}),
}
TRIAL_SEED, TRIAL_TRAINED, TRIAL_EPOCHS = 100, 6000, 6
TRIALS = tuple((task, name) for name in ("egt", "rely") for task in ("scenes", "corner"))


def list_cells(quick: bool = False) -> dict[str, Job]:
    """List all cells, seed by seed, and the trials."""
    seeds = {f"{task}/{name}": count for task, count in SEEDS.items() for name in CONDITIONS if is_asked(task, name)}
    cells = list_by_seed(partial(measure_cell, quick=quick), seeds)
    return cells | {
        f"trial/{task}/{name}-{TRIAL_SEED}": partial(measure_cell, task, name, TRIAL_SEED, quick, trial=True)
        for task, name in TRIALS
    }


def is_asked(task: str, condition: str) -> bool:
    return task in {"ignore": ("scenes", "corner"), "without": ("motifs",)}.get(condition, SEEDS)


def measure_cell(name: str, condition: str, seed: int, quick: bool = False, *, trial: bool = False) -> Tree:
    task = open_task(name, seed, 96 if quick else None, trial=trial)
    options = dict(CONDITIONS[condition][1])
    if condition == "ignore":
        options["ignore"] = "background" if name == "scenes" else draw_corner()
    folder = Path("runs/binding") / ("quick" if quick else "") / f"{name}-{condition}-{seed}"
    net, seconds = train(task, seed, folder, options)
    return {"seconds": seconds} | judge(net, task.tests, 64 if quick else SAMPLES, 16 if quick else SWAPPED)


def open_task(name: str, seed: int, most: int | None, *, trial: bool = False) -> Task:
    """Return a task whose first test set has the cue as in training; of trials, all data are training and validation data."""
    if name == "motifs":
        motifs = series.load_task(name, seed)
        return truth.shorten(replace(motifs, settings={**motifs.settings, "loss": series.LOSSES[series.EGT]}), most or 0)
    if name not in ("scenes", "corner", "wrong", "texture"):
        return truth.shorten(tasks.TASKS[name](seed), most or 0)
    split, trained = ("validation", TRIAL_TRAINED) if trial else ("test", PATCHED if name == "corner" else None)
    agreement = 0.1 if name in ("corner", "texture") else 0.8
    train = make_scene_set("train", seed, 1, agreement, most or trained)
    validation = make_scene_set("validation", seed, 1, agreement, most or 500)
    if name == "texture":
        train, validation = (plant_texture(part, AGREEMENT, seed + i) for i, part in enumerate((train, validation)))
        plain = make_scene_set(split, seed, 2, 0.1, most)
        tests = {"agreeing": plant_texture(plain, AGREEMENT, seed + 2), "disagreeing": plant_texture(plain, 0.0, seed + 3)}
        tests["unseen"] = plain
    elif name != "corner":
        if name == "wrong":
            train = xl.data.ImageSet(train.images, mislead(train.labels, WRONG_LABELS, seed), train.classes, train.masks)
        tests = {
            "agreeing": make_scene_set(split, seed, 2, 0.8, most),
            "disagreeing": make_scene_set(split, seed, 2, 0.1, most),
            "unseen": make_scene_set(split, seed, 2, 0.1, most, palette="unseen"),
        }
    else:
        train, validation = (plant_patch(part, AGREEMENT, seed + i) for i, part in enumerate((train, validation)))
        plain = make_scene_set(split, seed, 2, 0.1, most)
        tests = {"right": plant_patch(plain, 1.0, seed + 2), "wrong": plant_patch(plain, 0.0, seed + 3)}
    return tasks.from_scratch(train, validation, tests, epochs=1 if most else TRIAL_EPOCHS if trial else 6)


def load_calibration(task: Task, name: str, seed: int, most: int | None) -> SampleSet:
    """Return samples like the training data, of which no network was trained."""
    if name in ("motifs", "pictures", "reviews"):
        return task.validation
    agreement = 0.8 if name in ("scenes", "vit") else 0.1
    data = make_scene_set("calibration", seed, 2, agreement, most)
    plant = {"corner": plant_patch, "texture": plant_texture}.get(name)
    return data if plant is None else plant(data, AGREEMENT, seed + 4)


def plant_patch(data: xl.data.ImageSet, agreement: float, seed: int) -> xl.data.ImageSet:
    """Draw stripes into the upper left corner whose direction names a class, the right one in a share ``agreement`` of the images.

    The masks become all but the corner, so that the measure that swaps backgrounds swaps the corner.
    """
    told, count = mislead(data.labels, 1 - agreement, seed), len(data.classes)
    y, x = torch.meshgrid(torch.arange(PATCH), torch.arange(PATCH), indexing="ij")
    angle = (math.pi * told / count)[:, None, None]
    stripes = ((x * angle.cos() + y * angle.sin()) * (2 * math.pi / 4)).sin() > 0  # (N,9,9), four pixels a stripe
    images = data.images.clone()
    images[:, :, :PATCH, :PATCH] = (30 + 200 * stripes).to(torch.uint8)[:, None]
    return xl.data.ImageSet(images, data.labels, data.classes, (~draw_corner()).expand(len(data), -1, -1).clone())


def plant_texture(data: xl.data.ImageSet, agreement: float, seed: int, period: float = 5.0) -> xl.data.ImageSet:
    """Lay faint stripes over the background whose direction names a class, the right one in a share ``agreement`` of the images."""
    told, count = mislead(data.labels, 1 - agreement, seed), len(data.classes)
    y, x = torch.meshgrid(*(torch.arange(side) for side in data.images.shape[2:]), indexing="ij")
    angle = (math.pi * told / count)[:, None, None]
    stripes = ((x * angle.cos() + y * angle.sin()) * (2 * math.pi / period)).sin()  # (N,H,W)
    assert data.masks is not None
    images = data.images + 30 * stripes[:, None] * ~data.masks[:, None]
    return xl.data.ImageSet(images.clamp(0, 255).to(torch.uint8), data.labels, data.classes, data.masks)


def mislead(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return labels of which a share is another class, drawn among all others."""
    rng, count = torch.Generator().manual_seed(seed), int(labels.max()) + 1
    other = (labels + torch.randint(1, count, labels.shape, generator=rng)) % count
    return torch.where(torch.rand(len(labels), generator=rng) < 1 - share, labels, other)


def draw_corner() -> Tensor:  # (SIDE,SIDE) bool
    corner = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    corner[:PATCH, :PATCH] = True
    return corner


def train(task: Task, seed: int, folder: Path, options: Mapping[str, Any]) -> tuple[xl.ExitNet, float]:
    """Return a trained network, which goes on from its last epoch, and the seconds of an epoch."""
    net = build_network(task, seed, exits=True)
    settings = {"seed": seed, "out_dir": folder, "resume": True, "progress": False, "keep": "last", **task.settings}
    result = xl.fit(net, task.train, task.validation, **settings | options)
    return net, float(np.median([row["seconds"] for row in result.history]))


def judge(net: xl.ExitNet, tests: Mapping[str, SampleSet], samples: int, swapped: int) -> Tree:
    measured: Tree = {"samples": len(next(iter(tests.values()))), "accuracy": {}, "right": {}}
    for name, data in tests.items():
        trace = xl.collect(net, data, batch_size=250)
        measured["accuracy"][name] = trace.correct.float().mean(0).tolist()
        measured["right"][name] = [np.packbits(row.numpy()).tobytes().hex() for row in trace.correct.T]
    data = next(iter(tests.values()))
    judged = xl.measure_faithfulness(net, data, samples=samples, oracle_samples=swapped)
    if judged.binding is None:
        raise ValueError(f"expected binding on {len(data)} samples, got none")
    binding, swapped_cue = judged.binding, judged.cue_swap
    if swapped_cue is not None:
        measured |= {"cue": swapped_cue.change, "cue_error": swapped_cue.change_error}
        measured |= {"beyond": swapped_cue.beyond_final, "beyond_error": swapped_cue.beyond_final_error}
        measured |= {"inside": judged.energy_in_mask}
    column, percent = binding.areas.index(0.2), [f"{100 * area:.0f}" for area in binding.areas]
    return measured | {
        "binding": {name: binding.at(area) for name, area in zip(percent, binding.areas, strict=True)},
        "binding_error": dict(zip(percent, zip(*binding.maps.binding_error, strict=True), strict=True)),
        "another": binding.at(of="another"),
        "oracle": binding.oracle,
        "oracle_error": binding.oracle_error,
        "above_another": [row[column] for row in binding.above_another],
        "above_another_error": [row[column] for row in binding.above_another_error],
        "share": judged.deletion_share,
    }


BINDING = {"scenes": {"20": 0.8, "40": 0.92}}
OTHERS_BINDING = {"20": 0.75}
ABOVE, CUE, GAIN, PRICE, HARM = 0.3, 0.12, 8, -3, -1
BEYOND, WRONG = 0.03, {"ignore": 72, "rely": 65}


def list_promises(runs: Runs) -> Iterator[Promise]:
    for task in SEEDS:
        without, egt, rely, ignore = (list_seeds(runs, f"{task}/{condition}") for condition in CONDITIONS)
        for condition, ours in {"rely": rely, "ignore": ignore}.items():
            key, what = f"binding|{task}|{condition}", f"{task}, {condition}"
            if ours and task == "corner":
                words = f"{what}: exit 0, answers changed by the patch beyond the final exit's"
                yield promise_part(f"{key}|beyond", words, ours, "beyond", 0, "<=", BEYOND)
                right = np.array([read_right(run, "wrong")[0] for run in ours])
                words = f"{what}: exit 0, accuracy where the patch is wrong, %"
                yield Promise.of_both(f"{key}|wrong", words, right, ">=", WRONG[condition])
            for k in range(len(ours[0]["another"])) if ours and task != "corner" else ():
                yield from promise_binding(f"{key}|{k}", f"{what}: exit {k}", ours, k, BINDING.get(task, OTHERS_BINDING))
                if task == "scenes":
                    yield promise_part(
                        f"{key}|{k}|cue", f"{what}: exit {k}, changed with the background", ours, "cue", k, "<=", CUE
                    )
            if task == "scenes":
                yield from promise_gains(key, what, ours, egt, {"disagreeing": GAIN, "unseen": GAIN})
                yield from promise_gains(key, what, ours, egt, {"agreeing": PRICE}, first=-1)
            elif task in ("pictures", "reviews"):
                yield from promise_gains(key, what, ours, egt, {"test": HARM})
            elif task == "motifs":
                yield from promise_gains(key, what, ours, without, {"independent": 0})


def promise_binding(key: str, what: str, ours: list[Tree], k: int, bars: Mapping[str, float]) -> Iterator[Promise]:
    for area, bar in bars.items():
        parts = [{"value": run["binding"][area], "value_error": run["binding_error"][area]} for run in ours]
        yield promise_part(f"{key}|{area}", f"{what}, binding at {area} %", parts, "value", k, ">=", bar)
    yield promise_part(
        f"{key}|above", f"{what}, binding at 20 % above another sample's map", ours, "above_another", k, ">=", ABOVE
    )


def promise_gains(
    key: str, what: str, ours: list[Tree], others: list[Tree], bars: Mapping[str, float], first: int = 0
) -> Iterator[Promise]:
    """Promise points of every exit from ``first`` on, negative from the end, over other networks of the same seeds."""
    pairs = list(zip(ours, others, strict=False))
    for test, bar in bars.items() if pairs else ():
        gains = np.array([read_right(a, test) - read_right(b, test) for a, b in pairs])  # (R,K,N)
        for k in range(gains.shape[1])[first:]:
            yield Promise.of_both(f"{key}|{k}|{test}", f"{what}: exit {k}, {test}, points gained", gains[:, k], ">=", bar)


def promise_part(key: str, what: str, runs: list[Tree], part: str, k: int, sense: Sense, bar: float) -> Promise:
    error = mean(run[f"{part}_error"][k] for run in runs)
    return Promise.of_mean(key, what, [run[part][k] for run in runs], sense, bar, error)


def read_right(run: Tree, test: str) -> np.ndarray:  # (K,N), 100 where an exit is right, else 0
    packed = np.array([np.frombuffer(bytes.fromhex(row), np.uint8) for row in run["right"][test]])
    return 100.0 * np.unpackbits(packed, axis=1, count=run["samples"])


def write_tables(runs: Runs) -> list[str]:
    lines = []
    for task, title in TITLES.items():
        measured = {name: part for name in CONDITIONS if (part := list_seeds(runs, f"{task}/{name}"))}
        rows = write_rows({CONDITIONS[name][0]: part for name, part in measured.items()})
        lines += [f"**{title}**", "", *rows, ""] if rows else []
        lines += [line for name, part in measured.items() for line in tell_oracle(CONDITIONS[name][0], part)]
    return [*lines, *promise_table(list_promises(runs))]


def tell_oracle(title: str, runs: list[Tree]) -> list[str]:
    """Return a line about what cells chosen greedily for one donor bind, in the runs that tried it."""
    known = [run for run in runs if "oracle" in run]
    if not known:
        return []
    error = max(value for run in known for value in run["oracle_error"])
    seeds = "one seed" if len(known) == 1 else f"{len(known)} seeds"
    words = f"{title}: cells chosen greedily for one donor bind"
    return [
        f"{words} {join_means([run['oracle'] for run in known], 2)} at 20 % ({seeds}, standard error up to {error:.2f}).",
        "",
    ]


def write_trials(runs: Runs) -> list[str]:
    lines = []
    for task, title in TITLES.items():
        tried = {each: runs.get(f"trial/{task}/{each}-{TRIAL_SEED}") for name, each in TRIALS if name == task}
        rows = write_rows({CONDITIONS[each][0]: [run] for each, run in tried.items() if run})
        lines += [f"**{title}**", "", *rows, ""] if rows else []
    return lines


def write_rows(measured: Mapping[str, list[Tree]]) -> list[str]:
    head: list[str] = []
    rows = []
    for title, runs in measured.items():
        columns = {
            f"accuracy, {test}, %": [[100 * share for share in run["accuracy"][test]] for run in runs]
            for test in runs[0]["accuracy"]
        }
        columns |= {f"binding at {area} %": [run["binding"][area] for run in runs] for area in ("10", "20", "40")}
        columns |= {words: [run[part] for run in runs] for part, words in COLUMNS.items() if part in runs[0]}
        head = ["", "seeds", *columns]
        cells = [join_means(values, 1 if "accuracy" in name else 2) for name, values in columns.items()]
        rows.append([title, str(len(runs)), *cells])
    return table(head, rows) if rows else []


COLUMNS = {
    "another": "at 20 %, another's map",
    "cue": "changed with the cue",
    "inside": "attention off the cue",
    "share": "share of the oracle",
}
STUDY = Study("binding", list_cells, list_promises, {"binding": write_tables, "trials": write_trials}, processes=2)
