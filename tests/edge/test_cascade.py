"""The cascade in one file answers as the library does, whatever the thresholds, and later stages run only if needed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exitlens as xl
from exitlens.edge import export
from exitlens.model.engine.onnx_files import open_file
from exitlens_runtime.sessions import open_openvino
from tests.conftest import make_net
from tests.exported import check_answers

pytest.importorskip("onnxruntime")
SCORES = ("max_probability", "entropy", "margin")


@pytest.fixture(scope="module")
def cascades(tmp_path_factory):
    """A network, and the path of a cascade for each score."""
    net, root = make_net(), tmp_path_factory.mktemp("cascade")
    paths = {score: xl.export(net, xl.Policy((0.5, 0.5), score), root / score) for score in SCORES}
    return net, {score: path / "cascade.onnx" for score, path in paths.items()}


def answer(session, images, policy):
    feed = {"images": images.numpy(), "thresholds": np.array(policy.thresholds, np.float32)}
    feed["temperatures"] = np.array(policy.temperatures, np.float32)
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feed), strict=True))


thresholds = st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9, 2.0, math.inf])


@given(
    first=thresholds,
    second=thresholds,
    score=st.sampled_from(SCORES),
    hot=st.sampled_from([0.5, 1.0, 3.0]),
    n=st.integers(1, 9),
)
@settings(deadline=None, max_examples=40)
def test_answers_are_those_of_predict(cascades, first, second, score, hot, n):
    net, paths = cascades
    images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
    policy = xl.Policy((first, second), score, (hot, 1.0, 2.0))
    expected, outputs = xl.predict(net, images, policy, attention=True), answer(open_file(paths[score]), images, policy)
    if ((expected.confidence[:, None] - torch.tensor([first, second])).abs() < 1e-5).any():
        return  # rounding may decide
    check_answers(outputs, expected)
    for i, k in enumerate(expected.exits.tolist()):
        assert all(not outputs[f"attention_{j}"][i].any() for j in range(3) if j != k)


def test_later_stages_do_not_run_when_all_have_left(cascades, tmp_path):
    """A profile of ONNX Runtime lists what ran."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path, ran = cascades[1]["max_probability"], {}
    for name, threshold in (("leave", 0.0), ("stay", 2.0)):
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / name)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        answer(session, torch.zeros(2, 3, 16, 16), xl.Policy((threshold, threshold)))
        events = json.loads(Path(session.end_profiling()).read_text())
        ran[name] = sum(
            event.get("args", {}).get("op_name") in ("Conv", "FusedConv") for event in events if event["cat"] == "Node"
        )
    assert 0 < ran["leave"] < ran["stay"]


def test_a_gate_is_refused(tmp_path):
    gate = xl.types.Gate(((0.0, 0.0, 0.0, 0.1),) * 2, (0.5, 0.5))
    with pytest.raises(xl.errors.ExportError, match="gate"):
        export.write_cascade(tmp_path / "c.onnx", [], xl.Policy((0.5, 0.5), gate=gate))


@pytest.mark.parametrize("name", ["labels", "exits", "scores", "maps"])
def test_a_cascade_that_answers_otherwise_is_not_exported(monkeypatch, tmp_path, name):
    rate, move = export._Builder._rate, export._move

    def spoil(self, block, exit_, logits):
        outputs = rate(self, block, exit_, logits)
        place = ("labels", "exits", "scores").index(name)
        outputs[place] = block.add("Add", outputs[place], block.hold(1, np.float32 if name == "scores" else np.int64))
        return outputs

    if name == "maps":
        monkeypatch.setattr(export, "_move", lambda block, *a: block.add("Mul", move(block, *a), block.hold(2, np.float32)))
    else:
        monkeypatch.setattr(export._Builder, "_rate", spoil)
    with pytest.raises(xl.errors.ExportError, match=f"different {name}"):
        xl.export(make_net(), xl.Policy((0.5, 0.5)), tmp_path / "e")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("limits", [(0.5, 0.6), (0.0, 0.0), (math.inf, 0.5), (math.inf, math.inf)])
def test_openvino_answers_the_same(cascades, limits):
    pytest.importorskip("openvino")
    net, paths = cascades
    model = open_openvino().compile_model(str(paths["max_probability"]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n in (1, 9):
        images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
        feed = {"images": images.numpy(), "thresholds": np.array(limits, np.float32), "temperatures": np.ones(3, np.float32)}
        outputs = {port.any_name: values for port, values in model(feed).items()}
        check_answers(outputs, xl.predict(net, images, xl.Policy(limits), attention=True))
