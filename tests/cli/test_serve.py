"""serve on the command line: what it tells the server, and what it refuses before it starts one."""

import sys
from pathlib import Path

import pytest

from exitlens.serving.settings import Batching, Limits, ServerSettings, Watching


@pytest.fixture
def served(monkeypatch):
    """The settings that the server was started with."""
    found = []
    monkeypatch.setattr("exitlens.serving.server.serve", found.append)
    return found


def test_the_defaults_are_those_of_the_settings(call, served):
    code, _, err = call("serve", "--bundle", "runs/demo")
    assert code == 0, err
    assert served == [ServerSettings({"demo": Path("runs/demo")})]


def test_every_option_arrives(call, served, tmp_path):
    for name in ("cert", "key"):
        (tmp_path / name).write_text("")
    (tmp_path / "token").write_text("secret\n")
    words = "--bundle a=x --bundle y/b --host 0.0.0.0 --port 0 --workers 2 --threads 3 --batch 8 --max-delay-ms 5"
    words += " --max-waiting 10 --max-wait-ms 250 --max-body-mb 1.5 --max-pixels 1000 --max-batch 4 --timeout 7"
    words += f" --max-connections 9 --token-file {tmp_path / 'token'} --tls-cert {tmp_path / 'cert'}"
    words += f" --tls-key {tmp_path / 'key'} --reload-seconds 0 --no-access-log --no-drift --unready-on-drift --shadow 0.25"
    code, _, err = call("serve", *words.split())
    assert code == 0, err
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
        (("--bundle", "x", "--tls-cert", "c"), "tls_cert, tls_key: expected both or neither"),
        (("--bundle", "x", "--timeout", "inf"), "request_seconds"),
    ],
)
def test_what_is_refused_is_told_in_one_line(call, served, words, message):
    code, out, err = call("serve", *words)
    assert (code, out, served) == (2, "", [])
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("--bundle", "x", "--batch", "0"), ("--bundle", "x", "--max-wait-ms", "nan")])
def test_options_that_are_no_options(call, served, words):
    assert call("serve", *words)[0] == 2
    assert served == []


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
