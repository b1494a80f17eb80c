"""Connections that clients cannot hold for ever: heads of limited size and time, answers that have to be taken."""

from __future__ import annotations

import asyncio
import json
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from exitlens.errors import import_extra, is_installed
from exitlens.serving.metrics import Metrics
from exitlens.serving.settings import Limits

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as _H11Protocol
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _HttpToolsProtocol
else:
    _HttpToolsProtocol = _H11Protocol = asyncio.Protocol  # make_protocol puts uvicorn's class behind them

_LINGER = 1.0  # seconds for which a refused client may still send, so that it gets to the answer
_PIECE = 2048  # bytes that h11 is given at a time, as it looks at the size of what is incomplete only
_MESSAGES = {
    400: "this is no valid HTTP/1.1",
    408: "the head of the request did not come in time",
    431: "the headers are too large: send fewer or shorter ones",
    503: "too many connections are open: try again later",
}


def make_protocol(limits: Limits, metrics: Metrics | None = None) -> type[asyncio.Protocol]:
    """A protocol for ``uvicorn.Config(http=...)`` that holds connections to the limits.

    The head of a request may have ``max_header_bytes`` of path and headers together (431) and has to be there within
    ``header_seconds`` after the connection was made, or after its first byte on a connection that was used before (408, or
    nothing where not a byte of it came). A client that takes nothing of its answer for ``write_seconds`` is cut off, and
    connections over ``max_connections`` are closed at once (503). Between requests uvicorn's ``timeout_keep_alive`` holds.

    Args:
        limits: see :class:`~exitlens.serving.limits.Limits`.
        metrics: counts what is refused, by reason; ``None``: nothing is counted.

    Raises:
        MissingExtraError: without the package ``uvicorn``.
    """
    place = "uvicorn.protocols.http"
    kinds: tuple[type, type]
    if is_installed("httptools"):
        kinds = _HttpTools, import_extra(f"{place}.httptools_impl", "serve", "serving").HttpToolsProtocol
    else:
        kinds = _H11, import_extra(f"{place}.h11_impl", "serve", "serving").H11Protocol
    return type("LimitedProtocol", kinds, {"limits": limits, "metrics": metrics})


def _describe(error: BaseException | None) -> str:
    """What a parser says; nothing where it was stopped by what called it."""
    text = "" if error is None or error.__context__ is not None else str(error)
    return f": {text:.200}" if text.isprintable() and text else ""


