"""What a server is told, and what it does not take."""

import pytest

import exitlens as xl
from exitlens.serving.batching.batcher import Batching
from exitlens.serving.settings import Settings


def test_settings_that_are_refused(tmp_path):
    (tmp_path / "c").write_text("")
    one = {"bundles": {"a": tmp_path}}
    for values, words in (
        ({"bundles": {}}, "one or more"),
        (one | {"workers": 0}, "workers"),
        (one | {"workers": 1.5}, "workers"),
        (one | {"tls_cert": tmp_path / "c"}, "both or none"),
        (one | {"tls_key": tmp_path / "c"}, "both or none"),
        (one | {"tls_cert": tmp_path / "c", "tls_key": tmp_path / "k"}, "is no file"),
    ):
        with pytest.raises(xl.InputError, match=words):
            Settings(**values)
    assert Settings(**one).workers == 1


@pytest.mark.parametrize(
    "values",
    [
        *({name: wrong} for name in ("size", "max_waiting") for wrong in (0, 1.5, True)),
        *({name: wrong} for name in ("max_delay", "max_wait") for wrong in (-1, float("nan"), "1")),
        {"threads": -1},
    ],
)
def test_batching_that_is_refused(values):
    with pytest.raises(xl.InputError, match=next(iter(values))):
        Batching(**values)
