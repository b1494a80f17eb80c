import pytest
import torch

import exitlens as xl
from exitlens.data.arrays.motifs import CLASSES
from exitlens.modalities import SERIES


def test_the_motif_is_where_the_mask_is():
    data = xl.make_motifs(400, offset_agreement=1.0, seed=3, length=64)
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
    data = xl.make_motifs(2000, offset_agreement=agreement, seed=1)
    levels = torch.linspace(-1.5, 1.5, 4)
    found = (data.values[:, 1].mean(1)[:, None] - levels).abs().argmin(1)
    assert (found == data.labels).float().mean() == pytest.approx(expected, abs=0.04)
    other = xl.make_motifs(2000, offset_agreement=0.5, seed=1)
    assert data.values[:, 0].equal(other.values[:, 0])
    assert data.labels.equal(other.labels)


def test_splits_are_disjoint_and_repeatable():
    one, other = xl.load_motifs("validation", seed=2), xl.load_motifs("validation", seed=2, limit=10)
    assert (len(one), len(other)) == (500, 10)
    assert one.first(10).values.equal(other.values)
    assert not xl.load_motifs("test", limit=10).values.equal(xl.load_motifs("validation", limit=10).values)
    assert one.classes == CLASSES


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"count": 0}, "count: expected 1 sample"),
        ({"offset_agreement": 1.5}, "offset_agreement: expected a number in"),
        ({"length": 8}, "length: expected 16 steps"),
    ],
)
def test_numbers_out_of_range(how, message):
    with pytest.raises(xl.InputError, match=message):
        xl.make_motifs(**({"count": 4, "offset_agreement": 0.5, "seed": 0} | how))
    with pytest.raises(xl.InputError, match="split: expected one of"):
        xl.load_motifs("dev")
