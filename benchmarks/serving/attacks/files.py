"""Requests with files that are no images, or far too large ones."""

from __future__ import annotations

import gzip
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Sequence

from benchmarks.serving.attacks.making import CLASSIFY, INFER, kind
from benchmarks.serving.load.requests import make_request

PNG = b"\x89PNG\r\n\x1a\n"
FORM = "multipart/form-data; boundary=x"


@kind("gzip bomb")
def _compress(rng: random.Random, _: Sequence[int]) -> bytes:
    body = gzip.compress(bytes(10 << 20), mtime=0)
    return make_request(
        rng.choice([INFER, CLASSIFY]), body, {"Content-Encoding": rng.choice(["gzip", "GZIP", "gzip, gzip", "x-gzip"])}
    )


def make_png(width: int, height: int, data: bytes, more: bytes = b"") -> bytes:
    """A grey image, of whatever size its header says."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return PNG + write_chunk(b"IHDR", header) + more + write_chunk(b"IDAT", data) + write_chunk(b"IEND", b"")


def write_chunk(name: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@kind("pixel bomb")
def _explode(rng: random.Random, _: Sequence[int]) -> bytes:
    side = rng.choice([30_000, 65_000, 1_000_000])
    return make_request(CLASSIFY, make_png(side, side, zlib.compress(bytes(30_000 * 100))), {"Content-Type": "image/png"})


@kind("zip bomb")
def _zip(rng: random.Random, _: Sequence[int]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("image.png"), bytes(10 << 20))
    return make_request(CLASSIFY, file.getvalue(), {"Content-Type": rng.choice(["image/png", "application/zip"])})


@kind("text bomb in an image")
def _inflate_text(rng: random.Random, _: Sequence[int]) -> bytes:
    content = rng.choice([b"Comment\0\0", b"Title\0\0"]) + zlib.compress(bytes(64 << 20))
    body = make_png(8, 8, zlib.compress(bytes(72)), write_chunk(b"zTXt", content) * 4)
    return make_request(CLASSIFY, body[: rng.randrange(len(body) - 60, len(body) - 20)], {"Content-Type": "image/png"})


@kind("no image")
def _draw_nothing(rng: random.Random, _: Sequence[int]) -> bytes:
    bodies = [
        b"",
        b"GIF89a",
        b"\xff\xd8\xff\xe0" + rng.randbytes(500),
        b"<svg><!ENTITY a SYSTEM 'file:///etc/passwd'></svg>",
    ]
    bodies += [make_png(8, 8, b"no zlib"), make_png(0, 0, b""), PNG, b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(100)]
    return make_request(CLASSIFY, rng.choice(bodies), {"Content-Type": "image/png"})


@kind("many parts")
def _scatter(rng: random.Random, _: Sequence[int]) -> bytes:
    file = rng.choice([b'; filename="a.png"', b""])
    part = b'--x\r\nContent-Disposition: form-data; name="file"%s\r\n\r\na\r\n' % file
    return make_request(CLASSIFY, part * rng.randrange(2000, 5000) + b"--x--\r\n", {"Content-Type": FORM})


@kind("bad form")
def _deform(rng: random.Random, _: Sequence[int]) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../a"\r\n\r\na'
    bodies = [part, b"", b"--y--", b"--x\r\n" + b"A: b\r\n" * 5000, b"--x\r\nContent-Disposition: \xff\r\n\r\n\r\n--x--\r\n"]
    kinds = [FORM, "multipart/form-data", FORM.replace("x", "y" * 5000)]
    return make_request(CLASSIFY, rng.choice(bodies), {"Content-Type": rng.choice(kinds)})
