"""The runtime beside the library: the same decisions, answers and maps, and errors for whatever is wrong."""

import hashlib
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import exitlens as xl
import exitlens_runtime as er
from exitlens.functional.gating import compute_gate_features
from exitlens.functional.maps import place as place_in_torch
from exitlens.functional.maps import regrid
from exitlens.functional.routing import needs_head, route
from exitlens.functional.scores import score
from exitlens_runtime import routing
from exitlens_runtime.cli import draw, list_files, main
from exitlens_runtime.placing import place
from exitlens_runtime.reading import Preprocess
from tests.conftest import make_net
from tests.texts import make_text_net, make_texts

NET = make_net()


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """A bundle of a network that reads files."""
    NET.describe(classes=("w", "x", "y", "z"), preprocess=xl.Preprocess((16, 16)))
    return xl.export(NET, xl.Policy((0.8, 0.7)), tmp_path_factory.mktemp("edge") / "out")


@pytest.fixture(scope="module")
def net(edge):
    return er.load(edge, threads=1)


def make_policy(policy):
    return routing.Policy.from_dict(policy.to_dict())


thresholds = st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.5, math.inf])


@given(
    seed=st.integers(0, 99),
    limits=st.tuples(thresholds, thresholds),
    kind=st.sampled_from(routing.SCORES),
    hot=st.sampled_from([0.3, 1.0, 4.0]),
    gated=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_the_decision_rule_is_the_librarys(seed, limits, kind, hot, gated):
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(30, 3, 5, generator=rng)
    maps = [torch.rand(30, size, size, generator=rng).flatten(1).softmax(1).view(30, size, size) for size in (6, 4, 3)]
    gate = xl.Gate(((-0.3, 0.5, 0.4, 0.2), (0.1, 0.2, 0.9, 0.0)), (0.4, 0.3)) if gated else None
    policy = xl.Policy(limits, kind, (hot, 1.0, 1.0), gate=gate)
    features = torch.stack([compute_gate_features(maps[0], None), compute_gate_features(maps[1], maps[0])], 1)
    trace = xl.Trace(
        logits, torch.zeros(30, dtype=torch.long), torch.zeros(30, 3), torch.arange(1.0, 4), gate_features=features
    )
    expected, own = route(trace, policy), make_policy(policy)
    found = np.full(30, 2)
    for k in (1, 0):
        p = routing.find_probabilities(logits[:, k].numpy(), own.temperatures[k])
        before = maps[k - 1].numpy() if k else None
        decided = routing.decide(own, k, p, maps[k].numpy(), before)
        found[decided.fired] = k
    assert [own.needs(k) for k in range(3)] == [needs_head(policy, k) for k in range(3)]
    assert found.tolist() == expected.tolist()


@given(seed=st.integers(0, 99), kind=st.sampled_from(routing.SCORES), hot=st.sampled_from([0.1, 1.0, 7.0]))
@settings(deadline=None, max_examples=50)
def test_scores_are_the_librarys(seed, kind, hot):
    logits = 20 * torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    p = routing.find_probabilities(logits.numpy(), hot)
    assert np.allclose(routing.find_score(p, kind), score(logits, kind, hot).numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (9, 4)])
