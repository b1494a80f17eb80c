"""A thread for each model, which takes in requests and hands out each answer as soon as it is there."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from exitlens.errors import RequestError
from exitlens.model.engine.engine import Engine
from exitlens.serving.cascade import Cascade, OnStep, Pace, Ticket
from exitlens.serving.models import ServedModel
from exitlens.serving.settings import Batching

T = TypeVar("T")
LOG = logging.getLogger("exitlens.serving")
PATIENCE = 1.0  # seconds of waiting for a request after which the thread checks whether it is to end


class Batcher:
    """Answers the requests of one model, on a thread of its own, which also calls the functions it is given.

    Args:
        deliver: takes the requests that ended, after every step that ended any.
        step: takes the stage, samples and seconds of every step.
        idle: called when nothing waits; returns true if there is more to do when nothing waits.
    """

    def __init__(
        self,
        model: ServedModel,
        batching: Batching,
        deliver: Callable[[list[Ticket]], None],
        step: OnStep = lambda *_: None,
        idle: Callable[[Engine], bool] = lambda _: False,
    ) -> None:
        self.model, self.batching, self.pace = model, batching, Pace()
        self.lag = 0.0  # seconds that requests have waited before they came here
        self._deliver, self._step, self._idle = deliver, step, idle
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._lock, self._taken, self._ended, self._expected = threading.Lock(), 0, 0, 0
        self._ready, self._closing, self._failed = threading.Event(), False, list[BaseException]()
        self._thread = threading.Thread(target=self._work, name=f"exitlens-{model.name}", daemon=True)

    @property
    def is_alive(self) -> bool:
        """True if it takes requests."""
        return self._ready.is_set() and self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Samples without an answer."""
        return self._taken - self._ended

    def start(self) -> None:
        """Open the engine and run every stage once; raises what that raises."""
        self._thread.start()
        self._ready.wait()
        if self._failed:
            raise self._failed[0]

    def expect(self) -> None:
        """Stay open for a request that is being read, until :meth:`release`; raises like :meth:`submit`."""
        with self._lock:
            self._check_open(self.is_alive)
            self.check_room(1)
            self._expected += 1

    def release(self) -> None:
        """End the wait that :meth:`expect` began."""
        with self._lock:
            self._expected -= 1
            if self._closing:
                self._inbox.put(None)

    def submit(self, ticket: Ticket) -> None:
        """Take a request in, from any thread; raises :class:`RequestError`: 503 if it is closed, 429 without room."""
        with self._lock:
            self._check_open(self.is_alive or (self._expected > 0 and not self._failed))
            self.check_room(len(ticket))
            self._taken += len(ticket)
            self._inbox.put(ticket)

    def _check_open(self, is_open: bool) -> None:
        if not is_open:
            raise RequestError(f"{self.model.name}: it is shutting down or has stopped. Fix: try again.", 503, 1.0)

    def abandon(self, ticket: Ticket) -> None:
        """Drop the rest of a request's work, from any thread, because its client has gone."""
        self._inbox.put(ticket)

    def check_room(self, count: int) -> None:
        """Raise :class:`RequestError` (429) unless there is room for ``count`` more samples, in number and in time."""
        waiting = self.waiting
        ahead = waiting * self.pace.seconds_each + self.lag
        if waiting and (waiting + count > self.batching.max_waiting or 1000 * ahead > self.batching.max_wait_ms):
            raise RequestError(
                f"{self.model.name}: {waiting} samples wait already, about {ahead:.2g} s of work. Fix: try again later.",
                429,
                max(1.0, math.ceil(ahead)),
            )

    def close(self) -> None:
        """Refuse new requests, answer the ones that were taken in or are being read, and end."""
        with self._lock:
            self._closing = True
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    # On its thread:

    def _work(self) -> None:
        settings = self.batching
        try:
            if settings.threads:
                torch.set_num_threads(settings.threads)
            with self.model.open_engine() as engine:
                max_delay = settings.max_delay_ms / 1000
                tell_step = partial(self._tell, self._step)
                cascade = Cascade(self.model, engine, self.pace, settings.batch, max_delay, tell_step)
                for count in (1, settings.batch):  # warm up
                    activations = engine.enter(tuple(t.repeat_interleave(count, 0) for t in self.model.make_example()))
                    for k in sorted(self.model.exits):
                        activations, *_ = engine.answer(k, activations, 1.0, "max_probability", True)
                self._ready.set()
                self._loop(engine, cascade)
        except BaseException as error:
            if self._ready.is_set():
                LOG.exception("%s: it has stopped", self.model.name)
            else:
                self._failed.append(error)  # start() raises it
        finally:
            self._ready.set()

    def _loop(self, engine: Engine, cascade: Cascade) -> None:
        is_busy = False  # when nothing waits
        try:
            while self._take_in(cascade, is_busy):
                if not cascade.is_empty:
                    self._hand_out(cascade.advance())
                else:
                    is_busy = bool(self._tell(self._idle, engine))
        except BaseException as error:
            with self._lock:
                self._failed.append(error)
            raise
        finally:
            self._closing = True
            done = cascade.fail_all()
            while not self._inbox.empty():  # requests that came but were not taken in
                ticket = self._inbox.get()
                if ticket is not None and ticket.is_new:
                    ticket.fail(RequestError(f"{self.model.name}: it has stopped; the server's log says more", 500))
                    done.append(ticket)
            self._hand_out(done)

    def _take_in(self, cascade: Cascade, is_busy: bool) -> bool:
        """Take in new requests, and wait for them if there is nothing else to do; return false once it is to end."""
        wait = cascade.is_empty and not is_busy and (not self._closing or self._expected > 0)
        while True:
            try:
                ticket = self._inbox.get(block=wait, timeout=PATIENCE if wait else None)
            except queue.Empty:
                with self._lock:
                    return not (self._closing and cascade.is_empty and not self._expected and self._inbox.empty())
            wait = False
            if ticket is not None and ticket.is_new:
                cascade.admit(ticket)
            elif ticket is not None:
                cascade.abandon(ticket)

    def _hand_out(self, done: list[Ticket]) -> None:
        if done:
            self._ended += sum(map(len, done))
            self._tell(self._deliver, done)

    def _tell(self, call: Callable[..., T], *args: Any) -> T | None:
        """Call a function; an error in it is logged, and the thread goes on."""
        try:
            return call(*args)
        except Exception:
            LOG.exception("%s: a callback of the batcher failed", self.model.name)
            return None
