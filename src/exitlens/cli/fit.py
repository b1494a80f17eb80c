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
    Cache,
    Json,
    Root,
    SkipBad,
    Workers,
    list_bad,
    name_exits,
    of_data,
    of_more,
    of_network,
    of_training,
    show,
    show_skipped,
    tell,
    verbs,
    wait,
)
from exitlens.launch import read_rank
from exitlens.types.settings import NetworkSettings, ReadSettings

if TYPE_CHECKING:
    from exitlens.ranks import Ranks


@verbs.command(
    epilog="Example: `exitlens fit --data DIR --backbone torchvision:resnet18 --exits layer1,layer2,layer3 --out runs/x`"
)
def fit(
    data: options.Data,
    out: Annotated[Path, Option(help="New run directory: checkpoints, log and bundle.")],
    resume: Annotated[bool, Option("--resume", help="Continue a run that was stopped.")] = False,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Also write TensorBoard events.")] = False,
    json_: Json = False,
    columns: options.Columns = "",
    group_by: options.GroupBy = "",
    split_by: options.SplitBy = "",
    task: Annotated[
        str,
        of_data(
            help="`multilabel`: a sample has any number of labels, a;b in one column (lists and columns of 0 and 1 say so)."
        ),
    ] = "",
    root: Root = "",
    skip_bad: SkipBad = False,
    workers: Workers = None,
    cache: Cache = None,
    size: Annotated[
        int,
        of_data(
            help="Pixels of an image's sides (default 64; large networks 128 or their own), tokens of a text (64), steps of "
            "a series or voxels of a volume's sides (as they come).",
            show_default=False,
        ),
    ] = 0,
    mel: Annotated[
        int, of_data(min=0, help="Of sounds: bands of the log-mel spectrogram to train on, such as 64 (0: the waveform).")
    ] = 0,
    backbone: Annotated[str, of_network(help=options.BACKBONES)] = "small",
    exits: Annotated[
        str, of_network(help="Modules to put exits after, comma-separated, or how many (default layer1,layer2,layer3 or 3).")
    ] = "",
    placement: Annotated[
        str, of_network(help="Place a number of exits at equal shares of cost or of measured time.")
    ] = "cost",
    groups: Annotated[str, of_network(help="Of a vector's features, for maps: blood=age|pressure,heart=rate.")] = "",
    head: Annotated[
        str, of_network(help="context (a neck before heads; the default but for vectors), evidence or average.")
    ] = "",
    keep_final: Annotated[
        bool, of_network("--keep-final", help="The backbone's own classifier stays the final exit.")
    ] = False,
    pretrained: Annotated[bool, of_network("--pretrained", help="Start from the library's weights.")] = False,
    init_weights: Annotated[Path | None, of_network(help="Start from a local state dict (safetensors or PyTorch).")] = None,
    normalise: Annotated[
        str,
        of_network(
            help="Mean and std of pixels: `own` (what the backbone's weights were trained with; the default where weights "
            "are given), `imagenet` or `half`."
        ),
    ] = "",
    strict_weights: Annotated[
        bool,
        of_network("--strict-weights", help="Refuse weights of which a tensor does not fit, the classifier's included."),
    ] = False,
    epochs: Annotated[int, of_training(help="Passes over the training data.")] = 8,
    egt_weight: Annotated[
        float | None, of_training(help="Of the attention-consistency loss (0: off); 1 where exits have maps.")
    ] = None,
    egt_target: Annotated[
        str | None,
        of_more(
            help="Maps are pulled towards: attention (the final one), mean, relevance or product (default: as it suits)."
        ),
    ] = None,
    egt_reach: Annotated[str | None, of_more(help="What that trains: heads alone (default), or the whole network.")] = None,
    egt_every: Annotated[
        int | None, of_more(help="Of so many steps one does (default: 2 for relevance and product of images, else 1).")
    ] = None,
    batch_size: Annotated[int, of_training(help="Samples in a training step.")] = 64,
    recipe: Annotated[
        str, of_training(help="Rates and more: `scratch`, or `pretrained`, which is the default where weights are given.")
    ] = "",
    learning_rate: Annotated[
        float | None, of_training(help="Peak of the one-cycle schedule (default: the recipe's).")
    ] = None,
    freeze: Annotated[bool, of_training("--freeze-backbone", help="Train the exit heads only.")] = False,
    seed: Annotated[int, of_training(help="Of the split, the weights and the training.")] = 0,
    head_learning_rate: Annotated[float | None, of_more(help="Of the exits' heads, as --learning-rate.")] = None,
    layer_decay: Annotated[
        float | None, of_more(help="Factor of the learning rate from each block to the one before.")
    ] = None,
    warm_up: Annotated[float | None, of_more(help="Share of training in which the learning rates rise.")] = None,
    batch_norm: Annotated[
        str | None, of_more(help="`update` the backbone's statistics, or `keep` them (default: the recipe's).")
    ] = None,
    cache_features: Annotated[
        bool | None,
        of_more(
            "--cache-features/--no-cache-features",
            help="With --freeze-backbone: run the backbone once for all epochs (default: without --augment).",
        ),
    ] = None,
    augment: Annotated[str, of_more(help="flip, crop (and flip), trivial (both, and TrivialAugment) or none.")] = "none",
    label_smoothing: Annotated[float, of_more(help="Share of every label spread over all classes.")] = 0.0,
    class_weights: Annotated[str, of_more(help="`balanced` (rare classes count more), or numbers by class: 1,2.5,1.")] = "",
    balanced: Annotated[bool, of_more("--balanced", help="Show all classes equally often.")] = False,
    patience: Annotated[int | None, of_more(help="Stop after so many epochs without a better --monitor.")] = None,
    monitor: Annotated[
        str, of_more(help="Chooses the best epoch: accuracy (mean of exits), final_accuracy or loss.")
    ] = "accuracy",
    accumulate: Annotated[int, of_more(help="Batches in an optimiser step.")] = 1,
    clip_norm: Annotated[float | None, of_more(help="Largest norm of the gradient.")] = None,
    ema: Annotated[float | None, of_more(help="Keep a moving average of the weights with this decay a step, 0.999.")] = None,
) -> None:
    """Train a network with exits on your images, texts, series, volumes or vectors."""
    from exitlens.data.sources import open_source
    from exitlens.delivery.bundle import save_trained
    from exitlens.delivery.run_directory import read_recorded_exits, record_source
    from exitlens.delivery.run_setup import build_network, choose_size, load_training_sets
    from exitlens.model.heads.exit_heads import have_maps

    network = NetworkSettings(
        backbone,
        exits,
        placement,  # type: ignore[arg-type]
        groups,
        head,
        keep_final,
        pretrained,
        init_weights,
        strict_weights,
        normalise,
    )
    size = size or choose_size(backbone, network.has_weights)
    reading: dict[str, Any] = {"columns": columns, "group_by": group_by, "split_by": split_by, "mel": mel, "task": task}
    say = partial(_say, json_)
    ranks, resume, skip_bad = _join(out, resume, skip_bad)
    with wait(json_, "listing the data"), ranks.together():
        source = open_source(data, root=root, size=size, seed=seed, **reading)
        samples = ReadSettings(skip_bad=skip_bad, workers=workers, cache=cache)
        train, validation = load_training_sets(network, source, samples, say)
    if resume and placement == "time":  # measured again, they could differ
        network = ranks.share(lambda: read_recorded_exits(out, network))
    net = _build_alike(ranks, partial(build_network, train=train, seed=seed, say=say), network)
    how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    how |= {"recipe": recipe or ("pretrained" if network.has_weights else "scratch"), "layer_decay": layer_decay}
    how |= {"head_learning_rate": head_learning_rate, "warm_up": warm_up, "batch_norm": batch_norm}
    how |= {"freeze_backbone": freeze, "resume": resume, "tensorboard": tensorboard, "progress": not json_}
    how |= {"augment": augment, "balanced": balanced, "patience": patience, "monitor": monitor}
    how |= {"accumulate": accumulate, "clip_norm": clip_norm, "ema": ema, "workers": workers}
    how |= {"cache_features": cache_features}
    aims: dict[str, Any] = {"label_smoothing": label_smoothing, "class_weights": _read_class_weights(class_weights)}
    if egt_weight is None and not have_maps(net.heads):
        say("exits: they have no maps, so classification alone is trained; --groups names what maps could lie on")
        egt_weight = 0.0
    weight = options.EGT_WEIGHT if egt_weight is None else egt_weight
    aims |= {"target": egt_target, "reach": egt_reach, "every": egt_every}
    with record_source(out, source, resume=resume, skip_bad=skip_bad, ranks=ranks):
        result = xl.fit(net, train, validation, loss=xl.EGTLoss(weight, **aims), out_dir=out, ranks=ranks, **how)
    left = ranks.share(lambda: save_trained(net, out / "bundle", overwrite=resume))
    if left:
        say(f"policies left out, which were chosen for the network as it was before: {', '.join(left)}; calibrate again")
    _show_result(net, result, out, list_bad(train, validation), json_)


