"""Rivals: static networks and a cascade, trained on a run's own data by its own recipe, and which of them to take."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from exitlens.data.sets import SampleSet
from exitlens.data.sources import DataSource
from exitlens.delivery.benchmark import answer_at, time_calls
from exitlens.delivery.bundle import save_trained
from exitlens.delivery.report import can_delete
from exitlens.delivery.run_directory import load_calibrated, load_samples, read_network, read_source
from exitlens.errors import CalibrationError, DataError, InputError, PolicyError
from exitlens.functional.calibration import run_calibration
from exitlens.functional.losses import EGTLoss
from exitlens.functional.routing import route
from exitlens.io import read_json, write_json
from exitlens.model.backbones.build import rebuild_backbone
from exitlens.model.cascade import cascade
from exitlens.model.cutting.placement import list_exit_candidates
from exitlens.model.network import ExitNet
from exitlens.model.timing import describe_machine, interleave
from exitlens.types import Policy, TrainingSettings
from exitlens.types.comparisons import PLAIN, Comparison, Contender
from exitlens.types.inputs import draw_samples, split_rows
from exitlens.types.preprocessing import Preprocess
from exitlens.types.settings import SWAPPED, NetworkSettings, ReadSettings, read_record
from exitlens.types.tasks import are_same
from exitlens.workflow.binding import certify_binding
from exitlens.workflow.collection import collect
from exitlens.workflow.inference import predict
from exitlens.workflow.training.fit import fit
from exitlens.workflow.training.record import SETTINGS
from exitlens.workflow.training.setup import build_network, load_training_sets

FOLDER, RESULT = "beside", "comparison.json"
CUT, HALF, IMAGES, CASCADE = "cut", "half", "images", "cascade"
USUAL = (PLAIN, CUT, HALF)
TIMED, ROUNDS, SECONDS = 256, 15, 5.0  # samples in a round of timing, the least rounds and about their seconds
AREA, BOUND = 0.2, 500  # of the input that maps show, and the samples that binding is measured on
NORMAL = 1.96
Say = Callable[[str], None]


@dataclass(frozen=True)
class Rival:
    """A network to train beside a run's own: its name, in words, what it is made of, and its data."""

    name: str
    title: str
    network: NetworkSettings
    source: DataSource


def read_comparison(run: Path, net: ExitNet, policy: Policy) -> Comparison | None:
    """Return the comparison that was made of a run's network and policy, if one was."""
    for folder in (run, run.parent):
        if (path := folder / FOLDER / RESULT).is_file():
            values = read_json(path)
            known = {field.name for field in fields(Comparison)}
            stored = read_record(Comparison, {name: value for name, value in values.items() if name in known})
            return stored if (stored.network, stored.rule) == (net.identity(), policy.rule_hash()) else None
    return None


def list_rivals(run: Path, names: Sequence[str]) -> list[Rival]:
    """List what to train beside a run: ``plain``, ``cut``, ``half``, ``images``, or another backbone's name.

    The plain backbone has no early exits. It is ``cut`` at the place whose cost is nearest to the mean cost of the run's
    policy, and at half of that. ``images`` are smaller by as much as makes the cost the same.
    """
    net, policy = load_calibrated(run)
    network, source = replace(read_network(run), exits="0", keep_final=True, placement="cost"), read_source(run)[0]
    if policy.calibration is None:
        raise PolicyError(f"policy: that of {run} was not calibrated. Fix: run exitlens calibrate --bundle {run}")
    cost, title = policy.calibration.cost, f"{network.backbone} backbone"
    rivals = []
    for name in names:
        if name == PLAIN:
            rivals.append(Rival(PLAIN, f"plain {title}", network, source))
        elif name in (CUT, HALF):
            end = _find_cut(net, cost if name == CUT else cost / 2)
            if all(end != rival.network.end for rival in rivals):
                rivals.append(Rival(name, f"{title} cut after {end}", replace(network, end=end, keep_final=False), source))
        elif name == IMAGES:
            if not isinstance(net.info.preprocess, Preprocess):
                raise InputError("rivals: only images can be smaller. Fix: leave images out.")
            side = max(8, 8 * round(net.info.preprocess.size[0] * min(cost, 1.0) ** 0.5 / 8))
            rivals.append(Rival(name, f"plain {title} on {side}x{side} pixels", network, replace(source, size=side)))
        else:
            rivals.append(Rival(name, f"{name} backbone", replace(network, backbone=name, init_weights=None), source))
    return rivals


def _find_cut(net: ExitNet, cost: float) -> str:
    places = list_exit_candidates(rebuild_backbone(net.info), net.info.example(next(net.parameters())), runs=0)
    return min(places, key=lambda place: abs(place.cost - cost)).name


