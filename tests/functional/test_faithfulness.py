import pytest
import torch

from exitlens.functional import faithfulness as f


def test_energy_in_mask_and_pointing_game_by_hand():
    attention = torch.tensor([[[0.7, 0.1], [0.1, 0.1]]])
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2, 0] = True  # half of the first cell
    torch.testing.assert_close(f.energy_in_mask(attention, mask), torch.tensor([0.35]))
    assert f.pointing_game(attention, mask).tolist() == [1.0]
    assert f.pointing_game(attention.flip(2), mask).tolist() == [0.0]


def test_maps_are_averaged_to_the_grid_but_never_refines():
    fine, coarse = torch.rand(2, 10, 10), torch.rand(2, 3, 3)
    assert f.coarsen_map(fine, (5, 5)).shape == (2, 5, 5)
    assert f.coarsen_map(coarse, (5, 5)).shape == (2, 3, 3)


def test_random_map_is_repeatable():
    torch.testing.assert_close(f.draw_random_map(torch.ones(3, 5, 5), 1), f.draw_random_map(torch.zeros(3, 5, 5), 1))
    blind = f.draw_random_map(torch.tensor([[0.0, 0.5, 0.5, 0.0]]), 1)
    assert (blind != 0).tolist() == [[False, True, True, False]]  # never padding


def test_ranks_pass_over_padding_and_take_negative_values():
    values = torch.tensor([[[-0.5, 0.2], [9.0, -0.1]]])
    real = torch.tensor([[[True, True], [False, True]]])
    assert f.rank_locations(values, None).tolist() == [[[1, 3], [4, 2]]]
    assert f.rank_locations(values, real).tolist() == [[[2, 4], [0, 3]]]


def test_the_share_of_what_is_possible_by_hand():
    values, control, best = torch.tensor([0.3, 0.5]), torch.tensor([0.1, 0.1]), torch.tensor([0.5, 0.5])
    share, error = f.share_of_possible(values, control, best)
    assert share == pytest.approx(0.3 / 0.4)
    # residuals of 0.2 and 0.4 from 0.75 * 0.4: -0.1 and 0.1; their root mean square over 0.4, over the root of 2
    assert error == pytest.approx(0.1 / 0.4 / 2**0.5)
    assert f.share_of_possible(values, control, control) == (None, None)


def test_the_share_of_random_maps_is_near_0_and_its_error_says_how_near():
    rng = torch.Generator().manual_seed(0)
    draws = [torch.rand(3, 200, generator=rng) for _ in range(200)]
    shares = [f.share_of_possible(values, control, best + 0.5) for values, control, best in draws]
    mean, spread = torch.tensor([s for s, _ in shares]), torch.tensor([e for _, e in shares])
    assert mean.mean().abs() < 0.02
    assert mean.std().item() == pytest.approx(spread.mean().item(), rel=0.2)
