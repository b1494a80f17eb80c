"""The Open Inference Protocol from outside, by a peer's client: answers are those of predict."""

import json
import math

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.serving.http.answers import OUTPUTS
from tests.serving.conftest import POLICIES

triton = pytest.importorskip("tritonclient.http")


@pytest.fixture
def peer(client):
    with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as found:
        yield found


def make_input(images, binary=True):
    one = triton.InferInput("inputs", list(images.shape), "FP32")
    one.set_data_from_numpy(images.numpy(), binary_data=binary)
    return [one]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("policy", [*POLICIES])
def test_answers_are_those_of_predict(peer, model, images, policy, binary):
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    found = peer.infer(
        "tiny", make_input(images[:9], binary), outputs=wanted, request_id="q1", parameters={"policy": policy}
    )
    pred = xl.predict(model.net, images[:9], POLICIES[policy], attention=True)
    response = found.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("q1", "tiny", model.version)
    assert response["parameters"] == {"policy": policy, "promise": "none: thresholds were set by hand"}
    assert found.as_numpy("label").tolist() == pred.labels.tolist()
    assert found.as_numpy("exit").tolist() == pred.exits.tolist()
    assert np.allclose(found.as_numpy("confidence"), pred.confidence, atol=1e-6)
    assert np.allclose(found.as_numpy("probabilities"), pred.probabilities, atol=1e-6)
    assert np.allclose(found.as_numpy("cost"), model.net.cost[pred.exits])
    names = [one.decode() if isinstance(one, bytes) else one for one in found.as_numpy("class").tolist()]
    assert names == [model.info.classes[label] for label in pred.labels]
    assert not found.as_numpy("limited").any()
    maps, shapes = found.as_numpy("attention"), found.as_numpy("attention_shape").tolist()
    for mine, shape, theirs in zip(maps, shapes, pred.attention, strict=True):
        assert shape == list(theirs.shape)
        assert np.allclose(mine[: shape[0], : shape[1]], theirs, atol=1e-6)
        assert math.isclose(mine.sum(), theirs.sum(), abs_tol=1e-5)


def test_without_named_outputs_all_but_the_costly_come(peer, images):
    found = peer.infer("tiny", make_input(images[:2])).get_response()
    assert [one["name"] for one in found["outputs"]] == ["label", "probabilities", "exit", "confidence", "cost"]


def test_metadata(peer, model):
    assert peer.is_server_live()
    assert peer.is_server_ready()
    assert peer.is_model_ready("tiny")
    assert peer.is_model_ready("tiny", model.version)
    assert not peer.is_model_ready("other")
    assert not peer.is_model_ready("tiny", "1")
    assert "binary_tensor_data" in peer.get_server_metadata()["extensions"]
    said = peer.get_model_metadata("tiny")
    assert said["inputs"][0] == {"name": "inputs", "datatype": "FP32", "shape": [-1, 3, 16, 16]}
    assert {one["name"] for one in said["outputs"]} == {*OUTPUTS}
    assert said["versions"] == [model.version]


def test_encoded_images(peer, model, picture):
    one = triton.InferInput("image", [2], "BYTES")
    one.set_data_from_numpy(np.array([picture, picture], dtype=object))
    found = peer.infer("tiny", [one])
    pred = xl.predict(model.net, model.read_images([picture], 10**6)[0], POLICIES["default"])
    assert found.as_numpy("label").tolist() == pred.labels.tolist() * 2


def test_a_requests_own_terms(peer, model, images):
    wanted = [triton.InferRequestedOutput(name) for name in ("exit", "limited", "reason")]
    given = {"policy": "full", "max_cost": model.cost[1]}
    found = peer.infer("tiny", make_input(images[:3]), outputs=wanted, parameters=given)
    assert found.as_numpy("exit").tolist() == [1, 1, 1]
    assert found.as_numpy("limited").all()
    assert b"max_cost allowed no deeper exit" in found.as_numpy("reason")[0]
    assert found.get_response()["parameters"]["promise"] == "none: the policy's own was made without max_cost"
    found = peer.infer("tiny", make_input(images[:3]), outputs=wanted, parameters={"deadline_ms": 20000.0})
    assert not found.as_numpy("limited").any()
    with pytest.raises(triton.InferenceServerException, match="deadline_ms: it passed"):
        peer.infer("tiny", make_input(images[:3]), parameters={"deadline_ms": 0.001})


