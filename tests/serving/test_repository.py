"""Models by name, and new versions of their bundles."""

import shutil

import pytest

import exitlens as xl
from exitlens.serving.repository import Repository
from tests.serving.conftest import save_small


def test_names_and_versions(model):
    repository = Repository({"tiny": model})
    assert repository.find().model is repository.find("tiny", model.version).model is model
    for words in (("other",), ("tiny", "other")):
        with pytest.raises(xl.errors.RequestError, match="other") as error:
            repository.find(*words)
        assert error.value.status == 404
    repository.close()
    with pytest.raises(xl.errors.InputError, match="one or more"):
        Repository({})


@pytest.mark.slow
def test_a_bundle_that_is_still_being_copied_is_tried_again(tmp_path, caplog, monkeypatch):
    served, fresh = save_small(tmp_path / "served"), save_small(tmp_path / "fresh", 0.9, 0.9)
    repository = Repository({"b": served})
    before = repository.find().model.version
    try:
        shutil.copy(fresh / "manifest.json", served)  # the rest is not there yet
        assert repository.reload() == []
        assert repository.find().model.version == before
        assert "the new version is not used" in caplog.text
        caplog.clear()
        assert repository.reload() == []
        assert not caplog.text  # said once
        shutil.copytree(fresh, served, dirs_exist_ok=True)
        assert repository.reload() == ["b"]
        assert repository.find().model.version != before
        assert repository.reload() == []
        save_small(served)
        late, start = [], repository._start

        def start_late(model):
            late.append(start(model))
            repository.close()
            return late[0]

        monkeypatch.setattr(repository, "_start", start_late)
        assert repository.reload() == []  # all ends meanwhile: the new version is closed
        assert not late[0]._thread.is_alive()
    finally:
        repository.close()
