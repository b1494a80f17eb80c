"""A training run: its epochs, validation, checkpoints and record."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from exitlens.data.batches import Loader, as_batch, count_batches, make_epoch_loader, plan_epoch, share_bad, take_share
from exitlens.errors import InputError, OutputExistsError, TrainingError
from exitlens.functional.losses import EGTLoss
from exitlens.io import read_tensors, write_json, write_tensors
from exitlens.model.backbones.weights import load_unique_state, unique_state
from exitlens.model.network import ExitNet
from exitlens.ranks import ALONE, Ranks
from exitlens.types import LossTerms
from exitlens.types.inputs import Inputs
from exitlens.types.tasks import check_truth
from exitlens.workflow.training.checkpoint import load_checkpoint, save_checkpoint
from exitlens.workflow.training.distributed import (
    LAUNCH,
    SharedGradients,
    SharedLoader,
    average_statistics,
    check_batch_size,
    copy_weights,
    is_restarted,
    record_launch,
)
from exitlens.workflow.training.ema import WeightAverage
from exitlens.workflow.training.frozen import FrozenFeatures
from exitlens.workflow.training.log import write_log
from exitlens.workflow.training.monitor import find_best_epoch, is_exhausted
from exitlens.workflow.training.parameters import group_parameters, make_optimizer
from exitlens.workflow.training.step import (
    TrainingSettings,
    apply_gradients,
    compute_gradients,
    enter_training_mode,
    floats,
    list_trained,
)
from exitlens.workflow.training.validation import validate

Augment = Callable[[Any], Any]
BEFORE = {"target": "attention", "reach": "network", "every": 1}  # what losses did before these could be chosen
LAST, BEST, LOG, SETTINGS = "last.safetensors", "best.safetensors", "log.csv", "settings.json"


@dataclass(eq=False)
class TrainingRun:
    """State of one training run: optimiser, directory, and what :class:`~exitlens.workflow.training.fit.FitResult` has."""

    net: ExitNet
    loss: EGTLoss
    settings: TrainingSettings
    augment: Augment | None
    workers: int | None
    out_dir: Path | None
    ranks: Ranks = ALONE
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    best_state: dict[str, Tensor] | None = None
    frozen: FrozenFeatures | None = None

    def __post_init__(self) -> None:
        check_batch_size(self.settings.batch_size, self.ranks)
        self.optimizer = make_optimizer(group_parameters(self.net, self.settings))
        self.losses = [self.loss.at_step(step) for step in range(min(self.loss.every or 1, 2))]  # asked for maps, and not
        self.gradients = SharedGradients(list_trained(self.optimizer), self.ranks)
        decay = self.settings.ema
        self.average = None if decay is None else WeightAverage(self.net, decay)

    @property
    def epochs_done(self) -> int:
        """Whole epochs so far, resumed ones included."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) with the best validation measure; 0 before the first."""
        return find_best_epoch(self.history, self.settings.monitor)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or the last ones, as many as ``patience``, brought nothing better."""
        done = self.epochs_done >= self.settings.epochs
        return done or is_exhausted(self.history, self.settings.monitor, self.settings.patience)

    @contextmanager
    def opened(self, resume: bool, train: Any) -> Iterator[None]:
        """:meth:`open`, and what it wrote is taken back if there is an error before the first epoch's end.

        So a corrected call can use the same ``out_dir``.
        """
        is_new = self.out_dir is not None and not (self.out_dir / SETTINGS).exists()
        self.open(resume, train)
        try:
            yield
        except Exception:
            if self.out_dir is not None and is_new and self.ranks.is_first and not self.history:
                for name in (SETTINGS, LAUNCH):
                    (self.out_dir / name).unlink(missing_ok=True)
            raise

    def open(self, resume: bool, train: Any) -> None:
        """Prepares ``out_dir`` and, on resume, loads the last whole epoch; every rank starts from the state of rank 0."""
        if self.out_dir is not None:
            last = self.out_dir / LAST
            if self.ranks.share(lambda: self._prepare(resume or is_restarted(last.parent), train)):
                note = load_checkpoint(last, self.net, self.optimizer, self.average, self.ranks)
                self.history, self.seconds = note["history"], note["seconds"]
        elif resume:
            raise TrainingError("resume: there is nothing to resume without out_dir: pass the run's directory")
        copy_weights(self.net, self.ranks)
        if self.average is not None:
            self.ranks.copy_first(list(self.average.state.values()))

    def _prepare(self, resume: bool, train: Any) -> bool:
        """Checks and writes the record in ``out_dir``; whether there is an epoch to go on from."""
        assert self.out_dir is not None
        size = len(train) if isinstance(train, Dataset | DataLoader) and hasattr(train, "__len__") else None
        record = {
            "settings": asdict(self.settings),
            "loss": asdict(self.loss),
            "network": replace(self.net.info, map_offsets=(), feature_offsets=()).to_dict(),  # these follow from weights
            "training_data": {"type": type(train).__name__, "length": size},
        }
        written = self.out_dir / SETTINGS
        if written.exists() and not resume:
            raise OutputExistsError(f"out_dir: {self.out_dir} holds a run already: pass resume=True or another directory")
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputExistsError(f"out_dir: {self.out_dir} cannot be a directory ({error}): choose another") from error
        before, now = self._read_record(written) if written.exists() else record, json.loads(json.dumps(record))
        if written.exists() and before != now:
            others = ", ".join(_name_differences(before, now))
            raise TrainingError(
                f"resume: {written} was made with other arguments ({others}): pass the same ones or another out_dir"
            )
        record_launch(self.out_dir)
        write_json(written, record)
        return (self.out_dir / LAST).exists()

    def _read_record(self, path: Path) -> Any:
        """The record of an existing run; what an older version did not write was at its default."""
        try:
            found = json.loads(path.read_text())
            for name, kind in (("settings", self.settings), ("loss", self.loss)):
                defaults = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
                found[name] = json.loads(json.dumps(defaults | (BEFORE if name == "loss" else {}))) | found[name]
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"resume: {path} is damaged ({error}): start again in another out_dir") from error
        return found

    def train_epoch(self, epoch: int, train: Any, val: Any, bar: Progress) -> dict[str, Any]:
        """One pass over the training data and one over the validation data; gives the epoch's row of the history."""
        started = time.perf_counter()
        seed = self.settings.seed * 1_000_003 + epoch
        loader = self._open_loader(train, seed)
        task = bar.add_task(f"epoch {epoch + 1}", total=len(loader))
        with torch.random.fork_rng():
            torch.manual_seed(self.ranks.vary_seed(seed))
            with enter_training_mode(self.net, self.settings.freeze_backbone, self.settings.batch_norm):
                loss = self._take_steps(epoch, loader, lambda: bar.advance(task))
            for state in (self.net.state_dict(), {} if self.average is None else self.average.state):
                average_statistics(self.net, state, self.ranks)
            with nullcontext() if self.average is None else self.average.applied():
                model, data = (self.net, val) if self.frozen is None else self.frozen.choose_validation(self.net, val)
                batch_size = max(self.settings.batch_size, 64)
                with self.ranks.together():
                    data = take_share(data, batch_size, self.ranks, "val")
                bar.reset(task, description=f"validating {epoch + 1}", total=count_batches(data, batch_size))
                advance = partial(bar.advance, task)
                found = validate(model, data, self.loss, batch_size, self.workers, advance, self.ranks)
            for source in (train, val):
                share_bad(source, self.ranks)
        bar.remove_task(task)
        seconds = time.perf_counter() - started
        return {"epoch": epoch + 1, "loss": loss, **found.to_row(), "seconds": seconds}

    def _take_steps(self, epoch: int, loader: Loader, advance: Callable[[], None]) -> dict[str, float]:
        """The mean of every loss term over the batches; of consistency over those that it was asked for."""
        sums, batches, taken, compared = dict.fromkeys(LossTerms._fields, 0.0), len(loader), 0.0, 0.0
        at_once, stream = self.settings.accumulate, self._draw_batches(loader)
        steps = -(-batches // at_once)
        model = self.net if self.frozen is None else self.frozen.heads
        for step in count():
            done = epoch * steps + step
            progress, loss = done / (self.settings.epochs * steps), self.losses[done % (self.loss.every or 1) > 0]
            with self.ranks.together():
                group = list(islice(stream, at_once))
                found = compute_gradients(model, self.optimizer, loss, group, progress, self.settings)
            share = self.gradients.average(sum(len(labels) for _, labels in group))
            if share is None:
                break
            apply_gradients(self.optimizer, progress, self.settings)
            for terms in found:
                for name, value in floats(terms).items():
                    sums[name] += value / batches * share
                advance()
            taken += share * len(group)
            compared += share * len(group) * (loss.weight > 0)
            if self.average is not None:
                self.average.update()
        *totals, taken, compared = self.ranks.add_floats([*sums.values(), taken, compared])
        left = batches / max(taken, 1)  # lazy sets leave out bad batches
        means = {name: total * left for name, total in zip(sums, totals, strict=True)}
        asked = taken / compared if compared else 1.0 if self.loss.weight == 0 else math.nan
        return means | {"consistency": means["consistency"] * asked}

    def _draw_batches(self, loader: Loader) -> Iterator[tuple[Inputs, Tensor]]:
        for batch in loader:
            images, labels, _ = as_batch(batch, self.net.device, "train")
            if labels is None:
                raise InputError("train: expected batches of (images, labels), got images only")
            if type(self.loss) is EGTLoss:  # users' own may take other labels
                check_truth(labels, len(labels), self.net.info.num_classes, self.net.info.task)
            yield self.augment(images) if self.augment else images, labels

    def _open_loader(self, train: Any, seed: int) -> Loader:
        """The user's own loader, its generators seeded; or one over the data set, in an order that depends on the seed."""
        if not isinstance(train, DataLoader):
            if not isinstance(train, Dataset) or not hasattr(train, "__len__"):
                raise InputError(f"train: expected a Dataset with a length, or a DataLoader, got {type(train).__name__}")
            balanced = self.settings.balanced
            if self.frozen is not None:
                return self.frozen.train.open(plan_epoch(train, self.settings.batch_size, seed, balanced, self.ranks))
            return make_epoch_loader(train, self.settings.batch_size, seed, self.workers, balanced, self.ranks)
        if self.settings.balanced:
            raise InputError("balanced: a DataLoader draws its own samples: give the data set, or the loader a sampler")
        if isinstance(train.sampler, DistributedSampler):
            train.sampler.set_epoch(seed)
        for holder in (train, train.sampler):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
        return train if self.ranks.size == 1 else SharedLoader(train, self.ranks)

    def save(self, row: dict[str, Any]) -> None:
        """Adds an epoch to the history and writes checkpoint and log."""
        self.history.append(row)
        self.seconds += row["seconds"]
        is_best, state = self.best_epoch == len(self.history), self._copy_weights()
        if is_best:
            self.best_state = state
        if self.out_dir is not None:
            self.ranks.share(lambda: self._write(state if is_best else None))

    def _write(self, best: dict[str, Tensor] | None) -> None:
        assert self.out_dir is not None
        if best is not None:
            write_tensors(self.out_dir / BEST, best, {"epoch": self.epochs_done})
        note = {"history": self.history, "seconds": self.seconds}
        save_checkpoint(self.out_dir / LAST, self.net, self.optimizer, note, self.average)
        write_log(self.out_dir / LOG, self.history)

    def _copy_weights(self) -> dict[str, Tensor]:
        """The weights that training is for: their average, where one is kept."""
        return unique_state(self.net) if self.average is None else {k: v.clone() for k, v in self.average.state.items()}

    def finish(self, keep: str) -> int:
        """Leaves the network in evaluation mode, with the weights asked for; gives their epoch."""
        if keep == "best" and self.best_epoch != self.epochs_done:
            state = self.best_state
            if state is None and self.out_dir is not None:
                best = self.out_dir / BEST
                state, _ = self.ranks.share(lambda: read_tensors(best))
            if state is not None:
                load_unique_state(self.net, state, "best checkpoint")
        elif self.average is not None:
            load_unique_state(self.net, self.average.state, "average of the weights")
        self.net.eval()
        return self.best_epoch if keep == "best" else self.epochs_done


def _name_differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What two records of a run differ in, with both values where they are short."""
    for part in now:
        old, new = before.get(part), now[part]
        if not isinstance(old, dict) or not isinstance(new, dict):
            old, new = {part: old}, {part: new}
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                was, now_is = str(old.get(name)), str(new.get(name))
                yield f"{name} {was}, now {now_is}" if len(was + now_is) < 60 else name
