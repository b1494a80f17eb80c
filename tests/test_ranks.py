"""What processes that share the work do together."""

import atexit
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

import exitlens as xl
from exitlens import ranks as module
from exitlens.ranks import DistributedContext, find_ranks
from tests.ranks import open_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with open_pair(tmp_path_factory.mktemp("pair")) as found:
        yield found


def test_a_process_that_is_alone_shares_with_nobody():
    alone = find_ranks()
    assert alone == DistributedContext()
    assert alone.is_first
    assert alone.vary_seed(7) == 7
    value, seen = torch.ones(3), []
    alone.add([value])
    alone.copy_first([value])
    assert value.tolist() == [1, 1, 1]
    assert alone.add_floats([1.5, 2]) == [1.5, 2]
    assert alone.share(lambda: 3) == 3
    assert alone.gather("a") == ["a"]
    alone.hand_over(iter([1, 2]), seen.append)
    assert seen == [1, 2]
    with pytest.raises(KeyError), alone.together():
        raise KeyError


def test_numbers_are_summed_and_copied(pair):
    for found in pair.run(_exchange):
        sums, copied, floats, values, seeds = found
        assert [one.tolist() for one in sums] == [[1.0, 3.0], [[5]], [2.0]]
        assert [one.tolist() for one in copied] == [[0.0, 1.0], [[2]], [0.5]]
        assert floats == [1.0, 5.0]
        assert values == ["rank 0", "rank 1"]
        assert seeds[0] == 2**62
        assert 0 <= seeds[1] < 2**63
        assert seeds[1] != 2**62


def _exchange(rank):
    module.BUCKET = 2  # small, so that there are several
    ranks = find_ranks()
    assert ranks == DistributedContext(rank, 2)

    def make():
        base = torch.tensor([0.0, 1.0]) + rank
        return [base, torch.tensor([[2]]) + rank, torch.tensor([0.5, 9.0, 0.5])[::2][:1] + rank]

    sums, copied = make(), make()
    ranks.add(sums)
    ranks.copy_first(copied)
    seeds = ranks.gather(ranks.vary_seed(2**62))
    return sums, copied, ranks.add_floats([rank, 2.0 + rank]), ranks.gather(f"rank {rank}"), seeds


def test_rank_0_makes_what_all_get(pair):
    assert pair.run(_share) == ["made by 0", "made by 0"]
    first, second = pair.run(_share, "full")
    assert type(first) is type(second) is xl.errors.OutputError
    assert str(first) == "full"
    assert str(second) == "process 0 of 2: full"


def _share(rank, error=""):
    def make():
        if error:
            raise xl.errors.OutputError(error)
        return f"made by {rank}"

    return find_ranks().share(make)


def test_items_of_all_ranks_arrive_in_turn(pair):
    assert pair.run(_hand_over, 3, 2) == [["0.0", "1.0", "0.1", "1.1", "0.2"], []]
    assert pair.run(_hand_over, 0, 1) == [["1.0"], []]
    assert pair.run(_hand_over, 0, 0) == [[], []]
    for error in pair.run(_hand_over, 2, 2, "0.1"):  # rank 0 cannot take it
        assert type(error) is xl.errors.OutputError
    for error in pair.run(_hand_over, 2, -1):  # rank 1 cannot make it
        assert type(error) is xl.errors.DataError


def _hand_over(rank, first, second, refused=""):
    seen = []

    def make():
        if (first, second)[rank] < 0:
            raise xl.errors.DataError("bad file")
        yield from (f"{rank}.{i}" for i in range((first, second)[rank]))

    def take(item):
        if item == refused:
            raise xl.errors.OutputError("full")
        seen.append(item)

    find_ranks().hand_over(make(), take)
    return seen


def test_an_error_of_one_rank_is_that_of_all(pair):
    first, second = pair.run(_fail)
    assert type(first) is xl.errors.MissingExtraError  # whose constructor takes other arguments
    assert str(first).startswith("process 1 of 2: x needs the package")
    assert type(second) is xl.errors.MissingExtraError


def _fail(rank):
    with find_ranks().together():
        if rank == 1:
            raise xl.errors.MissingExtraError("package", "extra", "x")


def test_a_rank_that_is_killed_is_missed_at_once(tmp_path):
    with open_pair(tmp_path, seconds=60) as pair:
        pair.send(_die)
        error = pair.receive(0)
    assert type(error) is xl.errors.DistributedError
    assert "process 0 of 2 lost the others" in str(error)
    assert "EXITLENS_TIMEOUT_S" in str(error)


def _die(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    find_ranks().gather(rank)


@pytest.mark.slow
def test_a_rank_that_hangs_is_missed_when_time_is_up(tmp_path):
    with open_pair(tmp_path, seconds=1) as pair:
        pair.send(_stop)
        error = pair.receive(0)
        os.kill(pair.workers[1].pid, signal.SIGCONT)
    assert type(error) is xl.errors.DistributedError


def _stop(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    find_ranks().add([torch.ones(1)])


@pytest.mark.parametrize("value", ["soon", "0", "nan"])
def test_seconds_to_wait_are_a_number(monkeypatch, value):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(module.TIMEOUT, value)
    with pytest.raises(xl.errors.InputError, match="seconds above 0"):
        find_ranks()


def test_processes_that_do_not_find_one_another(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(xl.errors.DistributedError, match="did not find"):
        find_ranks()


def test_processes_that_torchrun_started_again_do_not_meet_those_before_them(monkeypatch):
    kept, stores = dist.HashStore(), []  # torchrun's own store outlives the processes
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(kept, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, store, **__: stores.append(store))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    for restarts in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        module._join()
    atexit.unregister(module.leave)
    stores[0].set("address", "gone")
    assert stores[0].check(["address"])
    assert not stores[1].check(["address"])


def test_neighbours_of_one_kind_travel_together(monkeypatch):
    monkeypatch.setattr(module, "BUCKET", 5)
    kinds = [(3, torch.float32), (3, torch.float32), (4, torch.float32), (2, torch.float64), (1, torch.float64)]
    tensors = [torch.zeros(size, dtype=kind) for size, kind in kinds]
    assert list(module.fill_buckets(tensors)) == [[0, 1], [2], [3, 4]]
    assert list(module.fill_buckets([])) == []


LATE = """
import os, threading
from pathlib import Path
from exitlens.ranks import find_ranks, leave

def work(rank):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    find_ranks().gather(rank)
    import torch.distributed.nn.functional  # as attach does; its defaults are the group that there is
    leave()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in names), names

child = os.fork()
work(1 if child else 0)
assert not child or os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
def test_no_thread_outlives_the_group():
    """At the interpreter's end it would ask for a Python that is gone, and end the process by SIGABRT."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", LATE], env=os.environ | where, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
