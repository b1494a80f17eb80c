"""The network as it runs for answers: every stage with its head as one step, tuned, and compiled on request."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from exitlens.errors import EngineError
from exitlens.functional.scores import probabilities, score_of
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.tuning import Tuning, prepare_graph
from exitlens.model.heads import EvidenceHead, ExitHead, KeptHead
from exitlens.model.malloc import keep_memory
from exitlens.types import ExitOutput, Policy


class Answer(NamedTuple):
    """What a step gives.

    Attributes:
        activations: what the next stage takes.
        probabilities: ``(B,C)`` float32, softmax of the logits over the temperature. scores: ``(B,)``.
        attention: ``(B,*S)``, or ``None`` if it was not asked for.
    """

    activations: Activations
    probabilities: Tensor
    scores: Tensor
    attention: Tensor | None


class Engine:
    """Stages and heads in the form in which they run. Threads may share one; nothing here changes while it answers.

    Args:
        stages: K modules or graphs. heads: K exit heads.
        tuning: in whose formats they are.
        shared: they are the network's own, not copies.
        compiled: compile each step by ``torch.compile`` when it is first used.
    """

    def __init__(
        self,
        stages: Sequence[Callable[..., Any]],
        heads: Sequence[ExitHead],
        tuning: Tuning,
        *,
        shared: bool = False,
        compiled: bool = False,
    ) -> None:
        self.stages, self.heads, self.tuning, self.shared = stages, heads, tuning, shared
        self._numbers: dict[float, Tensor] = {}  # temperatures as compiled steps take them: no step for each
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] | None = {} if compiled else None

    @property
    def is_compiled(self) -> bool:
        """Whether its steps are compiled."""
        return self._compiled is not None

    def enter(self, activations: Activations) -> Activations:
        """What the network's check of its inputs returns -> what the first stage takes."""
        activations = self.tuning.entering(activations)
        if self.is_compiled:  # compiled for one memory format, and for tensors that were not made in inference mode
            activations = tuple(t if self.tuning.channels_last and t.ndim == 4 else t.contiguous() for t in activations)
            activations = tuple(t.clone() if t.is_inference() else t for t in activations)
        return activations

    def mode(self) -> AbstractContextManager[Any]:
        """Without autograd."""
        return _ordinary_tensors() if self.is_compiled else torch.inference_mode()

    def advance(self, k: int, activations: Activations) -> Activations:
        """Stage k alone: an exit that cannot fire is not computed."""
        if self._compiled is None:
            return cast(Activations, self.stages[k](*activations))
        return cast(Activations, self._step((k,), _make_advance, self.stages[k])(activations))

    def answer(self, k: int, activations: Activations, temperature: float, score: str, attention: bool = False) -> Answer:
        """Stage k and the head of exit k.

        Args:
            k: which.
            activations: what crosses the cut before stage k.
            temperature: of the policy. score: of the policy.
            attention: also give the attention map.
        """
        if self._compiled is None:
            return _make_answer(self.stages[k], self.heads[k], score, attention)(activations, temperature)
        step = self._step((k, score, attention), _make_answer, self.stages[k], self.heads[k], score, attention)
        if temperature not in self._numbers:
            self._numbers[temperature] = torch.tensor(temperature, dtype=torch.float64)
        return cast(Answer, step(activations, self._numbers[temperature]))

    def try_out(self, activations: Activations) -> None:
        """Runs all once; raises :class:`EngineError` where the precision does not fit the graph."""
        try:
            with self.mode():
                self.outputs(self.enter(activations))
        except (RuntimeError, TypeError) as error:
            raise EngineError(
                f"tuning: this network does not run in {self.tuning.precision} ({str(error).splitlines()[0]:.120}): set "
                "precision='float32'"
            ) from error

    def explained(self, activations: Activations) -> Iterator[ExitOutput]:
        """Logits, attention and evidence of one exit after the other (not by the compiled steps), as they are asked for."""
        for stage, head in zip(self.stages, self.heads, strict=True):
            activations = stage(*activations)
            yield cast(ExitOutput, head(*activations))

    def outputs(self, activations: Activations) -> list[tuple[Tensor, Tensor]]:
        """Logits and attention of every exit (not by the compiled steps)."""
        found = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            activations = stage(*activations)
            found.append(head.with_attention(*activations))
        return found

    def _step(self, key: tuple[Any, ...], make: Callable[..., Callable[..., Any]], *parts: Any) -> Callable[..., Any]:
        assert self._compiled is not None
        if key not in self._compiled:
            name = "_".join(["exitlens", make.__name__.strip("_"), *map(str, key)])
            self._compiled[key] = torch.compile(_own_code(make(*parts), name), options={"freezing": True})
        return self._compiled[key]

    def warm_up(self, activations: Activations, policy: Policy, attention: bool) -> Iterator[tuple[int, float]]:
        """Compiles the steps that this policy uses; yields k and the seconds that step k took.

        Each is compiled for one sample and for any other number of samples, so that later batches compile nothing.

        Raises:
            EngineError: where PyTorch cannot compile a step on this machine.
        """
        wanted = attention or policy.gate is not None
        several = self.enter(tuple(t[:1].repeat_interleave(5, 0) for t in activations))
        for k in range(len(self.stages)):
            started = time.perf_counter()
            answers = k == len(policy.thresholds) or policy.thresholds[k] != math.inf or policy.gate is not None
            with self.mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's compiler warns of PyTorch's own modules
                following: Activations = ()
                for rows in (several, tuple(t[:1] for t in several)):
                    try:
                        given = tuple(_any_number(t) for t in rows) if len(rows[0]) > 1 else rows
                        out = (
                            self.answer(k, given, 1.5, policy.score, wanted).activations
                            if answers
                            else self.advance(k, given)
                        )
                    except Exception as error:
                        raise EngineError(
                            f"compile: PyTorch cannot compile stage {k} here ({type(error).__name__}: "
                            f"{str(error).strip().splitlines()[0]:.200}): it needs a C++ compiler such as g++; or leave "
                            "compile() out"
                        ) from error
                    following = following or tuple(t.clone() for t in out)
                several = following
            yield k, time.perf_counter() - started


@contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Without autograd and outside of inference mode, also a caller's: compiled steps are for ordinary tensors."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _any_number(t: Tensor) -> Tensor:
    """The same tensor, marked so that what is compiled for it takes any number of samples."""
    t = t.clone()
    torch._dynamo.mark_dynamic(t, 0)
    return t


def _make_advance(stage: Callable[..., Any]) -> Callable[[Activations], Activations]:
    def step(activations: Activations) -> Activations:
        return cast(Activations, stage(*activations))

    return step


def _make_answer(
    stage: Callable[..., Any], head: ExitHead, score: str, attention: bool
) -> Callable[[Activations, float | Tensor], Answer]:
    def step(activations: Activations, temperature: float | Tensor) -> Answer:
        activations = stage(*activations)
        logits, maps = head.with_attention(*activations) if attention else (head.classify(*activations), None)
        p = probabilities(logits, temperature)
        return Answer(activations, p, score_of(p, score), maps)

    return step


def _own_code(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The same function with a code object of its own: torch.compile counts its recompilations by code object."""
    code = cast(FunctionType, function).__code__.replace(co_name=name)
    return FunctionType(code, function.__globals__, name, None, cast(FunctionType, function).__closure__)


def prepare_engine(stages: Sequence[Stage], heads: Sequence[ExitHead], tuning: Tuning, compiled: bool) -> Engine:
    """Copies of the evaluation graphs and heads, in the tuning's formats: training the network does not change them."""
    bodies = [prepare_graph(stage.evaluation, tuning) for stage in stages]
    return Engine(bodies, [_prepare_head(head, tuning) for head in heads], tuning, compiled=compiled)


def _prepare_head(head: ExitHead, tuning: Tuning) -> ExitHead:
    twin = copy.deepcopy(head).eval().requires_grad_(False)
    if isinstance(twin, KeptHead):
        twin.tail.replace_evaluation(prepare_graph(twin.tail.evaluation, tuning))
    if isinstance(twin, EvidenceHead) and twin.neck is not None:
        twin.neck.fused()
    return twin


def apply_tuning(tuning: Tuning) -> AbstractContextManager[Any]:
    """The tuning's threads for a while, never more than the process has; memory is kept from now on, if it says so."""
    if tuning.keep_memory:
        keep_memory()
    return _threads(tuning.threads) if 0 < tuning.threads < torch.get_num_threads() else nullcontext()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
