"""Ray Serve: its arguments, and the same answers behind its proxy, under load, and when a replica is killed."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import exitlens as xl
from exitlens.serving.ray import Replicas, app, read_arguments
from exitlens.serving.settings import Adapting, Batching, Limits, Watching
from tests.serving.conftest import read_statuses, save_small, wait_until

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "serving" / "serve.yaml"


def test_arguments_as_text_and_as_values():
    text = {"bundle": "a=x,y", "cpus": "2", "batch": "8", "max_wait_ms": "500", "drift": "False", "max_batch": "9"}
    values = {"bundle": "a=x,y", "cpus": 2, "batch": 8, "max_wait_ms": 500, "drift": False, "max_batch": 9.0}
    assert read_arguments(text) == read_arguments(values)
    replicas, *others = read_arguments(text)
    assert replicas == Replicas("a=x,y", 2)
    batching = Batching(batch=8, max_wait_ms=500.0, threads=2)
    assert others == [batching, Watching(drift=False), Adapting(processes=8), Limits(max_batch=9)]
    assert read_arguments({"bundle": "x", "cpus": 4, "threads": 1})[1].threads == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "bundle: expected DIR or NAME=DIR"),
        ({"bundle": "a,,b"}, "expected DIR or NAME=DIR, got ''"),
        ({"bundle": "x", "bach": 3}, "got 'bach'.*batch"),
        ({"bundle": "x", "max_connections": 3}, "got 'max_connections'"),  # Ray's proxy has its own
        ({"bundle": "x", "cpus": "many"}, "cpus: expected int, got 'many'"),
        ({"bundle": "x", "cpus": 0.5}, "cpus: expected int, got 0.5"),
        ({"bundle": "x", "cpus": 0}, "cpus: expected a whole number of 1 or more"),
        ({"bundle": "x", "cpus": True}, "cpus: expected int, got True"),
        ({"bundle": 3}, "bundle: expected str, got 3"),
        ({"bundle": "x", "drift": "no"}, "drift: expected bool, got 'no'"),
        ({"bundle": "x", "batch": float("inf")}, "batch: expected int, got inf"),
        ({"bundle": "x", "max_wait_ms": None}, "max_wait_ms: expected float, got None"),
        ({"bundle": "x", "replicas": -1}, "replicas: expected a whole number of 0 or more"),
        ({"bundle": "x", "min_replicas": 5}, "min_replicas: expected max_replicas"),
        ({"bundle": "x", "reload_seconds": "nan"}, "reload_seconds: expected a number of 0 or more"),
        ({"bundle": "x", "max_batch": 0}, "max_batch: expected a whole number"),
        ({"bundle": "x", "shadow": 2}, "shadow"),
        ({"bundle": "x", "adapt": 0.02}, "state: expected a folder that all replicas reach"),
        ({"bundle": "x", "adapt": 0.02, "state": ""}, "state: expected a folder that all replicas reach"),
        ({"bundle": "x", "state": "there"}, "state, propose: they need adapt"),
        ({"bundle": "x", "adapt": 0.02, "state": 3}, "state: expected PosixPath|Path, got 3"),
    ],
)
def test_arguments_that_are_refused(given, words):
    with pytest.raises(xl.errors.InputError, match=words):
        read_arguments(given)


def test_the_example_is_accepted():
    application = yaml.safe_load(EXAMPLE.read_text())["applications"][0]
    replicas, batching, *_, limits = read_arguments(application["args"])
    (deployment,) = application["deployments"]
    assert deployment["max_ongoing_requests"] >= 2 * batching.batch
    assert deployment["graceful_shutdown_timeout_s"] > limits.request_seconds
    assert yaml.safe_load(EXAMPLE.read_text())["http_options"]["request_timeout_s"] > limits.request_seconds
    assert replicas.bundle == "/models/demo"


DRIVER = """
import json, sys
import ray, yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema
from exitlens.serving.ray import app
(application,) = ServeDeploySchema(**yaml.safe_load(open(sys.argv[2]))).applications
assert application.import_path == "exitlens.serving.ray:app"
app(application.args)
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
for line in sys.stdin:
    name, arguments = json.loads(line)
    serve.run(app(arguments), name=name, route_prefix="/")
    print("ready", flush=True)
