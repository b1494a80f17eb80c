"""One step of training, and what is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from exitlens.errors import InputError, TrainingError, require
from exitlens.functional.losses import EGTLoss
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.network import ExitNet
from exitlens.model.precision import use_half_precision
from exitlens.types import ExitOutput, LossTerms
from exitlens.types.inputs import Inputs, can_be_channels_last, count_rows, map_inputs, set_channels_last
from exitlens.workflow.training.monitor import MONITORS, Monitor
from exitlens.workflow.training.recipe import BATCH_NORM, BatchNorm


@dataclass(frozen=True)
class TrainingSettings:
    """All that decides the weights besides network, data and loss (they are in ``settings.json`` beside it).

    What each does is said in :func:`~exitlens.workflow.training.fit.fit`. ``augment`` names one of ours; a function of the
    user's own is not recorded.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    amp: bool
    channels_last: bool
    freeze_backbone: bool
    augment: str = "none"
    balanced: bool = False
    accumulate: int = 1
    clip_norm: float | None = None
    ema: float | None = None
    patience: int | None = None
    monitor: Monitor = "accuracy"
    head_learning_rate: float | None = None
    layer_decay: float = 1.0
    warm_up: float = 0.3
    batch_norm: BatchNorm = "update"
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "patience"):
            value = getattr(self, name)
            if (not isinstance(value, int) or value < 1) and not (name == "patience" and value is None):
                raise InputError(f"{name}: expected an integer of 1 or more, got {value!r}")
        for name, top in (("clip_norm", math.inf), ("ema", 1.0)):
            value = getattr(self, name)
            require(value, int | float | None, name)
            if value is not None and not 0 < value < top:
                raise InputError(f"{name}: expected a number above 0 and below {top}, or None, got {value}")
        if self.monitor not in MONITORS:
            raise InputError(f"monitor: expected one of {MONITORS}, got {self.monitor!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**40:
            raise InputError(f"seed: expected a whole number in [0, 2^40), got {self.seed!r}")
        rate, decay = self.learning_rate, self.weight_decay
        for name, value in (("learning_rate", rate), ("weight_decay", decay)):
            require(value, int | float, name)
        if not 0 < rate < math.inf or not 0 <= decay < math.inf:
            raise InputError(f"learning_rate, weight_decay: expected finite numbers above 0 and from 0, got {rate}, {decay}")
        self._check_recipe()

    def _check_recipe(self) -> None:
        head, decay, warm = self.head_learning_rate, self.layer_decay, self.warm_up
        for name, value in (
            ("head_learning_rate", 1.0 if head is None else head),
            ("layer_decay", decay),
            ("warm_up", warm),
        ):
            require(value, int | float, name)
        if head is not None and not 0 < head < math.inf:
            raise InputError(f"head_learning_rate: expected a finite number above 0, or None, got {head}")
        if not 0 < decay <= 1:
            raise InputError(f"layer_decay: expected a factor above 0, up to 1, got {decay}")
        if not 0 <= warm < 1:
            raise InputError(f"warm_up: expected a share of training in [0, 1), got {warm}")
        if self.batch_norm not in BATCH_NORM:
            raise InputError(f"batch_norm: expected one of {BATCH_NORM}, got {self.batch_norm!r}")


class Trainee(Protocol):
    """What :func:`take_step` needs of a network."""

    def __call__(self, inputs: Inputs) -> Any:
        """The output of every exit."""

    def check_input(self, inputs: Inputs, name: str) -> Any:
        """Raises :class:`InputError` for inputs that it cannot take."""

    def with_features(self, inputs: Inputs) -> tuple[Sequence[ExitOutput], Sequence[Tensor]]:
        """The outputs, and the features that each was computed from."""

    def with_separate_maps(self, inputs: Inputs) -> Sequence[ExitOutput]:
        """The outputs; gradients of the maps end at the heads."""

    def with_relevance(self, inputs: Inputs, separate_maps: bool) -> tuple[Sequence[ExitOutput], Tensor]:
        """The outputs, and the relevance of the first features for the final answers."""


def one_cycle_rate(progress: float, peak: float, warm: float = 0.3) -> float:
    """Learning rate at ``progress`` in [0, 1]: cosine from peak/25 up over the share ``warm``, then down to peak/250,000.

    The shape and constants of ``torch.optim.lr_scheduler.OneCycleLR``, as a function without state.
    """
    low, end = peak / 25, peak / 25 / 1e4
    start, stop, share = (low, peak, progress / warm) if progress < warm else (peak, end, (progress - warm) / (1 - warm))
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))


def take_step(
    net: Trainee,
    optimizer: torch.optim.Optimizer,
    loss: EGTLoss,
    batches: Sequence[tuple[Inputs, Tensor]],
    progress: float,
    settings: TrainingSettings,
) -> list[LossTerms]:
    """One optimiser step of one process: :func:`compute_gradients` and :func:`apply_gradients`."""
    found = compute_gradients(net, optimizer, loss, batches, progress, settings)
    apply_gradients(optimizer, progress, settings)
    return found


