"""int8 bundles: their policy is calibrated on the files' own answers, and policies do not fit the other precision."""

import json

import pytest
import torch

import exitlens as xl
import exitlens_runtime as er
from exitlens.edge import int8
from tests.conftest import make_net

pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A network, its policy, the report and the labelled samples."""
    net, rng = make_net(), torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (300, 3, 16, 16), generator=rng).to(torch.uint8)
    samples = xl.data.ImageSet(images, torch.arange(300) % 4, ("w", "x", "y", "z"))
    labels = net(samples.inputs)[-1].logits.argmax(1)
    samples = xl.data.ImageSet(images, labels, ("w", "x", "y", "z"))
    policy = xl.calibrate(xl.collect(net, samples), max_disagreement=0.3, max_accuracy_drop=0.3, delta=0.2, seed=3)
    out = tmp_path_factory.mktemp("int8") / "out"
    return net, policy, xl.export_int8(net, policy, out, samples.first(64), samples), samples


def test_the_policy_is_chosen_on_what_the_files_say(made):
    net, policy, report, samples = made
    record = report.policy.calibration
    assert (record.limits, record.request) == (policy.calibration.limits, policy.calibration.request)
    assert record.certification.delta == 0.2
    assert record.data != policy.calibration.data
    assert report.policy.network.startswith(f"{net.fingerprint()}-int8-")
    runtime = er.load(report.directory, threads=1)
    answers = runtime.predict(samples.inputs.numpy())
    shares = torch.from_numpy(answers.exits).bincount(minlength=3) / 300
    assert shares.tolist() == pytest.approx(report.exit_shares[1], abs=1e-6)
    right = (torch.from_numpy(answers.labels) == samples.labels).double().mean().item()
    assert right == pytest.approx(report.accuracy[1])
    assert min(report.agreement) > 0.9
    manifest = json.loads((report.directory / "manifest.json").read_text())
    assert manifest["precision"] == "int8"
    assert manifest["network"] == report.policy.network
    onnx = pytest.importorskip("onnx")
    weights = [t for t in onnx.load(report.directory / "stage_1.onnx").graph.initializer if len(t.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}


def test_policies_of_one_precision_are_refused_by_the_other(made, tmp_path):
    net, policy, report, _ = made
    with pytest.raises(er.PolicyError, match="calibrated for network"):
        er.load(report.directory, policy=policy.to_dict())
    with pytest.raises(xl.errors.PolicyError, match="calibrated for network"):
        xl.predict(net, torch.zeros(1, 3, 16, 16), report.policy)
    plain = xl.export(net, policy, tmp_path / "float")
    with pytest.raises(er.PolicyError, match="calibrated for network"):
        er.load(plain, policy=report.policy.to_dict())
    assert net.tuning.precision == "float32"  # the network itself has not changed
    assert xl.predict(net, torch.zeros(4, 3, 16, 16), policy).labels.shape == (4,)


@pytest.mark.parametrize("given", ["temperature_scaling", "temperatures"])
def test_int8_uses_the_temperatures_that_were_asked_for(made, tmp_path, given):
    net, _, _, samples = made
    fitted = xl.calibrate(xl.collect(net, samples.first(100)), max_cost=1.0)
    rest = samples.subset(torch.arange(100, 300))
    asked = {"temperature_scaling": False} if given == "temperature_scaling" else {"temperatures": fitted}
    policy = xl.calibrate(xl.collect(net, rest), max_disagreement=0.3, **asked)
    report = xl.export_int8(net, policy, tmp_path / "out", samples.first(64), rest)
    expected = (1.0,) * 3 if given == "temperature_scaling" else fitted.temperatures
    assert report.policy.temperatures == policy.temperatures == expected
    assert report.policy.calibration.request == policy.calibration.request.for_any_network()


def test_a_limit_on_swaps_is_asked_of_the_files_too(made, tmp_path):
    net, _, _, samples = made
    policy = xl.calibrate(xl.collect(net, samples, swapped=300), max_cue_drop=0.5)
    report = xl.export_int8(net, policy, tmp_path / "out", samples.first(64), samples)
    assert report.policy.calibration.request == policy.calibration.request


def test_nothing_is_left_where_it_fails(made, tmp_path):
    net, policy, _, samples = made
    for chosen, few, words in (
        (policy, [torch.zeros(2, 1, 16, 16)], "samples"),
        (policy, [], "samples: expected at least one"),
        (xl.Policy((0.5, 0.5)), samples, "by hand"),
    ):
        with pytest.raises(xl.errors.InputError, match=words):
            xl.export_int8(net, chosen, tmp_path / "e", few, samples)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [8, 32, 100])
def test_batches_of_any_size_are_all_taken(made, size, monkeypatch, tmp_path):
    net, _, _, samples = made
    taken = []
    monkeypatch.setattr(int8, "quantise_files", lambda parts, batches, _: taken.extend(batches) or [])
    int8.quantise(net, list(samples.inputs.split(size)), tmp_path)
    assert sum(len(batch["images"]) for batch in taken) == 300 // size * size
