"""The network in the form in which it answers: one stage with its head after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor

from exitlens.errors import EngineError
from exitlens.functional.scores import probabilities, score_of
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.preparation import prepare_graph, prepare_head
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.types import ExitOutput

Step = tuple[Activations, Tensor, Tensor | None]


class StepOutput(NamedTuple):
    """What a stage with its head gives.

    Attributes:
        activations: the next stage's inputs.
        probabilities: ``(B,C)`` float32, softmax (of several labels sigmoid) of the logits over the temperature.
        scores: ``(B,)``.
        attention: ``(B,*S)``, or ``None`` if it was not asked for.
    """

    activations: Activations
    probabilities: Tensor
    scores: Tensor
    attention: Tensor | None


class Engine:
    """Stages and heads in a tuning's form. Threads may share an engine: answering does not change it.

    Attributes:
        shared: True if stages and heads are the network's own, False if they are copies.
    """

    is_compiled = False

    def __init__(
        self, stages: Sequence[Callable[..., Any]], heads: Sequence[ExitHead], tuning: Tuning, *, shared: bool = False
    ) -> None:
        self.stages, self.heads, self.tuning, self.shared = stages, heads, tuning, shared

    @classmethod
    def prepare(cls, stages: Sequence[Stage], heads: Sequence[ExitHead], tuning: Tuning) -> Self:
        """Make an engine on copies in the tuning's form: training the network on does not change them."""
        with torch.inference_mode(False):  # explanations go back through these weights
            graphs = [prepare_graph(stage.evaluation, tuning) for stage in stages]
            return cls(graphs, [prepare_head(head, tuning) for head in heads], tuning)

    def enter(self, activations: Activations) -> Activations:
        """Return checked inputs in the form that the first stage takes."""
        return self.tuning.convert(activations)

    def mode(self) -> AbstractContextManager[Any]:
        """The context to answer in: without autograd."""
        return torch.inference_mode()

    def advance(self, k: int, activations: Activations) -> Activations:
        """Run stage k alone, for an exit whose head is not needed."""
        return cast(Activations, self.stages[k](*activations))

    def answer(
        self, k: int, activations: Activations, temperature: float, score: str, attention: bool = False
    ) -> StepOutput:
        """Run stage k and the head of exit k, with the policy's temperature and score; ``attention``: give the map, too."""
        return score_step(*self.run_step(k, activations, attention), temperature, score)

    def run_step(self, k: int, activations: Activations, attention: bool) -> Step:
        """Run stage k and the head of exit k; return the next stage's inputs, logits, and the map if it is asked for."""
        activations = self.stages[k](*activations)
        return activations, *call_head(self.heads[k], activations, attention)

    def try_out(self, activations: Activations) -> None:
        """Run everything once; raise :class:`EngineError` where the precision does not fit the graph."""
        try:
            with self.mode():
                self.compute_outputs(self.enter(activations))
        except (RuntimeError, TypeError) as error:
            raise EngineError(
                f"tuning: this network does not run in {self.tuning.precision} ({str(error).splitlines()[0]:.120}). "
                "Fix: set precision='float32'."
            ) from error

    # The following never run compiled steps, so that nothing is compiled for them.

    def iterate_explained(self, activations: Activations) -> Iterator[ExitOutput]:
        """Yield logits, attention and evidence of one exit after the other; a stage runs when its exit is asked for."""
        for stage, head in zip(self.stages, self.heads, strict=True):
            activations = stage(*activations)
            yield cast(ExitOutput, head(*activations))

    def compute_outputs(self, activations: Activations) -> list[tuple[Tensor, Tensor]]:
        """Return logits and attention of every exit."""
        outputs = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            activations = stage(*activations)
            outputs.append(head.with_attention(*activations))
        return outputs

    def compute_logits(self, k: int, activations: Activations) -> Tensor:  # -> (B,C)
        """Return the logits of exit k; no later stage runs."""
        for stage in self.stages[: k + 1]:
            activations = stage(*activations)
        return self.heads[k].classify(*activations)


def call_head(head: ExitHead, activations: Activations, attention: bool) -> tuple[Tensor, Tensor | None]:
    """Return logits, and the map if it is asked for."""
    return head.with_attention(*activations) if attention else (head.classify(*activations), None)


def score_step(
    activations: Activations, logits: Tensor, maps: Tensor | None, temperature: float | Tensor, score: str
) -> StepOutput:
    """Add probabilities and scores to what a step gave."""
    p = probabilities(logits, temperature, score)
    return StepOutput(activations, p, score_of(p, score), maps)
