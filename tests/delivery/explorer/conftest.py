"""The explorer on the run that the command line trained, and on a network of texts."""

import pytest

import exitlens as xl
from exitlens.delivery.explorer.core import Explorer
from tests.conftest import build_once
from tests.texts import LENGTH, make_text_net


@pytest.fixture(autouse=True)
def _networks_are_built_once(monkeypatch):
    build_once(monkeypatch)


@pytest.fixture(scope="module")
def explorer(trained):
    return Explorer([trained])


def save_texts(folder, policy=None):
    """A bundle of a network of texts."""
    net, words = make_text_net(), xl.data.word_tokenizer(["the film was good", "<b> & bad food"])
    net.describe(classes=("good", "bad", "neither"), preprocess=xl.data.TextPreprocess(words, LENGTH))
    xl.save(net, policy, folder / "bundle")
    return folder
