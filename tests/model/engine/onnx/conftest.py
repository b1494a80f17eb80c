"""Files are written once; see tests/exported.py."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _written_once(files_written_once):
    """For every test here."""
