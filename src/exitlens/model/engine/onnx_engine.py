"""Answers with ONNX files inside PyTorch's process: tensors go in and come out without copies."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from exitlens.errors import EngineError, ExportError, import_extra
from exitlens.model.cutting.stage import Activations, Stage
from exitlens.model.engine.engine import Engine, Step
from exitlens.model.engine.onnx_files import (
    Written,
    compare_module,
    cut_segments,
    import_onnx,
    is_close,
    open_file,
    shorten,
    write_module,
    write_segments,
)
from exitlens.model.engine.tuning import Tuning
from exitlens.model.heads.exit_heads import ExitHead
from exitlens.types import Policy

COMPARED = (1, 2, 9)  # batch sizes at which a file is compared with its module


class Home:
    """A temporary directory, which exists as long as this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="exitlens-"))
        self.finalizer = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, process: int) -> None:
    """Remove a directory in the process that made it, not in one that was forked from it."""
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)


class OnnxFile:
    """An ONNX file, run on as many threads as PyTorch has at the call. Threads may share it.

    Args:
        inputs, outputs: names of its tensors.
        home: the file's directory, if it is to exist as long as this object.
    """

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str], home: Home | None = None) -> None:
        self.path, self.inputs, self.outputs, self.home = path, inputs, outputs, home
        self._sessions = dict[int, tuple[Any, frozenset[str]]]()
        self._wrap = import_extra(
            "onnxruntime", "onnx", "backend='onnx' (net.tuning = exitlens.Tuning() goes without)"
        ).OrtValue.from_dlpack

    @classmethod
    def write(cls, module: nn.Module, example: Activations, part: str) -> Self:
        """Write a module (tensors -> a tuple of tensors) as a file, and compare the two.

        Args:
            example: one sample of each tensor.
            part: names the module in errors.

        Raises:
            ExportError: where the module cannot be written as ONNX, or the file gives something else.
        """
        import_onnx()
        module = _Spread(module).eval()
        home, names = Home(), [f"input_{i}" for i in range(len(example))]
        batches = {n: tuple(draw_like(t, n) for t in example) for n in COMPARED}
        with torch.inference_mode():
            outputs = [f"output_{i}" for i in range(len(module(*batches[2])))]
        path = home.path / "module.onnx"
        write_module(module, batches[2], path, names, outputs, part)
        session = open_file(path)
        for batch in batches.values():
            compare_module(module, session, dict(zip(names, batch, strict=True)), part)
        return cls(path, names, outputs, home)

    def __call__(self, activations: Activations) -> list[Tensor]:
        """Return every output; raises :class:`EngineError` where ONNX Runtime cannot run the file."""
        threads = torch.get_num_threads()
        if threads not in self._sessions:
            session = open_file(self.path, threads)
            self._sessions[threads] = session, frozenset(value.name for value in session.get_inputs())
        session, known = self._sessions[threads]
        pairs = zip(self.inputs, activations, strict=True)
        feed = {name: self._wrap(t.detach().contiguous()) for name, t in pairs if name in known}
        try:
            outputs = session.run_with_ort_values(self.outputs, feed)
        except Exception as error:  # its errors have no common base
            raise EngineError(
                f"tuning: ONNX Runtime cannot run {self.path.name} ({shorten(error)}). Fix: set net.tuning = Tuning() to "
                "use PyTorch."
            ) from error
        return [from_dlpack(value) for value in outputs]


