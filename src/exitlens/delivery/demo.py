"""The demo: the same network plain, with exits, and with exits trained by EGT, compared on everything we promise."""

from __future__ import annotations

import copy
import csv
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from ctypes import c_longlong
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import exitlens
from exitlens.data.batches import as_batch, make_epoch_loader
from exitlens.data.demo import load_scenes
from exitlens.data.sets import ImageSet
from exitlens.data.sources import DataSource
from exitlens.data.splits import SPLITS
from exitlens.delivery.benchmark import answer_plainly, compare
from exitlens.delivery.bundle import load, save
from exitlens.delivery.pictures import draw_contact_sheet
from exitlens.delivery.report import Provenance, Subject, pick_images, write_report
from exitlens.delivery.run_directory import record_source
from exitlens.errors import OutputExistsError
from exitlens.functional.losses import EGTLoss
from exitlens.io import read_json, write_json
from exitlens.model._torch_compat import has_fast_bfloat16
from exitlens.model.attach import attach
from exitlens.model.backbones.build import rebuild_backbone
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.network import ExitNet
from exitlens.model.process import keep_memory
from exitlens.progress import show_progress
from exitlens.types import Policy, Trace
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.calibration import calibrate
from exitlens.workflow.collection import collect
from exitlens.workflow.evaluation import Report, evaluate
from exitlens.workflow.explanation import explain_batch
from exitlens.workflow.faithfulness import Faithfulness, measure_faithfulness
from exitlens.workflow.inference import predict
from exitlens.workflow.training.fit import fit
from exitlens.workflow.training.optimizer import apply_gradients
from exitlens.workflow.training.record import LOG
from exitlens.workflow.training.run import compute_gradients

RESULT, TRAINING = "result.json", "training"
SECONDS = "seconds.json"  # beside the trainings: how long they took until their last whole epoch, in all calls together
CONDITIONS = {"agreeing": 0.8, "disagreeing": 0.1}  # how often a test background has the colour of its class
JUDGED = "agreeing"  # the scenes on which maps are judged
EGT, WITHOUT = EGTLoss().for_network(attends=False), EGTLoss(weight=0.0)
RUNS: dict[str, EGTLoss | None] = {"egt": EGT, "baseline": WITHOUT, "plain": None}
TITLES = {"baseline": "without EGT", "egt": "with EGT"}
LIMITS = {"one_point": 0.01, "half_point": 0.005}  # accuracy drops that are certified on the 2,000 calibration scenes
DELTA = 0.1
MEASURING_STEPS = 4  # of _measure
TESTING_STEPS = 9  # calls of ``step`` in run_demo and in what it calls
# Of a network with early exits; reports, checks and traces are by test condition, traces also of "calibration".
Measured = tuple[Policy, dict[str, Report], dict[str, Faithfulness], dict[str, Trace]]
Step = Callable[[str], None]  # called with what comes next, whenever a part of the testing begins


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo's training and measurements; the defaults take four minutes on two cores."""

    seed: int = 0
    epochs: int = 2
    limit: int | None = 10_000  # the most scenes of each split; None: all (12,000 to train on)
    size: int = 32  # pixels, height and width of a scene
    batch_size: int = 32
    learning_rate: float = 2e-3  # the peak of the one-cycle schedule
    samples: int = 300  # test scenes on which maps are judged
    oracle_samples: int = 60  # those of them that are given to the oracle and take parts of others
    rounds: int = 5  # of each timing
    timed: int = 768  # scenes in a round of batches of 64

    @classmethod
    def full(cls, seed: int = 0) -> DemoSettings:
        """Return the settings behind the documentation's figures: a quarter of an hour on two cores."""
        training = cls(seed, epochs=6, limit=None, size=40, batch_size=64, learning_rate=4e-3)
        return replace(training, samples=3000, oracle_samples=200, rounds=7, timed=2048)

    @classmethod
    def quick(cls, seed: int = 0) -> DemoSettings:
        """Return the settings of a run of seconds that shows the flow."""
        return cls(seed, epochs=1, limit=256, samples=64, oracle_samples=16, rounds=1, timed=256)


