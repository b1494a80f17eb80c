"""Models for MLflow, as far as MLflow is not needed; tests/ecosystem has the rest."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.mlflow import BundleModel, load_model, log_model, save_model
from tests.conftest import make_net

POLICY = xl.Policy((0.55, 0.55))


def make_model() -> BundleModel:
    torch.manual_seed(3)
    net = xl.attach("small", 2, 2, torch.zeros(1, 3, 32, 32)).eval()
    net.describe(preprocess=xl.data.Preprocess((32, 32)), classes=("dark", "bright"))
    return BundleModel(net, POLICY)


def test_what_needs_the_package_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    net = make_model().net
    for call in (lambda: log_model(net, POLICY), lambda: save_model(net, POLICY, tmp_path / "m"), lambda: load_model("m")):
        with pytest.raises(xl.errors.MissingExtraError, match=r"exitlens\[mlflow\]"):
            call()


def test_networks_that_cannot_be_built_elsewhere_are_refused(tmp_path):
    with pytest.raises(xl.errors.InputError, match=r"around a module of your own.*Fix: attach exits to a source"):
        save_model(make_net(), POLICY, tmp_path / "m")
    with pytest.raises(xl.errors.InputError, match="policy: expected Policy, got NoneType"):
        log_model(make_net(), None)


@pytest.mark.slow
def test_a_table_of_answers_has_what_predict_answers():
    pytest.importorskip("pandas")
    model = make_model()
    inputs = torch.randn(6, 3, 32, 32)
    expected = xl.predict(model.net, inputs, POLICY)
    table = model.predict(inputs.numpy())
    assert table["label"].tolist() == [model.net.info.classes[label] for label in expected.labels]
    assert table["exit"].tolist() == expected.exits.tolist()
    assert np.array_equal(table["confidence"].to_numpy(np.float32), expected.confidence.numpy())
    assert table["cost"].tolist() == model.net.cost[expected.exits].tolist()


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.slow
def test_raw_samples_are_read_as_elsewhere():
    pandas = pytest.importorskip("pandas")
    model, pixels = make_model(), np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    inputs = model.net.info.preprocess.normalise(torch.tensor(pixels).permute(0, 3, 1, 2))
    answers = model.predict(pandas.DataFrame({"image": list(map(encode, pixels))}))
    assert answers.equals(model.predict(inputs.numpy()))

    scaling = xl.data.VectorPreprocess(mean=(0.0, 10.0), std=(1.0, 5.0), names=("age", "dose"))
    vectors = xl.attach("small", 2, 2, torch.zeros(1, 2)).eval()
    vectors.describe(preprocess=scaling)
    rows = pandas.DataFrame({"dose": [20.0, 1.0], "age": [1.0, 3.0]})  # by name, in any order
    inputs = scaling.normalise(torch.tensor([[1.0, 20.0], [3.0, 1.0]]))
    model = BundleModel(vectors, POLICY)
    assert model.predict(rows).equals(model.predict(inputs.numpy()))


@pytest.mark.slow
def test_raw_samples_need_a_way_to_become_inputs():
    pandas = pytest.importorskip("pandas")
    net = xl.attach("small", 2, 2, torch.zeros(1, 3, 32, 32)).eval()
    with pytest.raises(xl.errors.InputError, match="model_input: expected an array, or several by name, got DataFrame"):
        BundleModel(net, POLICY).predict(pandas.DataFrame({"image": [b""]}))
