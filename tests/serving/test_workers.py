"""uvicorn's configuration of one process: it opens the models, and lets in as many connections as it says."""

import asyncio
import io
import logging
import socket
import sys
import threading

import httpx
import pytest
import uvicorn

import exitlens as xl
from exitlens.serving.server import make_config
from exitlens.serving.settings import Limits, ServerSettings
from exitlens.serving.workers import WorkerConfig
from tests.serving.conftest import save_small


@pytest.fixture(autouse=True)
def _switches_stay():
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def test_the_last_connection_that_is_allowed_is_served(tmp_path):
    bundle = save_small(tmp_path / "b")
    settings = ServerSettings({"b": bundle}, limits=Limits(max_connections=1), access_log=False)
    server = uvicorn.Server(make_config(settings))
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


def test_a_bundle_that_cannot_be_served_is_told_at_once(tmp_path):
    with pytest.raises(xl.BundleError, match="bundle"):
        make_config(ServerSettings({"b": tmp_path})).load()


def test_what_others_set_up_of_logging_stays(tmp_path, capsys):
    stream = io.StringIO()
    other = logging.StreamHandler(stream)
    logging.getLogger("mine").addHandler(other)
    closed = []
    other.close = lambda: closed.append(True)
    config = WorkerConfig(ServerSettings({"a": tmp_path}))
    with pytest.raises(xl.BundleError):
        config.load()
    assert not closed
    logging.getLogger("exitlens.serving").warning("seen once")
    assert capsys.readouterr().err.count("seen once") == 1
    logging.getLogger("mine").removeHandler(other)
