import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import exitlens as xl
from exitlens.delivery.explanations.pictures import (
    draw_contact_sheet,
    draw_heat,
    draw_image,
    draw_overlay,
    draw_strip,
    save_explanation,
)
from exitlens.display import pick_exit_colour

POLICY, PREPROCESS = xl.Policy((0.9, 0.6)), xl.Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)


def test_overlay_is_brightest_where_attention_is():
    base = Image.new("RGB", (40, 40), (100, 100, 100))
    attention = torch.zeros(4, 4)
    attention[0, 0] = 1
    shown = draw_overlay(base, attention).convert("L")
    assert shown.getpixel((3, 3)) > shown.getpixel((35, 35)) + 50


def test_pictures_restore_colours():
    values = xl.Preprocess((8, 8), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    pixels = torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8)
    shown = draw_image(values.normalise(pixels), values, side=8)
    assert shown.getpixel((2, 5)) == tuple(pixels[:, 5, 2].tolist())
    assert draw_image(torch.zeros(1, 8, 8), None, side=16).size == (16, 16)


def test_contact_sheet_has_a_row_an_image_and_frames_the_answer(net, images):
    rows = xl.explain_batch(net, images[:3], POLICY)
    one = draw_contact_sheet({"a": rows}, None)
    two = draw_contact_sheet({"a": rows, "b": rows}, None)
    assert two.width > one.width
    assert one.height == two.height
    frames = {ImageColor.getrgb(pick_exit_colour(why.answered, 3)) for why in rows}
    assert frames <= {colour for _, colour in one.getcolors(100_000)}


def test_a_uniform_map_is_as_pale_in_every_picture():
    base, uniform, sharp = Image.new("RGB", (40, 40), (100,) * 3), torch.full((4, 4), 1 / 16), torch.eye(4) / 4
    bright = [np.asarray(draw_overlay(base, m)).max() for m in (uniform, sharp)]
    assert bright[0] < bright[1] - 60
    assert np.asarray(draw_heat(uniform))[..., 3].max() < np.asarray(draw_heat(sharp))[..., 3].max() - 60


def test_titles_of_a_contact_sheet(net, images):
    rows = xl.explain_batch(net, images[:3], POLICY)
    plain, titled = draw_contact_sheet({"": rows}, None), draw_contact_sheet({"": rows}, None, titles=["a", "b", "c"])
    assert titled.height == plain.height + 3 * 20


def test_files_of_one_explanation(net, images, tmp_path):
    net.describe(classes=("<b>", "a & b", "c", "d"))
    why = xl.explain(net, images[0], POLICY)
    paths = save_explanation(why, tmp_path, PREPROCESS, "x")
    pictures = [f"x_exit{k}.{form}" for k in range(3) for form in ("png", "svg")]
    assert {p.name for p in paths} == {p.name for p in tmp_path.iterdir()}
    assert {p.name for p in paths} == {*pictures, "x_strip.png", "x.json", "x_manifest.json"}
    with Image.open(tmp_path / "x_strip.png") as strip:
        assert strip.width > 600
    for k, view in enumerate(why.exits):
        root = ET.parse(tmp_path / f"x_exit{k}.svg").getroot()
        cells = [e for e in root if e.tag.endswith("rect")]
        assert len(cells) == view.attention.numel()
        assert why.name(view.label) in root.get("aria-label")
        assert f"{100 * view.attention[0, 0]:.1f} % of the attention" in cells[0][0].text
    manifest = json.loads((tmp_path / "x_manifest.json").read_text())
    assert set(manifest["sha256"]) == {p.name for p in paths} - {"x_manifest.json"}
    assert json.loads((tmp_path / "x.json").read_text())["schema"] == manifest["schema"] == 2
    with pytest.raises(xl.OutputExistsError):
        save_explanation(why, tmp_path, PREPROCESS, "x")


def test_a_short_explanation_has_its_files_too(net, images, tmp_path):
    why = xl.explain(net, images[0], xl.Policy((0.0, 0.5)), final=False)
    names = {p.name for p in save_explanation(why, tmp_path, PREPROCESS)}
    assert "explanation_exit0.svg" in names
    assert "explanation_exit1.svg" not in names
    assert torch.equal(why.exits[0].attention, xl.explain(net, images[0], xl.Policy((0.0, 0.5))).exits[0].attention)


def test_relevance_is_drawn_as_the_exits_are(net, images, tmp_path):
    plain, why = (xl.explain(net, images[0], POLICY, relevance=value) for value in (False, True))
    one, two = (save_explanation(each, tmp_path / str(i), PREPROCESS, "x") for i, each in enumerate((plain, why)))
    assert {path.name for path in two} - {path.name for path in one} == {"x_relevance.png", "x_relevance.svg"}
    assert draw_strip(why, PREPROCESS).width > draw_strip(plain, PREPROCESS).width
