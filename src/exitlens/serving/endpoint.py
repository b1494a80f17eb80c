"""One version of a model, which answers each request on a thread of its own, and watches its own answers."""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import random
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import torch

from exitlens.errors import DriftWarning, PolicyError, RequestError
from exitlens.functional.drift import DriftMonitor
from exitlens.functional.maps import divergence, on_common_grid
from exitlens.functional.pixels import resize_logits
from exitlens.model.cutting.split import Activations
from exitlens.model.engine.engine import Engine
from exitlens.serving.cascade import Cascade, Pace, Terms, Ticket
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import Array, ServedModel
from exitlens.serving.settings import Batching, Watching
from exitlens.types import Prediction
from exitlens.types.policies import DEFAULT
from exitlens.types.tasks import USUAL_SCORES, WITH_CLASSES, find_answers, refuse_task

LOG = logging.getLogger("exitlens.serving")
SHADOWED = 64  # samples that may wait for idle time to be compared with the final exit
PATIENCE = 1.0  # seconds of waiting for a request after which the thread looks for other work


class Endpoint:
    """One version of a model, which takes requests from event loops; raises what opening and a first run raise."""

    def __init__(self, model: ServedModel, batching: Batching, watching: Watching, metrics: Metrics) -> None:
        self.model, self.batching, self.metrics, self.pace = model, batching, metrics, Pace()
        self.watch = Watch(model, metrics, watching)
        self.lag = 0.0  # seconds that requests have waited before they came here
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._lock, self._taken, self._ended, self._expected = threading.Lock(), 0, 0, 0
        self._opened, self._closing = Future[None](), False
        self._has_failed = False  # an error ended the thread
        self._thread = threading.Thread(target=self._work, name=f"exitlens-{model.name}", daemon=True)
        self._thread.start()
        self._opened.result()  # raises what opening raised
        metrics.set_version(model.name, model.version, model.cost)
        self._observe_adapting()

    @property
    def is_alive(self) -> bool:
        """True if it takes requests."""
        return self._thread.is_alive() and not self._closing

    @property
    def is_ready(self) -> bool:
        """True if it takes requests and its samples have not drifted too far."""
        return self.is_alive and not (self.watch.is_drifting and self.watch.watching.unready_on_drift)

    @property
    def waiting(self) -> int:
        """Samples without an answer."""
        return self._taken - self._ended

    def expect(self) -> None:
        """Stay open for a request that is about to be read, until :meth:`release`; raise like :meth:`answer`."""
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

    async def answer(self, activations: Activations, terms: Terms, name: str = "") -> Ticket:
        """Return a request with its answers; ``name`` is that by which feedback calls it.

        Raises :class:`RequestError`: 503 if it is closed, 429 without room, or why there is no answer.
        """
        ticket = Ticket(activations, terms, self.model, asyncio.get_running_loop().create_future())
        ticket.name = name
        with self._lock:
            self._check_open(self.is_alive or (self._expected > 0 and not self._has_failed))
            self.check_room(len(ticket))
            self._taken += len(ticket)
            self._inbox.put(ticket)
        self.watch.expect(ticket)
        try:
            await ticket.future
        except asyncio.CancelledError:  # the client has gone, or its time is up
            self._inbox.put(ticket)  # a second time: its work is dropped
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket

    def _check_open(self, is_open: bool) -> None:
        if not is_open:
            raise RequestError(f"{self.model.name}: it is shutting down or has stopped. Fix: try again.", 503, 1.0)

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
        self._thread.join()

    # On its thread:

    def _work(self) -> None:
        settings, cascade, is_busy = self.batching, None, False  # busy with the watch, when nothing waits
        try:
            if settings.threads:
                torch.set_num_threads(settings.threads)
            with self.model.open_engine() as engine:
                cascade = Cascade(
                    self.model, engine, self.pace, settings.batch, settings.max_delay_ms / 1000, self._count_step
                )
                self._warm_up(engine)
                self._opened.set_result(None)
                while self._take_in(cascade, is_busy):
                    if not cascade.is_empty:
                        self._hand_out(cascade.advance())
                        continue
                    is_busy = False
                    with self._go_on_after_errors():
                        is_busy = self.watch.run_idle(engine)
        except BaseException as error:
            with self._lock:
                self._has_failed = True
            if self._opened.done():
                LOG.exception("%s: it has stopped", self.model.name)
            else:
                self._opened.set_exception(error)
        finally:
            self._closing = True
            if self.model.adaptive is not None:
                self.model.adaptive.close()
            done = [] if cascade is None else cascade.fail_all()
            while not self._inbox.empty():  # requests that came but were not taken in
                ticket = self._inbox.get()
                if ticket is not None and ticket.is_new:
                    ticket.fail(RequestError(f"{self.model.name}: it has stopped; the server's log says more", 500))
                    done.append(ticket)
            self._hand_out(done)

    def _warm_up(self, engine: Engine) -> None:
        for count in (1, self.batching.batch):
            activations = engine.enter(tuple(t.repeat_interleave(count, 0) for t in self.model.make_example()))
            for k in sorted(self.model.exits):
                activations, *_ = engine.run_exit(k, activations, 1.0, USUAL_SCORES[self.model.info.task], "attention")

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

    def _count_step(self, stage: int, count: int, seconds: float) -> None:
        with self._go_on_after_errors():
            self.metrics.observe_step(self.model.name, stage, count, seconds)
            self.metrics.waiting(self.model.name).set(self.waiting)

    def _hand_out(self, done: list[Ticket]) -> None:
        if not done:
            return
        self._ended += sum(map(len, done))
        for loop in {ticket.future.get_loop() for ticket in done}:
            futures = [ticket.future for ticket in done if ticket.future.get_loop() is loop]
            with suppress(RuntimeError):  # nobody waits in a loop that is closed
                loop.call_soon_threadsafe(_finish, futures)
        with self._go_on_after_errors():
            self.metrics.waiting(self.model.name).set(self.waiting)
            good = [ticket for ticket in done if ticket.error is None]
            exits = [k for ticket in good for k in ticket.exits.tolist()]
            seconds = [ticket.done - ticket.since for ticket in good for _ in range(len(ticket))]
            self.metrics.observe_answers(self.model.name, exits, seconds)
            self._observe_adapting()
            self.watch.see(done)

    def _observe_adapting(self) -> None:
        if (adaptive := self.model.adaptive) is not None:
            self.metrics.observe_adapting(self.model.name, adaptive.status)

    @contextmanager
    def _go_on_after_errors(self) -> Iterator[None]:
        """Log an error in counting or watching instead of raising it."""
        try:
            yield
        except Exception:
            LOG.exception("%s: its answers could not be counted or watched", self.model.name)


