"""Files that no page should be given, and pictures to make them of."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image


def noise(value: int = 90) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, value, (48, 64, 3)).astype(np.uint8))


def png(size=(40, 40), mode="RGB") -> bytes:
    return saved("PNG", Image.new(mode, size))


def saved(form: str, image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header says 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def hostile_files() -> dict[str, bytes]:
    """200 files that no page should be given."""
    rng = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("P", (30, 30), i) for i in range(3)]
    good = saved("JPEG", Image.new("RGB", (60, 40), "red"))
    files = {
        "empty.png": b"",
        "bomb.png": bomb(),
        "script.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "script.png": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "page.png": b"<html><script>alert(1)</script></html>",
        "polyglot.jpg": good + b"<script>alert(1)</script>PK\x03\x04",
        "polyglot.gif": b"GIF89a/*" + bytes(40) + b"*/=alert(1)",
        "cmyk.jpg": saved("JPEG", Image.new("CMYK", (40, 40))),
        "deep.png": saved("PNG", Image.fromarray(np.full((40, 40), 40_000, np.uint16))),
        "float.tiff": saved("TIFF", Image.new("F", (20, 20))),
        "moving.gif": saved("GIF", frames[0], save_all=True, append_images=frames[1:]),
        "turned.jpg": saved("JPEG", Image.new("RGB", (60, 40), "red"), exif=exif),
        "postscript.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n",
        "thin.png": png((1, 5000)),
        "one.png": png((1, 1)),
        "alpha.png": png(mode="RGBA"),
        "bits.png": png(mode="1"),
    }
    sources = [good, png(), files["moving.gif"], *(saved(form, noise()) for form in ("WEBP", "BMP", "TIFF"))]
    while len(files) < 200:  # cut off, or with bytes changed
        data = bytearray(rng.choice(sources))
        if rng.random() < 0.5:
            data = data[: rng.randrange(len(data))]
        for _ in range(rng.randrange(6)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        files[f"{len(files)}.img"] = bytes(data)
    return files
