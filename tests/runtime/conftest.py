"""Files are written once; see tests/exported.py."""

import pytest

from exitlens.edge import export
from tests.exported import write_once

_write = write_once(export.write_segments)


@pytest.fixture(autouse=True, scope="module")
def _write_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write_segments", _write)
        yield
