"""Requests that a server has to refuse: broken HTTP, wrong tensors and JSON, bombs, and bodies that come too slowly."""

from __future__ import annotations

import gzip
import json
import math
import random
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.load import HEADER_LENGTH, INFER, make_request, make_tensor

CLASSIFY = "/classify"
JSON, FORM, PNG = "application/json", "multipart/form-data; boundary=x", "image/png"


@dataclass(frozen=True)
class Hostile:
    """A request that must not be answered with 200."""

    kind: str  # in a word or two
    parts: tuple[bytes, ...]  # bytes, sent one after the other with ``pause`` seconds in between
    pause: float = 0.0
    closes: bool = False  # the sending side of the connection is closed after them


def make_hostile(count: int, shape: Sequence[int], seed: int = 0) -> Iterator[Hostile]:
    """Yield requests of all kinds in turn and in random order, always the same ones; ``shape`` is that of a sample."""
    rng, kinds = random.Random(seed), list_kinds(shape)
    names = list(kinds)
    for i in range(count):
        if i % len(names) == 0:
            rng.shuffle(names)
        name = names[i % len(names)]
        chosen = rng.choice(kinds[name])
        yield chosen if isinstance(chosen, Hostile) else Hostile(name, (chosen,))


def list_kinds(shape: Sequence[int]) -> dict[str, list[bytes] | list[Hostile]]:
    return {**list_slow(shape), **list_wire(), **list_paths(), **list_tensors(shape), **list_json(shape), **list_files()}


def make_infer(body: bytes, headers: dict[str, str] | None = None) -> bytes:
    return make_request(INFER, body, headers or {"Content-Type": JSON})


def make_image(body: bytes, content_type: str = PNG) -> bytes:
    return make_request(CLASSIFY, body, {"Content-Type": content_type})


def make_good(shape: Sequence[int], **fields: Any) -> bytes:
    """Return a request to which nothing is wrong but the fields that are added."""
    return make_tensor((1, *shape), bytes(4 * math.prod(shape)), **fields)


