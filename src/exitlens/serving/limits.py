"""How much a client may ask of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from exitlens.errors import InputError


@dataclass(frozen=True)
class Limits:
    """How much a client may ask of the server.

    Attributes:
        max_body_bytes: of one request. body_seconds: within which its body must have come.
        request_seconds: from the head of a request to the start of its answer.
        max_header_bytes: of all headers of a request. header_seconds: within which they must have come.
        write_seconds: for which a client may take none of its answer before the connection is dropped.
        max_connections: open at once.
        max_pixels: of one image. max_batch: samples in one request.
        token: that clients must send as ``Authorization: Bearer``; empty: none.

    Raises:
        InputError: for a number that is not positive, or a token that no header can carry.
    """

    max_body_bytes: int = 32 << 20
    body_seconds: float = 10.0
    request_seconds: float = 30.0
    max_header_bytes: int = 32 << 10
    header_seconds: float = 10.0
    write_seconds: float = 30.0
    max_connections: int = 1000
    max_pixels: int = 50_000_000
    max_batch: int = 256
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "token":
                if not isinstance(value, str) or not (value.isascii() and value.isprintable()) or " " in value:
                    raise InputError("token: expected printable ASCII characters without spaces, as headers can carry them")
            elif one.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{one.name}: expected a whole number of 1 or more, got {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{one.name}: expected a positive number, got {value!r}")
