"""Against NumPy and SciPy, and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import sem

from exitlens.functional import regions


def test_the_middle_is_nearest_to_the_middle():
    (centre,) = regions.centre_map((3, 5))
    assert centre[1].tolist() == pytest.approx([-1, -0.5, 0, -0.5, -1])
    assert centre[:, 2].tolist() == pytest.approx([-1, 0, -1])
    assert regions.centre_map((1, 3)).tolist() == [[[-1, 0, -1]]]


@given(st.integers(2, 6), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_edges_are_gradients(h, w):
    x = torch.rand(2, 3, h, w)
    expected = np.sqrt(sum(np.square(part).sum(1) for part in np.gradient(x.numpy(), axis=(2, 3))))
    np.testing.assert_allclose(regions.edge_energy(x), expected, rtol=1e-4, atol=1e-6)


def test_edges_of_series_and_of_single_locations():
    assert regions.edge_energy(torch.tensor([[[0.0, 1.0, 4.0]]])).tolist() == [[1, 2, 3]]
    assert regions.edge_energy(torch.ones(2, 1, 1)).tolist() == [[0], [0]]


def test_spectral_residual_is_that_of_the_authors_program():
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    spectrum = np.fft.fft2(x.double().mean(1)[0].numpy())
    logs = np.log(np.abs(spectrum))
    residual = logs - ndimage.uniform_filter(logs, 3, mode="nearest")
    salient = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    expected = ndimage.gaussian_filter(salient, 2.5, mode="constant", radius=5)
    np.testing.assert_allclose(regions.spectral_residual(x)[0], expected, rtol=1e-3, atol=1e-6)
    assert regions.spectral_residual(torch.rand(1, 1, 32, 16)).shape == (1, 128, 64)


def test_the_nearest_outside():
    cells = torch.tensor([[False, True, True, True, False], [True] * 5])
    assert regions.find_nearest_outside(cells)[0, [0, 1, 3, 4]].tolist() == [0, 0, 4, 4]
    assert regions.find_nearest_outside(cells)[1].tolist() == [0, 1, 2, 3, 4]
    square = torch.zeros(1, 3, 4, dtype=torch.bool)
    square[0, :, :2] = True
    assert regions.find_nearest_outside(square).view(3, 4)[1].tolist() == [6, 6, 6, 7]


def make_square(channels):
    """A square of one colour on another, with noise, and a map that leaves a third of it out and fades beside it."""
    noise = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    square, maps = torch.zeros(16, 16, dtype=torch.bool), torch.full((2, 16, 16), 0.01)
    square[4:10, 4:10] = True
    maps[:, 3:9, 6:12] = 0.4
    maps[:, 4:9, 6:10] = 1.0
    return 0.2 * noise + square, maps, square


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_outline_what_a_map_points_at(channels):
    x, maps, square = make_square(channels)
    inside = regions.segment_by_colour(x, maps)
    assert inside.shape == maps.shape
    assert ((inside >= 0) & (inside <= 1)).all()
    for each in inside > 0.5:
        assert torch.equal(each, square)  # the map alone has 14 pixels beside it, and lacks a third
    torch.testing.assert_close(regions.segment_by_colour(5 - 3 * x, 0.1 * maps), inside, atol=0.05, rtol=0)


def test_the_edge_of_an_image_tells_the_colours_of_the_background():
    """Two thirds of the map lie beside the object, on a background that is as uneven."""
    x, _, square = make_square(3)
    maps = torch.full((2, 16, 16), 0.01)
    maps[:, 2:10, 8:14] = 1.0
    outlined = regions.segment_by_colour(x, maps)[0] > 0.5
    assert (outlined & square).sum() > 0.4 * (outlined | square).sum()  # 0.17 if the edge may be an object


def test_where_all_colours_are_alike_only_the_map_counts():
    _, maps, _ = make_square(3)
    inside = regions.segment_by_colour(torch.ones(2, 3, 16, 16), maps)
    assert (inside[0, 4:8, 7:11] > inside[0, 12:, :4].max()).all()


def test_regions_widen_by_one_location():
    assert regions.widen(torch.tensor([[False, False, True, False, False]])).tolist() == [[False, True, True, True, False]]
    corner = torch.zeros(1, 3, 3, dtype=torch.bool)
    corner[0, 0, 0] = True
    assert regions.widen(corner)[0].int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_means_and_their_errors():
    values = torch.rand(7, 2)
    mean, error = regions.average(values)
    np.testing.assert_allclose(mean, values.numpy().mean(0), rtol=1e-6)
    np.testing.assert_allclose(error, sem(values.numpy()), rtol=1e-5)
    assert regions.average(torch.ones(1, 2))[1].tolist() == [0, 0]