serve.shutdown()
ray.shutdown()
"""  # in a process of its own: warnings are errors here, and a local Ray stays for as long as its process


class Local:
    """A local Ray, and a client of what it serves."""

    def __init__(self, process, client):
        self.process, self.client, self.name = process, client, f"tested-{uuid.uuid4().hex[:8]}"

    def deploy(self, **arguments):
        self.process.stdin.write(json.dumps([self.name, arguments]) + "\n")
        self.process.stdin.flush()
        while (line := self.process.stdout.readline()) != "ready\n":  # Ray says things there, too
            assert line, "it failed; standard error says why"

    def list_replicas(self):
        replicas = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if f"ServeReplica:{self.name}:" in (path / "cmdline").read_text():
                    replicas.append(int(path.name))
        return replicas

    def wait_for_replicas(self, count, without):
        wait_until(lambda: len(replicas := self.list_replicas()) >= count and without not in replicas, 90)

    def infer(self, images):
        tensor = {"name": "inputs", "shape": list(images.shape), "datatype": "FP32", "data": images.flatten().tolist()}
        return self.client.post("/v2/models/x/infer", json={"inputs": [tensor]}, headers={"x-request-id": "mine"})


@pytest.fixture
def local():
    pytest.importorskip("ray.serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", DRIVER, str(port), str(EXAMPLE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield Local(process, client)
        process.stdin.close()


@pytest.mark.long
def test_replicas_from_the_first_to_the_last(local, tmp_path):
    """One Ray and few deployments serve all checks, because each takes seconds."""
    bundle = save_small(tmp_path / "b", 0.35, 0.36)
    common = {"bundle": f"x={bundle}", "max_wait_ms": 600_000, "max_waiting": 10_000, "request_seconds": 120}
    local.deploy(**common, replicas=1, batch=1)  # one sample at a time, so that much is left to do at any time
    (first,) = local.list_replicas()
    check_answers(local, *xl.load(bundle))
    check_that_open_requests_are_answered(local, first, lambda: local.deploy(**common, replicas=2, batch=2))
    local.wait_for_replicas(2, first)
    check_that_retries_lose_nothing(local, *xl.load(bundle))
    local.deploy(bundle=f"x={bundle}", replicas=1, batch=1, max_waiting=4, max_wait_ms=10)
    check_that_requests_without_room_are_refused(local)
    local.deploy(bundle=f"x={bundle}", replicas=2, adapt=0.3, audit=0.3, warm_up=2000, state=str(tmp_path / "state"))
    check_that_what_was_learnt_outlives_a_replica(local, tmp_path / "state")


def check_that_what_was_learnt_outlives_a_replica(local, folder):
    images = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    assert all(local.infer(images).status_code == 200 for _ in range(30))
    before = read_statuses(folder)
    assert sum(status["taken"] for status in before.values()) > 0
    (killed, _), until = local.list_replicas(), time.monotonic() + 60
    os.kill(killed, signal.SIGKILL)
    local.wait_for_replicas(2, killed)
    answered = 0
    while answered < 30 and time.monotonic() < until:
        with suppress(httpx.TransportError):
            answered += local.infer(images).status_code == 200
    after = read_statuses(folder)
    assert answered == 30
    assert set(after) <= {"0.jsonl", "1.jsonl"}  # the new replica took the place of the one that was killed
    assert all(after[name]["taken"] >= status["taken"] for name, status in before.items())


def read_output(response, name):
    return next(output["data"] for output in response.json()["outputs"] if output["name"] == name)


def check_answers(local, net, policy):
    """The same routes and answers as without Ray's proxy."""
    images, client = torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1)), local.client
    expected = xl.predict(net, images, policy)
    assert client.get("/v2/health/ready").json() == {"ready": True}
    found = local.infer(images)
    assert found.status_code == 200, found.text
    assert read_output(found, "label") == expected.labels.tolist()
    assert read_output(found, "exit") == expected.exits.tolist()
    assert found.headers.get_list("x-request-id") == ["mine"]
    assert len(client.get("/models").headers.get_list("x-request-id")) == 1
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(f"127.0.0.1:{client.base_url.port}") as triton:
        given = http.InferInput("inputs", list(images.shape), "FP32")
        given.set_data_from_numpy(images.numpy(), binary_data=True)
        assert np.allclose(triton.infer("x", [given]).as_numpy("probabilities"), expected.probabilities, atol=1e-5)
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 90)).save(file, "PNG")
    answer = client.post("/classify", content=file.getvalue(), headers={"content-type": "image/png"}).json()
    pixels = torch.tensor([200, 30, 90], dtype=torch.uint8)[:, None, None].expand(3, 28, 28)
    pred = xl.predict(net, net.info.preprocess.normalise(pixels[None]), policy)
    assert (answer["label"], answer["exit"]) == (pred.labels.item(), pred.exits.item())
    assert client.post("/explain", content=file.getvalue()).headers["content-type"] == "image/png"
    assert client.post("/v2/models/y/infer", json={}).status_code == 404
    assert client.post("/v2/models/x/infer", content=b"{").status_code == 400
    assert 'exitlens_answers_total{exit="' in client.get("/metrics").text


def check_that_open_requests_are_answered(local, before, deploy):
    """A replica ends after it has answered."""
    images, over = torch.randn(8, 3, 28, 28), threading.Event()

    def ask():
        found = list[int]()
        while not over.is_set():
            found.append(local.infer(images).status_code)
        return found

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask) for _ in range(2)]
        try:
            deploy()
            local.wait_for_replicas(1, before)
        finally:
            over.set()
        found = [status for future in asked for status in future.result()]
    assert len(found) > 4
    assert set(found) == {200}


def check_that_retries_lose_nothing(local, net, policy):
    """A replica that is killed is replaced."""
    images = torch.randn(64, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    (killed, _), until = local.list_replicas(), time.monotonic() + 60

    def ask(image):
        while time.monotonic() < until:
            with suppress(httpx.TransportError):
                found = local.infer(image[None])
                if found.status_code == 200:
                    return read_output(found, "label")[0]
            time.sleep(0.05)
        return None

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(ask, images)
        os.kill(killed, signal.SIGKILL)
        assert list(answers) == xl.predict(net, images, policy).labels.tolist()
    local.wait_for_replicas(2, killed)


def check_that_requests_without_room_are_refused(local):
    images = torch.randn(16, 3, 28, 28)
    with ThreadPoolExecutor(48) as pool:
        found = list(pool.map(lambda _: local.infer(images), range(144)))
    counts = Counter(answer.status_code for answer in found)
    assert set(counts) <= {200, 429, 503}, counts
    assert counts[200] >= 1
    assert counts[429] + counts[503] >= 1
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in found if answer.status_code == 429)
    assert local.infer(images).status_code == 200


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(xl.errors.MissingExtraError, match=r"exitlens\[.*ray"):
        app({"bundle": "x"})
