import json
from pathlib import Path

import pytest
import torch

import exitlens as xl
from exitlens.data.lines import classify_field, find_ts_files, iterate_rows, peek_kinds, read_ts
from exitlens.data.rows import Columns
from exitlens.data.sources import open_source
from exitlens.errors import DataError, InputError
from exitlens.modalities import SERIES, VECTOR
from tests.data.conftest import TS, check_refused, write


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("other", [""]),
        ("integer", ["3", " -3 "]),
        ("float", ["2.5", "nan", "1e5"]),
        ("string", ["word", "two words", "[1", "2020-01-01 10:00"]),
        ("list", ["1 2", "1;2.5;nan", "[1, 2]", "[[1], [2]]"]),
    ],
)
def test_kinds_of_fields(kind, fields):
    assert [classify_field(field) for field in fields] == [kind] * len(fields)


def test_columns_are_what_most_of_their_first_fields_are(tmp_path):
    rows = [f"{i},{i if i % 7 else i / 2},word,{i},," for i in range(30)]
    rows[5] = "x,1,2,3,,"
    (tmp_path / "x.csv").write_text("a,b,c,d,e,f\n" + "\n".join(rows) + "\nragged\n")
    kinds = peek_kinds(tmp_path / "x.csv")
    assert kinds == {"a": "integer", "b": "float", "c": "string", "d": "integer", "e": "other", "f": "other"}
    assert [line for line, _ in iterate_rows(tmp_path / "x.csv", ("a",))] == list(range(2, 33))
    with pytest.raises(DataError, match=r"no column 'z', it has .*. Fix: name columns in line 1, or by --columns"):
        list(iterate_rows(tmp_path / "x.csv", ("z",)))


def make_vectors(count=40, head="age,size,site,label", wrong=()):
    rows = [f"{i},{i / 10},{i // 4},{'uv'[i % 2]}" for i in range(count)]
    for i, text in wrong:
        rows[i] = text
    return head + "\n" + "\n".join(rows) + "\n"


def test_a_csv_of_vectors(tmp_path):
    path = write(tmp_path, "x.csv", make_vectors())
    source = open_source(path)
    assert source.modality is VECTOR
    found = source.load_splits(("train", "test"))
    assert found.notes[1] == "vectors of 3 features (age, size, site), labels from 'label'"
    train = found.sets["train"]
    assert (train.values.shape, train.classes, train.preprocess.names) == ((28, 3), ("u", "v"), ("age", "size", "site"))
    torch.testing.assert_close(train.values[:, 0], train.values[:, 1] * 10)
    torch.testing.assert_close(train.inputs.std(0, correction=0), torch.ones(3))
    assert found.sets["test"].preprocess == train.preprocess
    chosen = open_source(path, columns="features=size|age,label=label", group_by="site")
    assert chosen.modality is open_source(path, group_by="site").modality is VECTOR
    split = chosen.load_splits(("train", "test"))
    assert split.sets["train"].preprocess.names == ("size", "age")
    groups = [set(part.groups.tolist()) for part in split.sets.values()]
    assert not groups[0] & groups[1]
    assert "10, of which" in split.notes[2]


def test_an_existing_network_takes_its_own_features(tmp_path):
    path = write(tmp_path, "x.csv", make_vectors())
    own = xl.data.VectorPreprocess((0.0, 1.0), (1.0, 2.0), ("site", "age"))
    data = open_source(path).load("train", preprocess=own)
    assert (data.preprocess, data.values.shape) == (own, (28, 2))
    assert (data.values[:, 0] == (data.values[:, 1] / 4).floor()).all()
    with pytest.raises(DataError, match="expected 1 features as in training, got 3"):
        open_source(path).load("train", preprocess=xl.data.VectorPreprocess((0.0,), (1.0,), ("weight",)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,,3,u", "a gap .NaN. for feature 'size'. Fix: fill it"),
        ("1,x,3,u", "expected a number for 'size', got 'x'"),
        ("1,2,u", "3 fields, the first line has 4"),
        ("1,2,3,", "label: expected a string that is not empty"),
    ],
)
def test_bad_rows_of_vectors(row, message, tmp_path):
    source = open_source(write(tmp_path, "x.csv", make_vectors(wrong=[(39, row)])))
    with pytest.raises(DataError, match=rf"1 of 40 rows cannot be read.*\n.*x.csv:41: .*{message}"):
        source.load("train")
    assert sum(len(source.load(split, skip_bad=True)) for split in ("train", "test")) == 31


