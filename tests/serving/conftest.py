"""The tiny network, as it is served."""

import pytest

import exitlens as xl
from exitlens.serving.models import wrap_network
from tests.conftest import make_net

POLICIES = {"default": xl.Policy((0.8, 0.7)), "fast": xl.Policy((0.0, 0.0)), "full": xl.Policy.never(3)}


@pytest.fixture
def model():
    """With three policies."""
    net = make_net()
    net.describe(preprocess=xl.Preprocess((16, 16)), classes=("ant", "bee", "cat", "dog"))
    return wrap_network("tiny", net, POLICIES)