class _Patience(_HttpToolsProtocol):
    """The clocks of one connection, whatever reads its requests.

    No clock runs while requests come whole: one is set only where a part of a head is there.
    """

    limits: Limits
    metrics: Metrics | None
    _head_clock: asyncio.TimerHandle | None = None
    _write_clock: asyncio.TimerHandle | None = None
    _has_begun = _is_refused = False
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of the first head."""
        super().connection_made(transport)
        self._head_clock = self.loop.call_later(self.limits.header_seconds, self._end_head)
        if len(self.connections) > self.limits.max_connections:
            self.refuse(503, "connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops all clocks, and whatever is under way for the client."""
        for clock in (self._head_clock, self._write_clock, self.timeout_keep_alive_task):
            if clock is not None:
                clock.cancel()
        self._head_clock = self._write_clock = None
        leave = self.cycle.scope.get("state", {}).get("leave") if self._is_answering() else None
        super().connection_lost(exc)
        if leave is not None:
            leave()

    def data_received(self, data: bytes) -> None:
        """Reads on; a request that began stops the clock of its head, a part of a head starts it."""
        if self._is_refused:
            return
        before = self.cycle
        self._has_begun = True
        super().data_received(data)
        if self.cycle is not before:
            self._has_begun = False
            if self._head_clock is not None:
                self._head_clock.cancel()
                self._head_clock = None
        elif self._head_clock is None and not self._is_answering() and not self._is_refused:
            self._head_clock = self.loop.call_later(self.limits.header_seconds, self._end_head)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.disconnected

    def _refuse_unread(self, is_body: bool) -> None:
        """Says what the parser of a request could not read; called while its error is handled.

        A bad body ends the request that it belongs to, which has no other answer then.
        """
        if is_body and self._is_answering() and not self.cycle.response_started:
            self.cycle.disconnected = True  # for the app it is as if the client had gone
            self.cycle.message_event.set()
        self.refuse(400, "http", _describe(sys.exception()))

    def _end_head(self) -> None:
        self._head_clock = None
        if not self.transport.is_closing() and not self._is_refused:
            self.refuse(408 if self._has_begun else 0, "header_seconds")

    def refuse(self, status: int, reason: str, why: str = "") -> None:
        """Closes the connection, with an answer if there is a status and no answer to another request is on its way.

        What the client still sends is read for a moment and thrown away: closed at once, the connection would be reset, and
        the client might never read the answer. Where there are too many connections, none is kept for that.
        """
        if self._is_refused:
            return
        self._is_refused = True
        if self.metrics is not None:
            self.metrics.reject("", reason)
        if not status or self._is_answering():
            self.transport.close()
            return
        body = json.dumps({"error": f"{_MESSAGES[status]}{why}"}).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        if status == 503:
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.abort)

    def pause_writing(self) -> None:
        """Starts to watch whether the client takes its answer."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """The client takes its answer."""
        super().resume_writing()
        if self._write_clock is not None:
            self._write_clock.cancel()
            self._write_clock = None

    def on_response_complete(self) -> None:
        """Watches what is left to be taken of the answer, too, once the event loop has tried to send it."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self.loop.call_soon(self._watch_writing)

    def _watch_writing(self) -> None:
        if self._write_clock is None and (waiting := self.transport.get_write_buffer_size()):
            self._unsent = waiting
            self._write_clock = self.loop.call_later(self.limits.write_seconds, self._end_writing)

    def _end_writing(self) -> None:
        """Cuts the client off if exactly as many bytes wait for it as when this was last looked at."""
        self._write_clock = None
        if self.transport.get_write_buffer_size() != self._unsent:
            self._watch_writing()
            return
        if self.metrics is not None:
            self.metrics.reject("", "write_seconds")
        self.transport.abort()


class _HttpTools(_Patience):
    """Counts the bytes of a head: of what it has, as the parser finds them, and of what it lacks, as they come."""

    _is_inside = _is_in_head = False
    _found = _come = _begun = 0

    def data_received(self, data: bytes) -> None:
        """Reads on; a head that is incomplete may not come to more than a whole one."""
        was_inside, was_in_head, self._begun = self._is_inside, self._is_in_head, 0
        super().data_received(data)
        if self._is_in_head and (self._begun == (0 if was_in_head else 1)) and (was_in_head or not was_inside):
            self._come += len(data)
            if self._come > self.limits.max_header_bytes:
                self.refuse(431, "header_bytes")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_inside = self._is_in_head = True
        self._found = self._come = 0
        self._begun += 1
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the path is there."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is there."""
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def _count(self, count: int) -> None:
        self._found += count
        if self._found > self.limits.max_header_bytes:
            raise ValueError("headers too large")  # the parser stops and uvicorn calls send_400_response

    def on_headers_complete(self) -> None:
        """The head is there: the request starts."""
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is there, too."""
        self._is_inside = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser could not read, or what was too large for it."""
        if self._found > self.limits.max_header_bytes:
            self.refuse(431, "header_bytes")
        else:  # the body of a request that others wait before has to wait for its turn, too
            self._refuse_unread(self._is_inside and not self._is_in_head and not self.pipeline)


class _H11(_Patience):
    """Leaves the counting to h11; for machines without httptools."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        h11 = import_extra("h11", "serve", "serving")
        self.conn = h11.Connection(h11.SERVER, self.limits.max_header_bytes)

    def data_received(self, data: bytes) -> None:
        """Reads on, a little at a time: h11 takes a head of any size if it comes at once."""
        for start in range(0, len(data), _PIECE):
            if self._is_refused or self.transport.is_closing():
                break
            super().data_received(data[start : start + _PIECE])

    def send_400_response(self, msg: str) -> None:
        """Answers what h11 could not read, or what was too large for it."""
        if getattr(sys.exception(), "error_status_hint", 400) == 431:
            self.refuse(431, "header_bytes")
        else:
            self._refuse_unread(True)  # as it reads no further request before this one is answered
