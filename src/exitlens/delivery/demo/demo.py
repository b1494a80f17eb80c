"""The demo: the same network plain, with exits, and with exits trained by EGT, compared on everything we promise."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import exitlens
from exitlens.data.batches import as_batch, make_epoch_loader
from exitlens.data.images import ImageSet
from exitlens.data.sources import DataSource
from exitlens.delivery.bench.contenders import compare_adaptive, split_whole_batches
from exitlens.delivery.bench.timing import Speed, compare
from exitlens.delivery.bundle import save
from exitlens.delivery.demo.training import CONDITIONS, EGT, WITHOUT, DemoSettings, load_data, train_all
from exitlens.delivery.explanations.pictures import draw_contact_sheet
from exitlens.delivery.report.gallery import pick_images
from exitlens.delivery.report.subjects import Provenance, Subject
from exitlens.delivery.report.write import write_report
from exitlens.delivery.run_data import record_source
from exitlens.errors import OutputExistsError
from exitlens.functional.losses import EGTLoss
from exitlens.io import write_json
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.network import ExitNet
from exitlens.types import Policy, Trace
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.calibration import calibrate
from exitlens.workflow.collection import collect
from exitlens.workflow.evaluation import evaluate
from exitlens.workflow.explanation import explain_batch
from exitlens.workflow.faithfulness import faithfulness
from exitlens.workflow.inference.predict import predict
from exitlens.workflow.training.step import take_step

RESULT = "result.json"
LIMITS = {"one_point": 0.01, "half_point": 0.005}  # accuracy drops that are certified on the 2,000 calibration scenes
DELTA = 0.1
TITLES = {"baseline": "without EGT", "egt": "with EGT"}


def run_demo(out: Path, settings: DemoSettings, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Trains, calibrates, tests, times and reports; writes ``result.json``, ``report.html`` and ``bundle`` to ``out``.

    Raises:
        OutputExistsError: if ``out`` holds a finished demo, or is not empty and ``resume`` is not set.
        MissingExtraError: without the images of the extra ``demo``; then ``out`` is not made.
    """
    if (out / RESULT).exists():
        raise OutputExistsError(f"out: {out} holds a finished demo: remove it, or choose another directory with --out")
    started = time.perf_counter()
    console = Console(quiet=quiet)
    source = DataSource("scenes", size=settings.size, seed=settings.seed)
    with record_source(out, source, resume=resume):
        data = load_data(settings)
    console.rule(f"three trainings of {settings.epochs} epochs: with EGT, without, and the plain backbone")
    nets = train_all(out, settings, quiet)
    plain_accuracy = _measure_accuracy(collect(nets["plain"], data["agreeing"]))
    console.rule("testing")
    subjects = [_measure_subject(name, nets[name], data, settings) for name in ("egt", "baseline")]
    speed = _measure_speed(nets, subjects[0].policy, data, settings, plain_accuracy)
    extra = _measure_overheads(nets["baseline"], nets["egt"], subjects[0].policy, data, settings)
    result = {
        "egt": _list_measures(subjects[0]),
        "baseline": _list_measures(subjects[1]),
        "plain": {"agreeing": {"accuracy": [plain_accuracy]}},
        "speed": speed,
        **extra,
        "policy": subjects[0].policy.to_dict(),
        "settings": asdict(settings),
        "loss": asdict(EGT),
        "seed": settings.seed,
        "versions": {"exitlens": exitlens.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"cpu": platform.machine(), "threads": torch.get_num_threads(), "system": platform.system()},
    }
    save(nets["egt"], subjects[0].policy, out / "bundle", overwrite=True)
    _write_report(out, subjects, data, result, plain_accuracy)
    result["seconds"] = time.perf_counter() - started
    write_json(out / RESULT, result)
    return result


def _measure_subject(name: str, net: ExitNet, data: Mapping[str, ImageSet], settings: DemoSettings) -> Subject:
    policy = calibrate(collect(net, data["calibration"]), max_accuracy_drop=LIMITS["one_point"], delta=DELTA)
    reports = {condition: evaluate(collect(net, data[condition]), policy) for condition in CONDITIONS}
    checks = {condition: faithfulness(net, data[condition], samples=settings.samples) for condition in CONDITIONS}
    return Subject(TITLES[name], net, policy, reports, checks)


def _measure_accuracy(trace: Trace) -> float:
    return trace.correct[:, -1].float().mean().item()


def _list_measures(subject: Subject) -> dict[str, Any]:
    """A network's figures by condition, most of them a list over exits."""
    found: dict[str, Any] = {}
    for condition, report in subject.reports.items():
        early = [row.consistency for row in report.exits[:-1]]
        checks = subject.faithfulness[condition]
        found[condition] = {
            "accuracy": [row.accuracy for row in report.exits],
            "attention_cc": [c["cc"]["value"] for c in early],
            "attention_cc_null": [c["cc"]["null"] for c in early],
            "skill": [c["cc"]["skill"] for c in early],
            "kl": [c["kl"]["value"] for c in early],
            "kl_null": [c["kl"]["null"] for c in early],
            "cosine": [c["cosine"]["value"] for c in early],
            "cosine_null": [c["cosine"]["null"] for c in early],
            "routed_accuracy": report.accuracy,
            "cost": report.cost,
            "exit_shares": list(report.exit_shares),
            **{name: value for name, value in checks.to_dict().items() if name not in ("grid", "samples")},
        }
    return found


