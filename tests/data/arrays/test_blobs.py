import pytest
import torch

import exitlens as xl
from exitlens.modalities import VOLUME


def test_the_solid_is_where_the_mask_is():
    data = xl.make_blobs(90, offset_agreement=1.0, seed=0, size=16)
    assert data.modality is VOLUME
    assert data.values.shape == (90, 1, 16, 16, 16)
    assert data.labels.bincount().tolist() == [30] * 3
    assert data.masks.shape == (90, 16, 16, 16)
    sizes = data.masks.flatten(1).sum(1)
    assert sizes.min() > 8
    assert sizes.max() < 16**3 // 10
    levels = torch.linspace(-0.5, 0.5, 3)[data.labels]
    values = data.values[:, 0]
    inside = torch.stack([values[i][data.masks[i]].mean() for i in range(90)])
    outside = torch.stack([values[i][~data.masks[i]].mean() for i in range(90)])
    torch.testing.assert_close(outside, levels, atol=0.05, rtol=0)
    assert (inside - outside).mean() == pytest.approx(1.5, abs=0.1)
    sides = torch.stack(
        [data.masks.flatten(2).any(2).sum(1), data.masks.any(1).any(2).sum(1), data.masks.any(1).any(1).sum(1)]
    )
    longest, shortest = sides.max(0).values, sides.min(0).values
    assert (longest[data.labels == 2] >= 2 * shortest[data.labels == 2]).all()  # rods
    assert (longest[data.labels == 0] <= shortest[data.labels == 0] + 1).all()  # balls


def test_the_brightness_agrees_as_often_as_asked():
    one, other = (xl.make_blobs(300, offset_agreement=share, seed=5, size=10) for share in (0.5, 0.0))
    levels = torch.linspace(-0.5, 0.5, 3)
    outside = torch.stack([one.values[i, 0][~one.masks[i]].mean() for i in range(300)])
    agreed = (outside[:, None] - levels).abs().argmin(1) == one.labels
    assert agreed.float().mean() == pytest.approx(0.5, abs=0.08)
    assert one.masks.equal(other.masks)


def test_splits():
    one, other = xl.load_blobs("validation", seed=1, size=10), xl.load_blobs("validation", seed=1, size=10, limit=5)
    assert (len(one), len(other)) == (300, 5)
    assert one.first(5).values.equal(other.values)
    for how, message in (({"split": "dev"}, "split"), ({"split": "test", "size": 4}, "size: expected 10 voxels")):
        with pytest.raises(xl.InputError, match=message):
            xl.load_blobs(**how)
