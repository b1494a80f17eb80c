"""Samples that wait: rows keep their order, and each is copied once."""

import math

import pytest
import torch

from exitlens.model.engine.pools import Pool, gather


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gather_keeps_the_memory_format(memory_format):
    x = torch.randn(6, 3, 4, 5).contiguous(memory_format=memory_format)
    rows = torch.tensor([4, 0, 5])
    found = gather(x, rows)
    assert torch.equal(found, x[rows])
    assert found.is_contiguous(memory_format=memory_format)
    assert torch.equal(gather(x[:, 0, 0], rows), x[rows, 0, 0])


def test_rows_come_out_as_they_came_in_but_for_those_that_were_discarded():
    pool, x = Pool(), torch.arange(12.0).reshape(12, 1)
    stay = torch.tensor([1, 3, 5])
    pool.add(stay, (x[:8],), stay, 2.0, 8)
    pool.add(torch.arange(8, 12), (x[8:],), None, 3.0, 0)
    pool.discard(torch.tensor([3, 9, 77]))
    assert pool.count == 5
    where, (rows,), since = pool.take(2)
    assert where.tolist() == rows.squeeze(1).tolist() == [1, 5]
    assert since == 2.0
    where, (rows,), _ = pool.take(2)
    assert where.tolist() == rows.squeeze(1).tolist() == [8, 10, 11]
    assert (pool.count, pool.since) == (0, math.inf)
    pool.discard(torch.tensor([1]))
