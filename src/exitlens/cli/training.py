"""Verbs that make a network with exits and a policy, and judge both: fit, calibrate, evaluate, report."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

import exitlens as xl
from exitlens.cli.options import (
    Bundle,
    Compare,
    Data,
    Json,
    OwnBundle,
    PolicyName,
    as_options,
    list_bad,
    name_exits,
    of_data,
    of_more,
    of_swaps,
    of_training,
    show,
    takes,
    tell,
    verbs,
    wait,
)
from exitlens.launch import read_rank
from exitlens.types.settings import (
    NEED_LABELS,
    RISK_LIMITS,
    SWAPPED,
    CalibrationRequest,
    NetworkSettings,
    ReadSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    from torch import Tensor

    from exitlens.data.splits import Split
    from exitlens.ranks import DistributedContext
    from exitlens.trackers import TrainingCallback

READING = "columns group_by root skip_bad workers cache"
NETWORK = {
    "Network": "backbone exits end placement groups head neck_share keep_final pretrained init_weights normalise "
    "strict_weights",
}
TRAINING = {
    "Training": "epochs batch_size learning_rate freeze_backbone rely_on seed",
    "More about training": (
        "head_learning_rate layer_decay warm_up batch_norm cache_features augment balanced patience monitor accumulate "
        "clip_norm ema share_cores"
    ),
}
Tracker = Literal["mlflow", "wandb", "tensorboard"]
TRACE = {"Data": "compact trace_dir cost timed_batch swapped"}
OFFERED = " ".join((*RISK_LIMITS, "max_missed_area"))
LIMITS = {"Limits": f"{OFFERED} max_cost max_ms percentile delta equal_groups folds gate score"}


@verbs.command(
    epilog="Example: `exitlens fit --data DIR --backbone torchvision:resnet18 --exits layer1,layer2,layer3 --out runs/x`"
)
@takes(ReadSettings, {"Data": READING})
@takes(NetworkSettings, NETWORK)
@takes(TrainingSettings, TRAINING)
def fit(
    data: Data,
    out: Annotated[Path, Option(help="New run directory: checkpoints, log and bundle.")],
    make_reading: Callable[..., ReadSettings],
    make_network: Callable[..., NetworkSettings],
    make_training: Callable[..., TrainingSettings],
    resume: Annotated[bool, Option("--resume", help="Continue a stopped run; --epochs may be more than before.")] = False,
    tracker: Annotated[
        Tracker | None,
        Option(help="Where to log training, too: `mlflow`, `wandb` or `tensorboard` (docs/guides/trackers.md)."),
    ] = None,
    json_: Json = False,
    split_by: Annotated[str, of_data(help="A column of the data that says which split each sample is in.")] = "",
    task: Annotated[
        str,
        of_data(
            help="`multilabel`: a sample can have several labels, a;b (lists and columns of 0 and 1 imply it); "
            "`segmentation`: each pixel has a class (folders with images and masks imply it); `regression`: labels are "
            "numbers; `embedding`: exits learn the vectors of a trained encoder of texts, without labels."
        ),
    ] = "",
    size: Annotated[
        int,
        of_data(
            help="Side of an image in pixels (default: 64; for large networks 128, or the size they need), length of a text "
            "in tokens (64), of a series in steps, or side of a volume in voxels (default: as in the data).",
            show_default=False,
        ),
    ] = 0,
    mel: Annotated[int, of_data(min=0, help="Number of mel bands for sounds, such as 64; 0 trains on the waveform.")] = 0,
    recipe: Annotated[
        str, of_training(help="Learning rates and the like: `scratch`, or `pretrained` (default where weights are given).")
    ] = "",
    egt_weight: Annotated[
        float | None, of_training(help="Weight of the loss that makes maps agree (0: off; default: 1 if exits have maps).")
    ] = None,
    egt_target: Annotated[
        str | None,
        of_more(
            help="The map that early maps should agree with: `attention` (the final exit's), `mean`, `relevance` or "
            "`product` (default: chosen for the network)."
        ),
    ] = None,
    egt_reach: Annotated[
        str | None, of_more(help="Which weights that loss trains: only the `heads` (default), or the whole `network`.")
    ] = None,
    egt_every: Annotated[
        int | None,
        of_more(help="Apply that loss in one of this many steps (default: 2 for relevance and product of images, else 1)."),
    ] = None,
    teacher: Annotated[
        Path | None, of_training(help="A run or bundle of the same classes, whose answers every exit learns, too.")
    ] = None,
    ignore: Annotated[
        str, of_training(help="What must not matter: `background` (outside the masks of the data) comes from other samples.")
    ] = "",
    ignore_mask: Annotated[
        Path | None, of_training(help="A place that must not matter: a picture, white there, or a .npy file of 0 and 1.")
    ] = None,
    ignore_channels: Annotated[str, of_training(help="Channels, or features of vectors, that must not matter: a,b.")] = "",
    ignore_words: Annotated[str, of_training(help="Words of texts that must not matter: a,b.")] = "",
    label_smoothing: Annotated[float, of_more(help="Share of every label that is spread over all classes.")] = 0.0,
    class_weights: Annotated[str, of_more(help="`balanced` (rare classes count more), or one a class: 1,2.5,1.")] = "",
) -> None:
    """Train a network with exits on your images, texts, series, volumes or vectors."""
    from exitlens.data.sources import open_source
    from exitlens.delivery.bundle import save_trained
    from exitlens.delivery.run_directory import read_recorded_exits, record_source, remembers_skipping
    from exitlens.model.heads import have_maps
    from exitlens.ranks import find_ranks
    from exitlens.workflow.training.ignoring import read_ignored
    from exitlens.workflow.training.record import is_restarted
    from exitlens.workflow.training.setup import build_network, choose_size, load_training_sets

    def say(line: str) -> None:  # to people, in the first of several processes
        if read_rank() == 0:
            print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr if json_ else sys.stdout)

    callbacks = [_make_tracker(tracker)] if tracker else []
    network = make_network()
    parts = [name.strip() for name in f"{ignore_channels},{ignore_words}".split(",") if name.strip()]
    ignored = read_ignored([read_ignored(part) for part in (ignore, ignore_mask, tuple(parts)) if part])
    settings = make_training(ignore=ignored, recipe=recipe or ("pretrained" if network.has_weights else "scratch"))
    reading, ranks = make_reading(), find_ranks()
    resume = ranks.share(lambda: resume or is_restarted(out))
    if resume and not reading.skip_bad:  # a resumed run leaves out the same samples as before
        reading = replace(reading, skip_bad=ranks.share(lambda: remembers_skipping(out)))
    try:
        with wait(json_, "reading the data") as bar, ranks.together():
            source = open_source(
                data,
                root=reading.root,
                size=size or choose_size(network.backbone, network.has_weights),
                seed=settings.seed,
                columns=reading.columns,
                group_by=reading.group_by,
                split_by=split_by,
                mel=mel,
                task=task,
            )
            train, validation = load_training_sets(network, source, reading, say, bar if ranks.is_first else None)
        if resume and network.placement == "time":  # measured times vary, and with them the places of exits
            network = ranks.share(lambda: read_recorded_exits(out, network))
        with wait(json_, "building the network"):
            net = _build_alike(ranks, partial(build_network, train=train, seed=settings.seed, say=say), network)
        if egt_weight is None and not have_maps(net.heads):
            say("exits: they have no maps, so classification alone is trained; --groups names what maps could lie on")
            egt_weight = 0.0
        weights: Any = class_weights or None
        if class_weights not in ("", "balanced"):
            weights = [part.strip() for part in class_weights.split(",")]
        given: dict[str, Any] = {"target": egt_target, "reach": egt_reach, "every": egt_every, "class_weights": weights}
        weight = xl.EGTLoss().weight if egt_weight is None else egt_weight
        loss = xl.EGTLoss(weight, label_smoothing=label_smoothing, **given)
        given = {
            "teacher": None if teacher is None else xl.load(teacher)[0],
            "out_dir": out,
            "resume": resume,
            "workers": reading.workers,
            "ranks": ranks,
            "callbacks": callbacks,
        }
        record = record_source(out, source, resume=resume, skip_bad=reading.skip_bad, network=network, ranks=ranks)
        with record, redirect_stdout(sys.stderr if json_ else sys.stdout):  # MLflow prints where its run is
            result = xl.fit(net, train, validation, loss=loss, progress=not json_, **(vars(settings) | given))
    except KeyboardInterrupt as stop:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        if out.exists():
            place = getattr(stop, "__notes__", ["before the first epoch"])[0]
            stop.__notes__ = [place, f"go on with: exitlens {shlex.join(words)} --resume"]
        raise
    dropped = ranks.share(lambda: save_trained(net, out / "bundle", overwrite=resume))
    if dropped:
        names = ", ".join(dropped)
        say(f"policies left out, which were chosen for the network as it was before: {names}; calibrate again")
    _show_result(net, result, out, list_bad(train, validation), json_)


def _make_tracker(name: Tracker) -> TrainingCallback:
    from exitlens import trackers

    kinds: dict[Tracker, Callable[[], TrainingCallback]] = {
        "mlflow": trackers.MLflowTracker,
        "wandb": trackers.WandbTracker,
        "tensorboard": trackers.TensorBoardTracker,
    }
    return kinds[name]()


def _show_result(net: xl.ExitNet, result: xl.FitResult, out: Path, bad: list[str], json_: bool) -> None:
    last = result.history[result.kept_epoch - 1]
    values = {"out": str(out), "epochs": len(result.history), "epoch": result.kept_epoch}
    values |= {name: last[name] for name in ("accuracy", "cc", "f1", "miou", "r2", "cosine") if name in last}
    values |= {"seconds": result.seconds, "bad": bad}
    columns = {
        "exit": name_exits(net),
        "validation accuracy %": [f"{100 * value:.1f}" for value in last.get("accuracy", ())],
        "validation R²": [f"{value:.3f}" for value in last.get("r2", ())],
        "cosine with the final vector": [f"{value:.3f}" for value in last.get("cosine", ())],
        "micro-F1": [f"{value:.3f}" for value in last.get("f1", ())],
        "mean IoU": [f"{value:.3f}" for value in last.get("miou", ())],
        "attention CC with final (evaluate: by chance)": [*(f"{value:.2f}" for value in last["cc"]), ""],
    }
    filled = {name: cells for name, cells in columns.items() if cells}
    rows = [list(filled), *map(list, zip(*filled.values(), strict=True))]
    title = f"{out}: the weights of epoch {result.kept_epoch} of {len(result.history)}"
    limits = {"miou": "--max-miou-drop", "r2": "--max-error-increase", "cosine": "--max-distance"}
    limit = next((limit for name, limit in limits.items() if name in last), "--max-accuracy-drop")
    following = f"next: exitlens calibrate --bundle {shlex.quote(str(out))} {limit} 0.02 --folds 5"
    show(json_, values, title, rows, [following])


def _build_alike(
    ranks: DistributedContext, build: Callable[[NetworkSettings], xl.ExitNet], network: NetworkSettings
) -> xl.ExitNet:
    """Build the network, with exits at the same places in all processes: measured by each, they could differ."""
    if network.placement == "time" and ranks.size > 1:
        network = ranks.share(lambda: replace(network, exits=",".join(build(network).info.at), placement="cost"))
    with ranks.together(), warnings.catch_warnings():
        warnings.simplefilter("ignore", xl.errors.WeightsWarning)  # build_network tells which weights did not fit
        return build(network)


@dataclass(frozen=True)
class CollectOptions:
    """Options of collecting a trace.

    Attributes:
        compact: Keep only the largest logits and what the others amount to (default: from 100 classes and 2^26 logits on).
        trace_dir: Directory to keep the trace in, for `Trace.load` (default: it is not kept).
        cost: Measure of cost: macs (multiply-accumulates), or time, which is measured now: let nothing else run meanwhile.
        timed_batch: With --cost time: samples in the batch that is timed, 1 for single ones (default: 64).
        swapped: Samples that also take their background from others, for max_cue_drop (calibrating with it takes 2000).
    """

    compact: bool | None = None
    trace_dir: Path | None = None
    cost: Literal["macs", "time"] = "macs"
    timed_batch: int | None = None
    swapped: int = 0


@verbs.command(epilog="Example: `exitlens calibrate --bundle runs/x --max-accuracy-drop 0.01`")
@takes(CalibrationRequest, LIMITS)
@takes(ReadSettings, {"Data": f"data {READING}"})
@takes(CollectOptions, TRACE)
def calibrate(
    bundle: OwnBundle,
    make_request: Callable[..., CalibrationRequest],
    make_reading: Callable[..., ReadSettings],
    make_trace_options: Callable[..., CollectOptions],
    json_: Json = False,
    unlabelled: Annotated[str, of_data(help="Samples as for predict, for limits that need no labels.")] = "",
    name: Annotated[str, Option(help="Store it under this name beside the others (default: as the bundle's own).")] = "",
) -> None:
    """Choose exit thresholds on the run's calibration split, and store them in the bundle.

    The limits hold on these samples, with --folds on held-out ones, too; --delta brings a certificate
    (docs/concepts/guarantees.md).
    """
    from exitlens.delivery.bundle import replace_policy
    from exitlens.delivery.run_directory import keep_certificate_requests
    from exitlens.functional.calibration import run_calibration
    from exitlens.types.policies import check_name

    request = make_request()  # refuses what makes no sense before anything is collected
    reading, trace_options = make_reading(), make_trace_options()
    if name:
        check_name(name, "name")
    net, samples, trace = _collect_for(request, bundle, reading, trace_options, unlabelled, json_)
    if trace is None:
        return
    with (
        keep_certificate_requests(bundle, trace),
        wait(json_, "choosing thresholds"),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always", xl.errors.DataWarning)
        policy = run_calibration(trace, request)  # xl.calibrate would build the request again
        replace_policy(bundle, policy, name)
    warned, options = [str(warning.message) for warning in caught], f"--bundle {shlex.quote(str(bundle))}"
    options += f" --policy {name}" if name else ""
    _show_policy(net, trace, policy, warned, options, list_bad(samples), json_)


def _collect_for(
    request: CalibrationRequest, bundle: Path, reading: ReadSettings, options: CollectOptions, unlabelled: str, json_: bool
) -> tuple[xl.ExitNet, Any, xl.Trace | None]:
    """Return the network, the run's calibration split or the samples named, and their trace in the first process."""
    from exitlens.delivery.run_directory import load_probes

    if request.max_ms is not None and options.cost != "time":
        raise xl.errors.InputError("max_ms: it is about measured time. Fix: pass --cost time, too.")
    if request.max_cue_drop is not None:
        options = replace(options, swapped=options.swapped or SWAPPED)
    if unlabelled and any(getattr(request, limit) is not None for limit in NEED_LABELS):
        raise xl.errors.InputError(
            "unlabelled: accuracy and errors need labels. Fix: pass --data, or a limit that needs none, such as "
            "--max-disagreement, --max-divergence or --max-deviation."
        )
    with wait(json_, "loading the network and listing the data"):
        net, _ = xl.load(bundle)
        samples = _open_samples(net, bundle, "calibration", reading, unlabelled)
        probes = None if request.max_rank_change is None else load_probes(bundle, net)
    return net, samples, _collect(net, samples, options, json_, probes)


