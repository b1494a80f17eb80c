"""An engine that answers by ONNX Runtime: each stage with its head is one session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from exitlens.errors import EngineError, ExportError
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.engine import Engine, Step
from exitlens.model.engine.onnx.files import Written, import_onnx, is_close, write_segments
from exitlens.model.engine.onnx.running import COMPARED, Home, OnnxFile, draw_like
from exitlens.model.engine.onnx.segments import cut_segments
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.types import Policy


class OnnxEngine(Engine):
    """Answers by files that were compared with the stages; explanations with evidence still come from PyTorch.

    Heads are part of the files, so an exit that is only passed costs its head, too.

    Attributes:
        files: of the stages. home: where they are, if they go with the engine.
    """

    def __init__(
        self,
        stages: Sequence[Any],
        heads: Sequence[ExitHead],
        tuning: Tuning,
        files: Sequence[Written],
        home: Home | None = None,
    ) -> None:
        super().__init__(stages, heads, tuning)
        self.files, self.home = files, home
        self._opened = [OnnxFile(one.path, one.inputs, one.outputs) for one in files]

    @classmethod
    def write(cls, stages: Sequence[Stage], heads: Sequence[ExitHead], tuning: Tuning, example: Activations) -> Self:
        """An engine on files that are written for it and go with it; ``example``: one sample as the first stage takes it.

        Raises:
            EngineError: where the network cannot be written as ONNX, or the files give something else.
        """
        import_onnx()
        check_plain(heads, example)
        base, home = Engine.prepare(stages, heads, tuning), Home()
        examples = {n: tuple(draw_like(t, n) for t in example) for n in COMPARED}
        try:
            segments = cut_segments(stages, heads, Policy((0.0,) * (len(heads) - 1)))
            files = write_segments(home.path, segments, examples, [f"input_{i}" for i in range(len(example))])
        except ExportError as error:
            raise EngineError(
                f"tuning: this network does not run with backend='onnx' ({error}): set backend='torch'"
            ) from error
        return cls(base.stages, base.heads, tuning, files, home)

    @classmethod
    def adopt(
        cls,
        stages: Sequence[Stage],
        heads: Sequence[ExitHead],
        tuning: Tuning,
        example: Activations,
        kept: tuple[Sequence[Written], Home],
    ) -> Self:
        """An engine on files that :meth:`write` made before; on new ones where those do not give the same here."""
        check_plain(heads, example)
        base = Engine.prepare(stages, heads, tuning)
        engine, given = cls(base.stages, base.heads, tuning, *kept), tuple(draw_like(t, 2) for t in example)
        try:
            with engine.mode():
                pairs = zip(engine.compute_outputs(given), base.compute_outputs(given), strict=True)
                same = all(is_close(one, other) for ours, plain in pairs for one, other in zip(ours, plain, strict=True))
        except (ExportError, EngineError):  # of another version of ONNX Runtime, perhaps
            same = False
        return engine if same else cls.write(stages, heads, tuning, example)

    def _run(self, k: int, activations: Activations) -> list[Tensor]:
        """Logits, attention and what crosses the cut."""
        return self._opened[k](activations)

    def advance(self, k: int, activations: Activations) -> Activations:
        """Stage k alone."""
        return tuple(self._run(k, activations)[2:])

    def run_step(self, k: int, activations: Activations, attention: bool) -> Step:
        """Stage k and the head of exit k."""
        logits, maps, *crossing = self._run(k, activations)
        return tuple(crossing), logits, maps if attention else None

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


def check_plain(heads: Sequence[ExitHead], example: Activations) -> None:
    """Raises :class:`EngineError` unless the network is in float32 on the CPU."""
    for t in (*example, *heads[0].parameters()):
        if t.device.type != "cpu" or (t.is_floating_point() and t.dtype is not torch.float32):
            raise EngineError(
                f"tuning: backend='onnx' is for networks in float32 on the CPU, this one is in {t.dtype} on {t.device}: set "
                "net.tuning = Tuning() to use PyTorch"
            )
