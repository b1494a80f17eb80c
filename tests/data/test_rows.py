import pytest

import exitlens as xl
from exitlens.data.rows import open_file, read_columns


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
