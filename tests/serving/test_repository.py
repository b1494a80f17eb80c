"""Models by name, and new versions of their bundles."""

import shutil
from contextlib import suppress

import pytest
from filelock import FileLock, Timeout

import exitlens as xl
from exitlens.model.engine import journal
from exitlens.serving.repository import Repository
from exitlens.serving.settings import Adapting
from tests.serving.conftest import save_small, wait_until


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


def acquire(lock):
    with suppress(Timeout, RuntimeError):  # the second, if another object of this thread has it
        lock.acquire(blocking=False)
        return True
    return False


@pytest.mark.slow
def test_a_version_whose_journal_is_still_taken_is_tried_again(tmp_path, monkeypatch):
    """Such as one that came back while requests of its first time were being answered."""
    monkeypatch.setattr(journal, "PATIENCE", 0.0)
    adapting = Adapting(adapt=0.3, audit=0.5, warm_up=200, state=tmp_path / "state")
    save_small(tmp_path / "b", 0.5, 0.5)
    repository = Repository({"b": tmp_path / "b"}, adapting=adapting)
    try:
        first = repository.find().model.version
        save_small(tmp_path / "b", 0.6, 0.6)
        assert repository.reload() == ["b"]
        second = repository.find().model.version
        lock = FileLock(tmp_path / "state" / "b" / first / "0.lock")
        wait_until(lambda: acquire(lock))  # the first version ends in a thread of its own
        with lock:  # as it would hold it meanwhile
            lock.release()  # one of the two
            save_small(tmp_path / "b", 0.5, 0.5)
            assert repository.reload() == []
            assert repository.find().model.version == second
        assert repository.reload() == ["b"]
        assert repository.find().model.version == first
    finally:
        repository.close()
