"""Damaged bundles, other answers, other policies and other formats are refused."""

import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch

import exitlens as xl
import exitlens_runtime as er
from tests.exported import check_answers, read_arrays
from tests.runtime.conftest import NET


@pytest.fixture
def copied(edge, tmp_path):
    return shutil.copytree(edge, tmp_path / "copy")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def sign(directory, name):
    """Record the checksum of a file that was changed."""
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["sha256"][name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    change(directory / "manifest.json", **manifest)


def test_damaged_bundles(copied, tmp_path):
    with pytest.raises(er.BundleError, match="no edge bundle"):
        er.load(tmp_path)
    path = copied / "stage_1.onnx"
    original = path.read_bytes()
    for damage, message in ((lambda: path.write_bytes(original[:-10]), "altered or truncated"), (path.unlink, "missing")):
        damage()
        with pytest.raises(er.BundleError, match=message):
            er.load(copied)
    path.write_bytes(original)
    er.load(copied)
    for form in (0, 1, None):
        change(copied / "manifest.json", format=form)
        with pytest.raises(er.BundleError, match=f"expected format 2, got {form}. Fix: export the network again"):
            er.load(copied)
    change(copied / "manifest.json", format=2, inputs=[{}])
    with pytest.raises(er.BundleError, match="expected what exitlens wrote, got KeyError"):
        er.load(copied)
    for text, message in (("{", "JSON"), ("{}", "not of an edge bundle")):
        (copied / "manifest.json").write_text(text)
        with pytest.raises(er.BundleError, match=message):
            er.load(copied)


def test_files_outside_of_the_bundle_are_not_opened(copied):
    shutil.copy(copied / "stage_0.onnx", copied.parent / "out.onnx")
    manifest = json.loads((copied / "manifest.json").read_text())
    for name in ("../out.onnx", str(copied.parent / "out.onnx"), None):
        manifest["segments"][0]["file"] = name
        change(copied / "manifest.json", **manifest)
        with pytest.raises(er.BundleError, match="without a checksum"):
            er.load(copied)


@pytest.mark.parametrize(
    ("name", "by", "message"),
    [
        ("logits_1", 0.1, "logits_1 is off"),
        ("exits", 1, "other exits"),
        ("labels", 1, "other labels"),
        ("parted_exits", 1, "other exits"),
        ("parting", None, "cannot be read"),
    ],
)
def test_other_answers_than_the_librarys_are_noticed(copied, name, by, message):
    golden = read_arrays(copied / "golden.npz")
    values = golden.pop(name)
    np.savez(copied / "golden.npz", **golden | ({} if by is None else {name: values + by}))
    sign(copied, "golden.npz")
    with pytest.raises(er.BundleError, match=message):
        er.load(copied)
    er.load(copied, check=False)


OTHER = xl.Policy((0.0, 0.0)).to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (xl.Policy((0.5,)).to_dict(), "2 exits"),
        (xl.Policy((0.5, 0.5), network="another").to_dict(), "calibrated for network another"),
        ({"thresholds": [0.5, 0.5]}, "policy.json"),
        (OTHER | {"score": "luck"}, "luck"),
        (OTHER | {"temperatures": [1, 0, 1]}, "temperatures"),
        (OTHER | {"thresholds": [0.5, math.nan]}, "thresholds that are numbers"),
    ],
)
@pytest.mark.slow
def test_policies_that_do_not_fit(edge, values, message):
    with pytest.raises(er.PolicyError, match=message):
        er.load(edge, policy=values)


@pytest.mark.slow
def test_policies_from_files_and_values(edge, runtime, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(OTHER))
    assert er.load(edge, policy=tmp_path / "p.json").policy.thresholds == (0.0, 0.0)
    (tmp_path / "p.json").write_text("{")
    for path in (tmp_path / "none.json", tmp_path / "p.json", tmp_path):
        with pytest.raises(er.PolicyError, match="cannot be read"):
            er.load(edge, policy=path)
    for threads in (-1, 2.5):
        with pytest.raises(er.InputError, match="threads"):
            er.load(edge, threads=threads)
    assert runtime.policies == {"default": runtime.policy}
    assert runtime.with_policy(OTHER).policies == runtime.policies
    small = er.load(xl.export(NET, xl.Policy((math.inf, 0.5)), tmp_path / "e"))
    with pytest.raises(er.PolicyError, match="export with this policy"):
        small.with_policy(OTHER)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A bundle with three policies; ``first`` uses an exit that the bundle's own policy does not."""
    named = {"first": xl.Policy((0.6, math.inf), "margin"), "last": xl.Policy.never(3)}
    return xl.export(NET, xl.Policy((math.inf, 0.5)), tmp_path_factory.mktemp("several") / "e", policies=named)


def test_policies_by_name(several, tmp_path, monkeypatch):
    net, images = er.load(several, threads=1), np.random.default_rng(0).normal(size=(32, 3, 16, 16)).astype(np.float32)
    assert list(net.policies) == ["default", "first", "last"]
    assert net.policy == net.policies["default"]
    for name, policy in net.policies.items():
        loaded = er.load(several, policy=name, threads=1)
        assert (loaded.policy, loaded.policies) == (policy, net.policies)
        expected = xl.predict(NET, torch.from_numpy(images), xl.Policy(policy.thresholds, policy.score))
        for answering in (net.with_policy(name), loaded):
            check_answers(answering.predict(images), expected)
    for ask in (lambda: er.load(several, policy="fast"), lambda: net.with_policy("fast")):
        with pytest.raises(er.PolicyError, match=r"expected one of \['default', 'first', 'last'\].*, got 'fast'"):
            ask()
    monkeypatch.chdir(tmp_path)
    for file in ("fast", "last"):
        (tmp_path / file).write_text(json.dumps(xl.Policy((0.25, 0.25)).to_dict()))
    assert er.load(several, policy="last").policy == net.policies["last"]  # a name comes before a file
    for path in ("fast", "./last", tmp_path / "last"):
        assert er.load(several, policy=path).policy.thresholds == (0.25, 0.25)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([1], er.BundleError, "expected policies by names"),
        ({"default": OTHER}, er.BundleError, "expected policies by names"),
        ({"a/b": OTHER}, er.BundleError, "expected policies by names"),
        ({"fast": 3}, er.PolicyError, "fast: policy: expected what exitlens wrote"),
        ({"fast": xl.Policy((0.5,)).to_dict()}, er.PolicyError, "fast: policy: it is for 2 exits"),
        ({"fast": xl.Policy((0.5, 0.5), network="x").to_dict()}, er.PolicyError, "fast: .*network x"),
    ],
)
def test_damaged_named_policies(several, tmp_path, values, kind, message):
    path = shutil.copytree(several, tmp_path / "copy")
    (path / "policies.json").write_text(json.dumps(values))
    with pytest.raises(er.BundleError, match=r"policies\.json: altered"):
        er.load(path)
    sign(path, "policies.json")
    with pytest.raises(kind, match=rf"policies\.json.*{message}"):
        er.load(path)
