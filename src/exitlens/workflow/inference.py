"""predict and predict_stream: adaptive inference on one batch, or on batches as they come."""

from __future__ import annotations

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
from exitlens.functional.answers import tell_answers
from exitlens.functional.maps import all_finite
from exitlens.model.engine.adapting import Adaptive
from exitlens.model.engine.auditing import Recomposing, open_router
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import ExitBatch, Router
from exitlens.model.engine.tiling import run_tiles
from exitlens.model.heads import require_maps
from exitlens.model.network import ExitNet
from exitlens.progress import track
from exitlens.types import Policy, Prediction
from exitlens.types.inputs import Inputs, count_rows
from exitlens.types.preprocessing import ArrayPreprocess, Preprocess, TextPreprocess
from exitlens.types.settings import COUNT, NOT_NEGATIVE, NumberRule, check_choice, check_number
from exitlens.types.tasks import CONTINUOUS, refuse_task
from exitlens.types.tiles import Tiles


def predict(
    net: ExitNet, inputs: Inputs, policy: Policy | Adaptive, *, attention: bool = False, tiles: Tiles | None = None
) -> Prediction:
    """Answer each sample of a batch at the first exit whose score reaches its threshold.

    Exits that can never fire (threshold infinite) are not computed. The network runs as
    :meth:`~exitlens.model.network.ExitNet.tune` and :meth:`~exitlens.model.network.ExitNet.compile` left it. Threads may
    share a network, unless one of them trains it.

    Args:
        net: used in evaluation mode, and given back in the mode it was in.
        inputs: ``(B,C,H,W)`` normalised floats, or texts as :meth:`~exitlens.types.TextPreprocess.encode` gives them. For a
            folder, a loader or several batches call :func:`exitlens.predict_stream`.
        policy: of this network (checked by fingerprint where the policy carries one), or an :class:`~exitlens.Adaptive`.
        attention: also return the attention map of the exit that answered, placed in the image.
        tiles: with one class a pixel, parts of the images that leave each for itself; a calibrated policy has to come from a
            trace of the same tiles.

    Returns:
        Labels (a class per sample, or for every label whether the sample has it; numbers or vectors), exits, scores and
        probabilities, in the order of ``inputs``.

    Examples:
        >>> pred = xl.predict(net, images, policy, attention=True)
        >>> pred.labels.shape, pred.exits.shape, len(pred.attention)
        (torch.Size([8]), torch.Size([8]), 8)
    """
    require(net, ExitNet, "net")
    check_policy(net, policy, tiles)
    if attention:
        require_maps(net.heads, "attention=True")
    if not isinstance(inputs, Tensor | Mapping):
        many = isinstance(inputs, str | Path | Dataset | Iterable)
        hint = ": call exitlens.predict_stream for a folder, a loader or several batches" if many else ""
        hint = ". Fix: torch.from_numpy(inputs)" if hasattr(inputs, "__array__") else hint
        raise InputError(f"inputs: expected a torch.Tensor or a dict of them, one batch, got {type(inputs).__name__}{hint}")
    if tiles is not None:
        return _predict_tiles(net, inputs, policy, tiles, attention)
    with net.open_engine() as engine:
        activations = net.check_input(inputs, "inputs")
        router = open_router(engine, policy, net.cost, attention, engine.tuning.micro_batch, _describe_recomposing(net))
        where = torch.arange(len(activations[0]), device=activations[0].device)
        return merge_routed(net, router.run(where, activations))


def _predict_tiles(net: ExitNet, inputs: Inputs, policy: Policy | Adaptive, tiles: Tiles, attention: bool) -> Prediction:
    require(tiles, Tiles, "tiles")
    if net.info.task != "segmentation" or attention:
        raise InputError("tiles: they are for answers to each pixel, without attention. Fix: leave one of the two out")
    assert isinstance(policy, Policy)  # an Adaptive was refused
    with net.open_engine() as engine:
        return run_tiles(engine, net.check_input(inputs, "inputs"), policy, tiles)


def _describe_recomposing(net: ExitNet) -> Recomposing:
    """Return how the network's inputs are put together."""
    return Recomposing(net.input_spec.modality, net.input_spec.names, net.info.place)


