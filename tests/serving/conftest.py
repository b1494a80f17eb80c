"""The tiny network, as it is served."""

import time
from functools import cache

import pytest
import torch

import exitlens as xl
from exitlens.model.engine.journal import read_lines
from exitlens.serving.models import wrap_network
from tests.conftest import make_net

POLICIES = {"default": xl.Policy((0.8, 0.7)), "fast": xl.Policy((0.0, 0.0)), "full": xl.Policy.never(3)}


@pytest.fixture
def model():
    """Return the tiny network with three policies."""
    net = make_net()
    net.describe(preprocess=xl.data.Preprocess((16, 16)), classes=("ant", "bee", "cat", "dog"))
    return wrap_network("tiny", net, POLICIES)


@cache
def make_small():
    """Return the small network, which can be loaded from its bundle alone."""
    torch.manual_seed(3)
    net = xl.attach(xl.build_backbone("small", 3), 2, 3, torch.zeros(1, 3, 28, 28))
    net.describe(source="small", preprocess=xl.data.Preprocess((28, 28)))
    return net


def save_small(directory, *thresholds):
    """Save a bundle of the small network, in place of one that is there."""
    return xl.save(make_small(), xl.Policy(thresholds or (0.5, 0.5)), directory, overwrite=directory.exists())


def wait_until(is_true, seconds=10):
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, f"not true within {seconds} seconds"
        time.sleep(0.02)


def read_statuses(folder):
    """Return the last status in each file of the model's journal."""
    return {path.name: read_lines(path)[-1]["status"] for path in folder.glob("*/*/*.jsonl") if read_lines(path)}
