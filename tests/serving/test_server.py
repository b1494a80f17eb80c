"""The server in this process and as a command: it answers, drains on SIGTERM, and replaces a worker that was killed."""

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
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import uvicorn

import exitlens as xl
from exitlens.serving.server import make_config, serve
from exitlens.serving.settings import Limits, ServerSettings
from tests.serving.conftest import read_statuses, save_small, wait_until


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("served") / "b")


@pytest.fixture(autouse=True)
def _process_stays():
    before = sys.getswitchinterval()
    loggers = [logging.getLogger(name) for name in ("uvicorn", "exitlens.serving")]
    handlers = [list(logger.handlers) for logger in loggers]
    yield
    sys.setswitchinterval(before)
    for logger, kept in zip(loggers, handlers, strict=True):
        logger.handlers[:] = kept


@pytest.mark.slow
def test_one_process_serves_the_last_connection_that_is_allowed(bundle, monkeypatch):
    servers = []

    class Server(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(uvicorn, "Server", Server)
    port = find_port()
    settings = ServerSettings({"b": bundle}, port=port, limits=Limits(max_connections=1), access_log=False)
    thread = threading.Thread(target=serve, args=(settings,), daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            wait_until_ready(client, thread.is_alive)
            for _ in range(2):
                assert client.get("/v2/health/ready").status_code == 200
    finally:
        servers[0].should_exit = True
        thread.join(10)


def find_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_until_ready(client, is_alive):
    def is_ready():
        assert is_alive()
        with suppress(httpx.TransportError):
            return client.get("/v2/health/ready").status_code == 200

    wait_until(is_ready, 120)


def test_logging_that_others_set_up_stays(tmp_path, capsys):
    other, closed = logging.StreamHandler(io.StringIO()), []
    logging.getLogger("mine").addHandler(other)
    other.close = lambda: closed.append(True)
    config = pickle.loads(pickle.dumps(make_config(ServerSettings({"a": tmp_path}))))  # as workers get it
    with pytest.raises(xl.errors.BundleError, match="bundle"):
        config.load()
    assert not closed
    logging.getLogger("exitlens.serving").warning("seen once")
    assert capsys.readouterr().err.count("seen once") == 1
    logging.getLogger("mine").removeHandler(other)


BODY = {"inputs": [{"name": "inputs", "shape": [1, 3, 28, 28], "datatype": "FP32", "data": [0.0] * (3 * 28 * 28)}]}


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_sigterm_ends_all(bundle, tmp_path):
    """What it has learnt stays, too: the next one goes on in its place, with what was open counted as lost."""
    port = find_port()
    command = [sys.executable, "-m", "exitlens", "serve", "--bundle", str(bundle), "--port", str(port), "--workers", "2"]
    command += ["--adapt", "0.3", "--audit", "0.3", "--warm-up", "2000", "--state", str(tmp_path), "--propose"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        try:
            wait_until_ready(client, lambda: process.poll() is None)
            workers = list_children(process.pid)
            assert all(client.post("/v2/models/b/infer", json=BODY).status_code == 200 for _ in range(30))
            before = read_statuses(tmp_path)
            assert sum(status["taken"] for status in before.values()) > 0
            os.kill(workers[0], signal.SIGKILL)
            answered, until = 0, time.monotonic() + 60
            while time.monotonic() < until and (answered < 40 or len(set(list_children(process.pid)) - {*workers}) < 1):
                try:  # a client that tries again
                    answered += client.post("/v2/models/b/infer", json=BODY).status_code == 200
                except httpx.TransportError:
                    continue
            assert answered >= 40
            assert set(list_children(process.pid)) - {*workers}
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    assert json.loads(output.splitlines()[-1])["path"] == "/v2/models/b/infer"
    assert "Traceback" not in errors
    after = read_statuses(tmp_path)
    assert set(after) <= {"0.jsonl", "1.jsonl"}
    for name, status in before.items():
        assert after[name]["taken"] >= status["taken"]
        assert after[name]["lost"] >= status["lost"]


def list_children(pid):
    """Return the worker processes, without multiprocessing's resource tracker."""
    children = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and "spawn_main" in (path / "cmdline").read_text():
                children.append(int(path.name))
    return children