def _show_result(net: xl.ExitNet, result: xl.FitResult, out: Path, bad: list[str], json_: bool) -> None:
    last = result.history[result.kept_epoch - 1]
    values = {
        "out": str(out),
        "epochs": len(result.history),
        "epoch": result.kept_epoch,
        "accuracy": last["accuracy"],
        "cc": last["cc"],
        "seconds": result.seconds,
        "bad": bad,
    }
    several = "f1" in last
    if several:
        values["f1"] = last["f1"]
    head = ["validation accuracy %", *(["micro-F1"] if several else []), "attention CC with final"]
    rows = [["exit", *head]]
    f1 = [[f"{value:.3f}"] for value in last["f1"]] if several else [[] for _ in last["accuracy"]]
    for name, accuracy, marks, cc in zip(name_exits(net), last["accuracy"], f1, [*last["cc"], None], strict=True):
        rows.append([name, f"{100 * accuracy:.1f}", *marks, "" if cc is None else f"{cc:.2f}"])
    show(json_, values, f"{out}: the weights of epoch {result.kept_epoch} of {len(result.history)}", rows)
    show_skipped(json_, bad)
    if not json_:
        tell(f"next: exitlens calibrate --bundle {shlex.quote(str(out))} --max-accuracy-drop 0.02 --folds 5")