def check_policy(net: ExitNet, policy: Policy | Adaptive, tiles: Tiles | None = None) -> None:
    """Raise :class:`PolicyError` for a policy of another network, :class:`InputError` for a limit on maps without any."""
    net.check_policy(policy.policy if isinstance(policy, Adaptive) else policy, tiles)
    if isinstance(policy, Adaptive):
        refuse_task(net.info.task, "policy: an Adaptive")
    if isinstance(policy, Adaptive) and policy.loss != "disagreement":
        require_maps(net.heads, f"a limit on {policy.loss}")
        if policy.loss == "binding":
            net.input_spec.modality.check_deletion(net.input_spec)


def merge_routed(net: ExitNet, routed: list[ExitBatch]) -> Prediction:
    """Join what the router returned to a prediction in the order of places, with attention maps placed in the input."""
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
    trust = refused = None
    if estimates := [part.trust for part in routed if part.trust is not None]:
        trust, refused = torch.cat(estimates)[order], torch.cat([part.find_refused() for part in routed])[order]
    labels = tell_answers(p, net.info.task, net.info.units)
    p = p[:, :0] if net.info.task in CONTINUOUS else p
    return Prediction(labels, exits, scores, p, maps, where, trust, refused)


Order = Literal["input", "ready"]
MAX_WAITING = 4096  # samples that may arrive after one that still waits
DELAY = NumberRule("milliseconds of 0 or more, or None", NOT_NEGATIVE.is_valid)


