"""The server in this process and as a command: it answers, drains on SIGTERM, and replaces a worker that was killed."""

import asyncio
import io
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn

import exitlens as xl
from exitlens.serving.server import make_config
from exitlens.serving.settings import Limits, ServerSettings
from tests.serving.conftest import save_small


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("served") / "b")


@pytest.fixture(autouse=True)
def _switches_stay():
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_the_last_connection_that_is_allowed_is_served(bundle):
    settings = ServerSettings({"b": bundle}, limits=Limits(max_connections=1), access_log=False)
    server = uvicorn.Server(pickle.loads(pickle.dumps(make_config(settings))))  # as workers get it
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=10) as client:
                for _ in range(3):
                    assert client.get("/v2/health/ready").status_code == 200
        finally:
            server.should_exit = True
            thread.join(10)


def test_logging_that_others_set_up_stays(tmp_path, capsys):
    other, closed = logging.StreamHandler(io.StringIO()), []
    logging.getLogger("mine").addHandler(other)
    other.close = lambda: closed.append(True)
    with pytest.raises(xl.errors.BundleError, match="bundle"):
        make_config(ServerSettings({"a": tmp_path})).load()
    assert not closed
    logging.getLogger("exitlens.serving").warning("seen once")
    assert capsys.readouterr().err.count("seen once") == 1
    logging.getLogger("mine").removeHandler(other)


@contextmanager
def start(bundle, *options):
    """Start the command in a process of its own; yields a client and the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "exitlens", "serve", "--bundle", str(bundle), "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                until, is_ready = time.monotonic() + 60, False
                while not is_ready:
                    assert process.poll() is None, process.stderr.read()
                    assert time.monotonic() < until, "not ready within a minute"
                    time.sleep(0.1)
                    with suppress(httpx.TransportError):
                        is_ready = client.get("/v2/health/ready").status_code == 200
                yield client, process
        finally:
            process.kill()


BODY = {"inputs": [{"name": "inputs", "shape": [1, 3, 28, 28], "datatype": "FP32", "data": [0.0] * (3 * 28 * 28)}]}


@pytest.mark.slow
def test_one_process(bundle):
    with start(bundle) as (client, process):
        found = client.post("/v2/models/b/infer", json=BODY).json()
        assert found["outputs"][0]["name"] == "label"
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
        assert process.returncode in (0, -signal.SIGTERM)
        assert json.loads(output.splitlines()[-1])["path"] == "/v2/models/b/infer"
        assert "Traceback" not in errors


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(bundle):
    with start(bundle, "--workers", "2", "--no-access-log") as (client, process):
        workers = list_children(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        answered, until = 0, time.monotonic() + 60
        while time.monotonic() < until and (answered < 20 or len(set(list_children(process.pid)) - {*workers}) < 1):
            try:  # a client that tries again
                answered += client.post("/v2/models/b/infer", json=BODY).status_code == 200
            except httpx.TransportError:
                continue
        assert answered >= 20
        assert set(list_children(process.pid)) - {*workers}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)


def list_children(pid):
    """Return the worker processes, without multiprocessing's resource tracker."""
    children = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and "spawn_main" in (path / "cmdline").read_text():
                children.append(int(path.name))
    return children
