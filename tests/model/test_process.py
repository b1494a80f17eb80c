"""PyTorch's number of threads, lowered by several threads at once; and memory that the process keeps."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from exitlens.model import process
from exitlens.model.engine import tuning
from exitlens.model.engine.tuning import Tuning, apply_tuning
from exitlens.model.process import SharedCores, ThreadLimit


@pytest.fixture
def four():
    """Four threads of PyTorch, as on a machine with as many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def run_in_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(20)


def test_a_limit_holds_for_a_while_and_never_raises(four):
    with apply_tuning(Tuning(threads=2)):
        assert torch.get_num_threads() == 2
        with apply_tuning(Tuning(threads=3)):  # within another
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    for threads in (0, 4, 9):
        with apply_tuning(Tuning(threads=threads)):
            assert torch.get_num_threads() == 4
    with pytest.raises(ZeroDivisionError), apply_tuning(Tuning(threads=1)):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 4


def test_threads_that_overlap_leave_the_process_as_it_was(four):
    """A lowers 4 to 2; B, new to PyTorch, sees 2 and takes 1; A leaves, then B: B must not leave the process at 2."""
    limit, entered, leave = ThreadLimit(), threading.Event(), threading.Event()
    counts: list[int] = []

    def work() -> None:
        with limit.apply(1):
            counts.append(torch.get_num_threads())
            entered.set()
            leave.wait(20)
        counts.append(torch.get_num_threads())

    newcomer = threading.Thread(target=work)
    with limit.apply(2):
        newcomer.start()
        assert entered.wait(20)
        assert torch.get_num_threads() == 2  # its limit is its own
    assert torch.get_num_threads() == 4
    leave.set()
    newcomer.join(20)
    assert counts == [1, 4]
    assert run_in_thread(torch.get_num_threads) == 4  # what a thread begins with from now on


@pytest.mark.parametrize(("number", "count", "inside", "after"), [(None, 2, 2, 4), (3, 1, 1, 3)])
def test_a_thread_gets_its_own_number_back_or_the_usual_one(four, number, count, inside, after):
    limit = ThreadLimit()

    def work() -> tuple[int, int]:
        if number:  # the thread has set a number for itself
            torch.set_num_threads(number)
        with limit.apply(count):
            limited = torch.get_num_threads()
        return limited, torch.get_num_threads()

    with limit.apply(2):
        assert run_in_thread(work) == (inside, after)


def test_memory_is_kept_only_if_the_tuning_says_so(monkeypatch):
    calls = []
    monkeypatch.setattr(tuning, "keep_memory", lambda: calls.append(1))
    with apply_tuning(Tuning()):
        assert not calls
    with apply_tuning(Tuning(keep_memory=True)):
        assert calls == [1]


def test_memory_is_kept_where_the_library_can(monkeypatch):
    calls: list[tuple[int, int]] = []

    class Library:
        limit = 2**31

        def mallopt(self, name: int, value: int) -> int:
            if name == -3 and value > self.limit:
                return 0
            calls.append((name, value))
            return 1

    monkeypatch.setattr(process, "_library", Library)
    monkeypatch.setitem(process._state, "kept", False)
    assert process.keep_memory()
    assert not process.keep_memory()
    assert dict(calls) == {-1: 2**31 - 1, -3: 2**30}
    with process.hold_memory():
        pass
    assert process._state["kept"]
    assert process.keep_memory(False)
    with process.hold_memory():
        assert process._state["kept"]
    assert not process._state["kept"]
    assert dict(calls[-2:]) == {-1: 64 * 2**20, -3: 32 * 2**20}
    monkeypatch.setattr(Library, "limit", 32 * 2**20)  # what older glibc takes at most
    assert process.keep_memory()
    assert dict(calls[-2:]) == {-1: 2**31 - 1, -3: 32 * 2**20}
    process.keep_memory(False)
    monkeypatch.setattr(process, "_library", lambda: None)
    assert not process.can_keep_memory()
    assert not process.keep_memory()


def test_fewer_threads_while_other_processes_are_busy(four, monkeypatch):
    """Four cores, looked at every two seconds: free, one taken, all taken, not known, free."""
    looks = iter([(0, 0), (2, 8), (4, 14.2), (6, 14.3), None, (10, 30)])
    monkeypatch.setattr(process, "_look_at_cores", lambda: next(looks))
    monkeypatch.setattr(process.time, "perf_counter", lambda: 100.0)
    cores, counts = SharedCores(), []
    with cores.share():
        for _ in range(3):
            cores.adapt()
            counts.append(torch.get_num_threads())
        assert counts == [4, 3, 1]
        cores.adapt()
        cores.adapt()  # nothing to compare with any more
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    cores.adapt()
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("enabled", [True, False])
def test_cores_are_looked_at_once_a_second_if_asked(four, monkeypatch, enabled):
    looks = []
    monkeypatch.setattr(process, "_look_at_cores", lambda: looks.append(1) or (100.0, 0.0))
    monkeypatch.setattr(process.time, "perf_counter", lambda: 100.5)
    cores = SharedCores()
    with cores.share(enabled):
        cores.adapt()
    assert len(looks) == enabled


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux tells how busy its cores are")
def test_the_time_of_the_cores_is_that_of_psutil(monkeypatch):
    psutil = pytest.importorskip("psutil")
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {core})
    times = psutil.cpu_times(percpu=True)[core]
    now, free = process._look_at_cores()
    assert free == pytest.approx(times.idle + times.iowait + sum(os.times()[:4]), abs=0.5)
    assert now == pytest.approx(time.perf_counter(), abs=5)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert process._look_at_cores() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux tells how busy its cores are")
def test_the_work_of_our_own_workers_counts_as_ours_while_they_run_and_afterwards():
    stop = multiprocessing.get_context("fork").Event()
    worker = multiprocessing.get_context("fork").Process(target=_work_until, args=(stop,))
    worker.start()
    spent = Path(f"/proc/{worker.pid}/stat")
    while sum(map(int, spent.read_text().split()[13:15])) < 20:  # ticks
        time.sleep(0.01)
    without = _look_without_workers()
    with_worker = process._look_at_cores()[1]
    assert with_worker - without > 0.19
    stop.set()
    worker.join()
    assert process._look_at_cores()[1] >= with_worker  # nothing is lost when it ends


def _look_without_workers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "active_children", list)
        return process._look_at_cores()[1]


def _work_until(stop):
    while not stop.is_set():
        pass
