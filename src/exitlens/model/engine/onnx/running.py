"""An ONNX file that answers in PyTorch's process: tensors go in and come out without copies."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from exitlens.errors import EngineError, import_extra
from exitlens.model.cutting.stage import Activations
from exitlens.model.engine.onnx.files import compare_module, import_onnx, open_file, shorten, write_module

COMPARED = (1, 2, 9)  # batches at which a file is compared with its module


class Home:
    """A temporary directory of files, there as long as anybody holds this."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="exitlens-"))
        self.finalizer = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, process: int) -> None:
    """Removes a directory in the process that made it, not in one that was forked from it."""
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)


class OnnxFile:
    """A file, on as many threads as PyTorch has when it is called. Threads may share it.

    Args:
        path: of the file.
        inputs, outputs: names of the tensors that it is called with, and that it gives.
        home: of the file, if that goes with this.
    """

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str], home: Home | None = None) -> None:
        self.path, self.inputs, self.outputs, self.home = path, inputs, outputs, home
        self._sessions = dict[int, tuple[Any, frozenset[str]]]()
        self._make = import_extra(
            "onnxruntime", "onnx", "backend='onnx' (net.tuning = exitlens.Tuning() goes without)"
        ).OrtValue.from_dlpack

    @classmethod
    def write(cls, module: nn.Module, example: Activations, what: str) -> Self:
        """A module of tensors as a file, compared with it.

        Args:
            module: tensors -> a tuple of tensors.
            example: one sample of each.
            what: names it in errors.

        Raises:
            ExportError: where the module cannot be written as ONNX, or the file gives something else.
        """
        import_onnx()
        module = _Spread(module).eval()
        home, names = Home(), [f"input_{i}" for i in range(len(example))]
        given = {n: tuple(draw_like(t, n) for t in example) for n in COMPARED}
        with torch.inference_mode():
            outputs = [f"output_{i}" for i in range(len(module(*given[2])))]
        path = home.path / "module.onnx"
        write_module(module, given[2], path, names, outputs, what)
        session = open_file(path)
        for each in given.values():
            compare_module(module, session, dict(zip(names, each, strict=True)), what)
        return cls(path, names, outputs, home)

    def __call__(self, activations: Activations) -> list[Tensor]:
        """Every output; raises :class:`EngineError` where ONNX Runtime cannot run it."""
        threads = torch.get_num_threads()
        if threads not in self._sessions:
            session = open_file(self.path, threads)
            self._sessions[threads] = session, frozenset(one.name for one in session.get_inputs())
        session, known = self._sessions[threads]
        pairs = zip(self.inputs, activations, strict=True)
        feed = {name: self._make(t.detach().contiguous()) for name, t in pairs if name in known}
        try:
            found = session.run_with_ort_values(self.outputs, feed)
        except Exception as error:  # its errors have no common base
            raise EngineError(
                f"tuning: ONNX Runtime cannot run {self.path.name} ({shorten(error)}): set net.tuning = Tuning() to use "
                "PyTorch"
            ) from error
        return [from_dlpack(one._ortvalue) for one in found]


class _Spread(nn.Module):
    """A module whose tensors come one after the other, as the exporter is told."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *tensors: Tensor) -> Any:
        return self.inner(*tensors)


def draw_like(t: Tensor, count: int) -> Tensor:
    """Noise for floats; other tensors as they are, so many times."""
    rng = torch.Generator().manual_seed(count)
    return torch.randn(count, *t.shape[1:], generator=rng) if t.is_floating_point() else t.repeat(count, *[1] * (t.ndim - 1))
