"""No client holds a connection for ever, or makes the server keep a head of any size; other clients are served."""

import asyncio
import json
import socket
import threading
import time

import pytest

from exitlens.serving.http.guard import ConnectionFactory, Guard
from exitlens.serving.metrics import Metrics
from exitlens.serving.settings import Limits
from tests.serving.conftest import wait_until
from tests.serving.http.sockets import connect, read_all, read_answer, serve
from tests.serving.test_metrics import read

LIMITS = Limits(max_header_bytes=2000, header_seconds=0.3, write_seconds=0.3, max_connections=5)
LARGE = b"x" * 8_000_000
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


async def app(scope, receive, send):
    body = LARGE if scope["path"] == "/large" else b"ok"
    if scope["path"] == "/read":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/slow":
        await asyncio.sleep(0.4)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def port(metrics, request):
    loop = getattr(request, "param", "auto")  # uvloop, where it is installed
    with serve(Guard(app, LIMITS, metrics), http=ConnectionFactory(LIMITS, metrics), loop=loop) as port:
        yield port


on_both_loops = pytest.mark.parametrize("port", ["auto", pytest.param("asyncio", marks=pytest.mark.slow)], indirect=True)


def count_rejected(metrics):
    name = "exitlens_rejected_total"
    return {dict(labels)["reason"]: count for (sample, *labels), count in read(metrics).items() if sample == name}


def send_bad(port, sent, is_second):
    """Send something bad, perhaps after a good request; return all that the server answers to it, and the seconds."""
    with connect(port) as client:
        if is_second:
            client.sendall(GET)
            assert read_answer(client)[0] == 200
        client.sendall(sent)
        return read_all(client)


def status(answer):
    return int(answer.split()[1]) if answer else None


@on_both_loops
@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\nx-"])
def test_a_head_that_does_not_come_is_not_waited_for(port, metrics, sent):
    with connect(port) as client:
        client.sendall(sent)
        answer, seconds = read_all(client)
    assert 0.2 < seconds < 3
    assert status(answer) == (408 if sent else None)
    assert count_rejected(metrics) == {"header_seconds": 1}


def drip(client, piece):
    """Send a piece again and again; return the seconds until the server has closed."""
    start = time.perf_counter()
    try:
        while time.perf_counter() < start + 4:
            client.sendall(piece)
            time.sleep(0.05)
    except OSError:
        pass
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "piece"),
    [
        pytest.param(b"", b"x: y\r\n", id="head"),
        pytest.param(GET, b"\r\n", id="empty lines after an answer"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n", b"z", id="body that no route reads"),
    ],
)
def test_a_drip_does_not_renew_the_time_for_a_head(port, first, piece):
    with connect(port) as client:
        client.sendall(first or b"GET / HTTP/1.1\r\n")
        if first:
            assert read_answer(client)[0] == 200
        assert drip(client, piece) < 3


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 2100 + b"\r\n\r\n", id="one header"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 500 + b"\r\n", id="many headers"),
        pytest.param(b"GET /" + b"y" * 2100 + b" HTTP/1.1\r\nhost: a\r\n\r\n", id="path"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 200_000, id="without an end"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 3000, id="without an end, short"),
    ],
)
@pytest.mark.parametrize("is_second", [False, True])
def test_a_large_head_is_refused_at_once(port, metrics, head, is_second):
    answer, _ = send_bad(port, head, is_second)
    assert status(answer) == 431
    assert answer.endswith(b'send fewer or shorter ones"}')
    assert count_rejected(metrics) == {"header_bytes": 1}


@on_both_loops
def test_a_large_head_that_comes_in_pieces_is_refused(port):
    with connect(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(5):
            time.sleep(0.01)
            client.sendall(b"y" * 500)
        assert status(read_all(client)[0]) == 431


def test_a_head_just_below_the_limit_passes_and_bodies_are_not_counted(port, metrics):
    body = b"z" * 300_000
    with connect(port) as client:
        for path in (b"/read", b"/read", b"/"):  # the last does not read its body, which is no next request
            client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 1900 + b"\r\n\r\n")
            assert read_answer(client)[0] == 200
            head = b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: 300000\r\n\r\n" % path
            client.sendall(head + body + GET[:10])  # with a part of the next head in one piece
            assert read_answer(client)[0] == 200
            client.sendall(GET[10:])
            assert read_answer(client)[0] == 200
    assert not count_rejected(metrics)