class _Spread(nn.Module):
    """Passes on its tensors as a tuple, because the exporter expects separate arguments."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *tensors: Tensor) -> Any:
        return self.inner(*tensors)


def draw_like(t: Tensor, count: int) -> Tensor:
    """Return noise for floats; other tensors repeated ``count`` times."""
    rng = torch.Generator().manual_seed(count)
    return torch.randn(count, *t.shape[1:], generator=rng) if t.is_floating_point() else t.repeat(count, *[1] * (t.ndim - 1))


class OnnxFiles(NamedTuple):
    """The files of all stages, with their directory if it is to exist as long as they are used."""

    files: Sequence[Written]
    home: Home | None = None


class FileEngine(Engine):
    """Answers with ONNX files alone: one for each exit that can answer, with everything since the previous file's exit.

    Heads are part of the files, so their cost is paid even at exits that are only passed.
    """

    def __init__(
        self, opened: Mapping[int, OnnxFile], tuning: Tuning, stages: Sequence[Any] = (), heads: Sequence[ExitHead] = ()
    ) -> None:
        super().__init__(stages, heads, tuning)
        self.opened = dict(opened)

    def advance(self, k: int, activations: Activations) -> Activations:
        """Run stage k alone; nothing runs if it is part of a later file."""
        return tuple(self.opened[k](activations)[2:]) if k in self.opened else activations

    def run_step(self, k: int, activations: Activations, attention: bool) -> Step:
        """Run stage k and the head of exit k."""
        logits, maps, *crossing = self.opened[k](activations)
        return tuple(crossing), logits, maps if attention else None

    def compute_outputs(self, activations: Activations) -> list[tuple[Tensor, Tensor]]:
        """Return logits and attention of every exit that has a file."""
        outputs = []
        for file in self.opened.values():
            logits, maps, *crossing = file(activations)
            outputs.append((logits, maps))
            activations = tuple(crossing)
        return outputs

    def compute_logits(self, k: int, activations: Activations) -> Tensor:  # -> (B,C)
        """Return the logits of exit k; no later stage runs."""
        for i in range(k):
            activations = self.advance(i, activations)
        return self.opened[k](activations)[0]


class OnnxEngine(FileEngine):
    """Answers with files that were compared with the stages. Evidence maps still come from PyTorch."""

    def __init__(self, stages: Sequence[Any], heads: Sequence[ExitHead], tuning: Tuning, files: OnnxFiles) -> None:
        opened = {file.exit: OnnxFile(file.path, file.inputs, file.outputs, files.home) for file in files.files}
        super().__init__(opened, tuning, stages, heads)
        self.files = files

    @classmethod
    def write(cls, stages: Sequence[Stage], heads: Sequence[ExitHead], tuning: Tuning, example: Activations) -> Self:
        """Write files and make an engine on them; raises :class:`EngineError` where the network does not fit ONNX."""
        import_onnx()
        _check_float32(heads, example)
        engine, home = Engine.prepare(stages, heads, tuning), Home()
        examples = {n: tuple(draw_like(t, n) for t in example) for n in COMPARED}
        try:
            segments = cut_segments(stages, heads, Policy((0.0,) * (len(heads) - 1)))
            files = write_segments(home.path, segments, examples, [f"input_{i}" for i in range(len(example))])
        except ExportError as error:
            raise EngineError(
                f"tuning: this network does not run with backend='onnx' ({error}). Fix: set backend='torch'."
            ) from error
        return cls(engine.stages, engine.heads, tuning, OnnxFiles(files, home))

    @classmethod
    def adopt(
        cls, stages: Sequence[Stage], heads: Sequence[ExitHead], tuning: Tuning, example: Activations, files: OnnxFiles
    ) -> Self:
        """Make an engine on files that :meth:`write` made earlier, or on new ones if they answer differently here."""
        _check_float32(heads, example)
        plain = Engine.prepare(stages, heads, tuning)
        engine, batch = cls(plain.stages, plain.heads, tuning, files), tuple(draw_like(t, 2) for t in example)
        try:
            with engine.mode():
                exits = zip(engine.compute_outputs(batch), plain.compute_outputs(batch), strict=True)
                is_same = all(is_close(*tensors) for outputs in exits for tensors in zip(*outputs, strict=True))
        except (ExportError, EngineError):  # perhaps written by another version of ONNX Runtime
            is_same = False
        return engine if is_same else cls.write(stages, heads, tuning, example)


def _check_float32(heads: Sequence[ExitHead], example: Activations) -> None:
    """Raise :class:`EngineError` unless the network is in float32 on the CPU."""
    for t in (*example, *heads[0].parameters()):
        if t.device.type != "cpu" or (t.is_floating_point() and t.dtype is not torch.float32):
            raise EngineError(
                f"tuning: backend='onnx' is for networks in float32 on the CPU, got {t.dtype} on {t.device}. Fix: set "
                "net.tuning = Tuning() to use PyTorch."
            )
