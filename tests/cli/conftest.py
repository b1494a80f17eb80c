"""The verbs as a user types them, in this process."""

import json
from typing import Any

import pytest

from tests.conftest import build_once, judge_few
from tests.ranks import call as call_main


@pytest.fixture(autouse=True)
def _networks_are_built_once_and_judged_on_few_samples(monkeypatch):
    build_once(monkeypatch)
    judge_few(monkeypatch)


class Caller:
    """Runs a command line: its exit code, what it printed, and what it printed on standard error."""

    def __call__(self, *words: object) -> tuple[int, str, str]:
        return call_main(list(map(str, words)))

    def ok(self, *words: object) -> str:
        """What a command prints that succeeds."""
        code, out, err = self(*words)
        assert code == 0, err
        return out

    def json(self, *words: object) -> dict[str, Any]:
        """The JSON that a command prints."""
        return json.loads(self.ok(*words, "--json"))

    def error(self, *words: object) -> str:
        """What a command that is refused prints, in one line, after what it printed while it was slow to find out."""
        code, _, err = self(*words)
        _, error, told = err.partition("error:")
        assert (code, error) == (2, "error:"), err
        return " ".join((error + told).split())


@pytest.fixture
def call():
    return Caller()
