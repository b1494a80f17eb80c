"""predict: adaptive inference, routed per sample: those who are sure leave, the others are gathered and go on."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.data.batches import count_batches, iterate_inputs
from exitlens.data.folders import list_images
from exitlens.data.prefetch import Prefetch
from exitlens.data.streams import ImageStream
from exitlens.errors import EngineError, ExitlensError, InputError, StreamError, require
from exitlens.functional.maps import all_finite
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import RoutedBatch, Router
from exitlens.model.network import ExitNet
from exitlens.types import Policy, Prediction, Preprocess
from exitlens.types.inputs import Inputs, count_rows

Order = Literal["input", "ready"]
MAX_WAITING = 4096  # samples that may be behind the oldest unanswered one


@overload
def predict(net: ExitNet, images: Inputs, policy: Policy, *, attention: bool = False) -> Prediction: ...


@overload
def predict(
    net: ExitNet,
    images: str | Path | Iterable[Any],
    policy: Policy,
    *,
    attention: bool = False,
    order: Order = "input",
    max_delay_ms: float | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[Prediction]: ...


def predict(
    net: ExitNet,
    images: Inputs | str | Path | Iterable[Any],
    policy: Policy,
    *,
    attention: bool = False,
    order: Order = "input",
    max_delay_ms: float | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Prediction | Iterator[Prediction]:
    """Answers each sample at the first exit whose score reaches its threshold.

    Exits that can never fire (threshold infinite) are not computed. Between exits the host looks at the device once. It
    runs as ``net.tuning`` says, on the compiled stages if there are (see :meth:`~exitlens.model.network.ExitNet.tune` and
    :meth:`~exitlens.model.network.ExitNet.compile`). Threads may share a network, but for one that trains it meanwhile.

    A batch is answered at once. A **stream** (a folder of images, a ``DataLoader``, a ``Dataset``, any iterable of batches)
    is answered batch by batch, lazily, with bounded memory: batches are loaded in the background, and survivors wait at
    each stage for those of later batches until they fill a micro-batch (dynamic re-batching, arXiv 2512.15705).

    Args:
        net: used in evaluation mode, and given back in the mode it was in.
        images: ``(B,C,H,W)`` normalised floats, or texts as :meth:`~exitlens.types.TextPreprocess.encode` gives them; not
            changed. Or a stream of them; labels in its batches are ignored. Batches are read ahead and kept for a while, so
            an iterator must not write into one that it has given.
        policy: of this network (checked by fingerprint where the policy carries one).
        attention: also return the attention map of the exit that answered.
        order: of a stream's predictions: ``input``: one for each batch, in order; ``ready``: as they come, with
            ``Prediction.index`` to tell which samples they are.
        max_delay_ms: of a stream: no sample waits longer than this for others (beside the time of computing); ``None``:
            until a micro-batch is full, or 4096 samples came after it.
        batch_size: of a stream that is a folder or a ``Dataset``.
        progress: show a progress bar (of a stream).

    Returns:
        Labels, exits, scores and probabilities in the order of ``images``; of a stream an iterator of such.

    Raises:
        InputError: for images the network cannot take; PolicyError: for a policy of another network.
        StreamError: when a stream's iterator raises, after the answers of all samples before.
    """
    require(net, ExitNet, "net")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    policy.check(net.num_exits, net.identity() if policy.network else "")
    if not _is_batch(images):
        settings = _StreamSettings(attention, order, max_delay_ms)
        return _stream(net, _source(net, images, batch_size), policy, settings, batch_size, progress)
    with net.running() as engine:
        activations = net.check_input(images)  # type: ignore[arg-type]
        router = Router(engine, policy, attention, net.tuning.micro_batch)
        where = torch.arange(len(activations[0]), device=activations[0].device)
        return merge_routed(router.run(where, activations))


def _is_batch(images: Any) -> bool:
    """Whether it is to be taken, or refused, as one batch: tensors, and what is no stream of them either."""
    if isinstance(images, list):
        return (
            not images
            or not isinstance(images[0], Tensor | Mapping | tuple | list)
            or (isinstance(images[0], list) and (not images[0] or not isinstance(images[0][0], Tensor | Mapping)))
        )
    return isinstance(images, Tensor | Mapping) or (
        not hasattr(images, "__iter__") and not isinstance(images, Path | Dataset)
    )


def merge_routed(left: list[RoutedBatch]) -> Prediction:
    """What left the router, as one prediction in the order of places.

    Raises:
        InputError: where the network's answers are not finite.
    """
    if len(left) == 1:
        where, exit_, scores, p, rows, trust = left[0]
        _check_answers(p)
        maps = None if rows is None else tuple(rows.unbind(0))
        estimates, last = (None, None) if trust is None else trust.unbind(1)
        return Prediction(p.argmax(1), torch.full_like(where, exit_), scores, p, maps, where, estimates, last)
    order = torch.cat([part.where for part in left]).argsort()
    p = torch.cat([part.probabilities for part in left])[order]
    _check_answers(p)
    maps = None
    if left[0].attention is not None:
        every = [row for part in left if part.attention is not None for row in part.attention.unbind(0)]
        maps = tuple(every[i] for i in order.tolist())
    exits = torch.cat([torch.full_like(part.where, part.exit) for part in left])[order]
    scores, where = (torch.cat(column)[order] for column in zip(*((part.scores, part.where) for part in left), strict=True))
    known = [part.trust for part in left if part.trust is not None]
    estimates, last = torch.cat(known)[order].unbind(1) if known else (None, None)
    return Prediction(p.argmax(1), exits, scores, p, maps, where, estimates, last)


def _check_answers(p: Tensor) -> None:
    if not all_finite(p):
        raise InputError("net: its logits are NaN or infinite for these images: its weights are damaged, train it again")


@dataclass(frozen=True)
class _StreamSettings:
    attention: bool
    order: Order
    max_delay_ms: float | None

    def __post_init__(self) -> None:
        if self.order not in ("input", "ready"):
            raise InputError(f"order: expected 'input' or 'ready', got {self.order!r}")
        delay = self.max_delay_ms
        if delay is not None and not (isinstance(delay, int | float) and 0 <= delay < math.inf):
            raise InputError(f"max_delay_ms: expected milliseconds of 0 or more, or None, got {delay!r}")


def _source(net: ExitNet, images: Any, batch_size: int) -> Any:
    """A folder as a stream of its images; anything else as it is."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size: expected an integer of 1 or more, got {batch_size!r}")
    if not isinstance(images, str | Path):
        return images
    if not isinstance(net.info.preprocess, Preprocess):
        raise InputError("images: the network does not say how files become inputs: net.describe(preprocess=...) first")
    return ImageStream(list_images(Path(images)), net.info.preprocess, batch_size)


