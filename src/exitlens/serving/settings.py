"""What a server is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from exitlens.errors import InputError
from exitlens.serving.batching.batcher import Batching
from exitlens.serving.limits import Limits
from exitlens.serving.watching import Watching


@dataclass(frozen=True)
class Settings:
    """Of a server.

    Attributes:
        bundles: directories by the names of their models.
        host, port: where it listens; port 0: any that is free.
        workers: processes, each with the whole network.
        batching, watching, limits: see there.
        reload_seconds: how often bundles are looked at for a new version; 0: never.
        access_log: a line of JSON for every request on standard output.
        tls_cert, tls_key: files in PEM; both or none.
    """

    bundles: Mapping[str, Path]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    batching: Batching = field(default_factory=Batching)
    watching: Watching = field(default_factory=Watching)
    limits: Limits = field(default_factory=Limits)
    reload_seconds: float = 2.0
    access_log: bool = True
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        if not self.bundles:
            raise InputError("bundles: expected one or more")
        if not isinstance(self.workers, int) or self.workers < 1:
            raise InputError(f"workers: expected a number of 1 or more, got {self.workers!r}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("tls_cert, tls_key: expected both or none")
        for path in (self.tls_cert, self.tls_key):
            if path is not None and not path.is_file():
                raise InputError(f"tls_cert, tls_key: {path} is no file")