def _join(out: Path, resume: bool, skip_bad: bool) -> tuple[Ranks, bool, bool]:
    """The processes that share the run, whether it goes on, and whether what cannot be read is left out.

    It goes on if that is asked for, or if ``torchrun`` started the processes again; then it leaves out what it did before.
    """
    from exitlens.delivery.run_directory import remembers_skipping
    from exitlens.ranks import find_ranks
    from exitlens.workflow.training.record import is_restarted

    ranks = find_ranks()
    resume = ranks.share(lambda: resume or is_restarted(out))
    return ranks, resume, skip_bad or (resume and ranks.share(lambda: remembers_skipping(out)))


def _build_alike(ranks: Ranks, build: Callable[[NetworkSettings], xl.ExitNet], network: NetworkSettings) -> xl.ExitNet:
    """Builds the network, with exits at the same places in all processes: measured by each, they could differ."""
    if network.placement == "time" and ranks.size > 1:
        network = ranks.share(lambda: replace(network, exits=",".join(build(network).info.at), placement="cost"))
    with ranks.together(), warnings.catch_warnings():
        warnings.simplefilter("ignore", xl.WeightsWarning)  # what did not fit is said
        return build(network)


def _read_class_weights(words: str) -> Any:
    """``balanced``, or numbers separated by commas, in the order of the classes."""
    if words in ("", "balanced"):
        return words or None
    return [part.strip() for part in words.split(",")]


def _say(as_json: bool, line: str) -> None:
    """Prints a line for people, in the first of several processes; with --json on standard error."""
    if read_rank() == 0:
        print(line.encode("utf-8", "backslashreplace").decode(), file=sys.stderr if as_json else sys.stdout)
