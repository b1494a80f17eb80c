"""The samples of all requests on their way through the stages of one model, and which stage runs next."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exitlens.errors import RequestError
from exitlens.functional.answers import tell_answers
from exitlens.functional.pixels import resize_probabilities
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.auditing import AuditedRouter, Recomposing
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import ExitBatch, Router
from exitlens.serving.models import Array, ServedModel
from exitlens.types import Policy
from exitlens.types.policies import DEFAULT

OnStep = Callable[[int, int, float], None]
LOG = logging.getLogger("exitlens.serving")
MARGIN = 0.002  # seconds before a deadline at which its answer goes out
URGENT_STEPS, URGENT_SECONDS = 4, 0.05  # a request goes first from this many longest steps and seconds before its deadline
KEPT = 0.9  # share of an average that is kept at every new observation
KEPT_WORK = 0.995  # the same for the work of samples: samples that leave late are rare


@dataclass(frozen=True)
class Terms:
    """A request's own terms."""

    policy: str = DEFAULT  # name of a policy in the bundle
    last_exit: int | None = None  # at which samples leave at the latest
    min_confidence: float = 0.0  # score that early exits need to answer, beside the policy's thresholds
    deadline: float = math.inf  # time by which the answer is needed (time.monotonic)
    attention: bool = False  # give the map of the exit that answered

    @property
    def changes_policy(self) -> bool:
        """True if answers may differ from the policy's, so that its promise does not hold."""
        return self.last_exit is not None or self.min_confidence > 0 or self.deadline < math.inf

    @property
    def are_default(self) -> bool:
        """True if the bundle's own policy alone decides."""
        return self.policy == DEFAULT and not self.changes_policy


def is_adapted(model: ServedModel, terms: Terms) -> bool:
    """Return whether thresholds that adapt have a part in the answers to a request with these terms."""
    return model.adaptive is not None and terms.are_default


class Answer(NamedTuple):
    """What an exit says of a sample."""

    exit: int
    label: Any  # or labels, or (H,W) of pixels
    score: float
    probabilities: Any  # (C,); of pixels their mean
    attention: Tensor | None
    trust: float = -1.0  # a gate's estimate; -1 without one
    refused: int = -1  # the first exit that the gate refused; -1: none
    threshold: float = math.inf  # of its exit, when it answered


class Ticket:
    """The samples of one request, and their answers so far.

    Attributes:
        labels: ``(n,)`` int64, or ``(n,C)`` bool where a sample has several labels; numbers and vectors as float32, or
            float64 where that would round numbers.
        exits, confidence, probabilities: ``(n,)`` int64, ``(n,)`` and ``(n,C)`` float32.
        trust: ``(n,)`` float32, a gate's estimates that the final exit would answer the same; -1 without a gate.
        refused: ``(n,)`` int64, the first exits whose answers the gate refused; -1 for none.
        thresholds: ``(n,)`` float64, of the exits that answered, at that time; infinite at the final exit.
        maps: attention of each sample, if the request asks for it.
        limited: ``(n,)`` bool, true where the request's own limits ended the sample rather than the policy.
        name: by which feedback calls the request.
        left: number of samples without an answer. error: why there are no answers.
        since, done: when the request came and when it ended. first: place of its first sample in the cascade.
    """

    def __init__(self, activations: Activations, terms: Terms, model: ServedModel, future: Any = None) -> None:
        num_classes = 0 if model.gives_values else model.info.num_classes
        count = len(activations[0])
        self.activations, self.terms, self.future = activations, terms, future
        self.labels: Array = np.empty((count, *model.label_shape), model.label_type)
        self.exits = np.full(count, -1, np.int64)
        self.confidence, self.probabilities = np.empty(count, np.float32), np.empty((count, num_classes), np.float32)
        self.limited, self.trust = np.zeros(count, np.bool_), np.full(count, -1, np.float32)
        self.refused, self.thresholds = np.full(count, -1, np.int64), np.full(count, np.inf)
        self.maps: list[Tensor | None] = [None] * count if terms.attention else []
        self.left = count
        self.error: Exception | None = None
        self.since = self.done = time.monotonic()
        self.first, self.name = -1, ""
        self.kept: dict[int, Answer] = {}  # by row: the answer to give if time runs out

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_new(self) -> bool:
        """True until a cascade has taken it in or it has ended."""
        return self.first < 0 and self.left > 0

    def answer(self, row: int, given: Answer) -> None:
        """Set the answer of one sample."""
        self.labels[row], self.exits[row], self.confidence[row] = given.label, given.exit, given.score
        self.probabilities[row], self.trust[row], self.refused[row] = given.probabilities, given.trust, given.refused
        self.thresholds[row] = given.threshold
        if self.maps:
            self.maps[row] = given.attention
        self.left -= 1

    def answer_by_kept(self) -> bool:
        """Give every open sample the last answer that an exit had for it; return false if a sample has none."""
        rows = np.flatnonzero(self.exits < 0).tolist()
        if not all(row in self.kept for row in rows):
            return False
        for row in rows:
            self.answer(row, self.kept[row])
            self.limited[row] = True
        return True

    def fail(self, error: Exception) -> None:
        """End the request without answers."""
        self.error, self.left = error, 0


