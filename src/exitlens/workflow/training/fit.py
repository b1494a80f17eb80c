"""fit: joint training of backbone and exits (or of the heads alone), resumable to the bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from exitlens.data.batches import as_batch, batches, make_epoch_loader
from exitlens.errors import InputError, OutputExistsError, TrainingError, require
from exitlens.functional.losses import EGTLoss, check_labels
from exitlens.functional.maps import on_common_grid
from exitlens.functional.similarity import pearson
from exitlens.io import read_tensors, write_tensors, write_text
from exitlens.model._torch_compat import is_bfloat16_fast
from exitlens.model.backbones.weights import load_unique_state, unique_state
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet
from exitlens.types import ExitOutput
from exitlens.types.inputs import count_rows
from exitlens.workflow.training.checkpoint import load_checkpoint, save_checkpoint
from exitlens.workflow.training.log import format_epoch, open_tensorboard, write_log
from exitlens.workflow.training.step import TrainingSettings, enter_training_mode, floats, select_trainable, take_step

Augment = Callable[[Any], Any]
LAST, BEST, LOG, SETTINGS = "last.safetensors", "best.safetensors", "log.csv", "settings.json"


@dataclass
class FitResult:
    """What :func:`fit` did.

    Attributes:
        history: one row an epoch: loss terms, validation accuracy per exit, validation CC with the final map per early
            exit, seconds.
        best_epoch: the epoch (from 1) of the best mean validation accuracy over exits.
        seconds: time spent in epochs, resumed ones included.
        out_dir: where checkpoints and log are, or ``None``.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    out_dir: Path | None = None


def fit(
    net: ExitNet,
    train: Any,
    val: Any,
    *,
    loss: EGTLoss | None = None,
    epochs: int = 10,
    out_dir: str | Path | None = None,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    amp: bool | None = None,
    channels_last: bool = True,
    freeze_backbone: bool = False,
    augment: Augment | None = None,
    workers: int = 0,
    resume: bool = False,
    keep: str = "last",
    progress: bool = True,
    tensorboard: bool = False,
) -> FitResult:
    """Trains the network in place with AdamW and a one-cycle learning rate (arXiv 1708.07120).

    A run that is killed at any time and called again with ``resume=True`` and the same arguments goes on from the last
    whole epoch and ends with the weights it would have had, bit for bit on the CPU: the order of data and all random
    numbers of an epoch depend on ``seed`` and the epoch only.

    Args:
        net: trained in place; left in evaluation mode.
        train: a ``Dataset`` of ``(image, label)``, batched and shuffled here; or a ``DataLoader``, used as it is.
        val: the same, or an iterable of batches; chooses the best checkpoint and nothing else.
        loss: default ``EGTLoss()``.
        epochs: 1 or more.
        out_dir: for ``last.safetensors``, ``best.safetensors``, ``log.csv``; nothing is written without it.
        batch_size: images a step.
        learning_rate: peak of the cycle.
        weight_decay: of AdamW.
        seed: of data order and of all random numbers during training.
        amp: bfloat16 autocast; by default where the device is fast at it.
        channels_last: memory format of weights and images.
        freeze_backbone: train the heads only; backbone weights and batch-norm statistics stay as they are.
        augment: a function of a batch of images, run in training only.
        workers: processes of the data loader.
        resume: go on from ``out_dir`` if it holds a run; without it an existing run is an error.
        keep: ``"last"`` or ``"best"``: which weights the network has afterwards.
        progress: show a progress bar.
        tensorboard: also write TensorBoard events to ``out_dir`` (extra ``log``).

    Raises:
        InputError, OutputExistsError, TrainingError: bad arguments, an existing run, a loss that is NaN or infinite.
    """
    require(net, ExitNet, "net", "attach exits to the backbone first")
    require(loss, EGTLoss | None, "loss")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: expected an integer of 1 or more, got {value!r}")
    if not 0 <= seed < 2**40:
        raise InputError(f"seed: expected a number in [0, 2^40), got {seed}")
    if not 0 < learning_rate < math.inf or not 0 <= weight_decay < math.inf:
        raise InputError(
            f"learning_rate, weight_decay: expected finite numbers above 0 and from 0, got {learning_rate}, {weight_decay}"
        )
    if keep not in ("last", "best"):
        raise InputError(f"keep: expected 'last' or 'best', got {keep!r}")
    use_amp = _fast_bfloat16(net) if amp is None else amp
    settings = TrainingSettings(
        epochs, batch_size, learning_rate, weight_decay, seed, use_amp, channels_last, freeze_backbone
    )
    run = _Run(net, loss or EGTLoss(), settings, augment, workers, None if out_dir is None else Path(out_dir))
    run.open(resume, train)
    with _bar(progress) as bar, open_tensorboard(run.out_dir if tensorboard else None) as write_events:
        for epoch in range(run.epochs_done, epochs):
            row = run.epoch(epoch, train, val, bar)
            run.save(row)
            write_events(row)
            bar.console.print(format_epoch(row, epochs)) if progress else None
    run.finish(keep)
    return run.result


