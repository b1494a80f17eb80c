"""One step of training: the gradients of a few batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from exitlens.errors import TrainingError
from exitlens.functional.losses import EGTLoss
from exitlens.model.network import ExitNet
from exitlens.model.precision import use_half_precision
from exitlens.types import ExitOutput, LossTerms
from exitlens.types.inputs import Inputs, can_be_channels_last, count_rows, map_inputs, set_channels_last
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.frozen import CachedHeads
from exitlens.workflow.training.optimizer import apply_gradients


def take_step(
    net: ExitNet | CachedHeads,
    optimizer: torch.optim.Optimizer,
    loss: EGTLoss,
    batches: Sequence[tuple[Inputs, Tensor]],
    progress: float,
    settings: TrainingSettings,
) -> list[LossTerms]:
    """Take one optimiser step of a single process: :func:`compute_gradients` and :func:`apply_gradients`."""
    terms = compute_gradients(net, optimizer, loss, batches, progress, settings)
    apply_gradients(optimizer, progress, settings)
    return terms


def compute_gradients(
    net: ExitNet | CachedHeads,
    optimizer: torch.optim.Optimizer,
    loss: EGTLoss,
    batches: Sequence[tuple[Inputs, Tensor]],
    progress: float,
    settings: TrainingSettings,
) -> list[LossTerms]:
    """Compute the mean gradient over the samples of all batches, at ``progress`` in [0, 1) of training.

    Returns the loss of each batch; raises :class:`TrainingError` for one that is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    samples, losses = sum(count_rows(inputs) for inputs, _ in batches), []
    separate = loss.separates_maps and not settings.freeze_backbone  # else all gradients end at the heads anyway
    for inputs, labels in batches:
        net.check_input(inputs, "train")
        given = map_inputs(inputs, set_channels_last) if settings.channels_last else inputs
        outputs: Sequence[ExitOutput]
        features: Sequence[Tensor] | None = None
        relevance: dict[str, Tensor] = {}  # users' own losses need not know of relevance
        with use_half_precision(labels.device, bool(settings.amp)):
            try:
                if loss.needs_relevance:
                    outputs, relevance["relevance"] = net.with_relevance(given, separate)
                elif loss.of == "activation":
                    outputs, features = net.with_features(given)
                else:
                    outputs = net.with_separate_maps(given) if separate else net(given)
            except ValueError as error:  # torch's batch norm: "Expected more than 1 value per channel when training"
                fix = "Fix: use larger batches (drop_last=True for a loader) or larger images."
                raise TrainingError(f"batch of {len(labels)}: {error}. {fix}") from error
        terms = loss(outputs, labels, progress, features, **relevance)
        if not torch.isfinite(terms.total):
            raise TrainingError(
                f"loss: expected a finite number, got {terms.total.item()} at {100 * progress:.0f} % of training (terms "
                f"{list_floats(terms)}). Fix: lower learning_rate (now {settings.learning_rate})."
            )
        (terms.total * (count_rows(inputs) / samples)).backward()
        losses.append(terms)
    return losses


def list_floats(terms: LossTerms) -> dict[str, float]:
    """Return the terms of a loss as numbers by name."""
    return {name: float(value.detach()) for name, value in terms._asdict().items()}


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
