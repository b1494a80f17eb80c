"""The routes for people: files and texts in, answers and pictures out."""

import io

import pytest
from PIL import Image

import exitlens as xl
from exitlens.serving.http.application import make_app
from exitlens.serving.models import wrap_network
from exitlens.serving.repository import Repository
from tests.serving.conftest import POLICIES
from tests.serving.http.conftest import encode, open_client
from tests.texts import LENGTH, make_text_net


def test_an_image_as_it_is_and_as_a_form(client, model, picture):
    pred = xl.predict(model.net, model.read_images([picture], 10**6)[0], POLICIES["default"])
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
    assert [one["exit"] for one in both] == [0, 0]


def test_explanations_as_pictures_and_json(client, model, picture):
    strip = Image.open(io.BytesIO(client.post("/explain", content=picture).content))
    one = Image.open(io.BytesIO(client.post("/explain?exit=1", content=picture).content))
    limited = Image.open(io.BytesIO(client.post(f"/explain?max_cost={model.cost[0]}", content=picture).content))
    assert strip.format == one.format == limited.format == "PNG"
    assert strip.width > 3 * one.width
    said = client.post("/explain?policy=full", content=picture, headers={"Accept": "application/json"}).json()
    assert (said["answered"], len(said["exits"]), said["policy"]) == (2, 3, "full")
    assert client.post("/explain?exit=9", content=picture).json()["error"].startswith("exit: expected 0 to 2")


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", "", "got nothing"),
        (b"\x89PNG\r\n\x1a\n", "", "image[0]"),
        (b"no image", "image/png", "image[0]"),
        (b"a text", "text/plain", "tiny takes images"),
        (b"{}", "application/json", '{"text": "..."}'),
        (b"{", "application/json", "expected JSON"),
        (b"[" * 100_000, "application/json", "expected JSON"),
    ],
)
def test_bad_bodies(client, picture, content, kind, words):
    answer = client.post("/classify", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert "/" not in answer.json()["error"].replace("application/json", "")
    assert client.post("/classify", content=picture).status_code == 200


def test_a_picture_of_too_many_pixels(model, picture):
    from exitlens.serving.settings import Limits

    with open_client(make_app(Repository({}, models={"tiny": model}), Limits(max_pixels=100))) as client:
        answer = client.post("/classify", content=picture)
        assert (answer.status_code, "pixels" in answer.json()["error"]) == (400, True)
        assert client.post("/classify", content=encode(Image.new("L", (5, 5)))).status_code == 200


def test_bad_forms(client, picture):
    assert "got none" in client.post("/classify", data={"policy": "fast"}, files={"x": ("", b"")}).json()["error"]
    several = [("file", ("a.png", picture))] * 2
    assert "expected one, got 2" in client.post("/explain", files=several).json()["error"]
    assert client.post("/classify", files=[("file", ("a.png", picture))] * 41).status_code in (400, 413)
    broken = {"Content-Type": "multipart/form-data"}
    assert client.post("/classify", content=b"x", headers=broken).status_code == 400


def test_texts():
    net = make_text_net()
    net.describe(preprocess=xl.data.TextPreprocess(xl.data.word_tokenizer(["a fine film", "a dull one"]), LENGTH))
    model = wrap_network("texts", net, {"default": xl.Policy.never(net.num_exits)})
    with open_client(make_app(Repository({}, models={"texts": model}))) as client:
        plain = client.post("/classify", content="a fine film", headers={"Content-Type": "text/plain"}).json()
        as_json = client.post("/classify", json={"text": "a fine film", "policy": "default"}).json()
        assert plain["label"] == as_json["label"], (plain, as_json)
        assert plain["probabilities"] == as_json["probabilities"]
        assert client.post("/explain", json={"text": "a fine film"}).status_code == 406
        why = client.post("/explain", json={"text": "a fine film"}, headers={"Accept": "application/json"}).json()
        assert why["answered"] == net.num_exits - 1
        assert client.post("/classify", json={"text": " "}).status_code == 400
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a fine film", "dull"]}
        found = client.post("/v2/models/texts/infer", json={"inputs": [tensor]}).json()
        assert found["outputs"][0]["data"][0] == plain["label"]


def test_what_there_is_to_ask(client, model):
    (described,) = client.get("/models").json()["models"]
    assert described["classes"] == list(model.info.classes)
    assert {*described["policies"]} == {*POLICIES}
    assert "set by hand" in described["policies"]["fast"]["certificate"]
