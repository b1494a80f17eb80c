import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

import exitlens as xl
from exitlens.data.demo import load_reviews
from exitlens.data.files import ArrayFiles, describe_folder, find_folder_kind
from exitlens.data.formats import hash_source
from exitlens.data.rows import ColumnChoice, Rows, join_flags, number_labels
from exitlens.data.sources import DataSource, Target, arrange_arrays, make_sets, open_source, read_parts
from exitlens.data.splits import SPLITS, find_rarest
from exitlens.data.texts import TextSet, word_tokenizer
from exitlens.errors import DataError, InputError
from exitlens.modalities import SERIES, TEXT, VOLUME
from exitlens.types.preprocessing import TextPreprocess
from tests.data.conftest import SMALL as PREPROCESS
from tests.data.conftest import Pixels, check_refused, encode, read_numbers, write_rows, write_tar

pytest.importorskip("tokenizers")


def _list_texts(count=60):
    return [{"text": f"text number{i} of {i % 3}", "label": "abc"[i % 3]} for i in range(count)]


@pytest.fixture
def jsonl(tmp_path):
    return write_rows(tmp_path / "data.jsonl", _list_texts())


@pytest.mark.slow
def test_reviews_by_name_and_in_the_words_of_an_existing_network():
    source = open_source("reviews", seed=2, background_agreement=0.6)
    assert source.modality is TEXT
    assert source.contents == ""
    data, expected = source.load("validation"), load_reviews("validation", shop_agreement=0.6, seed=2)
    assert isinstance(data, TextSet)
    assert data.texts == expected.texts
    assert torch.equal(data.masks, expected.masks)
    assert data.inputs["input_ids"].shape == (1000, 32)
    assert open_source("reviews", size=20).load("validation").inputs["input_ids"].shape == (1000, 20)
    same = open_source("reviews", size=20, seed=2).load("validation", preprocess=data.preprocess)
    assert same.preprocess == data.preprocess  # it comes before size
    assert torch.equal(same.masks, data.masks)
    other = open_source("reviews", seed=2).load("validation", preprocess=TextPreprocess(word_tokenizer(["it is good"]), 24))
    assert other.texts == same.texts
    assert other.inputs["input_ids"].shape == (1000, 24)
    assert other.masks is None


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_is_split_per_class_the_same_way_each_time(suffix, tmp_path):
    path = write_rows(tmp_path / f"data{suffix}", _list_texts())
    source = open_source(str(path), seed=1)
    assert source.modality is TEXT
    parts = {split: source.load(split) for split in SPLITS}
    assert {split: len(data) for split, data in parts.items()} == {"train": 42, "validation": 6, "calibration": 6, "test": 6}
    texts = [text for data in parts.values() for text in data.texts]
    assert sorted(texts) == sorted(row["text"] for row in _list_texts())
    for data in parts.values():
        assert data.classes == ("a", "b", "c")
        assert len(set(data.labels.bincount().tolist())) == 1
        assert data.inputs["input_ids"].shape[1] == 64
        assert data.preprocess == parts["train"].preprocess
        assert all("abc"[int(text[-1])] == data.classes[y] for text, y in zip(data.texts, data.labels, strict=True))
    assert source.load("test").texts == parts["test"].texts
    assert open_source(str(path), seed=2).load("test").texts != parts["test"].texts
    assert open_source(str(path), size=7).load("test").inputs["input_ids"].shape == (6, 7)


def test_the_tokenizer_knows_the_words_of_the_training_split_only(jsonl):
    source = open_source(str(jsonl))
    train, test = source.load("train"), source.load("test")
    assert train.preprocess.tokenizer == word_tokenizer(train.texts)
    assert 1 not in train.inputs["input_ids"]
    assert (test.inputs["input_ids"] == 1).sum(1).tolist() == [1] * 6  # each has a number of its own
    other = TextPreprocess(word_tokenizer(["text of"]), 9)
    assert source.load("test", preprocess=other).preprocess == other


