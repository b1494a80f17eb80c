"""A frozen backbone runs once: its features are kept in memory or mapped files, and the exit heads train on them."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from rich.markup import escape
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from exitlens.data.batches import Batch, count_batches, iterate_batches, plan_in_order
from exitlens.data.sets import LazySet
from exitlens.data.workers import Plan
from exitlens.errors import DataError, InputError
from exitlens.functional.losses import EGTLoss
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.heads import ExitHead, KeptHead
from exitlens.model.network import ExitNet, Observation
from exitlens.model.process import SHARED_CORES
from exitlens.progress import print_line
from exitlens.types import ExitOutput
from exitlens.types.inputs import Inputs, count_rows, list_tensors, map_inputs, set_channels_last
from exitlens.types.settings import TrainingSettings
from exitlens.types.tasks import Task
from exitlens.workflow.training.optimizer import enter_training_mode, use_half_precision

RELEVANCE = "relevance"  # its name among the features
IN_MEMORY = 2 * 2**30  # bytes of features in memory
DISK_SHARE = 0.5  # share of the free space that features may take


def find_cache_obstacle(data: Any, settings: TrainingSettings, is_augmented: bool, moves_relevance: bool = False) -> str:
    """Return why a frozen backbone's features cannot be kept from epoch to epoch; empty if they can.

    Raises :class:`InputError` if ``settings.cache_features`` asks for the impossible.
    """
    if not settings.freeze_backbone:
        reason = "only a frozen backbone gives the same features each epoch. Fix: pass freeze_backbone (--freeze-backbone)."
    elif moves_relevance:
        reason = (
            "the target is relevance, which is traced back through the backbone from a final head that is trained. "
            "Fix: keep the backbone's own final head (final='keep', --keep-final)."
        )
    elif settings.teacher:
        reason = "the teacher has to see the inputs. Fix: leave out teacher (--teacher)."
    elif settings.ignore:
        reason = "what must not matter is exchanged anew in every epoch. Fix: leave out ignore (--ignore)."
    elif settings.rely_on == "map":
        reason = "what a map leaves out is exchanged anew in every epoch. Fix: leave out rely_on (--rely-on)."
    elif is_augmented:
        reason = "augmentation changes the inputs in every epoch. Fix: leave out augment (--augment)."
    elif isinstance(data, DataLoader) or not isinstance(data, Dataset):
        reason = "a DataLoader may give other inputs in every epoch. Fix: pass its data set."
    elif not _is_fixed(data) and not settings.cache_features:
        fix = "Fix: pass cache_features=True (--cache-features) if it does not."
        reason = f"{type(data).__name__} may give other inputs in every epoch. {fix}"
    else:
        return ""
    if settings.cache_features:
        raise InputError(f"cache_features: {reason}")
    return reason


def _is_fixed(data: Any) -> bool:
    """Return whether samples are the same at every reading, as in our own data sets and in tensors."""
    return type(data) is TensorDataset or (isinstance(data, Dataset) and type(data).__module__.startswith("exitlens.data."))


@dataclass
class FeatureStore:
    """Keeps features in memory up to a limit, then in nameless files, which vanish even if the process is killed."""

    folder: Path | None
    memory_left: int = IN_MEMORY

    def allocate(self, rows: int, like: Tensor) -> Tensor:
        """Return an empty ``(rows,...)`` tensor with the memory format of ``like``; :class:`OSError` if the disk is full."""
        order = [0, *sorted(range(1, like.ndim), key=like.stride, reverse=True)]
        shape = (rows, *(like.shape[axis] for axis in order[1:]))
        size = math.prod(shape) * like.element_size()
        if size <= self.memory_left or size == 0:
            self.memory_left -= size
            flat = torch.empty(shape, dtype=like.dtype)
        else:
            free = shutil.disk_usage(self.folder or tempfile.gettempdir()).free
            if size > DISK_SHARE * free:
                raise OSError(f"{size / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free, of which {DISK_SHARE:.0%} may be used")
            with tempfile.TemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a crash later
                flat = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=like.dtype).view(shape)
        return flat.permute([order.index(axis) for axis in range(like.ndim)])


class FeatureCache(NamedTuple):
    """The features of a data set, with a row for every sample that could be read."""

    columns: dict[str, Tensor]  # by name (M,...), unrounded, in the precision in which the backbone gave them
    labels: Tensor  # (M,)
    places: Tensor  # (N,) row of every sample of the data set, -1 if it has none


@dataclass
class FeatureLoader:
    """Batches of features in the order of a plan (indices of samples), without the samples that have no row."""

    cache: FeatureCache
    plan: Plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        for part in self.plan:
            rows = self.cache.places[torch.as_tensor(part)]
            rows = rows[rows >= 0]
            if len(rows) >= min(2, len(part)):  # the rule of lazy sets
                inputs = {name: column[rows] for name, column in self.cache.columns.items()}
                yield Batch(inputs, self.cache.labels[rows])


class CachedHeads(nn.Module):
    """The heads of ``net``, shared with it, as a network of their own, whose inputs are features by name.

    Of heads that are frozen with the backbone (``final="keep"``) the outputs are kept. The loss decides what else is kept.
    """

    def __init__(self, net: ExitNet, loss: EGTLoss) -> None:
        super().__init__()
        self.heads, self.num_exits, self.device = net.heads, net.num_exits, net.device
        self.needs_evidence = loss.of == "evidence" or type(loss) is not EGTLoss
        self.needs_features = loss.of == "activation"
        self.needs_relevance = loss.needs_relevance
        self.frozen = [isinstance(head, KeptHead) for head in net.heads]
        self.names: list[list[str]] = []  # for each head, the names of its features

    def check_input(self, inputs: Inputs, name: str) -> None:
        """Accept anything: the inputs were checked when the backbone read them."""

    def extract(self, net: ExitNet, inputs: Inputs, training: bool) -> dict[str, Tensor]:
        """Return what the heads need, ``exit.position`` -> ``(B,...)``, from a batch; relevance for ``training`` only.

        What several heads read (a padding mask, a lateral map) is kept once, under the first name.
        """
        activations, features = net.unpack(inputs), dict[str, Tensor]()
        self.names = []
        for k, (stage, frozen) in enumerate(zip(net.stages, self.frozen, strict=True)):
            activations, head = stage(*activations), net.head(k)
            parts: Sequence[Tensor] = activations[: head.reads]
            if frozen:
                outputs = self._run(head, activations)
                parts = (*outputs, head.features(*activations)) if self.needs_features else outputs
            names = [next((n for n, t in features.items() if t is part), f"{k}.{i}") for i, part in enumerate(parts)]
            features |= zip(names, parts, strict=True)
            self.names.append(names)
        if self.needs_relevance and training:
            with torch.enable_grad(), enter_training_mode(net, True), switch_mode(net, False):
                features[RELEVANCE] = cast(Tensor, net.observe(inputs, relevance=True).relevance)
        return features

    def forward(self, inputs: Inputs) -> tuple[ExitOutput, ...]:
        """Features -> the output of every exit; evidence is empty if the loss does not need it."""
        return tuple(
            ExitOutput(*parts[:3]) if frozen else self._run(head, parts) for head, frozen, parts in self._distribute(inputs)
        )

    def observe(
        self, inputs: Inputs, separate_maps: bool = False, *, features: bool = False, relevance: bool = False
    ) -> Observation:
        """Like :meth:`ExitNet.observe`; relevance is what was kept, and maps are always separate."""
        outputs, pooled = list[ExitOutput](), list[Tensor]()
        for head, frozen, parts in self._distribute(inputs):
            output = ExitOutput(*parts[:3]) if frozen else None
            if features:
                output, located = (output, parts[3]) if output else head.with_features(*parts)
                pooled.append(located)
            outputs.append(output or self._run(head, parts))
        assert isinstance(inputs, dict)
        traced = inputs[RELEVANCE] if relevance else None
        return Observation(tuple(outputs), None, tuple(pooled) if features else None, traced)

    def _distribute(self, inputs: Inputs) -> Iterator[tuple[Any, bool, list[Tensor]]]:
        assert isinstance(inputs, dict)
        for head, frozen, names in zip(self.heads, self.frozen, self.names, strict=True):
            yield head, frozen, [inputs[name] for name in names]

    def _run(self, head: ExitHead, activations: Sequence[Tensor]) -> ExitOutput:
        if self.needs_evidence:
            return head(*activations)  # type: ignore[no-any-return]
        logits, attention = head.with_attention(*activations)
        return ExitOutput(logits, attention, logits.new_empty((len(logits), 0)))


class FrozenFeatures(NamedTuple):
    """The heads and features that a run with a frozen backbone uses instead of the network and its data."""

    heads: CachedHeads
    train: FeatureCache
    val: FeatureLoader | None  # None if validation data may differ in every epoch: then the whole network reads them


def require_labels(batch: Batch, name: str, task: Task = "classes") -> Tensor:
    """Return the labels of a batch; raise :class:`InputError` if it has none. Vectors need none: empty rows."""
    if task == "embedding":
        return torch.empty(count_rows(batch.inputs), 0, device=list_tensors(batch.inputs)[0].device)
    if batch.labels is None:
        raise InputError(f"{name}: expected batches of (images, labels), got images only")
    return batch.labels


def keep_features(
    net: ExitNet,
    loss: EGTLoss,
    settings: TrainingSettings,
    train: Any,
    val: Any,
    *,
    folder: Path | None = None,
    workers: int | None = None,
    bar: Progress,
) -> FrozenFeatures | None:
    """Run the backbone once over the training data, and over validation data that are the same in every epoch.

    Features that exceed memory go to ``folder`` (by default the system's); if that is full, the result is ``None``.
    """
    heads, store = CachedHeads(net, loss), FeatureStore(folder)

    def read(data: Any, training: bool) -> FeatureCache:
        name = "train" if training else "val"
        batch_size = settings.batch_size if training else max(settings.batch_size, 64)
        columns, labels, count = dict[str, Tensor](), list[Tensor](), 0
        task = bar.add_task(f"features of {name}", total=count_batches(data, batch_size))
        for batch in iterate_batches(data, batch_size, net.device, workers, name):
            inputs = batch.inputs
            labels.append(require_labels(batch, name, net.info.task).cpu())
            net.check_input(inputs, name)
            if training and settings.channels_last:
                inputs = map_inputs(inputs, set_channels_last)
            half = training and bool(settings.amp)
            with switch_mode(net, False), torch.no_grad(), use_half_precision(net.device, half):
                features = heads.extract(net, inputs, training)
            for key, value in features.items():
                if key not in columns:
                    columns[key] = store.allocate(len(data), value)
                columns[key][count : count + len(value)] = value.cpu()
            count += len(labels[-1])
            SHARED_CORES.adapt()
            bar.advance(task)
        bar.remove_task(task)
        if not labels:
            raise InputError(f"{name}: expected at least one sample, the data set is empty")
        return FeatureCache(columns, torch.cat(labels), _find_places(data, count, name))

    try:
        cached = read(train, True)
        if not _is_fixed(val) and not (settings.cache_features and isinstance(val, Dataset)):
            return FrozenFeatures(heads, cached, None)
        plan = plan_in_order(len(val), max(settings.batch_size, 64))
        return FrozenFeatures(heads, cached, FeatureLoader(read(val, False), plan))
    except OSError as error:
        line = f"features are not kept, every epoch runs the backbone again: there is no room for them ({error})"
        print_line(bar.console, escape(line))
        return None


def _find_places(data: Any, count: int, name: str) -> Tensor:
    """Return the rows of samples that were read in order; -1 for samples that could not be read."""
    readable = torch.ones(len(data), dtype=torch.bool)
    if isinstance(data, LazySet):
        readable = torch.tensor([row not in data.unreadable for row in data.rows.tolist()], dtype=torch.bool)
    if int(readable.sum()) != count:
        raise DataError(f"{name}: expected {int(readable.sum())} samples, {count} were read: did files change meanwhile?")
    return torch.where(readable, readable.cumsum(0) - 1, -1)
