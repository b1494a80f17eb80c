"""Wall-clock, measured side by side in one process: plain backbone and adaptive inference in turn on the same samples."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.data.batches import as_batch, make_epoch_loader
from exitlens.data.images import ImageSet
from exitlens.errors import InputError
from exitlens.functional.losses import EGTLoss
from exitlens.model.cutting.logits import pick_logits
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet
from exitlens.types import Policy
from exitlens.types.inputs import Inputs, count_rows, map_inputs, split_rows
from exitlens.workflow.inference.predict import predict
from exitlens.workflow.training.step import TrainingSettings, take_step


@dataclass(frozen=True)
class Speed:
    """Ratio of medians of paired rounds, each round over the same samples.

    Attributes:
        batch_size: samples a call.
        speedup: plain time over ours: median over rounds. low, high: quartiles over rounds.
        plain_ms, ours_ms: median milliseconds a sample. images: samples in a round. rounds: how many.
    """

    batch_size: int
    speedup: float
    low: float
    high: float
    plain_ms: float
    ours_ms: float
    images: int
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def compare(first: Callable[..., Any], second: Callable[..., Any], batches: Sequence[tuple[Any, ...]], rounds: int) -> Speed:
    """Times two functions on every batch in turn (which goes first alternates), ``rounds`` times after one warm-up."""
    ratios, totals = [], []
    for round_number in range(rounds + 1):
        spent = [0.0, 0.0]
        for i, batch in enumerate(batches):
            for which in (0, 1) if (i + round_number) % 2 == 0 else (1, 0):
                started = time.perf_counter()
                (first, second)[which](*batch)
                spent[which] += time.perf_counter() - started
        if round_number > 0:
            ratios.append(spent[0] / spent[1])
            totals.append(spent)
    sizes = [count_rows(batch[0]) for batch in batches]
    count = sum(sizes)
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    plain, ours = (1000 * statistics.median(t[i] for t in totals) / count for i in (0, 1))
    return Speed(sizes[0], statistics.median(ratios), quartiles[0], quartiles[2], plain, ours, count, rounds)


def split_whole_batches(inputs: Inputs, batch_size: int) -> list[tuple[Inputs]]:
    """Full batches, images in channels_last, the memory format that networks are trained in."""

    def laid_out(t: Tensor) -> Tensor:
        last = t.ndim == 4 and t.shape[1] > 1
        return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    chunks = [chunk for chunk in split_rows(inputs, batch_size) if count_rows(chunk) == batch_size]
    if not chunks:
        raise InputError(f"batch_size: {batch_size} is more than the {count_rows(inputs)} samples there are: use less")
    return [(map_inputs(chunk, laid_out),) for chunk in chunks]


def compare_adaptive(
    plain: nn.Module, net: ExitNet, policy: Policy, inputs: Inputs, batch_size: int, rounds: int = 7
) -> Speed:
    """Plain backbone against :func:`predict` under ``policy``; both in evaluation mode, images in channels_last."""

    def run_plain(batch: Inputs) -> Tensor:
        with torch.inference_mode():
            output = plain(batch) if isinstance(batch, Tensor) else plain(**batch)
            return pick_logits(output).softmax(1).max(1).indices  # type: ignore[no-any-return]

    with switch_mode(plain, False), switch_mode(net, False):
        return compare(run_plain, lambda batch: predict(net, batch, policy), split_whole_batches(inputs, batch_size), rounds)


def compare_attention(net: ExitNet, policy: Policy, inputs: Inputs, batch_size: int, rounds: int = 7) -> Speed:
    """:func:`predict` with attention maps against without: ``speedup`` is the time with over the time without."""
    with switch_mode(net, False):
        return compare(
            lambda batch: predict(net, batch, policy, attention=True),
            lambda batch: predict(net, batch, policy),
            split_whole_batches(inputs, batch_size),
            rounds,
        )


def compare_step_time(
    net: ExitNet, data: ImageSet, loss: EGTLoss, without: EGTLoss, settings: TrainingSettings, steps: int = 24
) -> Speed:
    """A training step with ``loss`` against one with ``without``, on copies of the network: ``speedup`` is their ratio."""

    def stepper(choice: EGTLoss) -> Callable[[Tensor, Tensor], Any]:
        twin = copy.deepcopy(net).train()
        optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-4)
        return lambda images, labels: take_step(twin, optimizer, choice, images, labels, 0.9, settings)

    loader = make_epoch_loader(data.first(steps * settings.batch_size), settings.batch_size, seed=0)
    found = [as_batch(batch) for batch in loader]
    pairs = [(x, labels) for x, labels in found if isinstance(x, Tensor) and labels is not None]
    return compare(stepper(loss), stepper(without), pairs, rounds=3)
