"""The app: answers are those of predict, by Triton's client and by the routes for people; and what stands around them."""

import io
import json
import math
import re
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import exitlens as xl
from exitlens.serving.http.answers import DEFAULT_OUTPUTS, OUTPUTS, TERMS
from exitlens.serving.http.application import describe_api, make_app
from exitlens.serving.models import wrap_network
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Adapting, Batching, Limits
from tests.hostile import saved
from tests.serving.conftest import POLICIES, save_small, wait_until
from tests.serving.http.conftest import open_client
from tests.serving.test_metrics import parse
from tests.texts import make_text_net

triton = pytest.importorskip("tritonclient.http")


@pytest.fixture
def peer(client):
    with triton.InferenceServerClient(f"127.0.0.1:{client.port}") as triton_client:
        yield triton_client


def make_input(images, binary=True):
    tensor = triton.InferInput("inputs", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images.numpy(), binary_data=binary)
    return [tensor]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("policy", [*POLICIES])
def test_answers_are_those_of_predict(peer, model, images, policy, binary):
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    given = make_input(images[:9], binary)
    found = peer.infer("tiny", given, outputs=wanted, request_id="q1", parameters={"policy": policy})
    pred = xl.predict(model.net, images[:9], POLICIES[policy], attention=True)
    response = found.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("q1", "tiny", model.version)
    assert response["parameters"] == {"policy": policy, "promise": "none: thresholds were set by hand"}
    assert found.as_numpy("label").tolist() == pred.labels.tolist()
    assert found.as_numpy("exit").tolist() == pred.exits.tolist()
    assert np.allclose(found.as_numpy("confidence"), pred.confidence, atol=1e-6)
    assert np.allclose(found.as_numpy("probabilities"), pred.probabilities, atol=1e-6)
    assert np.allclose(found.as_numpy("cost"), model.net.cost[pred.exits])
    names = [name.decode() if isinstance(name, bytes) else name for name in found.as_numpy("class").tolist()]
    assert names == [model.info.classes[label] for label in pred.labels]
    assert not found.as_numpy("limited").any()
    maps, shapes = found.as_numpy("attention"), found.as_numpy("attention_shape").tolist()
    for padded, shape, attention in zip(maps, shapes, pred.attention, strict=True):
        assert shape == list(attention.shape)
        assert np.allclose(padded[: shape[0], : shape[1]], attention, atol=1e-6)
        assert math.isclose(padded.sum(), attention.sum(), abs_tol=1e-5)


def test_without_named_outputs_all_but_the_costly_come(peer, images):
    found = peer.infer("tiny", make_input(images[:2])).get_response()
    assert [output["name"] for output in found["outputs"]] == ["label", "probabilities", "exit", "confidence", "cost"]


def test_metadata(peer, model):
    assert peer.is_server_live()
    assert peer.is_server_ready()
    assert peer.is_model_ready("tiny")
    assert peer.is_model_ready("tiny", model.version)
    assert not peer.is_model_ready("other")
    assert not peer.is_model_ready("tiny", "1")
    assert "binary_tensor_data" in peer.get_server_metadata()["extensions"]
    described = peer.get_model_metadata("tiny")
    assert described["inputs"][0] == {"name": "inputs", "datatype": "FP32", "shape": [-1, 3, 16, 16]}
    assert {output["name"] for output in described["outputs"]} == {*OUTPUTS}
    assert described["versions"] == [model.version]


