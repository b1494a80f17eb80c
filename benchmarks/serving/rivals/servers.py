"""Servers as processes: started on a free port, waited for, and stopped with everything that they started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.serving.load.trials import make_environment

STARTING, STOPPING = 90.0, 20.0  # seconds at most


@dataclass(frozen=True)
class Server:
    """One that runs.

    Attributes:
        path: where requests go. process: the first of its processes.
    """

    port: int
    path: str
    process: subprocess.Popen[bytes] = field(repr=False)

    def list_processes(self) -> list[int]:
        """It, and all that it started."""
        children: dict[int, list[int]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
        found, left = list[int](), [self.process.pid]
        while left:
            found.append(left.pop())
            left += children.get(found[-1], [])
        return found

    def read_cpu_seconds(self) -> float:
        """Processor time of all its processes until now."""
        ticks = 0
        for one in self.list_processes():
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def find_port() -> int:
    """One that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def is_ready(url: str, body: bytes) -> bool:
    """Whether it answers with 200."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            ready: bool = answer.status == 200
    except (OSError, urllib.error.URLError):
        return False
    return ready


@contextlib.contextmanager
def start_server(
    serve: str,
    settings: Mapping[str, Any],
    *,
    path: str,
    probe: bytes,
    processors: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Calls a function in a new process, with the settings and a ``port``, until the block ends.

    Args:
        serve: ``module:function``.
        path: where requests go. probe: a body to which it answers with 200 when it takes requests.
        processors: that it and all that it starts may use; empty: all.
        environment: further variables; in them ``{port}``, and ``{folder}``, which goes away afterwards.
    """
    port = find_port()
    given = json.dumps({"serve": serve, "processors": list(processors), "settings": {**settings, "port": port}})
    with tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory() as folder:
        more = {name: value.format(folder=folder, port=port) for name, value in (environment or {}).items()}
        env = make_environment(PYTHONWARNINGS="ignore", **more)
        words = [sys.executable, "-m", "benchmarks.serving.rivals.servers", given]
        process = subprocess.Popen(words, env=env, stdout=said, stderr=said, start_new_session=True)
        server = Server(port, path, process)
        try:
            _wait(process, f"http://127.0.0.1:{port}{path}", probe)
            yield server
        except RuntimeError as error:
            said.seek(0)
            raise RuntimeError(f"{error}: {said.read().decode(errors='replace')[-3000:]}") from error
        finally:
            stop(server)


def _wait(process: subprocess.Popen[bytes], url: str, probe: bytes) -> None:
    end = time.monotonic() + STARTING
    while not is_ready(url, probe):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        if time.monotonic() > end:
            raise RuntimeError(f"the server was not ready within {STARTING:.0f} s")
        time.sleep(0.1)


def stop(server: Server) -> None:
    """Asks it to end, and ends what is left of its processes after that."""
    everyone = server.list_processes()
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(STOPPING)
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()
    end = time.monotonic() + STOPPING
    while (left := list(filter(is_running, everyone))) and time.monotonic() < end:
        for one in left:
            with contextlib.suppress(OSError):
                os.kill(one, signal.SIGKILL)
        time.sleep(0.02)


def is_running(process: int) -> bool:
    """Whether it is there, and not only its entry in the table."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main() -> None:
    """In the server's process."""
    given = json.loads(sys.argv[1])
    if given["processors"]:
        os.sched_setaffinity(0, given["processors"])
    module, _, function = given["serve"].partition(":")
    with contextlib.suppress(KeyboardInterrupt):
        getattr(import_module(module), function)(given["settings"])


if __name__ == "__main__":
    main()
