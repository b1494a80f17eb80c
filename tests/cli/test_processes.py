"""The command line as one of several processes."""

from types import SimpleNamespace

import pytest

from exitlens import cli, errors
from exitlens.cli import options


@pytest.fixture
def second(monkeypatch):
    """This process is the second of two that torchrun started."""
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("RANK", "1")):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("verb", ["predict", "report", "explain", "demo", "bench"])
def test_verbs_for_one_process_refuse_several(second, call, verb):
    err = call.error(verb, "--bundle", "x")
    assert f"{verb} runs in one: start it without torchrun" in err.replace("\n", " ")


def test_the_first_process_alone_prints_and_tells_what_all_know(second, call, monkeypatch):
    told, error = [], errors.DataError("no such data")

    def act():
        options.console.print("a table")
        options.show(True, {"a": 1})
        raise error

    monkeypatch.setattr(cli, "verbs", act)
    monkeypatch.setattr("exitlens.ranks.find_ranks", lambda: SimpleNamespace(gather=told.append))
    assert call("fit") == (2, "", "error: no such data\n")  # nobody else knows
    error.is_told = True
    assert call("fit") == (2, "", "")
    assert told == [None]