def test_encoded_images(peer, model, picture):
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([picture, picture], dtype=object))
    found = peer.infer("tiny", [tensor])
    pred = xl.predict(model.net, model.read([picture], 10**6)[0], POLICIES["default"])
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
        ({"inputs": [GOOD | {"shape": [1, 3, 16, 8], "data": [0.0] * 384}]}, 400, r"\(B,3,16,16\), got \(1, 3, 16, 8\)"),
        ({"inputs": [GOOD | {"shape": [0, 3, 16, 16], "data": []}]}, 400, "expected 1 to 40 samples"),
        ({"inputs": [GOOD | {"shape": [41, 3, 16, 16], "data": [0.0] * 768 * 41}]}, 413, "expected 1 to 40 samples"),
        ({"inputs": [GOOD | {"shape": [], "data": [0.0]}]}, 400, "expected 1 to 40 samples"),
        ({"outputs": [{"name": "labels"}]}, 400, "expected some of label.* Did you mean 'label'"),
        ({"parameters": {"max_cost": 0.0}}, 400, r"max_cost: expected .* \(exit 0\) or more"),
        ({"parameters": {"policy": "../fast"}}, 400, "policy: expected one of"),
        ({"model_name": "other"}, 400, "the address says tiny"),
        ({"parameters": {"max_cost": [1]}}, 400, "max_cost: expected a number"),
    ],
)
@pytest.mark.slow
def test_bad_requests(client, change, status, words):
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [GOOD]} | change)
    assert answer.status_code == status
    assert re.search(words, answer.json()["error"]), answer.text
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


def test_unknown_places(client, caplog):
    for path in ("/v2/models/other/infer", "/v2/models/tiny/versions/1/infer", "/v2/models/..%2f..%2fetc/infer"):
        assert client.post(path, json={}).status_code == 404
    answer = client.get("/nothing")
    assert (answer.status_code, "openapi" in answer.json()["error"]) == (404, True)
    assert answer.headers["x-request-id"]  # the guard saw it
    assert client.get("/v2/models/tiny/infer").status_code == 405
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_an_image_as_it_is_and_as_a_form(client, model, picture):
    pred = xl.predict(model.net, model.read([picture], 10**6)[0], POLICIES["default"])
    answer = client.post("/classify", content=picture).json()
    assert answer["label"] == pred.labels.item()
    assert answer["class"] == model.info.classes[answer["label"]]
    assert answer["exit"] == pred.exits.item()
    assert (answer["model"], answer["version"], answer["policy"]) == ("tiny", model.version, "default")
    assert list(answer["probabilities"].values()) == sorted(answer["probabilities"].values(), reverse=True)
    form = client.post("/classify", files={"file": ("a.png", picture)}, data={"policy": "full"}).json()
    assert (form["exit"], form["policy"]) == (2, "full")
    several = [("file", ("a.png", picture)), ("file", ("b.png", picture))]
    both = client.post("/classify?policy=fast", files=several).json()["answers"]
    assert [row["exit"] for row in both] == [0, 0]


