"""A network that is tuned to ONNX Runtime takes its files along in the bundle."""

import json

import pytest
import torch

import exitlens as xl
from exitlens.model.engine import onnx_files
from tests.conftest import TinyNet, make_net, spread_policy

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")
ONNX = xl.Tuning(backend="onnx")


@pytest.fixture(autouse=True, scope="module")
def _written_once(files_written_once):
    """For every test here."""


@pytest.fixture
def bundle(tmp_path):
    net = make_net()
    net.tuning = ONNX
    return xl.save(net, None, tmp_path / "b")


def test_the_files_travel_and_are_not_written_again(bundle, images, monkeypatch):
    assert {path.name for path in bundle.glob("*.onnx")} == {"stage_0.onnx", "stage_1.onnx", "stage_2.onnx"}
    net, policy = make_net(), spread_policy(make_net(), images)
    monkeypatch.setattr(onnx_files, "write_segments", lambda *_: pytest.fail("files are written again"))
    back, _ = xl.load(bundle, backbone=TinyNet())
    for path in bundle.iterdir():
        path.unlink()  # what was loaded does not need the bundle
    expected, found = (xl.predict(one, images, policy) for one in (net, back))
    assert found.exits.tolist() == expected.exits.tolist()
    assert torch.allclose(found.probabilities, expected.probabilities, atol=1e-5)
    again, _ = xl.load(xl.save(back, None, bundle.parent / "again"), backbone=TinyNet())
    assert xl.predict(again, images, policy).exits.tolist() == expected.exits.tolist()


def test_files_of_other_weights_are_not_used(bundle, images):
    back, _ = xl.load(bundle, backbone=TinyNet())
    policy = xl.Policy((0.0, 0.0))
    before = xl.predict(back, images, policy).probabilities.clone()
    with torch.no_grad():
        back.head(0).classifier.weight.mul_(-1)
    after = xl.predict(back, images, policy).probabilities
    assert not torch.allclose(before, after, atol=1e-3)
    back.tuning = xl.Tuning()
    assert torch.allclose(after, xl.predict(back, images, policy).probabilities, atol=1e-5)


def test_files_that_give_something_else_are_written_again(bundle, images):
    other = make_net()
    with torch.no_grad():
        other.head(0).classifier.weight.mul_(-1)
    other.tuning = ONNX
    theirs, _ = xl.load(xl.save(other, None, bundle.parent / "other"), backbone=TinyNet())
    back, _ = xl.load(bundle, backbone=TinyNet())
    back.engine.use_files(theirs.engine.select().files)
    policy = xl.Policy((0.0, 0.0))
    expected = xl.predict(make_net(), images, policy).probabilities
    assert torch.allclose(xl.predict(back, images, policy).probabilities, expected, atol=1e-5)


def test_damage_is_found_and_nothing_is_left_of_a_former_bundle(bundle, images):
    path = bundle / "stage_1.onnx"
    raw = path.read_bytes()
    path.write_bytes(raw[:-5])
    with pytest.raises(xl.errors.BundleError, match=r"stage_1\.onnx: altered or truncated"):
        xl.load(bundle, backbone=TinyNet())
    path.unlink()
    with pytest.raises(xl.errors.BundleError, match=r"stage_1\.onnx: missing"):
        xl.load(bundle, backbone=TinyNet())
    path.write_bytes(raw)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"onnx": [{"file": "x"}]}))
    with pytest.raises(xl.errors.BundleError, match="not described"):
        xl.load(bundle, backbone=TinyNet())
    xl.save(make_net(), None, bundle, overwrite=True)
    assert not list(bundle.glob("*.onnx"))
    xl.load(bundle, backbone=TinyNet())


def test_compiling_leaves_onnx_runtime(bundle, images):
    back, _ = xl.load(bundle, backbone=TinyNet())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda step, **_: step)
        back.compile()
    assert back.tuning.backend == "torch"
    policy = xl.Policy((0.0, 0.0))
    expected = xl.predict(make_net(), images, policy).probabilities
    assert torch.allclose(xl.predict(back, images, policy).probabilities, expected, atol=1e-5)


def test_a_bundle_writes_no_file_outside_of_its_own_copy(bundle, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (bundle / "victim").write_text("theirs")
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in (str(victim), "../victim", "victim"):
        manifest["onnx"][0]["file"] = name
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(xl.errors.BundleError, match="no checksum"):
            xl.load(bundle, backbone=TinyNet())
    assert victim.read_text() == "mine"