def list_slow(shape: Sequence[int]) -> dict[str, list[Any]]:
    whole = make_good(shape)
    head = whole.index(b"\r\n\r\n") + 4
    cuts = [whole[:end] for end in (head, (head + len(whole)) // 2, len(whole) - 2)]
    bytewise = [tuple(whole[i : i + 1] for i in range(start, start + 40)) for start in (head, 20)]
    return {
        "truncated, kept open": cuts,
        "truncated, closed": [Hostile("truncated, closed", (cut,), closes=True) for cut in cuts],
        "slow body": [Hostile("slow body", (whole[:head], *bytewise[0]), pause) for pause in (0.05, 0.1, 0.2)],
        "slow head": [Hostile("slow head", (whole[:20], *bytewise[1]), 0.1)],
    }


def list_wire() -> dict[str, list[bytes]]:
    start, hello = f"POST {INFER} HTTP/1.1\r\nHost: a\r\n".encode(), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    both = start + b"Content-Length: %d\r\nTransfer-Encoding: %s\r\n\r\n%s"
    codings = (b"chunked", b"xchunked", b"chunked, identity", b" chunked\r\nTransfer-Encoding: x", b"\tchunked")
    lengths = (b"-1", b"abc", b"1e3", b"9" * 40, b"+5", b"5, 6", b"0x10", b"5\r\nContent-Length: 6", b"")
    lines = (b"Content-Length : 5", b" folded: a", b"no colon", b"X: a\0b", b"X: a\rb", b": a", b"X\xff: a", b"X y: a")
    chunks = (b"zz\r\nab\r\n0\r\n\r\n", b"-5\r\nhello\r\n", b"fffffffffffffffff\r\nab", b"5\r\nhello-and-more\r\n")
    no_http = [hello + bytes(range(256)) * 2, b"\0" * 1000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"]
    no_http += [f"GET {INFER}\r\n\r\n".encode(), b"GET / HTTP/9.9\r\n\r\n", b"GET / FTP/1.1\r\n\r\n", b"\xff" * 2000]
    no_http += [b"* OK IMAP4rev1\r\n", b"G\0T / HTTP/1.1\r\n\r\n"]
    announced = make_infer(bytes(100))
    return {
        "body too large": [announced.replace(b"h: 100", b"h: %d" % (1 << bits)) for bits in (33, 40, 50)],
        "bad chunks": [start + b"Transfer-Encoding: chunked\r\n\r\n" + body for body in chunks],
        "huge headers": [make_request(INFER, b"{}", {"X-Large": "a" * 400_000})],
        "many headers": [make_request(INFER, b"{}", {f"X-{i}": "a" for i in range(20_000)})],
        "bad Content-Length": [start + b"Content-Length: %s\r\n\r\n" % length + b"{}" * 20 for length in lengths],
        "smuggling": [both % (len(smuggled), coding, smuggled) for coding in codings],
        "bad header lines": [start + line + b"\r\n\r\n{}" for line in lines],
        "no HTTP": no_http,
    }


def list_paths() -> dict[str, list[bytes]]:
    models = "/v2/models/"
    paths = [models + rest for rest in ("..%2f..%2fetc%2fpasswd/infer", "../../etc/passwd", "net%00/infer", "%ff%fe/infer")]
    paths += [models + rest for rest in ("net/infer%0d%0aX:1", "%/infer", "net/versions/..%2f/infer", "a" * 20_000)]
    paths += [f"{models}{rest}" for rest in (".git/config", "\0/infer", "n\u00e9t/infer")]
    paths += ["//v2//models//net//infer", "/%2e%2e/", "/..;/v2", "http://127.0.0.1:1/v2/models/other/infer", "*", "v2"]
    queries = ["a=b", "policy=..%2f", "max_cost=nan", "deadline_ms=-1", "model=%00", "version=9", "%ff=%fe", "&&&=;" * 500]
    methods = ("GET", "PUT", "DELETE", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", "X")
    socket = {"Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "a" * 22 + "=="}
    upgrades = [(path, word) for path in (INFER, "/ws", CLASSIFY) for word in ("websocket", "h2c", "WebSocket")]
    return {
        "path tricks": [make_request(path, b"{}", {"Content-Type": JSON}) for path in paths],
        "wrong method": [make_request(INFER, b"", {}, method) for method in methods],
        "web socket": [make_request(path, b"", {**socket, "Upgrade": word}, "GET") for path, word in upgrades],
        "unknown query": [make_request(f"{CLASSIFY}?{query}", b"\x89PNG", {"Content-Type": PNG}) for query in queries],
    }


def list_tensors(shape: Sequence[int]) -> dict[str, list[bytes]]:
    size = math.prod(shape)
    types = (("INT64", 8), ("FP64", 8), ("UINT8", 1), ("FP16", 2), ("BOOL", 1), ("FLOAT", 4), ("", 4))
    wrong: list[tuple[int, ...]] = [tuple(shape), (1, *shape, 1), (1, *shape[:-1], shape[-1] + 1), (1, 2), (), (0, *shape)]
    huge: list[tuple[Any, ...]] = [(1 << 62, 1 << 62), (1,) * 5000, (10**400,)]
    huge += [(length, *shape) for length in (1 << 40, -1, 1e9)]
    words = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 9000, "0x10", "1_000", "true", "null", '"1"', "[]")
    numbers = '{"inputs":[{"name":"inputs","shape":%s,"datatype":"FP32","data":[%s]}]}'
    lying = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [lying]}).encode()
    length = {HEADER_LENGTH: str(len(head))}

    def place(values: Iterable[float]) -> list[bytes]:
        half = bytes(4 * (size // 2))
        return [make_tensor((1, *shape), half + struct.pack("<f", v) + bytes(4 * size - len(half) - 4)) for v in values]

    return {
        "wrong type": [make_tensor((1, *shape), bytes(width * size), kind) for kind, width in types],
        "wrong shape": [make_tensor(dims, bytes(4 * math.prod(dims))) for dims in wrong],
        "huge shape": [make_tensor(dims, bytes(64)) for dims in huge],
        "too many samples": [make_tensor((n, *shape), bytes(4 * n * size)) for n in (257, 300)],
        "NaN or Inf": place([math.nan, math.inf, -math.inf]),
        "numbers that JSON has not": [
            make_infer((numbers % ([1, *shape], ",".join([word] + ["0"] * (size - 1)))).encode()) for word in words
        ],
        "lying BYTES": [
            make_infer(head + struct.pack("<I", n) + b"abcd", length) for n in (0xFFFFFFFF, 0x7FFFFFFF, 1 << 20)
        ],
        "bad header length": [
            make_infer(b'{"inputs": []}' + bytes(40), {HEADER_LENGTH: words})
            for words in ("-1", "0", "999999999", "1e3", "abc", "9" * 40, "12 13", "\u00b2")
        ],
    }


def list_json(shape: Sequence[int]) -> dict[str, list[bytes]]:
    terms: list[tuple[str, Any]] = [("max_cost", -1), ("max_cost", "NaN"), ("max_cost", {"a": 1}), ("min_confidence", 7)]
    terms += [("deadline_ms", -5), ("deadline_ms", 1e300), ("policy", "../policy"), ("policy", 3), ("policy", [1])]
    names = ("timeout", "polcy", "shared_memory_region", "sequence_id", "", "\n" * 5000)
    bodies = (b"", b"null", b"[]", b"3", b'"a"', b'{"inputs": 3}', b'{"inputs": [3]}', b"{'inputs': []}", b'{"inputs": []')
    bad = (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80")
    return {
        "unknown field": [make_good(shape, **{key: 1}) for key in ("input", "__proto__", "model", "x" * 10_000, "\ud800")],
        "unknown parameter": [make_good(shape, parameters={name: value}) for name in names for value in (1, True, "x", 2.5)],
        "bad terms": [make_good(shape, parameters={name: value}) for name, value in terms],
        "unknown output": [make_good(shape, outputs=[{"name": name}]) for name in ("logits", "", "label\0", "x" * 9999)],
        "deep JSON": [make_infer(b'{"inputs":' + word * n) for word in (b"[", b'{"a":') for n in (2_000, 10**5, 10**6)],
        "no JSON": [make_infer(body) for body in (*bodies, b"\0")],
        "invalid UTF-8": [
            *(make_infer(b'{"id": "%s", "inputs": []}' % text) for text in bad),
            *(make_image(text, "text/plain") for text in bad),
        ],
    }


def make_png(width: int, height: int, data: bytes, extra: bytes = b"") -> bytes:
    """Return a grey image, of whatever size its header says."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = write_chunk(b"IHDR", header) + extra + write_chunk(b"IDAT", data) + write_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def write_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def list_files() -> dict[str, list[bytes]]:
    bomb, flat = gzip.compress(bytes(10 << 20), mtime=0), zlib.compress(bytes(30_000 * 100))
    inflated = write_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 << 20))) * 4
    texts = make_png(8, 8, zlib.compress(bytes(72)), inflated)
    no_images = [b"", b"GIF89a", b"\xff\xd8\xff\xe0" + bytes(range(250)) * 2, b"\x89PNG\r\n\x1a\n"]
    no_images += [b"<svg><!ENTITY a SYSTEM 'file:///etc/passwd'></svg>", b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(100)]
    no_images += [make_png(8, 8, b"no zlib"), make_png(0, 0, b"")]
    part = b'--x\r\nContent-Disposition: form-data; name="file"%s\r\n\r\na\r\n'
    forms = [b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../a"\r\n\r\na', b"", b"--y--"]
    forms += [b"--x\r\n" + b"A: b\r\n" * 5000, b"--x\r\nContent-Disposition: \xff\r\n\r\n\r\n--x--\r\n"]
    types = (FORM, "multipart/form-data", FORM.replace("x", "y" * 5000))
    return {
        "gzip bomb": [
            make_request(path, bomb, {"Content-Encoding": coding})
            for path in (INFER, CLASSIFY)
            for coding in ("gzip", "GZIP", "gzip, gzip", "x-gzip")
        ],
        "pixel bomb": [make_image(make_png(side, side, flat)) for side in (30_000, 65_000, 1_000_000)],
        "text bomb in an image": [make_image(texts[: len(texts) - end]) for end in (20, 40, 60)],
        "no image": [make_image(body) for body in no_images],
        "many parts": [make_image(part % name * 3000 + b"--x--\r\n", FORM) for name in (b'; filename="a.png"', b"")],
        "bad form": [make_image(body, kind) for body in forms for kind in types],
    }
