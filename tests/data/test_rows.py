import pytest

from exitlens.data.rows import Columns, find_columns, find_inputs, looks_like_pattern, match_groups, parse_columns
from exitlens.errors import DataError, InputError


def test_groups_from_file_names():
    names = ["cat/p1_01.png", "cat/p1_02.png", "dog/p12_01.png"]
    assert match_groups(r"(p\d+)_", names) == ["p1", "p1", "p12"]
    assert match_groups(r"p\d+", names) == ["p1", "p1", "p12"]
    with pytest.raises(DataError, match=r"finds no group in 2 of 3 file names, such as 'cat/p1_01.png'"):
        match_groups(r"p\d\d", names)
    with pytest.raises(DataError, match="finds no group"):
        match_groups(r"(x)?p", names)
    with pytest.raises(InputError, match="expected a column or a regular expression, got"):
        match_groups("(p", names)
    assert looks_like_pattern(r"p\d+")
    assert not looks_like_pattern("patient_id")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"img": "image", "label": "class"}, Columns("image", ("img",), ("label",))),
        ({"image": "image", "image2": "image", "kind": "class", "id": "integer"}, Columns("image", ("image",), ("kind",))),
        ({"png": "bytes", "digit": "integer", "box": "other"}, Columns("image", ("png",), ("digit",))),
        ({"file_name": "string", "Label": "string", "site": "string"}, Columns("image", ("file_name",), ("Label",))),
        ({"text": "string", "label": "integer", "id": "string"}, Columns("text", ("text",), ("label",))),
        ({"review": "string", "stars": "integer"}, Columns("text", ("review",), ("stars",))),
        ({"words": "string", "label": "class"}, Columns("text", ("words",), ("label",))),
        ({"values": "list", "label": "integer", "id": "string"}, Columns("series", ("values",), ("label",))),
        ({"a": "list", "signal": "list", "kind": "string"}, Columns("series", ("signal",), ("kind",))),
        ({"text": "string", "ids": "list", "label": "integer"}, Columns("text", ("text",), ("label",))),
        ({"a": "float", "b": "integer", "y": "integer"}, Columns("features", ("a", "b"), ("y",))),
        ({"a": "float", "b": "float", "species": "string"}, Columns("features", ("a", "b"), ("species",))),
        ({"a": "float", "b": "float", "c": "integer", "name": "string"}, Columns("features", ("a", "b", "c"), ("name",))),
        ({"tweet": "string", "score": "float", "stars": "integer"}, Columns("text", ("tweet",), ("stars",))),
    ],
)
def test_columns_are_found_by_type_and_usual_name(kinds, expected):
    assert find_columns(kinds, "", "x") == expected


def test_named_columns_come_first_and_reserved_ones_are_not_guessed():
    kinds = {"img": "image", "fine_label": "class", "coarse_label": "class"}
    with pytest.raises(DataError, match=r"several columns could hold the label \(fine_label, coarse_label\).*--columns"):
        find_columns(kinds, "", "x")
    assert find_columns(kinds, "label=coarse_label", "x") == Columns("image", ("img",), ("coarse_label",))
    kinds = {"image": "image", "patient": "string", "grade": "integer"}
    assert find_columns(kinds, "", "x", reserved=["patient"]).labels == ("grade",)
    assert str(find_columns(kinds, "", "x", reserved=["patient"])) == "images from 'image', labels from 'grade'"


def test_named_series_and_features():
    kinds = {"a": "float", "b": "integer", "id": "string", "x": "list", "z": "list"}
    found = find_columns(kinds, "features=b|a,label=id", "x")
    assert found == Columns("features", ("b", "a"), ("id",))
    assert str(found) == "vectors of 2 features (b, a), labels from 'id'"
    many = {f"f{i}": "float" for i in range(9)} | {"label": "integer"}
    assert str(find_columns(many, "", "x")) == "vectors of 9 features (f0, f1, f2, ..., f8), labels from 'label'"
    found = find_columns(kinds, "series=z,label=b", "x")
    assert str(found) == "series from 'z', labels from 'b'"
    with pytest.raises(DataError, match=r"no column 'c' for the features; it has a"):
        find_columns(kinds, "features=a|c,label=id", "x")
    with pytest.raises(InputError, match=r"several different columns as features=A\|B\|C, got 'features=a\|a,label=id'"):
        find_columns(kinds, "features=a|a,label=id", "x")
    with pytest.raises(DataError, match=r"several columns could hold the series \(q, z\)"):
        find_columns({"q": "list", "z": "list", "label": "class"}, "", "x")


