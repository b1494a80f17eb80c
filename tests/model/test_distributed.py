"""Several processes: a network sent to a worker, and distributed data parallel training."""

from __future__ import annotations

import os

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import exitlens as xl
from tests.conftest import make_net
from tests.ranks import open_pair
from tests.texts import make_text_net, make_texts

pytestmark = pytest.mark.slow
LABELS = torch.tensor([0, 1, 2, 3] * 4)


def _images() -> torch.Tensor:
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def _gradients(net: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in net.parameters() if p.grad is not None]


def _train(rank: int) -> list[torch.Tensor]:
    """Half of the batch in each process: the averaged gradients."""
    net = DistributedDataParallel(make_net().eval())  # evaluation: batch norm sees half of the batch in each
    xl.EGTLoss()(net(_images()[rank::2]), LABELS[rank::2]).total.backward()
    return _gradients(net)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel_averages_the_gradients(tmp_path):
    with open_pair(tmp_path) as pair:
        first, second = pair.run(_train)
    net = make_net()
    halves = [xl.EGTLoss()(net(_images()[i::2]), LABELS[i::2]).total for i in (0, 1)]
    (sum(halves) / 2).backward()
    assert len(first) == len(list(net.parameters()))
    for alone, averaged, same in zip(_gradients(net), first, second, strict=True):
        torch.testing.assert_close(alone, averaged)
        assert torch.equal(averaged, same)


def _answer(net: xl.ExitNet, inputs: object, results: object) -> None:
    torch.set_num_threads(1)
    pred = xl.predict(net, inputs, xl.Policy((0.9, 0.5)))
    results.put((os.getpid(), pred.exits.tolist(), pred.probabilities.numpy()))


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_network_is_sent_to_a_worker(kind):
    net, inputs = (make_net(), _images()) if kind == "images" else (make_text_net(), make_texts())
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    worker = context.Process(target=_answer, args=(net, inputs, results))
    worker.start()
    process, exits, probabilities = results.get()
    worker.join()
    assert process != os.getpid()
    expected = xl.predict(net, inputs, xl.Policy((0.9, 0.5)))
    assert exits == expected.exits.tolist()
    torch.testing.assert_close(torch.from_numpy(probabilities), expected.probabilities)
