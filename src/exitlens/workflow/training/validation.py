"""What the validation data say after an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exitlens.data.batches import iterate_batches
from exitlens.errors import InputError
from exitlens.functional.losses import EGTLoss
from exitlens.functional.maps import on_common_grid
from exitlens.functional.similarity import pearson
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet
from exitlens.progress import Advance
from exitlens.ranks import ALONE, Ranks
from exitlens.types import ExitOutput
from exitlens.types.inputs import check_labels, count_rows
from exitlens.workflow.training.frozen import CachedHeads


class Validation(NamedTuple):
    """Means over the validation samples.

    Attributes:
        accuracy: of every exit.
        cc: of the early exits' attention with the final exit's.
        loss: the classification term of the training loss.
    """

    accuracy: list[float]
    cc: list[float]
    loss: float


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
    correct, cc, total, count = sums
    if not count:
        raise InputError("val: it gave no batch: pass at least one image")
    return Validation((correct / count).tolist(), (cc / count).tolist(), (total / count).item())


def check_validation(net: ExitNet, val: Any) -> None:
    """Raises what :func:`validate` would after an epoch of training, as far as one sample or batch shows it.

    An iterator, which could not be read again, is left alone.
    """
    if isinstance(val, Iterator):
        return
    with torch.random.fork_rng(devices=[]):
        first = next((batch for batch in iterate_batches(val, 1, net.device, 0, "val") if count_rows(batch.inputs)), None)
    if first is None:
        raise InputError("val: it gave no batch: pass at least one image")
    labels = _require_labels(first.labels)
    net.check_input(first.inputs, "val")
    check_labels(labels, count_rows(first.inputs), net.info.num_classes, "val labels")


def _require_labels(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise InputError("val: expected batches of (images, labels), got images only")
    return labels


def _sum_up(
    net: ExitNet | CachedHeads, val: Any, loss: EGTLoss, batch_size: int, workers: int | None, advance: Advance
) -> list[Tensor]:
    """Right answers by exit, CC by early exit, the loss, and the number of samples."""
    correct, cc = torch.zeros(net.num_exits), torch.zeros(net.num_exits - 1)
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    with switch_mode(net, False), torch.no_grad():
        for images, labels, _ in iterate_batches(val, max(batch_size, 64), net.device, workers, "val"):
            labels = _require_labels(labels)
            net.check_input(images, "val")
            outputs: Sequence[ExitOutput] = net(images)
            check_labels(labels, count_rows(images), outputs[0].logits.shape[1], "val labels")
            count += len(labels)
            total += loss.classify(outputs, labels).item() * len(labels)
            for k, out in enumerate(outputs):
                correct[k] += (out.logits.argmax(1) == labels).sum().cpu()
                if k < len(cc):
                    cc[k] += pearson(*on_common_grid(out.attention, outputs[-1].attention)).sum().cpu()
            advance()
    return [correct, cc, total, count]
