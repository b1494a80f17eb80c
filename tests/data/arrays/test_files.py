import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.data.arrays.files import ArrayFiles, describe_files, find_file_kind, list_first
from exitlens.data.arrays.raw import ArrayReading
from exitlens.data.sources import open_source
from exitlens.modalities import SERIES, VOLUME

OWN = xl.SeriesPreprocess((5.0,) * 2, (2.0,) * 2)


def test_class_folders_are_read_when_asked_for(series_folder):
    data = xl.load_arrays(series_folder, OWN)
    assert (len(data), data.shape, data.classes, data.modality) == (24, (2, 30), ("calm", "wild"), SERIES)
    assert data.labels.tolist() == [0] * 12 + [1] * 12
    first = np.load(series_folder / "calm" / "p0_00.npy")
    np.testing.assert_allclose(data[0][0].numpy(), (first - 5) / 2, rtol=1e-6)
    assert data.name(0).endswith("calm/p0_00.npy")
    assert data.first(3).load().inputs.equal(data.inputs[:3])
    (series_folder / "empty").mkdir()
    with pytest.raises(xl.DataError, match=r"no series files below .*empty \(looked for .npy"):
        xl.load_arrays(series_folder, OWN)
    with pytest.raises(xl.InputError, match="preprocess: expected one of series or volumes, got VectorPreprocess"):
        xl.load_arrays(series_folder, xl.VectorPreprocess((0.0,), (1.0,)))


def test_a_source_of_series_in_class_folders(series_folder):
    source = open_source(str(series_folder), group_by=r"(p\d+)_", seed=1)
    assert source.modality is SERIES
    with pytest.raises(xl.DataError, match=r"class 'calm' has 1 group\(s\), need 4"):
        open_source(str(series_folder), group_by=r"^(\w)").load("train")
    found = source.load_splits(("train", "validation", "test"))
    train = found.sets["train"]
    assert isinstance(train, xl.LazyArrays)
    torch.testing.assert_close(train.inputs.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.inputs.transpose(0, 1).flatten(1).std(1, correction=0), torch.ones(2))
    assert found.sets["test"].preprocess == train.preprocess
    assert not set(train.groups.tolist()) & set(found.sets["test"].groups.tolist())
    np.save(series_folder / "calm" / "p9_new.npy", np.zeros((2, 30)))
    with pytest.raises(xl.DataError, match="are not those of training"):
        source.load("test")


def test_parts_by_folder(series_folder, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        series_folder.rename(tmp_path / "parts" / split)
        if split == "train":
            for name in ("calm", "wild"):
                (series_folder / name).mkdir(parents=True)
                np.save(series_folder / name / "x.npy", np.ones((2, 30)))
    source = open_source(str(tmp_path / "parts"))
    assert len(source.load("test")) == 2
    assert source.load("test").preprocess.mean[0] == pytest.approx(5, abs=0.5)


def test_files_of_another_length_or_kind(series_folder):
    np.save(series_folder / "wild" / "p9_99.npy", np.zeros((2, 29)))
    (series_folder / "calm" / "p0_00.npy").write_bytes(b"damaged")
    data = xl.load_arrays(series_folder, OWN, skip_bad=True)
    assert data.shape == (2, 30)  # of the first that can be read
    assert len(data.load()) == 23
    assert "p0_00.npy: not a .npy file" in data.bad[0]
    assert "p9_99.npy: it has 29 steps, the first file 30: make them alike, or train with --size" in data.bad[1]
    cut = open_source(str(series_folder), size=20).load_splits(("train",), skip_bad=True)
    assert cut.sets["train"].shape == (2, 20)
    assert cut.notes[-1] == "series: longer ones are cut to 20 steps, shorter ones filled with zeros, at the end"
    with pytest.raises(xl.InputError, match=r"mel: it is for sounds, .*p0_01.npy says no sampling rate"):
        open_source(str(series_folder), mel=8).load("train")
    for path in series_folder.rglob("*.npy"):
        path.write_bytes(b"")
    with pytest.raises(xl.DataError, match="has no file that can be read as a series or a volume"):
        open_source(str(series_folder)).load("train")
    with pytest.raises(xl.DataError, match=r"data: .*p0_00.npy: not a .npy file"):
        ArrayFiles(series_folder, ["calm/p0_00.npy"], OWN)


def test_volumes_have_the_size_of_the_first(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(8):
            np.save(tmp_path / name / f"{i}.npy", np.full((4, 5, 6) if i % 2 else (8, 5, 6), i, np.float32))
    source = open_source(str(tmp_path))
    assert source.modality is VOLUME
    data = source.load("train")
    assert (data.shape, data.preprocess.size) == ((1, 8, 5, 6), (8, 5, 6))
    assert data.load().values.shape[1:] == (1, 8, 5, 6)
    assert open_source(str(tmp_path), size=3).load("test").inputs.shape[1:] == (1, 3, 3, 3)
    own = xl.VolumePreprocess((1.0,), (2.0,), (2, 2, 2))
    assert source.load("test", preprocess=own).inputs.shape[1:] == (1, 2, 2, 2)
    wrong = xl.VolumePreprocess((1.0,) * 2, (2.0,) * 2, (2, 2, 2))
    with pytest.raises(xl.DataError, match=r"expected 2 channel\(s\) as in training, got 1"):
        source.load("test", preprocess=wrong).load()
    with pytest.raises(xl.InputError, match="mel: it is for sounds"):
        open_source(str(tmp_path), mel=8).load("train")


def test_sounds_become_spectrograms(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(8):
            soundfile.write(tmp_path / name / f"{i}.wav", rng.normal(size=1600 + i) * 0.1, 8000)
    data = open_source(str(tmp_path), mel=8, size=12).load("train")
    assert (data.shape, data.preprocess.rate) == ((8, 12), 8000.0)
    assert data.preprocess.mel == xl.MelSpectrogram(bands=8)
    torch.testing.assert_close(data.inputs.std(), torch.tensor(1.0), atol=0.05, rtol=0)
    soundfile.write(tmp_path / "a" / "9.wav", rng.normal(size=1600) * 0.1, 16000)
    with pytest.raises(xl.DataError, match=r"9.wav: its sampling rate is 16000 Hz, the network's 8000 Hz"):
        xl.load_arrays(tmp_path, data.preprocess).load()


def test_kinds_of_files(tmp_path):
    np.save(tmp_path / "s.npy", np.zeros((2, 3)))
    np.save(tmp_path / "v.npy", np.zeros((2, 3, 4)))
    kinds = [find_file_kind(tmp_path / name) for name in ("s.npy", "v.npy", "x.nii.gz", "x.WAV", "x.csv", "x.txt")]
    assert kinds == [SERIES, VOLUME, VOLUME, SERIES, SERIES, None]
    (tmp_path / ".hidden").mkdir()
    np.save(tmp_path / ".hidden" / "a.npy", np.zeros(2))
    assert [path.name for path in list_first(tmp_path, (".npy",))] == ["s.npy", "v.npy"]
    with pytest.raises(xl.DataError, match="no files"):
        describe_files([], SERIES, ArrayReading())
