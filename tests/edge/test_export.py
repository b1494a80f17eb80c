"""Edge bundles: what is in them, that they appear whole, and that they answer as the library does."""

import copy
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exitlens as xl
import exitlens_runtime
from exitlens.edge import export
from exitlens.model.engine.onnx_files import cut_segments, open_file
from exitlens_runtime.sessions import open_openvino
from tests.conftest import TinyNet, make_net
from tests.exported import check_answers, read_arrays

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """The tiny network and its bundle."""
    net = make_net()
    policy = xl.Policy((0.8, 0.7), network=net.fingerprint())
    return net, policy, xl.export(net, policy, tmp_path_factory.mktemp("edge") / "out")


def test_the_manifest_says_what_a_runtime_needs(edge):
    net, policy, path = edge
    manifest = json.loads((path / "manifest.json").read_text())
    assert {p.name for p in path.iterdir()} == {*manifest["sha256"], "manifest.json"}
    for name, checksum in manifest["sha256"].items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == checksum
    assert manifest["format"] == 2
    assert manifest["network"] == net.fingerprint()
    assert manifest["inputs"] == [{"name": "images", "dtype": "float32", "shape": [3, 16, 16]}]
    assert [part["exit"] for part in manifest["segments"]] == [0, 1, 2]
    assert manifest["segments"][0]["outputs"] == ["logits", "attention", "support", *manifest["segments"][1]["inputs"]]
    assert xl.Policy.from_dict(json.loads((path / "policy.json").read_text())) == policy


@pytest.mark.slow
def test_a_network_without_early_exits(images, tmp_path):
    net, policy = xl.attach(TinyNet(), [], 4, images).eval(), xl.Policy.never(1)
    path = xl.export(net, policy, tmp_path / "e")
    check_answers(exitlens_runtime.load(path).predict(images.numpy()), xl.predict(net, images, policy))


@pytest.mark.slow
def test_stages_whose_exit_never_fires_are_in_the_file_after_them(net, tmp_path):
    path, named = tmp_path / "e", {"first": xl.Policy((0.8, float("inf")))}
    xl.export(net, xl.Policy((0.8, 0.7)), path, policies=named)
    xl.export(net, xl.Policy((float("inf"), 0.7)), path, overwrite=True)
    assert not (path / "policies.json").exists()
    assert [part["exit"] for part in json.loads((path / "manifest.json").read_text())["segments"]] == [1, 2]
    assert not (path / "stage_2.onnx").exists()
    never = cut_segments(*net.engine.parts, xl.Policy.never(3))
    assert [(segment.exit, segment.is_last, len(segment.bodies)) for segment in never] == [(2, True, 3)]


def test_every_exit_that_one_of_the_policies_lets_fire_is_in_the_files(net, tmp_path, images):
    never = float("inf")
    policy, named = xl.Policy((never, 0.7)), {"first": xl.Policy((0.8, never)), "last": xl.Policy.never(3)}
    path = xl.export(net, policy, tmp_path / "e", policies=named)
    manifest = json.loads((path / "manifest.json").read_text())
    assert [part["exit"] for part in manifest["segments"]] == [0, 1, 2]
    assert "policies.json" in manifest["sha256"]
    assert {
        name: xl.Policy.from_dict(values) for name, values in json.loads((path / "policies.json").read_text()).items()
    } == named
    session = open_file(path / "cascade.onnx")
    for used in (policy, *named.values()):
        feed = {"images": images.numpy(), "thresholds": np.array(used.thresholds, np.float32)}
        exits = session.run(["exits"], feed | {"temperatures": np.array(used.temperatures, np.float32)})[0]
        assert exits.tolist() == xl.predict(net, images, used).exits.tolist()


@pytest.mark.slow
def test_a_gate_has_no_single_file(net, tmp_path):
    gate = xl.types.Gate(((0.1,) * 5,) * 2)
    path = xl.export(net, xl.Policy((float("inf"), 0.7), gate=gate), tmp_path / "e")
    assert [part["exit"] for part in json.loads((path / "manifest.json").read_text())["segments"]] == [1, 2]
    assert not (path / "cascade.onnx").exists()


