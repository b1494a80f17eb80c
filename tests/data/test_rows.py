import pytest

import exitlens as xl
from exitlens.data.rows import read_bytes, read_rows


def _write(folder, name, content):
    (folder / name).write_text(content)
    return folder / name


def test_rows_know_their_lines(tmp_path):
    table = _write(tmp_path, "a.csv", 'text,label\n one ,x\n\n"two\nlines",y\n')
    assert read_rows(table, ("text", "label"), False) == [
        {"text": "one", "label": "x", "line": "2"},
        {"text": "two\nlines", "label": "y", "line": "5"},
    ]
    lines = _write(tmp_path, "a.txt", "one\n\ntwo")
    assert [row["line"] for row in read_rows(lines, ("text",), False)] == ["1", "3"]


def test_numbers_are_labels_but_no_texts(tmp_path):
    rows = _write(tmp_path, "a.jsonl", '{"text": "one", "label": 1}\n{"text": 2, "label": 1}')
    assert read_rows(rows, ("text", "label"), True) == [{"text": "one", "label": "1", "line": "1"}]
    with pytest.raises(xl.DataError, match="line 2: text: expected a string"):
        read_rows(rows, ("text", "label"), False)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(xl.DataError, match="cannot be read"):
        read_bytes(tmp_path / "none.csv")