def _measure_speed(
    nets: Mapping[str, ExitNet], policy: Policy, data: Mapping[str, ImageSet], settings: DemoSettings, plain_accuracy: float
) -> dict[str, Any]:
    """Plain backbone against adaptive inference at batch 1 and 64, for the policies of one and of half a point."""
    plain: nn.Module = _extract_backbone(nets["plain"])
    calibration, test = collect(nets["egt"], data["calibration"]), collect(nets["egt"], data["agreeing"])
    half = calibrate(calibration, max_accuracy_drop=LIMITS["half_point"], delta=DELTA)
    images = data["agreeing"].inputs
    found: dict[str, Any] = {}
    for batch_size, count in ((1, 256), (64, 2048)):
        rows = {}
        for title, chosen in (("one_point", policy), ("half_point", half)):
            speed = compare_adaptive(plain, nets["egt"], chosen, images[:count], batch_size, settings.rounds)
            report = evaluate(test, chosen)
            drop = plain_accuracy - (report.accuracy or 0.0)
            rows[title] = {**speed.to_dict(), "accuracy_drop": drop, "cost": report.cost}
        found[f"batch_{batch_size}"] = {**rows["one_point"], "at_half_point": rows["half_point"]}
    return found


def _extract_backbone(net: ExitNet) -> nn.Module:
    """The plain backbone with the weights of the network without early exits."""
    backbone = SmallResNet(num_classes=net.info.num_classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = {k.split("body.", 1)[1]: v for k, v in net.state_dict().items()}
    backbone.load_state_dict(state)
    return backbone.eval()  # type: ignore[no-any-return]


def _measure_overheads(
    baseline: ExitNet, egt: ExitNet, policy: Policy, data: Mapping[str, ImageSet], settings: DemoSettings
) -> dict[str, Any]:
    """What EGT costs in training, and attention maps in inference, as ratios of times."""
    training = TrainingSettings(epochs=1, batch_size=settings.batch_size, learning_rate=1e-3, amp=True)
    step = compare_steps(baseline, data["train"], EGT, WITHOUT, training)
    batches = split_whole_batches(data["agreeing"].inputs[:1024], 64)
    maps = compare(
        lambda batch: predict(egt, batch, policy, attention=True),
        lambda batch: predict(egt, batch, policy),
        batches,
        settings.rounds,
    )
    return {
        "step_time_ratio": step.speedup,
        "step_time": step.to_dict(),
        "attention_time_ratio": maps.speedup,
        "attention_time": maps.to_dict(),
    }


def compare_steps(
    net: ExitNet, data: ImageSet, loss: EGTLoss, without: EGTLoss, settings: TrainingSettings, steps: int = 24
) -> Speed:
    """A training step with ``loss`` against one with ``without``, on copies of the network: ``speedup`` is their ratio."""

    def stepper(choice: EGTLoss) -> Callable[[Tensor, Tensor], Any]:
        twin = copy.deepcopy(net).train()
        optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4)
        return lambda images, labels: take_step(twin, optimizer, choice, [(images, labels)], 0.9, settings)

    loader = make_epoch_loader(data.first(steps * settings.batch_size), settings.batch_size, seed=0)
    found = [as_batch(batch) for batch in loader]
    pairs = [(x, labels) for x, labels, _ in found if isinstance(x, Tensor) and labels is not None]
    return compare(stepper(loss), stepper(without), pairs, rounds=3)


def _write_report(
    out: Path, subjects: list[Subject], data: Mapping[str, ImageSet], result: Mapping[str, Any], plain_accuracy: float
) -> None:
    settings, versions = result["settings"], result["versions"]
    facts = {
        "task": "10 kinds of garment (Fashion-MNIST) pasted at random places and sizes on coloured, textured backgrounds",
        "the shortcut": "in 80 % of the training scenes the background's colour tells the class; 'disagreeing' test "
        "scenes show the same garments on backgrounds whose colour says nothing",
        "training": f"{len(data['train']):,} scenes of {settings['size']} pixels, {settings['epochs']} epochs, AdamW, "
        "one-cycle; the same seed, data order and budget with and without EGT",
        "EGT loss": ", ".join(f"{k} {v}" for k, v in result["loss"].items()),
        "thresholds": f"chosen on {len(data['calibration']):,} calibration scenes, tested on {len(data['agreeing']):,} more",
        "a training step with EGT": f"{result['step_time_ratio']:.3f} times the step without",
        "prediction with attention maps": f"{result['attention_time_ratio']:.3f} times prediction without",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }
    tested = " and ".join(f"{len(data[name]):,} scenes on {name} backgrounds" for name in CONDITIONS)
    command = f"exitlens demo --out {out.name} --seed {result['seed']}"
    made = Provenance(command, tested, str(result["seed"]), facts)
    speed = {f"batch size {n}": result["speed"][f"batch_{n}"] for n in (1, 64)}
    for n in (1, 64):
        speed[f"batch size {n}, half a point"] = result["speed"][f"batch_{n}"]["at_half_point"]
    images = {name: data[name] for name in CONDITIONS}
    write_report(out / "report.html", subjects, images, made, speed=speed, plain_accuracy=plain_accuracy, overwrite=True)
    chosen = torch.tensor(pick_images(subjects[0], data["agreeing"], 6))
    picked = data["agreeing"].subset(chosen)
    pages = {s.name: explain_batch(s.net, picked.inputs, s.policy) for s in reversed(subjects)}
    draw_contact_sheet(pages, picked.preprocess).save(out / "gallery.png", optimize=True)
