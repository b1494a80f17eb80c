"""The verbs as a user types them, in this process."""

import sys

import pytest

from exitlens import cli
from tests.conftest import build_once


@pytest.fixture(autouse=True)
def _networks_are_built_once(monkeypatch):
    build_once(monkeypatch)


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs a command line: its exit code, what it printed, and what it printed on standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["exitlens", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run