@verbs.command(epilog="Example: `exitlens plan --max-accuracy-drop 0.01 --delta 0.1`")
@takes(CalibrationRequest, {"Limits": f"{OFFERED} max_ms percentile equal_groups gate score"})
@takes(ReadSettings, {"Data": f"data {READING}"})
@takes(CollectOptions, TRACE)
def plan(
    make_request: Callable[..., CalibrationRequest],
    make_reading: Callable[..., ReadSettings],
    make_trace_options: Callable[..., CollectOptions],
    bundle: Annotated[Path | None, Option(help="Run directory or bundle: plan from its calibration split.")] = None,
    delta: Annotated[float, Option(rich_help_panel="Limits", help="Chance that the certificate is wrong.")] = 0.1,
    draws: Annotated[int, Option(min=1, help="Calibrations to try at each number of samples.")] = 40,
    out: Annotated[Path | None, Option(help="Picture of what each number would save (.svg, .png, .pdf).")] = None,
    json_: Json = False,
    unlabelled: Annotated[str, of_data(help="Samples as for predict, for limits that need no labels.")] = "",
) -> None:
    """Tell how many calibration samples (or groups) a certificate takes, and what more of them would save.

    Without a bundle, it tells so by what early answers may lose; with one, by calibrating on samples drawn from its
    calibration split, which stays unspent.
    """
    from exitlens.delivery.plans import check_picture, draw_plan, tabulate_plan

    if out is not None:
        check_picture(out)
    request, reading, trace, samples = make_request(delta=delta), make_reading(), None, None
    if bundle is None and (reading.data or unlabelled or out):
        raise xl.errors.InputError("data, unlabelled, out: they go with a network. Fix: pass --bundle, or leave them out.")
    if bundle is not None:
        _, samples, trace = _collect_for(request, bundle, reading, make_trace_options(), unlabelled, json_)
        if trace is None:
            return
    planned = xl.plan_samples(request, trace, draws=draws, progress=not json_)
    if out is not None:
        draw_plan(planned, out)
    show(json_, planned.to_dict() | {"bad": list_bad(samples)}, str(planned), tabulate_plan(planned))