def test_splits_of_a_column(tmp_path):
    rows = "".join(f"{i},{i / 7},{'uv'[i % 2]},{['train', 'test', 'val', 'calibration'][i % 4]}\n" for i in range(40))
    source = open_source(write(tmp_path, "x.csv", "a,b,label,fold\n" + rows), split_by="fold")
    assert source.modality is VECTOR
    assert source.load("validation").values[:, 0].tolist() == list(range(2, 40, 4))
    with pytest.raises(InputError, match=r"group_by: .* give a column, not a regular expression"):
        open_source(str(tmp_path / "x.csv"), group_by=r"\d+", columns="features=a|b,label=label").load("train")


@pytest.mark.parametrize("form", ["spaces", "semicolons", "json", "channels"])
def test_a_csv_of_series(form, tmp_path):
    def show(i):
        values = [i + t / 10 for t in range(5)]
        if form == "channels":
            return '"' + json.dumps([values, values]) + '"'
        shown = {"spaces": " ", "semicolons": ";"}.get(form, "").join(map(str, values))
        return '"' + json.dumps(values) + '"' if form == "json" else shown

    path = write(tmp_path, "x.csv", "kind,signal\n" + "".join(f"{'uv'[i % 2]},{show(i)}\n" for i in range(40)))
    source = open_source(path)
    assert source.modality is SERIES
    data = source.load("train")
    assert data.values.shape == (28, 2 if form == "channels" else 1, 5)
    torch.testing.assert_close(data.values[:, 0, 4] - data.values[:, 0, 0], torch.full((28,), 0.4), atol=1e-5, rtol=0)
    assert ((data.values[:, 0, 0].round() % 2) == data.labels).all()
    assert open_source(path, columns="series=signal,label=kind", size=3).load("train").values.shape[2] == 3


def test_bad_rows_of_series(tmp_path):
    good = "".join(f"u,1 2 {i}\nv,3 4 {i}\n" for i in range(20))
    source = open_source(write(tmp_path, "x.csv", f"kind,signal\n{good}u,1 nan 3\nu,word\nu,[1\n"))
    message = r":42: a gap .NaN. at step 1(.|\n)*:43: expected a list of numbers, got word(.|\n)*:44"
    with pytest.raises(DataError, match=message):
        source.load("train")


