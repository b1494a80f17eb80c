"""The explorer on the run that the command line trained."""

import pytest

from exitlens.delivery.explorer.core import Explorer
from tests.conftest import build_once


@pytest.fixture(autouse=True)
def _networks_are_built_once(monkeypatch):
    build_once(monkeypatch)


@pytest.fixture(scope="module")
def explorer(trained):
    return Explorer([trained])