def test_arrays_without_labels():
    kinds = {"b": "float", "a": "integer", "label": "integer", "id": "string", "s": "list"}
    assert find_inputs(kinds, "key=id", "x", "features") == Columns("features", ("b", "a"), key="id")
    assert find_inputs(kinds, "", "x", "features", ("a",)).inputs == ("a",)
    assert find_inputs(kinds, "features=label|b", "x", "features").inputs == ("label", "b")
    assert find_inputs(kinds, "", "x", "series") == Columns("series", ("s",))
    with pytest.raises(
        DataError, match=r"no column seems to hold the features, .*\. Fix: name the columns by --columns fea"
    ):
        find_inputs({"id": "string"}, "", "x", "features")
    with pytest.raises(InputError, match=r"the network takes series, got image=NAME. Fix: give series=NAME"):
        find_inputs(kinds, "image=s", "x", "series")


@pytest.mark.parametrize(
    ("kinds", "given", "message"),
    [
        ({"a": "image", "b": "image", "label": "class"}, "", r"could hold the image \(a, b\)"),
        ({"image": "image"}, "", "no column seems to hold the label, it has image"),
        ({"a": "string", "b": "string", "label": "class"}, "", r"image or text \(a, b\)"),
        ({"label": "class"}, "", "no column seems to hold the image or text"),
        ({"image": "image", "label": "class"}, "label=labels", "no column 'labels' for the labels.*Did you mean 'label'"),
    ],
)
def test_unclear_columns_are_refused_with_what_is_there(kinds, given, message):
    with pytest.raises(DataError, match=message):
        find_columns(kinds, given, "x")


@pytest.mark.parametrize(
    "words", ["image", "image=", "picture=a", "image=a,image=b", "image=a,text=b", "text=a,series=b", "=a"]
)
def test_words_that_name_no_columns(words):
    with pytest.raises(InputError, match=r"columns: expected image=NAME"):
        parse_columns(words)
    assert parse_columns(" image=a , label=b,") == {"image": ("a",), "label": ("b",)}
    assert parse_columns("") == {}


@pytest.mark.parametrize("words", ["label=a||b", "label=a|a", "label=|"])
def test_labels_have_different_columns(words):
    with pytest.raises(InputError, match="several different columns as label="):
        parse_columns(words)


@pytest.mark.parametrize(
    ("kinds", "given", "wanted", "expected"),
    [
        ({"photo": "image", "label": "class"}, "", "image", ("photo", "")),
        ({"photo": "image", "caption": "string"}, "", "text", ("caption", "")),
        ({"a": "image", "b": "image", "id": "string"}, "image=b,key=id", "image", ("b", "id")),
        ({"words": "string", "label": "string"}, "", "text", ("words", "")),
        ({"words": "string", "tag": "string"}, "label=tag", "text", ("words", "")),
        ({"path": "string"}, "", "image", ("path", "")),
        ({"label": "string"}, "", "text", ("label", "")),
    ],
)
def test_inputs_need_no_label(kinds, given, wanted, expected):
    found = find_inputs(kinds, given, "x", wanted)
    assert (found.role, *found.inputs, found.key) == (wanted, *expected)


def test_unclear_inputs_are_refused():
    with pytest.raises(DataError, match=r"several columns could hold the text \(a, b\), it has .*--columns text=NAME"):
        find_inputs({"a": "string", "b": "string"}, "", "x", "text")
    with pytest.raises(DataError, match=r"no column seems to hold the image"):
        find_inputs({"a": "string"}, "", "x", "image")
    with pytest.raises(InputError, match=r"the network takes images, got text=NAME. Fix: give image=NAME"):
        find_inputs({"a": "string"}, "text=a", "x", "image")
    with pytest.raises(InputError, match="and key=NAME, with commas"):
        find_inputs({"a": "string"}, "keys=a", "x", "image")
    with pytest.raises(InputError, match="and label=NAME, with commas"):
        parse_columns("key=a")  # labelled rows need no names
