import numpy as np
import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.modalities import IMAGE
from exitlens.modalities.image import open_picture


def test_a_hostile_image_is_refused(folder, tmp_path):
    with pytest.raises(xl.errors.DataError, match="over the limit of 100"):
        xl.data.read_image(folder / "dark" / "00.png", (16, 16), 3, max_pixels=100)
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(xl.errors.DataError, match="cannot be read as an image"):  # nothing is run to read it
        xl.data.read_image(tmp_path / "x.png", (16, 16), 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF"])
def test_every_format_is_read(form, tmp_path):
    path = tmp_path / "image"
    Image.new("RGB", (20, 10), (200, 30, 30)).save(path, form)
    pixels = xl.data.read_image(path, None, 3)
    assert pixels.shape == (3, 10, 20)
    assert (pixels.float().mean((1, 2)) - torch.tensor([200.0, 30, 30])).abs().max() < 8


def test_unusual_images(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    deep = xl.data.read_image(tmp_path / "deep.png", (64, 64), 3)
    assert deep.float().mean().item() == pytest.approx(127.5, abs=1)
    Image.fromarray(np.random.rand(8, 8).astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(xl.errors.DataError, match="no agreed range"):
        xl.data.read_image(tmp_path / "float.tiff", (8, 8), 3)
    turned = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert xl.data.read_image(tmp_path / "turned.jpg", None, 3).shape == (3, 20, 10)
    Image.fromarray(np.full((8, 8), 3, np.uint8), "L").convert("P").save(tmp_path / "palette.png")
    assert xl.data.read_image(tmp_path / "palette.png", (8, 8), 3).shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_lies_on_white(mode, tmp_path):
    drawing = np.zeros((4, 4, 4), np.uint8)  # black on black, but only the first row can be seen, the second by half
    drawing[0, :, 3], drawing[1, :, 3] = 255, 128
    picture, more = Image.fromarray(drawing, "RGBA"), {}
    if mode == "P":
        picture = picture.quantize(8, method=Image.Quantize.FASTOCTREE)
    elif mode in ("RGB", "L"):  # one colour is transparent
        pixels = np.full((4, 4, 3), 7, np.uint8)
        pixels[0] = 0
        picture, more = Image.fromarray(pixels).convert(mode), {"transparency": (7, 7, 7) if mode == "RGB" else 7}
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "x.png", **more)
    for channels in (1, 3):
        rows = xl.data.read_image(tmp_path / "x.png", (4, 4), channels).float().mean((0, 2))
        assert rows[0] == 0
        assert rows[2] == rows[3] == 255
        assert rows[1] == (255 if more else pytest.approx(127, abs=2))


@pytest.mark.slow
def test_pictures_are_shrunk_on_request(tmp_path):
    whole = Image.effect_noise((900, 600), 40).convert("RGB")
    for name, mode in (("a.jpg", "RGB"), ("b.png", "RGBA"), ("c.png", "P"), ("d.tiff", "CMYK")):
        whole.convert(mode).save(tmp_path / name)
        found = open_picture(tmp_path / name, 3, longest=300)
        assert found.size == (300, 200)
        assert found.mode == "RGB"
        assert abs(np.asarray(found).mean() - np.asarray(whole).mean()) < 5 or mode == "CMYK"
        assert open_picture(tmp_path / name, 1).size == (900, 600)
    exif = whole.getexif()
    exif[0x0112] = 6
    whole.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg", 3, longest=300).size == (200, 300)


def test_delete_and_insert_are_complements_on_the_mean_colour():
    images = torch.arange(16.0).reshape(1, 1, 4, 4)
    cells = torch.tensor([[[True, False], [False, False]]])
    deleted, inserted = IMAGE.delete(images, cells), IMAGE.insert(images, cells)
    assert deleted[0, 0, :2, :2].unique().tolist() == [7.5]
    torch.testing.assert_close(deleted[0, 0, 2:], images[0, 0, 2:])
    torch.testing.assert_close(inserted[0, 0, :2, :2], images[0, 0, :2, :2])
    assert inserted[0, 0, 2:].unique().tolist() == [7.5]


def test_a_region_is_a_share_of_the_pixels_and_is_exchanged_whole():
    images, donors = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    maps = torch.zeros(2, 2, 2)
    maps[0, 0, 1] = maps[1, 1, 0] = 1
    chosen = IMAGE.choose_region(maps, images, 0.25)
    assert chosen.flatten(1).sum(1).tolist() == [16, 16]
    assert chosen[0, :3, 5:].all()
    assert chosen[1, 5:, :3].all()
    exchanged = IMAGE.exchange(images, donors, chosen)
    assert torch.equal(exchanged, chosen[:, None].expand(-1, 3, -1, -1).float())


def test_an_object_is_found_by_its_colours_or_else_by_area():
    image, maps = torch.zeros(2, 3, 12, 12), torch.zeros(2, 3, 3)
    image[0, 0, 2:8, 3:9] = 1
    maps[0, 1, 1], maps[1] = 1, 1
    region = IMAGE.choose_region(maps, image, 0.25)
    square, flat = IMAGE.find_object(maps, image, region)
    assert torch.equal(square, image[0, 0] == 1)
    assert torch.equal(flat, region[1])  # all colours are alike


def test_a_file_is_read_as_a_batch_of_one(folder):
    preprocess = xl.data.Preprocess((8, 9))
    found = IMAGE.read(folder / "dark" / "00.png", preprocess)
    assert found.shape == (1, 3, 8, 9)
    assert torch.equal(found[0], preprocess.normalise(xl.data.read_image(folder / "dark" / "00.png", (8, 9), 3)))


def test_maps_are_drawn_where_the_scale_is_known():
    sample, grid = torch.zeros(3, 8, 16), torch.full((2, 2), 0.25)
    drawn = IMAGE.draw_map(sample, xl.data.Preprocess((8, 16)), grid, grid, "exit 0 & co")
    assert drawn.count("<rect") == 4
    assert 'viewBox="0 0 160 80"' in drawn
    assert 'aria-label="exit 0 &amp; co"' in drawn
    assert IMAGE.draw_map(sample, None, grid, grid, "exit 0") == ""


def test_an_object_is_painted_over_with_what_is_next_to_its_rim():
    image = torch.arange(8.0).repeat(1, 3, 8, 1)
    cells = torch.zeros(1, 8, 8, dtype=torch.bool)
    cells[0, :, 3] = True  # and the rim: columns 2 and 4
    assert IMAGE.paint_over(image, cells)[0, 0, 0].tolist()[:3] == [0, 1, 1]
    assert IMAGE.paint_over(image, cells)[0, 0, 0].tolist()[4:] == [5, 5, 6, 7]
