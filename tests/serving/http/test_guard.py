"""Every request is held to the limits, every answer has one form, and no error gives the server's secrets away."""

import asyncio
import json
import re

import pytest

from exitlens.errors import BundleError, InputError, RequestError
from exitlens.serving.http.guard import Guard, find_exchange, write_log
from exitlens.serving.metrics import Metrics
from exitlens.serving.settings import Limits
from tests.serving.http.sockets import connect, read_all, read_answer, serve
from tests.serving.test_metrics import read

QUICK = Limits(max_body_mb=1000 / 2**20, body_seconds=0.2, request_seconds=0.3)
LATE = "late"
BUSY = RequestError("busy", 503, 0.2)


async def echo(scope, receive, send):
    """Answer with the number of bytes that came."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    exchange = find_exchange(scope)
    exchange.route, exchange.model, exchange.facts = "/echo/{name}", "photos", {"exits": [0, 2]}
    await answer(send, b"%d" % size)


async def answer(send, body=b"ok"):
    head = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def raising(error):
    async def app(scope, receive, send):
        raise error

    return app


def call(app, body=(b"hello",), headers=(), path="/echo/a", limits=QUICK, metrics=None, kind="http"):
    """Return what the app, guarded, sends for a request; a part of the body that is ``LATE`` never comes."""
    parts, sent, records = list(body), [], []

    async def receive():
        if not parts:
            await asyncio.sleep(60)
        part = parts.pop(0)
        if part is LATE:
            await asyncio.sleep(60)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    named = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": kind, "method": "POST", "path": path, "headers": named, "client": ("10.0.0.7", 1)}
    asyncio.run(Guard(app, limits, metrics or Metrics(), records.append)(scope, receive, send))
    return sent, records


def read_sent(sent):
    assert [message["type"] for message in sent[:1]] == ["http.response.start"]
    assert not sent[-1].get("more_body")
    body = b"".join(message["body"] for message in sent[1:] if "body" in message)
    return sent[0]["status"], dict(sent[0]["headers"]), body


def ask(app, **options):
    status, head, body = read_sent(call(app, **options)[0])
    return status, head, json.loads(body)


def test_a_request_passes_and_is_logged_and_counted():
    metrics = Metrics()
    sent, (record,) = call(echo, body=(b"abc", b"de"), metrics=metrics)
    status, head, body = read_sent(sent)
    assert (status, body) == (200, b"5")
    assert re.fullmatch(rb"[0-9a-f]{32}", head[b"x-request-id"])
    assert record["id"].encode() == head[b"x-request-id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", record.pop("time"))
    assert 0 <= record.pop("ms") < 5000
    del record["id"]
    facts = {"method": "POST", "path": "/echo/a", "status": 200, "bytes_in": 5, "bytes_out": 1, "client": "10.0.0.7"}
    assert record == facts | {"exits": [0, 2]}
    found = read(metrics)
    assert found["exitlens_requests_total", ("model", "photos"), ("route", "/echo/{name}"), ("status", "200")] == 1


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("abc-1 2", True), ("x" * 128, True), *((bad, False) for bad in ("x" * 129, "", "a\tb", "caf\xe9", "a\x7f"))],
)
def test_request_ids_are_taken_if_they_are_short_and_printable(given, is_kept):
    async def app(scope, receive, send):
        await answer(send, find_exchange(scope).id.encode())

    _, head, body = read_sent(call(app, headers=[("x-request-id", given)])[0])
    assert body == head[b"x-request-id"]
    assert (body.decode() == given) == is_kept


@pytest.mark.parametrize(
    ("authorization", "path", "status"),
    [
        *(("Bearer sesame", "/echo/a", 200), ("bearer  sesame", "/echo/a", 200), (None, "/echo/a", 401)),
        *(("Bearer sesam", "/echo/a", 401), ("Bearer ", "/echo/a", 401), ("Basic sesame", "/echo/a", 401)),
        *(("sesame", "/echo/a", 401), ("Bearer s\xe9same", "/echo/a", 401), (None, "/metrics", 401)),
        *((None, "/v2/health/live", 200), (None, "/v2/health/ready", 200), (None, "/v2/health/ready/", 401)),
    ],
)
def test_the_token_opens_all_but_the_health_paths(authorization, path, status):
    headers = [] if authorization is None else [("authorization", authorization)]
    got, head, body = read_sent(call(echo, headers=headers, path=path, limits=Limits(token="sesame"))[0])
    assert got == status
    if status == 401:
        assert head[b"www-authenticate"].startswith(b"Bearer")
        assert head[b"connection"] == b"close"
        assert b"sesame" not in body


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        pytest.param({"headers": [("content-length", "1001")]}, 413, "body_bytes", id="announced"),
        pytest.param({"headers": [("content-length", "9" * 30)]}, 400, "length", id="no number"),
        pytest.param({"body": (b"x" * 600, b"x" * 600, b"x")}, 413, "body_bytes", id="streamed"),
        pytest.param({"body": (b"x", LATE)}, 408, "body_seconds", id="late"),
        pytest.param({"headers": [("content-encoding", "gzip")]}, 415, "encoding", id="gzip"),
        pytest.param({"headers": [("content-encoding", each) for each in ("gzip", "identity")]}, 415, "encoding", id="both"),
    ],
)
def test_bodies_over_the_limits_are_refused(options, status, reason):
    metrics = Metrics()
    got, head, body = ask(echo, metrics=metrics, **options)
    assert (got, head[b"connection"]) == (status, b"close")
    assert set(body) == {"error"}
    found = read(metrics)
    assert found["exitlens_rejected_total", ("model", ""), ("reason", reason)] == 1
    assert found["exitlens_requests_total", ("model", ""), ("route", "other"), ("status", str(status))] == 1


def test_bodies_at_the_limit_and_without_encoding_pass():
    options = {"body": (b"x" * 1000,), "headers": [("content-length", "1000"), ("content-encoding", "Identity")]}
    assert read_sent(call(echo, **options)[0])[::2] == (200, b"1000")


@pytest.mark.parametrize("cleans_up", [False, True])
def test_a_route_that_takes_too_long_is_cancelled(cleans_up):
    cancelled = []

    async def app(scope, receive, send):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            if cleans_up:
                await answer(send, b"too late")
                raise ValueError("in vain") from None
            raise

    status, head, body = ask(app)
    assert (status, head[b"connection"], cancelled) == (504, b"close", [True])
    assert body == {"error": "no answer within 0.3 seconds"}


@pytest.mark.slow
def test_an_answer_that_has_begun_may_take_longer():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"done"})

    assert read_sent(call(app)[0])[::2] == (200, b"done")


def test_errors_of_ours_are_told_with_their_status():
    status, head, body = ask(raising(InputError("image: expected RGB")))
    assert (status, body) == (400, {"error": "image: expected RGB"})
    assert b"connection" not in head
    status, head, body = ask(raising(BUSY))
    assert (status, head[b"retry-after"], body) == (503, b"1", {"error": "busy"})


@pytest.mark.parametrize("kind", [ValueError, BundleError])  # which names files of the server
def test_other_errors_are_told_to_the_log_only(caplog, kind):
    sent, (record,) = call(raising(kind("secret /etc/path")))
    status, head, body = read_sent(sent)
    assert status == record["status"] == 500
    assert json.loads(body) == {"error": "internal error", "request_id": head[b"x-request-id"].decode()}
    (entry,) = caplog.records
    assert (entry.name, entry.levelname) == ("exitlens.serving", "ERROR")
    assert "secret" in str(entry.exc_info[1])
    assert record["id"] in entry.getMessage()


def test_a_route_without_an_answer_is_an_error(caplog):
    async def app(scope, receive, send):
        pass

    assert ask(app)[0] == 500
    assert "gave no answer" in str(caplog.records[0].exc_info[1])


def test_an_error_after_the_answer_has_begun_is_logged_and_nothing_is_added(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise InputError("half-way")

    sent, (record,) = call(app)
    assert (len(sent), record["status"], len(caplog.records)) == (1, 200, 1)


def test_a_client_that_leaves_is_no_error(caplog):
    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        raise ValueError("the client has gone")

    sent, (record,) = call(app, body=(b"x", None))
    assert (sent, record["status"], caplog.records) == ([], 499, [])


def test_the_lifespan_and_web_sockets_pass():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        call(app, kind=kind)
    assert seen == ["lifespan", "websocket"]


def test_a_log_that_fails_does_not_take_the_answer_along(caplog):
    def fail(record):
        raise OSError("disk full")

    async def send(message):
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    asyncio.run(Guard(raising(InputError("x")), QUICK, Metrics(), fail)(scope, None, send))
    assert "not recorded" in caplog.text


def test_the_log_is_one_line_of_json_for_each_request(capsys):
    write_log({"path": "/a\nb", "when": object})
    write_log({"path": "/c"})
    assert [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()] == ["/a\nb", "/c"]


def test_over_a_socket_refused_clients_get_to_the_answer():
    with serve(Guard(echo, QUICK, Metrics())) as port:
        with connect(port) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n" + b"x" * 3_000_000)
            answer, _ = read_all(client)
            assert answer.startswith(b"HTTP/1.1 413")
            assert answer.endswith(b'at a time"}')
        with connect(port) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3000\r\nexpect: 100-continue\r\n\r\n")
            assert read_answer(client)[0] == 413
        with connect(port) as client:
            client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + b"190\r\n" + b"x" * 400)
            status, head, _ = read_answer(client)
            assert status == 408
            assert b"connection: close" in head
        with connect(port) as client:
            for _ in range(2):
                client.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc")
                assert read_answer(client)[::2] == (200, b"3")
