"""Runs stages and heads one after the other, in PyTorch or compiled."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor

from exitlens.errors import EngineError, first_line
from exitlens.functional.routing import needs_head
from exitlens.functional.scores import probabilities, score_of
from exitlens.model._torch_compat import LARGE_BATCH, give_own_code, mark_any_count
from exitlens.model.cutting.split import Activations, Stage
from exitlens.model.engine.tuning import Tuning, prepare_graph, prepare_head
from exitlens.model.heads import ExitHead, SkipHead
from exitlens.types import ExitOutput, Policy
from exitlens.types.settings import CHANGE_SCORES

# the next stage's inputs, logits, attention, and support, the last two if they were asked for
Step = tuple[Activations, Tensor, Tensor | None, Tensor | None]
Asked = Literal["score", "logits", "attention", "support"]  # of a head, each with those before but the score, of SkipHead


class StepOutput(NamedTuple):
    """The output of a stage with its head."""

    activations: Activations  # the next stage's inputs
    # (B,C) float32: softmax (for several labels, sigmoid) of the logits over the temperature; of pixels (B,C,h,w)
    probabilities: Tensor
    scores: Tensor  # (B,)
    attention: Tensor | None  # (B,*S); None if it was not asked for
    support: Tensor | None  # (B,3); None if it was not asked for


class Engine:
    """Stages and heads in a tuning's form: the network's own (``in_place``) or copies. Threads may share an engine."""

    is_compiled = False

    def __init__(
        self, stages: Sequence[Callable[..., Any]], heads: Sequence[ExitHead], tuning: Tuning, *, in_place: bool = False
    ) -> None:
        self.stages, self.heads, self.tuning, self.in_place = stages, heads, tuning, in_place
        self.exits: Sequence[int] = range(len(heads))  # that can answer

    @classmethod
    def prepare(cls, stages: Sequence[Stage], heads: Sequence[ExitHead], tuning: Tuning) -> Self:
        """Make an engine on copies in the tuning's form, which further training of the network does not change."""
        with torch.inference_mode(False):  # explanations go back through these weights
            graphs = [prepare_graph(stage.evaluation, tuning) for stage in stages]
            return cls(graphs, [prepare_head(head, tuning) for head in heads], tuning)

    def enter(self, activations: Activations) -> Activations:
        """Return checked inputs in the form that the first stage takes."""
        return self.tuning.convert(activations)

    def mode(self) -> AbstractContextManager[Any]:
        """Return the context to answer in: without autograd."""
        return torch.inference_mode()

    def run_stage(self, k: int, activations: Activations) -> Activations:
        """Run stage k alone, for an exit whose head is not needed."""
        return cast(Activations, self.stages[k](*activations))

    def run_exit(
        self, k: int, activations: Activations, temperature: float, score: str, asked: Asked = "logits"
    ) -> StepOutput:
        """Run stage k and the head of exit k."""
        return _score_step(self.run_step(k, activations, asked), temperature, score)

    def run_step(self, k: int, activations: Activations, asked: Asked) -> Step:
        """Run stage k and the head of exit k."""
        activations = self.stages[k](*activations)
        return activations, *_call_head(self.heads[k], activations, asked)

    def choose_asked(self, k: int, policy: Policy, attention: bool) -> Asked:
        """Return what head k computes under a policy before it is known which samples leave."""
        is_late = type(self) is Engine and isinstance(self.heads[k], SkipHead) and policy.score not in CHANGE_SCORES
        return "score" if is_late and not attention else choose_asked(policy, attention)

    def answer_late(self, k: int, activations: Activations, fired: Tensor) -> Tensor:
        """Return the answers ``(B,C+1)`` of exit k, zeros where it did not fire ``(B,)``; stage k has run."""
        rows = fired.nonzero()[:, 0]
        answers = self.heads[k].classify(*(t.index_select(0, rows) for t in activations)).float()
        return answers.new_zeros(len(fired), answers.shape[1]).index_copy_(0, rows, answers)

    def try_out(self, activations: Activations) -> None:
        """Run everything once; raise :class:`EngineError` where the precision does not fit the graph."""
        try:
            with self.mode():
                self.compute_outputs(self.enter(activations))
        except (RuntimeError, TypeError) as error:
            raise EngineError(
                f"tuning: this network does not run in {self.tuning.precision} ({first_line(error):.120}). "
                "Fix: set precision='float32'."
            ) from error

    # The following methods never run compiled steps, so nothing is compiled for them.

    def iterate_outputs(self, activations: Activations) -> Iterator[ExitOutput]:
        """Yield logits, attention and evidence exit by exit; a stage runs only when its exit is asked for."""
        for stage, head in zip(self.stages, self.heads, strict=True):
            activations = stage(*activations)
            yield cast(ExitOutput, head(*activations))

    def compute_outputs(self, activations: Activations) -> list[tuple[Tensor, Tensor]]:
        """Return logits and attention of every exit that can answer."""
        outputs = []
        for k in self.exits:
            activations, *output, _ = self.run_step(k, activations, "attention")
            outputs.append(cast(tuple[Tensor, Tensor], tuple(output)))
        return outputs

    def compute_support(self, activations: Activations) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return logits, attention and support of every exit."""
        outputs = []
        for k in range(len(self.heads)):
            activations, *output = self.run_step(k, activations, "support")
            outputs.append(cast(tuple[Tensor, Tensor, Tensor], tuple(output)))
        return outputs

    def compute_logits(self, k: int, activations: Activations) -> Tensor:  # -> (B,C)
        """Return the logits of exit k; no later stage runs."""
        for stage in self.stages[: k + 1]:
            activations = stage(*activations)
        return self.heads[k].classify(*activations)


def _call_head(head: ExitHead, activations: Activations, asked: Asked) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if asked == "score":
        return cast(SkipHead, head).foresee(*activations), None, None
    if asked == "support":
        return head.with_support(*activations)
    return (*head.with_attention(*activations), None) if asked == "attention" else (head.classify(*activations), None, None)


def _score_step(step: Step, temperature: float | Tensor, score: str) -> StepOutput:
    activations, logits, maps, support = step
    p = probabilities(logits, temperature, score)
    return StepOutput(activations, p, score_of(p, score), maps, support)


def choose_asked(policy: Policy, attention: bool) -> Asked:
    """Return what heads compute under a policy."""
    return "support" if policy.gate is not None else "attention" if attention else "logits"


class CompiledEngine(Engine):
    """An engine that compiles each step at its first use; :meth:`warm_up` does it ahead of time."""

    is_compiled = True

    def __init__(self, stages: Sequence[Callable[..., Any]], heads: Sequence[ExitHead], tuning: Tuning) -> None:
        super().__init__(stages, heads, tuning)
        self._steps: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def enter(self, activations: Activations) -> Activations:
        """Convert inputs to the one memory format that steps are compiled for, outside inference mode."""
        activations = super().enter(activations)
        activations = tuple(t if self.tuning.channels_last and t.ndim == 4 else t.contiguous() for t in activations)
        return tuple(t.clone() if t.is_inference() else t for t in activations)

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Return the context to answer in: without autograd, and outside any inference mode of the caller."""
        with torch.inference_mode(False), torch.no_grad():
            yield

    def run_stage(self, k: int, activations: Activations) -> Activations:
        """Run stage k alone, for an exit whose head is not needed."""
        stage = self.stages[k]

        def run_stage(activations: Activations) -> Any:
            return stage(*activations)

        return cast(Activations, self._compile((k,), run_stage)(activations))

    def run_exit(
        self, k: int, activations: Activations, temperature: float, score: str, asked: Asked = "logits"
    ) -> StepOutput:
        """Run stage k and the head of exit k."""
        stage, head = self.stages[k], self.heads[k]

        def run_exit(activations: Activations, temperature: Tensor) -> StepOutput:
            activations = stage(*activations)
            return _score_step((activations, *_call_head(head, activations, asked)), temperature, score)

        step = self._compile((k, score, asked), run_exit)
        # a tensor, because each number would be compiled anew
        return cast(StepOutput, step(activations, torch.tensor(temperature, dtype=torch.float64)))

    def _compile(self, key: tuple[Any, ...], step: Callable[..., Any]) -> Callable[..., Any]:
        if key not in self._steps:
            name = "_".join(["exitlens", step.__name__, *map(str, key)])
            self._steps[key] = torch.compile(give_own_code(step, name), options={"freezing": True})
        return self._steps[key]

    def warm_up(self, activations: Activations, policy: Policy, attention: bool) -> Iterator[tuple[int, float]]:
        """Compile the steps that this policy uses; yield each k and the seconds that step k took.

        Steps are compiled for one sample, for a few and for many, so later batches of any size compile nothing. Raises
        :class:`EngineError` where PyTorch cannot compile a step on this machine.
        """
        asked, size = choose_asked(policy, attention), self.tuning.micro_batch
        counts = (LARGE_BATCH + 1, 5) if size == 0 or 2 * size > LARGE_BATCH else (5,)  # at most 2 * size - 1 run at once
        rows = self.enter(tuple(t[:1].repeat_interleave(counts[0], 0) for t in activations))
        for k in range(len(self.stages)):
            started = time.perf_counter()
            with self.mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's compiler warns about PyTorch's own modules
                try:
                    for count in (1, *counts[::-1]):
                        batch = tuple(t[:count] for t in rows)
                        batch = batch if count == 1 else tuple(map(mark_any_count, batch))
                        if needs_head(policy, k):
                            following = self.run_exit(k, batch, 1.5, policy.score, asked).activations
                        else:
                            following = self.run_stage(k, batch)
                except Exception as error:
                    raise EngineError(
                        f"compile: PyTorch cannot compile stage {k} here ({type(error).__name__}: {first_line(error):.200})."
                        " Fix: install a C++ compiler such as g++, or leave compile() out."
                    ) from error
            rows = tuple(t.clone() for t in following)
            yield k, time.perf_counter() - started