def _finish(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class Watch:
    """Watches one version of a model, by its answers under the bundle's own policy, which was calibrated."""

    def __init__(self, model: ServedModel, metrics: Metrics, watching: Watching) -> None:
        self.model, self.metrics, self.watching = model, metrics, watching
        if watching.shadow:
            refuse_task(model.info.task, "shadow: it", WITH_CLASSES)
        self.monitor, policy = None, model.policies[DEFAULT]
        if model.adaptive is not None:
            LOG.info("%s: no drift watch: thresholds adapt", model.name)
        elif watching.drift and policy.calibration is not None and policy.calibration.groups is not None:
            LOG.info("%s: no drift watch: the calibration counted groups, which requests do not name", model.name)
        elif watching.drift:
            try:
                self.monitor = DriftMonitor(policy)
            except PolicyError as error:
                LOG.info("%s: no drift watch: %s", model.name, error)
        self._pending: deque[Ticket] = deque()  # in the order of arrival: in that of answers, early exits would come first
        self._shadowed: deque[tuple[Activations, int, Array]] = deque(maxlen=SHADOWED)  # inputs, exit and label
        self._room, self._last = watching.drift_rate, time.monotonic()
        self._random = random.Random(0)
        self.is_drifting = False

    def expect(self, ticket: Ticket) -> None:
        """Note that a request came; called in the order of requests."""
        if self.monitor is None or not ticket.terms.are_default:
            return
        now, rate = time.monotonic(), self.watching.drift_rate
        self._room, self._last = min(rate, self._room + rate * (now - self._last)), now
        if self._room >= 1:  # a large request may overdraw it
            self._room -= len(ticket)
            self._pending.append(ticket)

    def see(self, done: list[Ticket]) -> None:
        """Note that requests ended."""
        for ticket in done if self.watching.shadow else ():
            rows = range(len(ticket)) if ticket.error is None and ticket.terms.are_default else ()
            for row in (row for row in rows if self._random.random() < self.watching.shadow):
                inputs = tuple(t[row : row + 1].clone() for t in ticket.activations)
                self._shadowed.append((inputs, int(ticket.exits[row]), ticket.labels[row].copy()))
        while self._pending and not self._pending[0].left:
            ticket = self._pending.popleft()
            if ticket.error is None:
                self._count(ticket)

    def _count(self, ticket: Ticket) -> None:
        assert self.monitor is not None
        arrays = ticket.labels, ticket.exits, ticket.confidence, ticket.probabilities, ticket.refused
        labels, exits, confidence, p, refused = map(torch.from_numpy, arrays)
        given = None if self.model.policies[DEFAULT].gate is None else refused
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DriftWarning)  # it is logged
            state = self.monitor.update(Prediction(labels, exits, confidence, p, refused=given))
        if state.alarm and not self.is_drifting:
            LOG.warning("%s: %s", self.model.name, state.summary)
        self.is_drifting = state.alarm
        self.metrics.set_drift(self.model.name, state.evidence, state.alarm, state.refused_by_class)

    def run_idle(self, engine: Engine) -> bool:
        """Run a sample of the shadow to the final exit; return true if there are more."""
        if not self._shadowed:
            return False
        inputs, exit_, label = self._shadowed.popleft()
        outputs = dict(zip(sorted(self.model.exits), engine.compute_outputs(engine.enter(inputs)), strict=True))
        logits, final = outputs[self.model.num_exits - 1]
        distance = divergence(*on_common_grid(outputs[exit_][1].float(), final.float())).item()
        if size := self.model.image_size:
            logits = resize_logits(logits, size)
        same = find_answers(logits[0], self.model.info.task).cpu().numpy() == label
        self.metrics.observe_shadow(self.model.name, exit_, float(same.mean() if size else same.all()), distance)
        return bool(self._shadowed)
