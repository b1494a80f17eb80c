"""Around every route: limits, token, request ids, errors as JSON, the access log and counts."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from exitlens.errors import DataError, ExitlensError, InputError, RequestError
from exitlens.serving.metrics import Metrics
from exitlens.serving.settings import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})  # without a token
_LONGEST_ID, _LONGEST_PATH = 128, 512
_LINGER = 1.0  # seconds for which a refused body is still read, so that the client gets to the answer
_CLOSED_BY_CLIENT = 499  # in the log and the counts only, as nginx has it
_logger = logging.getLogger("exitlens.serving")


class _RefusedError(ExitlensError):
    """A request that goes over a limit; the connection is closed after the answer."""

    def __init__(self, status: int, reason: str, message: str, headers: tuple[Header, ...] = ()) -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason, headers


def write_log(record: dict[str, Any]) -> None:
    """Prints an access-log record as one line of JSON."""
    sys.stdout.write(json.dumps(record, default=str) + "\n")
    sys.stdout.flush()


class Guard:
    """ASGI middleware that holds every request to the limits and every answer to one form.

    It belongs between Starlette's own handler of unforeseen errors and the routes:
    ``Starlette(routes=..., middleware=[Middleware(Guard, limits=..., metrics=..., log=...)])``.

    A route finds ``request_id`` in ``scope["state"]`` (in Starlette: ``request.state``) and may put there

    - ``route``: its template, such as ``/v2/models/{model}/infer``; without it the request counts as ``other``,
    - ``model``: the name of a model that is served, never the unchecked text of a client,
    - ``log``: already there, a dict (``None`` without an access log); whatever a route adds to it stands in the access log.

    Whoever sees the client go calls ``scope["state"]["leave"]``, as long as it is there: the route is cancelled.

    A :class:`RequestError` that a route raises becomes ``{"error": message}`` with its ``status`` and, if it has
    ``retry_after`` (seconds), the header ``Retry-After``; :class:`InputError` and :class:`DataError` become a 400. Any other
    error becomes a 500 that says no more than the request's id; its traceback is logged by ``exitlens.serving``.

    Args:
        app: what it guards.
        limits: see :class:`Limits`; pixels, samples, headers and connections are others' to check.
        metrics: counts requests and refusals; ``None``: nothing is counted.
        log: takes one JSON-ready record for each request, such as :func:`write_log`; ``None``: no access log.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        metrics: Metrics | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.app, self.limits, self.metrics, self.log = app, limits, metrics, log
        self._authorization = limits.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; web sockets are closed, as nothing of this server speaks through them."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            exchange = _Exchange(scope, receive, send, self.limits, None if self.log is None else {})
            try:
                await self._answer(exchange)
            finally:
                exchange.state.pop("leave", None)
                self._record(exchange)

    async def _answer(self, exchange: _Exchange) -> None:
        try:
            self._check_head(exchange)
            async with exchange.patience:
                await self.app(exchange.scope, exchange.receive, exchange.send)
            if not (exchange.status or exchange.refusal or exchange.is_abandoned):
                raise RuntimeError("the route gave no answer")
        except asyncio.CancelledError:
            if not exchange.has_left:
                raise
            exchange.task.uncancel()
        except Exception as error:
            if not isinstance(error, _RefusedError):
                await self._answer_error(exchange, error)
        if exchange.refusal is not None:
            if self.metrics is not None:
                self.metrics.reject(exchange.state.get("model", ""), exchange.refusal.reason)
            await exchange.refuse(exchange.refusal)

    def _check_head(self, exchange: _Exchange) -> None:
        """What the head alone tells; raises :class:`_RefusedError`."""
        token, encoding = b"", b""
        for name, value in exchange.scope["headers"]:
            if name == b"authorization":
                token = value
            elif name == b"content-encoding" and value.lower() != b"identity":
                encoding = value
            elif name == b"content-length" and len(value) < 20 and value.isdigit():
                exchange.expected = int(value)
            elif name == b"content-length":
                raise exchange.note(_RefusedError(400, "length", "Content-Length: expected a number of bytes"))
        if self._authorization and exchange.scope["path"] not in OPEN_PATHS:
            scheme, _, given = token.partition(b" ")
            if not hmac.compare_digest(given.strip(), self._authorization) or scheme.lower() != b"bearer":
                headers = ((b"www-authenticate", b'Bearer realm="exitlens"'),)
                message = "Authorization: expected 'Bearer' and the token of this server"
                raise exchange.note(_RefusedError(401, "token", message, headers))
        if encoding:
            message = f"Content-Encoding: expected none, got {encoding.decode('latin-1')!r}: send the body as it is"
            raise exchange.note(_RefusedError(415, "encoding", message))
        exchange.check_size(exchange.expected)

    async def _answer_error(self, exchange: _Exchange, error: Exception) -> None:
        headers: list[Header] = []
        if exchange.refusal is not None or exchange.is_abandoned:
            return
        if exchange.patience.expired() and not exchange.status:
            message = f"no answer within {self.limits.request_seconds:g} seconds"
            exchange.note(_RefusedError(504, "request_seconds", message))
            return
        is_theirs = isinstance(error, RequestError | InputError | DataError)  # others may tell of the server's own files
        if is_theirs:
            status, content = getattr(error, "status", 400), {"error": str(error)}
            if (seconds := getattr(error, "retry_after", None)) is not None:
                headers.append((b"retry-after", b"%d" % max(0, math.ceil(seconds))))
        else:
            status, content = 500, {"error": "internal error", "request_id": exchange.request_id}
        if exchange.status or not is_theirs:
            _logger.error("request %s failed", exchange.request_id, exc_info=error)
        if not exchange.status:
            await exchange.answer(status, content, headers)

    def _record(self, exchange: _Exchange) -> None:
        seconds, state = time.perf_counter() - exchange.start, exchange.state
        status = exchange.status or _CLOSED_BY_CLIENT
        try:
            if self.metrics is not None:
                self.metrics.count_request(state.get("model", ""), state.get("route", "other"), status, seconds)
            if self.log is not None:
                self.log(exchange.describe(status, seconds))
        except Exception:
            _logger.exception("request %s was answered, but not noted", exchange.request_id)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits, facts: dict[str, Any] | None) -> None:
        self.start, self.scope, self.limits = time.perf_counter(), scope, limits
        self.expected = self.received = self.sent = 0
        self.status = 0  # of the answer that has begun
        self.refusal: _RefusedError | None = None
        self.is_whole = self.is_abandoned = self.has_left = False
        self.patience = asyncio.timeout(limits.request_seconds)
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.request_id = self.state["request_id"] = _find_id(scope["headers"])
        self.state["log"] = facts
        self.state["leave"] = self._leave
        self.task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        self._receive, self._send = receive, send
        self._until: float | None = None

    def _leave(self) -> None:
        """Nobody is there to answer: ends what runs for that, unless an answer has begun."""
        if not (self.status or self.has_left or self.refusal):
            self.is_abandoned = self.has_left = True
            self.task.cancel()

    def note(self, refusal: _RefusedError) -> _RefusedError:
        """Whatever the app makes of the refusal that it gets raised, the client will be told of it."""
        self.refusal = refusal
        return refusal

    def check_size(self, count: int) -> None:
        """Raises :class:`_RefusedError` for a body of more bytes than may come."""
        if count > (most := self.limits.max_body_bytes):
            message = f"the body has more than {most} bytes: send fewer samples at a time"
            raise self.note(_RefusedError(413, "body_bytes", message))

    async def receive(self) -> Message:
        """The next part of the body; raises :class:`_RefusedError` for one that is too large or too slow."""
        if self.refusal is not None:
            raise self.refusal
        if self.is_whole:
            return await self._receive()
        if self._until is None:
            self._until = asyncio.get_running_loop().time() + self.limits.body_seconds
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            message_ = f"the body did not come within {self.limits.body_seconds:g} seconds"
            raise self.note(_RefusedError(408, "body_seconds", message_)) from None
        if message["type"] == "http.disconnect":
            self.is_abandoned = True
        else:
            self.is_whole = not message.get("more_body", False)
            self.received += len(message.get("body", b""))
            self.check_size(self.received)
        return message

    async def send(self, message: Message) -> None:
        """Passes a part of the answer on, unless the request was refused meanwhile."""
        if message["type"] == "http.response.start":
            if self.refusal is not None or self.patience.expired():
                return
            self.status = message["status"]
            self.patience.reschedule(None)
            own = (b"x-request-id", self.request_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), own]}
        elif not self.status:
            return
        else:
            self.sent += len(message.get("body", b""))
        await self._send(message)

    async def answer(self, status: int, content: Any, headers: Iterable[Header] = ()) -> None:
        """Sends JSON, and reads on for a little while what is left of the body if the connection is to be closed."""
        body = json.dumps(content).encode()
        kind = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        own = [*kind, *headers, (b"x-request-id", self.request_id.encode())]
        self.status, self.sent = status, len(body)
        await self._send({"type": "http.response.start", "status": status, "headers": own})
        await self._send({"type": "http.response.body", "body": body, "more_body": self.refusal is not None})

    async def refuse(self, refusal: _RefusedError) -> None:
        """Answers a refusal, if no answer has begun, and closes the connection.

        What is left of the body is read for a little while: closed at once, the connection would be reset, and the client
        might never read why.
        """
        if self.status or self.is_abandoned:
            return
        await self.answer(refusal.status, {"error": str(refusal)}, [*refusal.headers, (b"connection", b"close")])
        try:
            async with asyncio.timeout(_LINGER):
                while not self.is_whole:
                    message = await self._receive()
                    self.is_whole = not message.get("more_body", False)
        except TimeoutError:
            pass
        await self._send({"type": "http.response.body"})

    def describe(self, status: int, seconds: float) -> dict[str, Any]:
        """The record for the access log; the query is left out, as it may hold what is nobody's business."""
        client = self.scope.get("client")
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": self.request_id,
            "method": self.scope["method"],
            "path": self.scope["path"][:_LONGEST_PATH],
            "status": status,
            "ms": round(seconds * 1000, 3),
            "bytes_in": self.received,
            "bytes_out": self.sent,
            "client": client[0] if client else None,
            **(self.state["log"] or {}),
        }


def _find_id(headers: Iterable[Header]) -> str:
    """The client's own id for the request, if it is short and printable, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and 0 < len(value) <= _LONGEST_ID and value.isascii():
            text = value.decode()
            if text.isprintable():
                return text
            break
    return f"{random.getrandbits(128):032x}"  # which asks nothing of the system
