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
