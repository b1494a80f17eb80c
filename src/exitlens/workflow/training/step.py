"""One step of training: the gradients of a few batches, and the modes that a network trains in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from exitlens.errors import TrainingError
from exitlens.functional.losses import EGTLoss
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet
from exitlens.model.precision import use_half_precision
from exitlens.types import ExitOutput, LossTerms
from exitlens.types.inputs import Inputs, can_be_channels_last, count_rows, map_inputs, set_channels_last
from exitlens.types.settings import BatchNorm, TrainingSettings
from exitlens.workflow.training.optimizer import apply_gradients, select_trainable


class Trainee(Protocol):
    """What :func:`take_step` needs of a network; :class:`ExitNet` says what each method returns."""

    def __call__(self, inputs: Inputs) -> Any: ...  # noqa: D102

    def check_input(self, inputs: Inputs, name: str) -> Any: ...  # noqa: D102

    def with_features(self, inputs: Inputs) -> tuple[Sequence[ExitOutput], Sequence[Tensor]]: ...  # noqa: D102

    def with_separate_maps(self, inputs: Inputs) -> Sequence[ExitOutput]: ...  # noqa: D102

    def with_relevance(self, inputs: Inputs, separate_maps: bool) -> tuple[Sequence[ExitOutput], Tensor]: ...  # noqa: D102


def take_step(
    net: Trainee,
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
    net: Trainee,
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
    for inputs, labels in batches:
        terms = _compute_loss(net, loss, inputs, labels, progress, settings)
        (terms.total * (count_rows(inputs) / samples)).backward()
        losses.append(terms)
    return losses


def _compute_loss(
    net: Trainee, loss: EGTLoss, inputs: Inputs, labels: Tensor, progress: float, settings: TrainingSettings
) -> LossTerms:
    net.check_input(inputs, "train")
    if settings.channels_last:
        inputs = map_inputs(inputs, set_channels_last)
    separate = loss.separates_maps and not settings.freeze_backbone  # else all gradients end at the heads anyway
    features, relevance = None, {}  # users' own losses need not know of relevance
    with use_half_precision(labels.device, bool(settings.amp)):
        try:
            if loss.needs_relevance:
                outputs, relevance["relevance"] = net.with_relevance(inputs, separate)
            elif loss.of == "activation":
                outputs, features = net.with_features(inputs)
            else:
                outputs = net.with_separate_maps(inputs) if separate else net(inputs)
        except ValueError as error:  # torch's batch norm: "Expected more than 1 value per channel when training"
            raise TrainingError(
                f"batch of {len(labels)}: {error}. Fix: use larger batches (drop_last=True for a loader) or larger images."
            ) from error
    terms = loss(outputs, labels, progress, features, **relevance)
    if not torch.isfinite(terms.total):
        raise TrainingError(
            f"loss: expected a finite number, got {terms.total.item()} at {100 * progress:.0f} % of training (terms "
            f"{list_floats(terms)}). Fix: lower learning_rate (now {settings.learning_rate})."
        )
    return terms


def list_floats(terms: LossTerms) -> dict[str, float]:
    """Return the terms of a loss as numbers by name."""
    return {name: float(value.detach()) for name, value in terms._asdict().items()}


@contextmanager
def enter_training_mode(net: ExitNet, freeze_backbone: bool, batch_norm: BatchNorm | None = "update") -> Iterator[None]:
    """Switch a network to training mode.

    A frozen backbone stays in evaluation mode, its statistics included, and takes no gradient. With ``batch_norm="keep"``, a
    backbone with running statistics stays in evaluation mode, too, and is trained.
    """
    bodies: list[nn.Module] = [*net.stages, *([net.heads[-1]] if net.info.final == "keep" else [])]
    frozen: list[nn.Parameter] = []
    if freeze_backbone:
        trained = {id(p) for p in select_trainable(net, True)}
        frozen = [p for p in net.parameters() if id(p) not in trained and p.requires_grad]
    with switch_mode(net, True):
        for body in bodies:
            has_statistics = any(name.endswith("running_mean") for name, _ in body.named_buffers())
            if freeze_backbone or (batch_norm == "keep" and has_statistics):
                body.eval()
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)


@contextmanager
def use_memory_format(net: ExitNet, channels_last: bool) -> Iterator[None]:
    """Keep weights in channels_last for the duration, if asked for, and restore the memory format that they had."""
    changes = channels_last and not net.is_channels_last and can_be_channels_last(net)
    if changes:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        if changes:
            net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
