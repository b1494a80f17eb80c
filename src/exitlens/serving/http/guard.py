"""Holds clients to the limits: the connections they open, and the requests that come over them."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import random
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from exitlens.errors import DataError, InputError, RequestError
from exitlens.serving.metrics import Metrics
from exitlens.serving.settings import LONGEST_ID, Limits

Header = tuple[bytes, bytes]

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})  # need no token
_EXCHANGE = "exitlens.exchange"  # key of the exchange in the scope of its request
_CURRENT: ContextVar[_Connection | None] = ContextVar("connection", default=None)  # the connection that is being read
_LONGEST_PATH = 512
_LINGER = 1.0  # seconds for which a refused client's bytes are still read, so that it gets to the answer
_AHEAD = 1 << 19  # bytes of further requests that may arrive before uvicorn stops reading
_CLOSED_BY_CLIENT = 499  # in the log and the counts only, as in nginx
_MESSAGES = {
    400: "this is no valid HTTP/1.1",
    408: "the head of the request did not come in time",
    431: "the headers are too large: send fewer or shorter ones",
    503: "too many connections are open: try again later",
}
_logger = logging.getLogger("exitlens.serving")


class _RefusedError(RequestError):
    """A request that goes over a limit; the connection is closed after the answer."""

    def __init__(self, status: int, reason: str, message: str, *headers: Header) -> None:
        super().__init__(message, status)
        self.reason, self.headers = reason, (*headers, (b"connection", b"close"))


def write_log(record: dict[str, Any]) -> None:
    """Print a record of the access log as one line of JSON."""
    sys.stdout.write(json.dumps(record, default=str) + "\n")
    sys.stdout.flush()


class Guard:
    """ASGI middleware that holds every request to the limits and brings every answer into one form.

    It stands between Starlette's handler of unforeseen errors and the routes, which get the :class:`Exchange` from
    :func:`find_exchange` and fill it in.

    A :class:`RequestError` that a route raises becomes ``{"error": message}`` with its ``status`` and, if it has
    ``retry_after`` (seconds), the header ``Retry-After``; :class:`InputError` and :class:`DataError` become a 400. Any other
    error becomes a 500 that gives no more than the request's id; its traceback is logged by ``exitlens.serving``.
    ``log`` takes one JSON-ready record for each request, such as :func:`write_log`.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, log: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.app, self.limits, self.metrics, self.log = app, limits, metrics, log
        self._authorization = limits.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange, connection = Exchange(scope, receive, send, self.limits), _CURRENT.get()
        if connection is not None:
            connection.begin(exchange)
        try:
            await self._answer(exchange)
        finally:
            if connection is not None:
                connection.end(exchange)
            status, seconds = exchange.status or _CLOSED_BY_CLIENT, time.monotonic() - exchange.started
            try:
                self.metrics.count_request(exchange.model, exchange.route, status, seconds)
                if self.log is not None:
                    self.log(exchange.describe(status, seconds))
            except Exception:
                _logger.exception("request %s was answered, but not recorded", exchange.id)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            self._check_head(exchange)
            async with exchange.patience:
                await self.app(exchange.scope, exchange.receive, exchange.send)
            if not (exchange.status or exchange.is_abandoned):
                raise RuntimeError("the route gave no answer")
        except asyncio.CancelledError:
            if not exchange.has_left:
                raise
            exchange.task.uncancel()
        except Exception as error:
            if not exchange.is_abandoned:
                await self._answer_error(exchange, error)

    def _check_head(self, exchange: Exchange) -> None:
        """Check the head of a request; raise :class:`_RefusedError`."""
        scope, headers = exchange.scope, Headers(scope=exchange.scope)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) >= 20:
            raise _RefusedError(400, "length", "Content-Length: expected a number of bytes")
        exchange.has_body = int(length) > 0 or "transfer-encoding" in headers
        size = len(scope["path"]) + len(scope.get("query_string", b""))
        if size + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self.limits.max_header_bytes:
            raise _RefusedError(431, "header_bytes", _MESSAGES[431])
        if self._authorization and scope["path"] not in OPEN_PATHS:
            scheme, _, secret = headers.get("authorization", "").encode("latin-1").partition(b" ")
            if not hmac.compare_digest(secret.strip(), self._authorization) or scheme.lower() != b"bearer":
                message = "Authorization: expected 'Bearer' and the token of this server"
                raise _RefusedError(401, "token", message, (b"www-authenticate", b'Bearer realm="exitlens"'))
        for encoding in headers.getlist("content-encoding"):
            if encoding.lower() not in ("", "identity"):
                message = f"Content-Encoding: expected none, got {encoding!r}. Fix: send the body as it is."
                raise _RefusedError(415, "encoding", message)
        exchange.check_size(int(length))

    async def _answer_error(self, exchange: Exchange, error: Exception) -> None:
        if exchange.patience.expired() and not exchange.status:
            words = f"no answer within {self.limits.request_seconds:g} seconds"
            error = _RefusedError(504, "request_seconds", words)
        status, content, headers = 500, {"error": "internal error", "request_id": exchange.id}, list[Header]()
        is_the_clients = isinstance(error, RequestError | InputError | DataError)  # others may name the server's files
        if is_the_clients:
            status, content = getattr(error, "status", 400), {"error": str(error)}
            if (seconds := getattr(error, "retry_after", None)) is not None:
                headers.append((b"retry-after", b"%d" % max(0, math.ceil(seconds))))
        if isinstance(error, _RefusedError):
            self.metrics.rejected(exchange.model, error.reason).inc()
            headers += error.headers
        if exchange.status or not is_the_clients:
            _logger.error("request %s failed", exchange.id, exc_info=error)
        if not exchange.status:
            await exchange.answer(status, content, headers)


