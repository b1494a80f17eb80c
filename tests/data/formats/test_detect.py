import pytest

from exitlens.data.formats.detect import find_format, list_folders


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
