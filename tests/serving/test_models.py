"""Bundles and edge bundles as something to serve."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.delivery.bundle import load_policies
from exitlens.serving.models import open_bundle, read_version, wrap_network
from tests.conftest import make_net
from tests.exported import read_arrays
from tests.serving.conftest import save_small
from tests.serving.test_cascade import make_ticket, run
from tests.texts import make_text_net, make_texts

pytest.importorskip("onnxruntime")
EDGE_POLICIES = {"default": xl.Policy((math.inf, 0.7)), "fast": xl.Policy((math.inf, 0.0)), "full": xl.Policy.never(3)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = save_small(tmp_path_factory.mktemp("served") / "b")
    net, fast = xl.load(path)[0], xl.Policy((0.0, 0.0))
    return xl.save(net, xl.Policy((0.9, 0.9), network=net.identity()), path, policies={"fast": fast}, overwrite=True)


@pytest.mark.slow
def test_a_bundle_with_its_policies(bundle):
    model = open_bundle("b", bundle)
    assert {*model.policies} == {"default", "fast"}
    assert model.policies["fast"].thresholds == (0.0, 0.0)
    assert model.version == read_version(bundle)
    assert len(model.version) == 12
    assert model.name_answers(np.array([2])) == ["2"]


@pytest.mark.slow
def test_a_bundle_that_is_replaced_while_it_is_read_is_not_served_as_either(bundle, tmp_path, monkeypatch):
    net, policy = xl.load(bundle)
    copy = xl.save(net, policy, tmp_path / "b")

    def load_and_replace(source):
        policies = load_policies(source)
        xl.save(net, xl.Policy((0.1, 0.1)), copy, overwrite=True)
        return policies

    monkeypatch.setattr("exitlens.serving.models.load_policies", load_and_replace)
    with pytest.raises(xl.errors.BundleError, match="replaced while it was read"):
        open_bundle("b", copy)
    monkeypatch.undo()
    assert open_bundle("b", copy).policies["default"].thresholds == (0.1, 0.1)


def test_bundles_that_cannot_be_served(tmp_path):
    net = make_net()
    with pytest.raises(xl.errors.PolicyError, match="run exitlens calibrate"):
        open_bundle("b", xl.save(net, None, tmp_path / "b"))
    with pytest.raises(xl.errors.BundleError, match="bundle: expected"):
        open_bundle("b", tmp_path / "none")
    with pytest.raises(xl.errors.PolicyError, match="another"):
        wrap_network("b", net, {"default": xl.Policy((0.0, 0.0), network="another")})


def test_arrays(model, images):
    (tensor,) = model.check_arrays({"inputs": images[:2].numpy()})
    assert torch.equal(tensor, images[:2])
    frozen = images[:2].numpy().copy()
    frozen.flags.writeable = False
    assert torch.equal(model.check_arrays({"inputs": frozen})[0], images[:2])
    for value, words in (
        (images[:2].double().numpy(), "expected float32, got float64"),
        (images[:2, :1].numpy(), r"expected \(B,3,16,16\)"),
        (images[0].numpy(), r"expected \(B,3,16,16\)"),
        (np.full((1, 3, 16, 16), np.inf, np.float32), "finite"),
    ):
        with pytest.raises((xl.errors.RequestError, xl.errors.InputError), match=words):
            model.check_arrays({"inputs": value})
    with pytest.raises(xl.errors.RequestError, match=r"named \['inputs'\]"):
        model.check_arrays({"images": images[:2].numpy()})


def test_inputs_that_a_network_does_not_take(model):
    with pytest.raises(xl.errors.RequestError, match="takes images, got a text"):
        model.read(["a"], 100)
    with pytest.raises(xl.errors.DataError, match=r"image\[0\]"):
        model.read([b"none"], 100)
    with pytest.raises(xl.errors.RequestError, match="does not say how images become inputs"):
        replace(model, info=replace(model.info, preprocess=None)).read([b"none"], 100)


@pytest.fixture(autouse=True, scope="module")
def _written_once(files_written_once):
    """For every test here."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    net = make_net()
    net.describe(preprocess=xl.data.Preprocess((16, 16)))
    default, *others = EDGE_POLICIES.items()
    return xl.export(net, default[1], tmp_path_factory.mktemp("edge") / "tiny", policies=dict(others))


