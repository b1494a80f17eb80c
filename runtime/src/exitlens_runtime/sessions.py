"""What runs the files of an edge bundle: a session of ONNX Runtime or OpenVINO for each, fed without copies."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from exitlens_runtime.errors import BackendError, InputError
from exitlens_runtime.routing import Array

OLDEST, SHORT_SPIN = (1, 23), (1, 26)  # the oldest ONNX Runtime that will do, and the first whose threads may wait shortly
BACKENDS = ("onnxruntime", "openvino")


def import_onnxruntime() -> Any:
    """The package; raises :class:`BackendError` where it is missing or too old."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}): run pip install 'onnxruntime>=1.23'") from error
    if read_version(onnxruntime) < OLDEST:
        raise BackendError(f"onnxruntime: expected 1.23 or newer, got {onnxruntime.__version__}: pip install -U onnxruntime")
    return onnxruntime


def read_version(onnxruntime: Any) -> tuple[int, ...]:
    """The first two numbers of its version."""
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def make_options(runtime: Any, threads: int) -> Any:
    """Threads wait busily for 10 us: long enough for the next operation, too short to take another session's core.

    Those of older versions do not wait at all, which costs a tenth to a half of the time, since waking up takes as long as a
    small operation.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4  # what fails is raised
    is_short = read_version(runtime) >= SHORT_SPIN
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if is_short else "0")
    if is_short:
        options.add_session_config_entry("session.intra_op.spin_duration_us", "10")
    return options


class Session(Protocol):
    """One ONNX file, open.

    Attributes:
        outputs: names of the tensors that :meth:`run` gives.
    """

    outputs: list[str]

    def run(self, tensors: Mapping[str, Array]) -> list[Array]:
        """Every output, in the order of :attr:`outputs`."""


def open_session(backend: str, path: Path, threads: int, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
    """Opens a file.

    Args:
        backend: one of :data:`BACKENDS`.
        threads: that one call uses.
        inputs, outputs: names of the tensors, as the manifest has them.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    kind = OnnxRuntimeSession if backend == "onnxruntime" else OpenVinoSession
    return kind(path, threads, inputs, outputs)


def _select(path: Path, known: set[str], given: set[str], inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """The inputs that the file reads; raises :class:`BackendError` where its tensors are not those of the manifest."""
    if not known <= set(inputs) or given != set(outputs):
        raise BackendError(f"{path}: its inputs and outputs are not those of the manifest: export again")
    return [name for name in inputs if name in known]


class OnnxRuntimeSession:
    """A file in ONNX Runtime, with threads of its own."""

    def __init__(self, path: Path, threads: int, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        runtime = import_onnxruntime()
        options = make_options(runtime, threads)
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base
            raise BackendError(f"{path}: ONNX Runtime cannot open it ({error})") from error
        self.path, self.outputs = path, list(outputs)
        known, given = ({one.name for one in some} for some in (self._session.get_inputs(), self._session.get_outputs()))
        self._inputs = _select(path, known, given, inputs, outputs)

    def run(self, tensors: Mapping[str, Array]) -> list[Array]:
        """Every output, in the order of :attr:`outputs`."""
        try:
            # takes arrays as they are; wrapping them by hand (OrtValue, DLPack) takes longer than its copies of outputs
            found: list[Array] = self._session.run(self.outputs, {name: tensors[name] for name in self._inputs})
        except Exception as error:
            raise BackendError(f"{self.path}: ONNX Runtime cannot run it ({error})") from error
        return found


@cache
def open_openvino() -> Any:
    """OpenVINO's core: one for the process, since it unloads the code that its threads run when the last one is gone."""
    try:
        return import_module("openvino").Core()
    except ImportError as error:
        raise BackendError(f"openvino cannot be imported ({error}): run pip install 'exitlens-runtime[openvino]'") from error


class OpenVinoSession:
    """A file in OpenVINO, in float32: what it would choose by itself may be less exact, and decide otherwise."""

    def __init__(self, path: Path, threads: int, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        core = open_openvino()
        try:
            self._model = core.compile_model(str(path), "CPU", settings)
        except Exception as error:  # its errors have no common base
            raise BackendError(f"{path}: OpenVINO cannot open it ({error})") from error
        known, given = ({one.any_name for one in some} for some in (self._model.inputs, self._model.outputs))
        self._inputs = _select(path, known, given, inputs, outputs)
        self._places = [next(i for i, one in enumerate(self._model.outputs) if name in one.names) for name in outputs]
        self.path, self.outputs, self._own = path, list(outputs), threading.local()  # a request is for one thread

    def run(self, tensors: Mapping[str, Array]) -> list[Array]:
        """Every output, in the order of :attr:`outputs`; what crosses the cut is good until the thread's next call."""
        try:
            request = self._own.__dict__.setdefault("request", None) or self._model.create_infer_request()
            self._own.request = request
            found = request.infer({name: tensors[name] for name in self._inputs}, share_inputs=True, share_outputs=True)
        except Exception as error:
            raise BackendError(f"{self.path}: OpenVINO cannot run it ({error})") from error
        logits, attention, *crossing = (found[i] for i in self._places)
        return [logits.copy(), attention.copy(), *crossing]


def count_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