def _show_policy(
    net: xl.ExitNet, trace: xl.Trace, policy: xl.Policy, warned: list[str], options: str, bad: list[str], json_: bool
) -> None:
    with wait(json_, "evaluating the policy"):
        result, certificate = xl.evaluate(trace, policy), policy.certificate()
    rows = [["exit", "threshold", "temperature", "share %"]]
    thresholds = [*(f"{t:.4f}".replace("inf", "never") for t in policy.thresholds), "answers the rest"]
    for *cells, temperature, share in zip(name_exits(net), thresholds, policy.temperatures, result.exit_shares, strict=True):
        rows.append([*cells, f"{temperature:.3f}", f"{100 * share:.1f}"])
    groups = "" if trace.groups is None else f" in {trace.num_groups} groups"
    timed = "" if trace.timing is None else f", {result.ms:.3g} ms on average of {trace.timing.list_ms()}"
    notes = [_explain_gate(policy)] if policy.gate is not None else []
    notes += [_explain_temperatures(policy), _explain_exit_0(result, policy), as_options(certificate)]
    notes += [f"warning: {as_options(note)}" for note in warned]
    notes.append(f"next: exitlens evaluate {options} (or predict --data DATA, explain --image FILE, with the same options)")
    title = f"on {len(trace)} calibration samples{groups}: cost {result.cost:.3f}{timed}"
    show(json_, policy.to_dict() | {"certificate": certificate, "warnings": warned, "bad": bad}, title, rows, notes)


