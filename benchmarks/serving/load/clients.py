"""The connections of the load: they send prepared bytes when their time comes, and note when the answer is complete."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

NEVER = float("nan")
CLOCK_MONOTONIC, ABSOLUTE, NONBLOCKING, CLOSED_ON_EXEC = 1, 1, os.O_NONBLOCK, os.O_CLOEXEC
RECONNECT_SECONDS = 0.02  # between attempts, while nobody listens


class Alarm:
    """Calls back at a time of :func:`time.perf_counter`, to some ten microseconds.

    Timers of event loops are a millisecond coarse, as long as an answer may take; those of Linux are not.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, call: object) -> None:
        self.loop, self.call, self.file = loop, call, -1
        with suppress(OSError, AttributeError):
            self.libc = ctypes.CDLL(None, use_errno=True)
            self.file = self.libc.timerfd_create(CLOCK_MONOTONIC, NONBLOCKING | CLOSED_ON_EXEC)
        if self.file >= 0:
            self.when = (ctypes.c_long * 4)()  # interval and first time, seconds and nanoseconds each
            loop.add_reader(self.file, self._ring)

    def _ring(self) -> None:
        with suppress(BlockingIOError):
            os.read(self.file, 8)
        self.call()

    def set(self, at: float) -> None:
        """Rings then, or at once if that is past."""
        if self.file < 0:
            self.loop.call_later(max(0.0, at - time.perf_counter()), self.call)
            return
        self.when[2], self.when[3] = int(at), max(1, int(at % 1 * 1e9))
        self.libc.timerfd_settime(self.file, ABSOLUTE, self.when, None)

    def close(self) -> None:
        """Rings no more."""
        if self.file >= 0:
            self.loop.remove_reader(self.file)
            os.close(self.file)
            self.file = -1


class Connection(asyncio.Protocol):
    """One connection, with at most one request on its way."""

    def __init__(self, load: Load) -> None:
        self.load, self.now, self.rest, self.size = load, -1, b"", -1  # number of the request, what came of its answer
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.load.welcome(self)

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
            self.rest = b""
        if len(data) < self.size:  # the head was read before
            self.rest = data
            return
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.rest = data
            return
        if (size := _measure(data, end)) > len(data) or size < 0:
            self.rest, self.size = data, size
            return
        self.size = -1
        if b"onnection: close\r" in data[: end + 2] and self.transport is not None:
            self.transport.close()  # takes no further request
        if self.now >= 0:
            self.load.finish(self, int(data[9:12]), data)

    def connection_lost(self, _: Exception | None) -> None:
        self.load.lose(self)


def _measure(data: bytes, end: int) -> int:
    """Bytes of the whole answer; -1 where only its end tells and has not come."""
    head = data[: end + 2].lower()
    at = head.find(b"content-length:")
    if at >= 0:
        return end + 4 + int(head[at + 15 : head.find(b"\r", at)])
    if b"transfer-encoding: chunked" in head:
        return len(data) if data.endswith(b"\r\n0\r\n\r\n") else -1
    return end + 4


class Load:
    """Sends each request when it is due, or when the first connection is free after that.

    Attributes:
        sent, finished: seconds of :func:`time.perf_counter`, NaN: never. status: of HTTP; 0: no answer.
        retries: how often each was sent again. answers: head and body, empty unless ``keep``.
    """

    def __init__(
        self,
        due: Sequence[float],
        payloads: Sequence[bytes],
        address: tuple[str, int],
        keep: bool,
        retries: int,
        again: Sequence[int] = (),
    ):
        count = len(due)
        self.due, self.payloads, self.address, self.keep, self.most = list(due), payloads, address, keep, retries
        self.sent, self.finished, self.status, self.retries = [NEVER] * count, [NEVER] * count, [0] * count, [0] * count
        self.answers: list[bytes] = [b""] * count if keep else []
        self.again = frozenset(again)
        self.idle, self.waiting, self.everyone = deque[Connection](), deque[int](), set[Connection]()
        self.next, self.open, self.over, self.tasks = 0, count, False, set[asyncio.Task[None]]()
        self.done, self.loop = asyncio.Event(), asyncio.get_running_loop()
        self.alarm = Alarm(self.loop, self.send_due)

    async def connect(self) -> None:
        """One more connection, as soon as somebody listens."""
        while not self.over:
            try:
                await self.loop.create_connection(lambda: Connection(self), *self.address)
                return
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)

    async def run(self, start: float, end: float) -> None:
        """All requests, due in seconds from ``start``; nothing happens after ``end``."""
        self.due = [start + at for at in self.due]
        self.send_due()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.done.wait(), end - time.perf_counter())
        self.close()

    def close(self) -> None:
        """Ends every connection; late answers do not count."""
        self.over = True
        self.alarm.close()
        for task in self.tasks:
            task.cancel()
        for one in list(self.everyone):
            if one.transport is not None:
                one.transport.abort()

    def send_due(self) -> None:
        """Sends what is due, and sets the alarm for the next."""
        now, due, count, at = time.perf_counter(), self.due, len(self.due), self.next
        while at < count and due[at] <= now:
            if self.idle:
                self._send(self.idle.popleft(), at)
            else:
                self.waiting.append(at)
            at += 1
        self.next = at
        if at < count and not self.over:
            self.alarm.set(due[at])
        elif not self.open:
            self.done.set()

    def _send(self, connection: Connection, number: int) -> None:
        connection.now = number
        self.sent[number] = time.perf_counter()
        connection.transport.write(self.payloads[number])  # type: ignore[union-attr]

    def finish(self, connection: Connection, status: int, answer: bytes) -> None:
        """An answer is complete: the connection takes the request that has waited longest."""
        number, connection.now = connection.now, -1
        if status in self.again and self.retries[number] < self.most:
            self.retries[number] += 1
            self.waiting.appendleft(number)
            self._reuse(connection)
            return
        self.finished[number], self.status[number] = time.perf_counter(), status
        if self.keep:
            self.answers[number] = answer
        self._count_down()
        self._reuse(connection)

    def _reuse(self, connection: Connection) -> None:
        if connection.transport is None or connection.transport.is_closing():
            return
        if self.waiting:
            self._send(connection, self.waiting.popleft())
        else:
            self.idle.append(connection)  # the one that rested longest is the next: all servers get their share

    def _count_down(self) -> None:
        self.open -= 1
        if not self.open:
            self.done.set()

    def welcome(self, connection: Connection) -> None:
        """A new connection."""
        self.everyone.add(connection)
        self._reuse(connection)

    def lose(self, connection: Connection) -> None:
        """A connection ended: its request goes first to another one, or failed; a new connection takes its place."""
        self.everyone.discard(connection)
        if self.over:
            return
        with suppress(ValueError):
            self.idle.remove(connection)
        number, connection.now = connection.now, -1
        if number >= 0 and self.retries[number] < self.most:
            self.retries[number] += 1
            if self.idle:
                self._send(self.idle.popleft(), number)
            else:
                self.waiting.appendleft(number)
        elif number >= 0:
            self.finished[number] = time.perf_counter()
            self._count_down()
        task = self.loop.create_task(self.connect())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
