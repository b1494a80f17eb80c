"""Files become the inputs that the library makes of them; bad ones are named."""

import numpy as np
import pytest
from PIL import Image

import exitlens as xl
import exitlens_runtime as er
from exitlens_runtime.reading import Preprocess


def test_files_are_read_as_the_library_reads_them(runtime, tmp_path):
    rng, paths = np.random.default_rng(0), []
    for i, (size, mode) in enumerate((((40, 30), "RGB"), ((16, 16), "L"), ((25, 33), "RGBA"), ((9, 9), "LA"))):
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))  # noise, transparent by noise
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 255, shape, np.uint8), mode).save(paths[-1])
    own = Preprocess((16, 16), (0.5,) * 3, (0.25,) * 3)
    library = xl.Preprocess((16, 16))
    for path in paths:
        expected = library.normalise(xl.read_image(path, (16, 16), 3))
        assert np.allclose(own.read(path), expected.numpy(), atol=1e-6)
    found = list(runtime.predict_files(paths, batch_size=2))
    assert [len(one) for one in found] == [2, 2]
    assert [one.index.tolist() for one in found] == [[0, 1], [2, 3]]


def test_bad_files(runtime, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    for path, words in ((tmp_path / "x.png", "cannot be read as an image"), (tmp_path / "none.png", "cannot be read")):
        with pytest.raises(er.InputError, match=words):
            list(runtime.predict_files([path]))


def test_a_huge_picture_is_refused_before_it_is_read(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr("exitlens_runtime.reading.MAX_PIXELS", 100)
    Image.new("L", (20, 20)).save(tmp_path / "x.png")
    with pytest.raises(er.InputError, match="at most 100 pixels"):
        list(runtime.predict_files([tmp_path / "x.png"]))
