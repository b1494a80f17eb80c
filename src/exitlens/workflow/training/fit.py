"""fit: joint training of backbone and exits (or of the heads alone), resumable to the bit."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress
from torchvision.transforms import v2

from exitlens.data.batches import read_labels, read_targets, weigh_classes
from exitlens.errors import DataWarning, InputError, TrainingError, require
from exitlens.functional.answers import Units, are_far, measure_units
from exitlens.functional.losses import EGTLoss
from exitlens.modalities import IMAGE, VECTOR
from exitlens.model._torch_compat import has_fast_bfloat16
from exitlens.model.heads import require_maps
from exitlens.model.network import ExitNet
from exitlens.model.process import SHARED_CORES, hold_memory
from exitlens.progress import print_line, show_progress
from exitlens.ranks import DistributedContext, find_ranks
from exitlens.types.inputs import can_be_channels_last
from exitlens.types.preprocessing import Preprocess
from exitlens.types.settings import WHOLE, BatchNorm, EpochMetric, RecipeName, RelyOn, TrainingSettings, check_number
from exitlens.types.tasks import CONTINUOUS, WITH_CLASSES, check_truth, count_answers, refuse_task
from exitlens.workflow.training.augmentation import Augmentation
from exitlens.workflow.training.callbacks import TrainingCallback, check_callbacks, tell_callbacks
from exitlens.workflow.training.debiasing import GUIDE_SHARE, Guide
from exitlens.workflow.training.distributed import use_common_statistics
from exitlens.workflow.training.frozen import find_cache_obstacle, keep_features
from exitlens.workflow.training.ignoring import Ignoring, read_ignored
from exitlens.workflow.training.record import GUIDE, format_epoch, read_epochs
from exitlens.workflow.training.run import Augment, TrainingRun, check_validation


@dataclass
class FitResult:
    """The result of :func:`fit`.

    Attributes:
        history: one row per epoch: loss terms, validation accuracy per exit (with several labels per sample also micro-F1,
            with one class a pixel also ``miou``, which chooses the best epoch; of numbers ``r2`` and of vectors ``cosine``
            instead), validation CC with the final map per early
            exit, seconds.
        best_epoch, kept_epoch: the epochs (from 1) of the best ``monitor`` and of the weights that the network has.
        seconds: time spent in all epochs, those of a guide and of earlier calls included.
        out_dir: directory of checkpoints and log, or ``None``.

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


