"""predict and predict_stream: adaptive inference on one batch, or on batches as they come."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from exitlens.data.batches import count_batches, iterate_inputs
from exitlens.data.streams import open_stream
from exitlens.data.workers import Prefetch
from exitlens.errors import EngineError, ExitlensError, InputError, StreamError, require
from exitlens.functional.maps import all_finite
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import RoutedBatch, Router
from exitlens.model.heads.exit_heads import require_maps
from exitlens.model.network import ExitNet
from exitlens.progress import track
from exitlens.types import Policy, Prediction
from exitlens.types.inputs import Inputs, count_rows
from exitlens.types.preprocessing import ArrayPreprocess, Preprocess, TextPreprocess
from exitlens.types.tasks import read_answers


def predict(net: ExitNet, inputs: Inputs, policy: Policy, *, attention: bool = False) -> Prediction:
    """Answer each sample of a batch at the first exit whose score reaches its threshold.

    Exits that can never fire (threshold infinite) are not computed. Between exits the host looks at the device once. The
    network runs as ``net.tuning`` says, on compiled stages if there are any (:meth:`~exitlens.model.network.ExitNet.tune`,
    :meth:`~exitlens.model.network.ExitNet.compile`). Threads may share a network, unless one of them trains it.

    Args:
        net: used in evaluation mode, and given back in the mode it was in.
        inputs: ``(B,C,H,W)`` normalised floats, or texts as :meth:`~exitlens.types.TextPreprocess.encode` gives them; not
            changed. For a folder, a loader or other batches call :func:`exitlens.predict_stream`.
        policy: of this network (checked by fingerprint where the policy carries one).
        attention: also return the attention map of the exit that answered, placed in the image
            (see docs/concepts/method.md).

    Returns:
        Labels (one class a sample, or of several labels whether each is there), exits, scores and probabilities in the order
        of ``inputs``.

    Raises:
        InputError: for inputs that the network cannot take; PolicyError: for a policy of another network.

    Examples:
        >>> pred = xl.predict(net, images, policy, attention=True)
        >>> pred.labels.shape, pred.exits.shape, len(pred.attention)
        (torch.Size([8]), torch.Size([8]), 8)
    """
    check_policy(net, policy)
    if attention:
        require_maps(net.heads, "attention=True")
    if not isinstance(inputs, Tensor | Mapping):
        many = isinstance(inputs, str | Path | Dataset | Iterable)
        hint = ": call exitlens.predict_stream for a folder, a loader or several batches" if many else ""
        raise InputError(f"inputs: expected a torch.Tensor or a dict of them, one batch, got {type(inputs).__name__}{hint}")
    with net.open_engine() as engine:
        activations = net.check_input(inputs, "inputs")
        router = Router(engine, policy, attention, engine.tuning.micro_batch)
        where = torch.arange(len(activations[0]), device=activations[0].device)
        return merge_routed(net, router.run(where, activations))


def check_policy(net: ExitNet, policy: Policy) -> None:
    """Raise :class:`InputError` or :class:`PolicyError` unless this is a network and a policy of it."""
    require(net, ExitNet, "net")
    require(policy, Policy, "policy", "see exitlens.calibrate")
    policy.check(net.num_exits, net.identity() if policy.network else "", net.info.task)


def merge_routed(net: ExitNet, routed: list[RoutedBatch]) -> Prediction:
    """Return what the router gave as one prediction in the order of places, with attention maps placed in the input."""
    where, order = torch.cat([part.where for part in routed]).sort()
    p = torch.cat([part.probabilities for part in routed])[order]
    if not all_finite(p):
        raise InputError("net: its logits are NaN or infinite for these inputs: its weights are damaged, train it again")
    maps = None
    if routed[0].attention is not None:
        rows = [row for part in routed if part.attention is not None for row in net.info.place(part.exit, part.attention)]
        maps = tuple(rows[i] for i in order.tolist())
    exits = torch.cat([torch.full_like(part.where, part.exit) for part in routed])[order]
    scores = torch.cat([part.scores for part in routed])[order]
    trusts = [part.trust for part in routed if part.trust is not None]
    estimates, last = torch.cat(trusts)[order].unbind(1) if trusts else (None, None)
    return Prediction(read_answers(p, net.info.task), exits, scores, p, maps, where, estimates, last)


Order = Literal["input", "ready"]
MAX_WAITING = 4096  # samples that may be behind the oldest unanswered one


def predict_stream(
    net: ExitNet,
    batches: str | Path | Iterable[Any],
    policy: Policy,
    *,
    attention: bool = False,
    order: Order = "input",
    max_delay_ms: float | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[Prediction]:
    """Answer a stream lazily and in bounded memory, each sample as :func:`exitlens.predict` would.

    Batches are loaded in the background, and samples that stay wait at each stage for those of later batches until they
    fill a micro-batch (dynamic re-batching, arXiv 2512.15705).

    Args:
        net: used in evaluation mode, and given back in the mode it was in between batches.
        batches: a folder, a ``Dataset``, a ``DataLoader`` or another iterable of batches, or inputs as a tensor (or several
            by name); labels in them are ignored. Batches are read ahead and kept for a while, so an iterator must not write
            into a batch that it has given.
        policy: of this network (checked by fingerprint where the policy carries one).
        attention: also return the attention maps of the exits that answered.
        order: ``input``: a prediction for each batch, in order; ``ready``: predictions as they come, with
            ``Prediction.index`` to tell which samples they are of.
        max_delay_ms: no sample waits longer than this for others (besides the time of computing); ``None``: until a
            micro-batch is full, or 4096 samples came after it.
        batch_size: of a folder, a ``Dataset`` and of tensors.
        progress: show a progress bar.

    Raises:
        InputError: for inputs that the network cannot take; PolicyError: for a policy of another network.
        StreamError: when the iterator raises, after the answers of all samples before.

    Examples:
        >>> for pred in xl.predict_stream(net, images.split(4), policy, max_delay_ms=100):
        ...     print(len(pred))
        4
        4
    """
    check_policy(net, policy)
    if attention:
        require_maps(net.heads, "attention=True")
    stream = _Stream(net, policy, attention, order, max_delay_ms)
    return _run(stream, _open_source(net, batches, batch_size), batch_size, progress)


def _open_source(net: ExitNet, batches: Any, batch_size: int) -> Any:
    """A folder as a stream of its samples; anything else as it is."""
    if not isinstance(batches, str | Path | Dataset) and not hasattr(batches, "__iter__"):
        kind = type(batches).__name__
        raise InputError(f"batches: expected a folder, a Dataset, an iterable of batches or a tensor, got {kind}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size: expected an integer of 1 or more, got {batch_size!r}")
    if not isinstance(batches, str | Path):
        return batches
    if not isinstance(net.info.preprocess, Preprocess | TextPreprocess | ArrayPreprocess):
        raise InputError("batches: the network does not say how files become inputs: net.describe(preprocess=...) first")
    return open_stream(net.info.preprocess, str(batches), batch_size)


def _run(stream: _Stream, source: Any, batch_size: int, progress: bool) -> Iterator[Prediction]:
    with Prefetch(iterate_inputs(source, batch_size, stream.net.device)) as loading:
        predictions = stream.run(loading)
        total = count_batches(source, batch_size) if stream.order == "input" else None  # then one prediction a batch
        yield from track(predictions, "predicting", total=total) if progress else predictions


@dataclass
class _Open:
    """A batch that is not answered in full; the answers so far are kept if predictions are given in order."""

    start: int
    count: int
    routed: list[RoutedBatch] = field(default_factory=list)
    answered: int = 0


class _Stream:
    """Answer a stream: feeds the router, and hands out what is complete."""

    def __init__(self, net: ExitNet, policy: Policy, attention: bool, order: Order, max_delay_ms: float | None) -> None:
        if order not in ("input", "ready"):
            raise InputError(f"order: expected 'input' or 'ready', got {order!r}")
        if max_delay_ms is not None and not (isinstance(max_delay_ms, int | float) and 0 <= max_delay_ms < math.inf):
            raise InputError(f"max_delay_ms: expected milliseconds of 0 or more, or None, got {max_delay_ms!r}")
        self.net, self.policy, self.attention = net, policy, attention
        self.order, self.max_delay_ms = order, max_delay_ms
        self.router: Router | None = None
        self.open: deque[_Open] = deque()  # batches that are not answered in full
        self.seen = 0

    def run(self, loading: Prefetch[Inputs]) -> Iterator[Prediction]:
        """Yield predictions until the stream ends; an error of it comes after all answers to what came before."""
        number, failed = 0, None
        while failed is None:
            inputs = loading.next(self._patience())
            if inputs is None and loading.ended:
                break
            try:
                routed = self._flush() if inputs is None else self._feed(inputs, number)
            except Exception as error:
                failed = error
                continue
            number += inputs is not None
            yield from self._ready(routed)
            if self._overdue():
                yield from self._ready(self._flush())
        yield from self._ready(self._rest(failed))
        if failed is not None:
            raise failed
        if loading.error is not None:
            raise self._wrap_error(loading.error, number) from loading.error

    def _rest(self, failed: Exception | None) -> list[RoutedBatch]:
        """What still waits at the end; after a failure as far as it can be answered."""
        if failed is None or self.router is None:
            return self._flush()
        routed = self.router.take_routed()
        with suppress(Exception):  # what failed before may fail again; that is the error that is told
            routed += self._flush()
        routed += self.router.take_routed()
        return [part.select(part.where < self.seen) for part in routed]  # not those of the batch that failed

    def _wrap_error(self, error: BaseException, number: int) -> BaseException:
        if isinstance(error, ExitlensError) or not isinstance(error, Exception):
            return error
        return StreamError(
            f"batches: the stream raised {type(error).__name__} ({error}) after {number} batches; all their {self.seen} "
            f"samples were answered. Fix: go on from sample {self.seen}"
        )

    def _feed(self, inputs: Inputs, number: int) -> list[RoutedBatch]:
        with self.net.open_engine() as engine:
            activations = self.net.check_input(inputs, f"batches[{number}]")
            count = count_rows(inputs)
            where = torch.arange(self.seen, self.seen + count, device=activations[0].device)
            if self.router is None:
                self.router = Router(engine, self.policy, self.attention)
            self._continue_with(engine)
            self.router.micro_batch = self._choose_micro_batch(engine.tuning.micro_batch, count)
            routed = self.router.feed(where, activations)
        self.open.append(_Open(self.seen, count))
        self.seen += count
        return routed

    def _choose_micro_batch(self, wanted: int, count: int) -> int:
        """As tuned; untuned, no more than the stream's own batches hold, so that nobody waits for samples of later ones."""
        assert self.router is not None
        if wanted and self.net.is_tuned:
            return wanted
        held = max(self.router.micro_batch, count)
        return min(held, wanted) if wanted else held

    def _continue_with(self, engine: Engine) -> None:
        """The network's engine now (its weights may have changed), of the same form as before."""
        assert self.router is not None
        before = self.router.engine
        if before.tuning != engine.tuning or before.is_compiled != engine.is_compiled:
            raise EngineError("net: it was tuned or compiled while it answered a stream: do that before or after the stream")
        self.router.engine = engine

    def _flush(self) -> list[RoutedBatch]:
        if self.router is None or not self.router.waiting:
            return []
        with self.net.open_engine() as engine:
            self._continue_with(engine)
            return self.router.flush()

    def _patience(self) -> float | None:
        """Seconds until the sample that waits longest has waited long enough; ``None``: for ever."""
        if self.max_delay_ms is None or self.router is None or not self.router.waiting:
            return None
        return max(0.0, self.router.oldest + self.max_delay_ms / 1000 - time.monotonic())

    def _overdue(self) -> bool:
        return self._patience() == 0.0 or (bool(self.open) and self.seen - self.open[0].start > MAX_WAITING)

    def _ready(self, routed: list[RoutedBatch]) -> Iterator[Prediction]:
        for part in routed:
            self._assign(part)
            if self.order == "ready" and len(part.where):
                yield merge_routed(self.net, [part])
        while self.open and self.open[0].answered == self.open[0].count:
            done = self.open.popleft()
            if self.order == "input":
                yield merge_routed(self.net, done.routed)

    def _assign(self, part: RoutedBatch) -> None:
        """Hand the answers of a micro-batch to the batches that its samples came in."""
        ends = [batch.start + batch.count for batch in self.open]
        owners = torch.bucketize(part.where.cpu(), torch.tensor(ends), right=True)
        for i in owners.unique().tolist():
            rows = (owners == i).nonzero().squeeze(1).to(part.where.device)
            if self.order == "input":
                self.open[i].routed.append(part if len(rows) == len(part.where) else part.select(rows))
            self.open[i].answered += len(rows)
