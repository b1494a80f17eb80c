import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import exitlens as xl

MEL = xl.MelSpectrogram(bands=2)
EXAMPLES = [
    xl.SeriesPreprocess((1.0, -2.0), (2.0, 4.0), length=5, rate=16000.0, names=("a", "b"), time_first=True, mel=MEL),
    xl.SeriesPreprocess((0.5,), (0.25,)),
    xl.VolumePreprocess((1.0,), (2.0,), (2, 3, 4)),
    xl.VectorPreprocess((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), ("x", "y", "z")),
]


@pytest.mark.parametrize("preprocess", EXAMPLES)
def test_a_description_makes_the_same(preprocess):
    found = type(preprocess).from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert found == preprocess
    assert hash(found) == hash(preprocess)


def test_normalising_by_hand():
    series = xl.SeriesPreprocess((1.0, -2.0), (2.0, 4.0))
    values = torch.tensor([[1.0, 3.0, 5.0], [-2.0, 2.0, 6.0]])
    expected = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    assert torch.equal(series.normalise(values), expected)
    assert torch.equal(series.normalise(values[None].double()), expected[None])
    turned = xl.SeriesPreprocess((1.0, -2.0), (2.0, 4.0), time_first=True)
    assert torch.equal(turned.normalise(values), expected.T)
    assert torch.equal(turned.restore(expected.T), values)
    volume = xl.VolumePreprocess((1.0,), (2.0,), (1, 1, 2))
    assert volume.normalise(torch.tensor([[[[1, 5]]]])).flatten().tolist() == [0.0, 2.0]
    assert xl.VectorPreprocess((1.0, 2.0), (1.0, 2.0)).normalise(torch.tensor([3.0, 6.0])).tolist() == [2.0, 2.0]


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0.01, 100)), min_size=1, max_size=4), st.integers(0, 1000))
def test_restoring_is_the_inverse(channels, seed):
    mean, std = zip(*channels, strict=True)
    rng = torch.Generator().manual_seed(seed)
    for preprocess, shape in (
        (xl.SeriesPreprocess(mean, std), (2, len(mean), 7)),
        (xl.VolumePreprocess(mean, std, (2, 3, 4)), (len(mean), 2, 3, 4)),
        (xl.VectorPreprocess(mean, std), (5, len(mean))),
    ):
        values = torch.randn(shape, generator=rng)
        found = preprocess.restore(preprocess.normalise(values))
        torch.testing.assert_close(found, values, atol=1e-3, rtol=1e-3)
        assert preprocess.scaled([0.0] * len(mean), [1.0] * len(mean)).normalise(values).equal(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xl.SeriesPreprocess((), ()), "mean, std: expected one or more"),
        (lambda: xl.SeriesPreprocess((0.0,), (0.0,)), "std above 0"),
        (lambda: xl.VectorPreprocess((math.nan,), (1.0,)), "finite"),
        (lambda: xl.VectorPreprocess((0.0, 1.0), (1.0,)), "mean, std"),
        (lambda: xl.SeriesPreprocess((0.0,), (1.0,), length=-1), "length: expected steps"),
        (lambda: xl.SeriesPreprocess((0.0,), (1.0,), rate=-1.0), "rate: expected samples"),
        (lambda: xl.SeriesPreprocess((0.0,), (1.0,), names=("a", "b")), "names: expected 1 different"),
        (lambda: xl.VectorPreprocess((0.0,) * 2, (1.0,) * 2, names=("a", "a")), "names: expected 2 different"),
        (lambda: xl.SeriesPreprocess((0.0,), (1.0,), rate=8000.0, mel=MEL), "mel: expected mean and std of 2 bands"),
        (lambda: xl.SeriesPreprocess((0.0,) * 2, (1.0,) * 2, mel=MEL), "mel: .* and a rate"),
        (lambda: xl.VolumePreprocess((0.0,), (1.0,), (0, 2, 2)), "size: expected depth"),
        (lambda: xl.MelSpectrogram(bands=0), "bands: expected"),
        (lambda: xl.MelSpectrogram(hop_ms=0), "hop_ms, window_ms"),
        (lambda: xl.MelSpectrogram(low_hz=500, high_hz=400), "low_hz, high_hz"),
        (lambda: xl.SeriesPreprocess((0.0,), (1.0,)).normalise(torch.zeros(2, 3)), r"expected \(...,1,T\), got \(2, 3\)"),
        (lambda: xl.VectorPreprocess((0.0,), (1.0,)).normalise([1.0]), "values: expected .* got list"),
        (lambda: xl.VectorPreprocess((0.0,), (1.0,)).normalise(torch.zeros(1, dtype=torch.bool)), "expected numbers"),
    ],
)
def test_what_does_not_fit(make, message):
    with pytest.raises(xl.InputError, match=message):
        make()