def _explain_gate(policy: xl.Policy) -> str:
    assert policy.gate is not None
    levels = ", ".join(f"{level:.4f}".replace("inf", "never") for level in policy.gate.confidences)
    return f"gate: thresholds are on its trust; without it as many would leave at confidences of {levels} or more"


def _explain_temperatures(policy: xl.Policy) -> str:
    if set(policy.temperatures) == {1.0}:
        return ""
    error = policy.calibration.calibration_error if policy.calibration else None
    left = "" if error is None else f"; calibration error of the routed answers on these samples: {100 * error:.1f} %"
    return f"temperature: what an exit's logits are divided by, so that confidence fits accuracy (1: no change){left}"


def _explain_exit_0(report: xl.Report, policy: xl.Policy) -> str:
    """Return why the first exit answers everything, if no budget of cost or time is the reason."""
    limits = policy.calibration.limits if policy.calibration else {}
    if report.exit_shares[0] < 1 or limits.keys() & {"max_cost", "max_ms"}:
        return ""
    known = [row.accuracy for row in report.exits if row.accuracy is not None]
    shown = f" ({100 * known[0]:.1f} % are right at exit 0, {100 * known[-1]:.1f} % at the final exit)" if known else ""
    return (
        f"exit 0 answers everything: on these samples no later exit is better by more than the limits allow{shown}; longer "
        "training (fit --epochs) or more data may change that"
    )


