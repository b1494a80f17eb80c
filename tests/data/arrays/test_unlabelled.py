import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.data.arrays.unlabelled import HeldArrays, stream_arrays
from tests.data.arrays.conftest import TS

OWN = xl.SeriesPreprocess((5.0,) * 2, (2.0,) * 2)


def read(preprocess, data, **how):
    stream = stream_arrays(preprocess, str(data), **({"batch_size": 5} | how))
    return stream, list(stream)


def test_a_folder_of_files(series_folder):
    (series_folder / "notes.txt").write_text("no data")
    stream, batches = read(OWN, series_folder)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 4]
    assert (stream.total, stream.bad, len(stream)) == (24, [], 5)
    paths = sorted(map(str, series_folder.rglob("*.npy")))
    assert list(stream.files) == paths
    expected = torch.from_numpy(np.stack([np.load(path) for path in paths]))
    torch.testing.assert_close(torch.cat(batches), OWN.normalise(expected))
    _, rest = read(OWN, series_folder, workers=2, without=paths[:20])
    assert torch.cat(rest).equal(torch.cat(batches)[20:])
    _, batches = read(OWN, series_folder, group_by=r"(p\d)_", batch_size=24)
    assert batches[0].groups.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_one_file_and_bad_ones(series_folder):
    path = series_folder / "calm" / "p0_00.npy"
    stream, (batch,) = read(OWN, path)
    assert (batch.shape, list(stream.files)) == ((1, 2, 30), [str(path)])
    path.write_bytes(b"")
    with pytest.raises(xl.DataError, match=r"p0_00.npy: not a .npy file"):
        read(OWN, path)
    stream, batches = read(OWN, series_folder, skip_bad=True)
    assert sum(map(len, batches)) == 23
    assert len(stream.bad) == 1
    with pytest.raises(xl.DataError, match=r"no file or folder .*none: give a file of a series"):
        read(OWN, series_folder / "none")
    with pytest.raises(xl.InputError, match=r"columns: .*without columns: leave them out"):
        read(OWN, series_folder, columns="series=a")


def test_files_of_many_series(tmp_path):
    path = tmp_path / "x.ts"
    path.write_text(TS)
    stream, (batch,) = read(OWN, path)
    assert list(stream.files) == [f"{path}:9", f"{path}:10"]
    assert OWN.restore(batch)[1].tolist() == [[7, 8, 9], [10, 11, 12]]
    with pytest.raises(xl.InputError, match=r"is a .ts file, without columns"):
        read(OWN, path, columns="series=a")
    path = tmp_path / "x.csv"
    path.write_text('id,signal\nu,"[[1, 2], [3, 4]]"\nv,"[[5, 6], [7, 8]]"\nw,"[1, 2]"\n')
    with pytest.raises(xl.DataError, match=r"1 of 3 rows cannot .*\n.*x.csv:4: expected 2 channel"):
        read(OWN, path)
    stream, (batch,) = read(OWN, path, columns="key=id,series=signal", skip_bad=True)
    assert list(stream.files) == ["u", "v"]
    assert OWN.restore(batch)[1].tolist() == [[5, 6], [7, 8]]
    path.write_text("a,b\n1,2\n3,4\n5,6\n")  # one series
    assert OWN.restore(read(OWN, path)[1][0]).tolist() == [[[1, 3, 5], [2, 4, 6]]]


def test_tables_of_vectors(tmp_path):
    own = xl.VectorPreprocess((0.0, 0.0), (1.0, 1.0), ("b", "a"))
    path = tmp_path / "x.csv"
    path.write_text("a,b,site,id\n1,2,x,p\n3,4,y,q\n5,,y,r\n")
    with pytest.raises(xl.DataError, match=r"x.csv:4: a gap .NaN. for feature 'b'"):
        read(own, path)
    stream, (batch,) = read(own, path, skip_bad=True, group_by="site", columns="key=id")
    assert batch.inputs.tolist() == [[2, 1], [4, 3]]
    assert (list(stream.files), batch.groups.tolist(), stream.total) == (["p", "q"], [0, 1], 3)
    nameless = xl.VectorPreprocess((0.0,), (1.0,))
    assert read(nameless, path, columns="features=a")[1][0].flatten().tolist() == [1, 3, 5]
    with pytest.raises(xl.DataError, match="expected 1 features as in training, got 2"):
        read(nameless, path)
    with pytest.raises(xl.DataError, match="columns: the key 'y' stands in 2 rows of 'site'"):
        read(own, path, columns="key=site")
    with pytest.raises(xl.InputError, match="the network takes vectors: give features=NAME in place of text=id"):
        read(own, path, columns="text=id")
    with pytest.raises(xl.DataError, match="is no table of numbers"):
        read(own, tmp_path)


def test_parquet(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "x.parquet"
    datasets.Dataset.from_dict({"b": [2.0, 4.0], "a": [1, 3]}).to_parquet(path)
    own = xl.VectorPreprocess((0.0, 0.0), (1.0, 1.0), ("a", "b"))
    stream, (batch,) = read(own, path)
    assert (batch.tolist(), list(stream.files)) == ([[1, 2], [3, 4]], [f"{path}:0", f"{path}:1"])
    named = xl.SeriesPreprocess((0.0,) * 2, (1.0,) * 2, names=("a", "b"))
    assert read(named, path)[1][0].tolist() == [[[1, 3], [2, 4]]]  # one series


def test_held_samples():
    reader = HeldArrays(torch.arange(6.0).view(3, 2), ["a", "b", "c"])
    assert (len(reader), reader.name(1), reader.read(2).tolist()) == (3, "b", [4, 5])
