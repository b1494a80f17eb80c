import json

import pytest
import torch

import exitlens as xl
from exitlens.data.demo.reviews import load_reviews
from exitlens.data.sources import DataSource, open_source
from exitlens.data.splits import SPLITS
from exitlens.data.texts import TextSet, word_tokenizer
from exitlens.modalities import TEXT
from exitlens.types.preprocessing import TextPreprocess

pytest.importorskip("tokenizers")


def _rows(count=60):
    return [{"text": f"text number{i} of {i % 3}", "label": "abc"[i % 3]} for i in range(count)]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _rows()))
    return path


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in _rows()))
    return path


def test_reviews_by_name():
    source = open_source("reviews", seed=2, background_agreement=0.6)
    assert source.modality is TEXT
    assert source.contents == ""
    data, expected = source.load("validation"), load_reviews("validation", shop_agreement=0.6, seed=2)
    assert isinstance(data, TextSet)
    assert data.texts == expected.texts
    assert torch.equal(data.masks, expected.masks)
    assert data.input_ids.shape == (1000, 32)
    assert open_source("reviews", size=20).load("validation").input_ids.shape == (1000, 20)


def test_reviews_in_the_words_of_an_existing_network():
    own = open_source("reviews").load("validation")
    same = open_source("reviews", size=20).load("validation", preprocess=own.preprocess)
    assert same.preprocess == own.preprocess  # it comes before size
    assert torch.equal(same.masks, own.masks)
    other = open_source("reviews").load("validation", preprocess=TextPreprocess(word_tokenizer(["it is good"]), 24))
    assert other.texts == own.texts
    assert other.input_ids.shape == (1000, 24)
    assert other.masks is None


@pytest.mark.parametrize("kind", ["jsonl", "table"])
def test_a_file_is_split_per_class_the_same_way_each_time(kind, request):
    path = request.getfixturevalue(kind)
    source = open_source(str(path), seed=1)
    assert source.modality is TEXT
    parts = {split: source.load(split) for split in SPLITS}
    assert {split: len(data) for split, data in parts.items()} == {"train": 42, "validation": 6, "calibration": 6, "test": 6}
    texts = [text for data in parts.values() for text in data.texts]
    assert sorted(texts) == sorted(row["text"] for row in _rows())
    for data in parts.values():
        assert data.classes == ("a", "b", "c")
        assert len(set(data.labels.bincount().tolist())) == 1
        assert data.input_ids.shape[1] == 64
        assert data.preprocess == parts["train"].preprocess
        assert all("abc"[int(text[-1])] == data.classes[y] for text, y in zip(data.texts, data.labels, strict=True))
    assert source.load("test").texts == parts["test"].texts
    assert open_source(str(path), seed=2).load("test").texts != parts["test"].texts
    assert open_source(str(path), size=7).load("test").input_ids.shape == (6, 7)


def test_the_tokenizer_knows_the_words_of_the_training_split_only(jsonl):
    source = open_source(str(jsonl))
    train, test = source.load("train"), source.load("test")
    assert train.preprocess.tokenizer == word_tokenizer(train.texts)
    assert 1 not in train.input_ids
    assert (test.input_ids == 1).sum(1).tolist() == [1] * 6  # each has a number of its own
    other = TextPreprocess(word_tokenizer(["text of"]), 9)
    assert source.load("test", preprocess=other).preprocess == other


def test_a_file_that_has_changed_is_refused(jsonl):
    source = open_source(str(jsonl))
    again = DataSource(**json.loads(json.dumps(source.to_dict())))
    assert again == source
    assert len(source.contents) == 16
    jsonl.write_text(jsonl.read_text().replace("number7 ", "number8 "))
    with pytest.raises(xl.errors.DataError, match="are not those of training"):
        again.load("test")
    jsonl.unlink()
    with pytest.raises(xl.errors.DataError, match="cannot be read"):
        again.load("test")


def test_classes_and_bad_rows_of_a_file(jsonl):
    with pytest.raises(xl.errors.DataError, match="the network does not"):
        open_source(str(jsonl)).load("test", classes=("a", "b"))
    assert open_source(str(jsonl)).load("test", classes=("c", "b", "a", "z")).classes == ("c", "b", "a", "z")
    jsonl.write_text(jsonl.read_text() + "{\n")
    source = open_source(str(jsonl))
    with pytest.raises(xl.errors.DataError, match=":61: not JSON"):
        source.load("train")
    assert len(source.load("train", skip_bad=True)) == 42


def test_a_class_with_too_few_texts(tmp_path):
    (tmp_path / "few.csv").write_text("text,label\n" + "x,a\n" * 9 + "y,b\n" * 3)
    with pytest.raises(xl.errors.DataError, match=r"class 'b' has 3 sample\(s\), need 4"):
        open_source(str(tmp_path / "few.csv")).load("train")


def test_sources_that_do_not_fit(tmp_path, jsonl):
    with pytest.raises(
        xl.errors.DataError, match=r"it can also be scenes, .*reviews.*\.csv or \.jsonl.*Did you mean 'reviews'"
    ):
        open_source("review")
    for name in ("none.csv", "none.jsonl"):
        with pytest.raises(xl.errors.DataError, match="cannot be read"):
            open_source(str(tmp_path / name))
    preprocess = TextPreprocess(word_tokenizer(["a"]), 8)
    with pytest.raises(xl.errors.InputError, match="preprocess: it is for texts, and scenes gives images"):
        open_source("scenes").load("validation", preprocess=preprocess)
    with pytest.raises(xl.errors.InputError, match="preprocess: it is for images, and reviews gives texts"):
        open_source("reviews").load("validation", preprocess=xl.data.Preprocess((8, 8)))
    for name in ("reviews", str(jsonl)):
        with pytest.raises(xl.errors.InputError, match="split"):
            open_source(name).load("dev")
    with pytest.raises(xl.errors.InputError, match="shop_agreement"):
        open_source("reviews", background_agreement=2.0).load("test")
    with pytest.raises(xl.errors.InputError, match="length"):
        open_source("reviews", size=1).load("test")


def test_a_source_splits_a_folder_the_same_way_each_time_and_notices_changes(folder):
    source = open_source(str(folder), size=16, seed=1)
    parts = {split: source.load(split) for split in ("train", "validation", "calibration", "test")}
    assert torch.equal(parts["test"].inputs, source.load("test").inputs)
    assert sum(map(len, parts.values())) == 36
    assert parts["train"].inputs.shape[2:] == (16, 16)
    (folder / "cat" / "new.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    with pytest.raises(xl.errors.DataError, match="not those of training"):
        source.load("test")


def test_sources_by_name():
    assert len(open_source("scenes").load("validation")) == 1000
    assert open_source("fashion").load("validation").images.shape[1] == 1
    with pytest.raises(xl.errors.DataError, match="it can also be scenes"):
        open_source("scene")
    with pytest.raises(xl.errors.InputError, match="root"):
        open_source("torchvision:CIFAR10")
    with pytest.raises(xl.errors.InputError, match="split"):
        open_source("scenes").load("dev")