def test_maps_are_averaged_and_placed_as_in_the_library(size):
    maps = torch.rand(3, 9, 8, generator=torch.Generator().manual_seed(0))
    small = tuple(map(min, size, (9, 8)))
    assert np.allclose(routing.regrid(maps.numpy(), small), regrid(maps, small).numpy(), atol=1e-6)
    for offset in ((0.0, 0.0), (0.5, 0.25), (-1.5, 0.0)):
        assert np.allclose(place(maps.numpy(), offset), place_in_torch(maps, offset).numpy(), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("limits", [(0.8, 0.7), (0.0, 0.0), (math.inf, 0.5), (math.inf, math.inf)])
def test_answers_are_those_of_predict(net, images, batch, limits):
    policy = xl.Policy(limits)
    expected = xl.predict(NET, images[:batch], policy, attention=True)
    found = net.with_policy(policy.to_dict()).predict(images[:batch].numpy(), attention=True)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.exits.tolist() == expected.exits.tolist()
    assert np.allclose(found.confidence, expected.confidence.numpy(), atol=1e-5)
    assert np.allclose(found.probabilities, expected.probabilities.numpy(), atol=1e-5)
    assert all(np.allclose(a, b.numpy(), atol=1e-5) for a, b in zip(found.attention, expected.attention, strict=True))
    assert found.index.tolist() == list(range(batch))


@pytest.mark.parametrize("limits", [(0.6, 0.5), (0.6, math.inf), (math.inf, 0.5)])
def test_a_gate_decides_as_in_the_library(images, tmp_path, limits):
    policy = xl.Policy(limits, gate=xl.Gate(((-0.3, 0.5, 0.4, 0.2), (0.1, 0.2, 0.9, 0.0)), (0.5, 0.3)))
    found = er.load(xl.export(NET, policy, tmp_path / "e"), threads=1).predict(images.numpy())
    expected = xl.predict(NET, images, policy)
    assert found.exits.tolist() == expected.exits.tolist()
    for ours, theirs in (
        (found.divergence_estimate, expected.divergence_estimate),
        (found.last_divergence, expected.last_divergence),
    ):
        assert np.allclose(ours, theirs.numpy(), atol=1e-5, equal_nan=True)


def test_texts(tmp_path):
    net = make_text_net()
    policy = xl.Policy((0.4,) * (net.num_exits - 1))
    found = er.load(xl.export(net, policy, tmp_path / "e"), threads=1)
    inputs = make_texts(9)
    expected, answers = xl.predict(net, inputs, policy), found.predict({name: t.numpy() for name, t in inputs.items()})
    assert answers.labels.tolist() == expected.labels.tolist()
    assert answers.exits.tolist() == expected.exits.tolist()
    with pytest.raises(er.InputError, match="texts"):
        found.predict_texts(["a word"])
    with pytest.raises(er.InputError, match="tokens in"):
        found.predict({name: t.numpy() * 10**6 for name, t in inputs.items()})


def test_files_are_read_as_the_library_reads_them(net, tmp_path):
    rng, paths = np.random.default_rng(0), []
    for i, (size, mode) in enumerate((((40, 30), "RGB"), ((16, 16), "L"), ((25, 33), "RGBA"))):
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 255, shape, np.uint8), mode).save(paths[-1])
    own = Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)
    library = xl.Preprocess((16, 16))
    for path in paths:
        expected = library.normalise(xl.read_image(path, (16, 16), 3))
        assert np.allclose(own.read(path), expected.numpy(), atol=1e-6)
    found = list(net.predict_files(paths, batch_size=2))
    assert [len(one) for one in found] == [2, 1]
    assert [one.index.tolist() for one in found] == [[0, 1], [2]]


def test_bad_files_and_arrays(net, tmp_path, images):
    (tmp_path / "x.png").write_bytes(b"no image")
    for path, words in ((tmp_path / "x.png", "cannot be read as an image"), (tmp_path / "none.png", "cannot be read")):
        with pytest.raises(er.InputError, match=words):
            list(net.predict_files([path]))
    good = images.numpy()
    for value, words in (
        (images, "NumPy"),
        (good[0], r"images\[None\]"),
        (good[:, :1], r"expected \(B,3,16,16\)"),
        (good[:0], "empty"),
        (good.astype(np.float64), "float32"),
        (np.where(good > 1, np.nan, good), "NaN"),
        ({"x": good}, "named"),
    ):
        with pytest.raises(er.InputError, match=words):
            net.predict(value)


def test_a_huge_picture_is_refused_before_it_is_read(net, tmp_path, monkeypatch):
    monkeypatch.setattr("exitlens_runtime.reading.MAX_PIXELS", 100)
    Image.new("L", (20, 20)).save(tmp_path / "x.png")
    with pytest.raises(er.InputError, match="over the limit"):
        list(net.predict_files([tmp_path / "x.png"]))


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


def test_other_answers_than_the_librarys_are_noticed(copied):
    golden = dict(np.load(copied / "golden.npz"))
    np.savez(copied / "golden.npz", **(golden | {"logits_1": golden["logits_1"] + 0.1}))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["sha256"]["golden.npz"] = hashlib.sha256((copied / "golden.npz").read_bytes()).hexdigest()
    change(copied / "manifest.json", **manifest)
    with pytest.raises(er.BundleError, match="logits_1 is off"):
        er.load(copied)
    er.load(copied, check=False)


def test_policies(edge, net, tmp_path):
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


def test_an_old_onnx_runtime_is_refused(edge, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "__version__", "1.22.1")
    with pytest.raises(er.BackendError, match=r"1\.23 or newer, got 1\.22\.1"):
        er.load(edge)


def test_the_command_line(edge, tmp_path, capsys):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    main([str(edge), str(tmp_path), "--explain"])
    said = capsys.readouterr().out
    assert "a.png: " in said
    assert "at exit" in said
    main([str(edge), str(tmp_path / "a.png"), "--json"])
    row = json.loads(capsys.readouterr().out)
    assert set(row) == {"input", "label", "exit", "confidence", "reason"}
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "a.png"])
    assert stop.value.code == 2
    assert "no edge bundle" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(er.InputError, match="found none"):
        list_files([str(tmp_path / "empty")])
    assert draw([[0.0, 1.0], [0.5, 0.2]]) == ["    @@", "  ++::"]


def test_it_needs_neither_torch_nor_the_library(edge):
    code = f"import sys, exitlens_runtime as er; er.load({str(edge)!r}); print(*{{'torch', 'exitlens'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not found.stdout.split()
