import pytest

import exitlens as xl
from exitlens.data.rows import classify_field, iterate_csv, open_file, peek_kinds, read_columns


def _write(folder, name, content):
    (folder / name).write_text(content)
    return folder / name


def test_rows_know_their_lines(tmp_path):
    table = _write(tmp_path, "a.csv", 'text,label\n one ,x\n\n"two\nlines",y\n')
    found = read_columns(table, ("text", "label"), False)
    assert found.texts == ["one", "two\nlines"]
    assert found.words == {"label": ["x", "y"]}
    assert found.lines.tolist() == [2, 5]
    lines = _write(tmp_path, "a.txt", "one\n\ntwo")
    assert read_columns(lines, ("text",), False).lines.tolist() == [1, 3]


def test_numbers_are_labels_but_no_texts(tmp_path):
    rows = _write(tmp_path, "a.jsonl", '{"text": "one", "label": 1}\n{"text": 2, "label": 1}')
    assert read_columns(rows, ("text", "label"), True)[:2] == (["one"], {"label": ["1"]})
    with pytest.raises(xl.DataError, match="line 2: text: expected a string"):
        read_columns(rows, ("text", "label"), False)


def test_equal_labels_are_one_object(tmp_path):
    words = read_columns(_write(tmp_path, "a.csv", "text,label\na,long\nb,long\n"), ("text", "label"), False).words["label"]
    assert words[0] is words[1]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(xl.DataError, match="cannot be read"), open_file(tmp_path / "none.csv"):
        pass


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("", "other"),
        ("3", "integer"),
        (" -3 ", "integer"),
        ("2.5", "float"),
        ("nan", "float"),
        ("1e5", "float"),
        ("word", "string"),
        ("two words", "string"),
        ("1 2", "list"),
        ("1;2.5;nan", "list"),
        ("[1, 2]", "list"),
        ("[[1], [2]]", "list"),
        ("[1", "string"),
        ("2020-01-01 10:00", "string"),
    ],
)
def test_kinds_of_fields(field, kind):
    assert classify_field(field) == kind


def test_columns_are_what_most_of_their_first_fields_are(tmp_path):
    rows = [f"{i},{i if i % 7 else i / 2},word,{i},," for i in range(30)]
    rows[5] = "x,1,2,3,,"
    (tmp_path / "x.csv").write_text("a,b,c,d,e,f\n" + "\n".join(rows) + "\nragged\n")
    kinds = peek_kinds(tmp_path / "x.csv")
    assert kinds == {"a": "integer", "b": "float", "c": "string", "d": "integer", "e": "other", "f": "other"}
    assert [line for line, _ in iterate_csv(tmp_path / "x.csv", ("a",))] == list(range(2, 33))
    with pytest.raises(xl.DataError, match=r"no column 'z', it has .*: name columns in its first line, or by --columns"):
        list(iterate_csv(tmp_path / "x.csv", ("z",)))