def _stream(
    net: ExitNet, source: Any, policy: Policy, settings: _StreamSettings, batch_size: int, progress: bool
) -> Iterator[Prediction]:
    with Prefetch(iterate_inputs(source, batch_size, net.device)) as loading:
        found = _Stream(net, policy, settings).run(loading)
        total = count_batches(source, batch_size) if settings.order == "input" else None  # then one prediction a batch
        yield from track(found, "predicting", total=total) if progress else found


@dataclass
class _Open:
    """A batch of a stream on its way: its samples' answers so far (kept where they are given in order)."""

    start: int
    count: int
    left: list[RoutedBatch] = field(default_factory=list)
    answered: int = 0


class _Stream:
    """Answers a stream: feeds the router, and hands out what is complete."""

    def __init__(self, net: ExitNet, policy: Policy, settings: _StreamSettings) -> None:
        self.net, self.policy, self.settings = net, policy, settings
        self.router: Router | None = None
        self.open: deque[_Open] = deque()  # batches that are not answered in full
        self.seen = 0

    def run(self, loading: Prefetch[Inputs]) -> Iterator[Prediction]:
        """Yields predictions until the stream ends; an error of it comes after all answers to what came before."""
        number, failed = 0, None
        while failed is None:
            inputs = loading.next(self._patience())
            if inputs is None and loading.ended:
                break
            try:
                left = self._flush() if inputs is None else self._feed(inputs, number)
            except Exception as error:
                failed = error
                continue
            number += inputs is not None
            yield from self._ready(left)
            if self._overdue():
                yield from self._ready(self._flush())
        yield from self._ready(self._rest(failed))
        if failed is not None:
            raise failed
        if loading.error is not None:
            raise self._explain(loading.error, number) from loading.error

    def _rest(self, failed: Exception | None) -> list[RoutedBatch]:
        """What still waits at the end; after a failure as far as it can be answered."""
        if failed is None or self.router is None:
            return self._flush()
        left = self.router.select_exits()
        with suppress(Exception):  # what failed before may fail again; that is the error that is told
            left += self._flush()
        left += self.router.select_exits()
        return [part.only(part.where < self.seen) for part in left]  # not those of the batch that failed

    def _explain(self, error: BaseException, number: int) -> BaseException:
        if isinstance(error, ExitlensError) or not isinstance(error, Exception):
            return error
        return StreamError(
            f"images: the stream raised {type(error).__name__} ({error}) after {number} batches; all their {self.seen} "
            f"samples were answered: mend it, and go on from sample {self.seen}"
        )

    def _feed(self, inputs: Inputs, number: int) -> list[RoutedBatch]:
        with self.net.running() as engine:
            activations = self.net.check_input(inputs, f"images (batch {number} of the stream)")
            count = count_rows(inputs)
            where = torch.arange(self.seen, self.seen + count, device=activations[0].device)
            if self.router is None:
                self.router = Router(engine, self.policy, self.settings.attention)
            self._continue_with(engine)
            # untuned: as many as the stream's own batches hold
            self.router.micro_batch = self.net.tuning.micro_batch or max(self.router.micro_batch, count)
            left = self.router.feed(where, activations)
        self.open.append(_Open(self.seen, count))
        self.seen += count
        return left

    def _continue_with(self, engine: Engine) -> None:
        """The network's engine now (its weights may have changed), of the same form as before."""
        assert self.router is not None
        before = self.router.engine
        if before.tuning != engine.tuning or before.is_compiled != engine.is_compiled:
            raise EngineError(
                "net: it was tuned or compiled while it answered a stream: do that before, or after the stream"
            )
        self.router.engine = engine

    def _flush(self) -> list[RoutedBatch]:
        if self.router is None or not self.router.waiting:
            return []
        with self.net.running() as engine:
            self._continue_with(engine)
            return self.router.flush()

    def _patience(self) -> float | None:
        """Seconds until the sample that waits longest has waited long enough; ``None``: for ever."""
        if self.settings.max_delay_ms is None or self.router is None or not self.router.waiting:
            return None
        return max(0.0, self.router.oldest + self.settings.max_delay_ms / 1000 - time.monotonic())

    def _overdue(self) -> bool:
        return self._patience() == 0.0 or (bool(self.open) and self.seen - self.open[0].start > MAX_WAITING)

    def _ready(self, left: list[RoutedBatch]) -> Iterator[Prediction]:
        for part in left:
            self._file(part)
            if self.settings.order == "ready" and len(part.where):
                yield merge_routed([part])
        while self.open and self.open[0].answered == self.open[0].count:
            done = self.open.popleft()
            if self.settings.order == "input":
                yield merge_routed(done.left)

    def _file(self, part: RoutedBatch) -> None:
        """Shares the answers of one micro-batch out to the batches that its samples came in."""
        ends = [batch.start + batch.count for batch in self.open]
        owners = torch.bucketize(part.where.cpu(), torch.tensor(ends), right=True)
        for i in owners.unique().tolist():
            rows = (owners == i).nonzero().squeeze(1).to(part.where.device)
            if self.settings.order == "input":
                self.open[i].left.append(part if len(rows) == len(part.where) else part.only(rows))
            self.open[i].answered += len(rows)
