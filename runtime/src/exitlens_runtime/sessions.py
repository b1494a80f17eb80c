"""Runs the files of an edge bundle: a session of ONNX Runtime or OpenVINO for each, fed without copies."""

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

OLDEST, SHORT_SPIN = (1, 23), (1, 26)  # the oldest ONNX Runtime that works, and the first whose threads can wait briefly
BACKENDS = ("onnxruntime", "openvino")


def import_onnxruntime() -> Any:
    """Import the package; raise :class:`BackendError` where it is missing or too old."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}). Fix: pip install 'onnxruntime>=1.23'.") from error
    if _read_version(onnxruntime) < OLDEST:
        raise BackendError(
            f"onnxruntime: expected 1.23 or newer, got {onnxruntime.__version__}. Fix: pip install -U onnxruntime."
        )
    return onnxruntime


def _read_version(onnxruntime: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])


def make_options(onnxruntime: Any, threads: int) -> Any:
    """Return options under which threads spin for 10 us: until the next operation, but not on another session's time.

    In older versions threads do not spin at all, which costs a tenth to a half of the time, because waking a thread takes
    as long as a small operation.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4  # failures are raised
    can_wait = _read_version(onnxruntime) >= SHORT_SPIN
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if can_wait else "0")
    if can_wait:
        options.add_session_config_entry("session.intra_op.spin_duration_us", "10")
    return options


class Session(Protocol):
    """An open ONNX file."""

    outputs: list[str]  # names of the tensors that run returns

    def run(self, tensors: Mapping[str, Array]) -> list[Array]:
        """Return every output, in the order of :attr:`outputs`."""


def open_session(backend: str, path: Path, threads: int, inputs: Sequence[str], outputs: Sequence[str]) -> Session:
    """Open a file with one of :data:`BACKENDS`; ``inputs``, ``outputs``: names of its tensors in the manifest."""
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    kind = OnnxRuntimeSession if backend == "onnxruntime" else OpenVinoSession
    return kind(path, threads, inputs, outputs)


def _select_inputs(path: Path, known: set[str], given: set[str], inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Return the inputs that the file reads; raise :class:`BackendError` if its tensors are not those of the manifest."""
    if not known <= set(inputs) or given != set(outputs):
        raise BackendError(f"{path}: its inputs and outputs are not those of the manifest. Fix: export the network again.")
    return [name for name in inputs if name in known]


class OnnxRuntimeSession:
    """A file in ONNX Runtime, with threads of its own."""

    def __init__(self, path: Path, threads: int, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        onnxruntime = import_onnxruntime()
        options = make_options(onnxruntime, threads)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base
            raise BackendError(f"{path}: ONNX Runtime cannot open it ({error})") from error
        self.path, self.outputs = path, list(outputs)
        known, given = {x.name for x in self._session.get_inputs()}, {x.name for x in self._session.get_outputs()}
        self._inputs = _select_inputs(path, known, given, inputs, outputs)

    def run(self, tensors: Mapping[str, Array]) -> list[Array]:
        """Return every output, in the order of :attr:`outputs`."""
        try:
            # it reads arrays without copies; wrapping them (OrtValue, DLPack) takes longer than its copies of outputs
            outputs: list[Array] = self._session.run(self.outputs, {name: tensors[name] for name in self._inputs})
        except Exception as error:
            raise BackendError(f"{self.path}: ONNX Runtime cannot run it ({error})") from error
        return outputs


@cache
def open_openvino() -> Any:
    """Return the process's only OpenVINO core: when the last core goes, it unloads code that its threads still run."""
    try:
        return import_module("openvino").Core()
    except ImportError as error:
        raise BackendError(
            f"openvino cannot be imported ({error}). Fix: pip install 'exitlens-runtime[openvino]'."
        ) from error


class OpenVinoSession:
    """A file in OpenVINO, in float32, because the precision that it would choose may lead to other decisions.

    Threads are not pinned to processors, because OpenVINO would leave the caller's thread pinned to one of them.
    """

    def __init__(self, path: Path, threads: int, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        settings["ENABLE_CPU_PINNING"] = False
        core = open_openvino()
        try:
            self._model = core.compile_model(str(path), "CPU", settings)
        except Exception as error:  # its errors have no common base
            raise BackendError(f"{path}: OpenVINO cannot open it ({error})") from error
        known, given = {x.any_name for x in self._model.inputs}, {x.any_name for x in self._model.outputs}
        self._inputs = _select_inputs(path, known, given, inputs, outputs)
        self._places = [next(i for i, x in enumerate(self._model.outputs) if name in x.names) for name in outputs]
        self.path, self.outputs, self._local = path, list(outputs), threading.local()  # a request is for one thread

    def run(self, tensors: Mapping[str, Array]) -> list[Array]:
        """Return every output, in the order of :attr:`outputs`; all after the map are valid until the thread's next call."""
        try:
            if not hasattr(self._local, "request"):
                self._local.request = self._model.create_infer_request()
            feed = {name: tensors[name] for name in self._inputs}
            outputs = self._local.request.infer(feed, share_inputs=True, share_outputs=True)
        except Exception as error:
            raise BackendError(f"{self.path}: OpenVINO cannot run it ({error})") from error
        logits, attention, *crossing = (outputs[i] for i in self._places)
        return [logits.copy(), attention.copy(), *crossing]


def count_threads() -> int:
    """Return the number of processors available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
