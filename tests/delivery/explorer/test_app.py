import sys

import pytest

import exitlens as xl
from exitlens.delivery.explorer.app import import_gradio


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(xl.MissingExtraError, match=r"exitlens\[app\]"):
        import_gradio()
