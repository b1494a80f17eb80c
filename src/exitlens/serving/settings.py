"""The settings of a server: its models, how requests share the network, what it watches, and the limits for clients."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_args

from exitlens.errors import InputError
from exitlens.types.settings import (
    COUNT,
    POSITIVE,
    SHARE,
    WHOLE,
    LimitedLoss,
    NumberRule,
    check_choice,
    check_number,
    check_numbers,
)

LONGEST_ID = 128  # characters of a request's id
UNLIMITED = NumberRule("a number of 0 or more", lambda value: value >= 0)
PORT = NumberRule("a whole number from 0 to 65535", lambda value: isinstance(value, int) and 0 <= value < 2**16)


@dataclass(frozen=True)
class Batching:
    """How requests share the network.

    Attributes:
        batch: Samples that run through a stage together.
        max_delay_ms: Milliseconds that a sample waits for company before a later stage, while there is other work.
        max_waiting: Samples that may wait; requests beyond that are refused with 429.
        max_wait_ms: Milliseconds of work that may lie ahead of a new request, estimated from the pace so far; a request that
            would wait longer is refused with 429.
        threads: Threads that each process computes with; 0 means its share of the processors.
    """

    batch: int = 32
    max_delay_ms: float = 20.0
    max_waiting: int = 1024
    max_wait_ms: float = 1000.0
    threads: int = 0

    def __post_init__(self) -> None:
        rules = {"batch": COUNT, "max_waiting": COUNT, "threads": WHOLE, "max_delay_ms": UNLIMITED}
        check_numbers(self, rules | {"max_wait_ms": UNLIMITED})


@dataclass(frozen=True)
class Watching:
    """Checks that the server makes on its own answers.

    Attributes:
        drift: Watch whether samples still look like those of the calibration.
        drift_rate: Samples a second that the drift watch looks at, at most.
        shadow: Share of the samples that also run to the final exit when nothing else waits, to compare the answers.
        unready_on_drift: Report a model as not ready once its samples drift.
    """

    drift: bool = True
    drift_rate: float = 200.0
    shadow: float = 0.0
    unready_on_drift: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, {"shadow": SHARE, "drift_rate": POSITIVE})


@dataclass(frozen=True)
class Adapting:
    """Thresholds that adapt, for requests without terms of their own; see :class:`exitlens.Adaptive`.

    Attributes:
        adapt: Move the thresholds, and let at most this share of the answers differ from the final exit's; 0 leaves the
            thresholds as they are.
        loss: With `adapt`: the loss that it limits, `disagreement`, `divergence` or `binding`.
        audit: With `adapt`: share of the early answers that also run to the final exit as a check, in the long run.
        warm_up: With `adapt`: number of samples at the beginning that share a budget of losses; 0 means enough for early
            answers to begin at once.
        state: With `adapt`: folder that keeps what was learnt over restarts; without one, a restart begins a new promise.
        propose: With `adapt`: leave the thresholds as they are, and only report what it would set.
        processes: Number of processes that share the folder.
    """

    adapt: float = 0.0
    loss: LimitedLoss = "disagreement"
    audit: float = 0.025
    warm_up: int = 0
    state: Path | None = None
    propose: bool = False
    processes: int = 1

    def __post_init__(self) -> None:
        check_numbers(self, {"adapt": SHARE, "audit": SHARE, "warm_up": WHOLE, "processes": COUNT})
        check_choice("loss", self.loss, get_args(LimitedLoss))
        if not self.adapt and (self.state is not None or self.propose):
            raise InputError("state, propose: they need adapt, got adapt=0. Fix: add adapt=0.02, or another limit.")


@dataclass(frozen=True)
class Limits:
    """Limits for clients.

    Attributes:
        max_body_mb: Megabytes (of 2^20 bytes) in the body of a request.
        body_seconds: Seconds within which the body of a request has to arrive.
        request_seconds: Seconds from the head of a request to the start of its answer.
        max_header_bytes: Bytes of the path and all headers of a request together.
        header_seconds: Seconds within which the head of a request has to arrive.
        write_seconds: Seconds without progress after which the connection to a client that reads no answer is dropped.
        max_connections: Connections that may be open at once.
        max_pixels: Pixels of one image.
        max_batch: Samples in one request.
        token: Token that clients have to send as `Authorization: Bearer`; empty means that none is needed.
    """

    max_body_mb: float = 32.0
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
        numbers = {"int": COUNT, "float": POSITIVE}
        check_numbers(self, {each.name: numbers[str(each.type)] for each in fields(self) if each.name != "token"})
        token = self.token
        if not isinstance(token, str) or not (token.isascii() and token.isprintable()) or " " in token:
            raise InputError("token: expected printable ASCII characters without spaces, as headers can carry them")

    @property
    def max_body_bytes(self) -> int:
        """Bytes in the body of a request."""
        return int(self.max_body_mb * 2**20)


@dataclass(frozen=True)
class ServerSettings:
    """All settings of a server.

    Attributes:
        bundles: Directories of bundles by the names of their models; see :func:`name_bundles`.
        host: Address to listen on; 0.0.0.0 means all of them, for other machines.
        port: Port to listen on; 0 means any that is free.
        workers: Processes that share the port, each with the whole network.
        batching: How requests share the network.
        watching: Checks that the server makes on its own answers.
        adapting: Thresholds that adapt.
        limits: Limits for clients.
        reload_seconds: Seconds between checks for a new version of a bundle; 0 means never.
        access_log: Write a line of JSON for every request to standard output.
        tls_cert: Certificate in PEM format; needs `tls_key`.
        tls_key: Private key of the certificate in PEM format.
    """

    bundles: Mapping[str, Path]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    batching: Batching = field(default_factory=Batching)
    watching: Watching = field(default_factory=Watching)
    adapting: Adapting = field(default_factory=Adapting)
    limits: Limits = field(default_factory=Limits)
    reload_seconds: float = 2.0
    access_log: bool = True
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        if not self.bundles:
            raise InputError("bundles: expected at least one, got none. Fix: name the directory of a bundle.")
        check_number("workers", self.workers, COUNT)
        check_number("port", self.port, PORT)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("tls_cert, tls_key: expected both or neither, got one. Fix: give the certificate and its key.")
        for name, path in (("tls_cert", self.tls_cert), ("tls_key", self.tls_key)):
            if path is not None and not path.is_file():
                raise InputError(f"{name}: expected a file, got {path}, which does not exist or is a directory")


def name_bundles(given: Sequence[str]) -> dict[str, Path]:
    """Return directories by the names of their models, from NAME=DIR, or from DIR, whose last part is then the name.

    Everything before the first ``=`` is the name, so a directory whose path contains that sign needs a name.
    """
    bundles: dict[str, Path] = {}
    for text in given:
        name, directory = text.split("=", 1) if "=" in text else ("", text)
        if not directory:
            raise InputError(f"bundle: expected DIR or NAME=DIR, got {text!r}")
        name = name or Path(directory).resolve().name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InputError(
                f"bundle: expected a name of letters, digits, '.', '_' and '-', got {name!r}. Fix: name it with NAME=DIR."
            )
        if name in bundles:
            raise InputError(f"bundle: two models are called {name}. Fix: give one of them another name with NAME=DIR.")
        bundles[name] = Path(directory)
    return bundles
