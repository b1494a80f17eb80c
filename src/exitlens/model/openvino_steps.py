"""A stage with its head as one OpenVINO model, run from PyTorch tensors to PyTorch tensors."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exitlens.errors import EngineError, MissingExtraError
from exitlens.model.stages import Carried


class _Flat(nn.Module):
    """The step as a module that owns its parts, as torch.export wants it: tensors in, tensors out."""

    def __init__(self, step: Callable[..., Carried], parts: tuple[Any, ...], extra: int) -> None:
        super().__init__()
        self.step, self.extra = step, extra
        self.parts = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])

    def forward(self, *tensors: Tensor) -> Carried:
        return self.step(tensors[: len(tensors) - self.extra], *tensors[len(tensors) - self.extra :])


class OpenVinoStep:
    """One compiled step. Threads may share it: each has a request of its own.

    Args:
        step: what crosses the cut (a tuple) and ``extra`` further tensors -> a tuple of tensors.
        parts: the modules that it calls.
        carried: an example of what crosses the cut, float32 or integers, on the CPU, contiguous.
        extra: examples of the further tensors, without a batch axis.
        threads: of OpenVINO's own.

    Raises:
        MissingExtraError: without openvino; EngineError: for parts that are not float32 on the CPU; whatever torch.export or
            OpenVINO raise for a step that they cannot translate.
    """

    def __init__(
        self, step: Callable[..., Carried], parts: tuple[Any, ...], carried: Carried, extra: tuple[Tensor, ...], threads: int
    ) -> None:
        runtime = _openvino()
        module = _Flat(step, parts, len(extra)).eval()
        for p in module.parameters():
            if p.device.type != "cpu" or p.dtype != torch.float32:
                raise EngineError(f"backend: openvino runs float32 networks on the CPU, this one is {p.dtype} on {p.device}")
        sizes = [[-1, *t.shape[1:]] for t in carried] + [list(t.shape) for t in extra]
        model = _translated(module, carried, extra)
        model.reshape(dict(enumerate(sizes)))
        hints = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # leaves the process's threads where they are
        }
        self._model = runtime.Core().compile_model(model, "CPU", hints)
        self._own = threading.local()

    def __call__(self, carried: Carried, *extra: Tensor) -> Carried:
        """Runs it; what it returns is the caller's own."""
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._model.create_infer_request()
        given = [t.numpy() for t in carried] + [t.numpy() for t in extra]
        return tuple(torch.from_numpy(out) for out in request.infer(given, share_inputs=True).to_tuple())


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", "compile(backend='openvino')") from error
    return openvino


def _translated(module: nn.Module, carried: Carried, extra: tuple[Tensor, ...]) -> Any:
    """The OpenVINO model, by its PyTorch frontend itself: ``openvino.convert_model`` would send usage statistics."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    several = tuple(torch.cat([t[:1]] * 3) for t in carried)  # a batch of 1 would be taken as constant
    sizes = tuple({0: torch.export.Dim.DYNAMIC} for _ in carried) + tuple({} for _ in extra)
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        given = tuple(t.clone() for t in (*several, *extra))
        program = torch.export.export(module, given, dynamic_shapes=(sizes,), strict=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder.from_exported_program(program)  # has to stay alive until convert is done
        return frontend.convert(frontend.load(decoder))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself that OpenVINO's table of operations is of another release than PyTorch's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