def test_golden_samples_are_the_librarys_answers(edge):
    net, policy, path = edge
    golden = read_arrays(path / "golden.npz")
    parting, images = replace(policy, thresholds=tuple(golden["parting"].tolist())), torch.from_numpy(golden["images"])
    for used, prefix in ((policy, ""), (parting, "parted_")):
        pred = xl.predict(net, images, used)
        assert pred.exits.tolist() == golden[f"{prefix}exits"].tolist()
        assert pred.labels.tolist() == golden[f"{prefix}labels"].tolist()
    assert set(golden["parted_exits"].tolist()) == {0, 1, 2}
    outputs = net(images)
    assert torch.allclose(outputs[1].logits, torch.from_numpy(golden["logits_1"]), atol=1e-5)


def test_a_network_in_training_mode_is_exported_as_it_answers_and_left_so(net, tmp_path):
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    xl.export(net, xl.Policy((0.8, 0.7)), tmp_path / "e")
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_what_cannot_be_exported_says_so_and_leaves_nothing(net, tmp_path, monkeypatch):
    target = tmp_path / "e"
    policy, other, trained = xl.Policy((0.8, 0.7)), xl.Policy((0.8, 0.7), network="another"), copy.deepcopy(net)
    with torch.no_grad():
        trained.head(0).attend.weight.add_(1)
    for network, calibrated, named, error, message in (
        (net, other, {}, xl.errors.PolicyError, "calibrated for network"),
        (trained, replace(policy, network=net.fingerprint()), {}, xl.errors.PolicyError, "calibrate"),
        (net, xl.Policy((0.8,)), {}, xl.errors.PolicyError, "3 exits"),
        (copy.deepcopy(net).double(), policy, {}, xl.errors.ExportError, "float32"),
        (net, None, {}, xl.errors.InputError, "policy"),
        (net, policy, {"fast": other}, xl.errors.PolicyError, "policies, fast: it was calibrated for network another"),
        (net, policy, {"default": policy}, xl.errors.InputError, "policies: 'default' is"),
    ):
        with pytest.raises(error, match=message):
            xl.export(network, calibrated, target, policies=named)
    monkeypatch.setattr(export, "write_golden", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(xl.errors.BundleError, match="disk full"):
        xl.export(net, policy, target)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_only_an_edge_bundle_is_replaced(edge, tmp_path):
    net, policy, _ = edge
    target = tmp_path / "e"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(xl.errors.OutputExistsError, match="no edge bundle"):
        xl.export(net, policy, target, overwrite=True)
    xl.export(net, policy, tmp_path / "f")
    with pytest.raises(xl.errors.OutputExistsError, match="overwrite=True"):
        xl.export(net, policy, tmp_path / "f")
    (tmp_path / "f" / "note.txt").write_text("mine")
    xl.export(net, xl.Policy.never(3), tmp_path / "f", overwrite=True)
    files = {"cascade.onnx", "golden.npz", "manifest.json", "note.txt", "policy.json", "stage_0.onnx"}
    assert {path.name for path in (tmp_path / "f").iterdir()} == files


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
@pytest.mark.slow
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
    gate = xl.types.Gate(((0.1,) * 5,) * 2)
    with pytest.raises(xl.errors.ExportError, match="gate"):
        export.write_cascade(tmp_path / "c.onnx", [], xl.Policy((0.5, 0.5), gate=gate))


@pytest.mark.parametrize(
    "name", ["labels", *(pytest.param(name, marks=pytest.mark.slow) for name in ("exits", "scores", "maps"))]
)
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
@pytest.mark.slow
def test_openvino_answers_the_same(cascades, limits):
    pytest.importorskip("openvino")
    net, paths = cascades
    model = open_openvino().compile_model(str(paths["max_probability"]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n in (1, 9):
        images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
        feed = {"images": images.numpy(), "thresholds": np.array(limits, np.float32), "temperatures": np.ones(3, np.float32)}
        outputs = {port.any_name: values for port, values in model(feed).items()}
        check_answers(outputs, xl.predict(net, images, xl.Policy(limits), attention=True))
