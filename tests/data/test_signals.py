import pytest
import torch

import exitlens as xl
from exitlens.data.demo import load_blobs, load_motifs, make_blobs, make_motifs
from exitlens.modalities import SERIES, VOLUME


def test_the_motif_is_where_the_mask_is():
    data = make_motifs(400, offset_agreement=1.0, seed=3, length=64)
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


@pytest.mark.parametrize("agreement", [1.0, 0.6, 0.25, 0.0])
def test_the_level_agrees_as_often_as_asked(agreement):
    data = make_motifs(2000, offset_agreement=agreement, seed=1)
    levels = torch.linspace(-1.5, 1.5, 4)
    found = (data.values[:, 1].mean(1)[:, None] - levels).abs().argmin(1)
    assert (found == data.labels).float().mean() == pytest.approx(agreement, abs=0.04)
    other = make_motifs(2000, offset_agreement=0.5, seed=1)
    assert data.values[:, 0].equal(other.values[:, 0])
    assert data.labels.equal(other.labels)


@pytest.mark.parametrize(("load", "how", "count"), [(load_motifs, {}, 500), (load_blobs, {"size": 10}, 300)])
def test_splits_are_disjoint_and_repeatable(load, how, count):
    whole = load("validation", seed=2, **how)
    few, test = (load(split, seed=2, limit=10, **how) for split in ("validation", "test"))
    assert (len(whole), len(few)) == (count, 10)
    assert whole.first(10).values.equal(few.values)
    assert not test.values.equal(few.values)
    with pytest.raises(xl.errors.InputError, match="split: expected one of"):
        load("dev")


@pytest.mark.parametrize(
    ("make", "how", "message"),
    [
        (make_motifs, {"count": 0}, "count: expected a whole number of 1 or more"),
        (make_motifs, {"offset_agreement": 1.5}, "offset_agreement: expected a number in"),
        (make_motifs, {"length": 8}, "length: expected 16 steps"),
        (make_blobs, {"size": 4}, "size: expected 10 voxels"),
    ],
)
def test_numbers_out_of_range(make, how, message):
    with pytest.raises(xl.errors.InputError, match=message):
        make(**({"count": 4, "offset_agreement": 0.5, "seed": 0} | how))


def test_the_solid_is_where_the_mask_is():
    data = make_blobs(90, offset_agreement=1.0, seed=0, size=16)
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
    sides = torch.stack([data.masks.any(a).any(b).sum(1) for a, b in ((2, 2), (1, 2), (1, 1))])
    longest, shortest = sides.max(0).values, sides.min(0).values
    assert (longest[data.labels == 2] >= 2 * shortest[data.labels == 2]).all()  # rods
    assert (longest[data.labels == 0] <= shortest[data.labels == 0] + 1).all()  # balls


def test_the_brightness_agrees_as_often_as_asked():
    one, other = (make_blobs(300, offset_agreement=share, seed=5, size=10) for share in (0.5, 0.0))
    levels = torch.linspace(-0.5, 0.5, 3)
    outside = torch.stack([one.values[i, 0][~one.masks[i]].mean() for i in range(300)])
    agreed = (outside[:, None] - levels).abs().argmin(1) == one.labels
    assert agreed.float().mean() == pytest.approx(0.5, abs=0.08)
    assert one.masks.equal(other.masks)
