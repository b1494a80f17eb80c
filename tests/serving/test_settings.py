"""Settings are checked by name when they are made."""

from dataclasses import fields
from pathlib import Path

import pytest

import exitlens as xl
from exitlens.serving.settings import Batching, Limits, ServerSettings, Watching, name_bundles


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bundles": {}}, "bundles: expected at least one"),
        ({"workers": 0}, "workers"),
        ({"workers": 1.5}, "workers"),
        ({"port": 99999}, "port: expected a whole number from 0 to 65535, got 99999"),  # uvloop takes the lower 16 bits
        ({"tls_cert": Path(__file__)}, "both or neither"),
        ({"tls_key": Path(__file__)}, "both or neither"),
        ({"tls_cert": Path(__file__), "tls_key": Path("none")}, "tls_key: expected a file"),
    ],
)
def test_server_settings_that_are_refused(values, words):
    with pytest.raises(xl.errors.InputError, match=words):
        ServerSettings(**{"bundles": {"a": Path()}} | values)


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        *((Batching, name, (0, 1.5, True)) for name in ("batch", "max_waiting")),
        *((Batching, name, (-1, float("nan"), "1")) for name in ("max_delay_ms", "max_wait_ms")),
        (Batching, "threads", (-1,)),
        (Watching, "shadow", (-0.1, 1.1, float("nan"), "1")),
        (Watching, "drift_rate", (0, float("inf"))),
        *((Limits, each.name, (0, -1, True, "1", float("nan"), float("inf"), None)) for each in fields(Limits)[:-1]),
        (Limits, "max_batch", (1.5,)),
        (Limits, "token", ("two words", "line\n", "käse", None, b"bytes")),
    ],
)
def test_values_that_are_refused(kind, name, wrong):
    for value in wrong:
        with pytest.raises(xl.errors.InputError, match=f"^{name}: expected"):
            kind(**{name: value})


def test_a_token_is_not_shown():
    assert "secret" not in repr(ServerSettings({"a": Path()}, limits=Limits(token="secret")))


def test_bundles_are_named_by_the_caller_or_by_their_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name_bundles(["a=runs/x", "runs/b.1", "c-2=runs/lr=0.1", "."]) == {
        "a": Path("runs/x"),
        "b.1": Path("runs/b.1"),
        "c-2": Path("runs/lr=0.1"),
        tmp_path.name: Path(),
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([""], "DIR or NAME=DIR, got ''"),
        (["a="], "DIR or NAME=DIR, got 'a='"),
        (["a b=x"], "letters, digits.*'a b'"),
        (["-a=x"], "letters, digits"),
        (["a/b=x"], "letters, digits"),
        (["ä=x"], "letters, digits"),
        (["runs/my bundle"], "got 'my bundle'.*NAME=DIR"),
        (["/"], "letters, digits"),
        (["a=x", "runs/a"], "two models are called a"),
    ],
)
def test_names_that_are_refused(given, words):
    with pytest.raises(xl.errors.InputError, match=words):
        name_bundles(given)
