"""The tiny network as an edge bundle; files are written once, see tests/exported.py."""

import pytest

import exitlens as xl
import exitlens_runtime as er
from exitlens_runtime.sessions import BACKENDS
from tests.conftest import make_net

NET = make_net()


@pytest.fixture(autouse=True, scope="module")
def _written_once(files_written_once):
    """For every test here."""


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    """A bundle of a network that reads files."""
    NET.describe(classes=("w", "x", "y", "z"), preprocess=xl.data.Preprocess((16, 16)))
    return xl.export(NET, xl.Policy((0.8, 0.7)), tmp_path_factory.mktemp("edge") / "out")


@pytest.fixture(scope="module")
def runtime(edge):
    """The bundle in ONNX Runtime."""
    return er.load(edge, threads=1)


@pytest.fixture(scope="module", params=BACKENDS)
def opened(request, edge):
    """The bundle in each backend."""
    pytest.importorskip(request.param)
    return er.load(edge, backend=request.param, threads=1)
