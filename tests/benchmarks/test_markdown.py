"""Parts of pages are written between their markers, wherever these stand."""

import pytest

from benchmarks.markdown import fill, say_what_is_missing, table


def test_marked_parts_of_pages_are_replaced(tmp_path):
    page, other = tmp_path / "README.md", tmp_path / "other.md"
    page.write_text("# x\n<!-- a: by x -->\nold\n<!-- end of a -->\n<!-- ab: by x -->\n<!-- end of ab -->\nmore\n")
    other.write_text("nothing marked\n")
    for _ in range(2):
        assert fill("a", ["new", r"\1 words"], [page, other]) == [page]
        assert page.read_text() == (
            "# x\n<!-- a: by x -->\n\nnew\n\\1 words\n\n<!-- end of a -->\n<!-- ab: by x -->\n<!-- end of ab -->\nmore\n"
        )
    assert other.read_text() == "nothing marked\n"
    assert fill("c", ["new"], [page, other]) == []


@pytest.mark.parametrize("text", ["<!-- a: by x -->\nold\n", "old\n<!-- end of a -->\n"])
def test_half_a_pair_of_markers_is_an_error(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SystemExit, match="found one of them"):
        fill("a", ["new"], [page])


def test_tables():
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


def test_a_page_says_which_runs_are_missing():
    assert say_what_is_missing(["a", "b"], {"a": 1}, "make x") == [
        "**Not complete**: 1 of 2 runs are there; `make x` goes on.",
        "",
    ]
    assert say_what_is_missing(["a"], {"a": 1, "c": 2}, "make x") == []
