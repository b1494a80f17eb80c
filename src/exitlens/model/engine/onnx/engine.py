"""An engine that answers by ONNX Runtime: each stage with its head is one session."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from exitlens.errors import EngineError, ExportError, import_extra
from exitlens.functional.scores import probabilities, score_of
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.engine import Engine, StepOutput
from exitlens.model.engine.onnx.files import Written, import_onnx, open_file, write_segments
from exitlens.model.engine.onnx.segments import cut_segments
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.types import Policy

COMPARED = (1, 2, 9)  # batches at which files are compared with the stages


class OnnxEngine(Engine):
    """Answers by files that were compared with the stages; explanations with evidence still come from PyTorch.

    Heads are part of the files, so an exit that is only passed costs its head, too.
    """

    def __init__(self, stages: Sequence[Any], heads: Sequence[ExitHead], tuning: Tuning, files: Sequence[Written]) -> None:
        super().__init__(stages, heads, tuning)
        self._files, self._sessions = files, dict[int, list[Any]]()
        self._make = import_extra("onnxruntime", "onnx", "backend='onnx'").OrtValue.from_dlpack

    @classmethod
    def write(cls, stages: Sequence[Stage], heads: Sequence[ExitHead], tuning: Tuning, example: Activations) -> Self:
        """An engine on files that are written for it and go with it; ``example``: one sample as the first stage takes it.

        Raises:
            EngineError: where the network cannot be written as ONNX, or the files give something else.
        """
        import_onnx()
        base = Engine.prepare(stages, heads, tuning)
        examples = {n: tuple(_draw_like(t, n) for t in example) for n in COMPARED}
        folder = Path(tempfile.mkdtemp(prefix="exitlens-"))
        try:
            segments = cut_segments(stages, heads, Policy((0.0,) * (len(heads) - 1)))
            files = write_segments(folder, segments, examples, [f"input_{i}" for i in range(len(example))])
        except ExportError as error:
            shutil.rmtree(folder)
            raise EngineError(
                f"tuning: this network does not run with backend='onnx' ({error}): set backend='torch'"
            ) from error
        engine = cls(base.stages, base.heads, tuning, files)
        weakref.finalize(engine, shutil.rmtree, folder, ignore_errors=True)
        return engine

    def _run(self, k: int, activations: Activations) -> list[Tensor]:
        """Logits, attention and what crosses the cut."""
        threads = torch.get_num_threads()
        if threads not in self._sessions:
            self._sessions[threads] = [open_file(one.path, threads) for one in self._files]
        file, session = self._files[k], self._sessions[threads][k]
        known = {one.name for one in session.get_inputs()}
        pairs = zip(file.inputs, activations, strict=True)
        feed = {name: self._make(t.contiguous()) for name, t in pairs if name in known}
        return [from_dlpack(one._ortvalue) for one in session.run_with_ort_values(file.outputs, feed)]

    def advance(self, k: int, activations: Activations) -> Activations:
        """Stage k alone."""
        return tuple(self._run(k, activations)[2:])

    def answer(
        self, k: int, activations: Activations, temperature: float, score: str, attention: bool = False
    ) -> StepOutput:
        """Stage k and the head of exit k."""
        logits, maps, *crossing = self._run(k, activations)
        p = probabilities(logits, temperature)
        return StepOutput(tuple(crossing), p, score_of(p, score), maps if attention else None)

    def compute_outputs(self, activations: Activations) -> list[tuple[Tensor, Tensor]]:
        """Logits and attention of every exit."""
        found = []
        for k in range(len(self.heads)):
            logits, maps, *crossing = self._run(k, activations)
            found.append((logits, maps))
            activations = tuple(crossing)
        return found

    def compute_logits(self, k: int, activations: Activations) -> Tensor:  # -> (B,C)
        """Logits of exit k; no stage after it runs."""
        for i in range(k):
            activations = self.advance(i, activations)
        return self._run(k, activations)[0]


def _draw_like(t: Tensor, count: int) -> Tensor:
    """Noise for floats; other tensors as they are, so many times."""
    rng = torch.Generator().manual_seed(count)
    return torch.randn(count, *t.shape[1:], generator=rng) if t.is_floating_point() else t.repeat(count, *[1] * (t.ndim - 1))