def compute_gradients(
    net: Trainee,
    optimizer: torch.optim.Optimizer,
    loss: EGTLoss,
    batches: Sequence[tuple[Inputs, Tensor]],
    progress: float,
    settings: TrainingSettings,
) -> list[LossTerms]:
    """The mean gradient over the samples of all batches, at ``progress`` in [0, 1) of training; the loss of each batch.

    Raises:
        InputError: for a batch that the network cannot take; TrainingError: for a loss that is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    samples, found = sum(count_rows(inputs) for inputs, _ in batches), []
    for inputs, labels in batches:
        terms = compute_terms(net, loss, inputs, labels, progress, settings)
        (terms.total * (count_rows(inputs) / samples)).backward()
        found.append(terms)
    return found


def apply_gradients(optimizer: torch.optim.Optimizer, progress: float, settings: TrainingSettings) -> None:
    """One step of the optimiser along the gradients that there are."""
    for group in optimizer.param_groups:
        group["lr"] = one_cycle_rate(progress, group.get("peak", settings.learning_rate), settings.warm_up)
    if settings.clip_norm is not None:
        clip_grad_norm_(list_trained(optimizer), settings.clip_norm)
    align_gradients(optimizer)
    optimizer.step()


def list_trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters of an optimiser, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def align_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Copies every gradient whose strides are not its parameter's (autograd sees to it, hooks of a user may not)."""
    for p in list_trained(optimizer):
        if p.grad is not None and p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(p.grad)


def compute_terms(
    net: Trainee, loss: EGTLoss, inputs: Inputs, labels: Tensor, progress: float, settings: TrainingSettings
) -> LossTerms:
    """The loss of one batch; raises what :func:`compute_gradients` does."""
    net.check_input(inputs, "train")
    if settings.channels_last:
        inputs = map_inputs(inputs, set_channels_last)
    with use_half_precision(labels.device, settings.amp):
        try:
            outputs, features, relevance = _run(net, loss, inputs, settings.freeze_backbone)
        except ValueError as error:  # torch's batch norm: "Expected more than 1 value per channel when training"
            raise TrainingError(
                f"batch of {len(labels)}: {error}. Mend: larger batches (drop_last=True for a loader), or larger images"
            ) from error
    more = {} if relevance is None else {"relevance": relevance}  # losses of users need not know of it
    terms = loss(outputs, labels, progress, features, **more)
    if not torch.isfinite(terms.total):
        raise TrainingError(
            f"loss: it became {terms.total.item()} at {100 * progress:.0f} % of training (terms {floats(terms)}): "
            f"lower learning_rate (now {settings.learning_rate})"
        )
    return terms


def _run(
    net: Trainee, loss: EGTLoss, inputs: Inputs, is_frozen: bool
) -> tuple[Sequence[ExitOutput], Sequence[Tensor] | None, Tensor | None]:
    """Outputs, and the features and relevance that the loss needs; in a frozen backbone all gradients end at the heads."""
    separate = loss.separates_maps and not is_frozen
    if loss.needs_relevance:
        outputs, relevance = net.with_relevance(inputs, separate)
        return outputs, None, relevance
    if loss.of == "activation":
        return (*net.with_features(inputs), None)
    return net.with_separate_maps(inputs) if separate else net(inputs), None, None


def select_trainable(net: ExitNet, freeze_backbone: bool) -> list[torch.nn.Parameter]:
    """The parameters to train; raises :class:`TrainingError` if there are none."""
    frozen = {id(p) for p in net.stages.parameters()} if freeze_backbone else set()
    if freeze_backbone and net.info.final == "keep":
        frozen |= {id(p) for p in net.heads[-1].parameters()}
    parameters = [p for p in net.parameters() if id(p) not in frozen]
    if not parameters:
        raise TrainingError("freeze_backbone: nothing is left to train: this network has no early exit head")
    return parameters


@contextmanager
def enter_training_mode(net: ExitNet, freeze_backbone: bool, batch_norm: BatchNorm = "update") -> Iterator[None]:
    """Training mode; a frozen backbone stays in evaluation mode (its statistics too) and takes no gradient.

    With ``batch_norm="keep"``, a backbone that has running statistics stays in evaluation mode, too, and is trained.
    """
    frozen: list[torch.nn.Parameter] = []
    with switch_mode(net, True):
        if batch_norm == "keep":
            for body in [*net.stages, *([net.heads[-1]] if net.info.final == "keep" else [])]:
                if any(name.endswith("running_mean") for name, _ in body.named_buffers()):
                    body.eval()
        if freeze_backbone:
            trained = {id(p) for p in select_trainable(net, True)}
            frozen = [p for p in net.parameters() if id(p) not in trained and p.requires_grad]
            net.stages.eval()
            if net.info.final == "keep":
                net.heads[-1].eval()
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)


def floats(terms: LossTerms) -> dict[str, float]:
    """The terms of a loss as numbers."""
    return {name: float(value.detach()) for name, value in terms._asdict().items()}


@contextmanager
def use_memory_format(net: ExitNet, channels_last: bool) -> Iterator[None]:
    """Weights in channels_last while it trains, if asked for, and then in the memory format that they had."""
    changes = channels_last and not net.is_channels_last and can_be_channels_last(net)
    if changes:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        if changes:
            net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
