"""tune: what it measures, and when it takes bfloat16."""

import pytest
import torch

import exitlens as xl
from exitlens.model.engine.onnx_files import build_engine
from exitlens.model.engine.tuning import Tuning
from tests.conftest import make_net, spread_policy
from tests.model.engine.networks import IMAGES, with_statistics

POLICY = spread_policy(with_statistics(make_net()), IMAGES)


def test_tune_measures_and_sets_what_was_fastest():
    net = with_statistics(make_net())
    expected = xl.predict(net, IMAGES, POLICY)
    tuning = net.tune(IMAGES, policy=POLICY, seconds=0.05, backend="torch")
    assert net.tuning is tuning
    assert tuning.micro_batch > 0
    tried = tuning.measured["ms_per_sample"]
    assert {row["channels_last"] for row in tried} == {True, False}
    assert len({row["micro_batch"] for row in tried}) >= 5
    assert min(row["ms"] for row in tried) > 0
    assert 0 <= tuning.measured["bfloat16_agreement"] <= 1
    answers = xl.predict(net, IMAGES, POLICY)
    assert (answers.exits == expected.exits).float().mean() >= 0.99
    assert Tuning.from_dict(tuning.to_dict()) == tuning


def test_tune_takes_bfloat16_only_with_enough_samples_and_where_decisions_are_kept():
    net = make_net()
    net.tune(IMAGES, seconds=0.01, backend="torch")  # 70 without a difference show no more than 95.8 %
    assert net.tuning.precision == "float32"
    assert not any(row["precision"] == "bfloat16" for row in net.tuning.measured["ms_per_sample"])
    net.tune(IMAGES, min_agreement=0.5, seconds=0.01, backend="torch")
    assert any(row["precision"] == "bfloat16" for row in net.tuning.measured["ms_per_sample"])
    alike = IMAGES[:1] + 1e-4 * torch.randn(70, 3, 16, 16)
    with torch.no_grad():
        for k, out in enumerate(net(alike)):  # two classes so close that rounding decides between them
            linear = net.head(k).classifier
            linear.weight[1:] = 0
            linear.bias[1] = out.logits[:, 0].median()
            linear.bias[2:] = -1e4
    net.tune(alike, seconds=0.01, backend="torch")
    assert net.tuning.measured["bfloat16_agreement"] < 0.99
    assert net.tuning.precision == "float32"
    net.tune(IMAGES[:2], precision="bfloat16", seconds=0.01, backend="torch")
    assert net.tuning.precision == "bfloat16"
    net.tune(IMAGES, precision="float32", seconds=0.01, backend="torch")
    assert "bfloat16_agreement" not in net.tuning.measured


@pytest.mark.slow
@pytest.mark.usefixtures("files_written_once")
def test_onnx_runtime_is_tried_and_its_files_are_kept(monkeypatch):
    pytest.importorskip("onnxruntime")
    net = with_statistics(make_net())
    expected = xl.predict(net, IMAGES, POLICY)
    assert {row["backend"] for row in net.tune(IMAGES, seconds=0.01).measured["ms_per_sample"]} == {"torch", "onnx"}
    tuning = net.tune(IMAGES, seconds=0.01, backend="onnx")
    assert {row["backend"] for row in tuning.measured["ms_per_sample"]} == {tuning.backend} == {"onnx"}
    monkeypatch.setattr("exitlens.model.engine.onnx_files.write_segments", None)  # it is not written again
    assert xl.predict(net, IMAGES, POLICY).exits.tolist() == expected.exits.tolist()


def test_networks_that_onnx_runtime_cannot_run(monkeypatch):
    net = make_net()
    with pytest.raises(xl.errors.EngineError, match="does not run in bfloat16"):
        net.tune(IMAGES, precision="bfloat16", seconds=0.01, backend="onnx")
    refusal = xl.errors.EngineError("an odd layer")

    def refuse_onnx(stages, heads, tuning, example):
        if tuning.backend == "onnx":
            raise refusal
        return build_engine(stages, heads, tuning, example)

    monkeypatch.setattr("exitlens.model.engine.manager.build_engine", refuse_onnx)
    tuning = net.tune(IMAGES, precision="float32", seconds=0.01)
    assert tuning.backend == "torch"
    assert "an odd layer" in tuning.measured["onnx"]
    with pytest.raises(xl.errors.EngineError, match="an odd layer"):
        net.tune(IMAGES, seconds=0.01, backend="onnx")
    refusal = xl.errors.MissingExtraError("onnxruntime", "onnx", "backend='onnx'")
    assert "onnxruntime" in net.tune(IMAGES, precision="float32", seconds=0.01).measured["onnx"]
    monkeypatch.setattr("exitlens.model.engine.manager.is_installed", lambda *names: False)
    assert "onnx" not in net.tune(IMAGES, precision="float32", seconds=0.01).measured


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"precision": "half"}, "precision"),
        ({"backend": "tensorrt"}, "backend"),
        ({"min_agreement": 0.0}, "min_agreement"),
        ({"seconds": 0}, "seconds"),
        ({"policy": xl.Policy((0.5,))}, "exits"),
        ({"example": IMAGES[0]}, "add the batch axis"),
    ],
)
def test_bad_arguments_of_tune(values, message):
    with pytest.raises(xl.ExitlensError, match=message):
        make_net().tune(**{"example": IMAGES} | values)
