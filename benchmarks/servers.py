"""Start servers as processes: ours, and the plain backbone behind Ray Serve with dynamic batching.

A request to the latter is one sample's numbers as float32; the answer is ``{"label": 3}``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import psutil

from benchmarks.harness import ROOT
from benchmarks.load import INFER, Array

STARTING, STOPPING = 90.0, 20.0  # seconds at most
QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
PYTHON_PROXY = {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}  # what takes the requests in front of Ray Serve's replicas
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "{folder}/haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "{folder}/admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "{folder}",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "{folder}/server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "{folder}/metrics.sock",
}
T = TypeVar("T")
Words = Mapping[str, Any]  # settings by name
NONE: Words = {}


def list_family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; none once it has ended."""
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def read_family(pid: int, read: Callable[[psutil.Process], T]) -> list[T]:
    """Read something of a process and of each of its descendants that still runs."""
    values = []
    for process in list_family(pid):
        with contextlib.suppress(psutil.Error):
            values.append(read(process))
    return values


@dataclass(frozen=True)
class Server:
    port: int
    path: str  # where requests go
    process: subprocess.Popen[bytes] = field(repr=False)  # the first of its processes

    def read(self, read: Callable[[psutil.Process], T]) -> list[T]:
        return read_family(self.process.pid, read)

    def read_cpu_seconds(self) -> float:
        return sum(self.read(lambda process: sum(process.cpu_times()[:2])))

    def read_memory(self) -> float:
        """Return the megabytes that its processes hold now, without counting twice what they share."""
        return sum(self.read(lambda process: process.memory_full_info().pss)) / (1 << 20)

    def find_processes(self, word: str) -> list[int]:
        return sorted(
            pid for pid, line in self.read(lambda process: (process.pid, " ".join(process.cmdline()))) if word in line
        )

    def wait_until_idle(self, seconds: float = 1.0, most: float = 60.0) -> None:
        """Wait until its processes have computed next to nothing for ``seconds``, which means that all are ready."""
        end = time.monotonic() + most
        while time.monotonic() < end:
            before = self.read_cpu_seconds()
            time.sleep(seconds)
            if self.read_cpu_seconds() - before < 0.05 * seconds:
                return
        raise RuntimeError(f"the server was not idle within {most:.0f} s")

    def stop(self) -> None:
        """Ask it to end, and end what is left of its processes after that."""
        processes = list_family(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOPPING)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        psutil.wait_procs(processes, STOPPING)


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/octet-stream"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextlib.contextmanager
def start_server(
    serve: str, settings: Words, *, path: str, probe: bytes | None, processors: Sequence[int] = (), environment: Words = NONE
) -> Iterator[Server]:
    """Call ``serve`` (``module:function`` of this package) in a new process with the settings and a ``port``, until the block ends.

    ``path`` answers ``probe`` (``None``: a GET) with 200 once it is ready. In values of ``environment`` ``{folder}`` is a temporary folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    given = json.dumps({"serve": serve, "processors": list(processors), "settings": {**settings, "port": port}})
    with tempfile.TemporaryFile() as output, tempfile.TemporaryDirectory() as folder:
        variables = {name: value.format(folder=folder) for name, value in environment.items()}
        modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        env = {**os.environ, "PYTHONPATH": modules, "PYTHONWARNINGS": "ignore", **variables}
        command = [sys.executable, "-m", "benchmarks.servers", given]
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
        server = Server(port, path, process)
        try:
            wait_until_ready(server, probe)
            yield server
        except RuntimeError as error:
            output.seek(0)
            raise RuntimeError(f"{error}: {output.read().decode(errors='replace')[-3000:]}") from error
        finally:
            server.stop()


def wait_until_ready(server: Server, probe: bytes | None) -> None:
    end = time.monotonic() + STARTING
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if ask(server.port, server.path, probe)[0] == 200:
                return
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}")
        time.sleep(0.1)
    raise RuntimeError(f"the server was not ready within {STARTING:.0f} s")


def start_ours(
    bundle: Path, sample: Array, *, processors: Sequence[int] = (), batching: Words = NONE, limits: Words = NONE, **rest: Any
) -> AbstractContextManager[Server]:
    """Start ``exitlens serve`` with one model named "net", without an access log, as the other servers have none."""
    settings = {"bundles": {"net": str(bundle)}, "batching": {"threads": 1, **batching}, "limits": dict(limits)}
    settings["rest"] = {"access_log": False, "reload_seconds": 0.0, **rest}
    probe = make_json_probe(sample)
    return start_server("servers:serve_ours", settings, path=INFER, probe=probe, processors=processors)


def make_json_probe(sample: Array) -> bytes:
    tensor = {"name": "inputs", "datatype": "FP32", "shape": [1, *sample.shape], "data": sample.reshape(-1).tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def serve_ours(settings: Mapping[str, Any]) -> None:
    from exitlens.serving.server import serve
    from exitlens.serving.settings import Batching, Limits, ServerSettings

    bundles = {name: Path(path) for name, path in settings["bundles"].items()}
    parts = {"batching": Batching(**settings["batching"]), "limits": Limits(**settings["limits"])}
    serve(ServerSettings(bundles, port=settings["port"], **settings["rest"], **parts))


def start_ray(onnx: Path, shape: Sequence[int], processors: Sequence[int] = ()) -> AbstractContextManager[Server]:
    """Start Ray Serve with the plain backbone: HAProxy and one replica with ``@serve.batch``."""
    settings = {"onnx": str(onnx), "shape": list(shape), "max_batch": 16, "delay": 0.002}
    where: dict[str, Any] = {"path": "/", "probe": bytes(4 * math.prod(shape)), "processors": processors}
    return start_server("rivals:serve_by_ray", settings, environment=QUIET_RAY | HAPROXY, **where)


def start_replicas(bundle: Path, sample: Array) -> AbstractContextManager[Server]:
    """Start Ray Serve with two replicas of our own application."""
    arguments = {"bundle": f"net={bundle.resolve()}", "replicas": 2, "cpus": 1, "reload_seconds": 0.0}
    where: dict[str, Any] = {"path": INFER, "probe": make_json_probe(sample), "environment": QUIET_RAY | PYTHON_PROXY}
    return start_server("rivals:serve_by_ray", {"arguments": arguments}, **where)


def main() -> None:
    given = json.loads(sys.argv[1])
    if given["processors"]:
        os.sched_setaffinity(0, given["processors"])
    module, _, function = given["serve"].partition(":")
    with contextlib.suppress(KeyboardInterrupt):
        getattr(import_module(module if "." in module else f"benchmarks.{module}"), function)(given["settings"])


if __name__ == "__main__":
    main()