def test_explanations_as_pictures_and_json(client, model, picture):
    strip = Image.open(io.BytesIO(client.post("/explain", content=picture).content))
    single = Image.open(io.BytesIO(client.post("/explain?exit=1", content=picture).content))
    limited = Image.open(io.BytesIO(client.post(f"/explain?max_cost={model.cost[0]}", content=picture).content))
    assert strip.format == single.format == limited.format == "PNG"
    assert strip.width > 3 * single.width
    as_json = {"Accept": "application/json"}
    why = client.post("/explain?policy=full", content=picture, headers=as_json).json()
    assert (why["answered"], len(why["exits"]), why["policy"]) == (2, 3, "full")
    answer = client.post(f"/explain?max_cost={model.cost[0]}", content=picture, headers=as_json).json()
    assert (answer["exit"], len(answer["attention"])) == (0, model.read([picture], 10**6)[0].shape[-1] // 2)
    assert client.post("/explain?exit=9", content=picture).json()["error"].startswith("exit: expected 0 to 2")


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", "", "got nothing"),
        (b"\x89PNG\r\n\x1a\n", "", "image[0]"),
        (b"no image", "image/png", "image[0]"),
        (b"a text", "text/plain", "tiny takes images"),
        (b"\xff", "text/plain", "expected UTF-8"),
        (b"{}", "application/json", '{"text": "..."}'),
        (b"{", "application/json", "expected JSON"),
        (b"[" * 100_000, "application/json", "expected JSON"),
        (b'{"text": "a", "max_cost": [1]}', "application/json", "max_cost"),
        (b'{"text": "a", "max_cost": 1' + b"0" * 400 + b"}", "application/json", "max_cost"),
    ],
)
@pytest.mark.slow
def test_bad_bodies(client, picture, content, kind, words):
    answer = client.post("/classify", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert "/" not in answer.json()["error"].replace("application/json", "")
    assert client.post("/classify", content=picture).status_code == 200


def test_a_picture_of_too_many_pixels(model, picture):
    with open_client(make_app(Repository({"tiny": model}), Limits(max_pixels=100))) as client:
        answer = client.post("/classify", content=picture)
        assert (answer.status_code, "pixels" in answer.json()["error"]) == (400, True)
        assert client.post("/classify", content=saved("PNG", Image.new("L", (5, 5)))).status_code == 200


def test_bad_forms(client, picture):
    assert "got none" in client.post("/classify", data={"policy": "fast"}, files={"x": ("", b"")}).json()["error"]
    several = [("file", ("a.png", picture))] * 2
    assert "expected one, got 2" in client.post("/explain", files=several).json()["error"]
    assert client.post("/classify", files=[("file", ("a.png", picture))] * 41).status_code in (400, 413)
    broken = {"Content-Type": "multipart/form-data"}
    assert client.post("/classify", content=b"x", headers=broken).status_code == 400


@pytest.mark.slow
def test_texts():
    net = make_text_net()
    net.describe(preprocess=xl.data.TextPreprocess(xl.data.word_tokenizer(["a fine film", "a dull one"]), 10))
    model = wrap_network("texts", net, {"default": xl.Policy.never(3)})
    with open_client(make_app(Repository({"texts": model}))) as client:
        plain = client.post("/classify", content="a fine film", headers={"Content-Type": "text/plain"}).json()
        as_json = client.post("/classify", json={"text": "a fine film", "policy": "default"}).json()
        assert plain["label"] == as_json["label"], (plain, as_json)
        assert plain["probabilities"] == as_json["probabilities"]
        assert client.post("/explain", json={"text": "a fine film"}).status_code == 406
        why = client.post("/explain", json={"text": "a fine film"}, headers={"Accept": "application/json"}).json()
        assert why["answered"] == 2
        assert client.post("/classify", json={"text": " "}).status_code == 400
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a fine film", "dull"]}
        found = client.post("/v2/models/texts/infer", json={"inputs": [tensor]}).json()
        assert found["outputs"][0]["data"][0] == plain["label"]


def test_what_there_is_to_ask(client, model):
    (described,) = client.get("/models").json()["models"]
    assert described["classes"] == list(model.info.classes)
    assert {*described["policies"]} == {*POLICIES}
    assert "set by hand" in described["policies"]["fast"]["certificate"]


def test_metrics_count_what_was_answered(client, picture):
    for policy in ("fast", "fast", "full"):
        client.post(f"/classify?policy={policy}", content=picture)
    client.post("/classify", content=b"none")
    found = parse(client.get("/metrics").text)
    tiny = ("model", "tiny")
    assert found["exitlens_answers_total", ("exit", "0"), tiny] == 2
    assert found["exitlens_answers_total", ("exit", "2"), tiny] == 1
    assert found["exitlens_requests_total", tiny, ("route", "/classify"), ("status", "200")] == 3
    assert found["exitlens_requests_total", tiny, ("route", "/classify"), ("status", "400")] == 1


@pytest.mark.slow
def test_the_description_is_openapi(client):
    validate = pytest.importorskip("openapi_spec_validator").validate
    described = client.get("/openapi.json").json()
    validate(described)
    for path, verbs in described["paths"].items():
        for verb in verbs:
            answer = client.request(verb, path.replace("{name}", "tiny").replace("{version}", "1"))
            assert answer.status_code != 405, path
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http:" not in page.text.replace("http://HOST", "").replace("http://127.0.0.1", "")


def test_a_log_line_says_which_model_answered_how(model, picture):
    lines = []
    with open_client(make_app(Repository({"tiny": model}), log=lines.append)) as client:
        client.post("/classify?policy=full", content=picture, headers={"X-Request-ID": "mine"})
    assert lines[0]["id"] == "mine"
    assert {"model": "tiny", "policy": "full", "exits": [2], "samples": 1}.items() <= lines[0].items()


@pytest.mark.slow
def test_a_new_version_takes_over_and_no_request_is_lost(tmp_path, picture):
    save_small(tmp_path / "b", 0.0, 0.0)
    repository = Repository({"b": tmp_path / "b"}, Batching(max_wait_ms=60_000))  # opening a bundle may hold the loop up
    first = repository.find("b").model.version
    codes, stop = [], threading.Event()
    with open_client(make_app(repository, reload_seconds=0.05)) as client:

        def ask():
            with httpx.Client(base_url=client.base_url) as asking:
                while not stop.is_set():
                    answer = asking.post("/classify", content=picture)
                    codes.append((answer.status_code, answer.json().get("version"), answer.json().get("exit")))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: codes)
        manifest = (tmp_path / "b" / "manifest.json").read_bytes()
        (tmp_path / "b" / "manifest.json").write_text("{")  # half copied, perhaps
        time.sleep(0.15)
        assert client.get("/v2/health/ready").status_code == 200
        (tmp_path / "b" / "manifest.json").write_bytes(manifest)
        save_small(tmp_path / "b", math.inf, math.inf)
        wait_until(lambda: repository.find("b").model.version != first, 60)
        assert client.get("/v2/health/ready").status_code == 200
        answered = len(codes)
        wait_until(lambda: len(codes) > answered + 3, 60)  # one from each thread may have been under way
        stop.set()
        for thread in threads:
            thread.join()
    second = repository.find("b").model.version
    assert {code for code, *_ in codes} == {200}
    assert {(version, exit_) for _, version, exit_ in codes} == {(first, 0), (second, 2)}