@verbs.command(epilog="Example: `exitlens evaluate --bundle runs/x`")
@takes(ReadSettings, {"Data": f"data {READING}"})
@takes(CollectOptions, TRACE)
def evaluate(
    bundle: Bundle,
    make_reading: Callable[..., ReadSettings],
    make_trace_options: Callable[..., CollectOptions],
    json_: Json = False,
    name: PolicyName = "",
) -> None:
    """Test the policy on the run's test split: accuracy, cost and consistency of every exit."""
    from exitlens.delivery.rivals import read_comparison
    from exitlens.delivery.run_directory import load_calibrated, load_probes, load_samples
    from exitlens.types.tasks import count_answers

    net, policy = load_calibrated(bundle, name)
    reading, limits = make_reading(), policy.calibration.limits if policy.calibration else {}
    comparison = None if reading.data else read_comparison(bundle, net, policy)  # of the run's own test samples
    with wait(json_, "listing the data"):
        samples = load_samples(bundle, net, "test", reading)
        probes = load_probes(bundle, net) if "max_rank_change" in limits else None
    if (trace := _collect(net, samples, make_trace_options(), json_, probes)) is None:
        return
    result = xl.evaluate(trace, policy)
    rows = [["class", "samples", "accuracy %" if result.labels is None else "found %", "final exit's %"]]
    for row in result.list_worst_classes():
        name = net.info.classes[row.label] if net.info.classes else str(row.label)
        rows.append([name, str(row.samples), f"{100 * row.accuracy:.1f}", f"{100 * row.final_accuracy:.1f}"])
    few = len(result.classes) >= len(rows)
    title = f"the {len(rows) - 1} worst of {len(result.classes)} classes" if few else "classes, the worst first"
    if result.pixels is not None:
        rows, title = result.pixels.tabulate(), f"{len(net.info.classes)} classes of pixels"
    if result.answers is not None:
        rows, title = result.answers.tabulate(), count_answers(net.info.task, net.info.num_classes)
    values = result.to_dict() | {"class_names": net.info.classes, "bad": list_bad(samples)}
    values |= {"comparison": comparison.to_dict() | {"advice": comparison.advice}} if comparison else {}
    show(json_, values, f"{result}\n{title}", rows, [comparison.advice] if comparison else ())


