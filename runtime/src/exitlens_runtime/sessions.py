"""ONNX Runtime: one session for each file of an edge bundle, fed without copies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exitlens_runtime.errors import BackendError
from exitlens_runtime.routing import Array

OLDEST = (1, 23)


def import_onnxruntime() -> Any:
    """The package; raises :class:`BackendError` where it is missing or too old."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}): run pip install 'onnxruntime>=1.23'") from error
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version < OLDEST:
        raise BackendError(f"onnxruntime: expected 1.23 or newer, got {onnxruntime.__version__}: pip install -U onnxruntime")
    return onnxruntime


class Session:
    """One ONNX file, open.

    Args:
        path: of the file.
        threads: that one call uses; idle ones sleep instead of waiting for work, so that sessions do not take each other's.
        inputs, outputs: names of the tensors.
    """

    def __init__(self, path: Path, threads: int, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        runtime = import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base
            raise BackendError(f"{path}: ONNX Runtime cannot open it ({error})") from error
        self._make, self.path, self.outputs = runtime.OrtValue.ortvalue_from_numpy, path, list(outputs)
        known = {one.name for one in self._session.get_inputs()}
        if not known <= set(inputs) or {one.name for one in self._session.get_outputs()} != set(outputs):
            raise BackendError(f"{path}: its inputs and outputs are not those of the manifest: export again")
        self._inputs = [name for name in inputs if name in known]

    def run(self, tensors: Mapping[str, Array]) -> list[Array]:
        """Every output, in the order of :attr:`outputs`."""
        feed = {name: self._make(tensors[name]) for name in self._inputs}
        try:
            found = self._session.run_with_ort_values(self.outputs, feed)
        except Exception as error:
            raise BackendError(f"{self.path}: ONNX Runtime cannot run it ({error})") from error
        return [_view(one) for one in found]


def _view(value: Any) -> Array:
    """A tensor of ONNX Runtime as an array over the same memory where it can be shared."""
    inner: Any = getattr(value, "_ortvalue", None)
    found: Array = np.from_dlpack(inner) if hasattr(inner, "__dlpack__") else value.numpy()
    return found


def count_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