def run_demo(out: Path, settings: DemoSettings, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train, calibrate, test, time and report; write ``result.json``, ``report.html`` and ``bundle`` to ``out``."""
    if (out / RESULT).exists():
        raise OutputExistsError(f"out: {out} holds a finished demo. Fix: remove it, or choose another directory with --out.")
    clock = out / TRAINING / SECONDS
    started = time.perf_counter() - (read_json(clock) if clock.exists() else 0.0)  # as if there had been no interruption
    console = Console(quiet=quiet)
    with record_source(out, DataSource("scenes", size=settings.size, seed=settings.seed), resume=resume):
        console.rule(f"three trainings of {settings.epochs} epochs: with EGT, without, plain backbone; then tests")
        data, measured = train_all(out / TRAINING, settings, started, quiet)
    nets = {name: load(out / TRAINING / name / "bundle")[0] for name in RUNS}
    subjects = [Subject(TITLES[name], nets[name], *measured[name][:3]) for name in ("egt", "baseline")]
    policy = subjects[0].policy
    console.rule("times")
    with show_progress(not quiet) as bar:
        task = bar.add_task("testing", total=TESTING_STEPS)
        done = iter(range(TESTING_STEPS))

        def step(part: str) -> None:
            bar.update(task, completed=next(done), description=f"testing: {part}")

        step("accuracy of the plain backbone")
        plain_accuracy = collect(nets["plain"], data["agreeing"]).correct[:, -1].float().mean().item()
        result = {
            "egt": _list_measures(subjects[0]),
            "baseline": _list_measures(subjects[1]),
            "plain": {"agreeing": {"accuracy": [plain_accuracy]}},
            "speed": _measure_speed(nets, measured["egt"], plain_accuracy, data["agreeing"], settings, step),
            **_measure_overheads(nets["baseline"], nets["egt"], policy, data, settings, step),
            "policy": policy.to_dict(),
            "settings": asdict(settings),
            "loss": asdict(EGT),
            "seed": settings.seed,
            "versions": {"exitlens": exitlens.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "machine": {"cpu": platform.machine(), "threads": torch.get_num_threads(), "system": platform.system()},
        }
        step("the report")
        save(nets["egt"], policy, out / "bundle", overwrite=True)
        _write_report(out, subjects, data, result, settings)
        bar.update(task, completed=TESTING_STEPS)
    result["seconds"] = time.perf_counter() - started
    write_json(out / RESULT, result)
    return result


def load_data(settings: DemoSettings) -> dict[str, ImageSet]:
    """Load scenes by use; the two test sets hold the same garments in the same places on different backgrounds."""
    make = partial(load_scenes, seed=settings.seed, size=settings.size, limit=settings.limit)
    data: dict[str, ImageSet] = {split: make(split) for split in SPLITS if split != "test"}
    return data | {name: make("test", background_agreement=agreement) for name, agreement in CONDITIONS.items()}


def train_all(
    folder: Path, settings: DemoSettings, started: float, quiet: bool
) -> tuple[dict[str, ImageSet], dict[str, Measured]]:
    """Load the data, train whatever is not trained yet, and measure what has early exits; show a bar for each network.

    Each runs in a single-threaded process. So nothing depends on the number of cores, and two side by side are faster than
    in turn on two threads each. The seconds since ``started`` are kept in the folder after every epoch.
    """
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counters, runs = {name: context.Value("q", 0, lock=False) for name in RUNS}, {name: folder / name for name in RUNS}
    with context.Pool(min(len(RUNS), cores), _start_worker, (counters,)) as pool, show_progress(not quiet) as bar:
        data = load_data(settings)  # while the processes start
        batches = settings.epochs * -(-len(data["train"]) // settings.batch_size)
        totals = {name: batches + (MEASURING_STEPS if name in TITLES else 0) for name in RUNS}
        tasks = {name: bar.add_task(name, total=total, start=False) for name, total in totals.items()}
        given = settings, data["train"], data["validation"]
        trained = {name: pool.apply_async(_train_one, (name, run, *given)) for name, run in runs.items()}
        measured: dict[str, Any] = {}
        is_over, epochs = False, 0
        while not is_over:
            for name in TITLES:
                if name not in measured and trained[name].ready():
                    trained[name].get()
                    measured[name] = pool.apply_async(_measure, (name, runs[name], settings, data))
            is_over = measured.keys() == TITLES.keys() and all(
                job.ready() for job in (*trained.values(), *measured.values())
            )
            logs = {name: _read_log(run / LOG) for name, run in runs.items()}
            for name, task in tasks.items():
                if done := counters[name].value:
                    bar.start_task(task)
                state = _describe_epochs(logs[name]) if done else "waiting for a core"
                bar.update(task, completed=done, description=f"{name:8} {state}")
            if sum(map(len, logs.values())) > epochs:
                epochs = sum(map(len, logs.values()))
                write_json(folder / SECONDS, time.perf_counter() - started)
            time.sleep(0.2)
        trained["plain"].get()
        results = {name: job.get() for name, job in measured.items()}
        pool.close()
        pool.join()  # so that no worker outlives this function
    return data, results


_counters: dict[str, c_longlong] = {}  # in a worker: batches that each training has seen, and steps of measuring


def _start_worker(counters: dict[str, c_longlong]) -> None:
    torch.set_num_threads(1)
    keep_memory()
    _counters.update(counters)


def _train_one(name: str, run: Path, settings: DemoSettings, train: ImageSet, validation: ImageSet) -> None:
    loss, counter = RUNS[name], _counters[name]
    batches = -(-len(train) // settings.batch_size)
    if (run / "bundle").exists():
        counter.value = settings.epochs * batches
        return
    counter.value = len(_read_log(run / LOG)) * batches

    def count(images: Tensor) -> Tensor:
        counter.value += 1
        return images

    net = build_network(loss, train, settings.seed)
    fit(
        net,
        train,
        validation,
        loss=loss or WITHOUT,
        epochs=settings.epochs,
        out_dir=run,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        augment=count,  # changes no image: it is called with every batch, which the bar counts
        resume=True,
        progress=False,
    )
    save(net, None, run / "bundle")


def build_network(loss: EGTLoss | None, train: ImageSet, seed: int) -> ExitNet:
    """Return the demo's network before training: with three early exits, or plain if there is no loss."""
    torch.manual_seed(seed)
    backbone, example = SmallResNet(num_classes=len(train.classes)), train.first(1).inputs
    at = [] if loss is None else list(backbone.groups[:-1])
    net = attach(backbone, at, len(train.classes), example, final="keep" if loss is None else "head", head="context")
    net.describe(source="small", classes=train.classes, preprocess=train.preprocess)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _read_log(log: Path) -> list[dict[str, str]]:
    with suppress(OSError):
        return list(csv.DictReader(log.read_text().splitlines()))
    return []


def _describe_epochs(rows: list[dict[str, str]]) -> str:
    if not rows:
        return "epoch 1"
    accuracy = [f"{100 * float(value):.1f}" for name, value in rows[-1].items() if name.startswith("accuracy_exit")]
    cc = [f"{float(value):.2f}" for name, value in rows[-1].items() if name.startswith("cc_exit")]
    agreement = f", map CC with final {' '.join(cc)}" if cc else ""
    return f"epoch {len(rows)}: val accuracy {' '.join(accuracy)} %{agreement}"


def _measure(name: str, run: Path, settings: DemoSettings, data: Mapping[str, ImageSet]) -> Measured:
    net, _ = load(run / "bundle")
    traces = {}
    for kind in ("calibration", *CONDITIONS):
        traces[kind] = collect(net, data[kind])
        _counters[name].value += 1
    policy = calibrate(traces["calibration"], max_accuracy_drop=LIMITS["one_point"], delta=DELTA)
    reports = {condition: evaluate(traces[condition], policy) for condition in CONDITIONS}
    samples, oracle = settings.samples, settings.oracle_samples
    checks = {JUDGED: measure_faithfulness(net, data[JUDGED], samples=samples, oracle_samples=oracle)}
    _counters[name].value += 1
    return policy, reports, checks, traces


def _list_measures(subject: Subject) -> dict[str, Any]:
    measures: dict[str, Any] = {}
    for condition, report in subject.reports.items():
        early = [row.consistency for row in report.exits[:-1]]
        consistency = {"skill": [c["cc"]["skill"] for c in early]}
        for measure, name in (("cc", "attention_cc"), ("kl", "kl"), ("cosine", "cosine")):
            consistency[name] = [c[measure]["value"] for c in early]
            consistency[f"{name}_null"] = [c[measure]["null"] for c in early]
        measures[condition] = {
            "accuracy": [row.accuracy for row in report.exits],
            **consistency,
            "routed_accuracy": report.accuracy,
            "cost": report.cost,
            "exit_shares": list(report.exit_shares),
        }
    judged = subject.faithfulness[JUDGED]
    assert judged.binding is not None
    assert judged.cue_swap is not None
    swaps = {"binding": judged.binding.at(), "binding_another": judged.binding.at(of="another")}
    measures[JUDGED] |= judged.to_dict() | swaps | {"cue_swap": judged.cue_swap.change}
    return measures


def _measure_speed(
    nets: Mapping[str, ExitNet],
    measured: Measured,
    plain_accuracy: float,
    data: ImageSet,
    settings: DemoSettings,
    step: Step,
) -> dict[str, Any]:
    step("the stricter policy")
    policy, _, _, traces = measured
    policies = {"one_point": policy, "half_point": policy}
    if min(policy.thresholds) < math.inf:  # else the loose limit was refused, and the strict one would be
        policies["half_point"] = calibrate(traces["calibration"], max_accuracy_drop=LIMITS["half_point"], delta=DELTA)
    egt, plain = nets["egt"], rebuild_backbone(nets["plain"].info).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    speeds: dict[str, Any] = {}
    for batch_size, count in ((1, settings.timed // 8), (64, settings.timed)):
        rows = {}
        batches = _split_batches(data.inputs[:count], batch_size)
        for title, timed in policies.items():
            step(f"times in batches of {batch_size}, {title.replace('_', ' ')}")
            ours = partial(predict, egt, policy=timed)
            speed = compare(partial(answer_plainly, plain), ours, batches, settings.rounds, egt.tuning.keep_memory)
            report = evaluate(traces["agreeing"], timed)
            drop = plain_accuracy - (report.accuracy or 0.0)
            rows[title] = {**speed, "accuracy_drop": drop, "cost": report.cost}
        speeds[f"batch_{batch_size}"] = {**rows["one_point"], "at_half_point": rows["half_point"]}
    return speeds


def _split_batches(images: Tensor, size: int) -> list[tuple[Tensor]]:
    """Return full batches in channels_last."""
    whole = images[: len(images) // size * size].contiguous(memory_format=torch.channels_last)
    return [(batch,) for batch in whole.split(size)]


def _measure_overheads(
    baseline: ExitNet, egt: ExitNet, policy: Policy, data: Mapping[str, ImageSet], settings: DemoSettings, step: Step
) -> dict[str, Any]:
    step("time of a training step")
    amp = has_fast_bfloat16(baseline.device)  # as fit chooses it
    chosen = TrainingSettings(epochs=1, batch_size=settings.batch_size, learning_rate=1e-3, amp=amp)

    def prepare(loss: EGTLoss) -> Callable[[Tensor, Tensor], Any]:
        twin = copy.deepcopy(baseline).train()
        optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4)

        def take_step(images: Tensor, labels: Tensor) -> None:
            compute_gradients(twin, optimizer, loss, [(images, labels, 1.0, None)], 0.9, chosen)
            apply_gradients(optimizer, 0.9, chosen)

        return take_step

    loader = make_epoch_loader(data["train"].first(settings.timed // 3), settings.batch_size, seed=0)
    batches = [(images, labels) for images, labels, _ in map(as_batch, loader)]
    training = compare(prepare(EGT), prepare(WITHOUT), batches, rounds=3)  # ``speedup``: with EGT over without
    step("time of attention maps")
    maps = compare(
        partial(predict, egt, policy=policy, attention=True),
        partial(predict, egt, policy=policy),
        _split_batches(data["agreeing"].inputs[: settings.timed // 2], 64),
        settings.rounds,
    )
    return {
        "step_time_ratio": training["speedup"],
        "step_time": training,
        "attention_time_ratio": maps["speedup"],
        "attention_time": maps,
    }


def _write_report(
    out: Path, subjects: list[Subject], data: Mapping[str, ImageSet], result: Mapping[str, Any], settings: DemoSettings
) -> None:
    facts = {
        "task": "10 kinds of garment (Fashion-MNIST) pasted at random places and sizes on coloured, textured backgrounds",
        "the shortcut": "in 80 % of the training scenes the background's colour tells the class; 'disagreeing' test "
        "scenes show the same garments on backgrounds whose colour says nothing",
        "training": f"{len(data['train']):,} scenes of {settings.size} pixels, {settings.epochs} epochs, AdamW, "
        "one-cycle; the same seed, data order and budget with and without EGT",
        "EGT loss": ", ".join(f"{name} {value}" for name, value in result["loss"].items()),
        "thresholds": f"chosen on {len(data['calibration']):,} calibration scenes, tested on {len(data['agreeing']):,} more",
        "a training step with EGT": f"{result['step_time_ratio']:.3f} times the step without",
        "prediction with attention maps": f"{result['attention_time_ratio']:.3f} times prediction without",
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    }
    tested = " and ".join(f"{len(data[name]):,} scenes on {name} backgrounds" for name in CONDITIONS)
    full = " --full" if settings == DemoSettings.full(settings.seed) else ""
    made = Provenance(f"exitlens demo --out {out.name} --seed {settings.seed}{full}", tested, str(settings.seed), facts)
    timed = {f"batch size {size}": result["speed"][f"batch_{size}"] for size in (1, 64)}
    speed = timed | {f"{title}, half a point": rows["at_half_point"] for title, rows in timed.items()}
    images = {name: data[name] for name in CONDITIONS}
    plain_accuracy = result["plain"]["agreeing"]["accuracy"][0]
    write_report(out / "report.html", subjects, images, made, speed=speed, plain_accuracy=plain_accuracy, overwrite=True)
    picked = data["agreeing"].subset(torch.tensor(pick_images(subjects[0], data["agreeing"], 6)))
    pages = {subject.name: explain_batch(subject.net, picked.inputs, subject.policy) for subject in reversed(subjects)}
    draw_contact_sheet(pages).save(out / "gallery.png", optimize=True)
