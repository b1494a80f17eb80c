"""Steps compiled by torch.compile, and the warm-up after which nothing more is compiled."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from exitlens.errors import EngineError
from exitlens.functional.routing import needs_head
from exitlens.model._torch_compat import LARGE_BATCH, give_own_code, mark_any_count
from exitlens.model.cutting.stage import Activations
from exitlens.model.engine.engine import Engine, StepOutput, call_head, score_step
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.types import Policy


class CompiledEngine(Engine):
    """An engine that compiles each step at its first use, which :meth:`warm_up` brings forward."""

    is_compiled = True

    def __init__(self, stages: Sequence[Callable[..., Any]], heads: Sequence[ExitHead], tuning: Tuning) -> None:
        super().__init__(stages, heads, tuning)
        self._steps: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._temperatures: dict[float, Tensor] = {}  # as tensors, so that they do not need a step each

    def enter(self, activations: Activations) -> Activations:
        """Return inputs in one memory format and outside inference mode, which is what steps are compiled for."""
        activations = super().enter(activations)
        activations = tuple(t if self.tuning.channels_last and t.ndim == 4 else t.contiguous() for t in activations)
        return tuple(t.clone() if t.is_inference() else t for t in activations)

    @contextmanager
    def mode(self) -> Iterator[None]:
        """The context to answer in: without autograd, and outside of any inference mode of the caller."""
        with torch.inference_mode(False), torch.no_grad():
            yield

    def advance(self, k: int, activations: Activations) -> Activations:
        """Run stage k alone, for an exit whose head is not needed."""
        stage = self.stages[k]

        def advance(activations: Activations) -> Activations:
            return cast(Activations, stage(*activations))

        return cast(Activations, self._compile((k,), advance)(activations))

    def answer(
        self, k: int, activations: Activations, temperature: float, score: str, attention: bool = False
    ) -> StepOutput:
        """Run stage k and the head of exit k."""
        stage, head = self.stages[k], self.heads[k]

        def answer(activations: Activations, temperature: Tensor) -> StepOutput:
            activations = stage(*activations)
            return score_step(activations, *call_head(head, activations, attention), temperature, score)

        if temperature not in self._temperatures:
            self._temperatures[temperature] = torch.tensor(temperature, dtype=torch.float64)
        step = self._compile((k, score, attention), answer)
        return cast(StepOutput, step(activations, self._temperatures[temperature]))

    def _compile(self, key: tuple[Any, ...], step: Callable[..., Any]) -> Callable[..., Any]:
        if key not in self._steps:
            name = "_".join(["exitlens", step.__name__, *map(str, key)])
            self._steps[key] = torch.compile(give_own_code(step, name), options={"freezing": True})
        return self._steps[key]

    def warm_up(self, activations: Activations, policy: Policy, attention: bool) -> Iterator[tuple[int, float]]:
        """Compile the steps that this policy uses; yield each k and the seconds that step k took.

        Steps are compiled for one sample, for a few and for many: later batches of any size compile nothing. Raises
        :class:`EngineError` where PyTorch cannot compile a step on this machine.
        """
        size = self.tuning.micro_batch  # the router runs fewer than two micro-batches at once
        counts = (LARGE_BATCH + 1, 5) if size == 0 or 2 * size > LARGE_BATCH else (5,)
        rows = self.enter(tuple(t[:1].repeat_interleave(counts[0], 0) for t in activations))
        for k in range(len(self.stages)):
            started = time.perf_counter()
            with self.mode(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's compiler warns about PyTorch's own modules
                try:
                    for count in (1, *counts[::-1]):
                        batch = tuple(t[:count] for t in rows)
                        batch = batch if count == 1 else tuple(map(mark_any_count, batch))
                        following = self._run(k, batch, policy, attention)
                except Exception as error:
                    reason = str(error).strip().partition("\n")[0]
                    raise EngineError(
                        f"compile: PyTorch cannot compile stage {k} here ({type(error).__name__}: {reason:.200}). "
                        "Fix: install a C++ compiler such as g++, or leave compile() out."
                    ) from error
            rows = tuple(t.clone() for t in following)
            yield k, time.perf_counter() - started

    def _run(self, k: int, activations: Activations, policy: Policy, attention: bool) -> Activations:
        """Run step k as the router calls it."""
        if not needs_head(policy, k):
            return self.advance(k, activations)
        return self.answer(k, activations, 1.5, policy.score, attention or policy.gate is not None).activations
