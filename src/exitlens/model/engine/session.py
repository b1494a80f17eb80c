"""Which engine a network runs on now, shared by threads; and its evaluation mode while one of them needs it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.progress import track
from torch import nn

from exitlens.errors import EngineError
from exitlens.model.engine.engine import Engine, apply_tuning, prepare_engine
from exitlens.types import Policy

if TYPE_CHECKING:
    from exitlens.model.network import ExitNet


class Running:
    """The state of one network's answering; a copy of the network starts with a new one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._compiling = threading.Lock()  # one compilation at a time, while others answer
        self._engine: tuple[Engine, object] | None = None  # with weights of its own, and the record of what they were
        self._users = 0  # predictions that need evaluation mode now
        self._modes: list[tuple[nn.Module, bool]] = []  # before the first of them

    def __deepcopy__(self, memo: object) -> Running:
        return Running()

    def __reduce__(self) -> tuple[type[Running], tuple[()]]:
        return Running, ()

    def use(self, net: ExitNet) -> Use:
        """The network's engine, in evaluation mode, without autograd, in the tuning's threads."""
        return Use(self, net)

    def forget(self) -> None:
        """Another tuning: the engine is made anew when it is needed."""
        with self._lock:
            self._engine = None

    def find(self, net: ExitNet) -> Engine:
        """The engine that answers now; raises :class:`EngineError` if what was compiled is out of date."""
        if self._engine is None and not net.tuning.changes_weights:
            return Engine(net.stages, net.heads, net.tuning, shared=True)  # type: ignore[arg-type]
        with self._lock:
            record = net.weights_record()
            if self._engine is not None:
                engine, made_from = self._engine
                if made_from is record:
                    return engine
                if engine.is_compiled:
                    raise EngineError("net: its weights were changed after net.compile(): call net.compile() again")
            engine = self._make(net, False)
            self._engine = engine, record
            return engine

    @staticmethod
    def _make(net: ExitNet, compiled: bool) -> Engine:
        exits, tuning = range(net.num_exits), net.tuning
        if (
            compiled and net.input_spec.modality.channels_last
        ):  # other formats' convolutions are compiled again for large batches
            tuning = replace(tuning, channels_last=True)
        engine = prepare_engine([net.stage(k) for k in exits], [net.head(k) for k in exits], tuning, compiled)
        if tuning.precision != "float32" and not compiled:
            engine.try_out(net.entering(net.info.example(next(net.heads[0].parameters()))))
        return engine

    def evaluate(self, net: ExitNet) -> None:
        """Evaluation mode while any thread needs it: until :meth:`done` is called as often."""
        with self._lock:
            if self._users == 0:
                self._modes = [(m, m.training) for m in net.modules()] if net.any_training() else []
                if self._modes:
                    net.eval()
            self._users += 1

    def done(self) -> None:
        """Gives every module its own mode back, when nobody needs evaluation mode any more."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for module, was in self._modes:
                    module.training = was

    def compile(self, net: ExitNet, policy: Policy, attention: bool, progress: bool) -> dict[int, float]:
        """See :meth:`~exitlens.model.network.ExitNet.compile`; the others answer as before until it is ready."""
        with self._compiling:
            record, tuning = net.weights_record(), net.tuning
            engine = self._make(net, True)
            activations = net.entering(net.info.example(next(net.heads[0].parameters())))
            steps = engine.warm_up(activations, policy, attention)
            with apply_tuning(tuning):
                seconds = dict(track(steps, "compiling", total=net.num_exits) if progress else steps)
            with self._lock:
                if net.tuning is tuning:
                    self._engine = engine, record
            return seconds


class Use:
    """The context in which an engine answers; plain methods, because it is entered for every prediction."""

    def __init__(self, running: Running, net: ExitNet) -> None:
        self.running, self.net = running, net

    def __enter__(self) -> Engine:
        engine = self.running.find(self.net)
        if engine.shared:
            self.running.evaluate(self.net)
        self.shared, self.applied, self.mode = engine.shared, apply_tuning(engine.tuning), engine.mode()
        self.applied.__enter__()
        self.mode.__enter__()
        return engine

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)
        self.applied.__exit__(*error)
        if self.shared:
            self.running.done()
