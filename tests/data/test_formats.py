import pytest

from exitlens.data.files import list_folders
from exitlens.data.formats import find_format


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/1.png", "b/2.jpg"], "folder"),
        (["a/1.png", "b/2.jpg", "images.tar", "table.parquet"], "folder"),
        (["train/a/1.png", "val/a/1.png"], "folder"),
        (["data/train-0.parquet", "logo.png"], "parquet"),
        (["assets/logo.png", "data/x.parquet"], "parquet"),
        (["x.arrow"], "arrow"),
        (["dataset_info.json", "state.json", "data.arrow"], "saved"),
        (["dataset_dict.json", "train/data.arrow"], "saved"),
        (["s-0.tar", "s-1.tar"], "shards"),
        ([".cache/x.parquet", "a/1.png"], "folder"),
        (["a/1.npy", "b/2.npy"], "arrays"),
        (["a/1.wav", "b/c/2.FLAC"], "arrays"),
        (["train/a/1.nii.gz", "test/a/1.nii.gz"], "arrays"),
        (["a/1.csv", "b/2.csv", "x.tar"], "shards"),
        (["a/1.npy", "a/2.npy"], "folder"),
        (["a/1.parquet", "b/2.parquet"], "parquet"),
        (["X_TRAIN.ts", "X_TEST.ts", "readme.txt"], "series"),
        ([], "folder"),
    ],
)
def test_the_format_of_a_folder(files, expected, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_format(str(tmp_path)) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("metadata.csv", "file_name,label\n", "imagefolder"),
        ("train/metadata.jsonl", '{"file_name": "a.png"}\n', "imagefolder"),
        ("metadata.csv", "id,label\n", "folder"),  # of something else
        ("metadata.csv", "", "folder"),
        ("metadata.jsonl", "no json", "folder"),
        ("metadata.parquet", "", "imagefolder"),
    ],
)
def test_metadata_that_name_files(name, content, expected, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
    assert find_format(str(tmp_path)) == expected


def test_the_format_of_a_name(tmp_path):
    for name in ("x.parquet", "x.arrow", "x.png"):
        (tmp_path / name).touch()
    assert find_format(str(tmp_path / "x.parquet")) == "parquet"
    assert find_format(str(tmp_path / "x.arrow")) == "arrow"
    assert find_format(str(tmp_path / "x.png")) is None
    assert find_format(str(tmp_path / "none.parquet")) is None
    assert find_format("none-{000..003}.tar") == "shards"
    assert find_format("none.csv") == "texts"
    assert find_format("hf:mnist") == "hub"
    assert find_format("scene") is None
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "shown").mkdir()
    assert list_folders(tmp_path) == [tmp_path / "shown"]


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("text,label\nhello,1\n", "", "texts"),
        ("a,b,label\n1,2.5,x\n", "", "numbers"),
        ("a,b,c\n1,2,3\n", "", "numbers"),  # which one is the label is asked for later
        ("tweet,stars\nhello,1\n", "", "texts"),
        ("tweet,stars\nhello,1\n", "text=tweet,label=stars", "texts"),
        ("id,a,b\nx,1,2\n", "features=a|b,label=id", "numbers"),
        ("id,a,b\nx,1,2\n", "label=id", "numbers"),
        ("id,a,b\nx,1.5,2\n", "key=id,label=b", "numbers"),
        ("values,kind\n1 2 3,x\n", "", "numbers"),
        ('"broken,csv\n', "", "texts"),
        ("", "", "texts"),
    ],
)
def test_csv_files_of_texts_or_numbers(text, columns, expected, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    assert find_format(str(tmp_path / "x.csv"), columns) == expected
    assert find_format(str(tmp_path / "x.csv"), "text=a") == "texts"


def test_parquet_files_of_one_series_each(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        parquet.write_table(pyarrow.table({"x": [1.0], "y": [2.0], "time": ["t"]}), tmp_path / name / "1.parquet")
    assert find_format(str(tmp_path)) == "arrays"
    parquet.write_table(pyarrow.table({"x": [1.0], "label": [2]}), tmp_path / "b" / "1.parquet")
    assert find_format(str(tmp_path)) == "parquet"
