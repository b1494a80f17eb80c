"""Open-loop load: requests arrive at random (Poisson) however long the answers take; also finds the highest rate a server sustains.

Latency counts from the time at which a request was due, not from when a connection was free to send it, so a server that stalls is
charged for every request that arrives while it does. The load runs in a separate process, which can be pinned to processors. Arrivals
are a millisecond coarse, as timers of event loops are.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import uvloop

Array = np.ndarray[Any, np.dtype[Any]]
RECONNECT = 0.02  # seconds between attempts, while nobody listens
LEAST = 1.0  # requests a second, below which a server sustains none
BUSY = 0.85  # share of its time for which the load may compute before it is what limits
INFER = "/v2/models/net/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"


def make_request(path: str, body: bytes, headers: Mapping[str, str] | None = None, method: str = "POST") -> bytes:
    fields = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def make_infer_request(samples: Array, outputs: Sequence[str]) -> bytes:
    return make_tensor(samples.shape, samples.tobytes(), outputs=[{"name": name} for name in outputs])


def make_tensor(shape: Sequence[Any], data: bytes, datatype: str = "FP32", **fields: Any) -> bytes:
    """Return a request with one tensor, its numbers as bytes after the JSON (binary tensor extension); anything may be wrong in it."""
    tensor = {"name": "inputs", "shape": list(shape), "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], **fields}).encode()
    return make_request(INFER, head + data, {HEADER_LENGTH: str(len(head))})


@dataclass(frozen=True)
class Spec:
    port: int
    requests: Sequence[bytes]  # bytes of each
    due: Array = field(default_factory=lambda: np.zeros(0))  # ``(N,)`` seconds from the start, ascending
    which: Array = field(default_factory=lambda: np.zeros(0, int))  # ``(N,)`` places in the list of requests
    kinds: Sequence[str] = ()  # a word for each, such as "exit 0"; or empty
    connections: int = 32
    warmup: float = 0.0  # seconds at the beginning that do not count in the figures
    grace: float = 5.0  # seconds after the last request is due, at which everything ends
    retries: int = 0  # how often a request is sent again after its connection ended, or an answer with a status in ``again``
    again: Sequence[int] = ()
    keep: bool = False  # keep the answers
    processors: Sequence[int] = ()  # that the process may use; empty: all

    def plan(self, phases: Sequence[tuple[float, float]], seed: int = 0) -> Spec:
        """Return it with Poisson arrivals of requests in random order, at (rate, seconds) one after the other."""
        rng, due, start = np.random.default_rng(seed), list[Array](), 0.0
        for rate, seconds in phases:
            due.append(np.sort(rng.uniform(start, start + seconds, rng.poisson(rate * seconds))))
            start += seconds
        times = np.concatenate(due)
        return replace(self, due=times, which=rng.choice(len(self.requests), len(times)))


@dataclass(frozen=True)
class Trial:
    """What became of each request, in the order in which they were due."""

    due: Array  # ``(N,)`` seconds from the start, as the next two
    sent: Array  # NaN: never
    finished: Array
    status: Array  # ``(N,)`` HTTP status; 0: no answer
    which: Array  # ``(N,)`` places in the list of requests
    kinds: Sequence[str] = ()
    answers: Sequence[bytes] = field(default=(), repr=False)  # head and body, empty where there is none; if they were kept
    busy: float = 0.0  # share of the time for which the load itself computed: towards 1, what was measured is the load
    warmup: float = 0.0
    started: float = 0.0  # what :func:`time.perf_counter` said at the start, in whatever process on this machine

    @property
    def latency(self) -> Array:
        """``(N,)`` seconds from when each was due; infinite where no answer with status 200 came."""
        return np.where(self.status == 200, self.finished - self.due, np.inf)

    @property
    def counts(self) -> Array:
        """``(N,)`` bool: False for requests of the warm-up."""
        return self.due >= self.warmup

    def quantile(self, q: float, kind: str = "") -> float:
        """Return the seconds within which this share was answered."""
        of_kind = np.isin(self.which, [i for i, word in enumerate(self.kinds) if word == kind]) if kind else True
        latency = np.sort(self.latency[self.counts & of_kind])
        return float(latency[max(0, int(np.ceil(q * len(latency))) - 1)]) if len(latency) else float("nan")

    @property
    def p99(self) -> float:
        return self.quantile(0.99)

    @property
    def failures(self) -> int:
        """Number of requests that count and got another answer than 200, or none."""
        return int((self.status[self.counts] != 200).sum())


class Load:
    """Connections that send each request when it is due, or when the first connection is free after that."""

    def __init__(self, spec: Spec) -> None:
        number = len(spec.due)
        self.spec, self.payloads = spec, [spec.requests[i] for i in spec.which.tolist()]
        self.sent, self.finished = np.full(number, np.nan), np.full(number, np.nan)
        self.status, self.retries = np.zeros(number, np.int16), np.zeros(number, np.int16)
        self.answers = [b""] * (number if spec.keep else 0)
        self.queue: asyncio.PriorityQueue[int] = asyncio.PriorityQueue()  # the request that was due first comes first
        self.open, self.done, self.connected = number, asyncio.Event(), asyncio.Semaphore(0)

    async def run(self) -> Trial:
        due = self.spec.due
        tasks = [asyncio.create_task(self.serve_connection()) for _ in range(self.spec.connections)]
        for _ in tasks:
            await asyncio.wait_for(self.connected.acquire(), 20.0)
        start, cpu = time.perf_counter() + 0.01, time.process_time()
        tasks.append(asyncio.create_task(self.enqueue(start)))
        if self.open:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.done.wait(), float(due[-1]) + self.spec.grace + 0.01)
        busy = (time.process_time() - cpu) / (time.perf_counter() - start) if len(due) else 0.0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        outcome = self.status, self.spec.which, self.spec.kinds, self.answers
        return Trial(due, self.sent - start, self.finished - start, *outcome, busy, self.spec.warmup, start)

    async def enqueue(self, start: float) -> None:
        for number, at in enumerate((self.spec.due + start).tolist()):
            if (wait := at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            self.queue.put_nowait(number)

    async def serve_connection(self) -> None:
        """Keep one connection open, and send one request after the other on it."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.spec.port, limit=1 << 20)
            except OSError:
                await asyncio.sleep(RECONNECT)
                continue
            self.connected.release()
            number = -1
            try:
                while not reader.at_eof():
                    number = await self.queue.get()
                    if reader.at_eof():  # the server has closed it: another connection sends the request
                        self.queue.put_nowait(number)
                        number = -1
                        break
                    self.sent[number] = time.perf_counter()
                    writer.write(self.payloads[number])
                    answer, closes = await read_answer(reader)
                    self.finish(number, int(answer[9:12]), answer)
                    number = -1
                    if closes:
                        break
            except (OSError, EOFError):
                if number >= 0:
                    self.finish(number, 0, b"")
            finally:
                writer.close()

    def finish(self, number: int, status: int, answer: bytes) -> None:
        """Note an answer, or that there is none (status 0); or send the request again."""
        if (not status or status in self.spec.again) and self.retries[number] < self.spec.retries:
            self.retries[number] += 1
            self.queue.put_nowait(number)
            return
        self.finished[number], self.status[number] = time.perf_counter(), status
        if self.spec.keep:
            self.answers[number] = answer
        self.open -= 1
        if not self.open:
            self.done.set()


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """Return a whole answer, and whether the connection takes no further request."""
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.partition(b":")[::2] for line in head.lower().split(b"\r\n"))
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            body += await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
    return head + body, b"close" in fields.get(b"connection", b"")