@verbs.command(epilog="Example: `exitlens cues --bundle runs/x --out cues.html`")
@takes(ReadSettings, {"Data": f"data {READING}"})
def cues(
    bundle: Bundle,
    make_reading: Callable[..., ReadSettings],
    samples: Annotated[int, of_swaps(min=1, help="Samples to use, at most; a quarter chooses what the others test.")] = 1000,
    donors: Annotated[int, of_swaps(min=1, help="Donors for each sample.")] = 2,
    least: Annotated[float, of_swaps(help="Share of answers, beyond the final exit's, that a cue carries at least.")] = 0.05,
    delta: Annotated[float, of_swaps(help="Chance of listing anything that carries less.")] = 0.05,
    seed: Annotated[int, of_swaps(help="Seed of the draws of samples and donors.")] = 0,
    out: Annotated[Path | None, Option(help="A new HTML file with the cues, and samples that they turned.")] = None,
    json_: Json = False,
) -> None:
    """Find places, colours, channels or words that early exits hang on more than the final exit (on validation data)."""
    from exitlens.delivery.cues import write_cues
    from exitlens.delivery.run_directory import load_samples

    if out is not None and out.exists():
        raise xl.errors.OutputExistsError(f"out: {out} exists. Fix: choose another file.")
    with wait(json_, "loading the network and listing the data"):
        net, _ = xl.load(bundle)
        held = load_samples(bundle, net, "validation", make_reading())
    chosen: dict[str, Any] = {"samples": samples, "donors": donors, "least": least, "delta": delta, "seed": seed}
    result = xl.find_cues(net, held, progress=not json_, **chosen)
    if out is not None:
        write_cues(result, net, out)
    title = f"{len(result.cues)} found; {result.describe()}" + ("" if out is None else f": {out}")
    show(json_, {**result.to_dict(), "bad": list_bad(held)}, title, result.tabulate())


