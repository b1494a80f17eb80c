"""Models by name: answers on event loops, abandoned requests, and new versions of bundles."""

import asyncio
import shutil
import threading
import time

import pytest

import exitlens as xl
from exitlens.serving.cascade import Terms
from exitlens.serving.metrics import Metrics
from exitlens.serving.repository import Repository
from tests.serving.conftest import save_small
from tests.serving.test_batcher import hold
from tests.serving.test_metrics import read


@pytest.fixture
def repository(model):
    repository = Repository({}, models={"tiny": model}, metrics=Metrics())
    yield repository
    repository.close()


def ask(repository, images, **terms):
    endpoint = repository.find("tiny")
    return endpoint.answer(endpoint.model.check_tensors(images), Terms(**terms))


def wait_until(is_true):
    until = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_names_and_versions(repository, model):
    assert repository.find().model is repository.find("tiny", model.version).model is model
    for words in (("other",), ("tiny", "other")):
        with pytest.raises(xl.errors.RequestError, match="other") as error:
            repository.find(*words)
        assert error.value.status == 404
    with pytest.raises(xl.errors.InputError, match="one or more"):
        Repository({})


def test_a_request_that_is_given_up_costs_no_further_stage(repository, images, monkeypatch):
    go = hold(repository.find(), monkeypatch)

    async def give_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(repository, images[:4], policy="full"), 0.05)

    asyncio.run(give_up())
    go.set()
    wait_until(lambda: repository.find().batcher.waiting == 0)
    found = read(repository.metrics)
    assert ("exitlens_step_samples_count", ("model", "tiny"), ("stage", "2")) not in found


def test_a_loop_that_is_closed_does_not_end_the_others_answers(repository, images, monkeypatch):
    go = hold(repository.find(), monkeypatch)
    gone = asyncio.new_event_loop()
    task = gone.create_task(ask(repository, images[:1], policy="full"))
    gone.call_later(0.05, gone.stop)
    gone.run_forever()
    task._log_destroy_pending = False
    gone.close()
    threading.Timer(0.1, go.set).start()
    ticket = asyncio.run(ask(repository, images[:2], policy="full"))
    assert ticket.exits.tolist() == [2, 2]
    assert repository.is_alive


def test_the_gauge_of_waiting_samples_goes_back_to_none(repository, images):
    asyncio.run(ask(repository, images[:3]))
    wait_until(lambda: read(repository.metrics)["exitlens_waiting_samples", ("model", "tiny")] == 0)


@pytest.mark.slow
def test_a_bundle_that_is_still_being_copied_is_tried_again(tmp_path, caplog):
    served, fresh = save_small(tmp_path / "served", 1), save_small(tmp_path / "fresh", 2)
    repository = Repository({"b": served})
    before = repository.find().model.version
    try:
        shutil.copy(fresh / "manifest.json", served)  # the weights are not there yet
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
    finally:
        repository.close()


@pytest.mark.slow
def test_a_version_that_comes_when_all_ends_is_closed(tmp_path, monkeypatch):
    served, fresh = save_small(tmp_path / "served", 1), save_small(tmp_path / "fresh", 2)
    repository = Repository({"b": served})
    shutil.copytree(fresh, served, dirs_exist_ok=True)
    opened, open_ = [], repository._open

    def open_late(model):
        opened.append(open_(model))
        repository.close()
        return opened[0]

    monkeypatch.setattr(repository, "_open", open_late)
    assert repository.reload() == []
    assert not opened[0].batcher.is_alive
    assert not opened[0].batcher._thread.is_alive()
