"""Rivals: static networks and a cascade, trained on a run's own data by its own recipe, and which of them to take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from exitlens.data.sets import SampleSet
from exitlens.data.sources import DataSource
from exitlens.delivery.benchmark import answer_at, time_calls
from exitlens.delivery.bundle import DAMAGES, find_bundle, load, save
from exitlens.delivery.report import can_delete
from exitlens.delivery.run_directory import load_calibrated, load_samples, read_network, read_source, record_source
from exitlens.errors import CalibrationError, DataError, ExitlensError, InputError, PolicyError
from exitlens.functional.calibration import run_calibration
from exitlens.functional.losses import EGTLoss
from exitlens.functional.routing import route
from exitlens.io import read_json, write_json
from exitlens.model.backbones.build import rebuild_backbone
from exitlens.model.cascade import cascade
from exitlens.model.cutting.placement import list_exit_candidates
from exitlens.model.network import ExitNet
from exitlens.model.timing import describe_machine, interleave
from exitlens.types import Calibration, Policy, TrainingSettings
from exitlens.types.comparisons import PLAIN, Comparison, Contender
from exitlens.types.inputs import draw_samples, split_rows
from exitlens.types.preprocessing import Preprocess
from exitlens.types.settings import SWAPPED, NetworkSettings, ReadSettings, read_record
from exitlens.types.tasks import are_same, choose_score, refuse_task
from exitlens.workflow.binding import certify_binding
from exitlens.workflow.collection import collect
from exitlens.workflow.inference import predict
from exitlens.workflow.training.fit import fit
from exitlens.workflow.training.record import SETTINGS
from exitlens.workflow.training.setup import build_network, load_training_sets

FOLDER, RESULT = "beside", "comparison.json"
CUT, HALF, IMAGES, CASCADE = "cut", "half", "images", "cascade"
OURS, USUAL = "exits", (PLAIN, CUT, HALF)
TIMED, ROUNDS, SECONDS = 256, 15, 5.0  # samples in a round of timing, the least rounds and about their seconds
TUNED = 64  # samples to tune on
AREA, BOUND = 0.2, 500  # of the input that maps show, and the samples that binding is measured on
Say = Callable[[str], None]


@dataclass(frozen=True)
class Rival:
    """A network to train beside a run's own: its name, in words, what it is made of, and its data."""

    name: str
    title: str
    network: NetworkSettings
    source: DataSource


def read_comparison(run: Path, net: ExitNet, policy: Policy) -> Comparison | None:
    """Return the comparison that was made of a run's network and policy, if one was and its file can be read."""
    for path in (folder / FOLDER / RESULT for folder in (run, run.parent)):
        with suppress(OSError, *DAMAGES):
            stored = read_record(Comparison, read_json(path))
            if (stored.network, stored.rule) == (net.identity(), policy.rule_hash()):
                return stored
    return None


def list_rivals(run: Path, names: Sequence[str], cost: float, say: Say) -> list[Rival]:
    """List what to train beside a run: ``plain``, ``cut``, ``half``, ``images``, or another backbone's name.

    The plain backbone has no early exits. It is ``cut`` where ``cost`` is spent, the policy's mean on its calibration data
    in units of the backbone, and at half of that. ``images`` are smaller by as much as makes the cost the same.
    """
    net, source = load(run)[0], read_source(run)[0]
    began, settings = read_network(run), _read_settings(run)[0]
    plain = replace(began, exits="0", end="", keep_final=not settings.freeze_backbone, placement="cost")
    title, rivals = f"{plain.backbone} backbone", list[Rival]()
    for name in names:
        if name == PLAIN:
            rivals.append(Rival(PLAIN, f"plain {title}", plain, source))
        elif name in (CUT, HALF):
            end = _find_cut(net, cost if name == CUT else cost / 2)
            if any(end == rival.network.end for rival in rivals):
                say(f"{name}: no other place than {end} is nearer, so it is left out")
            else:
                rivals.append(Rival(name, f"{title} cut after {end}", replace(plain, end=end, keep_final=False), source))
        elif name == IMAGES:
            if not isinstance(net.info.preprocess, Preprocess):
                raise InputError("rivals: only images can be smaller. Fix: leave images out.")
            side = max(8, 8 * round(net.info.preprocess.size[0] * min(cost, 1.0) ** 0.5 / 8))
            rivals.append(Rival(name, f"plain {title} on {side}x{side} pixels", plain, replace(source, size=side)))
        else:  # with weights of its own where the run began with weights
            other = replace(plain, backbone=name, init_weights=None, pretrained=plain.has_weights)
            rivals.append(Rival(name, f"{name} backbone", other, source))
    return rivals