@verbs.command(epilog="Example: `exitlens cascade --member small=runs/small --member large=runs/large --out both`")
def cascade(
    member: Annotated[list[str], Option(help="NAME=BUNDLE, a bundle or run directory; two or more, cheapest first.")],
    out: Annotated[Path, Option(help="New directory, a bundle.")],
    json_: Json = False,
) -> None:
    """Make one network of several: each answers what the one before is not sure of. Calibrate it next."""
    pairs = [part.partition("=")[::2] for part in member]
    if len(dict(pairs)) < len(pairs) or not all(name and path for name, path in pairs):
        raise xl.errors.InputError(f"member: expected NAME=BUNDLE, each name once, got {member}. Fix: --member a=runs/a")
    with wait(json_, "loading the members"):
        nets = {name: xl.load(path)[0] for name, path in pairs}
        net = xl.cascade(nets)
        xl.save(net, None, out)
    rows = [["exit", "after", "cost"]]
    for name, after, cost in zip(name_exits(net), (*net.info.at, pairs[-1][0]), net.cost.tolist(), strict=True):
        rows.append([name, after, f"{cost:.3f}"])
    facts = {"out": str(out), "exits": [*net.info.at, pairs[-1][0]], "cost": net.cost.tolist()}
    show(json_, facts, f"{out}: {len(pairs)} networks, {net.num_exits} exits", rows)


@verbs.command(epilog="Example: `exitlens compare runs/x --rivals plain,cut,timm:mobilenetv3_small_050`")
def compare(
    run: Annotated[Path, Argument(help="Run directory of `exitlens fit`, with a policy.")],
    rivals: Annotated[
        str,
        Option(
            help="What to train beside it: `plain` (the backbone without early exits), `cut` (ends at the policy's mean "
            "cost), `half` (at half of that), `images` (smaller ones), or backbones by name."
        ),
    ] = "plain,cut,half",
    batch_size: Annotated[int, Option(min=1, help="Samples in a batch that is timed.")] = 32,
    teacher: Annotated[Path | None, Option(help="The run or bundle that the run learned from, if any.")] = None,
    json_: Json = False,
) -> None:
    """Train smaller networks on the run's data by its own recipe, test all side by side, and say which to take.

    They are kept in RUN/beside; a stopped comparison goes on where it was.
    """
    from exitlens.delivery.rivals import compare_rivals

    names = [name.strip() for name in rivals.split(",") if name.strip()]
    if not names:
        raise xl.errors.InputError("rivals: expected one or more, got none. Fix: pass plain,cut,half.")
    say = (lambda line: print(line, file=sys.stderr)) if json_ else tell
    taught = None if teacher is None else xl.load(teacher)[0]
    compared = compare_rivals(run, names, batch_size=batch_size, teacher=taught, progress=not json_, say=say)
    show(json_, compared.to_dict() | {"advice": compared.advice}, compared.advice, compared.tabulate())


@verbs.command(epilog="Example: `exitlens certify --bundle runs/x --area 0.2`")
@takes(ReadSettings, {"Data": f"data {READING}"})
def certify(
    bundle: OwnBundle,
    make_reading: Callable[..., ReadSettings],
    area: Annotated[float, of_swaps(help="Share of an input's locations that a map shows.")] = 0.2,
    delta: Annotated[float, of_swaps(help="Chance that the promise is wrong.")] = 0.1,
    samples: Annotated[int, of_swaps(min=1, help="Samples to use, at most.")] = 2000,
    json_: Json = False,
    unlabelled: Annotated[str, of_data(help="Samples as for predict: no labels are needed.")] = "",
    name: PolicyName = "",
) -> None:
    """Promise how many answers rest on what their maps show, on the run's test split, and store it with the policy."""
    from exitlens.delivery.bundle import replace_policy
    from exitlens.delivery.run_directory import load_calibrated

    net, policy = load_calibrated(bundle, name)
    with wait(json_, "listing the data"):
        held = _open_samples(net, bundle, "test", make_reading(), unlabelled)
    policy = xl.certify_binding(net, held, policy, area=area, delta=delta, samples=samples, progress=not json_)
    replace_policy(bundle, policy, name)
    binding = policy.binding
    assert binding is not None
    rows = [["exit", "samples", "answers that stayed %"]]
    for exit_, (count, seen) in zip(name_exits(net), binding.by_exit, strict=True):
        rows.append([exit_, f"{count:,}", "-" if seen is None else f"{100 * seen:.1f}"])
    show(json_, asdict(binding) | {"bad": list_bad(held)}, str(binding), rows)