def drive(spec: Spec) -> Trial:
    """Run a trial in this process, in uvloop, which takes half the time of Python's own loop."""
    if spec.processors:
        os.sched_setaffinity(0, spec.processors)
    gc.collect()
    gc.freeze()
    gc.disable()  # collecting takes milliseconds; the process ends with the trial
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Load(spec).run())


@contextmanager
def start_load(spec: Spec) -> Iterator[Future[Trial]]:
    """Start a trial in a separate process, yield its future, and wait for its end."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool.submit(drive, spec)


def run_load(spec: Spec) -> Trial:
    with start_load(spec) as future:
        return future.result()


@contextmanager
def poll(ask: Callable[[], Any], seconds: float) -> Iterator[list[Any]]:
    """Ask repeatedly on a separate thread until the block ends; yield the list of answers, with errors by the name of their class."""
    answers, over = list[Any](), threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            try:
                answers.append(ask())
            except OSError as error:  # urllib's errors are OSErrors, too
                answers.append(type(getattr(error, "reason", error)).__name__)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(work)
        try:
            yield answers
        finally:
            over.set()


@dataclass(frozen=True)
class Capacity:
    """The highest rate that a server sustains."""

    rate: float  # requests a second; 0: none passed
    p99: tuple[float, float, float]  # seconds, of the trials that confirmed it: median, least, most


def find_capacity(
    run_at: Callable[[float], Trial],
    limit: float,
    start: float,
    *,
    step: float = 2.0,
    spread: float = 0.02,
    repeats: int = 3,
    tries: int = 2,
) -> Capacity:
    """Find the highest rate whose 99th percentile is within the limit (seconds), with no failure.

    Goes up or down by ``step``, bisects until the rate is known to ``spread``, and confirms it by the median of ``repeats`` trials. A rate is too
    high after ``tries`` failed trials, since other work on the machine only ever makes a trial fail. Raises ``RuntimeError`` if
    the load was at its own limit when a rate failed, because the server may sustain more.
    """

    def passes(rate: float) -> bool:
        for _ in range(tries):
            trial = run_at(rate)
            if not trial.failures and trial.p99 <= limit:
                return True
            if trial.busy > BUSY:
                raise RuntimeError(f"at {rate:.0f} requests a second the load computed for {trial.busy:.0%} of the time")
        return False

    low, high = start, step * start
    if passes(start):
        while passes(high):
            low, high = high, step * high
    else:
        low, high = start / step, start
        while low >= LEAST and not passes(low):
            low, high = low / step, low
    while low >= LEAST and high / low > 1 + 2 * spread:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if passes(middle) else (low, middle)
    while low >= LEAST:
        trials = [run_at(low) for _ in range(repeats)]
        ordered = sorted(trial.p99 for trial in trials)
        if median(ordered) <= limit and median(trial.failures for trial in trials) == 0:
            return Capacity(low, (median(ordered), ordered[0], ordered[-1]))
        low /= 1 + spread
    return Capacity(0.0, (float("inf"),) * 3)
