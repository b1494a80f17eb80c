"""A frozen backbone runs once: what its exit heads are given is kept, and the heads are trained on that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from exitlens.data.batches import count_batches, iterate_batches, plan_in_order
from exitlens.data.sets import ArraySet, ImageSet, LazySet
from exitlens.data.texts import TextSet
from exitlens.errors import DataError, InputError, require
from exitlens.functional.losses import EGTLoss
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.heads.exit_heads import ExitHead, KeptHead
from exitlens.model.network import ExitNet
from exitlens.model.precision import use_half_precision
from exitlens.progress import print_line
from exitlens.types import ExitOutput
from exitlens.types.inputs import Inputs, map_inputs, set_channels_last
from exitlens.workflow.training.features import FeatureCache, FeatureLoader, Room
from exitlens.workflow.training.step import TrainingSettings, enter_training_mode

RELEVANCE = "relevance"  # its name among the features
FIXED = (ImageSet, ArraySet, LazySet, TextSet, TensorDataset)  # their samples are the same at every reading


def explain_no_cache(
    data: Any, settings: TrainingSettings, is_augmented: bool, wanted: bool | None, moves_relevance: bool = False
) -> str:
    """Why the features of a frozen backbone cannot be kept from epoch to epoch; empty where they can.

    Raises:
        InputError: where they are ``wanted`` and cannot.
    """
    if not settings.freeze_backbone:
        reason = (
            "only a frozen backbone gives the same features in every epoch: pass freeze_backbone=True (--freeze-backbone)"
        )
    elif moves_relevance:
        reason = "relevance as a target goes back through the backbone from a final head that learns (final='keep' keeps it)"
    elif is_augmented:
        reason = "augmentation changes the inputs in every epoch: leave it out"
    elif isinstance(data, DataLoader) or not isinstance(data, Dataset):
        reason = "a DataLoader may give other inputs in every epoch: pass its data set"
    elif type(data) not in FIXED and not wanted:
        reason = f"{type(data).__name__} may give other inputs in every epoch: pass cache_features=True if it does not"
    else:
        return ""
    if wanted:
        raise InputError(f"cache_features: {reason}")
    return reason


class CachedHeads(nn.Module):
    """The heads of a network as a network of their own, which takes features by name instead of images or texts.

    Heads that are frozen with the backbone (``final="keep"``) do not run again: their outputs are kept.

    Args:
        net: shares its heads.
        loss: which decides what is kept: evidence costs time where there are many classes.
    """

    def __init__(self, net: ExitNet, loss: EGTLoss) -> None:
        super().__init__()
        self.heads = net.heads
        self.needs_evidence = loss.of == "evidence" or type(loss) is not EGTLoss
        self.needs_features = loss.of == "activation"
        self.needs_relevance = loss.needs_relevance
        self.frozen = [isinstance(head, KeptHead) for head in net.heads]
        self.names: list[list[str]] = []  # for each head, under which names what it needs is kept

    @property
    def num_exits(self) -> int:
        """K, the final exit included."""
        return len(self.heads)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.heads.parameters()).device

    def check_input(self, inputs: Inputs, name: str) -> None:
        """Does nothing: what the backbone was given was checked."""

    def extract(self, net: ExitNet, inputs: Inputs, training: bool) -> dict[str, Tensor]:
        """What the heads need, ``exit.position`` -> ``(B,...)``, from a batch of the network's inputs.

        What several heads read, a padding mask or a lateral map, is there once, under the name of the first. Relevance is
        for ``training`` only.
        """
        activations, found = net.unpack(inputs), dict[str, Tensor]()
        self.names = []
        for k, (stage, frozen) in enumerate(zip(net.stages, self.frozen, strict=True)):
            activations, head = stage(*activations), net.head(k)
            parts: Sequence[Tensor] = activations[: head.reads]
            if frozen:
                outputs = self._run(head, activations)
                parts = (*outputs, head.features(*activations)) if self.needs_features else outputs
            names = [next((n for n, t in found.items() if t is part), f"{k}.{i}") for i, part in enumerate(parts)]
            found |= zip(names, parts, strict=True)
            self.names.append(names)
        if self.needs_relevance and training:
            with torch.enable_grad(), enter_training_mode(net, True), switch_mode(net, False):
                found[RELEVANCE] = net.with_relevance(inputs)[1]
        return found

    def forward(self, inputs: Inputs) -> tuple[ExitOutput, ...]:
        """Features -> the output of every exit; evidence is empty where the loss does not need it."""
        return tuple(
            ExitOutput(*parts[:3]) if frozen else self._run(head, parts) for head, frozen, parts in self._share_out(inputs)
        )

    def with_features(self, inputs: Inputs) -> tuple[tuple[ExitOutput, ...], tuple[Tensor, ...]]:
        """As :meth:`ExitNet.with_features`."""
        found = [
            (ExitOutput(*parts[:3]), parts[3]) if frozen else head.with_features(*parts)
            for head, frozen, parts in self._share_out(inputs)
        ]
        outputs, features = zip(*found, strict=True)
        return outputs, features

    def with_separate_maps(self, inputs: Inputs) -> tuple[ExitOutput, ...]:
        """As calling it: no gradient gets further than the heads."""
        return self(inputs)  # type: ignore[no-any-return]

    def with_relevance(self, inputs: Inputs, separate_maps: bool) -> tuple[tuple[ExitOutput, ...], Tensor]:
        """The outputs, and the relevance that was kept: that of a final exit which is frozen, too."""
        assert isinstance(inputs, dict)
        return self(inputs), inputs[RELEVANCE]

    def _share_out(self, inputs: Inputs) -> Iterator[tuple[Any, bool, list[Tensor]]]:
        require(inputs, dict, "inputs", "features by name")
        assert isinstance(inputs, dict)
        for head, frozen, names in zip(self.heads, self.frozen, self.names, strict=True):
            yield head, frozen, [inputs[name] for name in names]

    def _run(self, head: ExitHead, activations: Sequence[Tensor]) -> ExitOutput:
        if self.needs_evidence:
            output: ExitOutput = head(*activations)
            return output
        logits, attention = head.with_attention(*activations)
        return ExitOutput(logits, attention, logits.new_empty((len(logits), 0)))


def cache_features(
    net: ExitNet,
    heads: CachedHeads,
    data: Dataset[Any],
    settings: TrainingSettings,
    room: Room,
    *,
    training: bool,
    workers: int | None = None,
    advance: Callable[[int | None], None] = lambda total: None,
) -> FeatureCache:
    """Runs the backbone once over a data set, in order.

    Args:
        net: frozen, in evaluation mode for as long.
        heads: say what is kept.
        data: a set with a length.
        settings: of the training; precision and memory format are those of a training step, or of validation.
        room: where it is kept.
        training: whether these are training data.
        workers: processes that read the data.
        advance: called with the number of batches before the first, and with ``None`` after each.

    Raises:
        InputError: for data without labels or that the network cannot take; OSError: where a disk is full.
    """
    name = "train" if training else "val"
    batch_size = settings.batch_size if training else max(settings.batch_size, 64)
    count, at, cache, labels = len(data), 0, FeatureCache(), list[Tensor]()  # type: ignore[arg-type]
    advance(count_batches(data, batch_size))
    for inputs, target, _ in iterate_batches(data, batch_size, net.device, workers, name):
        if target is None:
            raise InputError(f"{name}: expected batches of (images, labels), got images only")
        net.check_input(inputs, name)
        if training and settings.channels_last:
            inputs = map_inputs(inputs, set_channels_last)
        with switch_mode(net, False), torch.no_grad(), use_half_precision(net.device, training and settings.amp):
            found = heads.extract(net, inputs, training)
        for key, value in found.items():
            if key not in cache.columns:
                cache.columns[key] = room.allocate(count, value)
            cache.columns[key][at : at + len(value)] = value.cpu()
        labels.append(target.cpu())
        at += len(target)
        advance(None)
    if not labels:
        raise InputError(f"{name}: the data set is empty: it needs at least one sample")
    cache.labels, cache.places = torch.cat(labels), _find_places(data, count, at)
    return cache


@dataclass
class FrozenFeatures:
    """What a run with a frozen backbone trains and validates on.

    Attributes:
        heads: in place of the network. train: its training data. val: its validation data, or ``None`` where these may be
            others in every epoch: then the whole network reads them.
    """

    heads: CachedHeads
    train: FeatureCache
    val: FeatureLoader | None

    def choose_validation(self, net: ExitNet, val: Any) -> tuple[ExitNet | CachedHeads, Any]:
        """The network and data to validate with."""
        return (net, val) if self.val is None else (self.heads, self.val)


def keep_features(
    net: ExitNet,
    loss: EGTLoss,
    settings: TrainingSettings,
    train: Any,
    val: Any,
    *,
    wanted: bool | None = None,
    folder: Path | None = None,
    workers: int | None = None,
    bar: Progress,
) -> FrozenFeatures | None:
    """Features of the training data and, where they are the same in every epoch, of the validation data.

    Args:
        net, loss, settings, train, val, workers: as in ``fit``.
        wanted: whether data sets of the user's own are known to give the same samples every time.
        folder: for features that do not fit into memory; by default the system's for temporary files.
        bar: shows how far it is.

    Returns:
        ``None`` where the disk has no room for them.
    """
    heads, room = CachedHeads(net, loss), Room(folder)

    def read(data: Any, training: bool) -> FeatureCache:
        task = bar.add_task("features", total=None)

        def advance(total: int | None) -> None:
            bar.update(task, total=total, advance=0) if total is not None else bar.advance(task)

        try:
            return cache_features(net, heads, data, settings, room, training=training, workers=workers, advance=advance)
        finally:
            bar.remove_task(task)

    try:
        cached = read(train, True)
        if type(val) not in FIXED and not (wanted and isinstance(val, Dataset)):
            return FrozenFeatures(heads, cached, None)
        return FrozenFeatures(heads, cached, read(val, False).open(plan_in_order(len(val), max(settings.batch_size, 64))))
    except OSError as error:
        line = f"features are not kept, every epoch runs the backbone again: no room for them ({error})"
        print_line(bar.console, escape(line))
        return None


def _find_places(data: Any, count: int, found: int) -> Tensor:
    """The rows of samples that were read in order; those that could not be read have none."""
    readable = torch.ones(count, dtype=torch.bool)
    if isinstance(data, LazySet):
        readable = torch.tensor([row not in data.unreadable for row in data.rows.tolist()], dtype=torch.bool)
    if int(readable.sum()) != found:
        raise DataError(f"train: {found} samples were read, expected {int(readable.sum())}: did files change meanwhile?")
    return torch.where(readable, readable.cumsum(0) - 1, -1)