class Exchange:
    """One request and its answer. Routes get it from :func:`find_exchange` and note what the counts and the log need.

    Attributes:
        id: the client's id if it is short and printable, else a new one.
        started: when the head of the request had come (``time.monotonic``).
        route: template of its path, such as ``/v2/models/{name}/infer``; set by the route.
        model: name of a model that is served, never the unchecked text of a client; set by the route.
        facts: further entries of the access log; filled by the route.
        status: status of the answer that has begun, else 0.
        has_body: True if the head announces a body. is_read: True once all of it was read.
        is_abandoned: True if the client has gone. has_left: True if that cancelled the route.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self.scope, self.limits, self._receive, self._send = scope, limits, receive, send
        given = Headers(scope=scope).get("x-request-id", "")
        is_kept = 0 < len(given) <= LONGEST_ID and given.isascii() and given.isprintable()
        self.id = given if is_kept else f"{random.getrandbits(128):032x}"  # without asking the system for randomness
        self.started = time.monotonic()
        self.route, self.model, self.facts = "other", "", dict[str, Any]()
        self.received = self.sent = self.status = 0
        self.is_read = self.is_abandoned = self.has_left = False
        self.has_body = True
        self.patience = asyncio.timeout(limits.request_seconds)
        self.task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        self._until: float | None = None
        scope[_EXCHANGE] = self

    @property
    def is_whole(self) -> bool:
        """True once nothing more of it is to come."""
        return self.is_read or not self.has_body

    def leave(self) -> None:
        """End the route because its client has gone, unless an answer has begun."""
        if not (self.status or self.has_left):
            self.is_abandoned = self.has_left = True
            self.task.cancel()

    def check_size(self, count: int) -> None:
        """Raise :class:`_RefusedError` for a body of more bytes than the limit."""
        if count > (most := self.limits.max_body_bytes):
            raise _RefusedError(413, "body_bytes", f"the body has more than {most} bytes: send fewer samples at a time")

    async def receive(self) -> Message:
        """Return the next part of the body; raise :class:`_RefusedError` for one that is too large or too slow."""
        if self.is_read:
            return await self._receive()
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + self.limits.body_seconds
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            words = f"the body did not come within {self.limits.body_seconds:g} seconds"
            raise _RefusedError(408, "body_seconds", words) from None
        if message["type"] == "http.disconnect":
            self.is_abandoned = True
        else:
            self.is_read = not message.get("more_body", False)
            self.received += len(message.get("body", b""))
            self.check_size(self.received)
        return message

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on, unless its time is up."""
        if message["type"] == "http.response.start":
            if self.patience.expired():
                return
            self.status = message["status"]
            self.patience.reschedule(None)
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self.id.encode())]}
        elif not self.status:
            return
        else:
            self.sent += len(message.get("body", b""))
            if not (self.is_whole or self.is_abandoned or message.get("more_body", False)):
                await self._send({**message, "more_body": True})
                # The rest of the body is read for a moment: closed at once, the connection would be reset, and the client
                # might never read the answer.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER):
                        while not self.is_whole:
                            self.is_read = not (await self._receive()).get("more_body", False)
                message = {"type": "http.response.body"}
        await self._send(message)

    async def answer(self, status: int, content: Any, headers: Iterable[Header] = ()) -> None:
        """Send JSON, even if the time is up."""
        body = json.dumps(content).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        head += [*headers, (b"x-request-id", self.id.encode())]
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self.send({"type": "http.response.body", "body": body})

    def describe(self, status: int, seconds: float) -> dict[str, Any]:
        """Return the record for the access log, without the query, which may be private."""
        client = self.scope.get("client")
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": self.id,
            "method": self.scope["method"],
            "path": self.scope["path"][:_LONGEST_PATH],
            "status": status,
            "ms": round(seconds * 1000, 3),
            "bytes_in": self.received,
            "bytes_out": self.sent,
            "client": client[0] if client else None,
            **self.facts,
        }


