"""Traces, which one pass over a data set records; compact logits in them; and measured times of a batch at each exit."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from exitlens.errors import BundleError, InputError
from exitlens.io import read_tensors, write_tensors
from exitlens.types.outputs import exit_name
from exitlens.types.settings import (
    COUNT,
    NUMBER_SCORES,
    PIXEL_SCORES,
    CertificateRequest,
    SampleSketch,
    check_choice,
    check_number,
    read_record,
)
from exitlens.types.tasks import ANSWERS, CONTINUOUS, TASKS, Task, are_same, check_truth, count_answers, find_answers
from exitlens.types.tiles import Tiles

FORMAT = 1  # of Trace.save
NOTED = "network", "task", "classes"  # fields of a trace that are no tensors
LARGEST = 16  # logits that are kept as they are
NODES = 32  # for the sum over the others
RATIO = 3000.0  # of the farthest node's distance to the nearest's, at most


class LogitsSummary(ABC):
    """What a trace keeps in place of logits ``(*S,C)``: named tensors of these samples and exits, in a dataclass."""

    @property
    @abstractmethod
    def kept(self) -> str:
        """The reason why there is no indexing along the classes, and what to do."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """``(*S,C)``."""

    @property
    @abstractmethod
    def first(self) -> Tensor:
        """The tensor ``(*S,m)`` by which samples are recognised."""

    @property
    def ndim(self) -> int:
        """Number of axes, that of the classes included."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> Self:
        depth = len(at) if isinstance(at, tuple) else 1
        if depth >= self.ndim or at is Ellipsis or (isinstance(at, tuple) and any(part is Ellipsis for part in at)):
            raise InputError(f"logits: {self.kept}")
        parts: dict[str, Any] = {name: None if part is None else part[at] for name, part in self.parts().items()}
        return replace(self, **parts)  # type: ignore[type-var]

    def cpu(self) -> Self:
        """Return the same on the CPU."""
        parts: dict[str, Any] = {name: None if part is None else part.cpu() for name, part in self.parts().items()}
        return replace(self, **parts)  # type: ignore[type-var]

    def parts(self) -> dict[str, Tensor | None]:
        """Return the tensors by name."""
        named = ((item.name, getattr(self, item.name)) for item in fields(self))  # type: ignore[arg-type]
        return {name: value for name, value in named if not isinstance(value, int)}

    @abstractmethod
    def argmax(self, dim: int = -1) -> Tensor:
        """Return the class of the largest logit ``(*S)``."""


@dataclass(frozen=True, repr=False)
class CompactLogits(LogitsSummary):
    """Logits ``(*S,C)`` in few numbers, which give classes, and scores and likelihoods at any temperature.

    With ``x = z_max - z`` the distance of a logit from the largest, these need the largest logits, the label's, and the sum
    of ``exp(-x/T)`` over the others, which becomes a weighted sum over :data:`NODES` Chebyshev nodes in ``log x``
    (:meth:`nodes`; docs/measured/traces.md). Indexing works as on the full tensor, but not along the classes.

    Attributes:
        top: ``(*S,m)`` the largest logits, in descending order. classes: ``(*S,m)`` their classes.
        label: ``(*S)`` the logit of the label; ``None`` without labels.
        span: ``(*S,2)`` distances of the nearest and of the farthest of the other logits.
        weights: ``(*S,n)`` of the nodes. num_classes: C.

    Examples:
        >>> xl.collect(net, scenes, compact=True).logits.shape
        torch.Size([64, 3, 10])
    """

    top: Tensor
    classes: Tensor
    label: Tensor | None
    span: Tensor
    weights: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        lead = self.top.shape[:-1]
        shapes = {"classes": self.top.shape, "label": lead, "span": (*lead, 2), "weights": (*lead, self.weights.shape[-1])}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise InputError(f"logits: expected {name} {tuple(shape)} beside top, got {tuple(value.shape)}")

    @property
    def shape(self) -> torch.Size:
        """``(*S,C)``."""
        return torch.Size((*self.top.shape[:-1], self.num_classes))

    @property
    def first(self) -> Tensor:
        """The largest logits."""
        return self.top

    @property
    def kept(self) -> str:
        """The reason why there is no indexing along the classes, and what to do."""
        return (
            f"only the {self.top.shape[-1]} largest of {self.num_classes} are kept: there is no indexing along the classes: "
            "collect the trace with compact=False, or read .top and .classes"
        )

    def __repr__(self) -> str:
        return f"CompactLogits({', '.join(map(str, self.shape))}: the {self.top.shape[-1]} largest)"

    def argmax(self, dim: int = -1) -> Tensor:  # -> (*S)
        """Return the classes of the largest logits; ``dim`` has to be that of the classes."""
        if dim not in (-1, self.ndim - 1):
            raise InputError(f"dim: expected -1, the axis of the classes, got {dim}: of others not all logits are kept")
        return self.classes[..., 0].long()

    def split(self, rows: int) -> list[CompactLogits]:
        """Split into parts of so many rows."""
        return [self[start : start + rows] for start in range(0, len(self), rows)]

    def nodes(self) -> Tensor:  # -> (*S,n) float64
        """Return distances of the nodes from the largest logit."""
        centre, half, shift = scale_distances(self.span)
        places = chebyshev_nodes(self.weights.shape[-1])
        return (centre[..., None] + half[..., None] * places).exp() - shift[..., None]


