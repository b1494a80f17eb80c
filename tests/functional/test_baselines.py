import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from exitlens.functional.baselines import blur, fill, impute
from exitlens.modalities.image import IMAGE
from exitlens.modalities.series import SERIES, TIME_FIRST


def make_images(side: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, side, side, generator=generator)
    return images, torch.rand(3, 1, side, side, generator=generator) < 0.6


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # there
def test_images_are_imputed_as_by_pytorch_grad_cam():
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    images, missing = make_images()
    found = impute(images, missing, noise=0.0)
    for image, lost, filled in zip(images, missing[:, 0], found, strict=True):
        wanted = NoisyLinearImputer(noise=0.0)(image, (~lost).float())
        torch.testing.assert_close(filled[:, lost], wanted[:, lost], atol=1e-3, rtol=0)


def test_series_are_imputed_by_straight_lines():
    series = torch.tensor([[[0.0, 9.0, 9.0, 9.0, 8.0, 9.0, 9.0]]])
    missing = torch.tensor([[[False, True, True, True, False, True, True]]])
    wanted = torch.tensor([[[2.0, 4.0, 6.0, 8.0, 8.0]]])  # beyond the last known step there is one neighbour
    torch.testing.assert_close(impute(series, missing, noise=0.0)[missing].view(1, 1, -1), wanted, atol=1e-3, rtol=0)


def test_a_voxel_is_the_mean_of_its_neighbours():
    """Those along an axis weigh 4, diagonals of a face 2, of the cube 1: 56 in all."""
    volume, missing = torch.zeros(1, 1, 3, 3, 3), torch.zeros(1, 1, 3, 3, 3, dtype=torch.bool)
    missing[..., 1, 1, 1] = True
    volume[..., 0, 1, 1], volume[..., 0, 0, 1], volume[..., 0, 0, 0], volume[..., 1, 1, 1] = 56.0, 112.0, 560.0, 7.0
    assert impute(volume, missing, noise=0.0)[..., 1, 1, 1].item() == pytest.approx(4 + 4 + 10, abs=1e-3)


@settings(max_examples=8)
@given(st.integers(0, 10_000))
def test_imputed_places_stay_within_the_range_of_known_ones(seed):
    images, missing = make_images(7, seed)
    missing[..., 0, 0] = False
    known = images.masked_fill(missing, torch.nan)
    low, high = known.nan_to_num(99).amin((2, 3), keepdim=True), known.nan_to_num(-99).amax((2, 3), keepdim=True)
    found = torch.where(missing, impute(images, missing, noise=0.0), images)
    assert ((found > low - 1e-2) & (found < high + 1e-2)).all()


def test_noise_is_a_hundredth_of_the_spread_and_always_the_same():
    images, missing = make_images(30)
    clean, noisy, again = (impute(images, missing, **options) for options in ({"noise": 0.0}, {}, {}))
    assert torch.equal(noisy, again)
    assert (noisy - clean)[missing.expand_as(images)].std().item() == pytest.approx(0.01, rel=0.1)


def test_nothing_known_is_left_as_it_was_found_and_a_lone_cell_does_not_fail():
    images = torch.ones(1, 1, 4, 4)
    assert impute(images, torch.ones(1, 1, 4, 4, dtype=torch.bool)).isfinite().all()
    assert impute(torch.ones(1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.bool)).isfinite().all()


def test_blur_is_three_moving_averages_and_nearly_a_gaussian():
    signal = torch.randn(2, 1, 101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, wanted = blur(signal).numpy(), signal.numpy()
    for _ in range(3):
        wanted = uniform_filter1d(wanted, 21)
    assert abs(found - wanted)[..., 33:-33].max() < 1e-9
    assert abs(found - gaussian_filter1d(signal.numpy(), 10.1))[..., 33:-33].max() < 0.02
    constant = torch.full((1, 2, 9, 13), 3.0)
    torch.testing.assert_close(blur(constant), constant)


def test_mean_blur_and_imputation_leave_what_is_kept():
    images, _ = make_images(10)
    cells = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.4
    chosen = IMAGE.spread(cells, images).expand_as(images)
    for baseline in ("mean", "blur", "road"):
        deleted, kept = IMAGE.delete(images, cells, baseline), IMAGE.insert(images, ~cells, baseline)
        assert torch.equal(deleted, kept)
        assert torch.equal(deleted[~chosen], images[~chosen])
        assert torch.equal(deleted[chosen], fill(images, chosen[:, :1], baseline)[chosen])
        assert deleted[chosen].var() < images[chosen].var()
    series, segments = torch.randn(2, 3, 32), torch.tensor([[True, False, False, True]] * 2)
    for baseline in ("mean", "blur", "road"):
        time_first = TIME_FIRST.delete(series.mT, segments, baseline)
        torch.testing.assert_close(SERIES.delete(series, segments, baseline), time_first.mT)