def test_parquet_of_vectors_and_series(hf, tmp_path):
    rows = range(40)
    columns = {"a": [float(i) for i in rows], "b": [i / 3 for i in rows], "label": [i % 2 for i in rows]}
    hf.Dataset.from_dict(columns).to_parquet(tmp_path / "v.parquet")
    source = open_source(str(tmp_path / "v.parquet"))
    assert source.modality is VECTOR
    assert source.load("train").values.shape == (28, 2)
    series = {"ecg": [[i, i + 1.0, i + 2.0] for i in rows], "label": columns["label"], "site": [i // 4 for i in rows]}
    hf.Dataset.from_dict(series).to_parquet(tmp_path / "s.parquet")
    source = open_source(str(tmp_path / "s.parquet"), group_by="site")
    assert source.modality is SERIES
    data = source.load("train")
    assert data.values.shape[1:] == (1, 3)
    assert (data.values[:, 0, 2] - data.values[:, 0, 0] == 2).all()
    columns["a"][3] = None
    hf.Dataset.from_dict(columns).to_parquet(tmp_path / "n.parquet")
    check_refused(tmp_path / "n.parquet", DataError, r"n.parquet:3: a gap .NaN. for feature 'a'")


def make_ts(count, start=0, length=8, classes=2):
    head = f"@problemName made\n@timeStamps false\n@univariate true\n@classLabel true {' '.join('cba'[:classes])}\n@data\n"
    rows = [",".join(str(i + t / 10) for t in range(length)) + f":{'cba'[i % classes]}" for i in range(start, start + count)]
    return head + "\n".join(rows) + "\n"


def test_a_file_by_hand(tmp_path):
    found = read_ts(Path(write(tmp_path, "x.ts", TS)))
    assert found.classes == ("run", "Walk")
    assert found.labels == ["run", "Walk"]
    assert [values.tolist() for values in found.series] == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]
    assert found.names == [f"{tmp_path / 'x.ts'}:9", f"{tmp_path / 'x.ts'}:10"]
    unlabelled = TS.replace("@classLabel true run Walk", "@classLabel false").replace(":run", "").replace(":Walk", "")
    again = read_ts(Path(write(tmp_path, "y.ts", unlabelled)), Columns("series", ("series",)))
    assert torch.equal(again.series[1], found.series[1])


@pytest.mark.slow
def test_the_same_as_aeon(tmp_path):
    loaders = pytest.importorskip("aeon.datasets")
    for text in (TS, make_ts(7)):
        path = Path(write(tmp_path, "x.ts", text))
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
    with pytest.raises(DataError, match=message):
        read_ts(Path(write(tmp_path, "x.ts", TS.replace(old, new))))
    with pytest.raises(DataError, match="cannot be read"):
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
    source = open_source(write(tmp_path, "x.ts", many))
    with pytest.raises(DataError, match=rf"1 of 23 rows cannot be read.*\n.*x.ts:31: .*{message}"):
        source.load("train")
    assert len(source.load("train", skip_bad=True)) == 16


def test_train_and_test_files_of_a_folder(tmp_path):
    write(tmp_path, "Made_TRAIN.ts", make_ts(20))
    write(tmp_path, "Made_TEST.ts", make_ts(6, 20))
    source = open_source(str(tmp_path))
    test = source.load("test")
    assert test.values[:, 0, 0].tolist() == [20, 21, 22, 23, 24, 25]
    assert test.preprocess.mean[0] < 10.5  # of the training split alone
    assert sum(len(source.load(split)) for split in ("train", "validation", "calibration")) == 20
    check_refused(tmp_path, InputError, r"is a .ts file, without columns", group_by="x", split="test")
    write(tmp_path, "Made_TEST.ts", make_ts(5, 20))
    with pytest.raises(DataError, match="are not those of training"):
        source.load("test")
    write(tmp_path, "Other_TRAIN.ts", make_ts(5))
    with pytest.raises(DataError, match=r"expected NAME_TRAIN.ts and NAME_TEST.ts"):
        find_ts_files(tmp_path)


def test_what_an_existing_network_takes(tmp_path):
    path = write(tmp_path, "x.ts", make_ts(40))
    own = xl.data.SeriesPreprocess((1.0,), (2.0,), length=5)
    assert open_source(path).modality is SERIES
    found = open_source(path).load("test", preprocess=own, classes=("b", "c"))
    assert (found.preprocess, found.values.shape, found.classes) == (own, (4, 1, 5), ("b", "c"))
    with pytest.raises(DataError, match=r"40 of 40 rows .*\n.*expected 2 channel\(s\) as in training, got 1"):
        open_source(path).load("test", preprocess=xl.data.SeriesPreprocess((1.0,) * 2, (2.0,) * 2))
    with pytest.raises(DataError, match="has the class 'b', the network does not"):
        open_source(path).load("test", classes=("c", "d"))
    check_refused(path, InputError, "mel: it is for folders of sounds", mel=16, split="test")
