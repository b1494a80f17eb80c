"""A training run: its epochs, validation, checkpoints and record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from exitlens.data.batches import as_batch, iterate_batches, make_epoch_loader, take_share
from exitlens.errors import InputError, OutputExistsError, TrainingError
from exitlens.functional.losses import EGTLoss, check_labels
from exitlens.functional.maps import on_common_grid
from exitlens.functional.similarity import pearson
from exitlens.io import read_tensors, write_json, write_tensors
from exitlens.model.backbones.weights import load_unique_state, unique_state
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet
from exitlens.ranks import ALONE, Ranks
from exitlens.types import ExitOutput, LossTerms
from exitlens.types.inputs import count_rows
from exitlens.workflow.training.checkpoint import load_checkpoint, save_checkpoint
from exitlens.workflow.training.distributed import (
    average_buffers,
    average_gradients,
    check_batch_size,
    copy_weights,
    is_restarted,
    iterate_rows,
    record_launch,
)
from exitlens.workflow.training.log import write_log
from exitlens.workflow.training.step import (
    TrainingSettings,
    apply_gradients,
    compute_gradients,
    enter_training_mode,
    floats,
    select_trainable,
)

Augment = Callable[[Any], Any]
LAST, BEST, LOG, SETTINGS = "last.safetensors", "best.safetensors", "log.csv", "settings.json"


@dataclass(eq=False)
class TrainingRun:
    """State of one training run: optimiser, directory, and what :class:`~exitlens.workflow.training.fit.FitResult` has."""

    net: ExitNet
    loss: EGTLoss
    settings: TrainingSettings
    augment: Augment | None
    workers: int
    out_dir: Path | None
    ranks: Ranks = ALONE
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    best_state: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        check_batch_size(self.settings.batch_size, self.ranks)
        parameters, rate = select_trainable(self.net, self.settings.freeze_backbone), self.settings.learning_rate
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=self.settings.weight_decay)

    @property
    def epochs_done(self) -> int:
        """Whole epochs so far, resumed ones included."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) with the best mean validation accuracy over exits; 0 before the first."""
        scores = [sum(row["accuracy"]) for row in self.history]
        return scores.index(max(scores)) + 1 if scores else 0

    def open(self, resume: bool, train: Any) -> None:
        """Prepares ``out_dir`` and, on resume, loads the last whole epoch; every rank starts from the state of rank 0."""
        if self.out_dir is None:
            if resume:
                raise TrainingError("resume: there is nothing to resume without out_dir: pass the run's directory")
        else:
            last = self.out_dir / LAST
            if self.ranks.share(lambda: self._prepare(resume or is_restarted(last.parent), train)):
                note = load_checkpoint(last, self.net, self.optimizer, self.ranks)
                self.history, self.seconds = note["history"], note["seconds"]
        copy_weights(self.net, self.ranks)

    def _prepare(self, resume: bool, train: Any) -> bool:
        """Checks and writes the record in ``out_dir``; whether there is an epoch to go on from."""
        assert self.out_dir is not None
        size = len(train) if isinstance(train, Dataset | DataLoader) and hasattr(train, "__len__") else None
        record = {
            "settings": asdict(self.settings),
            "loss": asdict(self.loss),
            "network": self.net.info.to_dict(),
            "training_data": {"type": type(train).__name__, "length": size},
        }
        written = self.out_dir / SETTINGS
        if written.exists() and not resume:
            raise OutputExistsError(f"out_dir: {self.out_dir} holds a run already: pass resume=True or another directory")
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputExistsError(f"out_dir: {self.out_dir} cannot be a directory ({error}): choose another") from error
        if written.exists() and _read_record(written) != json.loads(json.dumps(record)):
            raise TrainingError(f"resume: {written} was made with other arguments: pass the same ones or another out_dir")
        record_launch(self.out_dir)
        write_json(written, record)
        return (self.out_dir / LAST).exists()

    def train_epoch(self, epoch: int, train: Any, val: Any, bar: Progress) -> dict[str, Any]:
        """One pass over the training data and one over the validation data; gives the epoch's row of the history."""
        started = time.perf_counter()
        seed = self.settings.seed * 1_000_003 + epoch
        loader = self._open_loader(train, seed)
        task = bar.add_task(f"epoch {epoch + 1}", total=len(loader))
        with torch.random.fork_rng():
            torch.manual_seed(self.ranks.vary_seed(seed))
            with enter_training_mode(self.net, self.settings.freeze_backbone):
                batches = iterate_rows(loader, self.ranks) if loader is train else iter(loader)
                loss = self._take_steps(epoch, batches, max(1, len(loader)), lambda: bar.advance(task))
            average_buffers(self.net, self.ranks)
            accuracy, cc = self._validate(val)
        bar.remove_task(task)
        seconds = time.perf_counter() - started
        return {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy, "cc": cc, "seconds": seconds}

    def _take_steps(self, epoch: int, batches: Iterator[Any], steps: int, advance: Callable[[], None]) -> dict[str, float]:
        """The mean of every loss term over the steps."""
        sums = torch.zeros(len(LossTerms._fields), dtype=torch.float64)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        for step in count():
            progress = (epoch * steps + step) / (self.settings.epochs * steps)
            with self.ranks.together():
                rows, terms = self._compute_batch(next(batches, None), progress)
            share = average_gradients(trained, self.ranks, rows)
            if share is None:
                break
            apply_gradients(self.optimizer, progress, self.settings)
            if terms is not None:
                sums += torch.tensor([value / steps * share for value in floats(terms).values()], dtype=torch.float64)
            advance()
        self.ranks.add([sums])
        return dict(zip(LossTerms._fields, sums.tolist(), strict=True))

    def _compute_batch(self, batch: Any, progress: float) -> tuple[int | None, LossTerms | None]:
        """Makes the gradients of a batch; how many samples it has and its loss, nothing for ``None``."""
        if batch is None:
            return None, None
        images, labels = as_batch(batch, self.net.device)
        if labels is None:
            raise InputError("train: expected batches of (images, labels), got images only")
        if not len(labels):
            return 0, None
        if self.augment:
            images = self.augment(images)
        return len(labels), compute_gradients(self.net, self.optimizer, self.loss, images, labels, progress, self.settings)

    def _validate(self, val: Any) -> tuple[list[float], list[float]]:
        """Accuracy of every exit and mean attention CC of the early exits with the final one, over all ranks' samples."""
        batch_size = max(self.settings.batch_size, 64)
        with self.ranks.together():
            correct, cc, seen = _sum_answers(self.net, take_share(val, batch_size, self.ranks, "val"), batch_size)
        self.ranks.add([correct, cc, seen])
        if not seen:
            raise InputError("val: it gave no batch: pass at least one image")
        return (correct / seen).tolist(), (cc / seen).tolist()

    def _open_loader(self, train: Any, seed: int) -> DataLoader[Any]:
        """The user's own loader, its generators seeded; or one over the data set, in an order that depends on the seed."""
        if not isinstance(train, DataLoader):
            if not isinstance(train, Dataset) or not hasattr(train, "__len__"):
                raise InputError(f"train: expected a Dataset with a length, or a DataLoader, got {type(train).__name__}")
            return make_epoch_loader(train, self.settings.batch_size, seed, self.workers, self.ranks)
        if isinstance(train.sampler, DistributedSampler):
            train.sampler.set_epoch(seed)
        for holder in (train, train.sampler):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
        return train

    def save(self, row: dict[str, Any]) -> None:
        """Adds an epoch to the history and writes checkpoint and log."""
        self.history.append(row)
        self.seconds += row["seconds"]
        is_best, state = self.best_epoch == len(self.history), unique_state(self.net)
        if is_best:
            self.best_state = state
        if self.out_dir is not None:
            self.ranks.share(lambda: self._write(state if is_best else None))

    def _write(self, best: Mapping[str, Tensor] | None) -> None:
        assert self.out_dir is not None
        if best is not None:
            write_tensors(self.out_dir / BEST, best, {"epoch": self.epochs_done})
        save_checkpoint(self.out_dir / LAST, self.net, self.optimizer, {"history": self.history, "seconds": self.seconds})
        write_log(self.out_dir / LOG, self.history)

    def finish(self, keep: str) -> None:
        """Leaves the network in evaluation mode, with the weights asked for."""
        if keep == "best" and self.best_epoch != self.epochs_done:
            state = self.best_state
            if state is None and self.out_dir is not None:
                best = self.out_dir / BEST
                state, _ = self.ranks.share(lambda: read_tensors(best))
            if state is not None:
                load_unique_state(self.net, state, "best checkpoint")
        self.net.eval()


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise TrainingError(f"resume: {path} is damaged ({error}): start again in another out_dir") from error


def _sum_answers(net: ExitNet, val: Any, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of this rank's samples: right answers of every exit, summed attention CC of the early exits with the final, number."""
    correct, cc, seen = torch.zeros(net.num_exits), torch.zeros(net.num_exits - 1), torch.zeros(1, dtype=torch.int64)
    with switch_mode(net, False), torch.no_grad():
        for images, labels in iterate_batches(val, batch_size, net.device):
            if labels is None:
                raise InputError("val: expected batches of (images, labels), got images only")
            net.check_input(images, "val")
            outputs: Sequence[ExitOutput] = net(images)
            check_labels(labels, count_rows(images), outputs[0].logits.shape[1], "val labels")
            seen += len(labels)
            for k, out in enumerate(outputs):
                correct[k] += (out.logits.argmax(1) == labels).sum().cpu()
                if k < len(cc):
                    cc[k] += pearson(*on_common_grid(out.attention, outputs[-1].attention)).sum().cpu()
    return correct, cc, seen