def test_a_file_that_has_changed_is_refused(jsonl):
    source = open_source(str(jsonl))
    again = DataSource(**json.loads(json.dumps(asdict(source))))
    assert again == source
    assert len(source.contents) == 16
    jsonl.write_text(jsonl.read_text().replace("number7 ", "number8 "))
    with pytest.raises(DataError, match="are not those of training"):
        again.load("test")
    jsonl.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        again.load("test")


def test_only_close_names_are_suggested(tmp_path):
    (tmp_path / "my photos").mkdir()
    for name, close in (("photos", ""), ("scene", " Did you mean 'scenes'?"), (str(tmp_path / "my photo"), "my photos'?")):
        with pytest.raises(DataError, match="there is no file or folder") as error:
            open_source(name)
        assert str(error.value).endswith(close or "motifs, blobs.")
    (tmp_path / "a.pdf").touch()
    with pytest.raises(DataError, match=r"a.pdf is a file of another kind. Fix: give a folder .*motifs, blobs\.$"):
        open_source(str(tmp_path / "a.pdf"))


def test_sources_that_do_not_fit(tmp_path, jsonl):
    with pytest.raises(DataError, match=r"no file or folder .*\.csv or \.jsonl.*scenes, .*Did you mean 'reviews'"):
        open_source("review")
    for name in ("none.csv", "none.jsonl"):
        with pytest.raises(DataError, match="cannot be read"):
            open_source(str(tmp_path / name))
    preprocess = TextPreprocess(word_tokenizer(["a"]), 8)
    with pytest.raises(InputError, match="preprocess: it is for texts, and scenes gives images"):
        open_source("scenes").load("validation", preprocess=preprocess)
    check_refused(jsonl, InputError, "split", split="dev")
    check_refused("reviews", InputError, "shop_agreement", background_agreement=2.0, split="test")
    check_refused("reviews", InputError, "length", size=1, split="test")
    with pytest.raises(InputError, match="root: torchvision:CIFAR10 needs the folder"):
        open_source("torchvision:CIFAR10")
    assert open_source("scenes", size=8).load("validation").images.shape == (1000, 3, 8, 8)
    grey = open_source("fashion").load("validation", preprocess=PREPROCESS)  # made for three channels of 8 x 8 pixels
    assert (grey.images.shape[1:], grey.preprocess.mean, grey.preprocess.size) == ((1, 28, 28), (0.5,), (28, 28))


def _read_greys(preprocess):
    """A reader of three grey levels."""
    return Pixels(torch.full((len(preprocess.mean), 8, 8), 10 * i, dtype=torch.uint8) for i in range(3))


def _rows(labels=("a", "b", "a"), **more):
    return Rows([f"row {i}" for i in range(3)], labels=labels, **({"images": _read_greys} | more))


