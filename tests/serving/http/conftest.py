"""A server with the tiny network on this machine's own network."""

from contextlib import contextmanager

import httpx
import pytest
from PIL import Image

from exitlens.serving.http.application import make_app
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Limits
from tests.hostile import saved
from tests.serving.http.sockets import serve


@contextmanager
def open_client(app, **headers):
    """Start a server that runs the app, and yield a client of it."""
    with serve(app, lifespan="on") as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers) as client:
        client.port = port
        yield client


@pytest.fixture
def client(model):
    with open_client(make_app(Repository({"tiny": model}), Limits(max_batch=40))) as http_client:
        yield http_client


@pytest.fixture
def picture():
    return saved("PNG", Image.new("RGB", (24, 20), (200, 30, 90)))
