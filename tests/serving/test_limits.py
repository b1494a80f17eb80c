"""How much a client may ask, and numbers that are no limits."""

from dataclasses import fields

import pytest

import exitlens as xl
from exitlens.serving.limits import Limits


@pytest.mark.parametrize("name", [one.name for one in fields(Limits) if one.name != "token"])
def test_numbers_that_are_refused(name):
    for wrong in (0, -1, True, "1", float("nan"), float("inf"), None):
        with pytest.raises(xl.InputError, match=f"{name}: expected"):
            Limits(**{name: wrong})
    assert getattr(Limits(**{name: 2}), name) == 2


@pytest.mark.parametrize("token", ["two words", "line\n", "käse", None, b"bytes"])
def test_tokens_that_are_refused(token):
    with pytest.raises(xl.InputError, match="token: expected printable ASCII"):
        Limits(token=token)
    assert "secret" not in repr(Limits(token="secret"))
