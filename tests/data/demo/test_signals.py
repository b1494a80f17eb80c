import pytest
import torch

import exitlens as xl
from exitlens.data.demo.signals import MOTIFS
from exitlens.modalities import SERIES, VOLUME


def test_the_motif_is_where_the_mask_is():
    data = xl.demo.make_motifs(400, offset_agreement=1.0, seed=3, length=64)
    assert data.modality is SERIES
    assert data.values.shape == (400, 2, 64)
    assert data.labels.bincount().tolist() == [100] * 4
    assert data.masks.sum(1).tolist() == [16] * 400
    signal = data.values[:, 0]
    assert signal[~data.masks].std() == pytest.approx(0.4, abs=0.02)
    shapes = torch.stack([signal[i][data.masks[i]] for i in range(400)])
    means = torch.stack([shapes[data.labels == label].mean(0) for label in range(4)])
    assert means[0].argmax() > 12  # it rises
    assert 6 <= means[1].argmax() <= 9  # a peak in the middle
    assert means[3][:7].min() > 1 > -1 > means[3][9:].max()  # a step down


@pytest.mark.parametrize(("agreement", "expected"), [(1.0, 1.0), (0.6, 0.6), (0.25, 0.25), (0.0, 0.0)])
def test_the_level_agrees_as_often_as_asked(agreement, expected):
    data = xl.demo.make_motifs(2000, offset_agreement=agreement, seed=1)
    levels = torch.linspace(-1.5, 1.5, 4)
    found = (data.values[:, 1].mean(1)[:, None] - levels).abs().argmin(1)
    assert (found == data.labels).float().mean() == pytest.approx(expected, abs=0.04)
    other = xl.demo.make_motifs(2000, offset_agreement=0.5, seed=1)
    assert data.values[:, 0].equal(other.values[:, 0])
    assert data.labels.equal(other.labels)


def test_splits_are_disjoint_and_repeatable():
    one, other = xl.demo.load_motifs("validation", seed=2), xl.demo.load_motifs("validation", seed=2, limit=10)
    assert (len(one), len(other)) == (500, 10)
    assert one.first(10).values.equal(other.values)
    assert not xl.demo.load_motifs("test", limit=10).values.equal(xl.demo.load_motifs("validation", limit=10).values)
    assert one.classes == MOTIFS


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"count": 0}, "count: expected 1 sample"),
        ({"offset_agreement": 1.5}, "offset_agreement: expected a number in"),
        ({"length": 8}, "length: expected 16 steps"),
    ],
)
def test_numbers_out_of_range(how, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.demo.make_motifs(**({"count": 4, "offset_agreement": 0.5, "seed": 0} | how))
    with pytest.raises(xl.errors.InputError, match="split: expected one of"):
        xl.demo.load_motifs("dev")


def test_the_solid_is_where_the_mask_is():
    data = xl.demo.make_blobs(90, offset_agreement=1.0, seed=0, size=16)
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
    one, other = (xl.demo.make_blobs(300, offset_agreement=share, seed=5, size=10) for share in (0.5, 0.0))
    levels = torch.linspace(-0.5, 0.5, 3)
    outside = torch.stack([one.values[i, 0][~one.masks[i]].mean() for i in range(300)])
    agreed = (outside[:, None] - levels).abs().argmin(1) == one.labels
    assert agreed.float().mean() == pytest.approx(0.5, abs=0.08)
    assert one.masks.equal(other.masks)


def test_splits():
    one, other = (
        xl.demo.load_blobs("validation", seed=1, size=10),
        xl.demo.load_blobs("validation", seed=1, size=10, limit=5),
    )
    assert (len(one), len(other)) == (300, 5)
    assert one.first(5).values.equal(other.values)
    for how, message in (({"split": "dev"}, "split"), ({"split": "test", "size": 4}, "size: expected 10 voxels")):
        with pytest.raises(xl.errors.InputError, match=message):
            xl.demo.load_blobs(**how)