@dataclass(frozen=True, repr=False)
class PixelSummary(LogitsSummary):
    """What a trace keeps of the logits of pixels: per image and exit some numbers, and counts of labels and answers.

    Attributes:
        scores: ``(*S,3)`` in [0, 1], the image scores in the order of ``PIXEL_SCORES`` (``exitlens.types.settings``).
        means: ``(*S,C)`` mean logits, by which images are recognised.
        disagreement: ``(*S)`` in [0, 1], the share of pixels whose answer differs from the final exit's.
        confusion: ``(*S,C,C)`` numbers of pixels by label (rows) and answer (columns); ``None`` without labels.
        borders: ``(*S,C,4)`` numbers of pixels on the borders of each class: those of the answer that match the label's, all
            of the answer's, those of the label that match the answer's, and all of the label's; ``None``: not counted.

    Examples:
        >>> counts = torch.tensor([[[[6, 2], [0, 8]], [[8, 0], [0, 8]]]])  # one image, two exits, two classes
        >>> kept = xl.types.PixelSummary(torch.rand(1, 2, 3), torch.zeros(1, 2, 2), torch.tensor([[0.125, 0.0]]), counts)
        >>> trace = xl.Trace(kept, None, torch.zeros(1, 2), torch.tensor([0.4, 1.0]))
        >>> trace.accuracy  # the share of pixels that are right
        tensor([[0.8750, 1.0000]])
    """

    scores: Tensor
    means: Tensor
    disagreement: Tensor
    confusion: Tensor | None
    borders: Tensor | None = None

    def __post_init__(self) -> None:
        *lead, classes = self.means.shape
        shapes = {"scores": (*lead, len(PIXEL_SCORES)), "disagreement": (*lead,), "confusion": (*lead, classes, classes)}
        shapes["borders"] = (*lead, classes, 4)
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise InputError(f"logits: expected {name} {shape} beside means, got {tuple(value.shape)}")
        for name in ("scores", "disagreement"):
            values = getattr(self, name)
            if values.numel() and not 0 <= values.min() <= values.max() <= 1 + 1e-6:
                raise InputError(
                    f"logits: expected {name} in [0, 1], got {values.min().item():g} to {values.max().item():g}"
                )

    @property
    def shape(self) -> torch.Size:
        """``(*S,C)``."""
        return self.means.shape

    @property
    def first(self) -> Tensor:
        """The mean logits."""
        return self.means

    @property
    def kept(self) -> str:
        """The reason why there is no indexing along the classes, and what to do."""
        return "of pixels sums are kept, and no logits: read .scores, .means, .disagreement, .confusion and .borders"

    def __repr__(self) -> str:
        return f"PixelSummary({', '.join(map(str, self.shape))})"

    def argmax(self, dim: int = -1) -> Tensor:  # -> (*S)
        """Return the classes of the largest mean logits."""
        return self.means.argmax(dim)


