import pytest

import exitlens as xl
from exitlens.data.formats.columns import Columns, find_columns, find_inputs, parse_columns


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"img": "image", "label": "class"}, Columns("img", "", "label")),
        ({"image": "image", "image2": "image", "kind": "class", "id": "integer"}, Columns("image", "", "kind")),
        ({"png": "bytes", "digit": "integer", "box": "other"}, Columns("png", "", "digit")),
        ({"file_name": "string", "Label": "string", "site": "string"}, Columns("file_name", "", "Label")),
        ({"text": "string", "label": "integer", "id": "string"}, Columns("", "text", "label")),
        ({"review": "string", "stars": "integer"}, Columns("", "review", "stars")),
        ({"words": "string", "label": "class"}, Columns("", "words", "label")),
    ],
)
def test_columns_are_found_by_type_and_usual_name(kinds, expected):
    assert find_columns(kinds, "", "x") == expected


def test_named_columns_come_first_and_reserved_ones_are_not_guessed():
    kinds = {"img": "image", "fine_label": "class", "coarse_label": "class"}
    with pytest.raises(xl.DataError, match=r"several columns could hold the label \(fine_label, coarse_label\).*--columns"):
        find_columns(kinds, "", "x")
    assert find_columns(kinds, "label=coarse_label", "x") == Columns("img", "", "coarse_label")
    kinds = {"image": "image", "patient": "string", "grade": "integer"}
    assert find_columns(kinds, "", "x", reserved=["patient"]).label == "grade"
    assert str(find_columns(kinds, "", "x", reserved=["patient"])) == "images from 'image', labels from 'grade'"


@pytest.mark.parametrize(
    ("kinds", "given", "message"),
    [
        ({"a": "image", "b": "image", "label": "class"}, "", r"could hold the image \(a, b\)"),
        ({"image": "image"}, "", "no column is known to hold the label.*It has image"),
        ({"a": "string", "b": "string", "label": "class"}, "", r"image or text \(a, b\)"),
        ({"label": "class"}, "", "no column is known to hold the image or text"),
        ({"image": "image", "label": "class"}, "label=labels", "no column 'labels' for the labels.*Did you mean 'label'"),
    ],
)
def test_unclear_columns_are_refused_with_what_is_there(kinds, given, message):
    with pytest.raises(xl.DataError, match=message):
        find_columns(kinds, given, "x")


@pytest.mark.parametrize("words", ["image", "image=", "picture=a", "image=a,image=b", "image=a,text=b", "=a"])
def test_words_that_name_no_columns(words):
    with pytest.raises(xl.InputError, match=r"columns: expected image=NAME"):
        parse_columns(words)
    assert parse_columns(" image=a , label=b,") == {"image": "a", "label": "b"}
    assert parse_columns("") == {}


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
    assert find_inputs(kinds, given, "x", wanted) == expected


def test_unclear_inputs_are_refused():
    with pytest.raises(xl.DataError, match=r"several columns could hold the text \(a, b\).*--columns text=NAME. It has"):
        find_inputs({"a": "string", "b": "string"}, "", "x", "text")
    with pytest.raises(xl.DataError, match=r"no column is known to hold the image"):
        find_inputs({"a": "string"}, "", "x", "image")
    with pytest.raises(xl.InputError, match="the network takes images: give image=NAME in place of text=a"):
        find_inputs({"a": "string"}, "text=a", "x", "image")
    with pytest.raises(xl.InputError, match="and key=NAME, with commas"):
        find_inputs({"a": "string"}, "keys=a", "x", "image")
    with pytest.raises(xl.InputError, match="and label=NAME, with commas"):
        parse_columns("key=a")  # labelled rows need no names