@pytest.mark.parametrize("path", ["/classify", "/v2/models/tiny/infer"])
def test_without_room_a_request_is_refused_before_it_is_read(model, monkeypatch, path):
    repository = Repository({"tiny": model})

    def refuse(count):
        raise xl.errors.RequestError(f"no room for {count}", 429, 2.0)

    with open_client(make_app(repository)) as client:
        monkeypatch.setattr(repository.find("tiny"), "check_room", refuse)
        for _ in range(2):  # over the same connection
            answer = client.post(path, content=bytes(1 << 20))
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
            assert answer.json() == {"error": "no room for 1"}


def test_a_model_whose_thread_has_ended_is_neither_ready_nor_live(model):
    repository = Repository({"tiny": model})
    with open_client(make_app(repository)) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        repository.find("tiny").close()
        for path in ("live", "ready"):
            assert client.get(f"/v2/health/{path}").status_code == 503
        assert client.post("/v2/models/tiny/infer", content=b"{}").status_code == 503


def test_the_lag_of_the_event_loop_counts_as_waiting(model, picture):
    repository = Repository({"tiny": model})

    async def hold(_):
        time.sleep(0.3)
        return PlainTextResponse("held")

    app = make_app(repository)
    app.router.routes.append(Route("/hold", hold))
    with open_client(app) as client:
        endpoint = repository.find("tiny")
        assert client.get("/hold").status_code == 200
        until, seen = time.monotonic() + 20, [endpoint.lag]
        while seen[-1] < 0.15 and time.monotonic() < until:
            seen.append(endpoint.lag)
        assert 0.15 < max(seen) < 3
        wait_until(lambda: endpoint.lag <= 0.05)
        assert client.post("/classify", content=picture).status_code == 200