def _find_cut(net: ExitNet, cost: float) -> str:
    places = list_exit_candidates(rebuild_backbone(net.info), net.info.example(next(net.parameters())), runs=0)
    return min(places, key=lambda place: abs(place.cost - cost)).name


def compare_rivals(
    run: Path,
    names: Sequence[str] = USUAL,
    *,
    batch_size: int = 32,
    teacher: ExitNet | None = None,
    progress: bool = False,
    say: Say = lambda line: None,
) -> Comparison:
    """Train a run's rivals by its own recipe (or go on training them), and test all side by side.

    Each rival is trained with the run's settings from the same start, without a consistency loss, and kept in
    ``RUN/beside/NAME``. Where the plain backbone and a cut one are trained, the two make a cascade as well, calibrated by
    the request of the run's policy, in ``RUN/beside/cascade``. Test samples are the run's own, and count by group if they
    have groups. If the run's network is tuned, so are the others; if it had a ``teacher``, they have the same.
    """
    run = find_bundle(run).parent
    net, policy = load_calibrated(run)
    refuse_task(net.info.task, "run: a comparison with rivals")
    if policy.calibration is None:
        raise PolicyError("policy: that of the run was not calibrated. Fix: run exitlens calibrate.")
    tests = load_samples(run, net, "test")
    if not len(tests):
        raise DataError(f"data: {run} has no test samples. Fix: train on data with a test split.")
    if (learned := _read_settings(run)[0].teacher) != ("" if teacher is None else teacher.fingerprint()):
        had = f"learned from network {learned}" if learned else "had no teacher"
        raise InputError(f"teacher: {run} {had}, and its rivals are trained alike. Fix: pass the same (--teacher), or none.")
    if teacher is not None and IMAGES in names:
        raise InputError("rivals: a teacher takes images of one size. Fix: leave images out.")
    contenders, titles = {OURS: (net, policy, tests)}, {OURS: "network with exits"}
    for rival in list_rivals(run, names, policy.calibration.cost, say):
        say(f"{rival.title}: training in {run / FOLDER / _name_folder(rival)}")
        trained, never = _train(run, rival, teacher, progress)
        data = load_samples(run, trained, "test")
        contenders[rival.name], titles[rival.name] = (_tune_alike(trained, net, data), never, data), rival.title
    if PLAIN in contenders and CUT in contenders:
        try:
            both = _tune_alike(cascade([contenders[CUT][0], contenders[PLAIN][0]]), net, tests)
            routed = _calibrate_alike(both, policy.calibration, load_samples(run, net, "calibration"))
            save(both, routed, run / FOLDER / CASCADE / "bundle", overwrite=True)
            contenders[CASCADE] = both, routed, tests
            titles[CASCADE] = "cascade of the cut and the plain backbone"
        except ExitlensError as error:
            say(f"no cascade: {error}")
    result = _measure(contenders, titles, batch_size, progress)
    write_json(run / FOLDER / RESULT, result.to_dict())
    return result


def _name_folder(rival: Rival) -> str:
    """Return the folder of a rival, which another policy's rivals of the same name do not share."""
    name = f"{rival.name}-{rival.network.end}" if rival.network.end else f"{rival.name}-{rival.source.size}"
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in name)


def _read_settings(run: Path) -> tuple[TrainingSettings, dict[str, Any]]:
    record = read_json(run / SETTINGS)
    return read_record(TrainingSettings, record["settings"]), record["loss"]


def _train(run: Path, rival: Rival, teacher: ExitNet | None, progress: bool) -> tuple[ExitNet, Policy]:
    settings, loss = _read_settings(run)
    kept = {name: loss[name] for name in ("label_smoothing", "class_weights")}
    skip_bad, out = read_source(run)[1], run / FOLDER / _name_folder(rival)
    train, validation = load_training_sets(rival.network, rival.source, ReadSettings(skip_bad=skip_bad))
    net = build_network(rival.network, train, seed=settings.seed)
    options = {field.name: getattr(settings, field.name) for field in fields(settings)} | {"teacher": teacher}
    with record_source(out, rival.source, resume=True, skip_bad=skip_bad, network=rival.network):
        fit(net, train, validation, loss=EGTLoss(weight=0.0, **kept), out_dir=out, resume=True, progress=progress, **options)
    never = Policy.never(1, score=choose_score(None, net.info.task))
    save(net, never, out / "bundle", overwrite=True)
    return net.eval(), never


