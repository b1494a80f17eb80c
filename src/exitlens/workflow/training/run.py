"""A training run: its epochs, validation and checkpoints."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from exitlens.data import batches
from exitlens.data.batches import Loader, as_batch, iterate_batches
from exitlens.errors import InputError, TrainingError
from exitlens.functional.answers import rate_answers
from exitlens.functional.losses import EGTLoss, check_labels
from exitlens.functional.maps import on_common_grid, pearson
from exitlens.functional.pixels import count_confusion, measure_mean_iou
from exitlens.io import read_tensors, write_tensors
from exitlens.model.backbones.weights import load_unique_state, unique_state
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet, NetworkInfo
from exitlens.model.process import SHARED_CORES
from exitlens.progress import Advance
from exitlens.ranks import ALONE, DistributedContext
from exitlens.types import ExitOutput, LossTerms
from exitlens.types.inputs import Inputs, count_rows, map_inputs, set_channels_last
from exitlens.types.settings import TrainingSettings
from exitlens.types.tasks import CONTINUOUS, Task, are_same, check_truth, find_answers, task_of_labels
from exitlens.types.traces import rate_pixels
from exitlens.workflow.training import distributed, optimizer, record
from exitlens.workflow.training.augmentation import Augmentation
from exitlens.workflow.training.debiasing import Guide, ShallowExpert
from exitlens.workflow.training.frozen import CachedHeads, FeatureLoader, FrozenFeatures, require_labels
from exitlens.workflow.training.ignoring import Ignoring
from exitlens.workflow.training.optimizer import use_half_precision

Augment = Callable[[Any], Any]
# inputs, labels, the strength of an expert, and which samples a guide left whole, (B,) bool
TrainingBatch = tuple[Inputs, Tensor, float, Tensor | None]


@dataclass(eq=False)
class TrainingRun:
    """State of a training run: optimiser, run directory, history, and the best weights so far."""

    net: ExitNet
    loss: EGTLoss
    settings: TrainingSettings
    augment: Augment | None = None
    ignoring: Ignoring | None = None
    workers: int | None = None
    out_dir: Path | None = None
    ranks: DistributedContext = ALONE
    guide: Guide | None = None  # whose maps say what samples rely on
    teacher: ExitNet | None = None  # whose final answers every exit learns, besides the labels
    is_guide: bool = False  # this run trains the guide of another
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    best_state: dict[str, Tensor] | None = None
    frozen: FrozenFeatures | None = None
    note: str = ""  # about settings that changed since the run was last opened
    overall: TaskID | None = None  # progress of all epochs together

    def __post_init__(self) -> None:
        batch_size, size = self.settings.batch_size, self.ranks.size
        if batch_size < size:
            raise InputError(f"batch_size: expected at least a sample for each of {size} processes, got {batch_size}")
        self.optimizer = optimizer.make_optimizer(optimizer.group_parameters(self.net, self.settings))
        self.gradients = distributed.SharedGradients(optimizer.list_trained(self.optimizer), self.ranks)
        decay = self.settings.ema
        self.average = None if decay is None else optimizer.WeightAverage(self.net, decay)
        relies = self.settings.rely_on == "map"
        self.expert = ShallowExpert(self.net, self.settings, self.ranks) if relies else None
        self.kept: list[record.Kept] = [part for part in (self.average, self.expert) if part is not None]

    @property
    def prefix(self) -> str:
        """What lines about this run begin with."""
        return "guide, " if self.is_guide else ""

    @property
    def epochs_done(self) -> int:
        """Whole epochs so far, resumed ones included."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) of the best ``settings.monitor``; 0 before the first."""
        monitor = self.settings.monitor
        if monitor == "loss":
            losses = [row["val_loss"] for row in self.history]
            values = [-loss if math.isfinite(loss) else -math.inf for loss in losses]
        else:
            rows = list(map(record.find_quality, self.history))
            values = [sum(row) if monitor == "accuracy" else row[-1] for row in rows]
        return values.index(max(values)) + 1 if values else 0

    @property
    def kept_epoch(self) -> int:
        """The epoch (from 1) whose weights :meth:`finish` keeps."""
        return self.best_epoch if self.settings.kept_epoch == "best" else self.epochs_done

    @property
    def is_over(self) -> bool:
        """True if all epochs are done, or the last ``patience`` epochs brought nothing better."""
        patience = self.settings.patience
        waits = patience is None or self.epochs_done - self.best_epoch < patience
        return self.epochs_done >= self.settings.epochs or not waits

    @contextmanager
    def open(self, resume: bool, train: Any) -> Iterator[None]:
        """Prepare ``out_dir`` and, on resume, load the last whole epoch; every rank starts from the state of rank 0.

        An error before the end of the first epoch removes what was written, so that a corrected call can use ``out_dir``.
        """
        out_dir, is_new, has_guide = self.out_dir, False, False
        if out_dir is not None:
            is_new, has_guide = not (out_dir / record.SETTINGS).exists(), (out_dir / record.GUIDE).exists()

            arguments = record.describe_run(self.net, self.loss, self.settings, train)
            has_epoch, self.note = self.ranks.share(
                lambda: record.open_record(out_dir, arguments, resume or record.is_restarted(out_dir))
            )
            if has_epoch:
                last = out_dir / record.LAST
                note = record.load_checkpoint(last, self.net, self.optimizer, self.kept, self.ranks)
                self.history, self.seconds = note["history"], note["seconds"]
        elif resume:
            raise TrainingError("resume: there is nothing to resume without out_dir. Fix: pass the run's directory.")
        distributed.copy_weights(self.net, self.ranks)
        if self.average is not None:
            self.ranks.copy_first(list(self.average.state.values()))
        if self.expert is not None:
            self.ranks.copy_first(list(self.expert.head.parameters()))
        try:
            yield
        except Exception:
            if out_dir is not None and is_new and self.ranks.is_first and not self.history:
                for name in (record.SETTINGS, record.LAUNCH):
                    (out_dir / name).unlink(missing_ok=True)
                if not has_guide:
                    shutil.rmtree(out_dir / record.GUIDE, ignore_errors=True)
            raise
        except KeyboardInterrupt as stop:
            at = f"after epoch {self.epochs_done} of {self.settings.epochs}" if self.history else "in the first epoch"
            at += "; the pass of the frozen backbone is repeated" if self.settings.freeze_backbone else ""
            at = f"{self.prefix}{at}"
            folder = out_dir.parent if out_dir and self.is_guide else out_dir
            kept = f"resume=True (--resume) goes on in {folder}" if folder else "nothing was written without out_dir"
            notes = getattr(stop, "__notes__", [])
            if kept not in notes:  # else the guide was stopped, and has said so
                stop.__notes__ = [at, kept, *notes]  # the command line keeps the first, and says itself how to go on
            raise

    def train_epoch(self, epoch: int, train: Any, val: Any, bar: Progress) -> dict[str, Any]:
        """Pass over the training and the validation data once; return the epoch's row of the history."""
        started = time.perf_counter()
        seed = self.settings.seed * 1_000_003 + epoch
        loader = self._open_loader(train, seed)
        if self.overall is None and self.settings.epochs - epoch > 1:
            self.overall = bar.add_task(f"{self.prefix}training", total=(self.settings.epochs - epoch) * len(loader))
        task = bar.add_task(f"{self.prefix}epoch {epoch + 1}", total=len(loader))

        def advance() -> None:
            SHARED_CORES.adapt()
            bar.advance(task)
            if self.overall is not None:
                bar.advance(self.overall)

        with torch.random.fork_rng():
            torch.manual_seed(self.ranks.vary_seed(seed))
            with optimizer.enter_training_mode(self.net, self.settings.freeze_backbone, self.settings.batch_norm):
                loss = self._take_steps(epoch, loader, self._draw_batches(train, loader, seed), advance)
            for state in (self.net.state_dict(), {} if self.average is None else self.average.state):
                distributed.average_statistics(self.net, state, self.ranks)
            bar.update(task, description=f"validating {epoch + 1}")
            with nullcontext() if self.average is None else self.average.applied():
                means = self.validate(val, bar, task)
            for source in (train, val):
                batches.share_bad(source, self.ranks)
        bar.remove_task(task)
        return {"epoch": epoch + 1, "loss": loss, **means, "seconds": time.perf_counter() - started}

    def _take_steps(self, epoch: int, loader: Loader, stream: Iterator[TrainingBatch], advance: Advance) -> dict[str, float]:
        """Return the mean of every loss term over the batches; of consistency over the batches that computed it."""
        sums, total, taken, compared = dict.fromkeys(LossTerms._fields, 0.0), len(loader), 0.0, 0.0
        at_once, epochs = self.settings.accumulate, self.settings.epochs
        steps = -(-total // at_once)
        model = self.net if self.frozen is None else self.frozen.heads
        for step in count():
            loss, progress = self.loss.at(epoch * steps + step, epochs * steps, epochs)
            with self.ranks.together():
                group = list(islice(stream, at_once))
                losses = compute_gradients(
                    model, self.optimizer, loss, group, progress, self.settings, self.expert, self.teacher
                )
            rows = sum(len(labels) for _, labels, *_ in group)
            share = self.gradients.average(rows)
            if share is None:
                break
            optimizer.apply_gradients(self.optimizer, progress, self.settings)
            if self.expert is not None:
                self.expert.step(rows)
            for terms in losses:
                for name, value in list_floats(terms).items():
                    sums[name] += value / total * share
                advance()
            taken += share * len(group)
            compared += share * len(group) * (loss.weight > 0)
            if self.average is not None:
                self.average.update()
        *totals, taken, compared = self.ranks.add_floats([*sums.values(), taken, compared])
        if not taken:
            raise InputError("train: expected at least one batch, got none. Fix: pass data that every epoch can read.")
        factor = total / taken  # lazy sets leave out bad batches
        means = {name: value * factor for name, value in zip(sums, totals, strict=True)}
        if compared:
            means["consistency"] *= taken / compared
        elif self.loss.weight:  # no step was one that compares maps
            means["consistency"] = math.nan
        return means

    def _draw_batches(self, train: Any, loader: Loader, seed: int) -> Iterator[TrainingBatch]:
        masks: Iterator[Tensor | None] = repeat(None)
        if self.ignoring is not None and (objects := self.ignoring.objects) is not None:
            plan = batches.plan_epoch(train, self.settings.batch_size, seed, self.settings.balanced, self.ranks)
            masks = (objects[part] for part in plan)
        for batch, mask in zip(loader, masks, strict=False):
            given, info = as_batch(batch, self.net.device, "train"), self.net.info
            inputs, labels = given.inputs, require_labels(given, "train", info.task)
            if type(self.loss) is EGTLoss and info.task != "embedding":  # users' own losses may take other labels
                check_truth(labels, len(labels), info.num_classes, info.task)
            labels = info.read_targets(labels)
            if self.ignoring is not None:
                inputs = self.ignoring.exchange(inputs, mask)
            strength, is_whole = 0.0, None
            if self.is_guide:
                strength = 1 - 1 / (2 if labels.ndim == 2 else self.net.info.num_classes)  # see ShallowExpert
            elif self.guide is not None:
                inputs, strength, is_whole = self.guide.exchange(inputs, labels)
            if isinstance(self.augment, Augmentation) and isinstance(inputs, Tensor) and labels.ndim == 3:
                inputs, labels = self.augment.with_labels(inputs, labels)
            elif self.augment:
                inputs = self.augment(inputs)
            yield inputs, labels, strength, is_whole

    def _open_loader(self, train: Any, seed: int) -> Loader:
        """Return the user's own loader with seeded generators, or a loader of the data set in an order given by the seed."""
        if not isinstance(train, DataLoader):
            if not isinstance(train, Dataset) or not hasattr(train, "__len__"):
                raise InputError(f"train: expected a Dataset with a length, or a DataLoader, got {type(train).__name__}")
            balanced = self.settings.balanced
            if self.frozen is not None:
                plan = batches.plan_epoch(train, self.settings.batch_size, seed, balanced, self.ranks)
                return FeatureLoader(self.frozen.train, plan)
            return batches.make_epoch_loader(train, self.settings.batch_size, seed, self.workers, balanced, self.ranks)
        if self.settings.balanced:
            raise InputError("balanced: a DataLoader draws its own samples. Fix: pass the data set, or give it a sampler.")
        if isinstance(train.sampler, DistributedSampler):
            train.sampler.set_epoch(seed)
        for holder in (train, train.sampler):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
        return train if self.ranks.size == 1 else distributed.SharedLoader(train, self.ranks)

    def validate(self, val: Any, bar: Progress, bar_task: TaskID) -> dict[str, Any]:
        """Return means over the validation data, as the history has them.

        ``accuracy`` and ``cc`` (correlation with the final exit's map) are lists by exit; with several labels per sample,
        ``accuracy`` is subset accuracy and ``f1`` the micro-F1; with one class a pixel it is the share of pixels, and
        ``miou`` the mean IoU over classes. Numbers have ``r2`` in place of ``accuracy``, 1 less the mean squared error in
        spreads of the training targets, and vectors ``cosine``, the mean with the final exit's. ``val_loss`` is the loss's
        classification term.
        """
        net: ExitNet | CachedHeads = self.net
        if self.frozen is not None and self.frozen.val is not None:
            net, val = self.frozen.heads, self.frozen.val
        correct, cc = torch.zeros(net.num_exits), torch.zeros(net.num_exits - 1)
        total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        hits, marks = torch.zeros(net.num_exits, dtype=torch.float64), torch.zeros(net.num_exits, dtype=torch.float64)
        batch_size, confusion = max(self.settings.batch_size, 64), torch.zeros(0, dtype=torch.float64)
        if self.net.info.task == "segmentation":
            batch_size, classes = self.settings.batch_size, self.net.info.num_classes
            confusion = torch.zeros(net.num_exits, classes, classes, dtype=torch.float64)
        with self.ranks.together(), switch_mode(net, False), torch.no_grad():
            val = batches.take_share(val, batch_size, self.ranks, "val")
            bar.reset(bar_task, total=batches.count_batches(val, batch_size))
            for batch in iterate_batches(val, batch_size, net.device, self.workers, "val"):
                inputs, labels = batch.inputs, require_labels(batch, "val", self.net.info.task)
                net.check_input(inputs, "val")
                outputs: Sequence[ExitOutput] = net(inputs)
                task = check_task(labels, count_rows(inputs), self.net.info)
                labels = self.net.info.read_targets(labels)
                if len(confusion):
                    check_labels(labels, outputs[0].logits)
                count += len(labels)
                total += self.loss.classify(outputs, labels).item() * len(labels)
                for k, out in enumerate(outputs):
                    if k < len(cc):
                        cc[k] += pearson(*on_common_grid(out.attention, outputs[-1].attention)).sum().cpu()
                    answers = find_answers(out.logits, task)
                    if task in CONTINUOUS:
                        target = labels if task == "regression" else find_answers(outputs[-1].logits, task)
                        correct[k] += rate_answers(out.logits, target, task).cpu()
                        continue
                    if len(confusion):
                        confusion[k] += count_confusion(answers, labels, len(confusion[k])).sum(0).cpu()
                    correct[k] += are_same(answers, labels, task).sum().cpu()
                    if task == "multilabel":
                        hits[k] += (answers & labels.bool()).sum().cpu()
                        marks[k] += answers.sum().cpu() + labels.sum().cpu()
                SHARED_CORES.adapt()
                bar.advance(bar_task)
        self.ranks.add([correct, cc, total, count, hits, marks, *([confusion] if len(confusion) else [])])
        if not count:
            raise InputError("val: expected at least one batch, got none")
        quality = {"regression": "r2", "embedding": "cosine"}.get(self.net.info.task, "accuracy")
        row = {quality: (correct / count).tolist(), "cc": (cc / count).tolist(), "val_loss": (total / count).item()}
        if len(confusion):
            row |= _rate_exits(confusion)
        return row | {"f1": (2 * hits / marks.clamp_min(1)).tolist()} if marks.any() else row

    def save(self, row: dict[str, Any]) -> None:
        """Add an epoch to the history, and write checkpoint and log."""
        self.history.append(row)
        self.seconds += row["seconds"]
        is_best = self.best_epoch == len(self.history) and not self.is_guide
        # the average of the weights, if there is one, is what training is for
        state = unique_state(self.net) if self.average is None else {k: v.clone() for k, v in self.average.state.items()}
        if is_best:
            self.best_state = state
        if (out_dir := self.out_dir) is None:
            return

        def write() -> None:
            if is_best:
                write_tensors(out_dir / record.BEST, state, {"epoch": self.epochs_done})
            note = {"history": self.history, "seconds": self.seconds}
            record.save_checkpoint(out_dir / record.LAST, self.net, self.optimizer, note, self.kept)
            record.write_log(out_dir / record.LOG, self.history)

        self.ranks.share(write)

    def finish(self) -> None:
        """Leave the network in evaluation mode with the weights to keep."""
        if self.kept_epoch != self.epochs_done:
            state = self.best_state
            if state is None and self.out_dir is not None:
                best = self.out_dir / record.BEST
                state, _ = self.ranks.share(lambda: read_tensors(best))
            if state is not None:
                load_unique_state(self.net, state, "best checkpoint")
        elif self.average is not None:
            load_unique_state(self.net, self.average.state, "average of the weights")
        self.net.eval()


def _rate_exits(confusion: Tensor) -> dict[str, list[float]]:  # (K,C,C)
    if not confusion.sum():
        raise InputError("val: none of its pixels has a class: all labels are 255. Fix: pass labelled images.")
    return {"accuracy": rate_pixels(confusion).tolist(), "miou": measure_mean_iou(confusion).tolist()}


def compute_gradients(
    net: ExitNet | CachedHeads,
    optimizer: torch.optim.Optimizer,
    loss: EGTLoss,
    group: Sequence[TrainingBatch],
    progress: float,
    settings: TrainingSettings,
    expert: ShallowExpert | None = None,
    teacher: ExitNet | None = None,
) -> list[LossTerms]:
    """Compute the mean gradient over the samples of a group of batches, at ``progress`` in [0, 1) of training.

    With an ``expert``, its gradient, too. A ``teacher`` answers the same inputs in its own precision. Returns the loss of
    each batch; raises :class:`TrainingError` for one that is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    samples, losses = sum(count_rows(inputs) for inputs, *_ in group), []
    asked = loss.ask(settings.freeze_backbone)
    for inputs, labels, strength, is_whole in group:
        net.check_input(inputs, "train")
        given = map_inputs(inputs, set_channels_last) if settings.channels_last else inputs
        with use_half_precision(labels.device, bool(settings.amp)):
            try:
                seen = net.observe(given, **asked)
            except ValueError as error:  # torch's batch norm: "Expected more than 1 value per channel when training"
                fix = "Fix: use larger batches (drop_last=True for a loader) or larger images."
                raise TrainingError(f"batch of {len(labels)}: {error}. {fix}") from error
        share, additions = count_rows(inputs) / samples, dict[str, Any]()  # users' own losses need not know of what is added
        if seen.relevance is not None:
            additions["relevance"] = seen.relevance
        if expert is not None:
            assert seen.shallow is not None
            state = seen.outputs, seen.shallow, labels, progress, share, strength, is_whole
            additions["sample_weights"] = expert.weigh(*state)
        if teacher is not None:
            with torch.no_grad():
                additions["teacher"] = teacher(given)[-1].logits
        terms = loss(seen.outputs, labels, progress, seen.features, **additions)
        if not torch.isfinite(terms.total):
            raise TrainingError(
                f"loss: expected a finite number, got {terms.total.item()} at {100 * progress:.0f} % of training (terms "
                f"{list_floats(terms)}). Fix: lower learning_rate (now {settings.learning_rate})."
            )
        (terms.total * share).backward()
        losses.append(terms)
    return losses


def list_floats(terms: LossTerms) -> dict[str, float]:
    """Return the terms of a loss as numbers by name."""
    return {name: float(value.detach()) for name, value in terms._asdict().items()}


def check_validation(net: ExitNet, val: Any) -> Task:
    """Return the task that the labels imply; raise now what validation would raise after an epoch of training.

    Only the first sample or batch is read; an iterator, which could not be read again, is left alone.
    """
    if isinstance(val, Iterator):
        return net.info.task
    with torch.random.fork_rng(devices=[]):
        first = next((batch for batch in iterate_batches(val, 1, net.device, 0, "val") if count_rows(batch.inputs)), None)
    if first is None:
        raise InputError("val: expected at least one batch, got none")
    labels = require_labels(first, "val", net.info.task)
    net.check_input(first.inputs, "val")
    return check_task(labels, count_rows(first.inputs), net.info)


def check_task(labels: Tensor, count: int, info: NetworkInfo) -> Task:
    """Return the task that the labels imply; raise :class:`InputError` where the network cannot be trained for it."""
    if info.task in CONTINUOUS:
        if info.task == "regression":
            check_truth(labels, count, info.num_classes, info.task, "val labels")
        return info.task
    given = task_of_labels(labels)
    check_truth(labels, count, info.num_classes, info.task if "segmentation" in (given, info.task) else None, "val labels")
    return given
