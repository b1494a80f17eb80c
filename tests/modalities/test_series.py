import pytest
import torch

import exitlens as xl
from exitlens.modalities.series import SERIES, TIME_FIRST
from exitlens.types import SeriesPreprocess
from exitlens.types.inputs import InputFormat


def test_the_axis_of_time_is_that_of_the_network():
    assert SERIES.adapt(InputFormat((), (2, 9))) is SERIES
    assert SERIES.adapt(InputFormat((), (9, 2), channels_last=True)) is TIME_FIRST
    assert (SERIES.count_channels((2, 9)), TIME_FIRST.count_channels((9, 2))) == (2, 2)
    assert SERIES.make_example(2, 9).shape == (1, 2, 9)
    assert TIME_FIRST.make_example(2, 9).shape == (1, 9, 2)


def test_segments_take_the_mean_of_their_channel():
    series = torch.tensor([[[1.0, 2, 3, 6, 0], [0, 0, 0, 0, 5]]])
    cells = torch.tensor([[True, False]])  # the first three of five steps
    expected = torch.tensor([[[2.4, 2.4, 2.4, 6, 0], [1, 1, 1, 0, 5]]])
    torch.testing.assert_close(SERIES.delete(series, cells), expected)
    torch.testing.assert_close(TIME_FIRST.delete(series.mT, cells), expected.mT)
    torch.testing.assert_close(SERIES.insert(series, ~cells), expected)


def test_what_a_network_cannot_take_is_said():
    given = InputFormat((), (9, 2), channels_last=True)
    with pytest.raises(xl.InputError, match=r"series: expected \(B,T,2\), got \(1, 9, 3\)"):
        TIME_FIRST.check(torch.zeros(1, 9, 3), given, "series", torch.zeros(1))
    with pytest.raises(xl.InputError, match=r"\(3,\) is far below the network's \(9,\)"):
        TIME_FIRST.check(torch.zeros(1, 3, 2), given, "series", torch.zeros(1))
    with pytest.raises(xl.InputError, match="NaN"):
        TIME_FIRST.check(torch.full((1, 9, 2), torch.nan), given, "series", torch.zeros(1))
    assert TIME_FIRST.check(torch.zeros(1, 12, 2), given, "series", torch.zeros(1))[0].shape == (1, 12, 2)


def test_curves_stand_over_shaded_time():
    scale = SeriesPreprocess((1.0, 0.0), (2.0, 1.0), time_first=True)
    for modality, sample, preprocess in ((SERIES, torch.randn(2, 50), None), (TIME_FIRST, torch.randn(50, 2), scale)):
        drawn = modality.draw_map(sample, preprocess, torch.tensor([0.5, 0.25, 0.25]), torch.zeros(3), 'a "map"')
        assert (drawn.count("<rect"), drawn.count("<polyline")) == (3, 2)
        assert "50.0 % of the attention" in drawn
        assert 'aria-label="a &quot;map&quot;"' in drawn
