"""The packages of ``exitlens export --for`` in the real servers, started as processes: answers are those of ``predict``.

``nvidia-pytriton`` brings the server and the Python backend of Triton.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.edge.packages import export_package
from tests.conftest import make_net, spread_policy

http = pytest.importorskip("tritonclient.http")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An edge bundle, images, and the library's answers."""
    net, rng = make_net(), np.random.default_rng(5)
    images = rng.standard_normal((24, 3, 16, 16)).astype(np.float32)
    policy = spread_policy(net, torch.from_numpy(images))
    edge = xl.export(net, policy, tmp_path_factory.mktemp("edge") / "out")
    expected = xl.predict(net, torch.from_numpy(images), policy, attention=True)
    assert len(expected.exits.unique()) == 3
    return edge, images, expected


def find(package):
    """The folder of a package, which is not imported here; or skip the test."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent


def choose_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def start(words, port, ready, **options):
    """A server, once it answers ``ready`` with 200."""
    process = subprocess.Popen(list(map(str, words)), start_new_session=True, **options)
    try:
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5)
                break
            assert process.poll() is None, "the server has ended"
            time.sleep(0.1)
        else:
            raise AssertionError("not ready within a minute")
        yield
    finally:
        for word in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, word)
                process.wait(10)


def check(port, images, expected, binary):
    """Compare a batch, single images from many clients, and maps; a bad request is refused."""

    def ask(rows, outputs=()):
        given = http.InferInput("inputs", list(rows.shape), "FP32").set_data_from_numpy(rows, binary_data=binary)
        wanted = [http.InferRequestedOutput(name, binary_data=binary) for name in outputs]
        with http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            return client.infer("net", [given], outputs=wanted or None)

    whole = ask(images)
    assert whole.as_numpy("label").ravel().tolist() == expected.labels.tolist()
    assert whole.as_numpy("exit").ravel().tolist() == expected.exits.tolist()
    assert np.allclose(whole.as_numpy("probabilities"), expected.probabilities, atol=1e-5)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: ask(images[i : i + 1], ("label", "exit", "confidence")), range(len(images))))
    assert [part.as_numpy("label").item() for part in parts] == expected.labels.tolist()
    assert [part.as_numpy("exit").item() for part in parts] == expected.exits.tolist()
    assert np.allclose([part.as_numpy("confidence").item() for part in parts], expected.confidence, atol=1e-5)
    maps = ask(images[:3], ("attention", "attention_shape"))
    for map_, shape, truth in zip(
        maps.as_numpy("attention"), maps.as_numpy("attention_shape"), expected.attention, strict=False
    ):
        assert np.allclose(map_[: shape[0], : shape[1]], truth, atol=1e-5)
    with pytest.raises(http.InferenceServerException, match=r"(?s)3,.*16,.*16"):
        ask(images[:1, :, :8])


@pytest.mark.slow
@pytest.mark.parametrize("server", ["mlserver", "kserve"])  # whose container does the same
def test_mlserver(served, tmp_path, server):
    find("mlserver")
    edge, images, expected = served
    package, port = export_package(edge, tmp_path / "net", server), choose_port()
    ports = {"MLSERVER_HTTP_PORT": port, "MLSERVER_GRPC_PORT": choose_port(), "MLSERVER_METRICS_PORT": choose_port()}
    env = os.environ | {name: str(value) for name, value in ports.items()}
    words = [Path(sys.executable).with_name("mlserver"), "start", package]
    with start(words, port, "/v2/models/net/ready", env=env, cwd=tmp_path):
        check(port, images, expected, binary=False)  # over HTTP it takes JSON only


@pytest.mark.slow
def test_triton(served, tmp_path):
    home = find("pytriton")
    if np.__version__ >= "2":
        pytest.skip("the Python backend in nvidia-pytriton was built for NumPy 1")
    edge, images, expected = served
    export_package(edge, tmp_path / "models" / "net", "triton")
    port = choose_port()
    backend = shutil.copytree(home / "tritonserver" / "backends", tmp_path / "backends") / "python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(home / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    env = os.environ | {
        "LD_LIBRARY_PATH": str(home.parent / "nvidia_pytriton.libs"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the backend finds its environment by it
    }
    words = [home / "tritonserver" / "bin" / "tritonserver", "--model-repository", tmp_path / "models"]
    words += [
        "--backend-directory",
        backend.parent,
        "--http-port",
        port,
        "--allow-grpc",
        "false",
        "--allow-metrics",
        "false",
    ]
    with start(words, port, "/v2/models/net/ready", env=env):
        check(port, images, expected, binary=True)


@pytest.mark.slow
def test_bentoml(served, tmp_path):
    find("bentoml")
    edge, images, expected = served
    package, port = export_package(edge, tmp_path / "net", "bentoml"), choose_port()

    def ask(rows, route="classify"):
        body, kind = json.dumps({"inputs": rows.tolist()}).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{route}", body, kind)
        return json.load(urllib.request.urlopen(request, timeout=30))

    env = os.environ | {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(tmp_path / "home")}
    words = [sys.executable, "-m", "bentoml", "serve", "service:Cascade", "--port", port]
    with start(words, port, "/readyz", env=env, cwd=package):
        whole = ask(images)
        with ThreadPoolExecutor(8) as pool:
            parts = [rows[0] for rows in pool.map(lambda i: ask(images[i : i + 1]), range(len(images)))]
        for rows in (whole, parts):
            assert [row["label"] for row in rows] == expected.labels.tolist()
            assert [row["exit"] for row in rows] == expected.exits.tolist()
            assert np.allclose([row["confidence"] for row in rows], expected.confidence, atol=1e-5)
        assert {"attention", "attention_shape"} <= set(ask(images[:1], "explain")[0])
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(images[:1, :, :8])
