import numpy as np
import torch
from PIL import Image, ImageColor

import exitlens as xl
from exitlens.delivery.pictures import (
    draw_contact_sheet,
    draw_heat,
    draw_image,
    draw_key,
    draw_labels,
    draw_mask,
    draw_overlay,
    draw_strip,
    draw_view,
)
from exitlens.display import pick_class_colour, pick_exit_colour
from tests.conftest import make_pixel_set, make_unet

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


LABELS = torch.tensor([[0, 1], [2, 255]])


def test_classes_of_pixels_have_colours():
    over = np.asarray(draw_labels(LABELS, ("background", "a", "b")))
    assert over[..., 3].tolist() == [[0, 165], [165, 0]]
    assert tuple(over[0, 1, :3]) == pick_class_colour(1)
    assert np.asarray(draw_labels(LABELS, ("road", "a", "b")))[0, 0, 3] == 165
    mask = draw_mask(LABELS, (4, 6))
    assert mask.size == (6, 4)
    assert np.asarray(mask)[[0, 3], [5, 0]].tolist() == [1, 2]
    assert mask.convert("RGB").getpixel((0, 3)) == pick_class_colour(2)


def test_a_key_breaks_its_lines():
    wide, narrow = (draw_key(("background", "an animal", "b"), (0, 1, 2), width) for width in (400, 100))
    assert narrow.height > wide.height
    assert pick_class_colour(2) in {colour for _, colour in wide.getcolors(100_000)}


def test_exits_of_pixels_are_drawn_as_classes():
    data, net = make_pixel_set(2), make_unet()
    whys = xl.explain_batch(net, data.inputs, xl.Policy((0.7, 0.75), score="mean_probability"))
    base = Image.new("RGB", (16, 16), (100,) * 3)
    seen = np.asarray(draw_view(base, whys[0], whys[0].exits[0]))
    labels = whys[0].exits[0].pixels.labels.numpy()
    for label in np.unique(labels):
        mixed = 100 + (np.array(pick_class_colour(label)) - 100) * 165 / 255
        assert np.abs(seen[labels == label] - mixed).max() <= 1
    assert draw_contact_sheet({"": whys}).height > draw_contact_sheet({"": whys[:1]}).height
    assert draw_strip(whys[0]).height > 224