def _tune_alike(net: ExitNet, ours: ExitNet, data: SampleSet) -> ExitNet:
    if ours.is_tuned:
        batch = data.first(TUNED).inputs
        settings: dict[str, Any] = {"precision": ours.tuning.precision, "backend": ours.tuning.backend}
        net.tune(batch, seconds=2.0, **settings)
    return net


def _calibrate_alike(net: ExitNet, record: Calibration, data: SampleSet) -> Policy:
    request = replace(record.request, temperatures=None, gate=False)
    timed: dict[str, Any] = {}
    if request.max_ms is not None and record.timing is not None:
        timed = {"cost": "time", "timed_batch": record.timing.batch_size}
    swapped = 0 if request.max_cue_drop is None else SWAPPED
    return run_calibration(collect(net, data, swapped=swapped, **timed), request)


def _measure(
    contenders: Mapping[str, tuple[ExitNet, Policy, SampleSet]], titles: Mapping[str, str], batch_size: int, progress: bool
) -> Comparison:
    right, answers, works, binding = dict[str, Tensor](), dict[str, Tensor](), {}, {}
    groups: Tensor | None = None
    for name, (net, policy, data) in contenders.items():
        trace = collect(net, data, progress=progress)
        rows, exits, groups = torch.arange(len(trace)), route(trace, policy), trace.groups
        answers[name], right[name] = trace.answers[rows, exits], trace.correct[rows, exits].double()
        drawn = data.subset(draw_samples(len(data), TIMED, seed=0)).inputs
        answer = partial(answer_at, net, 0) if net.num_exits == 1 else partial(predict, net, policy=policy)
        works[name] = time_calls(answer, split_rows(drawn, batch_size), net.tuning.keep_memory)
        fresh = replace(policy, calibration=None, binding=None)
        with suppress(CalibrationError):  # too few samples or groups to promise anything
            bound = certify_binding(net, data, fresh, area=AREA, samples=BOUND).binding if can_delete(net) else None
            binding[name] = None if bound is None else bound.seen
    times = interleave(works, rounds=ROUNDS, seconds=SECONDS)
    results = []
    for name in contenders:
        gain = tuple(100 * value for value in _compare_means(right[name] - right[OURS], groups, len(contenders) - 1))
        ratio = times.ratio(name, OURS)
        agreement = None
        if PLAIN in answers:
            agreement = are_same(answers[name], answers[PLAIN], contenders[OURS][0].info.task).double().mean().item()
        ms = times.median_ms(name, min(TIMED, len(right[name])))
        values = titles[name], right[name].mean().item(), gain, ms, (ratio.median, ratio.low, ratio.high)
        results.append(Contender(name, *values, agreement, binding.get(name)))
    net, policy, _ = contenders[OURS]
    count = None if groups is None else len(groups.unique())
    machine = describe_machine(torch.get_num_threads())
    return Comparison(tuple(results), len(right[OURS]), count, batch_size, machine, net.identity(), policy.rule_hash())


def _compare_means(values: Tensor, groups: Tensor | None, intervals: int) -> tuple[float, float, float]:  # (N,)
    """Return the mean of differences in [-1, 1] and its interval, of so many that hold together with 95 % (Bonferroni).

    Of groups, the sums of their deviations vary (cluster-robust variance), by Student's t with as many degrees less one.
    """
    mean = values.mean().item()
    numbers = torch.arange(len(values)) if groups is None else groups.unique(return_inverse=True)[1]
    count = int(numbers.max()) + 1
    if count < 2:
        return mean, -1.0, 1.0
    sums = torch.zeros(count, dtype=values.dtype).index_add(0, numbers, values - mean)
    error = math.sqrt(sums.square().sum().item() * count / (count - 1)) / len(values)
    half = error * float(stats.t.ppf(1 - 0.025 / max(intervals, 1), count - 1))
    return mean, max(-1.0, mean - half), min(1.0, mean + half)
