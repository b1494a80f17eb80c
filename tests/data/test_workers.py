import gc
import multiprocessing
import os
import signal
import threading
import time
import warnings

import pytest
import torch
from PIL import Image

import exitlens as xl
from exitlens.data import workers
from exitlens.data.workers import Prefetch, choose_workers, decode_batches

SHAPE = (1, 2, 2)


class Numbers:
    """A reader whose images hold their number; ``odd`` says what happens at some of them."""

    def __init__(self, count=30, odd=None):
        self.count, self.odd = count, odd or {}

    def __len__(self):
        return self.count

    def name(self, index):
        return f"number {index}"

    def read(self, index):
        self.odd.get(index, lambda: None)()
        return torch.full(SHAPE, index, dtype=torch.uint8)


def _refuse():
    raise xl.errors.DataError("number: damaged")


def _processes():
    return [process for process in multiprocessing.active_children() if process.name == "exitlens-decode"]


def _decode(reader, count=2, size=4, **how):
    plan = [list(range(at, min(at + size, len(reader)))) for at in range(0, len(reader), size)]
    batches = decode_batches(reader, plan, SHAPE, count, **how)
    return [(found.values[:, 0, 0, 0].tolist(), found.good, found.bad) for found in batches]


@pytest.mark.slow
def test_batches_come_in_order_whatever_the_number_of_processes():
    expected = _decode(Numbers(), 0)
    assert [pixels for pixels, *_ in expected][-1] == [28, 29]
    for count in (1, 2, 5):
        assert _decode(Numbers(), count) == expected
    assert not _processes()


def test_bad_images_are_missing_from_their_batch_and_told():
    found = _decode(Numbers(odd={5: _refuse, 8: _refuse, 9: _refuse, 10: _refuse, 11: _refuse}))
    assert found[1] == ([4, 6, 7], [0, 2, 3], [(5, "number: damaged")])
    assert found[2] == ([], [], [(row, "number: damaged") for row in range(8, 12)])


def test_pillow_does_not_warn_of_pictures_within_our_limit():
    def warn():
        warnings.warn("huge", Image.DecompressionBombWarning, stacklevel=1)

    assert [bad for *_, bad in _decode(Numbers(odd={5: warn}))] == [[]] * 8


@pytest.mark.parametrize("count", [0, 2])
def test_readers_that_fail(count):
    with pytest.raises(xl.errors.DataError, match=r"number 7: its reader failed \(ZeroDivisionError"):
        _decode(Numbers(odd={7: lambda: 1 / 0}), count)
    with pytest.raises(xl.errors.InputError, match=r"expected \(1, 4, 4\) uint8 of number 0, got \(1, 2, 2\)"):
        list(decode_batches(Numbers(), [[0], [1]], (1, 4, 4), count))
    assert not _processes()


def test_a_killed_process_is_an_error_that_names_the_file():
    killed = Numbers(odd={13: lambda: os.kill(os.getpid(), signal.SIGKILL)})
    with pytest.raises(xl.errors.DataError, match=r"SIGKILL.*memory runs out.*at number 13.*--resume.*--workers 0"):
        _decode(killed)
    with pytest.raises(xl.errors.DataError, match=r"with exit code 3\. It was at number 2"):
        _decode(Numbers(odd={2: lambda: os._exit(3)}))
    assert not _processes()


def test_a_process_killed_from_outside_between_two_batches():
    found = decode_batches(Numbers(), [[i] for i in range(30)], SHAPE, 2)
    next(found)
    for process in _processes():
        process.kill()
        process.join()
    with pytest.raises(xl.errors.DataError, match="SIGKILL"):
        list(found)


@pytest.mark.slow
def test_an_image_that_takes_for_ever_is_named():
    with pytest.raises(xl.errors.DataError, match=r"number 6: reading it takes more than 0\.2 s"):
        _decode(Numbers(odd={6: lambda: time.sleep(60)}), timeout_s=0.2)
    assert not _processes()


class _WaitsInAnotherProcess:
    """Garbage, as a session with threads is: in a copy of its process, its end waits for threads that only the first has."""

    def __init__(self):
        self.me, self.process = self, os.getpid()

    def __del__(self):
        if os.getpid() != self.process:
            time.sleep(60)


