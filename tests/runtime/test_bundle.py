"""Damaged bundles, other answers, other policies and old versions are refused."""

import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch

import exitlens as xl
import exitlens_runtime as er
from tests.runtime.conftest import NET


@pytest.fixture
def copied(edge, tmp_path):
    return shutil.copytree(edge, tmp_path / "copy")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_damaged_bundles(copied, tmp_path):
    with pytest.raises(er.BundleError, match="no edge bundle"):
        er.load(tmp_path)
    original = (copied / "stage_1.onnx").read_bytes()
    (copied / "stage_1.onnx").write_bytes(original[:-10])
    with pytest.raises(er.BundleError, match="altered or truncated"):
        er.load(copied)
    (copied / "stage_1.onnx").unlink()
    with pytest.raises(er.BundleError, match="missing"):
        er.load(copied)
    (copied / "stage_1.onnx").write_bytes(original)
    er.load(copied)
    for form in (0, 2, None):
        change(copied / "manifest.json", format=form)
        with pytest.raises(er.BundleError, match=f"expected format 1, got {form}. Fix: export the network again"):
            er.load(copied)
    (copied / "manifest.json").write_text("{")
    with pytest.raises(er.BundleError, match="JSON"):
        er.load(copied)


@pytest.mark.parametrize(
    ("name", "change_by", "words"),
    [
        ("logits_1", 0.1, "logits_1 is off"),
        ("exits", 1, "other exits"),
        ("labels", 1, "other labels"),
        ("parted_exits", 1, "other exits"),
    ],
)
def test_other_answers_than_the_librarys_are_noticed(copied, name, change_by, words):
    golden = dict(np.load(copied / "golden.npz"))
    np.savez(copied / "golden.npz", **(golden | {name: golden[name] + change_by}))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["sha256"]["golden.npz"] = hashlib.sha256((copied / "golden.npz").read_bytes()).hexdigest()
    change(copied / "manifest.json", **manifest)
    with pytest.raises(er.BundleError, match=words):
        er.load(copied)
    er.load(copied, check=False)