def fit(  # noqa: PLR0913
    net: ExitNet,
    train: Any,
    val: Any,
    *,
    loss: EGTLoss | None = None,
    epochs: int = 8,
    out_dir: str | Path | None = None,
    batch_size: int = 64,
    recipe: RecipeName = "scratch",
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
    keep: Literal["last", "best"] | None = None,
    progress: bool = True,
    balanced: bool = False,
    accumulate: int = 1,
    clip_norm: float | None = None,
    ema: float | None = None,
    patience: int | None = None,
    monitor: EpochMetric = "accuracy",
    cache_features: bool | None = None,
    share_cores: bool = True,
    rely_on: RelyOn = "anything",
    ignore: Any = None,
    teacher: ExitNet | None = None,
    callbacks: Sequence[TrainingCallback] = (),
    ranks: DistributedContext | None = None,
) -> FitResult:
    """Train the network in place with AdamW and a one-cycle learning rate (arXiv 1708.07120).

    :class:`~exitlens.types.settings.TrainingSettings` documents every argument that is missing below.

    A run that was killed at any time and is called again with ``resume=True`` and the same arguments continues after the
    last whole epoch and ends with the weights it would have had, on the CPU bit for bit (``share_cores=False`` keeps that
    true where other processes are busy). It may also have more ``epochs`` than before. In the processes of ``torchrun`` or
    of a process group, it trains data-parallel: each takes its rows of the same batches, and all end with the same weights
    (docs/guides/several_machines.md).

    Args:
        net: trained in place; left in evaluation mode and in its own memory format.
        train: a ``Dataset`` of ``(image, label)``, batched and shuffled here; or a ``DataLoader``, used as it is. If labels
            are rows ``(C,)`` of 0 and 1, the network learns to give a sample any number of labels (``info.task``).
            Labels ``(H,W)`` are the classes of an image's pixels, 255 where a pixel has none, for a network that answers
            these; transforms move them with the image. Floats ``()`` or ``(C,)`` are for a network that answers numbers;
            where it answers vectors, the inputs are enough.
        val: the same, or an iterable of batches; chooses the best checkpoint and nothing else.
        loss: by default ``EGTLoss()``; settings left open are chosen to suit the network
            (:meth:`~exitlens.functional.losses.EGTLoss.for_network`).
        out_dir: directory for ``last.safetensors``, ``best.safetensors`` and ``log.csv``; without it nothing is written.
        augment: also a transform of ``torchvision.transforms.v2``, drawn anew for every image
            (:class:`~exitlens.workflow.training.augmentation.Augmentation`), or any function of a batch of inputs as the
            network takes them. In training only.
        workers: number of processes that read the data; by default one per core for sets that read files, else none. The
            weights do not depend on it.
        rely_on: with ``"map"``, a copy of the network, hooks included, is trained first, for a third of the epochs, against
            what is easy (in ``out_dir/guide``). Then, in 70 % of each batch, all but what the maps of this guide point at
            comes from other samples (of texts, series and vectors, in half of those whose labels the guide knows;
            :mod:`~exitlens.workflow.training.debiasing`, docs/guides/debiasing.md). Validation is as usual.
        ignore: what must not matter: ``"background"`` (all outside the ``masks`` of ``train``); a mask ``(H,W)``, ``(T,)``
            or ``(D,H,W)`` that is True there in all samples, or the file of one; a tuple of names of channels or features,
            or of words; or a list of these (or of objects with an attribute ``ignore``). In 70 % of each batch it comes
            from another sample, label kept, before ``augment``.
        teacher: a trained network of the same inputs and classes, on the same device. Every exit learns its final answers as
            much as the labels (knowledge distillation, :meth:`EGTLoss.__call__`). A plain network is one with exits nowhere:
            ``attach(module, [], C, example, final="keep")``. It is left in evaluation mode.
        resume: continue the run in ``out_dir``, if there is one; otherwise an existing run is an error.
        progress: show a progress bar; without a terminal, a line every 30 seconds.
        callbacks: called at the start, after every epoch and at the end, as
            :class:`~exitlens.workflow.training.callbacks.TrainingCallback` says; :mod:`exitlens.trackers` has those for
            MLflow, Weights & Biases and TensorBoard (docs/guides/trackers.md).
        ranks: the processes that share the work; by default those of ``torchrun`` or of the process group;
            ``DistributedContext()``: this process alone.

    Raises:
        InputError, OutputExistsError, TrainingError: bad arguments, an existing run, a loss that is NaN or infinite.
        DistributedError: the other processes are lost. What one process raises, all raise.

    Examples:
        >>> result = xl.fit(net, scenes, scenes.first(16), loss=xl.EGTLoss(), epochs=1, progress=False)
        >>> result.best_epoch, sorted(result.history[0])[:2]
        (1, [...])
    """
    require(net, ExitNet, "net", "attach exits to the backbone first")
    require(loss, EGTLoss | None, "loss")
    require(teacher, ExitNet | None, "teacher", "attach(module, [], C, example, final='keep') makes it of a plain network")
    require(out_dir, str | Path | None, "out_dir")
    check_callbacks(callbacks)
    replaced = {"augment": augment if isinstance(augment, str) else "none", "ignore": read_ignored(ignore)}
    replaced["teacher"] = "" if teacher is None else teacher.eval().fingerprint()
    arguments = locals() | replaced
    settings = TrainingSettings(**{item.name: arguments[item.name] for item in fields(TrainingSettings)})
    directory, ranks = None if out_dir is None else Path(out_dir), find_ranks(ranks)
    if workers is not None:
        check_number("workers", workers, WHOLE)
    if net.info.task == "embedding":  # the final exit's vectors must not move
        settings = replace(settings, freeze_backbone=True)
    if settings.amp is None:
        is_vector = net.input_spec.modality.name == VECTOR.name  # perceptrons' steps take twice as long in bfloat16
        settings = replace(settings, amp=not is_vector and ranks.share(lambda: has_fast_bfloat16(net.device)))
    with use_memory_format(net, settings.channels_last), hold_memory():  # else a fifth of ResNet-18's step is page faults
        loss = _choose_loss(loss, net, settings, train)
        _refuse_for_task(net, settings)
        augmentation = _choose_augment("none" if augment is None else augment, net, train)
        moves_relevance = loss.needs_relevance and net.info.final != "keep"
        # before anything is written
        no_cache = find_cache_obstacle(train, settings, augmentation is not None, moves_relevance)
        ignoring = Ignoring(settings.ignore, net, train) if settings.ignore else None
        if net.info.task == "regression":
            net.describe(units=_choose_units(net, train))
        run = TrainingRun(net, loss, settings, augmentation, ignoring, workers, directory, ranks, teacher=teacher)
        with ranks.together():
            net.describe(task=check_validation(net, val))
            if teacher is not None:
                _check_teacher(teacher, net)
        shown = progress and ranks.is_first
        with (
            run.open(resume, train),
            tell_callbacks(callbacks, run) as tell_epoch,
            SHARED_CORES.share(settings.share_cores and ranks.size == 1),  # ranks would give way to one another
            show_progress(shown) as bar,
        ):
            note: Callable[[str], None] = partial(print_line, bar.console) if shown else lambda line: None
            if run.note:
                note(run.note)
            if settings.freeze_backbone and settings.cache_features is not False and not run.is_over:
                if no_cache or net.info.task == "segmentation":
                    no_cache = no_cache or "the features of pixels would fill the memory"
                    note(f"--freeze-backbone: every epoch runs the backbone again: {no_cache}")
                else:
                    folder = directory if ranks.is_first else None
                    with ranks.together():
                        run.frozen = keep_features(net, loss, settings, train, val, folder=folder, workers=workers, bar=bar)
            if settings.rely_on == "map" and not run.is_over:
                run.guide = _train_guide(run, train, val, resume, bar, note)
            _train(run, train, val, bar, note, tell_epoch)
            if run.epochs_done < settings.epochs:
                note(f"stopped: no better {settings.monitor} on the validation data in {settings.patience} epoch(s)")
            run.finish()
    return FitResult(run.history, run.best_epoch, run.seconds, directory, run.kept_epoch)