@dataclass(frozen=True, repr=False)
class AnswerSummary(LogitsSummary):
    """What a trace keeps of answers that are numbers or vectors.

    Distances of numbers are mean absolute differences in units of the spread (standard deviation) of the training targets;
    those of vectors are 1 - cosine, in [0, 2].

    Attributes:
        values: ``(*S,C)`` the numbers, in the data's units; of vectors the first eight.
        scores: ``(*S,2)`` in [0, 1]: closeness and stability (``NUMBER_SCORES`` and ``VECTOR_SCORES`` in
            ``exitlens.types.settings``).
        distance: ``(*S)`` from the final exit's answer.
        error: ``(*S)``, the distance of numbers from their target; ``None`` without targets.
        overlap: ``(*S)`` in [0, 1], the share of a vector's ten nearest probes that are the final vector's, too; ``None``
            without probes.

    Examples:
        >>> kept = xl.types.AnswerSummary(torch.tensor([[[2.0], [3.0]]]), torch.ones(1, 2, 2), torch.tensor([[0.5, 0.0]]))
        >>> trace = xl.Trace(kept, None, torch.zeros(1, 2), torch.tensor([0.4, 1.0]), task="regression")
        >>> trace.disagreement  # distances, at most 1
        tensor([[0.5000, 0.0000]])
    """

    values: Tensor
    scores: Tensor
    distance: Tensor
    error: Tensor | None = None
    overlap: Tensor | None = None

    def __post_init__(self) -> None:
        lead = tuple(self.values.shape[:-1])
        shapes = {"scores": (*lead, len(NUMBER_SCORES)), "distance": lead, "error": lead, "overlap": lead}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise InputError(f"logits: expected {name} {shape} beside values, got {tuple(value.shape)}")
            if value is not None and bool((value < 0).any()):
                raise InputError(f"logits: expected {name} of 0 or more, got {value.min().item():g}")

    @property
    def shape(self) -> torch.Size:
        """``(*S,C)``."""
        return self.values.shape

    @property
    def first(self) -> Tensor:
        """The numbers without their powers of 2, which half precision may not hold, the errors expected, and distances."""
        logs = -self.scores.clamp_min(1e-30).log()
        return torch.cat([self.values.frexp().mantissa, logs, self.distance[..., None]], -1)

    @property
    def kept(self) -> str:
        """The reason why there is no indexing along the numbers, and what to do."""
        return "of numbers and vectors a summary is kept: read .values, .scores, .distance, .error and .overlap"

    def __repr__(self) -> str:
        return f"AnswerSummary({', '.join(map(str, self.shape))})"

    def argmax(self, dim: int = -1) -> Tensor:
        """Raise :class:`InputError`: there are no classes."""
        raise InputError(f"logits: numbers and vectors have no classes: {self.kept}")


def rate_pixels(confusion: Tensor) -> Tensor:  # (*S,C,C) -> (*S)
    """Return the share of the labelled pixels that are right; 1 without any."""
    right, total = confusion.diagonal(dim1=-2, dim2=-1).sum(-1), confusion.sum((-2, -1))
    return torch.where(total > 0, right.double() / total.clamp_min(1), 1.0).float()


Logits = Tensor | CompactLogits | PixelSummary | AnswerSummary


def chebyshev_nodes(count: int) -> Tensor:  # -> (n,) float64
    """Return Chebyshev nodes in (-1, 1), descending."""
    return (math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count).cos()