def find_exchange(scope: Scope) -> Exchange:
    """Return the exchange of a request that the guard let through."""
    exchange = scope[_EXCHANGE]
    assert isinstance(exchange, Exchange)
    return exchange


class _Connection(asyncio.Protocol):
    """A connection that is held to the limits, around the protocol of uvicorn (``inner``) that reads its requests.

    uvicorn has no time-out for a head that does not arrive or an answer that is not taken, and no limit on headers. Here the
    head of a request may have ``max_header_bytes`` (431) and has to arrive within ``header_seconds`` after the
    connection was made, or after its first byte on a connection that was used before (408, or nothing if not a byte of it
    came). A client that takes nothing of its answer for ``write_seconds`` is cut off, and connections over
    ``max_connections`` are closed at once (503). Between requests uvicorn's ``timeout_keep_alive`` holds. The app has to be
    inside a :class:`Guard`.
    """

    _transport: asyncio.Transport
    _head_clock: asyncio.TimerHandle | None = None
    _write_clock: asyncio.TimerHandle | None = None
    _exchange: Exchange | None = None
    _unsent = 0  # bytes of answers that waited for the client at the last look
    _count = 0  # bytes since the last request began, without its body

    def __init__(self, factory: ConnectionFactory, inner: asyncio.Protocol) -> None:
        self._factory, self._inner, self._limits = factory, inner, factory.limits
        self.is_parsing = self.is_refused = self._has_inner = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = cast(asyncio.Transport, transport)
        self._factory.connections.add(self)
        if len(self._factory.connections) > self._limits.max_connections:
            self.refuse(503, "connections")
            return
        self._has_inner = True
        self._inner.connection_made(cast(asyncio.Transport, _Transport(self, self._transport)))
        self._start_head_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._factory.connections.discard(self)
        for clock in (self._head_clock, self._write_clock):
            if clock is not None:
                clock.cancel()
        if self._exchange is not None:
            self._exchange.leave()
        self._lose_inner()

    def _lose_inner(self) -> None:
        if self._has_inner:
            self._has_inner = False
            self._inner.connection_lost(None)  # with an error it would leave its time-out running

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._has_inner else None

    def data_received(self, data: bytes) -> None:
        """Read on; bytes that begin no request are a part of a head."""
        if self.is_refused:
            return
        if self._exchange is None or self._exchange.is_whole:
            self._count += len(data)
        token, self.is_parsing = _CURRENT.set(self), True
        try:
            self._inner.data_received(data)
        finally:
            self.is_parsing = False
            _CURRENT.reset(token)
        if self._exchange is None:
            self._loop.call_soon(self._look_for_request, self._count)  # which the loop has to start first
        elif self._count > self._limits.max_header_bytes + _AHEAD:
            self.refuse(431, "header_bytes")

    def _look_for_request(self, count: int) -> None:
        """Refuse a large head, or start its clock; if more bytes came meanwhile, another call looks at them all."""
        if self._exchange is not None or self._transport.is_closing() or not count or count != self._count:
            return
        if count > self._limits.max_header_bytes:
            self.refuse(431, "header_bytes")
        elif self._head_clock is None:
            self._start_head_clock()

    def begin(self, exchange: Exchange) -> None:
        self._exchange, self._count = exchange, 0
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None

    def end(self, exchange: Exchange) -> None:
        """Wait for the next head, and for the client to take the answer."""
        if self._exchange is exchange:
            self._exchange = None
            self._loop.call_soon(self._look_for_request, self._count)
        if not (exchange.is_whole or self.is_refused):  # the rest of its body would be taken for the next head
            self._transport.close()
        elif self._transport.get_write_buffer_size():
            self._loop.call_soon(self._watch_writing)

    def _start_head_clock(self) -> None:
        def end() -> None:
            self._head_clock = None
            if not self._transport.is_closing():
                self.refuse(408 if self._count else 0, "header_seconds")

        self._head_clock = self._loop.call_later(self._limits.header_seconds, end)

    def refuse_unread(self) -> None:
        """Say why a request could not be parsed; called while the error is handled."""
        error = sys.exception()
        text = "" if error is None or error.__context__ is not None else str(error)
        self.refuse(400, "http", f": {text:.200}" if text.isprintable() and text else "")

    def refuse(self, status: int, reason: str, why: str = "") -> None:
        """Close the connection, with an answer if there is a status and no other answer is on its way.

        What the client still sends is read for a moment, as in :meth:`Exchange.send`, unless there are too many connections.
        """
        if self.is_refused:
            return
        self.is_refused = True
        self._factory.count_refusal(reason)
        exchange = self._exchange
        if not status or (exchange is not None and (exchange.is_whole or exchange.status)):
            self._transport.close()
            return
        self._loop.call_soon(self._lose_inner)  # so that it sends no answer any more
        if exchange is not None:
            exchange.leave()
        body = json.dumps({"error": f"{_MESSAGES[status]}{why}"}).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self._transport.write(head.encode() + body)
        if status == 503:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(_LINGER, self._transport.abort)

    def pause_writing(self) -> None:
        if self._has_inner:
            self._inner.pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        if self._has_inner:
            self._inner.resume_writing()
        if self._write_clock is not None:
            self._write_clock.cancel()
            self._write_clock = None

    def _watch_writing(self) -> None:
        if self._write_clock is None and (unsent := self._transport.get_write_buffer_size()):
            self._unsent = unsent
            self._write_clock = self._loop.call_later(self._limits.write_seconds, self._end_writing)

    def _end_writing(self) -> None:
        """Cut the client off if exactly as many bytes wait for it as at the last look."""
        self._write_clock = None
        if self._transport.get_write_buffer_size() != self._unsent:
            self._watch_writing()
            return
        self._factory.count_refusal("write_seconds")
        self._transport.abort()


class _Transport:
    """The transport as uvicorn sees it: what uvicorn writes while it parses is its refusal, which the connection words."""

    def __init__(self, connection: _Connection, transport: asyncio.Transport) -> None:
        self._connection, self._transport = connection, transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._connection.is_parsing:
            self._connection.refuse_unread()
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection, unless it is about to be closed more patiently."""
        if not self._connection.is_refused:
            self._transport.close()


class ConnectionFactory:
    """Makes the connections of a server, and counts them: for ``uvicorn.Config(http=...)``.

    ``metrics`` counts refusals by reason; it may be set until the first connection is made.
    """

    def __init__(self, limits: Limits, metrics: Metrics | None = None) -> None:
        self.limits, self.metrics = limits, metrics
        self.connections: set[_Connection] = set()

    def __call__(self, **settings: Any) -> _Connection:
        """Make a connection."""
        return _Connection(self, HttpToolsProtocol(**settings))

    def count_refusal(self, reason: str) -> None:
        """Count a client that was refused before its request had a model."""
        if self.metrics is not None:
            self.metrics.rejected("", reason).inc()