def _train(
    run: TrainingRun, train: Any, val: Any, bar: Progress, note: Callable[[str], None], tell: Callable[[], None]
) -> None:
    with use_common_statistics(run.net, run.ranks):
        while not run.is_over:
            row = run.train_epoch(run.epochs_done, train, val, bar)
            run.save(row)
            tell()
            note(f"{run.prefix}{format_epoch(row, run.settings.epochs)}")


def _train_guide(run: TrainingRun, train: Any, val: Any, resume: bool, bar: Progress, note: Callable[[str], None]) -> Guide:
    """Train the guide of a run in the directory ``guide`` of the run's own, or go on with it; add its time to the run's."""
    if isinstance(val, Iterator):
        raise InputError(
            "val: rely_on='map' trains twice, and an iterator can be read once. Fix: pass a data set or loader."
        )
    ranks, epochs = run.ranks, math.ceil(GUIDE_SHARE * run.settings.epochs)
    folder = run.out_dir and run.out_dir / GUIDE
    before = ranks.share(lambda: folder and read_epochs(folder))
    if run.history and before is None:
        raise TrainingError(f"resume: {folder}, the guide of this run, is missing. Fix: start again in another out_dir.")
    epochs = before or epochs  # a guide is the same when its run gets more epochs
    settings = replace(run.settings, epochs=epochs, keep="last", patience=None)
    try:
        net = copy.deepcopy(run.net)
    except (TypeError, RuntimeError) as error:
        fix = "remove hooks and tensors that were added to it"
        raise InputError(
            f"net: rely_on='map' trains a copy first, and it cannot be copied ({error}). Fix: {fix}."
        ) from error
    teacher = TrainingRun(net, run.loss, settings, run.augment, run.ignoring, run.workers, folder, ranks, is_guide=True)
    with teacher.open(resume or bool(run.history), train):
        _train(teacher, train, val, bar, note, lambda: None)
    teacher.finish()
    if not run.history:
        run.seconds += teacher.seconds
    return Guide(net, bool(settings.amp))


