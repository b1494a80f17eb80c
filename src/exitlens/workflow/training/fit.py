"""fit: joint training of backbone and exits (or of the heads alone), resumable to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torchvision.transforms import v2

from exitlens.data.batches import read_labels, weigh_classes
from exitlens.errors import InputError, require
from exitlens.functional.losses import EGTLoss
from exitlens.modalities import IMAGE
from exitlens.model._torch_compat import has_fast_bfloat16
from exitlens.model.heads.exit_heads import have_maps, require_maps
from exitlens.model.malloc import hold_memory
from exitlens.model.network import ExitNet
from exitlens.progress import print_line, show_progress
from exitlens.ranks import Ranks, find_ranks
from exitlens.types import Preprocess
from exitlens.workflow.training.augmentation import Augmentation
from exitlens.workflow.training.distributed import use_common_statistics
from exitlens.workflow.training.frozen import explain_no_cache, keep_features
from exitlens.workflow.training.log import format_epoch, open_tensorboard
from exitlens.workflow.training.monitor import Monitor
from exitlens.workflow.training.recipe import BatchNorm, follow_recipe
from exitlens.workflow.training.run import Augment, TrainingRun
from exitlens.workflow.training.step import TrainingSettings, use_memory_format
from exitlens.workflow.training.validation import check_validation


@dataclass
class FitResult:
    """What :func:`fit` did.

    Attributes:
        history: one row an epoch: loss terms, validation accuracy per exit (of several labels also micro-F1), validation CC
            with the final map per early exit, seconds.
        best_epoch: the epoch (from 1) of the best ``monitor``. kept_epoch: the one whose weights the network has.
        seconds: time spent in epochs, resumed ones included.
        out_dir: where checkpoints and log are, or ``None``.

    Examples:
        >>> result = xl.fit(net, scenes, scenes.first(16), epochs=2, progress=False)
        >>> [row["epoch"] for row in result.history]
        [1, 2]
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    out_dir: Path | None = None
    kept_epoch: int = 0


