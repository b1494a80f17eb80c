"""PyTorch's number of threads: lowered by several threads at once, and everyone's own afterwards."""

import threading

import pytest
import torch

from exitlens.model.engine import process
from exitlens.model.engine.process import ThreadLimit, apply_tuning
from exitlens.model.engine.tuning import Tuning


@pytest.fixture
def four():
    """Four threads of PyTorch, as on a machine with as many cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def run_in_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(20)
    return found[0]


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
    own: list[int] = []

    def work() -> None:
        with limit.apply(1):
            own.append(torch.get_num_threads())
            entered.set()
            leave.wait(20)
        own.append(torch.get_num_threads())

    newcomer = threading.Thread(target=work)
    with limit.apply(2):
        newcomer.start()
        assert entered.wait(20)
        assert torch.get_num_threads() == 2  # its limit is its own
    assert torch.get_num_threads() == 4
    leave.set()
    newcomer.join(20)
    assert own == [1, 4]
    assert run_in_thread(torch.get_num_threads) == 4  # what a thread begins with from now on


def test_a_newcomer_with_the_same_limit_is_given_the_usual_number_afterwards(four):
    limit = ThreadLimit()

    def work() -> tuple[int, int]:
        with limit.apply(2):
            inside = torch.get_num_threads()
        return inside, torch.get_num_threads()

    with limit.apply(2):
        assert run_in_thread(work) == (2, 4)
    assert run_in_thread(torch.get_num_threads) == 4


def test_a_number_that_a_thread_has_set_for_itself_stays(four):
    limit = ThreadLimit()

    def work() -> int:
        torch.set_num_threads(3)
        with limit.apply(1):
            pass
        return torch.get_num_threads()

    with limit.apply(2):
        assert run_in_thread(work) == 3


def test_memory_is_kept_only_if_the_tuning_says_so(monkeypatch):
    calls = []
    monkeypatch.setattr(process, "keep_memory", lambda: calls.append(1))
    with apply_tuning(Tuning()):
        assert not calls
    with apply_tuning(Tuning(keep_memory=True)):
        assert calls == [1]