def test_garbage_of_this_process_does_not_hold_up_the_others():
    gc.disable()
    try:
        _WaitsInAnotherProcess()
        decoded = _decode(Numbers(odd={2: gc.collect}), 1, timeout_s=2)
    finally:
        gc.enable()
    assert decoded == _decode(Numbers(), 0)


def test_who_stops_early_leaves_no_process_behind():
    found = decode_batches(Numbers(), [[i] for i in range(30)], SHAPE, 2)
    next(found)
    assert len(_processes()) == 2
    found.close()
    assert not _processes()


def test_processes_end_by_themselves_when_their_parent_is_killed():
    ours, theirs = multiprocessing.Pipe()

    def run():
        batches = decode_batches(Numbers(), [[i] for i in range(30)], SHAPE, 2)
        next(batches)
        theirs.send([process.pid for process in _processes()])
        os.kill(os.getpid(), signal.SIGKILL)

    parent = multiprocessing.get_context("fork").Process(target=run)
    parent.start()
    pids = ours.recv()
    parent.join()
    assert (len(pids), parent.exitcode) == (2, -signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(map(_is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_running, pids))


def _is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as handle:  # noqa: PTH123
            return handle.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_how_many_processes(monkeypatch):
    monkeypatch.setattr(workers, "count_local", lambda: 1)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(16)))
    assert [choose_workers(None, n) for n in (0, 1, 2, 100)] == [0, 0, 2, 8]
    assert [choose_workers(n, 100) for n in (0, 3, 12)] == [0, 3, 12]
    monkeypatch.setattr(workers, "count_local", lambda: 4)
    assert choose_workers(None, 100) == 4
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {0})
    assert choose_workers(None, 100) == 0
    for wrong in (-1, 1.5, "2"):
        with pytest.raises(xl.errors.InputError, match="workers: expected a whole number"):
            choose_workers(wrong, 100)
    monkeypatch.setattr(workers.sys, "platform", "win32")
    assert choose_workers(None, 100) == 0
    with pytest.raises(xl.errors.InputError, match="this is win32"):
        choose_workers(2, 100)


@pytest.mark.parametrize("count", [0, 2])
def test_floats_of_any_shape(count):
    class Ramps(Numbers):
        def read(self, index):
            return index + torch.arange(6.0).view(2, 3) / 10

    plan = [[3, 1], [0, 5], [2]]
    found = [one.values.clone() for one in decode_batches(Ramps(), plan, (2, 3), count, dtype=torch.float32)]
    for rows, values in zip(plan, found, strict=True):
        assert values.equal(torch.stack([Ramps().read(row) for row in rows]))
    with pytest.raises(xl.errors.InputError, match=r"expected \(2, 3\) uint8 of number 3, got \(2, 3\) torch.float32"):
        list(decode_batches(Ramps(), plan, (2, 3), count))


def test_reads_no_further_ahead_than_its_depth():
    read = []

    def source():
        for i in range(100):
            read.append(i)
            yield i

    with Prefetch(source(), depth=3) as items:
        for _ in range(200):
            if len(read) >= 4:
                break
            time.sleep(0.005)
        time.sleep(0.02)
        assert len(read) <= 5
        assert items.next() == 0


def test_waits_no_longer_than_it_is_told():
    gate = threading.Event()

    def source():
        gate.wait(10)
        yield 1

    with Prefetch(source()) as items:
        assert items.next(0.0) is None
        assert not items.ended
        gate.set()
        assert items.next() == 1


@pytest.mark.parametrize("depth", [1, 2, 20])
def test_everything_is_read_ahead_in_order(depth):
    with Prefetch(iter(range(10)), depth) as items:
        assert [items.next() for _ in range(11)] == [*range(10), None]
    assert (items.ended, items.error) == (True, None)


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_error_ends_reading_ahead_after_what_came_before(error):
    def source():
        yield 1
        raise error

    with Prefetch(source()) as items:
        assert (items.next(), items.next(5)) == (1, None)
        assert (items.ended, items.error) == (True, error)
