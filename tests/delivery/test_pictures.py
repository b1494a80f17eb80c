import numpy as np
import torch
from PIL import Image, ImageColor

import exitlens as xl
from exitlens.delivery.pictures import draw_contact_sheet, draw_heat, draw_image, draw_overlay
from exitlens.display import pick_exit_colour

POLICY, PREPROCESS = xl.Policy((0.9, 0.6)), xl.data.Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)


def test_overlay_is_brightest_where_attention_is():
    base = Image.new("RGB", (40, 40), (100, 100, 100))
    attention = torch.zeros(4, 4)
    attention[0, 0] = 1
    shown = draw_overlay(base, attention).convert("L")
    assert shown.getpixel((3, 3)) > shown.getpixel((35, 35)) + 50


def test_pictures_restore_colours():
    values = xl.data.Preprocess((8, 8), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    pixels = torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8)
    shown = draw_image(values.normalise(pixels), values, side=8)
    assert shown.getpixel((2, 5)) == tuple(pixels[:, 5, 2].tolist())
    assert draw_image(torch.zeros(1, 8, 8), None, side=16).size == (16, 16)


def test_contact_sheet_has_a_row_an_image_and_frames_the_answer(net, images):
    rows = xl.explain_batch(net, images[:3], POLICY)
    one, two = draw_contact_sheet({"a": rows}), draw_contact_sheet({"a": rows, "b": rows})
    assert two.width > one.width
    assert one.height == two.height
    assert draw_contact_sheet({"": rows}, ["a", "b", "c"]).height == one.height + 3 * 20
    frames = {ImageColor.getrgb(pick_exit_colour(why.answered, 3)) for why in rows}
    assert frames <= {colour for _, colour in one.getcolors(100_000)}


def test_a_uniform_map_is_as_pale_in_every_picture():
    base, uniform, sharp = Image.new("RGB", (40, 40), (100,) * 3), torch.full((4, 4), 1 / 16), torch.eye(4) / 4
    bright = [np.asarray(draw_overlay(base, m)).max() for m in (uniform, sharp)]
    assert bright[0] < bright[1] - 60
    assert np.asarray(draw_heat(uniform))[..., 3].max() < np.asarray(draw_heat(sharp))[..., 3].max() - 60
