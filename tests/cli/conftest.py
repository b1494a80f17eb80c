"""The verbs as a user types them, in this process."""

import json
from typing import Any

import pytest

from tests.conftest import build_once
from tests.ranks import call as call_main


@pytest.fixture(autouse=True)
def _networks_are_built_once(monkeypatch):
    build_once(monkeypatch)


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
        """What a command that is refused prints, in one line."""
        code, _, err = self(*words)
        assert (code, err[:6]) == (2, "error:")
        return " ".join(err.split())


@pytest.fixture
def call():
    return Caller()
