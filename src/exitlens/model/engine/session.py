"""Which engine a network answers by now, and the evaluation mode it needs meanwhile; threads share both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from rich.progress import track
from torch import nn

from exitlens.errors import EngineError
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.compile import CompiledEngine
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.process import apply_tuning
from exitlens.model.engine.suggest import is_observed, suggest_engine
from exitlens.model.engine.tuning import Tuning
from exitlens.model.engine.weights import Snapshot, WeightsRecord
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.types import Policy


class Session:
    """How one network answers now. A copy of the network answers by the same tuning, and is not compiled.

    ``example`` gives one sample as the first stage takes it. ``tuning`` is ``None`` as long as nobody set it: then the
    network answers as :func:`suggest_engine` finds when it is first asked, and again when its modules or device are others.
    """

    def __init__(
        self, stages: nn.ModuleList, heads: nn.ModuleList, example: Callable[[], Activations], tuning: Tuning | None = None
    ) -> None:
        self.weights = WeightsRecord(stages, heads)
        self._stages, self._heads, self._example, self._tuning = stages, heads, example, tuning
        self._modules: list[nn.Module] = []  # of stages and heads, once they were asked for
        self._lock = threading.RLock()
        self._compiling = threading.Lock()  # one compilation at a time, while others answer
        self._engine: tuple[Engine, Snapshot] | None = None  # on copies of the weights, and what the weights were then
        self._kept: tuple[Any, Snapshot] | None = None  # files of an earlier engine, and what the weights are that they have
        self._suggested: tuple[Tuning, tuple[Any, ...]] | None = None  # and the device and dtype that it is for
        self._users = 0  # answers that need evaluation mode now
        self._modes: list[tuple[nn.Module, bool]] = []  # before the first of them

    def __reduce__(self) -> tuple[Any, ...]:
        return Session, (self._stages, self._heads, self._example, self._tuning)

    @property
    def parts(self) -> tuple[Sequence[Stage], Sequence[ExitHead]]:
        """The network's stages and heads."""
        return cast(Sequence[Stage], self._stages), cast(Sequence[ExitHead], self._heads)

    @property
    def is_tuned(self) -> bool:
        """Whether a tuning was set."""
        return self._tuning is not None

    @property
    def tuning(self) -> Tuning:
        """How the network answers; setting it leaves what was compiled."""
        return self._tuning or self._suggest()

    @tuning.setter
    def tuning(self, value: Tuning) -> None:
        with self._lock:
            self._tuning, self._engine = value, None

    @property
    def precision(self) -> str:
        """Of the tuning, without trying anything out: no suggestion changes it."""
        return "float32" if self._tuning is None else self._tuning.numbers

    def adopt(self, engine: Engine) -> None:
        """Answers by this engine from now on, until the weights change."""
        with self._lock:
            self._tuning, self._engine = engine.tuning, (engine, self.weights.current())

    def keep_files(self, files: Any) -> None:
        """Files that ``backend="onnx"`` answers by, as long as the weights are what they are now."""
        with self._lock:
            self._kept = files, self.weights.current()

    def _suggest(self) -> Tuning:
        """The tuning of a network for which none was set; found once, by trying it out."""
        if is_observed(self._list_modules()):
            return Tuning()
        parameter = next(self._heads[0].parameters())
        kind, suggested = (parameter.device, parameter.dtype), self._suggested
        if suggested is None or suggested[1] != kind:
            with self._lock:
                suggested = self._suggested
                if suggested is None or suggested[1] != kind:  # no other thread has found it meanwhile
                    suggested = self._suggested = self._find_suggested(), kind
        return suggested[0]

    def _find_suggested(self) -> Tuning:
        snapshot = self.weights.current()
        self.enter_evaluation()
        try:
            engine = suggest_engine(*self.parts, self._example())
        finally:
            self.leave_evaluation()
        if not self._is_compiled:
            self._engine = None if engine.shared else (engine, snapshot)
        return engine.tuning

    @property
    def _is_compiled(self) -> bool:
        engine = self._engine
        return engine is not None and engine[0].is_compiled

    def find_engine(self) -> Engine:
        """The engine that answers now; raises :class:`EngineError` if what was compiled is out of date."""
        if not self._is_compiled:
            given, tuning = self._tuning, self.tuning
            if not (tuning.folded if given is None else tuning.changes_weights):
                return Engine(*self.parts, tuning, shared=True)
        with self._lock:
            snapshot = self.weights.current()
            if self._engine is not None:
                engine, source = self._engine
                if source is snapshot:
                    return engine
                if engine.is_compiled:
                    raise EngineError("net: its weights were changed after net.compile(): call net.compile() again")
                if source.modules != snapshot.modules:
                    self._modules, self._suggested, self._engine = [], None, None
                    return self.find_engine()
            kept = None if self._kept is None or self._kept[1] is not snapshot else self._kept[0]
            engine = prepare_engine(*self.parts, self.tuning, self._example, kept)
            if engine.tuning.precision != "float32":
                engine.try_out(self._example())
            self._engine = engine, snapshot
            return engine

    def compile(self, policy: Policy, attention: bool, progress: bool) -> dict[int, float]:
        """See :meth:`~exitlens.model.network.ExitNet.compile`; other threads answer as before until it is done."""
        with self._compiling:
            snapshot, given, activations = self.weights.current(), self._tuning, self._example()
            if self.precision.startswith("int8"):
                raise EngineError("compile: this network answers by int8 files, which PyTorch cannot compile")
            tuning = replace(self.tuning, backend="torch")
            # convolutions in another format would be compiled again for large batches
            images = any(t.ndim == 4 for t in activations)
            engine = CompiledEngine.prepare(*self.parts, replace(tuning, channels_last=True) if images else tuning)
            steps = engine.warm_up(activations, policy, attention)
            with apply_tuning(tuning):
                seconds = dict(track(steps, "compiling", total=len(self._heads)) if progress else steps)
            with self._lock:
                if self._tuning is given:
                    self._tuning = None if given is None else tuning
                    self._engine = engine, snapshot
            return seconds

    def enter_evaluation(self) -> None:
        """Evaluation mode for as long as any thread needs it: until :meth:`leave_evaluation` was called as often."""
        with self._lock:
            if self._users == 0 and self._any_training():
                self._modes = [(module, module.training) for module in self._modules]
                self._stages.eval()
                self._heads.eval()
            self._users += 1

    def leave_evaluation(self) -> None:
        """Gives every module its own mode back, when nobody needs evaluation mode any more."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for module, mode in self._modes:
                    module.training = mode
                self._modes = []

    def _list_modules(self) -> list[nn.Module]:
        self._modules = self._modules or [m for part in (self._stages, self._heads) for m in part.modules()]
        return self._modules

    def _any_training(self) -> bool:
        for module in self._list_modules():  # noqa: SIM110 (a generator costs three times as much, at every answer)
            if module.training:
                return True
        return False


def prepare_engine(
    stages: Sequence[Stage],
    heads: Sequence[ExitHead],
    tuning: Tuning,
    example: Callable[[], Activations],
    kept: Any = None,
) -> Engine:
    """An engine on copies, of the tuning's backend.

    ``example`` gives one sample as the first stage takes it; ``kept``: ONNX files of these weights, and their home.
    """
    if tuning.backend == "torch":
        return Engine.prepare(stages, heads, tuning)
    if tuning.precision == "int8":
        raise EngineError("tuning: int8 files were made of other weights, by samples: call exitlens.export_int8 again")
    from exitlens.model.engine.onnx.engine import OnnxEngine  # of an optional package

    if kept is not None:
        return OnnxEngine.adopt(stages, heads, tuning, example(), kept)
    return OnnxEngine.write(stages, heads, tuning, example())


class EngineContext:
    """The context in which an engine answers; plain methods, because every prediction enters it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> Engine:
        engine = self._engine = self._session.find_engine()
        if engine.shared:
            self._session.enter_evaluation()
        self._tuning, self._mode = apply_tuning(engine.tuning), engine.mode()
        self._tuning.__enter__()
        self._mode.__enter__()
        return engine

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
        self._tuning.__exit__(*error)
        if self._engine.shared:
            self._session.leave_evaluation()