def _open_samples(net: xl.ExitNet, bundle: Path, split: Split, reading: ReadSettings, unlabelled: str) -> Any:
    """Return the labelled samples of a split of the run, or those that were named."""
    from exitlens.delivery.run_directory import load_samples, stream_samples

    if not unlabelled:
        return load_samples(bundle, net, split, reading)
    if reading.data or reading.root:
        raise xl.errors.InputError("data, unlabelled: expected one of them (--root goes with --data)")
    return stream_samples(net, replace(reading, data=unlabelled), batch_size=64, run=bundle)


def _collect(
    net: xl.ExitNet, samples: Any, trace_options: CollectOptions, json_: bool, probes: Tensor | None = None
) -> xl.Trace | None:
    """Return the trace of all processes' samples, in the first of them; the others have done their part."""
    from exitlens.ranks import find_ranks

    trace = xl.collect(net, samples, progress=not json_, probes=probes, **vars(trace_options))
    return trace if find_ranks().is_first else None


@verbs.command(epilog="Example: `exitlens report runs/x --compare runs/y --out report.html`")
@takes(ReadSettings, {"Data": f"data {READING}"})
@takes(CollectOptions, {"Data": "cost timed_batch"})
def report(
    run: Annotated[Path, Argument(help="Run directory of `exitlens fit`, or a bundle, with a policy.")],
    make_reading: Callable[..., ReadSettings],
    make_trace_options: Callable[..., CollectOptions],
    compare: Compare = None,
    out: Annotated[Path, Option(help="The HTML file, which must not exist.")] = Path("report.html"),
    json_: Json = False,
) -> None:
    """Write a page about a run, or about two side by side, on the first one's test images."""
    from exitlens.delivery.report import CONDITION, describe_provenance, measure_subjects, write_report
    from exitlens.delivery.rivals import read_comparison
    from exitlens.delivery.run_directory import load_calibrated, load_samples, require_preprocess
    from exitlens.types.tasks import WITH_CLASSES

    reading, trace_options = make_reading(), make_trace_options()
    if out.exists():
        raise xl.errors.OutputExistsError(f"out: {out} exists. Fix: choose another file.")
    runs = [run] if compare is None else [run, compare]
    net, policy = load_calibrated(run)
    require_preprocess(net, net.input_spec.modality.preprocess)
    with wait(json_, "listing the data"):
        samples = load_samples(run, net, "test", reading)
    made = describe_provenance(runs, samples, ["exitlens", *sys.argv[1:]], reading.data)
    cost, timed_batch = trace_options.cost, trace_options.timed_batch
    subjects = measure_subjects(runs, samples, progress=not json_, cost=cost, timed_batch=timed_batch)
    if bad := list_bad(samples):
        made = replace(made, data=f"{made.data}, without {len(bad)} that cannot be read")
    if not reading.data:  # a comparison is of the run's own test samples
        subjects[0] = replace(subjects[0], comparison=read_comparison(run, net, policy))
    write_report(out, subjects, {CONDITION: samples}, made, progress=not json_)
    reports = {str(path): subject.reports[CONDITION] for path, subject in zip(runs, subjects, strict=True)}
    rows = [["run", "accuracy %" if net.info.task in WITH_CLASSES else "distance", "cost", "divergence"]]
    for path, result in reports.items():
        quality = f"{100 * (result.accuracy or 0):.1f}" if result.answers is None else f"{result.answers.distance:.3f}"
        rows.append([path, quality, f"{result.cost:.3f}", f"{result.divergence:.3f}"])
    values = {"out": str(out), "runs": {path: result.to_dict() for path, result in reports.items()}, "bad": bad}
    show(json_, values, f"{len(samples) - len(bad)} test {samples.modality.plural}: {out}", rows)