@pytest.mark.slow
def test_an_answer_may_take_longer_than_a_head_and_idle_connections_stay(port):
    with connect(port) as client:
        client.sendall(GET.replace(b"/ ", b"/slow "))
        assert read_answer(client)[0] == 200
        time.sleep(0.4)
        client.sendall(GET)
        assert read_answer(client)[0] == 200


def test_pipelined_requests_are_answered_in_order(port):
    with connect(port) as client:
        client.sendall(GET.replace(b"/ ", b"/slow ") + GET + GET.replace(b"a\r\n", b"a\r\nconnection: close\r\n"))
        answer, _ = read_all(client)
    assert answer.count(b"HTTP/1.1 200") == 3


def test_a_client_cannot_send_any_number_of_bytes_ahead(port, metrics):
    with connect(port) as client:
        client.sendall(GET.replace(b"/ ", b"/slow ") + b"GET / HTTP/1.1\r\n")
        assert drip(client, b"x: " + b"y" * 200_000 + b"\r\n") < 3
    assert count_rejected(metrics) == {"header_bytes": 1}


@pytest.mark.slow
@on_both_loops
def test_a_client_that_does_not_take_its_answer_is_cut_off(port, metrics):
    with connect(port, receive_buffer=4096) as client:
        client.sendall(GET.replace(b"/ ", b"/large "))
        time.sleep(1.2)
        answer, _ = read_all(client)
    assert len(answer) < len(LARGE)
    assert count_rejected(metrics) == {"write_seconds": 1}


@pytest.mark.slow
def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(port, metrics):
    size = 0
    with connect(port, receive_buffer=1 << 18) as client:
        client.sendall(GET.replace(b"/ ", b"/large ").replace(b"a\r\n", b"a\r\nconnection: close\r\n"))
        while part := client.recv(1 << 20):
            size += len(part)
            time.sleep(0.02)
    assert size > len(LARGE)
    assert not count_rejected(metrics)


def test_more_connections_than_allowed_are_closed_and_room_is_given_back(port, metrics):
    clients = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(5)]
    try:
        for _ in range(2):
            for client in clients:
                client.sendall(GET)
                assert read_answer(client)[0] == 200
            with connect(port) as client:
                assert status(read_all(client)[0]) == 503
        assert count_rejected(metrics) == {"connections": 2}
    finally:
        for client in clients:
            client.close()

    def is_served():
        with connect(port) as client:
            client.sendall(GET)
            return client.recv(1 << 16).startswith(b"HTTP/1.1 200")

    wait_until(is_served)


POST = b"POST /read HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\x16\x03\x01\x02\x00", id="TLS"),
        pytest.param(b"GET / FTP/1.1\r\nhost: a\r\n\r\n", id="another protocol"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", id="length"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", id="two lengths"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n", id="header"),
        pytest.param(POST + b"zz\r\nab\r\n", id="chunk"),
    ],
)
@pytest.mark.parametrize("is_second", [False, True])
def test_broken_http_is_refused_with_a_reason(port, metrics, sent, is_second):
    answer, seconds = send_bad(port, sent, is_second)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status(answer) == 400
    assert b"content-type: application/json" in head
    assert json.loads(body)["error"].startswith("this is no valid HTTP/1.1")
    assert seconds < 3
    assert count_rejected(metrics) == {"http": 1}


def test_a_chunk_that_comes_late_and_bad_ends_its_request(port, caplog):
    with connect(port) as client:
        client.sendall(POST + b"2\r\nab\r\n")
        time.sleep(0.1)
        client.sendall(b"zz\r\n")
        answer, _ = read_all(client)
    assert status(answer) == 400
    assert answer.count(b"\r\n\r\n") == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_no_refusal_is_taken_for_the_answer_to_the_request_before(port):
    with connect(port) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        time.sleep(0.1)
        client.sendall(b"GET / FTP/1.1\r\nhost: a\r\n\r\n")
        assert status(read_all(client)[0]) in (None, 200)


def test_a_client_that_goes_ends_its_route(metrics):
    seen, gone = threading.Event(), threading.Event()

    async def wait(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        seen.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            gone.set()
            raise

    lines = []
    guarded = Guard(wait, LIMITS, metrics, lines.append)
    with serve(guarded, http=ConnectionFactory(LIMITS, metrics)) as port, connect(port) as client:
        client.sendall(GET)
        assert seen.wait(10)
        client.close()
        assert gone.wait(10)
        wait_until(lambda: lines)
    assert [line["status"] for line in lines] == [499]
