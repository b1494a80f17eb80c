"""Requests that break HTTP, come too slowly, or go where nothing is."""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.serving.attacks.making import CLASSIFY, INFER, JSON, Hostile, kind, make_good
from benchmarks.serving.load.requests import make_request

# Bodies that end too soon, or come too slowly


@kind("truncated, kept open")
def _truncate(rng: random.Random, shape: Sequence[int]) -> bytes:
    whole = make_good(shape)
    head = whole.index(b"\r\n\r\n") + 4
    return whole[: rng.randrange(head, len(whole) - 1)]


@kind("truncated, closed")
def _truncate_and_close(rng: random.Random, shape: Sequence[int]) -> Hostile:
    return Hostile("truncated, closed", (bytes(_truncate(rng, shape)),), closes=True)  # type: ignore[arg-type]


@kind("slow body")
def _drip(rng: random.Random, shape: Sequence[int]) -> Hostile:
    whole = make_good(shape)
    head = whole.index(b"\r\n\r\n") + 4
    return Hostile("slow body", (whole[:head], *(whole[i : i + 1] for i in range(head, head + 40))), rng.uniform(0.05, 0.2))


@kind("slow head")
def _drip_head(rng: random.Random, shape: Sequence[int]) -> Hostile:
    whole = make_good(shape)
    start = rng.randrange(1, 40)
    return Hostile("slow head", (whole[:start], *(whole[i : i + 1] for i in range(start, start + 40))), 0.1)


@kind("body too large")
def _announce(rng: random.Random, _: Sequence[int]) -> bytes:
    return make_request(INFER, bytes(100)).replace(
        b"Content-Length: 100", b"Content-Length: %d" % rng.randrange(1 << 33, 1 << 50)
    )


@kind("bad chunks")
def _chunk(rng: random.Random, _: Sequence[int]) -> bytes:
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + rng.choice(
        [b"zz\r\nab\r\n0\r\n\r\n", b"-5\r\nhello\r\n", b"fffffffffffffffff\r\nab", b"5\r\nhello-and-more\r\n"]
    )


# Heads that are too large, or none


@kind("huge headers")
def _inflate(rng: random.Random, _: Sequence[int]) -> bytes:
    return make_request(INFER, b"{}", {"X-Large": "a" * rng.randrange(100_000, 400_000)})


@kind("many headers")
def _multiply(rng: random.Random, _: Sequence[int]) -> bytes:
    return make_request(INFER, b"{}", {f"X-{i}": "a" for i in range(rng.randrange(5_000, 20_000))})


@kind("bad Content-Length")
def _miscount(rng: random.Random, _: Sequence[int]) -> bytes:
    length = rng.choice(["-1", "abc", "1e3", "9" * 40, "+5", "5, 6", "0x10", "5\r\nContent-Length: 6", ""])
    return f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode() + b"{}" * 20


@kind("smuggling")
def _smuggle(rng: random.Random, _: Sequence[int]) -> bytes:
    coding = rng.choice(["chunked", "xchunked", "chunked, identity", " chunked\r\nTransfer-Encoding: x", "\tchunked"])
    inner = "0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(inner)}\r\nTransfer-Encoding: {coding}\r\n\r\n"
    return (head + inner).encode()


@kind("bad header lines")
def _break_lines(rng: random.Random, _: Sequence[int]) -> bytes:
    bad = [b"Content-Length : 5", b" folded: a", b"no colon", b"X: a\0b", b"X: a\rb", b": a", b"X\xff: a", b"X y: a"]
    return b"POST %s HTTP/1.1\r\nHost: a\r\n%s\r\n\r\n{}" % (INFER.encode(), rng.choice(bad))


@kind("no HTTP")
def _babble(rng: random.Random, _: Sequence[int]) -> bytes:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    heads = [hello + rng.randbytes(500), b"\0" * 1000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"]
    heads += [
        b"GET %s\r\n\r\n" % INFER.encode(),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / FTP/1.1\r\n\r\n",
        b"\xff" + rng.randbytes(2000),
    ]
    return rng.choice([*heads, b"* OK IMAP4rev1\r\n", b"G\0T / HTTP/1.1\r\n\r\n"])


# Addresses


@kind("path tricks")
def _climb(rng: random.Random, _: Sequence[int]) -> bytes:
    paths = [
        "/v2/models/..%2f..%2fetc%2fpasswd/infer",
        "/v2/models/../../etc/passwd",
        "//v2//models//net//infer",
        "/%2e%2e/",
    ]
    paths += ["/v2/models/net%00/infer", "/v2/models/net/infer%0d%0aX:1", "/v2/models/%ff%fe/infer", "/v2/models/%/infer"]
    paths += [
        "/v2/models/net/versions/..%2f/infer",
        "/v2/models/" + "a" * 20_000 + "/infer",
        "/..;/v2",
        "/v2/models/.git/config",
    ]
    paths += ["http://127.0.0.1:1/v2/models/other/infer", "/v2/models/\0/infer", "/v2/models/n\u00e9t/infer", "*", "v2"]
    return make_request(rng.choice(paths), b"{}", JSON)


@kind("wrong method")
def _mistake(rng: random.Random, _: Sequence[int]) -> bytes:
    return make_request(
        INFER, b"", {}, rng.choice(["GET", "PUT", "DELETE", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", "X"])
    )


@kind("web socket")
def _upgrade(rng: random.Random, _: Sequence[int]) -> bytes:
    fields = {
        "Connection": "Upgrade",
        "Upgrade": rng.choice(["websocket", "h2c", "WebSocket"]),
        "Sec-WebSocket-Version": "13",
    }
    return make_request(rng.choice([INFER, "/ws", CLASSIFY]), b"", fields | {"Sec-WebSocket-Key": "a" * 22 + "=="}, "GET")


@kind("unknown query")
def _query(rng: random.Random, _: Sequence[int]) -> bytes:
    query = rng.choice(
        ["a=b", "policy=..%2f", "max_cost=nan", "deadline_ms=-1", "model=%00", "version=9", "%ff=%fe", "&&&=;" * 500]
    )
    return make_request(f"{CLASSIFY}?{query}", b"\x89PNG", {"Content-Type": "image/png"})