def compare_rivals(
    run: Path, names: Sequence[str] = USUAL, *, batch_size: int = 32, progress: bool = False, say: Say = lambda line: None
) -> Comparison:
    """Train a run's rivals by its own recipe (or go on training them), and test all side by side.

    Each rival is trained with the run's settings from the same start, without a consistency loss, and kept in
    ``RUN/beside/NAME``. Where the plain backbone and a cut one are trained, the two make a cascade as well, calibrated by
    the request of the run's policy. Test samples are the run's own, and count by group if they have groups.
    """
    net, policy = load_calibrated(run)
    tests = load_samples(run, net, "test")
    if not len(tests):
        raise DataError(f"data: {run} has no test samples. Fix: train on data with a test split.")
    trained, sets = dict[str, ExitNet](), dict[str, SampleSet]()
    rivals = list_rivals(run, names)
    for rival in rivals:
        say(f"{rival.title}: training in {run / FOLDER / _name_folder(rival)}")
        trained[rival.name] = _train(run, rival, progress)
        sets[rival.name] = load_samples(run, trained[rival.name], "test")
    contenders = {"exits": (net, policy, tests)}
    contenders |= {name: (each, Policy.never(1), sets[name]) for name, each in trained.items()}
    titles = {"exits": "network with exits"} | {rival.name: rival.title for rival in rivals}
    if PLAIN in trained and CUT in trained:
        both = cascade([trained[CUT], trained[PLAIN]])
        with suppress(CalibrationError):  # the two may not keep the limits that the run's policy keeps
            contenders[CASCADE] = (both, _calibrate_alike(both, policy, load_samples(run, net, "calibration")), tests)
            titles[CASCADE] = "cascade of the cut and the plain backbone"
    result = _measure(contenders, titles, batch_size, progress)
    write_json(run / FOLDER / RESULT, result.to_dict())
    return result


def _name_folder(rival: Rival) -> str:
    """Return the folder of a rival, which another policy's rivals of the same name do not share."""
    name = f"{rival.name}-{rival.network.end}" if rival.network.end else f"{rival.name}-{rival.source.size}"
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in name)


def _train(run: Path, rival: Rival, progress: bool) -> ExitNet:
    record = json.loads((run / SETTINGS).read_text())
    settings = read_record(TrainingSettings, record["settings"])
    kept = {name: record["loss"][name] for name in ("label_smoothing", "class_weights")}
    reading = ReadSettings(skip_bad=read_source(run)[1])
    train, validation = load_training_sets(rival.network, rival.source, reading)
    net, out = build_network(rival.network, train, seed=settings.seed), run / FOLDER / _name_folder(rival)
    options = {field.name: getattr(settings, field.name) for field in fields(settings)}
    fit(net, train, validation, loss=EGTLoss(weight=0.0, **kept), out_dir=out, resume=True, progress=progress, **options)
    save_trained(net, out / "bundle", overwrite=True)
    return net.eval()


def _calibrate_alike(net: ExitNet, policy: Policy, data: SampleSet) -> Policy:
    assert policy.calibration is not None
    request = replace(policy.calibration.request, temperatures=None, gate=False)
    cost, swapped = "macs" if request.max_ms is None else "time", 0 if request.max_cue_drop is None else SWAPPED
    return run_calibration(collect(net, data, cost=cost, swapped=swapped), request)  # type: ignore[arg-type]


def _measure(
    contenders: Mapping[str, tuple[ExitNet, Policy, SampleSet]], titles: Mapping[str, str], batch_size: int, progress: bool
) -> Comparison:
    right, answers, works, binding = dict[str, Tensor](), dict[str, Tensor](), {}, {}
    groups: Tensor | None = None
    for name, (net, policy, data) in contenders.items():
        trace = collect(net, data, progress=progress)
        exits = route(trace, policy)
        answers[name] = trace.answers[torch.arange(len(trace)), exits]
        right[name] = trace.correct[torch.arange(len(trace)), exits].double()
        groups = trace.groups
        drawn = data.subset(draw_samples(len(data), TIMED, seed=0)).inputs
        answer = partial(answer_at, net, 0) if net.num_exits == 1 else partial(predict, net, policy=policy)
        works[name] = time_calls(answer, split_rows(drawn, batch_size), net.tuning.keep_memory)
        if can_delete(net):
            fresh = replace(policy, calibration=None, binding=None)
            bound = certify_binding(net, data, fresh, area=AREA, samples=min(BOUND, len(data))).binding
            binding[name] = None if bound is None else bound.seen
    times, first = interleave(works, rounds=ROUNDS, seconds=SECONDS), next(iter(contenders))
    net, policy, data = contenders[first]
    rows = []
    for name in contenders:
        gain = tuple(100 * value for value in _compare_means(right[name] - right[first], groups))
        ratio = times.ratio(name, first)
        agreement = (
            are_same(answers[name], answers[PLAIN], net.info.task).double().mean().item() if PLAIN in answers else None
        )
        ms = times.median_ms(name, min(TIMED, len(data)))
        values = titles[name], right[name].mean().item(), gain, ms, (ratio.median, ratio.low, ratio.high)
        rows.append(Contender(name, *values, agreement, binding.get(name)))
    count = None if groups is None else len(groups.unique())
    machine = describe_machine(torch.get_num_threads())
    return Comparison(tuple(rows), len(right[first]), count, batch_size, machine, net.identity(), policy.rule_hash())


def _compare_means(values: Tensor, groups: Tensor | None) -> tuple[float, float, float]:  # (N,)
    """Return the mean and its 95 % interval; of groups, the sums of their deviations vary (cluster-robust variance)."""
    mean = values.mean()
    numbers = torch.arange(len(values)) if groups is None else groups.unique(return_inverse=True)[1]
    count = int(numbers.max()) + 1
    sums = torch.zeros(count, dtype=values.dtype).index_add(0, numbers, values - mean)
    error = math.sqrt(sums.square().sum().item() * count / max(count - 1, 1)) / len(values)
    return mean.item(), mean.item() - NORMAL * error, mean.item() + NORMAL * error