@pytest.mark.slow
@pytest.mark.parametrize("policy", EDGE_POLICIES)
def test_answers_of_an_edge_bundle_are_those_of_predict(edge, images, policy):
    model, net = open_bundle("tiny", edge), make_net()
    ticket = make_ticket(model, images, policy=policy, attention=True)
    run(model, [ticket])
    pred = xl.predict(net, images, model.policies[policy], attention=True)
    assert ticket.labels.tolist() == pred.labels.tolist()
    assert ticket.exits.tolist() == pred.exits.tolist()
    assert np.allclose(ticket.probabilities, pred.probabilities, atol=1e-5)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(ticket.maps, pred.attention, strict=True))


@pytest.mark.slow
def test_an_edge_bundle_describes_its_network(edge):
    model, net = open_bundle("tiny", edge), make_net()
    assert model.cost == pytest.approx(net.cost.tolist())
    assert model.info.preprocess == xl.data.Preprocess((16, 16))
    assert [tensor.name for tensor in model.inputs] == ["inputs"]
    assert model.net is None


@pytest.mark.slow
def test_an_exit_without_a_file_is_passed_and_no_limit_of_cost(edge, images):
    model = open_bundle("e", edge)
    assert model.exits == {1, 2}
    limited = make_ticket(model, images, last_exit=model.find_last_exit(model.cost[1]))
    run(model, [limited])
    assert set(limited.exits.tolist()) == {1}
    with pytest.raises(xl.errors.RequestError, match=r"\(exit 1\) or more"):
        model.find_last_exit(model.cost[0])


@pytest.mark.slow
def test_an_edge_bundle_of_texts(tmp_path):
    net, texts, policy = make_text_net(), make_texts(), xl.Policy((0.5, 0.5))
    model = open_bundle("t", xl.export(net, policy, tmp_path / "e"))
    ticket = make_ticket(model, texts)
    run(model, [ticket])
    assert ticket.labels.tolist() == xl.predict(net, texts, policy).labels.tolist()
    assert [tensor[:2] for tensor in model.inputs] == [("input_ids", np.int64), ("attention_mask", np.int64)]


@pytest.fixture
def copied(edge, tmp_path):
    """A copy of the edge bundle, and a function that changes its manifest."""
    path = Path(shutil.copytree(edge, tmp_path / "copied"))
    manifest = json.loads((path / "manifest.json").read_text())

    def change(**fields):
        for name in ("policy.json", "golden.npz"):  # they may have changed
            manifest["sha256"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest | fields))

    return path, change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("thresholds", "change", "error", "words"),
    [
        ((math.inf, 0.7), {"format": 9}, xl.errors.BundleError, "expected format 2, got 9"),
        ((math.inf, 0.7), {"cost": ["x"]}, xl.errors.BundleError, "Fix: export again"),
        ((math.inf, 0.7), {"segments": [{"exit": 0, "file": "../a.onnx"}]}, xl.errors.BundleError, "no checksum"),
        ((math.inf, 0.7), {"network": "another"}, xl.errors.PolicyError, "calibrated for network"),
        ((0.8, 0.7), {}, xl.errors.PolicyError, r"uses exits \[0\], the bundle has \[1, 2\]. Fix: export with this policy"),
    ],
)
def test_damaged_edge_bundles(copied, thresholds, change, error, words):
    path, change_manifest = copied
    (path / "policy.json").write_text(json.dumps(xl.Policy(thresholds, network=make_net().fingerprint()).to_dict()))
    change_manifest(**change)
    with pytest.raises(error, match=words):
        open_bundle("e", path)


@pytest.mark.slow
def test_files_that_answer_differently_here_are_refused(copied):
    path, change_manifest = copied
    golden = read_arrays(path / "golden.npz")
    np.savez(path / "golden.npz", **(golden | {"logits_1": golden["logits_1"] + 1}))
    with pytest.raises(xl.errors.BundleError, match="altered"):
        open_bundle("e", path)
    change_manifest()
    with pytest.raises(xl.errors.BundleError, match="export it here"):
        open_bundle("e", path)
