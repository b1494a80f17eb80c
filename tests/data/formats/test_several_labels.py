"""Label matrices from files: columns of 0 and 1, lists, and words with ; between them."""

import json

import pytest
import torch

import exitlens as xl
from exitlens.data.checks import join_flags, number_label_sets
from exitlens.data.formats.columns import find_columns, parse_columns
from exitlens.data.sources import open_source
from exitlens.data.splits import SPLITS, find_rarest
from tests.data.formats.conftest import encode, write_tar

TAGS = ("cat", "dog", "indoors")


def tags_of(i):
    """Which of the tags sample i has: none, some or all."""
    return [tag for bit, tag in enumerate(TAGS) if i >> bit & 1]


def truth(numbers):
    return [[tag in tags_of(i) for tag in TAGS] for i in numbers]


def _numbers(data):
    return (data.preprocess.restore(data.inputs)[:, 0, 0, 0] * 255).round().int().tolist()


def check_images(source):
    parts = source.load_splits(SPLITS).sets
    numbers = {split: _numbers(part) for split, part in parts.items()}
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
    with pytest.raises(xl.DataError, match="no column 'horse' for the labels"):
        open_source(str(tmp_path / "x"), columns="label=cat|horse").load("train")


@pytest.mark.parametrize("named", [True, False])
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
    pytest.importorskip("tokenizers")
    path = tmp_path / ("x.csv" if kind in ("words", "columns") else "x.jsonl")
    rows = []
    for i in range(40):
        row = {"text": f"word{i} and more"}
        row |= {"label": {"words": ";".join(tags_of(i)), "lists": tags_of(i)}[kind]} if kind in ("words", "lists") else {}
        row |= {tag: tag in tags_of(i) for tag in TAGS} if kind in ("columns", "flags") else {}
        rows.append(row)
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) if path.suffix == ".csv" else "\n".join(map(json.dumps, rows)))
    columns = "label=cat|dog|indoors" if kind in ("columns", "flags") else ""
    source = open_source(str(path), size=8, columns=columns, task="multilabel" if kind == "words" else "")
    parts = source.load_splits(SPLITS).sets
    assert sum(map(len, parts.values())) == 40
    for part in parts.values():
        assert part.labels.tolist() == truth(int(text.split()[0].removeprefix("word")) for text in part.texts)


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        (["text,cat,dog", "a,1,0", "b,2,1"], "label=cat|dog", "line 3: expected 0 or 1 for the label 'cat', got '2'"),
        (["text,cat,dog", "a,1,0", "b,,1"], "label=cat|dog", "line 3: no label"),
        (["text,ca;t,dog", "a,1,0"], "label=ca;t|dog", "has a ';' in its name"),
        (["text,label", "a,cat", "b,cat;cat"], "", r"has 1 label\(s\), need 2 or more"),
    ],
)
def test_bad_label_columns(tmp_path, lines, columns, message):
    path = tmp_path / "x.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(xl.DataError, match=message):
        open_source(str(path), columns=columns, task="multilabel").load("train")


@pytest.mark.parametrize("words", ["label=a||b", "label=a|a", "label=|"])
def test_bad_words_for_columns(words):
    with pytest.raises(xl.InputError, match="several different columns of labels"):
        parse_columns(words)


def test_named_columns_are_not_guessed_again():
    kinds = {"file": "string", "a": "integer", "b": "integer", "text": "string"}
    assert find_columns(kinds, "image=file,label=a|b", "x").labels == ("a", "b")


def test_what_has_one_class_a_sample(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(encode(0))
    with pytest.raises(xl.InputError, match="has one class for an image, its folder"):
        open_source(str(tmp_path), task="multilabel").load("train")
    with pytest.raises(xl.InputError, match="scenes has no columns"):
        open_source("scenes", task="multilabel")
    with pytest.raises(xl.InputError, match="task: expected one of"):
        open_source("scenes", task="ordinal")


def test_sets_of_labels_by_hand():
    labels, names = number_label_sets(["b;a", "", " a ; c"], (), "x")
    assert names == ("a", "b", "c")
    assert labels.tolist() == [[True, True, False], [False, False, False], [True, False, True]]
    assert number_label_sets(["10;9"], (), "x")[1] == ("9", "10")
    with pytest.raises(xl.DataError, match="has the label 'd', the network has not"):
        number_label_sets(["a;d"], ("a", "b"), "x")
    assert join_flags({"a": ["1", "0", None], "b": ["True", "0", "1"]}, str) == ["a;b", "", None]


def test_the_rarest_label_of_each_sample():
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 0]]).bool()
    assert find_rarest(labels).tolist() == [1, 0, 3, 2, 1]


def test_groups_stay_whole_with_several_labels():
    labels = torch.rand(120, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    groups = torch.arange(120) // 3
    data = xl.ImageSet(torch.zeros(120, 1, 2, 2, dtype=torch.uint8), labels, TAGS, groups=groups)
    parts = xl.split_set(data, (0.5, 0.5))
    assert not set(parts[0].groups.tolist()) & set(parts[1].groups.tolist())
    assert sum(map(len, parts)) == 120
