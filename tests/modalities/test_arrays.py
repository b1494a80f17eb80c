import io
import struct
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import exitlens as xl
from exitlens.modalities import arrays as module
from exitlens.modalities.arrays import check_finite, read_npy, read_shape
from exitlens.modalities.series import read_sound
from exitlens.modalities.volume import decode_volume


def write(path, content):
    path.write_bytes(content)
    return path


def encode(values):
    found = io.BytesIO()
    np.save(found, values)
    return found.getvalue()


@given(arrays.arrays(st.sampled_from(["<f4", ">f8", "i2", "u1", "?"]), arrays.array_shapes(max_dims=4, max_side=4)))
@pytest.mark.slow
def test_numbers_are_those_that_numpy_loads(tmp_path_factory, values):
    path = write(tmp_path_factory.mktemp("npy") / "x.npy", encode(values))
    assert read_shape(path, "x") == values.shape
    with np.errstate(over="ignore"):
        expected = np.load(path).astype(np.float32)
    np.testing.assert_array_equal(read_npy(path, "x"), expected)


def test_fortran_order(tmp_path):
    values = np.asfortranarray(np.arange(24.0).reshape(2, 3, 4))
    np.testing.assert_array_equal(read_npy(write(tmp_path / "x.npy", encode(values)), "x"), values)


@given(st.data())
def test_damaged_bytes_are_told_or_read(tmp_path_factory, data):
    content = bytearray(encode(np.arange(6.0).reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.mktemp("npy") / "x.npy", bytes(content))
    with suppress(xl.errors.DataError):  # and no other
        assert read_npy(path, "x").dtype == np.float32


def pretend(shape, dtype="<f4"):
    """A header that promises more than there is."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .npy file, or a damaged one"),
        (b"not numpy at all", "not a .npy file"),
        (b"\x93NUMPY\x09\x09junk", "not a .npy file"),
        (pretend("(3,)"), r"truncated: 0 of 12 bytes are there. Fix: copy it again"),
        (encode(np.zeros(8))[:-5], "truncated"),
        (pretend("(1000000, 1000000)"), "1,000,000,000,000 values are over the limit of 250,000,000"),
        (pretend("(0, 3)"), r"it is empty \(shape \(0, 3\)\)"),
        (pretend("(-1, -3)"), "it is empty"),
        (pretend("(2,)", "|O"), "it holds object, expected real numbers"),
        (pretend("(2,)", "<c8"), "it holds complex64, expected real numbers"),
        (pretend("'no shape'"), "not a .npy file"),
        (pretend("(2, "), "not a .npy file"),
    ],
)
def test_hostile_files(tmp_path, content, message):
    with pytest.raises(xl.errors.DataError, match=f"^the name: .*{message}"):
        read_npy(write(tmp_path / "x.npy", content), "the name")


def test_what_is_no_file(tmp_path, monkeypatch):
    with pytest.raises(xl.errors.DataError, match=r"cannot be read \(FileNotFoundError"):
        read_npy(tmp_path / "none.npy", "x")
    with pytest.raises(xl.errors.DataError, match="not a file"):
        read_npy(tmp_path, "x")
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    with pytest.raises(xl.errors.DataError, match="more than 10 bytes"):
        read_npy(write(tmp_path / "x.npy", encode(np.zeros(3))), "x")


def test_gaps_are_named_by_their_place():
    nan = float("nan")
    for values, channels, message in (
        ([[0.0, 1.0], [nan, 1.0]], (), "x: a gap .NaN. at step 0 of channel 1. Fix: fill it by numpy.interp"),
        ([[0.0, nan]], ("heart",), "at step 1 of channel 'heart'"),
        ([[[[0.0, nan]]]], (), r"at voxel \(0, 0, 1\) of channel 0"),
        ([0.0, nan], ("age", "size"), "a gap .NaN. for feature 'size'. Fix: .*the training data's mean"),
        ([0.0, float("inf")], (), "an infinite value for feature 1"),
    ):
        with pytest.raises(xl.errors.DataError, match=message):
            check_finite(torch.tensor(values), "x", channels)


@pytest.mark.parametrize(
    ("read", "file", "package", "extra"),
    [(lambda path: read_sound(path, "x"), "x.wav", "soundfile", "audio"), (decode_volume, "x.nii", "nibabel", "volumes")],
)
def test_packages_that_read_other_files_are_named_with_their_extra(read, file, package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(xl.errors.MissingExtraError, match=rf"x.* needs the package '{package}'.*exitlens\[{extra}\]"):
        read(tmp_path / file)
