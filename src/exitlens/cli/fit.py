"""The verb that trains: fit."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

import exitlens as xl
from exitlens.cli import options
from exitlens.cli.options import (
    list_bad,
    name_exits,
    of_data,
    of_more,
    of_training,
    show,
    show_skipped,
    takes,
    tell,
    verbs,
    wait,
)
from exitlens.launch import read_rank
from exitlens.types.settings import NetworkSettings, ReadSettings, TrainingSettings

if TYPE_CHECKING:
    from exitlens.ranks import DistributedContext

READING = {"Data": "columns group_by root skip_bad workers cache"}
NETWORK = {"Network": "backbone exits placement groups head keep_final pretrained init_weights normalise strict_weights"}
TRAINING = {
    "Training": "epochs batch_size learning_rate freeze_backbone seed",
    "More about training": (
        "head_learning_rate layer_decay warm_up batch_norm cache_features augment balanced patience monitor accumulate "
        "clip_norm ema share_cores"
    ),
}


@verbs.command(
    epilog="Example: `exitlens fit --data DIR --backbone torchvision:resnet18 --exits layer1,layer2,layer3 --out runs/x`"
)
@takes(ReadSettings, READING)
@takes(NetworkSettings, NETWORK)
@takes(TrainingSettings, TRAINING)
def fit(
    data: options.Data,
    out: Annotated[Path, Option(help="New run directory: checkpoints, log and bundle.")],
    reading: Callable[..., ReadSettings],
    network: Callable[..., NetworkSettings],
    training: Callable[..., TrainingSettings],
    resume: Annotated[
        bool, Option("--resume", help="Continue a run that was stopped; --epochs may be more than before.")
    ] = False,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Also write TensorBoard events.")] = False,
    json_: options.Json = False,
    split_by: Annotated[str, of_data(help="A column of the data that says which split each sample is in.")] = "",
    task: Annotated[
        str,
        of_data(
            help="`multilabel` if a sample can have several labels, written a;b (lists and columns of 0 and 1 imply it)."
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
        str,
        of_training(help="Learning rates and the like: `scratch`, or `pretrained` (the default where weights are given)."),
    ] = "",
    egt_weight: Annotated[
        float | None,
        of_training(help="Weight of the loss that makes attention maps agree (0: off; default: 1 if exits have maps)."),
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
    label_smoothing: Annotated[float, of_more(help="Share of every label that is spread over all classes.")] = 0.0,
    class_weights: Annotated[
        str, of_more(help="`balanced` (rare classes count more), or a number per class: 1,2.5,1.")
    ] = "",
) -> None:
    """Train a network with exits on your images, texts, series, volumes or vectors."""
    from exitlens.data.sources import open_source
    from exitlens.delivery.bundle import save_trained
    from exitlens.delivery.run_directory import read_recorded_exits, record_source, remembers_skipping
    from exitlens.delivery.run_setup import build_network, choose_size, load_training_sets
    from exitlens.model.heads.exit_heads import have_maps
    from exitlens.ranks import find_ranks
    from exitlens.workflow.training.fit import RunOptions, run_training
    from exitlens.workflow.training.record import is_restarted

    say = partial(_say, json_)
    wanted = network()
    settings = training(recipe=recipe or ("pretrained" if wanted.has_weights else "scratch"))
    samples, ranks = reading(), find_ranks()
    resume = ranks.share(lambda: resume or is_restarted(out))
    if resume and not samples.skip_bad:  # it leaves out what it did before
        samples = replace(samples, skip_bad=ranks.share(lambda: remembers_skipping(out)))
    try:
        with wait(json_, "listing the data"), ranks.together():
            source = open_source(
                data,
                root=samples.root,
                size=size or choose_size(wanted.backbone, wanted.has_weights),
                seed=settings.seed,
                columns=samples.columns,
                group_by=samples.group_by,
                split_by=split_by,
                mel=mel,
                task=task,
            )
            train, validation = load_training_sets(wanted, source, samples, say)
        if resume and wanted.placement == "time":  # measured again, they could differ
            wanted = ranks.share(lambda: read_recorded_exits(out, wanted))
        with wait(json_, "building the network"):
            net = _build_alike(ranks, partial(build_network, train=train, seed=settings.seed, say=say), wanted)
        if egt_weight is None and not have_maps(net.heads):
            say("exits: they have no maps, so classification alone is trained; --groups names what maps could lie on")
            egt_weight = 0.0
        weights: Any = class_weights or None
        if class_weights not in ("", "balanced"):
            weights = [part.strip() for part in class_weights.split(",")]
        loss = xl.EGTLoss(
            xl.EGTLoss().weight if egt_weight is None else egt_weight,
            target=egt_target,  # type: ignore[arg-type]
            reach=egt_reach,  # type: ignore[arg-type]
            every=egt_every,
            label_smoothing=label_smoothing,
            class_weights=weights,
        )
        run_options = RunOptions(out, resume, samples.workers, not json_, tensorboard, ranks)
        with record_source(out, source, resume=resume, skip_bad=samples.skip_bad, ranks=ranks):
            result = run_training(net, train, validation, settings, run_options, loss=loss)
    except KeyboardInterrupt as stop:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        if out.exists():
            place = getattr(stop, "__notes__", ["before the first epoch"])[0].partition(":")[0]
            stop.__notes__ = [f"{place}; go on with: exitlens {shlex.join(words)} --resume"]
        raise
    dropped = ranks.share(lambda: save_trained(net, out / "bundle", overwrite=resume))
    if dropped:
        names = ", ".join(dropped)
        say(f"policies left out, which were chosen for the network as it was before: {names}; calibrate again")
    _show_result(net, result, out, list_bad(train, validation), json_)


def _show_result(net: xl.ExitNet, result: xl.FitResult, out: Path, bad: list[str], json_: bool) -> None:
    last = result.history[result.kept_epoch - 1]
    values = {"out": str(out), "epochs": len(result.history), "epoch": result.kept_epoch}
    values |= {name: last[name] for name in ("accuracy", "cc", "f1") if name in last}
    values |= {"seconds": result.seconds, "bad": bad}
    columns = {
        "exit": name_exits(net),
        "validation accuracy %": [f"{100 * value:.1f}" for value in last["accuracy"]],
        "micro-F1": [f"{value:.3f}" for value in last.get("f1", ())],
        "attention CC with final": [*(f"{value:.2f}" for value in last["cc"]), ""],
    }
    filled = {name: cells for name, cells in columns.items() if cells}
    rows = [list(filled), *map(list, zip(*filled.values(), strict=True))]
    show(json_, values, f"{out}: the weights of epoch {result.kept_epoch} of {len(result.history)}", rows)
    show_skipped(json_, bad)
    if not json_:
        tell(f"next: exitlens calibrate --bundle {shlex.quote(str(out))} --max-accuracy-drop 0.02 --folds 5")


def _build_alike(
    ranks: DistributedContext, build: Callable[[NetworkSettings], xl.ExitNet], network: NetworkSettings
) -> xl.ExitNet:
    """Build the network, with exits at the same places in all processes: measured by each, they could differ."""
    if network.placement == "time" and ranks.size > 1:
        network = ranks.share(lambda: replace(network, exits=",".join(build(network).info.at), placement="cost"))
    with ranks.together(), warnings.catch_warnings():
        warnings.simplefilter("ignore", xl.errors.WeightsWarning)  # what did not fit is said
        return build(network)


def _say(as_json: bool, line: str) -> None:
    """Print a line for people, in the first of several processes; with --json on standard error."""
    if read_rank() == 0:
        print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr if as_json else sys.stdout)
