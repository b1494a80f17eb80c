import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.data.arrays.files import load_arrays
from exitlens.data.arrays.scaling import measure_scaling


def make(values, *, names=()):
    channels = values.shape[1]
    own = xl.SeriesPreprocess((0.0,) * channels, (1.0,) * channels, names=names)
    return xl.ArraySet(values, torch.zeros(len(values)).long(), ("a", "b"), own)


def test_each_channel_has_its_own_scale():
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(3000, 2, 7, generator=rng) * torch.tensor([[[3.0], [0.01]]]) + torch.tensor([[[5.0], [1e4]]])
    found = measure_scaling(make(values, names=("x", "y")))
    expected = values.double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(found.mean, expected.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found.std, expected.std(1, correction=0), rtol=1e-4)
    assert found.names == ("x", "y")


def test_vectors_and_constant_channels():
    vectors = xl.ArraySet(
        torch.tensor([[1.0, 7.0], [3.0, 7.0]]),
        torch.tensor([0, 1]),
        ("a", "b"),
        xl.VectorPreprocess((0.0, 0.0), (1.0, 1.0)),
    )
    found = measure_scaling(vectors)
    assert (found.mean, found.std) == ((2.0, 7.0), (1.0, 1.0))
    with pytest.raises(xl.DataError, match="the training split is empty"):
        measure_scaling(vectors.first(0))


def test_files_are_read_in_batches(series_folder, monkeypatch):
    data = load_arrays(series_folder, xl.SeriesPreprocess((0.0,) * 2, (1.0,) * 2))
    found, expected = measure_scaling(data), measure_scaling(data.load())
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-9)
    monkeypatch.setattr("exitlens.data.arrays.scaling.MOST_SAMPLES", 5)
    assert measure_scaling(data) != found
    assert measure_scaling(data) == measure_scaling(data)
    for path in series_folder.rglob("*.npy"):
        if path.stem.endswith(("0", "1")):
            path.write_bytes(b"")
    data.skip_bad = True
    monkeypatch.setattr("exitlens.data.arrays.scaling.MOST_SAMPLES", 100)
    assert measure_scaling(data).mean == measure_scaling(data.load()).mean
    for path in series_folder.rglob("*.npy"):
        path.write_bytes(b"")
    with pytest.raises(xl.DataError, match="24 of 24 files cannot be read"):
        measure_scaling(data)
