"""Both backends give the library's answers, whatever the batch and from several threads; errors are ours."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import exitlens as xl
import exitlens_runtime as er
from exitlens_runtime import sessions
from exitlens_runtime.sessions import BACKENDS, make_options, open_session
from tests.runtime.conftest import NET


@pytest.fixture(scope="module", params=BACKENDS)
def opened(request, edge):
    """The bundle in each backend."""
    pytest.importorskip(request.param)
    return er.load(edge, backend=request.param, threads=1)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_answers_are_those_of_predict(opened, images, batch):
    policy = xl.Policy((0.8, 0.7))
    expected = xl.predict(NET, images[:batch], policy, attention=True)
    found = opened.predict(images[:batch].numpy(), attention=True)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.exits.tolist() == expected.exits.tolist()
    assert np.allclose(found.confidence, expected.confidence.numpy(), atol=1e-5)
    assert all(np.allclose(a, b.numpy(), atol=1e-5) for a, b in zip(found.attention, expected.attention, strict=True))


def test_answers_are_kept_while_others_are_made(opened, images):
    first = opened.predict(images[:4].numpy(), attention=True)
    kept = [one.copy() for one in (first.probabilities, *first.attention)]
    opened.predict(images[4:].numpy(), attention=True)
    assert all((a == b).all() for a, b in zip(kept, (first.probabilities, *first.attention), strict=True))


def test_threads_may_share_it(opened, images):
    alone = [opened.predict(images[i : i + 2].numpy()).probabilities for i in range(0, 30, 2)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: opened.predict(images[i : i + 2].numpy()).probabilities, range(0, 30, 2)))
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(alone, together, strict=True))


def test_what_cannot_be_opened_or_run(edge, tmp_path, monkeypatch):
    with pytest.raises(er.InputError, match="tensorrt"):
        er.load(edge, backend="tensorrt")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    for backend in BACKENDS:
        pytest.importorskip(backend)
        with pytest.raises(er.BackendError, match=r"broken\.onnx"):
            open_session(backend, tmp_path / "broken.onnx", 1, ["images"], ["logits"])
        with pytest.raises(er.BackendError, match="not those of the manifest"):
            open_session(backend, edge / "stage_0.onnx", 1, ["images"], ["logits"])
        session = er.load(edge, backend=backend)._sessions[0]
        with pytest.raises(er.BackendError, match=r"stage_0\.onnx.* cannot run it"):
            session.run({"images": np.zeros((1, 5), np.float32)})
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(sessions, "open_openvino", sessions.open_openvino.__wrapped__)
    with pytest.raises(er.BackendError, match=r"pip install 'exitlens-runtime\[openvino\]'"):
        er.load(edge, backend="openvino")


@pytest.mark.parametrize(("version", "spins"), [("1.23.2", "0"), ("1.26.0", "1"), ("2.0.0", "1")])
def test_threads_wait_shortly_or_not_at_all(monkeypatch, version, spins):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "__version__", version)
    options = make_options(onnxruntime, 3)
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins
    if spins == "1":
        assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "10"
