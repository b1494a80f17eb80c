"""Edge bundles are served as the library's are, with all that their files can do."""

import hashlib
import json

import numpy as np
import pytest

import exitlens as xl
from exitlens.serving.edge_bundle import open_edge
from exitlens.serving.models import open_bundle
from tests.conftest import make_net
from tests.serving.test_cascade import make_ticket, run
from tests.texts import make_text_net, make_texts

pytest.importorskip("onnxruntime")
POLICIES = {"fast": xl.Policy((float("inf"), 0.0)), "full": xl.Policy.never(3)}


@pytest.fixture(autouse=True, scope="module")
def _written_once(files_written_once):
    """For every test here."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    net = make_net()
    net.describe(preprocess=xl.Preprocess((16, 16)))
    return xl.export(net, xl.Policy((0.8, 0.7)), tmp_path_factory.mktemp("edge") / "tiny", policies=POLICIES)


@pytest.mark.parametrize("policy", ["default", *POLICIES])
def test_answers_are_those_of_predict(edge, images, policy):
    model, net = open_bundle("tiny", edge), make_net()
    ticket = make_ticket(model, images, policy=policy, attention=True)
    run(model, [ticket])
    pred = xl.predict(net, images, model.policies[policy], attention=True)
    assert ticket.labels.tolist() == pred.labels.tolist()
    assert ticket.exits.tolist() == pred.exits.tolist()
    assert np.allclose(ticket.probabilities, pred.probabilities, atol=1e-5)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(ticket.maps, pred.attention, strict=True))


def test_what_it_says_of_its_network(edge):
    model, net = open_bundle("tiny", edge), make_net()
    assert model.cost == pytest.approx(net.cost.tolist())
    assert model.info.preprocess == xl.Preprocess((16, 16))
    assert [one.name for one in model.inputs] == ["inputs"]
    assert model.exits == {0, 1, 2}
    assert model.net is None


def test_exits_without_a_file_are_passed_and_no_limit_of_cost(images, tmp_path):
    net = make_net()
    model = open_bundle("e", xl.export(net, xl.Policy((float("inf"), 0.7)), tmp_path / "e"))
    assert model.exits == {1, 2}
    ticket, limited = make_ticket(model, images), make_ticket(model, images, last_exit=model.find_last_exit(model.cost[1]))
    run(model, [ticket, limited])
    assert ticket.exits.tolist() == xl.predict(net, images, xl.Policy((float("inf"), 0.7))).exits.tolist()
    assert set(limited.exits.tolist()) == {1}
    with pytest.raises(xl.RequestError, match=r"\(exit 1\) or more"):
        model.find_last_exit(model.cost[0])


def test_texts(tmp_path):
    net = make_text_net()
    policy = xl.Policy((0.5,) * (net.num_exits - 1))
    model, texts = open_bundle("t", xl.export(net, policy, tmp_path / "e")), make_texts()
    ticket = make_ticket(model, texts)
    run(model, [ticket])
    assert ticket.labels.tolist() == xl.predict(net, texts, policy).labels.tolist()
    assert [(one.name, str(one.dtype)) for one in model.inputs] == [("input_ids", "int64"), ("attention_mask", "int64")]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"format": 9}, xl.BundleError, "expected format 1, got 9"),
        ({"cost": ["x"]}, xl.BundleError, "export again"),
        ({"segments": [{"exit": 0, "file": "../a.onnx"}]}, xl.BundleError, "no checksum"),
        ({"network": "another"}, xl.PolicyError, "calibrated for network"),
    ],
)
def test_damaged_bundles(edge, tmp_path, change, error, words):
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in edge.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    (copied / "policy.json").write_text(json.dumps(xl.Policy((0.8, 0.7), network=make_net().fingerprint()).to_dict()))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["sha256"]["policy.json"] = hashlib.sha256((copied / "policy.json").read_bytes()).hexdigest()
    (copied / "manifest.json").write_text(json.dumps(manifest))
    open_edge(copied)
    (copied / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(error, match=words):
        open_edge(copied)


def test_other_answers_than_where_it_was_exported(edge, tmp_path):
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in edge.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    golden = dict(np.load(copied / "golden.npz"))
    np.savez(copied / "golden.npz", **(golden | {"logits_1": golden["logits_1"] + 1}))
    with pytest.raises(xl.BundleError, match="altered"):
        open_edge(copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["sha256"]["golden.npz"] = hashlib.sha256((copied / "golden.npz").read_bytes()).hexdigest()
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(xl.BundleError, match="export it here"):
        open_edge(copied)
