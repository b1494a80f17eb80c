"""The explorer on the run that the command line trained."""

import pytest

from exitlens.delivery.explorer.core import Explorer


@pytest.fixture(scope="module")
def explorer(trained):
    return Explorer([trained])
