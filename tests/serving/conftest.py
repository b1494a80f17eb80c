"""The tiny network, as it is served."""

from functools import cache

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.serving.models import wrap_network
from tests.conftest import make_net

POLICIES = {"default": xl.Policy((0.8, 0.7)), "fast": xl.Policy((0.0, 0.0)), "full": xl.Policy.never(3)}


@pytest.fixture
def model():
    """Return the tiny network with three policies."""
    net = make_net()
    net.describe(preprocess=xl.data.Preprocess((16, 16)), classes=("ant", "bee", "cat", "dog"))
    return wrap_network("tiny", net, POLICIES)


class TinyText(nn.Module):
    """A classifier of texts of ten tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(40, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        features = self.b(self.a(self.embed(input_ids)).relu()).relu() * attention_mask[..., None]
        return self.fc(features.mean(1))


def make_text_net():
    torch.manual_seed(0)
    tokens = torch.randint(4, 40, (12, 10))
    texts = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return xl.attach(TinyText(), ["a", "b"], 3, texts), texts


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