def scale_distances(span: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (*S,2) -> (*S) each, float64
    """Return centre, half and shift: ``log(x + shift)`` is in ``centre ± half``, ends within a ratio of :data:`RATIO`."""
    near, far = span.double().unbind(-1)
    shift = ((far - RATIO * near) / (RATIO - 1)).clamp_min(0)
    low, high = (near + shift).clamp_min(1e-30).log(), (far + shift).clamp_min(1e-30).log()
    return (low + high) / 2, (high - low) / 2, shift


@dataclass(frozen=True)
class ExitLatency:
    """Milliseconds of one batch when all its samples leave at an exit, on one machine (``collect(..., cost="time")``).

    Args:
        ms: K increasing milliseconds of one batch, the medians over rounds.
        low: K lower quartiles. high: K upper quartiles.
        whole_ms: median of a batch that goes to the final exit without early heads.
        batch_size: samples in the batch.
        threads: of PyTorch.
        machine: processor, cores, device and versions.
        rounds: number of times that each exit was timed.
    """

    ms: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    whole_ms: float
    batch_size: int
    threads: int
    machine: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1

    def __post_init__(self) -> None:
        try:
            for name in ("ms", "low", "high"):
                object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            numbers = [*self.ms, *self.low, *self.high, float(self.whole_ms)]
        except (TypeError, ValueError) as error:
            raise InputError(f"timing: expected milliseconds of each exit ({error})") from error
        if not self.ms or not len(self.ms) == len(self.low) == len(self.high):
            counts = f"{len(self.ms)}, {len(self.low)}, {len(self.high)} numbers"
            raise InputError(f"timing: expected a time and two quartiles for each exit, got {counts}")
        if not all(0 < value < math.inf for value in numbers) or list(self.ms) != sorted(set(self.ms)):
            raise InputError(f"timing: expected positive milliseconds that increase from exit to exit, got {numbers}")
        for name in ("batch_size", "threads", "rounds"):
            check_number(f"timing: {name}", getattr(self, name), COUNT)
        if not isinstance(self.machine, Mapping):
            raise InputError(f"timing: expected a description of the machine by name, got {self.machine!r}")

    @property
    def spread(self) -> tuple[float, ...]:
        """For each exit the distance of its quartiles, over its median."""
        return tuple((high - low) / ms for ms, low, high in zip(self.ms, self.low, self.high, strict=True))

    @property
    def cost(self) -> tuple[float, ...]:
        """For each exit its time over that of the whole network without early heads."""
        return tuple(ms / self.whole_ms for ms in self.ms)

    def where(self) -> str:
        """What the times hold for, such as ``batches of 64 on AMD EPYC 7B13, 2 threads``."""
        name = str(self.machine.get("processor") or "this machine")
        if (device := self.machine.get("device", "cpu")) != "cpu":
            name = f"{device} ({name})"
        batches = "single samples" if self.batch_size == 1 else f"batches of {self.batch_size:,}"
        return f"{batches} on {name}, {self.threads} thread{'' if self.threads == 1 else 's'}"

    def __str__(self) -> str:
        triples = zip(self.ms, self.low, self.high, strict=True)
        each = (f"{format_ms(ms)} ({format_ms(low)} to {format_ms(high)})" for ms, low, high in triples)
        return f"{', '.join(each)} ms at the exits, with quartiles; {self.where()}"

    def list_ms(self) -> str:
        """The medians and what they hold for, in words."""
        return f"{', '.join(map(format_ms, self.ms))} ms at the exits, {self.where()}"


def format_ms(value: float) -> str:
    """Three digits of a number of milliseconds."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def make_increasing(values: Sequence[float], step: float = 1e-4) -> tuple[float, ...]:
    """Raise each number that is not above the one before, by the share ``step``."""
    increasing: list[float] = []
    for value in values:
        increasing.append(max(value, increasing[-1] * (1 + step)) if increasing else value)
    return tuple(increasing)


RECORDS = {"timing": ExitLatency, "tiles": Tiles}  # other fields, which are dataclasses


@dataclass(frozen=True, repr=False)
class Trace:
    """What one pass over a data set recorded: all that calibration, routing and evaluation need.

    Args:
        logits: ``(N,K,C)`` of every sample at every exit, or :class:`~exitlens.types.CompactLogits`; of one class a pixel
            :class:`~exitlens.types.PixelSummary`, which counts the labels, too; of numbers and vectors
            :class:`~exitlens.types.AnswerSummary`.
        labels: ``(N,)`` integers in ``[0, C)``; with several labels per sample ``(N,C)`` of 0 and 1; the targets of numbers
            ``(N,C)``; or ``None``, as with one class a pixel, and vectors.
        divergence: ``(N,K)`` in [0, 1]: Jensen-Shannon divergence of exit k's attention map from the final exit's.
        cost: ``(K,)`` increasing: cumulative multiply-accumulates up to exit k's head over the plain backbone's; or measured
            time over that of the whole network.
        network: fingerprint of the network that made it; empty for a trace made by hand.
        similarity: by name ``(N,K)``: agreement of exit k's map with the final exit's on the same image.
        null: by name ``(N,K)``: the same against another image's final map (the shuffled-image null).
        uniform_null: by name ``(N,K)``: the same for a uniform map.
        gate_features: ``(N,K-1,3)``, for a :class:`~exitlens.types.Gate`, of every early exit: the answer's margin without
            the tenth of the locations that add most to it, the share of the map that supports it, and the map's entropy.
        groups: ``(N,)`` integers: only samples of different groups are independent (frames of one video, pictures of one
            patient are not); ``None``: all samples are. :meth:`with_groups` takes names, too.
        swaps: of samples whose outside was replaced by another's (``collect(..., swapped=2000)``): ``changed``, ``(N,K)``
            ``bool``, whether the answer of each exit changed, and ``unit``, ``(N,)`` integers: samples of one unit took from
            one another, so only units are independent; -1: nothing was replaced. Empty if it was not recorded.
        timing: time of a batch at each exit, if it was measured.
        task: ``classes``, one for each sample; ``multilabel``, any number of labels, whose probabilities are sigmoids of
            the logits (labels ``(N,C)`` imply it); ``segmentation``, one for each pixel (a ``PixelSummary`` implies it);
            ``regression``, numbers; or ``embedding``, vectors.
        classes: their names, for limits that name one; empty: they go by their numbers.
        tiles: its samples are these parts of images (``collect(tiles=)``).
        images: ``(N,)`` integers, with tiles: the image of each, whose tiles are in one group. ``groups`` are images if none
            are given.
        certificate_requests: made of these samples so far (not an argument, and not saved with the trace). Asking until one
            is given would spoil it, so :func:`exitlens.calibrate` takes what was refused off ``delta``.
        sample_hashes: ``(N,)`` of logits that are not kept whole (:meth:`hash_samples`).

    Examples:
        >>> logits = torch.tensor([[[2.0, 0.0], [3.0, 0.0]]])  # one sample, two exits, two classes
        >>> hand = xl.Trace(logits, torch.tensor([0]), torch.zeros(1, 2), torch.tensor([0.4, 1.0]))
        >>> hand.num_exits, hand.correct
        (2, tensor([[True, True]]))
        >>> xl.collect(net, scenes).with_groups([f"video {i // 8}" for i in range(64)])
        Trace(64 labelled samples in 8 groups, 3 exits, 10 classes of network ...)
    """

    logits: Logits
    labels: Tensor | None
    divergence: Tensor
    cost: Tensor
    network: str = ""
    similarity: Mapping[str, Tensor] = field(default_factory=dict)
    null: Mapping[str, Tensor] = field(default_factory=dict)
    uniform_null: Mapping[str, Tensor] = field(default_factory=dict)
    gate_features: Tensor | None = None
    groups: Tensor | None = None
    sample_hashes: Tensor | None = None
    timing: ExitLatency | None = None
    task: Task = "classes"
    swaps: Mapping[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    tiles: Tiles | None = None
    images: Tensor | None = None
    certificate_requests: list[CertificateRequest] = field(default_factory=list, init=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("logits", "divergence", "cost", "gate_features"):
            value = getattr(self, name)
            if not isinstance(value, LogitsSummary) and (name != "gate_features" or value is not None):
                value = _as_tensor(value, name, "a tensor or nested lists of numbers").float()
                object.__setattr__(self, name, value)
        if self.logits.ndim != 3 or 0 in self.logits.shape:
            raise InputError(f"logits: expected (N,K,C), none of them 0, got {tuple(self.logits.shape)}")
        n, k, c = self.logits.shape
        if c < 2 and not isinstance(self.logits, AnswerSummary):
            raise InputError("logits: expected two classes or more, got 1: there is nothing to decide")
        if isinstance(self.logits, PixelSummary):
            object.__setattr__(self, "task", "segmentation")
        check_choice("task", self.task, TASKS)
        self._check_labels(n, c)
        self._check_shapes(n, k)
        if self.swaps:
            self._check_swaps(n, k)
        if self.divergence.min() < -1e-6 or self.divergence.max() > 1 + 1e-6:
            raise InputError("divergence: expected values in [0, 1] (Jensen-Shannon divergence over ln 2)")
        if self.divergence[:, -1].abs().max() > 1e-3:
            raise InputError("divergence: expected 0 at the final exit, which is what the others are compared with")
        if (self.cost <= 0).any() or (self.cost.diff() <= 0).any():
            raise InputError(f"cost: expected positive, strictly increasing numbers, got {self.cost.tolist()}")
        if self.timing is not None and (not isinstance(self.timing, ExitLatency) or len(self.timing.ms) != k):
            raise InputError(f"timing: expected an ExitLatency of {k} exits, got {self.timing!r}")

    def _check_labels(self, n: int, c: int) -> None:
        is_compact = isinstance(self.logits, CompactLogits)
        if self.task == "segmentation" and (self.labels is not None or not isinstance(self.logits, PixelSummary)):
            raise InputError(
                "logits: a trace of one class a pixel has a PixelSummary, with the labels counted in it, and no labels: "
                "collect it by exitlens.collect"
            )
        if (self.task in CONTINUOUS) != isinstance(self.logits, AnswerSummary):
            raise InputError(
                "logits: a trace of numbers or vectors has an AnswerSummary and task='regression' or 'embedding': collect "
                "it by exitlens.collect"
            )
        if self.labels is not None:
            labels = _as_tensor(self.labels, "labels", f"({n},) integers, or ({n},{c}) of 0 and 1")
            if self.task in CONTINUOUS:
                check_truth(labels, n, c, "regression")
                dtype = torch.promote_types(self.logits.values.dtype, torch.float32)  # type: ignore[union-attr]
                object.__setattr__(self, "labels", labels.to(dtype).view(n, c))
                return
            if labels.ndim == 2:
                object.__setattr__(self, "task", "multilabel")
            check_truth(labels, n, c, self.task)
            object.__setattr__(self, "labels", labels.bool() if self.task == "multilabel" else labels.long())
            if is_compact and self.logits.label is None and labels.ndim == 1:  # type: ignore[union-attr]
                raise InputError("labels: these compact logits were made without labels: give both to exitlens.collect")
        if self.task == "multilabel" and is_compact:
            raise InputError("logits: of several labels all logits are needed: collect the trace with compact=False")

    def _check_swaps(self, n: int, k: int) -> None:
        got = {name: tuple(value.shape) for name, value in self.swaps.items()}
        if got != (expected := {"changed": (n, k), "unit": (n,)}):
            raise InputError(f"swaps: expected {expected}, got {got}. Fix: collect the trace with swapped=2000.")
        if self.swaps["changed"].dtype != torch.bool or self.swaps["unit"].is_floating_point():
            kinds = ", ".join(str(value.dtype) for value in self.swaps.values())
            raise InputError(f"swaps: expected 'changed' as bool and 'unit' as integers, got {kinds}. Fix: convert them.")

    def _check_images(self) -> None:
        if (self.images is None) != (self.tiles is None):
            raise InputError("images: expected them with tiles, and only with these. Fix: collect the trace with tiles=.")
        if self.images is not None and self.groups is None:
            object.__setattr__(self, "groups", self.images)
        if self.images is not None and self.groups is not None:
            pairs = torch.stack([self.images, self.groups]).unique(dim=1)
            if len(pairs[0].unique()) < len(pairs[0]):
                raise InputError("groups: tiles of one image are in several groups. Fix: name one group for each image.")

    def _check_shapes(self, n: int, k: int) -> None:
        for name in ("groups", "images"):
            if (given := getattr(self, name)) is not None:
                ids = _as_tensor(given, name, f"({n},) integers")
                if ids.shape != (n,) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
                    raise InputError(f"{name}: expected ({n},) integers, got {tuple(ids.shape)} {ids.dtype}")
                object.__setattr__(self, name, ids.long())
        self._check_images()
        shapes = {"divergence": (n, k), "cost": (k,), "gate_features": (n, k - 1, 3), "sample_hashes": (n,)}
        for name in ("logits", *shapes):
            value = getattr(self, name)
            if value is None:
                continue
            if name in shapes and value.shape != shapes[name]:
                raise InputError(f"{name}: expected {shapes[name]}, got {tuple(value.shape)}")
            parts = value.parts().values() if isinstance(value, LogitsSummary) else [value]
            if not all(rows.isfinite().all() for part in parts if part is not None for rows in part.split(1 << 14)):
                raise InputError(f"{name}: expected finite numbers, got NaN or Inf: check the network's outputs")

    @property
    def num_exits(self) -> int:
        """K, the final exit included."""
        return self.logits.shape[1]

    @property
    def has_maps(self) -> bool:
        """True if the exits have maps to compare; else all divergences are 0."""
        return bool(self.similarity) or bool(self.divergence.any())

    @property
    def is_labelled(self) -> bool:
        """True if the samples have labels; those of pixels are counted in the logits."""
        return self.labels is not None or (isinstance(self.logits, PixelSummary) and self.logits.confusion is not None)

    @property
    def has_accuracy(self) -> bool:
        """True if answers are right or wrong, and the samples have labels."""
        return self.is_labelled and self.task not in CONTINUOUS

    @property
    def class_labels(self) -> Tensor | None:
        """The labels of classes; ``None`` without labels, and if they are numbers."""
        return self.labels if self.has_accuracy else None

    @property
    def class_logits(self) -> Tensor | CompactLogits:
        """The logits of one class or several labels a sample; for other tasks it raises :class:`InputError`."""
        if isinstance(self.logits, AnswerSummary):
            raise InputError(f"trace: it has no classes: {self.logits.kept}")
        if isinstance(self.logits, PixelSummary):
            raise InputError(
                "trace: of one class a pixel no logits and answers are kept: see trace.accuracy and trace.disagreement"
            )
        return self.logits

    @property
    def answers(self) -> Tensor:
        """The answer of each exit, whatever its temperature: classes ``(N,K)``, or labels ``(N,K,C)`` bool."""
        logits = self.class_logits
        return logits.argmax(-1) if isinstance(logits, CompactLogits) else find_answers(logits, self.task)

    @property
    def correct(self) -> Tensor:
        """``(N,K)`` bool: whether each exit's answer is right; with several labels, whether all are."""
        return are_same(self.answers, self.require_labels("accuracy")[:, None], self.task)

    @property
    def accuracy(self) -> Tensor:
        """``(N,K)`` in [0, 1]: 1 if each exit's answer is right; of one class a pixel the share of pixels that are."""
        return self.require_accuracy("accuracy")

    @property
    def borders(self) -> Tensor | None:
        """``(N,K,C,4)`` numbers of border pixels, see :class:`PixelSummary`; ``None`` if no label has a border."""
        counts = self.logits.borders if isinstance(self.logits, PixelSummary) else None
        return counts if counts is not None and counts[..., 3].any() else None

    @property
    def disagreement(self) -> Tensor:
        """``(N,K)`` in [0, 1]: 1 if the answer differs from the final exit's; of pixels the share of those that do.

        Of numbers and vectors it is the distance from the final exit's answer, at most 1 (:class:`AnswerSummary`).
        """
        if isinstance(self.logits, AnswerSummary):
            return self.logits.distance.clamp_max(1)
        if isinstance(self.logits, PixelSummary):
            return self.logits.disagreement
        return (~are_same(self.answers, self.answers[:, -1:], self.task)).float()

    @property
    def num_groups(self) -> int:
        """Number of independent groups; without groups, N."""
        return len(self) if self.groups is None else len(self.groups.unique())

    def __len__(self) -> int:
        return self.logits.shape[0]

    def __repr__(self) -> str:
        n, k, c = self.logits.shape
        groups = "" if self.groups is None else f" in {self.num_groups:,} groups"
        samples = f"{n:,} {'labelled' if self.is_labelled else 'unlabelled'} samples{groups}"
        answers = ANSWERS[self.task] if self.task == "embedding" else count_answers(self.task, c)
        network = f" of network {self.network}" if self.network else ""
        return f"Trace({samples}, {k} exits, {answers}{network}{'' if self.timing is None else f', {self.timing}'})"

    def _repr_html_(self) -> str:
        from exitlens.display import html_table

        columns = {
            "exit": [exit_name(k, self.num_exits) for k in range(self.num_exits)],
            "ms": [] if self.timing is None else [format_ms(ms) for ms in self.timing.ms],
            "cost": [f"{cost:.3f}" for cost in self.cost],
            "accuracy": [f"{100 * share:.1f} %" for share in self.accuracy.mean(0)] if self.has_accuracy else [],
            "agrees with final": [f"{100 * share:.1f} %" for share in 1 - self.disagreement.mean(0)],
            "divergence from final": [f"{mean:.3f}" for mean in self.divergence.mean(0)],
        }
        shown = {head: cells for head, cells in columns.items() if cells}
        return html_table([*shown], [list(row) for row in zip(*shown.values(), strict=True)], repr(self))

    def select(self, rows: Tensor) -> Trace:
        """Return the samples at these rows: indices ``(n,)``, or ``(N,)`` bool."""

        def pick(value: Any) -> Any:
            return {name: part[rows] for name, part in value.items()} if isinstance(value, Mapping) else value[rows]

        kept: dict[str, Any] = {"cost": self.cost, "network": self.network, "timing": self.timing, "task": self.task}
        kept |= {"classes": self.classes, "tiles": self.tiles}
        values = ((part.name, getattr(self, part.name)) for part in fields(self) if part.init and part.name not in kept)
        return Trace(**kept | {name: None if value is None else pick(value) for name, value in values})

    def with_groups(self, groups: Tensor | Sequence[Hashable]) -> Trace:
        """Return a trace that says which samples belong together, in place of what it said before.

        It counts requests for certificates together with this one: naming groups makes no new samples. A file in which the
        trace was saved keeps its groups.

        Args:
            groups: ``(N,)`` integers, or the names of the samples' groups, which are numbered in the order of their first
                samples. With tiles, one for each image is enough.

        Raises:
            InputError: unless there is an integer or a name for every sample, the same for all tiles of an image.
        """
        numbers = number_groups(groups)
        if self.images is not None and len(numbers) < len(self):
            images = self.images.unique_consecutive(return_inverse=True)[1]
            numbers = numbers[images] if len(numbers) == int(images[-1]) + 1 else numbers
        grouped = replace(self, groups=numbers)
        object.__setattr__(grouped, "certificate_requests", self.certificate_requests)
        return grouped

    def save(self, path: str | Path) -> None:
        """Write the trace as one safetensors file, atomically; raise :class:`OutputError` if that fails."""
        tensors: dict[str, Tensor] = {}
        for name in (item.name for item in fields(self) if item.name not in (*NOTED, *RECORDS, "certificate_requests")):
            value = getattr(self, name)
            parts = value.parts() if isinstance(value, LogitsSummary) else value
            named = {f"{name}.{part}": item for part, item in parts.items()} if isinstance(parts, Mapping) else {name: parts}
            tensors |= {name: item for name, item in named.items() if item is not None}
        owners = {t.untyped_storage().data_ptr(): name for name, t in tensors.items()}
        alone = {name: t if owners[t.untyped_storage().data_ptr()] == name else t.clone() for name, t in tensors.items()}
        note = {"format": FORMAT, "num_classes": self.logits.shape[2]} | {name: getattr(self, name) for name in NOTED}
        records = {name: asdict(record) for name in RECORDS if (record := getattr(self, name)) is not None}
        write_tensors(Path(path), alone, note | records, "path")

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Inverse of :meth:`save`; raises :class:`InputError` for a file that is missing, damaged or of another kind.

        The file is mapped into memory, not read: leave it where it is while the trace lives.
        """
        try:
            tensors, note = read_tensors(Path(path))
        except BundleError as error:
            raise InputError(f"path: expected what Trace.save wrote ({error})") from error
        if note.get("format") != FORMAT or not isinstance(note.get("num_classes"), int):
            raise InputError(f"path: expected what Trace.save wrote, {path} is not that, or of a later version of exitlens")
        values: dict[str, Any] = {"network": note["network"], "labels": None, "task": note.get("task", "classes")}
        values["classes"] = tuple(note.get("classes", ()))
        for name, tensor in tensors.items():
            head, _, part = name.partition(".")
            if part:
                values.setdefault(head, {})[part] = tensor
            else:
                values[head] = tensor
        try:
            if isinstance(values["logits"], dict):
                parts: dict[str, Any] = values["logits"]
                if values["task"] in CONTINUOUS:
                    values["logits"] = AnswerSummary(**parts)
                elif values["task"] == "segmentation":
                    values["logits"] = PixelSummary(**{"confusion": None} | parts)
                else:
                    values["logits"] = CompactLogits(**{"label": None} | parts, num_classes=note["num_classes"])
            values |= {name: read_record(kind, note[name]) for name, kind in RECORDS.items() if note.get(name)}
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"path: expected what Trace.save wrote, {path} is damaged ({error})") from error

    def require_labels(self, purpose: str) -> Tensor:
        """Return the labels, or raise an error that says what needed them."""
        if self.task == "segmentation":
            raise InputError(f"labels: {purpose} is not for one class a pixel, whose labels are counted in trace.logits")
        if self.labels is None:
            raise InputError(f"labels: {purpose} needs them and this trace has none: collect it on labelled data")
        return self.labels

    def require_accuracy(self, purpose: str) -> Tensor:  # -> (N,K)
        """Return :attr:`accuracy`, or raise an error that says what needed labels, or classes."""
        if self.task in CONTINUOUS:
            raise InputError(
                f"trace: {purpose} is for classes, and these answers are {ANSWERS[self.task]}. Fix: leave it out."
            )
        if self.task == "segmentation":
            return rate_pixels(self.require_confusion(purpose))
        return are_same(self.answers, self.require_labels(purpose)[:, None], self.task).float()

    def require_confusion(self, purpose: str) -> Tensor:  # -> (N,K,C,C)
        """Return the numbers of pixels by label and answer, or raise an error that says what needed them."""
        counts = self.logits.confusion if isinstance(self.logits, PixelSummary) else None
        if counts is None:
            what = "labels" if self.task == "segmentation" else "one class a pixel"
            raise InputError(f"labels: {purpose} needs a trace with {what}: collect it on images with labels of pixels")
        return counts

    def fingerprint(self) -> str:
        """Return a SHA-256 over logits (their hashes, if compact) and labels: equal if two traces have the same samples."""
        if isinstance(self.logits, LogitsSummary):
            digest = hashlib.sha256("".join(self.hash_samples()).encode())
        else:
            digest = hashlib.sha256(self.logits.contiguous().numpy().tobytes())
        labels = self.logits.confusion if isinstance(self.logits, PixelSummary) else self.labels
        if labels is not None:
            digest.update(labels.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def hash_units(self) -> str:
        """Return a SHA-256 of what says which samples are independent, groups and swaps; empty without either."""
        units = [self.groups, self.swaps.get("unit")]
        parts = [b"-" if part is None else part.contiguous().numpy().tobytes() for part in units]
        return "" if parts == [b"-", b"-"] else hashlib.sha256(b"|".join(parts)).hexdigest()[:16]

    def hash_samples(self) -> list[str]:
        """Return a hash of every sample's logits, the same whether they were kept whole or made compact."""
        kept = self.logits.first if isinstance(self.logits, LogitsSummary) else self.logits
        hashes = hash_rows(kept) if self.sample_hashes is None else self.sample_hashes
        return [f"{value % 2**64:016x}" for value in hashes.tolist()]

    def sketch(self, size: int = 64) -> SampleSketch:
        """Return the fingerprint and the ``size`` smallest sample hashes, for :meth:`shares_samples`."""
        return SampleSketch(self.fingerprint(), tuple(sorted(self.hash_samples())[:size]))

    def shares_samples(self, others: SampleSketch) -> bool:
        """Return whether some of the others are in this trace, as far as equal logits can tell."""
        return others.data == self.fingerprint() or not set(others.sketch).isdisjoint(self.hash_samples())


def number_groups(groups: Tensor | Iterable[Hashable]) -> Tensor:
    """Return integers as they are, and numbers for names, in the order of their first samples."""
    if isinstance(groups, Tensor):
        return groups
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in groups], dtype=torch.int64)


def hash_rows(rows: Tensor) -> Tensor:  # (N,*S) -> (N,) int64
    """Return a hash of every row, in half precision: batches of another size round otherwise."""
    halves = (rows.half() + 0.0).contiguous().numpy()  # no -0
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in halves]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])


def _as_tensor(value: object, name: str, expected: str) -> Tensor:
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: expected {expected} ({error})") from error
