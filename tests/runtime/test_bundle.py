"""Damaged bundles, other answers, other policies and old versions are refused."""

import hashlib
import json
import math
import shutil

import numpy as np
import pytest

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
    change(copied / "manifest.json", format=2)
    with pytest.raises(er.BundleError, match="update exitlens-runtime"):
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