@contextmanager
def use_memory_format(net: ExitNet, channels_last: bool) -> Iterator[None]:
    """Keep weights in channels_last for the duration if ``channels_last``, and restore their memory format afterwards."""
    changes = channels_last and not net.is_channels_last and can_be_channels_last(net)
    if changes:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        if changes:
            net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _check_teacher(teacher: ExitNet, net: ExitNet) -> None:
    """Raise :class:`InputError` unless it answers what the network does."""
    refuse_task(net.info.task, "teacher: it", WITH_CLASSES)
    given, expected = (
        {
            "answers": count_answers(each.info.task, each.info.num_classes),
            "classes": each.info.classes or other.info.classes,
            "device": each.device,
        }
        for each, other in ((teacher, net), (net, teacher))
    )
    for what, value in expected.items():
        if given[what] != value:
            raise InputError(
                f"teacher: expected the network's own {what}, {value!s:.80}, got {given[what]!s:.80}. Fix: pass another."
            )


def _choose_loss(loss: EGTLoss | None, net: ExitNet, settings: TrainingSettings, train: Any) -> EGTLoss:
    """Return the loss with all settings chosen."""
    if loss is not None and loss.class_weights == "balanced":
        loss = replace(loss, class_weights=weigh_classes(read_labels(train, "class_weights"), net.info.num_classes))
    loss = net.choose_loss(loss, settings.freeze_backbone)
    if settings.rely_on == "map":
        require_maps(net.heads, "rely_on='map'")
    passed = {"sample_weights": "rely_on='map'"} if settings.rely_on == "map" else {}
    passed |= {"teacher": "teacher"} if settings.teacher else {}
    taken = signature(loss).parameters.values()
    for name, cause in passed.items():
        if not any(part.name == name or part.kind is part.VAR_KEYWORD for part in taken):
            fix = f"take it as EGTLoss does, or leave {cause.partition('=')[0]} out"
            raise InputError(f"loss: {cause} passes {name}=, which {type(loss).__name__} does not take. Fix: {fix}")
    return loss


def _choose_units(net: ExitNet, train: Any) -> Units:
    """Return the units that the network has if they serve for these targets, too, else those of these."""
    targets, known = read_targets(train), net.info.units
    check_truth(targets, len(targets), net.info.num_classes, "regression", "train labels")
    units = measure_units(targets)
    if known and not are_far(known, units):
        return known
    if known:
        warnings.warn(
            f"train: the network was trained on targets of (mean, spread) {known}, these have {units}. It now answers in "
            "units of these, so what it has learnt is only kept up to shift and scale. Fix: check the targets, if they "
            "should be the same.",
            DataWarning,
            stacklevel=3,
        )
    return units


def _refuse_for_task(net: ExitNet, settings: TrainingSettings) -> None:
    for name, is_asked in (
        ("rely_on", settings.rely_on == "map"),
        ("ignore", bool(settings.ignore)),
        ("balanced", settings.balanced),
        ("cache_features", settings.cache_features is True and net.info.task not in CONTINUOUS),
    ):
        if is_asked:
            refuse_task(net.info.task, f"{name}: it")


def _choose_augment(augment: Augment | str, net: ExitNet, train: Any) -> Augment | None:
    if augment == "none":
        return None
    if not isinstance(augment, str | v2.Transform):
        if not callable(augment):
            raise InputError(f"augment: expected a function of a batch of inputs, or a name, got {type(augment).__name__}")
        if net.info.task == "segmentation":
            raise InputError(
                "augment: a function of the inputs does not move the labels of pixels. Fix: pass a name, or a transform of "
                "torchvision.transforms.v2"
            )
        return augment
    modality = net.input_spec.modality
    if modality is not IMAGE:
        raise InputError(f"augment: {augment!r} is for images, not {modality.plural}. Fix: pass a function of a batch.")
    preprocess = net.info.preprocess or getattr(train, "preprocess", None)
    return Augmentation(augment, preprocess if isinstance(preprocess, Preprocess) else None)
