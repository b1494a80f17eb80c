"""A thread for each model, which takes in requests and hands out each answer as soon as there is one."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from exitlens.errors import RequestError
from exitlens.model.engine.engine import Engine
from exitlens.serving.batching.cascade import Cascade
from exitlens.serving.batching.scheduling import Pace
from exitlens.serving.batching.tickets import Ticket
from exitlens.serving.models import ServedModel
from exitlens.serving.settings import Batching

T = TypeVar("T")
LOG = logging.getLogger("exitlens.serving")
PATIENCE = 1.0  # seconds of waiting for a request after which the thread looks around


class ClosedError(RequestError):
    """The batcher takes no more: another may have taken its place."""


@dataclass(frozen=True)
class Hooks:
    """Who is told what happens; each is called on the batcher's thread.

    Attributes:
        deliver: requests that are answered, after every step that answered any.
        step: stage, samples and seconds of a step.
        idle: called when nothing waits; true: there is more to do when nothing waits.
    """

    deliver: Callable[[list[Ticket]], None]
    step: Callable[[int, int, float], None] = lambda *_: None
    idle: Callable[[Engine], bool] = lambda _: False


class Batcher:
    """Answers the requests of one model, on a thread of its own."""

    def __init__(self, model: ServedModel, hooks: Hooks, batching: Batching) -> None:
        self.model, self.hooks, self.batching, self.pace = model, hooks, batching, Pace()
        self.lag = 0.0  # seconds that requests have waited before they came here
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._lock, self._taken, self._ended = threading.Lock(), 0, 0
        self._ready, self._closing, self._failed = threading.Event(), False, list[BaseException]()
        self._thread = threading.Thread(target=self._work, name=f"exitlens-{model.name}", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return self._ready.is_set() and self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Samples without an answer."""
        return self._taken - self._ended

    def start(self) -> None:
        """Opens the engine and runs every stage once; raises what that raises."""
        self._thread.start()
        self._ready.wait()
        if self._failed:
            raise self._failed[0]

    def submit(self, ticket: Ticket) -> None:
        """Takes a request in, from any thread; raises :class:`ClosedError`, or :class:`RequestError` (429) without room."""
        with self._lock:
            if not self.is_alive:
                raise ClosedError(f"{self.model.name}: it is being replaced or shut down: try again", 503, 1.0)
            self.check_room(len(ticket))
            self._taken += len(ticket)
            self._inbox.put(ticket)

    def abandon(self, ticket: Ticket) -> None:
        """Says, from any thread, that nobody waits for a request any more: what is left of its work is not done."""
        self._inbox.put(ticket)

    def check_room(self, count: int) -> None:
        """Raises :class:`RequestError` (429) unless ``count`` more samples find room, in number and in time."""
        waiting = self.waiting
        ahead = waiting * self.pace.seconds_each + self.lag
        if waiting and (waiting + count > self.batching.max_waiting or 1000 * ahead > self.batching.max_wait_ms):
            raise RequestError(
                f"{self.model.name}: {waiting} samples wait already, about {ahead:.2g} s of work: try again later",
                429,
                max(1.0, math.ceil(ahead)),
            )

    def close(self) -> None:
        """Takes no more, answers what was taken in, and ends."""
        with self._lock:
            self._closing = True
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    # On its thread:

    def _work(self) -> None:
        own = self.batching
        try:
            if own.threads:
                torch.set_num_threads(own.threads)
            with self.model.open_engine() as engine:
                cascade = Cascade(self.model, engine, self.pace, own.batch, own.max_delay_ms / 1000, self._tell_step)
                self._warm_up(engine)
                self._ready.set()
                self._loop(engine, cascade)
        except BaseException as error:  # told to whoever starts it
            self._failed.append(error)
            if self._ready.is_set():
                LOG.exception("%s: it has stopped", self.model.name)
        finally:
            self._ready.set()

    def _warm_up(self, engine: Engine) -> None:
        for count in (1, self.batching.batch):
            activations = engine.enter(tuple(t.repeat_interleave(count, 0) for t in self.model.make_example()))
            for k in sorted(self.model.exits):
                activations, *_ = engine.answer(k, activations, 1.0, "max_probability", True)

    def _loop(self, engine: Engine, cascade: Cascade) -> None:
        more = False
        try:
            while self._take_in(cascade, more):
                if not cascade.is_empty:
                    self._hand_out(cascade.advance())
                else:
                    more = bool(self._tell(self.hooks.idle, engine))
        finally:
            with self._lock:
                self._closing = True
            self._hand_out(cascade.fail_all() + self._fail_rest())

    def _fail_rest(self) -> list[Ticket]:
        """Ends what came, but was not taken in any more."""
        lost = []
        while not self._inbox.empty():
            ticket = self._inbox.get()
            if ticket is not None and ticket.is_new:
                ticket.fail(RequestError(f"{self.model.name}: it has stopped: the server's log says more", 500))
                lost.append(ticket)
        return lost

    def _take_in(self, cascade: Cascade, more: bool) -> bool:
        """Whatever came; waits for it if there is nothing else to do. False: it was closed, and all is answered."""
        wait = cascade.is_empty and not more and not self._closing
        while True:
            try:
                ticket = self._inbox.get(block=wait, timeout=PATIENCE if wait else None)
            except queue.Empty:
                return not (self._closing and cascade.is_empty)
            wait = False
            if ticket is not None and ticket.is_new:
                cascade.admit(ticket)
            elif ticket is not None:
                cascade.abandon(ticket)

    def _hand_out(self, done: list[Ticket]) -> None:
        if done:
            self._ended += sum(map(len, done))
            self._tell(self.hooks.deliver, done)

    def _tell_step(self, *step: Any) -> None:
        self._tell(self.hooks.step, *step)

    def _tell(self, hook: Callable[..., T], *args: Any) -> T | None:
        """What a hook returns; one that raises ends no request but those that it keeps."""
        try:
            return hook(*args)
        except Exception:
            LOG.exception("%s: who was to be told of it failed", self.model.name)
            return None
