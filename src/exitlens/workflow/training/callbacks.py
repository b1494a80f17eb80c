"""Callbacks of fit: what they are told, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

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


class CallbackCalls:
    """Calls the callbacks of a run, in the first of its processes; an error there is the error of all.

    A context: callbacks that were told of the start are told of an end by an error, too.
    """

    def __init__(self, callbacks: Sequence[TrainingCallback], run: TrainingRun) -> None:
        self.run, self.callbacks = run, callbacks if run.ranks.is_first else ()
        self.started: list[TrainingCallback] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Call ``on_end`` after the error that ended training; it gets theirs as a note.

        The other processes may be lost, so nothing is shared with them.
        """
        if error is None:
            return
        history = self.run.history
        try:
            self._end("failed" if isinstance(error, Exception) else "interrupted", history[-1] if history else None)
        except Exception as another:
            error.add_note(f"callbacks: on_end raised {type(another).__name__}: {first_line(another)}")

    def start(self) -> None:
        """Call ``on_start`` of each."""
        run = self.run
        start = TrainingStart(run.net, run.settings, run.loss, run.out_dir, tuple(map(flatten_row, run.history)))
        with run.ranks.together():
            for callback in self.callbacks:
                callback.on_start(start)
                self.started.append(callback)

    def tell_epoch(self) -> None:
        """Call ``on_epoch`` of each with the last epoch."""
        row = flatten_row(self.run.history[-1])
        with self.run.ranks.together():
            for callback in self.callbacks:
                callback.on_epoch(row)

    def finish(self, kept_epoch: int) -> None:
        """Call ``on_end`` of each after a whole training, which keeps the weights of this epoch (from 1)."""
        with self.run.ranks.together():
            self._end("finished", self.run.history[kept_epoch - 1])

    def _end(self, status: Status, row: dict[str, Any] | None) -> None:
        end = TrainingEnd(status, self.run.net, flatten_row(row) if row else {})
        started, self.started = self.started, []
        with ExitStack() as stack:  # calls all of them, last in first out, whatever the others raise
            for callback in reversed(started):
                stack.callback(callback.on_end, end)
