import pytest

from exitlens.data.formats.table_values import to_word


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.125, "0.125"),
        (3.0, "3"),
        (-2, "-2"),
        (float("nan"), None),
        (float("inf"), None),
        ([1], "1"),
        (["b", "a"], "b;a"),
        ([], ""),
        ([None], None),
    ],
)
def test_values_as_words(value, word):
    assert to_word(value) == word
