"""The app: metrics, description, page, log, token, and that requests outlive a replaced bundle."""

import math
import threading
import time

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import exitlens as xl
from exitlens.serving.http.answers import DEFAULT_OUTPUTS, OUTPUTS, TERMS
from exitlens.serving.http.application import describe_api, make_app
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Limits
from tests.serving.conftest import save_small
from tests.serving.http.conftest import open_client
from tests.serving.test_metrics import parse


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


def test_a_token(model, picture):
    app = make_app(Repository({"tiny": model}), Limits(token="secret"))
    with open_client(app) as client:
        assert client.post("/classify", content=picture).status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/v2/health/ready").status_code == 200
        sent = {"Authorization": "Bearer secret"}
        assert client.post("/classify", content=picture, headers=sent).status_code == 200


@pytest.mark.slow
def test_a_new_version_takes_over_and_no_request_is_lost(tmp_path, picture):
    save_small(tmp_path / "b", 0.0, 0.0)
    repository = Repository({"b": tmp_path / "b"})
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
        time.sleep(0.1)
        manifest = (tmp_path / "b" / "manifest.json").read_bytes()
        (tmp_path / "b" / "manifest.json").write_text("{")  # half copied, perhaps
        time.sleep(0.15)
        assert client.get("/v2/health/ready").status_code == 200
        (tmp_path / "b" / "manifest.json").write_bytes(manifest)
        save_small(tmp_path / "b", math.inf, math.inf)
        until = time.monotonic() + 15
        while repository.find("b").model.version == first and time.monotonic() < until:
            assert client.get("/v2/health/ready").status_code == 200
            time.sleep(0.02)
        time.sleep(0.1)
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
        while endpoint.lag > 0.05 and time.monotonic() < until:
            time.sleep(0.01)
        assert endpoint.lag <= 0.05
        assert client.post("/classify", content=picture).status_code == 200


def test_the_description_names_models_terms_and_outputs():
    described = describe_api(["a", "b"])
    parameters = described["components"]["parameters"]
    assert parameters["model"]["schema"]["enum"] == ["a", "b"]
    names = [place["$ref"].rpartition("/")[2] for place in described["paths"]["/classify"]["post"]["parameters"]]
    assert names == ["model", *TERMS]
    infer = described["paths"]["/v2/models/{name}/infer"]["post"]
    assert all(f"`{name}` ({output.meaning})" in infer["description"] for name, output in OUTPUTS.items())
    assert all(f"`{name}`" in infer["description"] for name in TERMS)
    assert ", ".join(DEFAULT_OUTPUTS) in infer["description"]
    assert {"400", "404", "413", "429", "503", "504"} <= set(infer["responses"])


def test_the_description_has_every_route_and_its_places(model):
    repository = Repository({"tiny": model})
    try:
        routes = {route.path for route in make_app(repository).routes} - {"/", "/openapi.json"}
    finally:
        repository.close()
    described = describe_api([])
    assert set(described["paths"]) == routes
    places = {name for name, place in described["components"]["parameters"].items() if place["in"] == "path"}
    for path, verbs in described["paths"].items():
        for operation in verbs.values():
            named = {place["$ref"].rpartition("/")[2] for place in operation.get("parameters", ())}
            assert named & places == {part.strip("{}") for part in path.split("/") if part.startswith("{")}
