import errno

import pytest
import torch

from exitlens.workflow.training import features
from exitlens.workflow.training.features import FeatureCache, Room


@pytest.mark.parametrize("left", [0, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_features_keep_their_memory_order_in_memory_and_on_disk(tmp_path, left, dtype):
    like = torch.zeros(4, 3, 5, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    room = Room(tmp_path, left)
    kept = room.allocate(9, like)
    assert kept.shape == (9, 3, 5, 2)
    assert kept.dtype == dtype
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert list(tmp_path.iterdir()) == []  # a file without a name
    kept[2:6] = like + 1 if dtype != torch.bool else ~like
    assert torch.equal(kept[[2, 5]], (like + 1 if dtype != torch.bool else ~like)[:2])
    assert room.left == (left if left == 0 else left - kept.numel() * kept.element_size())


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(features.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        Room(tmp_path, 0).allocate(10, torch.zeros(1, 3))


def test_batches_leave_out_samples_without_a_row():
    cache = FeatureCache({"0.0": torch.arange(3.0)[:, None]}, torch.tensor([5, 6, 7]), torch.tensor([0, -1, 1, -1, 2]))
    batches = list(cache.open([[4, 1, 0], [1, 2], [3]]))
    assert len(batches) == 1  # of the second batch one sample is left, of the third none
    assert batches[0].inputs["0.0"].tolist() == [[2.0], [0.0]]
    assert batches[0].labels.tolist() == [7, 5]
    assert len(cache.open([[0], [2]])) == 2
    assert [batch.labels.tolist() for batch in cache.open([[0], [2]])] == [[5], [6]]