def fit(
    net: ExitNet,
    train: Any,
    val: Any,
    *,
    loss: EGTLoss | None = None,
    epochs: int = 10,
    out_dir: str | Path | None = None,
    batch_size: int = 64,
    recipe: str = "scratch",
    learning_rate: float | None = None,
    head_learning_rate: float | None = None,
    layer_decay: float | None = None,
    warm_up: float | None = None,
    weight_decay: float | None = None,
    batch_norm: BatchNorm | None = None,
    seed: int = 0,
    amp: bool | None = None,
    channels_last: bool = True,
    freeze_backbone: bool = False,
    augment: Augment | str | None = None,
    workers: int | None = None,
    resume: bool = False,
    keep: str | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    balanced: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema: float | None = None,
    patience: int | None = None,
    monitor: Monitor = "accuracy",
    cache_features: bool | None = None,
    ranks: Ranks | None = None,
) -> FitResult:
    """Trains the network in place with AdamW and a one-cycle learning rate (arXiv 1708.07120).

    A run that is killed at any time and called again with ``resume=True`` and the same arguments goes on from the last
    whole epoch and ends with the weights it would have had, bit for bit on the CPU: the order of data and all random
    numbers of an epoch depend on ``seed`` and the epoch only.

    Called in every process that ``torchrun`` starts, or of a process group that there is, it trains data-parallel: each
    takes its rows of the same batches, and all end with the same weights (docs/guides/several_machines.md).

    Args:
        net: trained in place; left in evaluation mode and in the memory format that it had.
        train: a ``Dataset`` of ``(image, label)``, batched and shuffled here; or a ``DataLoader``, used as it is. Where
            labels are rows ``(C,)`` of 0 and 1, the network learns to give a sample any number of labels (``info.task``).
        val: the same, or an iterable of batches; chooses the best checkpoint and nothing else.
        loss: default ``EGTLoss()``, whose target, reach, sharpness and ``every`` are those for this kind of network
            (:meth:`~exitlens.functional.losses.EGTLoss.for_network`) where they are not given; label smoothing and class
            weights are its own arguments.
        epochs: 1 or more.
        out_dir: for ``last.safetensors``, ``best.safetensors``, ``log.csv``; nothing is written without it.
        batch_size: images a step.
        recipe: what the next six are where they are ``None``: ``"scratch"``, or ``"pretrained"`` for a backbone with
            pretrained weights (:data:`~exitlens.workflow.training.recipe.RECIPES`; docs/guides/pretrained.md).
        learning_rate: peak of the cycle.
        head_learning_rate: the same of the exits' heads, which are new where the backbone is not.
        layer_decay: factor of the backbone's learning rate from each block to the one before it; 1: all alike.
        warm_up: share of training in which the learning rates rise.
        weight_decay: of AdamW; the recipe ``"pretrained"`` spares biases and norms.
        batch_norm: ``"update"``, or ``"keep"``: the backbone's statistics stay those of its weights, and it trains without
            its dropout (a backbone without such statistics trains as usual).
        seed: of data order and of all random numbers during training.
        amp: bfloat16 autocast; by default where the device is fast at it.
        channels_last: memory format of weights and images during training.
        freeze_backbone: train the heads only; backbone weights and batch-norm statistics stay as they are.
        augment: ``"flip"``, ``"crop"``, ``"trivial"`` or a transform of ``torchvision.transforms.v2``, drawn for every image
            by itself (:class:`~exitlens.workflow.training.augmentation.Augmentation`); or any function of a batch of
            inputs as the network takes them. In training only.
        workers: processes that read the data; by default one for each core for lazy sets, else none. The weights are the
            same for any number.
        resume: go on from ``out_dir`` if it holds a run; without it an existing run is an error.
        keep: ``"last"`` or ``"best"``: which weights the network has afterwards; by default the best with ``patience``.
        progress: show a progress bar.
        tensorboard: also write TensorBoard events to ``out_dir`` (extra ``log``).
        balanced: for skewed classes: an epoch of the same length in which all classes come equally often.
        accumulate: batches in an optimiser step; the gradient is the mean over their samples.
        clip_norm: largest norm of the gradient of all weights together (arXiv 1211.5063).
        ema: decay, such as 0.999 a step, of a moving average of the weights and batch-norm statistics. The average is what
            is validated and what the network has afterwards.
        patience: stop after so many epochs without a better ``monitor``. The learning rate's cycle is that of ``epochs``.
        monitor: what chooses the best epoch: ``"accuracy"`` on the validation data, mean over exits; ``"final_accuracy"``,
            of the final exit; or ``"loss"``, the classification term of the loss there.
        cache_features: with ``freeze_backbone``, run the backbone once and train the heads on what it gave, unrounded, in
            memory up to 2 GB and in files without a name in ``out_dir`` above. By default where the data are sure to be the
            same in every epoch: sets of ours and a ``TensorDataset``, without augmentation. The weights are those of
            training without it, to rounding.
        ranks: the processes that share the work; by default those that ``torchrun`` started, or of the process group that
            there is; ``Ranks()``: this process alone.

    Raises:
        InputError, OutputExistsError, TrainingError: bad arguments, an existing run, a loss that is NaN or infinite.
        DistributedError: the other processes are lost. What one of them raises, all raise.

    Examples:
        >>> result = xl.fit(net, scenes, scenes.first(16), loss=xl.EGTLoss(), epochs=1, progress=False)
        >>> result.best_epoch, sorted(result.history[0])[:2]
        (1, [...])
    """
    given = dict(locals())  # settings have the names of the arguments
    require(net, ExitNet, "net", "attach exits to the backbone first")
    require(loss, EGTLoss | None, "loss")
    require(out_dir, str | Path | None, "out_dir")
    if workers is not None and (not isinstance(workers, int) or workers < 0):
        raise InputError(f"workers: expected an integer of 0 or more, got {workers!r}")
    if keep not in ("last", "best", None):
        raise InputError(f"keep: expected 'last' or 'best', got {keep!r}")
    ranks = find_ranks(ranks)
    given["amp"] = ranks.share(lambda: has_fast_bfloat16(net.device)) if amp is None else amp
    given["augment"] = augment if isinstance(augment, str) else "none"
    given |= follow_recipe(recipe, given)
    settings = TrainingSettings(**{one.name: given[one.name] for one in fields(TrainingSettings)})
    directory = None if out_dir is None else Path(out_dir)
    with use_memory_format(net, channels_last), hold_memory():  # a fifth of ResNet-18's step is page faults without
        attends = net.has_attention and not settings.freeze_backbone
        loss = _choose_loss(loss, net).for_network(attends, net.info.final == "keep", net.info.modality.name == "image")
        loss = _balance_loss(loss, train, net.num_exits, net.info.num_classes)
        augmentation = _build_augment(augment, net, train)
        if cache_features:  # refused before anything is written
            explain_no_cache(train, settings, augmentation is not None, True, _moves_relevance(loss, net))
        run = TrainingRun(net, loss, settings, augmentation, workers, directory, ranks)
        with ranks.together():
            net.describe(task=check_validation(net, val))
        shown, events = progress and ranks.is_first, directory if tensorboard and ranks.is_first else None
        common = use_common_statistics(net, ranks)
        with run.opened(resume, train), common, show_progress(shown) as bar, open_tensorboard(events) as write_events:
            note: Callable[[str], None] = partial(print_line, bar.console) if shown else lambda line: None
            _keep_features(run, train, val, cache_features, bar, note)
            while not run.is_over:
                row = run.train_epoch(run.epochs_done, train, val, bar)
                run.save(row)
                write_events(row)
                note(format_epoch(row, epochs))
            if run.epochs_done < epochs:
                note(f"stopped: no better {monitor} on the validation data in {patience} epoch(s)")
        kept = run.finish(keep or ("last" if patience is None else "best"))
    return FitResult(run.history, run.best_epoch, run.seconds, directory, kept)


