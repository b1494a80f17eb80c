"""What the validation data say after an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exitlens.data.batches import iterate_batches
from exitlens.errors import InputError
from exitlens.functional.losses import EGTLoss
from exitlens.functional.maps import on_common_grid, pearson
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet
from exitlens.progress import Advance
from exitlens.ranks import ALONE, Ranks
from exitlens.types import ExitOutput
from exitlens.types.inputs import count_rows
from exitlens.types.tasks import Task, are_same, check_truth, find_answers, task_of_labels
from exitlens.workflow.training.frozen import CachedHeads


class Validation(NamedTuple):
    """Means over the validation samples.

    Attributes:
        accuracy: of every exit; of several labels, the share of samples of which all are right.
        cc: of the early exits' attention with the final exit's.
        loss: the classification term of the training loss.
        f1: micro-F1 of every exit, of several labels; ``None`` for one class a sample.
    """

    accuracy: list[float]
    cc: list[float]
    loss: float
    f1: list[float] | None = None

    def to_row(self) -> dict[str, Any]:
        """As the history of a run has it."""
        row = {"accuracy": self.accuracy, "cc": self.cc, "val_loss": self.loss}
        return row if self.f1 is None else row | {"f1": self.f1}


def validate(
    net: ExitNet | CachedHeads,
    val: Any,
    loss: EGTLoss,
    batch_size: int,
    workers: int | None = None,
    advance: Advance = lambda: None,
    ranks: Ranks = ALONE,
) -> Validation:
    """One pass in evaluation mode over this rank's share ``val``; what comes out is about the shares of all ranks.

    Raises:
        InputError: for data without labels or without a batch.
    """
    with ranks.together():
        sums = _sum_up(net, val, loss, batch_size, workers, advance)
    ranks.add(sums)
    correct, cc, total, count, hits, marks = sums
    if not count:
        raise InputError("val: it gave no batch: pass at least one image")
    f1 = (2 * hits / marks.clamp_min(1)).tolist() if marks.any() else None  # told and there; nobody counts classes
    return Validation((correct / count).tolist(), (cc / count).tolist(), (total / count).item(), f1)


def check_validation(net: ExitNet, val: Any) -> Task:
    """Raises what :func:`validate` would after an epoch of training, as far as one sample or batch shows it.

    Returns what the labels say that the network is to answer. An iterator, which could not be read again, is left alone.
    """
    if isinstance(val, Iterator):
        return net.info.task
    with torch.random.fork_rng(devices=[]):
        first = next((batch for batch in iterate_batches(val, 1, net.device, 0, "val") if count_rows(batch.inputs)), None)
    if first is None:
        raise InputError("val: it gave no batch: pass at least one image")
    labels = _require_labels(first.labels)
    net.check_input(first.inputs, "val")
    check_truth(labels, count_rows(first.inputs), net.info.num_classes, name="val labels")
    return task_of_labels(labels)


def _require_labels(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise InputError("val: expected batches of (images, labels), got images only")
    return labels


def _sum_up(
    net: ExitNet | CachedHeads, val: Any, loss: EGTLoss, batch_size: int, workers: int | None, advance: Advance
) -> list[Tensor]:
    """Right answers by exit, CC by early exit, the loss, the number of samples; of labels by exit: hits, told and there."""
    correct, cc = torch.zeros(net.num_exits), torch.zeros(net.num_exits - 1)
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    hits, marks = torch.zeros(net.num_exits, dtype=torch.float64), torch.zeros(net.num_exits, dtype=torch.float64)
    with switch_mode(net, False), torch.no_grad():
        for images, labels, _ in iterate_batches(val, max(batch_size, 64), net.device, workers, "val"):
            labels = _require_labels(labels)
            net.check_input(images, "val")
            outputs: Sequence[ExitOutput] = net(images)
            check_truth(labels, count_rows(images), outputs[0].logits.shape[1], name="val labels")
            task = task_of_labels(labels)
            count += len(labels)
            total += loss.classify(outputs, labels).item() * len(labels)
            for k, out in enumerate(outputs):
                told = find_answers(out.logits, task)
                correct[k] += are_same(told, labels, task).sum().cpu()
                if task == "multilabel":
                    hits[k] += (told & labels.bool()).sum().cpu()
                    marks[k] += told.sum().cpu() + labels.sum().cpu()
                if k < len(cc):
                    cc[k] += pearson(*on_common_grid(out.attention, outputs[-1].attention)).sum().cpu()
            advance()
    return [correct, cc, total, count, hits, marks]