GOOD = {"name": "inputs", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": [0.0] * 768}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (
            {"inputs": [GOOD | {"shape": [1, 3, 16, 8], "data": [0.0] * 384}]},
            400,
            r"expected \(B,3,16,16\), got \(1, 3, 16, 8\)",
        ),
        ({"inputs": [GOOD | {"datatype": "FP64"}]}, 400, "expected float32, got float64"),
        ({"inputs": [GOOD | {"name": "input"}]}, 400, r"expected tensors named \['inputs'\], got \['input'\]"),
        ({"inputs": [GOOD | {"shape": [0, 3, 16, 16], "data": []}]}, 400, "expected 1 to 40 samples"),
        ({"inputs": [GOOD | {"shape": [41, 3, 16, 16], "data": [0.0] * 768 * 41}]}, 413, "expected 1 to 40 samples"),
        ({"inputs": [GOOD | {"shape": [], "data": [0.0]}]}, 400, "expected 1 to 40 samples"),
        ({"inputs": [GOOD | {"parameters": {"colour": 1}}]}, 400, r"\['colour'\] are not supported"),
        ({"outputs": [{"name": "labels"}]}, 400, "expected some of label.* Did you mean 'label'"),
        ({"parameters": {"max_costs": 1}}, 400, "Did you mean 'max_cost'"),
        ({"parameters": {"max_cost": "cheap"}}, 400, "expected a number of 0 or more"),
        ({"parameters": {"max_cost": 0.0}}, 400, r"max_cost: expected .* \(exit 0\) or more"),
        ({"parameters": {"min_confidence": 1.5}}, 400, "expected a number of 0 to 1"),
        ({"parameters": {"deadline_ms": True}}, 400, "deadline_ms: expected a number"),
        ({"parameters": {"policy": "../fast"}}, 400, "policy: expected one of"),
        ({"model_name": "other"}, 400, "the address says tiny"),
        ({"unknown": 1}, 400, "unknown"),
    ],
)
def test_bad_requests(client, change, status, words):
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [GOOD]} | change)
    assert answer.status_code == status
    assert pytest.importorskip("re").search(words, answer.json()["error"]), answer.text
    assert client.post("/v2/models/tiny/infer", json={"inputs": [GOOD]}).status_code == 200


def test_values_that_are_no_numbers(client, images):
    values = images[:1].clone()
    values[0, 0, 0, 0] = torch.nan
    body = values.numpy().tobytes()
    entry = {name: GOOD[name] for name in ("name", "shape", "datatype")} | {"parameters": {"binary_data_size": len(body)}}
    head = json.dumps({"inputs": [entry]}).encode()
    sent = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post("/v2/models/tiny/infer", content=head + body, headers=sent)
    assert (answer.status_code, "finite" in answer.json()["error"]) == (400, True)
    for length in ("1_0", "-3", "9" * 30, "٣"):
        sent = {b"Inference-Header-Content-Length": length.encode()}
        assert client.post("/v2/models/tiny/infer", content=head + body, headers=sent).status_code == 400


def test_unknown_places(client):
    for path in ("/v2/models/other/infer", "/v2/models/tiny/versions/1/infer", "/v2/models/..%2f..%2fetc/infer"):
        assert client.post(path, json={}).status_code == 404
    answer = client.get("/nothing")
    assert (answer.status_code, "openapi" in answer.json()["error"]) == (404, True)
    assert client.get("/v2/models/tiny/infer").status_code == 405