def test_rows_that_miss_something_are_left_out_or_named():
    rows = {"x": _rows(("a", None, "b"), groups=["g", "g", "f"])}
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be read[^#]*row 1: no label"):
        make_sets(rows, "it", PREPROCESS)
    data = make_sets(rows, "it", PREPROCESS, skip_bad=True).sets["x"]
    assert data.load().images[:, 0, 0, 0].tolist() == [0, 20]
    assert data.labels.tolist() == [0, 1]
    assert data.groups.tolist() == [1, 0]
    with pytest.raises(DataError, match="row 2: no text"):
        make_sets({"x": _rows(images=None, texts=["one", "two", " "])}, "it", PREPROCESS)
    texts = make_sets({"x": _rows(images=None, texts=[" one", "two", "three"])}, "it", PREPROCESS).sets["x"]
    assert texts.texts == ["one", "two", "three"]


def test_classes_of_all_parts_and_of_an_existing_network():
    parts = {"train": _rows(), "test": _rows(("c", "a", "a"))}
    assert make_sets(parts, "it", PREPROCESS).sets["train"].classes == ("a", "b", "c")
    named = {name: rows._replace(classes=("c", "b", "a")) for name, rows in parts.items()}
    assert make_sets(named, "it", PREPROCESS).sets["test"].labels.tolist() == [0, 2, 2]


def test_a_column_says_the_parts():
    parts = make_sets({"": _rows(splits=["val", "train", "val"])}, "it", PREPROCESS)
    assert {name: part.labels.tolist() for name, part in parts.sets.items()} == {"train": [1], "val": [0, 0]}
    with pytest.raises(DataError, match="split_by: it has the split 'other'"):
        make_sets({"": _rows(splits=["other", "train", "val"])}, "it", PREPROCESS)


@pytest.fixture
def animals(tmp_path):
    """Four images of each of 12 animals, in two class folders."""
    for i in range(48):
        path = tmp_path / "photos" / ("ant", "bee")[i // 4 % 2] / f"animal{i // 4:02}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(i))
    return tmp_path / "photos"


def test_groups_of_a_folder_by_file_names(animals):
    source = open_source(str(animals), size=8, group_by=r"animal(\d+)")
    loaded = source.load_splits(SPLITS)
    assert [len(part.groups.unique()) for part in loaded.sets.values()] == [6, 2, 2, 2]
    groups = [group for part in loaded.sets.values() for group in part.groups.unique().tolist()]
    assert sorted(groups) == list(range(12))
    for part in loaded.sets.values():
        assert all(f"animal{group:02}_" in part.name(i) for i, group in enumerate(part.groups.tolist()))
    assert loaded.notes[1].startswith(r"groups by 'animal(\d+)': 12, of which 6 in train")
    assert loaded.notes[2].startswith("train: 24 images of 2 classes (")
    alone = open_source(str(animals), size=8, group_by=r"(animal.+)").load_splits(SPLITS)
    assert alone.notes[1].endswith("no two samples are in one group")
    assert not torch.equal(source.load("train").labels, open_source(str(animals), size=8).load("train").labels)
    with pytest.raises(DataError, match=r"finds no group in 48 of 48 file names, such as 'ant/animal00_0.png'"):
        open_source(str(animals), group_by=r"bird\d").load("train")
    check_refused(animals, InputError, "is a folder of class folders, without columns", split_by="fold")


def test_folders_of_splits(animals, tmp_path):
    for split, start in (("train", 0), ("val", 40)):
        for path in sorted(animals.rglob("*.png")):
            number = int(path.stem.split("_")[1])
            if (number >= 40) == (start == 40):
                target = tmp_path / "split" / split / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    source = open_source(str(tmp_path / "split"), size=8, group_by=r"animal(\d+)")
    loaded = source.load_splits(SPLITS)
    assert loaded.sets["validation"].groups.unique().tolist() == [10, 11]
    assert loaded.sets["train"].classes == ("ant", "bee")
    assert loaded.notes[0].startswith("splits: validation: all of 'val'; cut from 'train' by exitlens")
    assert sum(len(part) for part in loaded.sets.values()) == 48
    (tmp_path / "split" / "val" / "ant" / "animal00_99.png").write_bytes(encode(0))
    with pytest.raises(DataError, match=r"has the group '00' in train and in val \(1 group"):
        open_source(str(tmp_path / "split"), group_by=r"animal(\d+)").load("train")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_groups_and_splits_of_texts(suffix, tmp_path):
    rows = [
        {"text": f"words {i}", "label": "ab"[i % 2], "author": f"a{i // 2}", "fold": "dev" if i > 29 else "train"}
        for i in range(40)
    ]
    path = write_rows(tmp_path / f"x{suffix}", rows)
    source = open_source(str(path), group_by="author")
    groups = [set(source.load(split).groups.tolist()) for split in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    source = open_source(str(path), split_by="fold", columns="text=author,label=label")
    assert source.load("validation").texts == tuple(f"a{i // 2}" for i in range(30, 40))
    check_refused(path, DataError, r"no column 'writer'|40 of 40 rows", group_by="writer")
    check_refused(path, InputError, r"holds texts. Fix: give text=NAME", columns="image=text")


def test_files_of_texts_that_are_named_by_split(tmp_path):
    for part, first in (("train", 0), ("dev", 40), ("test", 60)):
        lines = [f"{part} {i},{'ab'[i % 2]},a{i // 2}" for i in range(first, first + 20)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["text,label,author", *lines]))
    source = open_source(str(tmp_path), group_by="author")
    loaded = source.load_splits(SPLITS)
    assert [len(loaded.sets[split]) for split in SPLITS] == [18, 20, 2, 20]
    assert loaded.notes[0].startswith("splits: validation: all of 'dev'; test: all of 'test'; cut from 'train' by exitlens")
    check_refused(tmp_path, InputError, r"split_by: .* has a file for each split \(dev, test, train\)", split_by="author")
    (tmp_path / "test.csv").write_text("text,label,author\nchanged,a,a99\n")
    with pytest.raises(DataError, match="are not those of training"):
        source.load("test")
    (tmp_path / "test.jsonl").write_text("{}")
    with pytest.raises(DataError, match="two files of one name"):
        open_source(str(tmp_path))


def test_texts_without_a_group_or_split(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label,author\n" + "".join(f"t{i},{'ab'[i % 2]},{'' if i == 3 else i // 2}\n" for i in range(20)))
    with pytest.raises(DataError, match=r"1 of 20 rows cannot be read[^#]*:5: author: expected"):
        read_parts(str(path), "texts", ColumnChoice(group_by="author"), Target())
    parts = read_parts(str(path), "texts", ColumnChoice(group_by="author"), Target(), skip_bad=True)
    assert len(parts.sets[""].texts) == 19
    assert len(parts.group_names) == 10


def test_the_hash_of_a_folder_covers_its_names(animals):
    before = hash_source(str(animals), "folder")
    (animals / "ant" / "animal00_0.png").write_bytes(b"changed")  # contents decide no splits
    assert hash_source(str(animals), "folder") == before
    (animals / "ant" / "new.png").write_bytes(b"")
    assert hash_source(str(animals), "folder") != before


TAGS = ("cat", "dog", "indoors")


def tags_of(i):
    """Which of the tags sample i has: none, some or all."""
    return [tag for bit, tag in enumerate(TAGS) if i >> bit & 1]


def truth(numbers):
    return [[tag in tags_of(i) for tag in TAGS] for i in numbers]


def check_images(source):
    parts = source.load_splits(SPLITS).sets
    numbers = {split: read_numbers(part) for split, part in parts.items()}
    assert sorted(n for found in numbers.values() for n in found) == list(range(40))
    for split, part in parts.items():
        assert part.classes == TAGS
        assert part.labels.dtype == torch.bool
        assert part.labels.tolist() == truth(numbers[split])
    assert parts["train"][0][1].shape == (3,)
    assert parts["train"].load().labels.tolist() == parts["train"].labels.tolist()


def test_columns_of_0_and_1_in_a_table(hf, tmp_path):
    values = {"image": [{"bytes": encode(i), "path": None} for i in range(40)]}
    values |= {tag: [int(tag in tags_of(i)) for i in range(40)] for tag in TAGS}
    features = {"image": hf.Image(), "cat": hf.Value("int64"), "dog": hf.Value("bool"), "indoors": hf.Value("string")}
    table = hf.Dataset.from_dict(values | {"indoors": list(map(str, values["indoors"]))}, features=hf.Features(features))
    table.save_to_disk(str(tmp_path / "x"))
    columns = "image=image,label=cat|dog|indoors"
    check_images(open_source(str(tmp_path / "x"), size=8, columns=columns))
    notes = open_source(str(tmp_path / "x"), size=8, columns=columns).load_splits(SPLITS).notes
    assert "with 3 labels, any number to a sample" in notes[-1]
    check_refused(tmp_path / "x", DataError, "no column 'horse' for the labels", columns="label=cat|horse")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.slow
def test_lists_in_a_table(hf, tmp_path, named):
    inner = hf.ClassLabel(names=list(TAGS)) if named else hf.Value("string")
    kind = getattr(hf, "List", hf.Sequence)
    values = {"image": [{"bytes": encode(i), "path": None} for i in range(40)], "label": list(map(tags_of, range(40)))}
    features = hf.Features({"image": hf.Image(), "label": kind(inner)})
    hf.Dataset.from_dict(values, features=features).to_parquet(str(tmp_path / "x.parquet"))
    check_images(open_source(str(tmp_path / "x.parquet"), size=8))


def test_words_in_the_metadata_of_a_folder(hf, tmp_path):
    lines = ["file_name,label"]
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(encode(i))
        lines.append(f"{i}.png,{';'.join(tags_of(i)) or ' '}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    check_images(open_source(str(tmp_path), size=8, task="multilabel"))


def test_lists_and_columns_in_shards(tmp_path):
    def members():
        for i in range(40):
            flags = {tag: int(tag in tags_of(i)) for tag in TAGS}
            yield f"{i:04}.png", encode(i)
            yield f"{i:04}.json", json.dumps({"label": tags_of(i), **flags}).encode()

    write_tar(tmp_path / "a.tar", members())
    check_images(open_source(str(tmp_path / "a.tar"), size=8, columns="label=label", task="multilabel"))
    check_images(open_source(str(tmp_path / "a.tar"), size=8, columns="image=image,label=cat|dog|indoors"))


@pytest.mark.parametrize("kind", ["words", "columns", "lists", "flags"])
def test_texts(tmp_path, kind):
    rows = []
    for i in range(40):
        row = {"text": f"word{i} and more"}
        row |= {"label": {"words": ";".join(tags_of(i)), "lists": tags_of(i)}[kind]} if kind in ("words", "lists") else {}
        row |= {tag: tag in tags_of(i) for tag in TAGS} if kind in ("columns", "flags") else {}
        rows.append(row)
    path = write_rows(tmp_path / ("x.csv" if kind in ("words", "columns") else "x.jsonl"), rows)
    columns = "label=cat|dog|indoors" if kind in ("columns", "flags") else ""
    source = open_source(str(path), size=8, columns=columns, task="multilabel" if kind == "words" else "")
    parts = source.load_splits(SPLITS).sets
    assert sum(map(len, parts.values())) == 40
    for part in parts.values():
        assert part.labels.tolist() == truth(int(text.split()[0].removeprefix("word")) for text in part.texts)


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        (["text,cat,dog", "a,1,0", "b,2,1"], "label=cat|dog", ":3: expected 0 or 1 for the label 'cat', got '2'"),
        (["text,cat,dog", "a,1,0", "b,,1"], "label=cat|dog", ":3: no label"),
        (["text,ca;t,dog", "a,1,0"], "label=ca;t|dog", "has a ';' in its name"),
        (["text,label", "a,cat", "b,cat;cat"], "", r"has 1 label\(s\), need 2 or more"),
    ],
)
def test_bad_label_columns(tmp_path, lines, columns, message):
    path = tmp_path / "x.csv"
    path.write_text("\n".join(lines))
    check_refused(path, DataError, message, columns=columns, task="multilabel")


def test_what_has_one_class_a_sample(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(encode(0))
    check_refused(tmp_path, InputError, "has one class for an image, its folder", task="multilabel")
    with pytest.raises(InputError, match="scenes has no columns"):
        open_source("scenes", task="multilabel")
    with pytest.raises(InputError, match="task: expected one of"):
        open_source("scenes", task="ordinal")


def test_sets_of_labels_by_hand():
    labels, names = number_labels(["b;a", "", " a ; c"], (), "x", several=True)
    assert names == ("a", "b", "c")
    assert labels.tolist() == [[True, True, False], [False, False, False], [True, False, True]]
    assert number_labels(["10;9"], (), "x", several=True)[1] == ("9", "10")
    with pytest.raises(DataError, match="has the label 'd', the network does not"):
        number_labels(["a;d"], ("a", "b"), "x", several=True)
    assert join_flags({"a": ["1", "0", None], "b": ["True", "0", "1"]}, "xyz") == ["a;b", "", None]


def test_the_rarest_label_of_each_sample():
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 0]]).bool()
    assert find_rarest(labels).tolist() == [1, 0, 3, 2, 1]


OWN = xl.data.SeriesPreprocess((5.0,) * 2, (2.0,) * 2)


def test_class_folders_are_read_when_asked_for(series_folder):
    data = xl.data.load_folder(series_folder, OWN)
    assert (len(data), data.shape, data.classes, data.modality) == (24, (2, 30), ("calm", "wild"), SERIES)
    assert data.labels.tolist() == [0] * 12 + [1] * 12
    first = np.load(series_folder / "calm" / "p0_00.npy")
    np.testing.assert_allclose(data[0][0].numpy(), (first - 5) / 2, rtol=1e-6)
    assert data.name(0).endswith("calm/p0_00.npy")
    assert data.first(3).load().inputs.equal(data.inputs[:3])
    (series_folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"no series files below .*empty \(looked for .npy"):
        xl.data.load_folder(series_folder, OWN)
    with pytest.raises(InputError, match="expected one of Preprocess, SeriesPreprocess, VolumePreprocess, got VectorPr"):
        xl.data.load_folder(series_folder, xl.data.VectorPreprocess((0.0,), (1.0,)))


def test_a_source_of_series_in_class_folders(series_folder):
    source = open_source(str(series_folder), group_by=r"(p\d+)_", seed=1)
    assert source.modality is SERIES
    check_refused(series_folder, DataError, r"class 'calm' has 1 group\(s\), need 4", group_by=r"^(\w)")
    found = source.load_splits(("train", "validation", "test"))
    train = found.sets["train"]
    assert isinstance(train, xl.data.LazySet)
    torch.testing.assert_close(train.inputs.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.inputs.transpose(0, 1).flatten(1).std(1, correction=0), torch.ones(2))
    assert found.sets["test"].preprocess == train.preprocess
    assert not set(train.groups.tolist()) & set(found.sets["test"].groups.tolist())
    np.save(series_folder / "calm" / "p9_new.npy", np.zeros((2, 30)))
    with pytest.raises(DataError, match="are not those of training"):
        source.load("test")


def test_files_of_another_length_or_kind(series_folder):
    np.save(series_folder / "wild" / "p9_99.npy", np.zeros((2, 29)))
    (series_folder / "calm" / "p0_00.npy").write_bytes(b"damaged")
    data = xl.data.load_folder(series_folder, OWN, skip_bad=True)
    assert data.shape == (2, 30)  # of the first that can be read
    assert len(data.load()) == 23
    assert "p0_00.npy: not a .npy file" in data.bad[0]
    assert "p9_99.npy: it has 29 steps, the first file 30. Fix: make them alike, or train with --size" in data.bad[1]
    cut = open_source(str(series_folder), size=20).load_splits(("train",), skip_bad=True)
    assert cut.sets["train"].shape == (2, 20)
    assert cut.notes[-1] == "series: longer ones are cut to 20 steps, shorter ones filled with zeros, at the end"
    check_refused(series_folder, InputError, r"mel: it is for sounds, .*p0_01.npy says no sampling rate", mel=8)
    for path in series_folder.rglob("*.npy"):
        path.write_bytes(b"")
    check_refused(series_folder, DataError, "has no file that can be read as a series or a volume")
    with pytest.raises(DataError, match=r"data: .*p0_00.npy: not a .npy file"):
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
    own = xl.data.VolumePreprocess((1.0,), (2.0,), (2, 2, 2))
    assert source.load("test", preprocess=own).inputs.shape[1:] == (1, 2, 2, 2)
    wrong = xl.data.VolumePreprocess((1.0,) * 2, (2.0,) * 2, (2, 2, 2))
    with pytest.raises(DataError, match=r"expected 2 channel\(s\) as in training, got 1"):
        source.load("test", preprocess=wrong).load()
    check_refused(tmp_path, InputError, "mel: it is for sounds", mel=8)


def test_sounds_become_spectrograms(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(8):
            soundfile.write(tmp_path / name / f"{i}.wav", rng.normal(size=1600 + i) * 0.1, 8000)
    data = open_source(str(tmp_path), mel=8, size=12).load("train")
    assert (data.shape, data.preprocess.rate) == ((8, 12), 8000.0)
    assert data.preprocess.mel == xl.data.MelSpectrogram(bands=8)
    torch.testing.assert_close(data.inputs.std(), torch.tensor(1.0), atol=0.05, rtol=0)
    soundfile.write(tmp_path / "a" / "9.wav", rng.normal(size=1600) * 0.1, 16000)
    with pytest.raises(DataError, match=r"9.wav: its sampling rate is 16000 Hz, the network's 8000 Hz"):
        xl.data.load_folder(tmp_path, data.preprocess).load()


@pytest.mark.parametrize(
    ("name", "kind"), [("s.npy", SERIES), ("v.npy", VOLUME), ("x.nii.gz", VOLUME), ("x.WAV", SERIES), ("x.csv", SERIES)]
)
def test_the_first_file_says_what_a_folder_holds(tmp_path, name, kind):
    (tmp_path / ".hidden").mkdir()
    np.save(tmp_path / ".hidden" / "a.npy", np.zeros((2, 2, 2)))
    (tmp_path / name).write_text("")
    if name.endswith(".npy"):
        (tmp_path / "a.npy").write_bytes(b"damaged")
        np.save(tmp_path / name, np.zeros((2, 3, 4) if kind is VOLUME else (2, 3)))
    assert find_folder_kind(tmp_path) is kind
    with pytest.raises(DataError, match="no files"):
        describe_folder(tmp_path / ".hidden" / "none", SERIES, 0, None)


NAN = float("nan")


def make_part(series, faults=()):
    return Rows(list("abcd")[: len(series)], series=series, labels=["a"] * len(series), faults=dict(faults))


def test_series_get_one_length():
    three, five = torch.ones(2, 3), torch.ones(2, 5)
    parts, preprocess, note = arrange_arrays({"": make_part([three, five])}, "x", Target(size=4))
    assert parts[""].arrays[:, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert preprocess == xl.data.SeriesPreprocess((0.0,) * 2, (1.0,) * 2, length=4)
    assert note == "series: 4 steps; 1 longer ones are cut, 1 shorter ones filled with zeros, at the end"
    with pytest.raises(DataError, match=r"x has series of 3 to 5 steps, .*pass --size STEPS"):
        arrange_arrays({"train": make_part([three]), "test": make_part([five])}, "x", Target())
    assert arrange_arrays({"": make_part([three])}, "x", Target())[2] == ""


def test_series_with_faults():
    series = [None, torch.ones(1, 3), torch.tensor([[1.0, NAN, 2.0]]), torch.ones(2, 3)]
    rows = arrange_arrays({"": make_part(series, {0: "no list"})}, "x", Target())[0][""]
    assert {i: fault[:24] for i, fault in rows.faults.items()} == {
        0: "no list", 2: "a gap (NaN) at step 1 of", 3: "expected 1 channel(s) as"
    }  # fmt: skip
    assert rows.arrays.shape == (4, 1, 3)
    with pytest.raises(DataError, match="x has no series that can be read: no list"):
        arrange_arrays({"": make_part([None], {0: "no list"})}, "x", Target())


@pytest.mark.parametrize(("name", "kind", "shape"), [("motifs", SERIES, (2, 128)), ("blobs", VOLUME, (1, 20, 20, 20))])
def test_generated_data_by_name(name, kind, shape):
    source = open_source(name, seed=1, background_agreement=0.5)
    assert (source.modality, source.format, source.contents) == (kind, None, "")
    data = source.load("validation")
    assert data.inputs.shape[1:] == shape
    assert data.masks is not None
    small = open_source(name, size=16).load("validation")
    assert small.values.shape[-1] == 16
    own = small.preprocess.scaled([1.0] * shape[0], [2.0] * shape[0])
    if kind is SERIES:
        own = xl.data.SeriesPreprocess(own.mean, own.std, length=16)
    again = open_source(name).load("validation", preprocess=own)
    np.testing.assert_allclose(again.inputs.numpy(), (small.values.numpy() - 1) / 2, rtol=1e-5, atol=1e-6)
    check_refused(name, InputError, "mel: it is for sounds", mel=8, split="test")
    with pytest.raises(InputError, match="they are for data from files"):
        open_source(name, columns="label=a")