def _choose_loss(loss: EGTLoss | None, net: ExitNet) -> EGTLoss:
    """The loss that was given; by default EGT where the exits have maps, and classification alone where they have none."""
    if loss is not None and loss.weight > 0:
        require_maps(net.heads, "a loss with a weight above 0")
    return loss or EGTLoss(weight=1.0 if have_maps(net.heads) else 0.0)


def _moves_relevance(loss: EGTLoss, net: ExitNet) -> bool:
    """Whether the relevance that a loss needs changes with a final head that is trained."""
    return loss.needs_relevance and net.info.final != "keep"


def _keep_features(
    run: TrainingRun, train: Any, val: Any, wanted: bool | None, bar: Progress, note: Callable[[str], None]
) -> None:
    """Lets a frozen backbone run once, where that changes nothing and is not too late."""
    reason = (
        ""
        if wanted is False
        else explain_no_cache(train, run.settings, run.augment is not None, wanted, _moves_relevance(run.loss, run.net))
    )
    if wanted is False or not run.settings.freeze_backbone or run.is_over:
        return
    if reason:
        note(f"freeze_backbone: every epoch runs the backbone again: {reason}")
        return
    folder = run.out_dir if run.ranks.is_first else None
    how: dict[str, Any] = {"wanted": wanted, "folder": folder, "workers": run.workers, "bar": bar}
    with run.ranks.together():
        run.frozen = keep_features(run.net, run.loss, run.settings, train, val, **how)


def _balance_loss(loss: EGTLoss, train: Any, exits: int, classes: int) -> EGTLoss:
    """The loss with numbers for ``class_weights="balanced"``."""
    if loss.class_weights == "balanced":
        loss = replace(loss, class_weights=weigh_classes(read_labels(train, "class_weights"), classes))
    loss.check_size(exits, classes)
    return loss


def _build_augment(augment: Augment | str | None, net: ExitNet, train: Any) -> Augment | None:
    if augment is None or augment == "none":
        return None
    if not isinstance(augment, str | v2.Transform):
        if not callable(augment):
            raise InputError(f"augment: expected a function of a batch of inputs, or a name, got {type(augment).__name__}")
        return augment
    own = net.input_spec.modality
    if own is not IMAGE:
        raise InputError(f"augment: {augment!r} is for images, the network takes {own.plural}: give a function of a batch")
    preprocess = net.info.preprocess or getattr(train, "preprocess", None)
    return Augmentation(augment, preprocess if isinstance(preprocess, Preprocess) else None)
