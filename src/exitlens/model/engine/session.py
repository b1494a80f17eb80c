"""Which engine a network answers by now, and the evaluation mode it needs meanwhile; threads share both."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from rich.progress import track
from torch import Tensor, nn

from exitlens.errors import EngineError
from exitlens.model._torch_compat import read_version
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.compile import CompiledEngine
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.process import apply_tuning
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads import ExitHead
from exitlens.types import Policy


class WeightsRecord:
    """Names weights by a fingerprint, and sees by version counters whether they changed: cheap enough for every answer.

    Writes through ``.data``, and parameter objects set by hand, are not seen.
    """

    def __init__(self, stages: nn.ModuleList, heads: nn.ModuleList) -> None:
        self._parts = {"stages.": stages, "heads.": heads}
        self._lock = threading.Lock()
        self._fingerprint = ""
        self._versions: list[tuple[Tensor, int]] | None = None  # when the fingerprint was taken

    def compute_fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 over every tensor of the network's state."""
        digest = hashlib.sha256()
        for prefix, part in self._parts.items():
            for name, value in part.state_dict(prefix=prefix).items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """:meth:`compute_fingerprint`, computed again only after a change was seen."""
        self.current()
        return self._fingerprint

    def current(self) -> object:
        """An object that stays the same as long as no change is seen."""
        versions = self._versions
        if versions is None or any(read_version(tensor) != version for tensor, version in versions):
            with self._lock:
                tensors = [t for part in self._parts.values() for t in (*part.parameters(), *part.buffers())]
                versions = [(t, read_version(t)) for t in tensors]  # before they are read
                self._fingerprint = self.compute_fingerprint()
                self._versions = versions
        return versions

    def forget(self) -> None:
        """For weights that are other tensors from now on."""
        self._versions = None


class Session:
    """How one network answers now. A copy of the network answers by the same tuning, and is not compiled.

    ``example`` gives one sample as the first stage takes it.
    """

    def __init__(
        self, stages: nn.ModuleList, heads: nn.ModuleList, example: Callable[[], Activations], tuning: Tuning
    ) -> None:
        self.weights = WeightsRecord(stages, heads)
        self._stages, self._heads, self._example, self._tuning = stages, heads, example, tuning
        self._modules: list[nn.Module] = []  # of stages and heads, once they were asked for
        self._lock = threading.RLock()
        self._compiling = threading.Lock()  # one compilation at a time, while others answer
        self._engine: tuple[Engine, object] | None = None  # on copies of the weights, and the record of what they were
        self._users = 0  # answers that need evaluation mode now
        self._modes: list[tuple[nn.Module, bool]] = []  # before the first of them

    def __reduce__(self) -> tuple[Any, ...]:
        return Session, (self._stages, self._heads, self._example, self._tuning)

    @property
    def parts(self) -> tuple[Sequence[Stage], Sequence[ExitHead]]:
        """The network's stages and heads."""
        return cast(Sequence[Stage], self._stages), cast(Sequence[ExitHead], self._heads)

    @property
    def tuning(self) -> Tuning:
        """How the network answers; setting it leaves what was compiled."""
        return self._tuning

    @tuning.setter
    def tuning(self, value: Tuning) -> None:
        with self._lock:
            self._tuning, self._engine = value, None

    def find_engine(self) -> Engine:
        """The engine that answers now; raises :class:`EngineError` if what was compiled is out of date."""
        tuning = self._tuning
        if self._engine is None and not tuning.changes_weights:
            return Engine(*self.parts, tuning, shared=True)
        with self._lock:
            record = self.weights.current()
            if self._engine is not None:
                engine, source = self._engine
                if source is record:
                    return engine
                if engine.is_compiled:
                    raise EngineError("net: its weights were changed after net.compile(): call net.compile() again")
            engine = Engine.prepare(*self.parts, self._tuning)
            if self._tuning.precision != "float32":
                engine.try_out(self._example())
            self._engine = engine, record
            return engine

    def compile(self, policy: Policy, attention: bool, progress: bool) -> dict[int, float]:
        """See :meth:`~exitlens.model.network.ExitNet.compile`; other threads answer as before until it is done."""
        with self._compiling:
            record, tuning, activations = self.weights.current(), self._tuning, self._example()
            # convolutions in another format would be compiled again for large batches
            images = any(t.ndim == 4 for t in activations)
            engine = CompiledEngine.prepare(*self.parts, replace(tuning, channels_last=True) if images else tuning)
            steps = engine.warm_up(activations, policy, attention)
            with apply_tuning(tuning):
                seconds = dict(track(steps, "compiling", total=len(self._heads)) if progress else steps)
            with self._lock:
                if self._tuning is tuning:
                    self._engine = engine, record
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

    def _any_training(self) -> bool:
        self._modules = self._modules or [m for part in (self._stages, self._heads) for m in part.modules()]
        for module in self._modules:  # noqa: SIM110 (a generator costs three times as much, at every answer)
            if module.training:
                return True
        return False


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