RouterKey = tuple[str, bool]  # a policy, and whether the requests have terms that change it


class Pool(NamedTuple):
    """Samples of a router that wait for a stage."""

    router: RouterKey
    stage: int
    samples: int
    entered: float  # when the first of them began to wait for company (time.monotonic)
    urgent: bool = False  # a deadline of theirs is near


def choose_pool(pools: Sequence[Pool], size: int, now: float, max_delay: float) -> Pool:
    """Return the pool whose stage runs next.

    In this order: samples with a deadline, the deepest first; pools that have waited for company longer than ``max_delay``
    seconds, the longest first; the deepest pool in which a whole micro-batch of ``size`` waits; the first stage, so that
    samples that can leave early do so at once while the others wait for company.
    """
    urgent = [pool for pool in pools if pool.urgent]
    if urgent:
        return max(urgent, key=lambda pool: pool.stage)
    overdue = [pool for pool in pools if pool.stage and now - pool.entered > max_delay]
    if overdue:
        return min(overdue, key=lambda pool: pool.entered)
    full = [pool for pool in pools if pool.samples >= size]
    return max(full, key=lambda pool: pool.stage) if full else min(pools, key=lambda pool: pool.stage)


class Pace:
    """Estimates how long stages take, for each stage and each doubling of the number of samples."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}
        self._seconds_worked = self._samples = 0.0  # decaying sums

    @property
    def seconds_each(self) -> float:
        """Seconds of work for each sample until it is answered; 0 before the first."""
        return self._seconds_worked / self._samples if self._samples else 0.0

    def observe(self, stage: int, count: int, seconds: float) -> None:
        """Note that a stage ran on ``count`` samples."""
        key = stage, count.bit_length()
        before = self._seconds.get(key, seconds)
        self._seconds[key] = KEPT * before + (1 - KEPT) * seconds

    def observe_work(self, samples: float, seconds: float) -> None:
        """Note that the work of so many samples took ``seconds``, everything in between included.

        Samples on their way count by the share of their work that is done. Otherwise the first samples that are answered
        would seem to have cost all the work of the stages before.
        """
        share = KEPT_WORK**samples
        self._seconds_worked = share * self._seconds_worked + seconds
        self._samples = share * self._samples + samples

    def forecast(self, stage: int, count: int) -> float:
        """Return the seconds a stage will take on ``count`` samples, by the nearest number seen; 0 before the first."""
        known = [(abs(size - count.bit_length()), -size) for k, size in self._seconds if k == stage]
        return self._seconds[stage, -min(known)[1]] if known else 0.0

    def forecast_longest(self) -> float:
        """Return the average seconds of the slowest kind of step."""
        return max(self._seconds.values(), default=0.0)


class Cascade:
    """Routers that share an engine, run by one thread: for each policy one, and another for requests with their own terms.

    Args:
        size: samples that run through a stage together.
        max_delay: seconds that a sample waits for company before a later stage, while there is other work.
        on_step: called with the stage, samples and seconds of every step.
    """

    def __init__(
        self, model: ServedModel, engine: Engine, pace: Pace, size: int, max_delay: float, on_step: OnStep = lambda *_: None
    ) -> None:
        self.model, self.engine, self.pace, self.size, self.max_delay = model, engine, pace, size, max_delay
        self.on_step = on_step
        self._open: dict[int, Ticket] = {}  # by the places of samples without an answer
        self._urgent: dict[int, Ticket] = {}  # requests with a deadline, by their first place
        self._done: list[Ticket] = []
        self._routers: dict[RouterKey, Router] = {}
        self._next = 0  # place of the next sample
        self._with_maps = 0  # open requests that ask for maps
        self._shares = [cost / model.cost[-1] for cost in model.cost]  # of a sample's work, up to and including each exit
        self._ended: float | None = None  # when the last step ended, if any sample has waited since then

    @property
    def is_empty(self) -> bool:
        """True if no sample waits, and every request that ended was handed out."""
        return not (self._open or self._done)

    def admit(self, ticket: Ticket) -> None:
        """Take a request in."""
        terms, ticket.first = ticket.terms, self._next
        self._next += len(ticket)
        self._open |= dict.fromkeys(range(ticket.first, self._next), ticket)
        if terms.deadline < math.inf:
            self._urgent[ticket.first] = ticket
        self._with_maps += terms.attention
        key = terms.policy, terms.changes_policy
        if key not in self._routers:
            override, heads = (self._leave, self.model.exits) if terms.changes_policy else (None, ())
            policy, adaptive = self.model.policies[terms.policy], self.model.adaptive
            self._routers[key] = (
                AuditedRouter(
                    self.engine,
                    adaptive,
                    torch.tensor(self.model.cost),
                    micro_batch=self.size,
                    recomposing=Recomposing(self.model.spec.modality, self.model.spec.names, self.model.info.place),
                )
                if adaptive is not None and terms.are_default
                else Router(self.engine, policy, micro_batch=self.size, override=override, heads=heads)
            )
        router, where = self._routers[key], torch.arange(ticket.first, self._next)
        if isinstance(router, AuditedRouter):
            router.admit(where, ticket.activations, ticket.since, ticket.name)
        else:
            router.admit(where, ticket.activations, ticket.since)

    def advance(self) -> list[Ticket]:
        """Answer requests whose time is up and run one stage; return the requests that this ended."""
        now = time.monotonic()
        for ticket in list(self._urgent.values()):
            if not ticket.left:
                del self._urgent[ticket.first]
            elif now + MARGIN > ticket.terms.deadline:
                self._drop(ticket)
                if not ticket.answer_by_kept():
                    message = "deadline_ms: it passed before the first exit could answer. Fix: allow more milliseconds."
                    ticket.fail(RequestError(message, 504))
        soon = now + URGENT_STEPS * self.pace.forecast_longest() + URGENT_SECONDS
        urgent = any(ticket.terms.deadline < soon for ticket in self._urgent.values())
        pools = [
            Pool(key, k, count, entered, urgent and router.override is not None)
            for key, router in self._routers.items()
            for k, (count, entered) in enumerate(router.list_waiting())
            if count
        ]
        if pools:
            self._run(choose_pool(pools, self.size, time.monotonic(), self.max_delay))
        return self._close()

    def _run(self, pool: Pool) -> None:
        router, started = self._routers[pool.router], time.monotonic()
        router.attention = self._with_maps > 0
        count = pool.samples if pool.samples < 2 * self.size else self.size
        try:
            routed = router.run_stage(pool.stage)
        except Exception:
            LOG.exception("%s: stage %d failed", self.model.name, pool.stage)
            for part in router.take_routed():  # samples that had left before it failed
                self._assign(part, router.policy)
            left = {place for each in self._routers.values() for place in each.list_places()}
            lost = dict.fromkeys(ticket for place, ticket in self._open.items() if place not in left)
            self._fail(lost, "the network failed on these samples, or on others in their batch")
            return
        ended = time.monotonic()
        worked, self._ended = ended - (started if self._ended is None else self._ended), ended
        self.pace.observe(pool.stage, count, ended - started)
        work = count * (self._shares[pool.stage] - (self._shares[pool.stage - 1] if pool.stage else 0.0))
        work += sum(len(part.where) * (1 - self._shares[part.exit]) for part in routed)  # later stages that are not needed
        self.pace.observe_work(work, worked)
        for part in routed:
            self._assign(part, router.policy)
        self.on_step(pool.stage, count, ended - started)

    def _assign(self, part: ExitBatch, policy: Policy) -> None:
        for place, answer in zip(part.where.tolist(), self._read(part, policy), strict=True):
            ticket = self._open.pop(place)
            ticket.answer(place - ticket.first, answer)
            if not ticket.left:
                self._done.append(ticket)

    def _read(self, part: ExitBatch, policy: Policy) -> Iterator[Answer]:
        """Return the answer of each sample, under the policy of the time."""
        p, k, maps = part.probabilities.cpu(), part.exit, part.attention
        placed: Iterable[Tensor | None] = [None] * len(p)
        if maps is not None:
            placed = self.model.info.place(k, maps.float()).cpu().unbind(0)
        if self.model.image_size:
            p = resize_probabilities(p, self.model.image_size)  # of samples that do not leave they are smaller
        labels: Any = tell_answers(p, self.model.info.task, self.model.info.units)
        labels = labels.tolist() if labels.ndim == 1 else labels.numpy()
        p = p.mean((2, 3)) if self.model.image_size else p[:, :0] if self.model.gives_values else p
        trust = refused = [-1] * len(p)
        if part.trust is not None:
            trust, refused = part.trust.tolist(), part.find_refused().tolist()
        thresholds = [(*policy.thresholds, math.inf)[k]] * len(p)
        return map(Answer, [k] * len(p), labels, part.scores.tolist(), p.numpy(), placed, trust, refused, thresholds)

    def _leave(self, batch: ExitBatch, fired: Tensor) -> Tensor:
        """Return which samples leave an exit by the requests' own terms."""
        out, now = fired.tolist(), time.monotonic()
        later = now + self.pace.forecast(batch.exit + 1, len(out)) + self.pace.forecast_longest() + MARGIN
        places = batch.where.tolist()
        policy = self.model.policies[self._open[places[0]].terms.policy]  # a router's requests share it
        for i, (place, answer) in enumerate(zip(places, self._read(batch, policy), strict=True)):
            ticket = self._open[place]
            terms, row = ticket.terms, place - ticket.first
            sure = out[i] and answer.score >= terms.min_confidence
            ends = (terms.last_exit is not None and batch.exit >= terms.last_exit) or later > terms.deadline
            out[i] = sure or ends
            ticket.limited[row] = ends and not sure
            if terms.deadline < math.inf:
                ticket.kept[row] = answer
        return torch.tensor(out)

    def _close(self) -> list[Ticket]:
        """Return the requests that ended since the last call."""
        done, self._done = self._done, []
        if self.is_empty:
            self._ended = None
        ended = time.monotonic()
        for ticket in done:
            ticket.done = ended
            if ticket.error is None and not math.isfinite(ticket.probabilities.sum()):
                message = "inputs: their answers are NaN or infinite. Fix: check that the inputs are normalised."
                ticket.fail(RequestError(message, status=422))
            self._with_maps -= ticket.terms.attention
        return done

    def abandon(self, ticket: Ticket) -> None:
        """End a request whose client has gone; its samples run no further stage."""
        if ticket.left:
            self._fail([ticket], "the client does not wait for it any more")

    def fail_all(self) -> list[Ticket]:
        """End every request that waits."""
        self._fail(dict.fromkeys(self._open.values()), "it has stopped")
        return self._close()

    def _fail(self, tickets: Iterable[Ticket], why: str) -> None:
        for ticket in list(tickets):
            self._drop(ticket)
            ticket.fail(RequestError(f"{self.model.name}: {why}; the server's log says more", 500))

    def _drop(self, ticket: Ticket) -> None:
        """End a request; its samples that have no answer run no further stage."""
        gone = [place for place in range(ticket.first, ticket.first + len(ticket)) if self._open.pop(place, None)]
        for router in self._routers.values() if gone else ():
            router.discard(torch.tensor(gone))
        self._urgent.pop(ticket.first, None)
        self._done.append(ticket)
