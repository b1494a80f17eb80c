"""Callbacks of fit: what they are told, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from exitlens.errors import InputError, first_line, require
from exitlens.functional.losses import EGTLoss
from exitlens.model.network import ExitNet
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.record import flatten_row
from exitlens.workflow.training.run import TrainingRun

Row = Mapping[str, float]  # an epoch as numbers by name, as log.csv has them: epoch, loss_total, accuracy_exit0, ...
Status = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class TrainingStart:
    """What callbacks are told before the first step.

    Attributes:
        net: the network that is trained.
        settings, loss: what :func:`exitlens.fit` was asked for, with what was left open chosen.
        out_dir: directory of the run, or ``None``.
        history: the epochs of earlier calls, if the run is resumed; otherwise empty.
    """

    net: ExitNet
    settings: TrainingSettings
    loss: EGTLoss
    out_dir: Path | None
    history: tuple[Row, ...]


@dataclass(frozen=True)
class TrainingEnd:
    """What callbacks are told at the end.

    Attributes:
        status: ``finished``; ``interrupted`` (Ctrl-C, or the process was asked to exit); or ``failed`` by an error.
        net: the network; once finished, with the weights that are kept.
        metrics: the epoch of these weights; if training did not finish, the last whole one (empty before the first).
    """

    status: Status
    net: ExitNet
    metrics: Row


@runtime_checkable
class TrainingCallback(Protocol):
    """What :func:`exitlens.fit` calls if it is among its ``callbacks``; derive from it to leave out what you do not need.

    With several processes only the first calls. An error that a callback raises ends the training; the epoch that it was
    told is saved by then, so that ``resume=True`` goes on after it.
    """

    def on_start(self, start: TrainingStart) -> None:
        """Take note of a run that starts, or goes on."""

    def on_epoch(self, row: Row) -> None:
        """Take note of an epoch, once its checkpoint is written."""

    def on_end(self, end: TrainingEnd) -> None:
        """Take note of the end, after an error or Ctrl-C as well. It is called once for each ``on_start`` that returned."""


def check_callbacks(callbacks: Sequence[TrainingCallback]) -> None:
    """Raise :class:`InputError` unless all are objects with the methods of a :class:`TrainingCallback`."""
    require(callbacks, Sequence, "callbacks", "put it in a list")
    for i, callback in enumerate(callbacks):
        if isinstance(callback, type) or not isinstance(callback, TrainingCallback):
            raise InputError(
                f"callbacks[{i}]: expected an object with on_start, on_epoch and on_end, got {callback!r:.60}. "
                "Fix: derive its class from TrainingCallback, and pass an object of it."
            )


@contextmanager
def tell_callbacks(callbacks: Sequence[TrainingCallback], run: TrainingRun) -> Iterator[Callable[[], None]]:
    """Tell the callbacks of a run its start and its end, in the first of its processes; an error there is the error of all.

    Yields what tells them the last epoch. Those that were told of the start are told of an end by an error, too, which gets
    theirs as a note; the other processes may be lost then, so nothing is shared with them.
    """
    started: list[TrainingCallback] = []

    def tell_epoch() -> None:
        row = flatten_row(run.history[-1])
        with run.ranks.together():
            for callback in started:
                callback.on_epoch(row)

    def tell_end(status: Status, epoch: int) -> None:  # from 1; 0: there is none
        end = TrainingEnd(status, run.net, flatten_row(run.history[epoch - 1]) if epoch else {})
        with ExitStack() as stack:  # calls all of them, last in first out, whatever the others raise
            for callback in reversed(started):
                stack.callback(callback.on_end, end)

    try:
        start = TrainingStart(run.net, run.settings, run.loss, run.out_dir, tuple(map(flatten_row, run.history)))
        with run.ranks.together():
            for callback in callbacks if run.ranks.is_first else ():
                callback.on_start(start)
                started.append(callback)
        yield tell_epoch
    except BaseException as error:
        try:
            tell_end("failed" if isinstance(error, Exception) else "interrupted", run.epochs_done)
        except Exception as another:
            error.add_note(f"callbacks: on_end raised {type(another).__name__}: {first_line(another)}")
        raise
    with run.ranks.together():
        tell_end("finished", run.kept_epoch)