class _Run:
    """State of one training run: optimiser, history, and where it is written."""

    def __init__(
        self,
        net: ExitNet,
        loss: EGTLoss,
        settings: TrainingSettings,
        augment: Augment | None,
        workers: int,
        out_dir: Path | None,
    ) -> None:
        self.net, self.loss, self.settings, self.augment = net, loss, settings, augment
        self.workers, self.out_dir = workers, out_dir
        self.result = FitResult(out_dir=out_dir)
        self.best_state: dict[str, Tensor] | None = None
        if settings.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parameters = select_trainable(net, settings.freeze_backbone)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    @property
    def epochs_done(self) -> int:
        return len(self.result.history)

    def open(self, resume: bool, train: Any) -> None:
        """Prepares ``out_dir`` and, on resume, loads the last whole epoch."""
        if self.out_dir is None:
            if resume:
                raise TrainingError("resume: there is nothing to resume without out_dir: pass the run's directory")
            return
        size = len(train) if isinstance(train, Dataset | DataLoader) and hasattr(train, "__len__") else None
        record = {
            "settings": asdict(self.settings),
            "loss": asdict(self.loss),
            "network": self.net.info.to_dict(),
            "training_data": {"type": type(train).__name__, "length": size},
        }
        record = json.loads(json.dumps(record))
        written = self.out_dir / SETTINGS
        if written.exists() and not resume:
            raise OutputExistsError(f"out_dir: {self.out_dir} holds a run already: pass resume=True or another directory")
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputExistsError(f"out_dir: {self.out_dir} cannot be a directory ({error}): choose another") from error
        if written.exists() and _read_record(written) != record:
            raise TrainingError(f"resume: {written} was made with other arguments: pass the same ones or another out_dir")
        write_text(written, json.dumps(record, indent=1) + "\n")
        if (self.out_dir / LAST).exists():
            self._restore(self.out_dir / LAST)

    def epoch(self, epoch: int, train: Any, val: Any, bar: Progress) -> dict[str, Any]:
        """One pass over the training data and one over the validation data."""
        started = time.perf_counter()
        seed = self.settings.seed * 1_000_003 + epoch
        loader = train if isinstance(train, DataLoader) else self._loader(train, seed)
        for holder in (loader, getattr(loader, "sampler", None)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
        sums, steps = dict.fromkeys(("total", "classification", "consistency", "distillation"), 0.0), len(loader)
        task = bar.add_task(f"epoch {epoch + 1}", total=steps)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with enter_training_mode(self.net, self.settings.freeze_backbone):
                for step, batch in enumerate(loader):
                    images, labels = as_batch(batch, self.net.device)
                    if labels is None:
                        raise InputError("train: expected batches of (images, labels), got images only")
                    at = epoch * steps + step
                    if self.augment:
                        images = self.augment(images)
                    progress = at / (self.settings.epochs * steps)
                    terms = take_step(self.net, self.optimizer, self.loss, images, labels, progress, self.settings)
                    for name, value in floats(terms).items():
                        sums[name] += value / steps
                    bar.advance(task)
            accuracy, cc = _validate(self.net, val, self.settings)
        bar.remove_task(task)
        return {
            "epoch": epoch + 1,
            "loss": sums,
            "accuracy": accuracy,
            "cc": cc,
            "seconds": time.perf_counter() - started,
        }

    def _loader(self, train: Any, seed: int) -> DataLoader[Any]:
        if not isinstance(train, Dataset) or not hasattr(train, "__len__"):
            raise InputError(f"train: expected a Dataset with a length, or a DataLoader, got {type(train).__name__}")
        return make_epoch_loader(train, self.settings.batch_size, seed, self.workers)

    def save(self, row: dict[str, Any]) -> None:
        """Adds an epoch to the history and writes checkpoint and log."""
        self.result.history.append(row)
        self.result.seconds += row["seconds"]
        scores = [sum(r["accuracy"]) for r in self.result.history]
        is_best = scores[-1] == max(scores) and scores.index(max(scores)) == len(scores) - 1
        self.result.best_epoch = scores.index(max(scores)) + 1
        state = unique_state(self.net)
        if is_best:
            self.best_state = state
        if self.out_dir is None:
            return
        note = {"history": self.result.history, "seconds": self.result.seconds}
        if is_best:
            write_tensors(self.out_dir / BEST, state, {"epoch": row["epoch"]})
        save_checkpoint(self.out_dir / LAST, self.net, self.optimizer, note)
        write_log(self.out_dir / LOG, self.result.history)

    def _restore(self, path: Path) -> None:
        note = load_checkpoint(path, self.net, self.optimizer)
        self.result.history, self.result.seconds = note["history"], note["seconds"]
        scores = [sum(r["accuracy"]) for r in self.result.history]
        self.result.best_epoch = scores.index(max(scores)) + 1

    def finish(self, keep: str) -> None:
        """Leaves the network in evaluation mode, with the weights asked for."""
        if keep == "best" and self.result.best_epoch != self.epochs_done:
            state = self.best_state
            if state is None and self.out_dir is not None:
                state, _ = read_tensors(self.out_dir / BEST)
            if state is not None:
                load_unique_state(self.net, state, "best checkpoint")
        self.net.eval()


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise TrainingError(f"resume: {path} is damaged ({error}): start again in another out_dir") from error


def _validate(net: ExitNet, val: Any, settings: TrainingSettings) -> tuple[list[float], list[float]]:
    """Accuracy of every exit and mean attention CC of the early exits with the final one."""
    correct, cc, count = torch.zeros(net.num_exits), torch.zeros(net.num_exits - 1), 0
    with switch_mode(net, False), torch.no_grad():
        for images, labels in batches(val, max(settings.batch_size, 64), net.device):
            if labels is None:
                raise InputError("val: expected batches of (images, labels), got images only")
            net.check_input(images, "val")
            outputs: Sequence[ExitOutput] = net(images)
            check_labels(labels, count_rows(images), outputs[0].logits.shape[1], "val labels")
            count += len(labels)
            for k, out in enumerate(outputs):
                correct[k] += (out.logits.argmax(1) == labels).sum().cpu()
                if k < len(cc):
                    cc[k] += pearson(*on_common_grid(out.attention, outputs[-1].attention)).sum().cpu()
    if count == 0:
        raise InputError("val: it gave no batch: pass at least one image")
    return (correct / count).tolist(), (cc / count).tolist()


def _fast_bfloat16(net: ExitNet) -> bool:
    device = net.device.type
    if device == "cpu":
        return is_bfloat16_fast()
    return device == "cuda" and torch.cuda.is_bf16_supported()


def _bar(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=not show, transient=True)
