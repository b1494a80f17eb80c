import gzip

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.modalities import arrays
from exitlens.modalities.volume import VOLUME, decode_volume, resize_volume


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


ONE = xl.data.VolumePreprocess((0.0,), (1.0,), (2, 3, 4))


def save(package, path, values, affine=None):
    package.save(package.Nifti1Image(values.astype(np.float32), np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def nibabel():
    return pytest.importorskip("nibabel")


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(24).reshape(2, 3, 4))
    assert VOLUME.read(tmp_path / "x.npy", ONE).equal(torch.arange(24.0).view(1, 1, 2, 3, 4))
    np.save(tmp_path / "c.npy", np.zeros((2, 2, 3, 4)))
    assert decode_volume(tmp_path / "c.npy").shape == (2, 2, 3, 4)
    for values, message in (
        (np.zeros((2, 2, 3, 4)), r"expected 1 channel\(s\) as in training, got 2"),
        (np.zeros((3, 4)), r"expected one volume in a file, \(D,H,W\) or \(C,D,H,W\), got an array \(3, 4\)"),
        (np.full((1, 1, 2), np.nan), r"a gap .NaN. at voxel \(0, 0, 0\)"),
    ):
        np.save(tmp_path / "s.npy", values)
        with pytest.raises(xl.errors.DataError, match=f"s.npy: {message}"):
            VOLUME.decode(tmp_path / "s.npy", ONE)
    with pytest.raises(xl.errors.DataError, match=r"not a file of a volume: expected .npy, .nii"):
        decode_volume(tmp_path / "x.dcm")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_axes(suffix, nibabel, tmp_path):
    values = np.arange(24.0).reshape(4, 3, 2)  # x, y, z
    path = save(nibabel, tmp_path / f"x{suffix}", values)
    assert np.array_equal(decode_volume(path)[0].numpy(), values.transpose(2, 1, 0))
    turned = np.diag([-2.0, 1.0, 1.0, 1.0])  # x points the other way, and its voxels are larger
    path = save(nibabel, path, values[::-1], turned)
    assert np.array_equal(decode_volume(path)[0].numpy(), values.transpose(2, 1, 0))
    path = save(nibabel, path, np.stack([values, -values], 3))  # channels come last
    assert decode_volume(path).shape == (2, 2, 3, 4)
    assert np.array_equal(decode_volume(path)[1].numpy(), -values.transpose(2, 1, 0))


def test_bad_nifti(nibabel, tmp_path, monkeypatch):
    path = save(nibabel, tmp_path / "x.nii", np.zeros((8, 9, 10)))
    content = path.read_bytes()
    for cut in (len(content) - 100, 400, 100, 0):
        path.write_bytes(content[:cut])
        with pytest.raises(xl.errors.DataError, match=r"x.nii: .*(truncated|damaged)"):
            decode_volume(path)
    packed = tmp_path / "y.nii.gz"
    packed.write_bytes(gzip.compress(content)[:-30])
    with pytest.raises(xl.errors.DataError, match=r"y.nii.gz: .*truncated"):
        decode_volume(packed)
    path.write_bytes(b"no volume" * 100)
    with pytest.raises(xl.errors.DataError, match="truncated or damaged, or not NIfTI"):
        decode_volume(path)
    flat = save(nibabel, tmp_path / "f.nii", np.zeros((8, 9)))
    with pytest.raises(xl.errors.DataError, match=r"expected one volume of three axes or more, got \(8, 9\)"):
        decode_volume(flat)
    packed.write_bytes(gzip.compress(content))
    monkeypatch.setattr(arrays, "MOST_VALUES", 719)
    with pytest.raises(xl.errors.DataError, match="720 values are over the limit of 719"):
        decode_volume(packed)


def test_resizing():
    values = torch.arange(64.0).view(1, 4, 4, 4)
    assert resize_volume(values, (4, 4, 4)) is values
    assert resize_volume(values, (2, 2, 2))[0, 0, 0, 0] == values[0, :2, :2, :2].mean()
    grown = resize_volume(values, (8, 4, 4))
    assert grown.shape == (1, 8, 4, 4)
    assert grown.min() == 0
    assert grown.max() == 63
