"""Two processes train one network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import exitlens as xl
from exitlens.ranks import Ranks
from tests.conftest import TinyNet
from tests.ranks import Pair, open_pair

QUICK = {"epochs": 3, "batch_size": 8, "progress": False, "amp": False}


class WithoutStatistics(TinyNet):
    """No batch norm: its result does not depend on how a batch is split."""

    def __init__(self) -> None:
        super().__init__()
        for stage in (self.a, self.b):
            stage[1] = nn.GroupNorm(2, stage[1].num_features)


def make_data(count: int = 29) -> xl.ImageSet:
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 60, (count, 3, 16, 16), generator=torch.Generator().manual_seed(3))
    return xl.ImageSet((pixels + (labels * 40)[:, None, None, None]).to(torch.uint8), labels, ("w", "x", "y", "z"))


def make_net(plain: type[nn.Module] = WithoutStatistics, seed: int = 7) -> xl.ExitNet:
    torch.manual_seed(seed)
    return xl.attach(plain(), ["a", "b"], 4, torch.zeros(1, 3, 16, 16))


def train(rank: int, **how) -> tuple[dict, list]:
    """The weights and the history of a run."""
    plain, data, own = how.pop("plain", WithoutStatistics), make_data(how.pop("count", 29)), how.pop("loader", None)
    net = make_net(plain, seed=7 + rank)  # ranks begin with the weights of rank 0
    source = data
    if own == "generator":
        source = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(5), drop_last=True)
    elif own == "sampler":
        source = DataLoader(data, 4, sampler=DistributedSampler(data, seed=3))
    elif own == "global":
        source = DataLoader(data, 8, shuffle=True)
    result = xl.fit(net, source, data, **{**QUICK, **how})
    return {name: value.clone() for name, value in net.state_dict().items()}, result.history


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with open_pair(tmp_path_factory.mktemp("pair")) as found:
        yield found


def run(pair: Pair, **how):
    return pair.run(_train, how)


def _train(rank, how):
    return train(rank, **how)


def strip(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("count", [29, 7])
def test_two_processes_train_as_one_does(pair, count):
    (first, history), (second, other) = run(pair, count=count)
    assert equal(first, second)
    assert strip(history) == strip(other)
    alone, expected = train(0, count=count, ranks=Ranks())
    for name in alone:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(history, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-7)
        assert mine["accuracy"] == pytest.approx(theirs["accuracy"])
        assert mine["cc"] == pytest.approx(theirs["cc"], abs=1e-4)
