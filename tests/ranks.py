"""Processes that start as copies of this one, so that nothing is imported again: alone, or two that share the work."""

import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from exitlens import cli


class Pair:
    """Runs the same function in both processes, as rank 0 and rank 1."""

    def __init__(self, ends: list[Connection], workers: list[Any]) -> None:
        self.ends, self.workers = ends, workers

    def run(self, work: Callable[..., Any], *words: Any) -> list[Any]:
        """What each rank's ``work(rank, *words)`` returned, or the error that it raised."""
        self.send(work, *words)
        outcomes = [self.receive(rank) for rank in range(2)]
        assert "lost the others" not in " ".join(str(each) for each in outcomes if isinstance(each, Exception)), outcomes
        return outcomes

    def send(self, work: Callable[..., Any], *words: Any) -> None:
        for end in self.ends:
            end.send((work, words))

    def receive(self, rank: int) -> Any:
        assert self.ends[rank].poll(600), "a rank hangs"
        return self.ends[rank].recv()


@contextmanager
def open_pair(folder: Path, seconds: float = 400) -> Iterator[Pair]:
    """Two processes in a gloo group; they end with the context, and wait longer for each other than a reader for a file."""
    context = mp.get_context("fork")  # starts at once
    pipes = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=_serve, args=(i, str(folder), seconds, pipe[1])) for i, pipe in enumerate(pipes)]
    for worker in workers:
        worker.start()
    try:
        yield Pair([pipe[0] for pipe in pipes], workers)
    finally:
        for ours, _ in pipes:
            with suppress(OSError):
                ours.send(None)
        for worker in workers:
            worker.join(5)
            worker.kill()
            worker.join()


def _serve(rank: int, folder: str, seconds: float, end: Connection) -> None:
    gc.freeze()  # see exitlens.data.workers
    torch.set_num_threads(1)
    wait = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=wait)
    while (order := end.recv()) is not None:
        work, words = order
        try:
            end.send(work(rank, *words))
        except Exception as error:
            end.send(error)
    dist.destroy_process_group()


def fork(work: Callable[..., Any], *words: Any) -> BaseProcess:
    """A process of one thread that runs ``work(*words)``."""
    process = mp.get_context("fork").Process(target=_work, args=(work, *words))
    process.start()
    return process


def _work(work: Callable[..., Any], *words: Any) -> None:
    gc.freeze()  # a session of ONNX Runtime that is collected here would wait for its threads for ever
    torch.set_num_threads(1)
    work(*words)


def end(process: BaseProcess) -> int | None:
    """Waits for a process: its exit code."""
    process.join()
    return process.exitcode


def call(words: list[str]) -> tuple[int, str, str]:
    """A command line in this process: its exit code, what it printed, and what it printed on standard error."""
    out, err, code, before = io.StringIO(), io.StringIO(), 0, sys.argv
    sys.argv = ["exitlens", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def call_launched(rank: int, words: list[str], restarts: int = 0, launch_name: str = "another") -> tuple[int, str, str]:
    """The same in a rank of a :class:`Pair`, with what ``torchrun`` says to a process that it starts."""
    told = {"RUN_ID": launch_name, "RESTART_COUNT": str(restarts)}
    os.environ |= {f"TORCHELASTIC_{name}": value for name, value in told.items()}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return call(words)


def launch(words: list[str], *, restarts: int = 0) -> list[str]:
    """The command that starts ``words`` in two processes on this machine."""
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*head, "--max-restarts", str(restarts), *words]


def one_thread() -> dict[str, str]:
    """The environment of a process of one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
