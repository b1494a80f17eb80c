"""aeon's own loader is the oracle, where it is installed."""

import pytest
import torch

import exitlens as xl
from exitlens.data.sources import open_source
from exitlens.data.ts import find_ts_files, read_ts
from exitlens.modalities import SERIES
from tests.data.conftest import TS


def write(path, text):
    path.write_text(text)
    return path


def make_ts(count, start=0, length=8, classes=2):
    head = f"@problemName made\n@timeStamps false\n@univariate true\n@classLabel true {' '.join('cba'[:classes])}\n@data\n"
    rows = [",".join(str(i + t / 10) for t in range(length)) + f":{'cba'[i % classes]}" for i in range(start, start + count)]
    return head + "\n".join(rows) + "\n"


def test_a_file_by_hand(tmp_path):
    found = read_ts(write(tmp_path / "x.ts", TS))
    assert found.classes == ("run", "Walk")
    assert found.labels == ["run", "Walk"]
    assert [values.tolist() for values in found.series] == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]
    assert found.names == [f"{tmp_path / 'x.ts'}:9", f"{tmp_path / 'x.ts'}:10"]
    unlabelled = TS.replace("@classLabel true run Walk", "@classLabel false").replace(":run", "").replace(":Walk", "")
    again = read_ts(write(tmp_path / "y.ts", unlabelled), labelled=False)
    assert torch.equal(again.series[1], found.series[1])


def test_the_same_as_aeon(tmp_path):
    loaders = pytest.importorskip("aeon.datasets")
    for text in (TS, make_ts(7)):
        path = write(tmp_path / "x.ts", text)
        values, labels = loaders.load_from_ts_file(str(path))
        found = read_ts(path)
        torch.testing.assert_close(torch.stack(found.series).double(), torch.from_numpy(values))
        assert [label.lower() for label in found.labels] == labels.tolist()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (TS[TS.index("@data") :], "", "it has no line @data"),
        ("# a comment\n", "label,a\n", "is not a .ts file: expected lines such as"),
        ("@timeStamps false", "@timeStamps true", "has time stamps, expected values at equal steps"),
        ("@classLabel true run Walk", "@classLabel false", "has no class labels"),
        ("@classLabel true run Walk\n", "@targetLabel true\n", "has no class labels"),
        ("@dimensions 2", "@dimensions two", "@dimensions: expected a number of channels, got 'two'"),
        (TS[TS.index("1,2") :], "", "has no series: expected one in each line"),
    ],
)
def test_headers_that_cannot_be_read(old, new, message, tmp_path):
    with pytest.raises(xl.DataError, match=message):
        read_ts(write(tmp_path / "x.ts", TS.replace(old, new)))
    with pytest.raises(xl.DataError, match="cannot be read"):
        read_ts(tmp_path / "none.ts")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3:run", r"1 channel\(s\), the header says 2"),
        ("1,2,3:4,5:run", "its channels have 2 to 3 steps"),
        ("1,2,3:4,?,6:run", "a gap .NaN. at step 1 of channel 1. Fix: fill it"),
        ("1,2,3:4,x,6:run", "expected numbers with commas between in channel 1, got '4,x,6'"),
        ("1,2,3:4,5,6:fly", "the class 'fly', which the header does not name"),
        ("1,2,3:4,5,6:", "the class '', which"),
    ],
)
def test_rows_that_cannot_be_read(line, message, tmp_path):
    many = TS + "1,2,3:4,5,6:run\n7,8,9:1,1,1:Walk\n" * 10 + line + "\n"
    source = open_source(str(write(tmp_path / "x.ts", many)))
    with pytest.raises(xl.DataError, match=rf"1 of 23 rows cannot be read.*\n.*x.ts:31: .*{message}"):
        source.load("train")
    assert len(source.load("train", skip_bad=True)) == 16


def test_a_single_file_is_split_by_us(tmp_path):
    source = open_source(str(write(tmp_path / "x.ts", make_ts(40))))
    assert source.modality is SERIES
    found = source.load_splits(("train", "test"))
    train = found.sets["train"]
    assert (train.inputs.shape, train.classes) == ((28, 1, 8), ("c", "b"))
    assert train.preprocess.length == 0
    torch.testing.assert_close(train.inputs.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.inputs.std(correction=0), torch.tensor(1.0))
    assert found.sets["test"].preprocess == train.preprocess
    assert source.load("test").inputs.equal(found.sets["test"].inputs)


def test_train_and_test_files_of_a_folder(tmp_path):
    write(tmp_path / "Made_TRAIN.ts", make_ts(20))
    write(tmp_path / "Made_TEST.ts", make_ts(6, 20))
    source = open_source(str(tmp_path))
    test = source.load("test")
    assert test.values[:, 0, 0].tolist() == [20, 21, 22, 23, 24, 25]
    assert test.preprocess.mean[0] < 10.5  # of the training split alone
    assert sum(len(source.load(split)) for split in ("train", "validation", "calibration")) == 20
    with pytest.raises(xl.InputError, match=r"is a .ts file, without columns"):
        open_source(str(tmp_path), group_by="x").load("test")
    write(tmp_path / "Made_TEST.ts", make_ts(5, 20))
    with pytest.raises(xl.DataError, match="are not those of training"):
        source.load("test")
    write(tmp_path / "Other_TRAIN.ts", make_ts(5))
    with pytest.raises(xl.DataError, match=r"expected NAME_TRAIN.ts and NAME_TEST.ts"):
        find_ts_files(tmp_path)


def test_series_of_different_length(tmp_path):
    text = make_ts(20) + make_ts(20, length=6).split("@data\n")[1]
    path = str(write(tmp_path / "x.ts", text))
    with pytest.raises(xl.DataError, match=r"x.ts has series of 6 to 8 steps, .*pass --size STEPS"):
        open_source(path).load("train")
    found = open_source(path, size=7).load_splits(("train",))
    assert found.sets["train"].inputs.shape == (28, 1, 7)
    assert "7 steps; 20 longer ones are cut, 20 shorter ones filled with zeros, at the end" in found.notes[-1]


def test_what_an_existing_network_takes(tmp_path):
    path = str(write(tmp_path / "x.ts", make_ts(40)))
    own = xl.SeriesPreprocess((1.0,), (2.0,), length=5)
    found = open_source(path).load("test", preprocess=own, classes=("b", "c"))
    assert (found.preprocess, found.values.shape, found.classes) == (own, (4, 1, 5), ("b", "c"))
    with pytest.raises(xl.DataError, match=r"40 of 40 rows .*\n.*expected 2 channel\(s\) as in training, got 1"):
        open_source(path).load("test", preprocess=xl.SeriesPreprocess((1.0,) * 2, (2.0,) * 2))
    with pytest.raises(xl.InputError, match=r"preprocess: it is for images, and .*x.ts gives series"):
        open_source(path).load("test", preprocess=xl.Preprocess((8, 8)))
    with pytest.raises(xl.DataError, match="has the class 'b', the network does not"):
        open_source(path).load("test", classes=("c", "d"))
    with pytest.raises(xl.InputError, match="mel: it is for folders of sounds"):
        open_source(path, mel=16).load("test")