def test_the_description_has_every_route_with_its_places_terms_and_outputs(model):
    repository = Repository({"tiny": model})
    try:
        routes = {route.path for route in make_app(repository).routes} - {"/", "/openapi.json"}
    finally:
        repository.close()
    described = describe_api(["a", "b"])
    assert set(described["paths"]) == routes
    parameters = described["components"]["parameters"]
    assert parameters["model"]["schema"]["enum"] == ["a", "b"]
    places = {name for name, place in parameters.items() if place["in"] == "path"}
    for path, verbs in described["paths"].items():
        for operation in verbs.values():
            names = [place["$ref"].rpartition("/")[2] for place in operation.get("parameters", ())]
            assert places & {*names} == {part.strip("{}") for part in path.split("/") if part.startswith("{")}
            assert path != "/classify" or names == ["model", *TERMS]
    infer = described["paths"]["/v2/models/{name}/infer"]["post"]
    assert all(f"`{name}` (" in infer["description"] for name in OUTPUTS)
    assert all(f"`{name}`" in infer["description"] for name in TERMS)
    assert ", ".join(DEFAULT_OUTPUTS) in infer["description"]
    assert {"400", "404", "413", "429", "503", "504"} <= set(infer["responses"])


@pytest.fixture
def adapting_client(model):
    repository = Repository({"tiny": model}, adapting=Adapting(adapt=0.3, audit=0.9, warm_up=400))
    with open_client(make_app(repository)) as client:
        yield client


def test_labels_come_later_by_the_id_of_their_request(adapting_client, images):
    client = adapting_client
    tensor = {"name": "inputs", "datatype": "FP32", "shape": list(images.shape), "data": images.flatten().tolist()}
    body, head = {"inputs": [tensor], "outputs": [{"name": "label"}]}, {"x-request-id": "mine"}
    answer = client.post("/v2/models/tiny/infer", json=body, headers=head).json()
    assert answer["parameters"]["promise"] == "adaptive"
    audited = client.get("/models").json()["models"][0]["adaptive"]["audited"]
    labels = [*answer["outputs"][0]["data"][1:], None]
    labels = [None, *(["ant", "bee", "cat", "dog"][label] for label in labels[:-1])]
    used = client.post("/v2/models/tiny/feedback", json={"id": "mine", "labels": labels}).json()["used"]
    assert audited - 1 <= used < len(images)  # and those that reached the final exit anyway
    assert client.post("/v2/models/tiny/feedback", json={"id": "mine", "labels": labels}).json() == {"used": 0}
    state = client.get("/models").json()["models"][0]["adaptive"]
    assert (state["taken"], state["labelled"], state["limit"], state["acts"]) == (len(images), used, 0.3, True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no", "body: expected"),
        (b"[1]", "body: expected"),
        (b'{"id": 3, "labels": []}', "id, labels: expected a text of at most 128, and a list of at most 256 labels"),
        (b'{"id": "%s", "labels": []}' % (b"a" * 200), "id, labels: expected a text of at most 128"),
        (b'{"id": "a", "labels": [4]}', "labels: expected 0 to 3 or a class's name, got 4"),
        (b'{"id": "a", "labels": ["fly"]}', "got 'fly'"),
        (b'{"id": "a", "labels": [true]}', "got True"),
        (b'{"id": "a", "labels": [[1]]}', "got [1]"),
    ],
)
@pytest.mark.slow
def test_feedback_that_is_refused(adapting_client, client, body, words):
    answer = adapting_client.post("/v2/models/tiny/feedback", content=body)
    assert (answer.status_code, words in answer.json()["error"]) == (400, True)
    assert "Fix: serve it with --adapt 0.02" in client.post("/v2/models/tiny/feedback", content=body).json()["error"]


def test_explanations_are_of_the_exit_that_answered(adapting_client, picture):
    adaptive = adapting_client.get("/models").json()["models"][0]["adaptive"]
    assert adaptive["thresholds"] == [0.8, 0.7]
    head = {"accept": "application/json"}
    shown = [adapting_client.post("/explain", content=picture, headers=head).json() for _ in range(12)]
    assert {each["promise"] for each in shown} == {"adaptive"}
    state = adapting_client.get("/models").json()["models"][0]["adaptive"]
    assert state["taken"] == 12
    assert sum(each["answered"] == 2 for each in shown) >= state["audited"]  # they would leave at exit 0 by the policy
