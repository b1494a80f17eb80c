"""MLflow: runs that follow a training, and models that answer from a registry and over HTTP as the network does."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.mlflow import load_model, log_model, save_model
from exitlens.trackers import MLflowTracker
from tests.conftest import TinyNet, spread_policy
from tests.texts import make_text_net
from tests.workflow.training.networks import QUICK, equal, fresh, raise_at, weights

mlflow = pytest.importorskip("mlflow")
pandas = pytest.importorskip("pandas")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # MLflow and what it imports warn of many things


@pytest.fixture(scope="module", autouse=True)
def _store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        yield
    mlflow.set_tracking_uri(None)


@pytest.fixture(autouse=True)
def _no_run_stays_open():
    yield
    mlflow.end_run()


def list_steps(run_id, name="val_loss"):
    return [metric.step for metric in mlflow.MlflowClient().get_metric_history(run_id, name)]


def train(tracker, data, out_dir=None, **options):
    net = fresh()
    return net, xl.fit(net, data, data, out_dir=out_dir, callbacks=[tracker], **QUICK | options)


def test_a_run_has_parameters_metrics_maps_and_the_bundle(tiny_set, tmp_path):
    tracker = MLflowTracker(examples=tiny_set.first(2).inputs, run_name="first")
    net, result = train(tracker, tiny_set, tmp_path / "r", epochs=2)
    run = mlflow.get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.data.params["settings.epochs"] == "2"
    assert list_steps(tracker.run_id) == [1, 2]
    assert run.data.metrics["accuracy_exit1"] == result.history[-1]["accuracy"][1]
    assert run.data.metrics["kept_epoch"] == 2
    folder = mlflow.artifacts.download_artifacts(run_id=tracker.run_id, dst_path=str(tmp_path / "d"))
    assert Image.open(f"{folder}/attention.png").width > 200
    loaded, policy = xl.load(f"{folder}/bundle", backbone=TinyNet())
    assert policy is None
    assert equal(weights(loaded), weights(net))


def test_a_resumed_training_goes_on_with_its_run_and_catches_up(tiny_set, tmp_path):
    first, second, third = MLflowTracker(bundle=False), MLflowTracker(bundle=False), MLflowTracker(bundle=False)
    with pytest.raises(KeyboardInterrupt):
        train(first, tiny_set, tmp_path / "r", augment=raise_at(KeyboardInterrupt(), 6))
    assert mlflow.get_run(first.run_id).info.status == "KILLED"
    xl.fit(fresh(), tiny_set, tiny_set, out_dir=tmp_path / "r", resume=True, **QUICK | {"epochs": 3})
    train(second, tiny_set, tmp_path / "r", resume=True, epochs=4)
    run = mlflow.get_run(second.run_id)
    assert (second.run_id, run.info.status) == (first.run_id, "FINISHED")
    assert list_steps(second.run_id) == [1, 2, 3, 4]  # epochs 2 and 3 were trained without a tracker
    assert run.data.params["settings.epochs"] == "3"  # as the run began
    (tmp_path / "r" / "mlflow_run.txt").write_text("0" * 32)  # of another store
    train(third, tiny_set, tmp_path / "r", resume=True, epochs=5)
    assert third.run_id != first.run_id
    assert list_steps(third.run_id) == [1, 2, 3, 4, 5]


def test_the_users_active_run_stays_open_and_gets_the_model(tiny_set):
    with mlflow.start_run() as run:
        tracker = MLflowTracker(bundle=False)
        train(tracker, tiny_set, epochs=1)
        assert mlflow.active_run().info.run_id == tracker.run_id == run.info.run_id
    with pytest.raises(ZeroDivisionError), mlflow.start_run() as run:
        train(MLflowTracker(), tiny_set, augment=raise_at(ZeroDivisionError(), 2))
    assert mlflow.get_run(run.info.run_id).info.status == "FAILED"


def make_classifier():
    torch.manual_seed(3)
    net = xl.attach("small", 2, 3, torch.zeros(1, 3, 32, 32)).eval()
    for k in range(3):
        torch.nn.init.normal_(net.head(k).classifier.weight, std=20.0)
    net.describe(preprocess=xl.data.Preprocess((32, 32)), classes=("a", "b", "c"))
    inputs = torch.randn(9, 3, 32, 32)
    return net, spread_policy(net, inputs), inputs


def assert_same(table, pred, net):
    """Bit for bit."""
    assert table["label"].tolist() == [
        net.info.classes[label] if net.info.classes else str(label) for label in pred.labels.tolist()
    ]
    assert table["exit"].tolist() == pred.exits.tolist()
    assert np.array_equal(table["confidence"].to_numpy(np.float32), pred.confidence.numpy())


def test_a_logged_model_answers_arrays_and_tables_bit_for_bit(tmp_path):
    net, policy, inputs = make_classifier()
    pred = xl.predict(net, inputs, policy)
    assert len(set(pred.exits.tolist())) == 3
    info = log_model(net, policy, registered_model_name="exits", input_example=inputs[:2].numpy())
    model = mlflow.pyfunc.load_model("models:/exits/1")
    assert_same(model.predict(inputs.numpy()), pred, net)
    assert_same(model.predict(pandas.DataFrame({"image": inputs.flatten(1).tolist()})), pred, net)
    loaded, same = load_model(info.model_uri)
    assert equal(weights(loaded), weights(net))
    assert same.thresholds == policy.thresholds
    assert torch.equal(xl.predict(loaded, inputs, same).probabilities, pred.probabilities)
    with pytest.raises(mlflow.MlflowException, match="shape"):
        model.predict(inputs[:, :1].numpy())


def test_nothing_is_pickled(tmp_path):
    net, policy, _ = make_classifier()
    save_model(net, policy, tmp_path / "m")
    assert {path.suffix for path in (tmp_path / "m").rglob("*") if path.is_file()} == {
        "",
        ".yaml",
        ".txt",
        ".json",
        ".safetensors",
    }


def test_texts_are_served_as_tokens_or_as_texts(tmp_path):
    net, texts = make_text_net(), ["a good lamp", "a bad lamp", "no lamp"]
    preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(texts), length=10)
    net.describe(preprocess=preprocess)
    inputs = preprocess.encode(texts)
    policy = xl.Policy((0.5, 0.5))
    pred = xl.predict(net, inputs, policy)
    save_model(net, policy, tmp_path / "tokens")
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    assert_same(mlflow.pyfunc.load_model(str(tmp_path / "tokens")).predict(arrays), pred, net)
    save_model(net, policy, tmp_path / "texts", raw=True)
    assert_same(mlflow.pyfunc.load_model(str(tmp_path / "texts")).predict(pandas.DataFrame({"text": texts})), pred, net)
    assert "exitlens[hf,mlflow]" in (tmp_path / "texts" / "requirements.txt").read_text()


def ask(port, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return pandas.DataFrame(json.load(answer)["predictions"])


def serve(model):
    """Start ``mlflow models serve`` with a model, and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["models", "serve", "--model-uri", str(model), "--env-manager", "local", "--port", str(port), "--workers", "1"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where MLflow looks for uvicorn
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=environment)
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return server, port
    raise AssertionError("the server does not answer")


@pytest.mark.long
@pytest.mark.parametrize("raw", [False, True])
def test_a_served_model_answers_over_http_bit_for_bit(tmp_path, raw):
    net, policy, inputs = make_classifier()
    body: dict = {"inputs": inputs.tolist()}
    if raw:
        pixels = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
        inputs = net.info.preprocess.normalise(torch.tensor(pixels).permute(0, 3, 1, 2))
        files = [io.BytesIO() for _ in pixels]
        for file, each in zip(files, pixels, strict=True):
            Image.fromarray(each).save(file, "png")
        texts = [[base64.b64encode(file.getvalue()).decode()] for file in files]
        body = {"dataframe_split": {"columns": ["image"], "data": texts}}
    save_model(net, policy, tmp_path / "m", raw=raw)
    server, port = serve(tmp_path / "m")
    try:
        assert_same(ask(port, body), xl.predict(net, inputs, policy), net)
    finally:
        server.terminate()
        server.wait(30)