def test_policies(edge, runtime, tmp_path):
    other = xl.Policy((0.0, 0.0)).to_dict()
    (tmp_path / "p.json").write_text(json.dumps(other))
    assert er.load(edge, policy=tmp_path / "p.json").policy.thresholds == (0.0, 0.0)
    for values, words in (
        (xl.Policy((0.5,)).to_dict(), "2 exits"),
        (xl.Policy((0.5, 0.5), network="another").to_dict(), "calibrated for network another"),
        ({"thresholds": [0.5, 0.5]}, "policy.json"),
        (other | {"score": "luck"}, "luck"),
        (other | {"temperatures": [1, 0, 1]}, "temperatures"),
    ):
        with pytest.raises(er.PolicyError, match=words):
            er.load(edge, policy=values)
    small = er.load(xl.export(NET, xl.Policy((math.inf, 0.5)), tmp_path / "e"))
    with pytest.raises(er.PolicyError, match="export with this policy"):
        small.with_policy(other)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A bundle with three policies; that named first uses an exit that its own does not."""
    named = {"first": xl.Policy((0.6, math.inf), "margin"), "last": xl.Policy.never(3)}
    return xl.export(NET, xl.Policy((math.inf, 0.5)), tmp_path_factory.mktemp("several") / "e", policies=named)


def test_policies_by_name(several, tmp_path, monkeypatch):
    net, images = er.load(several, threads=1), np.random.default_rng(0).normal(size=(32, 3, 16, 16)).astype(np.float32)
    assert list(net.policies) == ["default", "first", "last"]
    assert net.policy == net.policies["default"]
    for name, policy in net.policies.items():
        theirs = er.load(several, policy=name, threads=1)
        assert theirs.policy == policy
        assert theirs.policies == net.policies
        found = net.with_policy(name).predict(images)
        expected = xl.predict(NET, torch.from_numpy(images), xl.Policy(policy.thresholds, policy.score))
        assert found.exits.tolist() == theirs.predict(images).exits.tolist() == expected.exits.tolist()
        assert found.labels.tolist() == expected.labels.tolist()
    for ask in (lambda: er.load(several, policy="fast"), lambda: net.with_policy("fast")):
        with pytest.raises(er.PolicyError, match=r"expected one of \['default', 'first', 'last'\].*, got 'fast'"):
            ask()
    monkeypatch.chdir(tmp_path)
    for file in ("fast", "last"):
        (tmp_path / file).write_text(json.dumps(xl.Policy((0.25, 0.25)).to_dict()))
    assert er.load(several, policy="fast").policy.thresholds == (0.25, 0.25)  # no policy is named so: the file
    assert er.load(several, policy="last").policy == net.policies["last"]
    assert er.load(several, policy="./last").policy.thresholds == (0.25, 0.25)
    assert er.load(several, policy=tmp_path / "last").policy.thresholds == (0.25, 0.25)


def test_bundles_without_names_have_their_own(runtime):
    assert runtime.policies == {"default": runtime.policy}
    assert runtime.with_policy(xl.Policy((0.5, 0.5)).to_dict()).policies == runtime.policies


def test_damaged_named_policies(several, tmp_path):
    path = shutil.copytree(several, tmp_path / "copy")
    raw = (path / "policies.json").read_text()
    (path / "policies.json").write_text(raw.replace("0.6", "0.1"))
    with pytest.raises(er.BundleError, match=r"policies\.json: altered"):
        er.load(path)
    own = xl.Policy((0.5, 0.5))
    for values, kind, words in (
        ([1], er.BundleError, r"policies\.json: expected policies by names"),
        ({"default": own.to_dict()}, er.BundleError, r"policies\.json: expected policies by names"),
        ({"a/b": own.to_dict()}, er.BundleError, r"policies\.json: expected policies by names"),
        ({"fast": 3}, er.PolicyError, r"policies\.json, fast: policy: expected what exitlens wrote"),
        ({"fast": xl.Policy((0.5,)).to_dict()}, er.PolicyError, r"policies\.json, fast: policy: it is for 2 exits"),
        ({"fast": xl.Policy((0.5, 0.5), network="x").to_dict()}, er.PolicyError, r"policies\.json, fast: .*network x"),
    ):
        (path / "policies.json").write_text(json.dumps(values))
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["sha256"]["policies.json"] = hashlib.sha256((path / "policies.json").read_bytes()).hexdigest()
        change(path / "manifest.json", **manifest)
        with pytest.raises(kind, match=words):
            er.load(path)
    (path / "policies.json").unlink()
    with pytest.raises(er.BundleError, match=r"policies\.json: missing"):
        er.load(path)


def test_bad_arguments(edge, runtime, tmp_path):
    (tmp_path / "p.json").write_text("{")
    for path in (tmp_path / "none.json", tmp_path / "p.json", tmp_path):
        with pytest.raises(er.PolicyError, match="cannot be read"):
            er.load(edge, policy=path)
    for threads in (-1, 2.5):
        with pytest.raises(er.InputError, match="threads"):
            er.load(edge, threads=threads)
    with pytest.raises(er.InputError, match="list of files"):
        runtime.predict_files("a.png")


def test_an_old_onnx_runtime_is_refused(edge, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "__version__", "1.22.1")
    with pytest.raises(er.BackendError, match=r"1\.23 or newer, got 1\.22\.1"):
        er.load(edge)


def test_files_outside_of_the_bundle_are_not_opened(copied):
    shutil.copy(copied / "stage_0.onnx", copied.parent / "out.onnx")
    manifest = json.loads((copied / "manifest.json").read_text())
    for name in ("../out.onnx", str(copied.parent / "out.onnx"), None):
        manifest["segments"][0]["file"] = name
        change(copied / "manifest.json", **manifest)
        with pytest.raises(er.BundleError, match="without a checksum"):
            er.load(copied)