def predict_stream(
    net: ExitNet,
    batches: str | Path | Iterable[Any],
    policy: Policy | Adaptive,
    *,
    attention: bool = False,
    order: Order = "input",
    max_delay_ms: float | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[Prediction]:
    """Answer a stream lazily and in bounded memory, each sample as :func:`exitlens.predict` would.

    Batches are loaded in the background. Samples that do not leave wait at each stage for those of later batches until they
    fill a micro-batch (dynamic re-batching, arXiv 2512.15705).

    Args:
        net, policy, attention: as in :func:`exitlens.predict`.
        batches: a folder, a ``Dataset``, a ``DataLoader`` or another iterable of batches, or inputs as a tensor (or several
            by name); labels are ignored. Batches are read ahead and kept for a while, so an iterator must not write into a
            batch after yielding it.
        order: ``input``: a prediction for each batch, in order; ``ready``: predictions as soon as they are ready, whose
            samples ``Prediction.index`` names.
        max_delay_ms: longest time that a sample waits for others (computing comes on top); ``None``: until a micro-batch is
            full, or 4096 samples came after it.
        batch_size: for a folder, a ``Dataset`` and tensors.

    Raises:
        StreamError: if the iterator raises, after the answers to all samples before.

    Examples:
        >>> for pred in xl.predict_stream(net, images.split(4), policy, max_delay_ms=100):
        ...     print(len(pred))
        4
        4
    """
    require(net, ExitNet, "net")
    check_policy(net, policy)
    if attention:
        require_maps(net.heads, "attention=True")
    if not isinstance(batches, str | Path | Dataset) and not hasattr(batches, "__iter__"):
        kind = type(batches).__name__
        raise InputError(f"batches: expected a folder, a Dataset, an iterable of batches or a tensor, got {kind}")
    check_number("batch_size", batch_size, COUNT)
    stream, source = _Stream(net, policy, attention, order, max_delay_ms), batches
    if isinstance(batches, str | Path):
        if not isinstance(net.info.preprocess, Preprocess | TextPreprocess | ArrayPreprocess):
            raise InputError("batches: the network does not know how files become inputs. Fix: net.describe(preprocess=...)")
        source = open_stream(net.info.preprocess, str(batches), batch_size)

    def run() -> Iterator[Prediction]:  # arguments are checked when called, not when iterated
        with Prefetch(iterate_inputs(source, batch_size, net.device)) as loading, stream:
            predictions = stream.run(loading)
            total = count_batches(source, batch_size) if order == "input" else None  # then a prediction per batch
            yield from track(predictions, "predicting", total=total) if progress else predictions

    return run()


@dataclass
class _Open:
    """A batch with unanswered samples; ``routed`` keeps its answers so far if predictions are given in order."""

    start: int
    count: int
    routed: list[ExitBatch] = field(default_factory=list)
    answered: int = 0


class _Stream:
    """Feeds a stream to the router, and hands out predictions when they are complete."""

    def __init__(
        self, net: ExitNet, policy: Policy | Adaptive, attention: bool, order: Order, max_delay_ms: float | None
    ) -> None:
        check_choice("order", order, ("input", "ready"))
        if max_delay_ms is not None:
            check_number("max_delay_ms", max_delay_ms, DELAY)
        self.net, self.policy, self.attention = net, policy, attention
        self.order, self.max_delay_ms = order, max_delay_ms
        self.router: Router | None = None
        self.open: deque[_Open] = deque()
        self.seen = 0

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        """End audits that are under way: without their outcome they would count as lost."""
        if isinstance(self.policy, Adaptive):
            with suppress(Exception):
                self._flush()

    def run(self, loading: Prefetch[Inputs]) -> Iterator[Prediction]:
        """Yield predictions until the stream ends; if it raises, first answer all samples before."""
        number = 0
        while (inputs := loading.next(self._patience())) is not None or not loading.ended:
            try:
                routed = self._flush() if inputs is None else self._feed(inputs, number)
            except Exception:
                yield from self._ready(self._rescue())
                raise
            number += inputs is not None
            yield from self._ready(routed)
            if self._patience() == 0.0 or (self.open and self.seen - self.open[0].start > MAX_WAITING):
                yield from self._ready(self._flush())
        yield from self._ready(self._flush())
        cause = loading.error
        if isinstance(cause, Exception) and not isinstance(cause, ExitlensError):
            raise StreamError(
                f"batches: the stream raised {type(cause).__name__} ({cause}) after {number} batches; all their {self.seen} "
                f"samples were answered. Fix: go on from sample {self.seen}"
            ) from cause
        if cause is not None:
            raise cause

    def _feed(self, inputs: Inputs, number: int) -> list[ExitBatch]:
        with self.net.open_engine() as engine:
            activations = self.net.check_input(inputs, f"batches[{number}]")
            count = count_rows(inputs)
            where = torch.arange(self.seen, self.seen + count, device=activations[0].device)
            router = self._continue_with(engine)
            # untuned, no more than the stream's own batches hold, so that nobody waits for samples of later ones
            micro_batch, held = engine.tuning.micro_batch, max(router.micro_batch, count)
            is_tuned = bool(micro_batch) and self.net.is_tuned
            router.micro_batch = micro_batch if is_tuned else min(held, micro_batch or held)
            routed = router.feed(where, activations)
        self.open.append(_Open(self.seen, count))
        self.seen += count
        return routed

    def _continue_with(self, engine: Engine) -> Router:
        """Return the router with the current engine: the network's weights may have changed, its tuning must not."""
        if self.router is None:
            recomposing = _describe_recomposing(self.net)
            self.router = open_router(engine, self.policy, self.net.cost, self.attention, recomposing=recomposing)
        before = self.router.engine
        if before.tuning != engine.tuning or before.is_compiled != engine.is_compiled:
            raise EngineError("net: it was tuned or compiled while it answered a stream. Fix: tune before or after it.")
        self.router.engine = engine
        return self.router

    def _flush(self) -> list[ExitBatch]:
        if self.router is None or not self.router.waiting:
            return []
        with self.net.open_engine() as engine:
            return self._continue_with(engine).flush()

    def _rescue(self) -> list[ExitBatch]:
        """Answer the samples before the batch that failed, as far as the failure does not repeat itself."""
        if self.router is None:
            return []
        routed = self.router.take_routed()
        with suppress(Exception):
            routed += self._flush()
        routed += self.router.take_routed()
        return [part.select(part.where < self.seen) for part in routed]

    def _patience(self) -> float | None:
        """Return the seconds until the sample that waits longest has to be answered; ``None`` without a limit."""
        if self.max_delay_ms is None or self.router is None or not self.router.waiting:
            return None
        return max(0.0, self.router.oldest + self.max_delay_ms / 1000 - time.monotonic())

    def _ready(self, routed: list[ExitBatch]) -> Iterator[Prediction]:
        """Yield what is complete now that these micro-batches were answered."""
        for part in routed:
            ends = [batch.start + batch.count for batch in self.open]
            owners = torch.bucketize(part.where.cpu(), torch.tensor(ends), right=True)
            for i in owners.unique().tolist():
                rows = (owners == i).nonzero().squeeze(1).to(part.where.device)
                if self.order == "input":
                    self.open[i].routed.append(part if len(rows) == len(part.where) else part.select(rows))
                self.open[i].answered += len(rows)
            if self.order == "ready" and len(part.where):
                yield merge_routed(self.net, [part])
        while self.open and self.open[0].answered == self.open[0].count:
            done = self.open.popleft()
            if self.order == "input":
                yield merge_routed(self.net, done.routed)
