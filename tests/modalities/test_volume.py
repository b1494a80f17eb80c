import torch

from exitlens.modalities.volume import VOLUME


def test_blocks_take_the_mean_of_their_channel():
    volume = torch.arange(16.0).view(1, 1, 2, 2, 4)
    cells = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
    cells[..., 1] = True  # the right half
    found = VOLUME.delete(volume, cells)
    assert torch.equal(found[..., :2], volume[..., :2])
    assert (found[..., 2:] == 7.5).all()


def test_it_is_drawn_from_three_sides_and_by_its_most_attended_slice():
    attention = torch.zeros(2, 3, 4)
    attention[1, 2, 3] = 1.0
    drawn = VOLUME.draw_map(torch.rand(1, 8, 9, 12), None, attention, torch.zeros(2, 3, 4), "map")
    assert drawn.count("<svg") == 4
    assert drawn.count("<rect") == 3 * 4 + 2 * 4 + 2 * 3 + 3 * 4
    assert "slice 6 of 8" in drawn
    assert drawn.count("100.0 % of the attention") == 4
