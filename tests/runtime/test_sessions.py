"""Errors of both backends are ours; threads of ONNX Runtime wait as briefly as its version allows."""

import sys

import numpy as np
import pytest

import exitlens_runtime as er
from exitlens_runtime import sessions
from exitlens_runtime.sessions import BACKENDS, make_options, open_session


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_that_cannot_be_opened_or_run(edge, tmp_path, backend):
    pytest.importorskip(backend)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(er.BackendError, match=r"broken\.onnx"):
        open_session(backend, tmp_path / "broken.onnx", 1, ["images"], ["logits"])
    path = edge / "stage_0.onnx"
    with pytest.raises(er.BackendError, match="not those of the manifest"):
        open_session(backend, path, 1, ["images"], ["logits"])
    session = open_session(backend, path, 1, ["images"], ["logits", "attention", "support", "features_0_0"])
    with pytest.raises(er.BackendError, match=r"stage_0\.onnx.* cannot run it"):
        session.run({"images": np.zeros((1, 5), np.float32)})


def test_openvino_pins_no_threads(edge):
    pytest.importorskip("openvino")
    session = open_session(
        "openvino", edge / "stage_0.onnx", 1, ["images"], ["logits", "attention", "support", "features_0_0"]
    )
    assert session._model.get_property("ENABLE_CPU_PINNING") is False


def test_backends_that_are_unknown_missing_or_old(edge, monkeypatch):
    with pytest.raises(er.InputError, match="tensorrt"):
        er.load(edge, backend="tensorrt")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(sessions, "open_openvino", sessions.open_openvino.__wrapped__)
    with pytest.raises(er.BackendError, match=r"pip install 'exitlens-runtime\[openvino\]'"):
        er.load(edge, backend="openvino")
    monkeypatch.setattr(pytest.importorskip("onnxruntime"), "__version__", "1.22.1")
    with pytest.raises(er.BackendError, match=r"1\.23 or newer, got 1\.22\.1"):
        er.load(edge)


@pytest.mark.parametrize(("version", "spins"), [("1.23.2", "0"), ("1.26.0", "1"), ("2.0.0", "1")])
def test_threads_wait_briefly_or_not_at_all(monkeypatch, version, spins):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "__version__", version)
    options = make_options(onnxruntime, 3)
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins
    if spins == "1":
        assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "10"
