"""A segment as an ONNX file for any number of samples, compared with the segment before it is used."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from exitlens.errors import ExportError, import_extra
from exitlens.model.cutting.stage import Activations
from exitlens.model.engine.onnx.segments import ATTENTION, LOGITS, Segment

OPSET = 18
BATCHES = (1, 2, 3, 17, 64)  # at which files are compared with their segments; 0 ends the process with some (MaxViT's)
SHORT_SPIN = (1, 26)  # the first ONNX Runtime whose threads may wait for a time that one sets
ATTENTION_CALLS = (functional.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
TOLERANCE = 1e-4  # of the largest absolute value that a tensor has


def import_onnx() -> Any:
    """The package ``onnx``, with those that writing needs; raises :class:`MissingExtraError`."""
    import_extra("onnxscript", "onnx", "writing ONNX files")
    import_extra("onnxruntime", "onnx", "comparing ONNX files with the network")
    return import_extra("onnx", "onnx", "writing ONNX files")


class Written(NamedTuple):
    """A file that was written.

    Attributes:
        exit: whose head it has.
        inputs, outputs: names of its tensors; logits and attention first among the outputs.
        map_shape: of the exit's attention, without the batch axis.
        offset: how far the map lies off its cells, for each axis.
    """

    path: Path
    exit: int
    inputs: Sequence[str]
    outputs: Sequence[str]
    map_shape: Sequence[int]
    offset: Sequence[float] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the directory."""
        names = {"inputs": list(self.inputs), "outputs": list(self.outputs), "map_shape": list(self.map_shape)}
        return {"file": self.path.name, "exit": self.exit} | names

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], directory: Path) -> Written:
        """Inverse of :meth:`to_dict`; raises :class:`KeyError` or :class:`TypeError` for anything else."""
        own = {name: tuple(values[name]) for name in ("inputs", "outputs", "map_shape")}
        return cls(directory / str(values["file"]), int(values["exit"]), **own)


def write_segments(
    directory: Path, segments: Sequence[Segment], examples: Mapping[int, Activations], names: Sequence[str]
) -> list[Written]:
    """Writes ``stage_0.onnx`` and so on, and compares each with its segment.

    Args:
        examples: by their number, samples as the first stage takes them, 2 among the numbers.
        names: of the first stage's tensors.
    """
    found, now = list[Written](), dict(examples)
    for place, segment in enumerate(segments):
        path = directory / f"stage_{place}.onnx"
        with torch.inference_mode():
            _, attention, *crossing = segment(*now[2])
        outputs = [LOGITS, ATTENTION, *(f"features_{segment.exit}_{i}" for i in range(len(crossing)))]
        what = f"exit {segment.exit}"
        write_module(segment, tuple(t.clone() for t in now[2]), path, names, outputs, what)
        session = open_file(path)
        for batch, each in now.items():
            now[batch] = compare_module(segment, session, dict(zip(names, each, strict=True)), what)[2:]
        found.append(Written(path, segment.exit, names, outputs, tuple(attention.shape[1:])))
        names = outputs[2:]
    return found


def write_module(
    module: nn.Module, activations: Activations, path: Path, inputs: Sequence[str], outputs: Sequence[str], what: str
) -> None:
    """Writes a file for any number of samples.

    Args:
        module: tensors -> a tuple of tensors.
        activations: an example of two samples or more (of one, torch.export would take the batch to be 1 for ever).
        inputs, outputs: names of the tensors.
        what: names the module in errors.

    Raises:
        ExportError: where PyTorch cannot export the module, or only for one number of samples.
    """
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in activations)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _FlatAttention():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                activations,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=(dynamic,),
                optimize=True,
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except Exception as error:  # torch.export and the ONNX exporter raise errors of many kinds
        raise ExportError(f"net: {what} cannot be written as ONNX ({shorten(error)})") from error
    check_batch_is_free(path, what)


class _FlatAttention(TorchFunctionMode):
    """Attention over more than one axis of groups (windows) as over one: the exporter knows tensors of four axes only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        masked = (args[3] if len(args) > 3 else kwargs.get("attn_mask")) is not None
        if func not in ATTENTION_CALLS or len(args) < 3 or args[0].ndim <= 4 or masked:
            return func(*args, **kwargs)
        query, key, value = (t.flatten(0, -4) for t in args[:3])
        return func(query, key, value, *args[3:], **kwargs).unflatten(0, args[0].shape[:-3])


def shorten(error: Exception) -> str:
    """Kind and first line of an error of somebody else's: of the one that caused it, where there is one."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def check_batch_is_free(path: Path, what: str) -> None:
    """Raises :class:`ExportError` unless every input and output takes any number of samples."""
    graph = import_onnx().load(path, load_external_data=False).graph
    for value in (*graph.input, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if not dimensions or not dimensions[0].dim_param:
            raise ExportError(f"net: {what}: the number of samples of {value.name!r} is fixed in its ONNX file")


def open_file(path: Path, threads: int = 1) -> Any:
    """A session of ONNX Runtime on the processor, whose threads wait as those of exitlens-runtime do (its sessions.py)."""
    runtime = import_extra("onnxruntime", "onnx", "running ONNX files")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4  # what fails is raised
    is_short = tuple(int(part) for part in runtime.__version__.split(".")[:2]) >= SHORT_SPIN
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if is_short else "0")
    if is_short:
        options.add_session_config_entry("session.intra_op.spin_duration_us", "10")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"{path.name}: ONNX Runtime cannot open what was written ({shorten(error)})") from error


def compare_module(module: nn.Module, session: Any, activations: Mapping[str, Tensor], what: str) -> Activations:
    """What the module gives; raises :class:`ExportError` unless the file gives the same."""
    with torch.inference_mode():
        expected: Activations = module(*activations.values())
    try:
        found = session.run(None, {one.name: activations[one.name].numpy() for one in session.get_inputs()})
    except Exception as error:
        raise ExportError(f"net: {what}: its ONNX file does not run ({shorten(error)})") from error
    names = [one.name for one in session.get_outputs()]
    for name, ours, theirs in zip(names, expected, found, strict=True):
        _compare(f"{what}, {name}, {len(ours)} samples", ours, theirs)
    return expected


def _compare(what: str, ours: Tensor, theirs: np.ndarray[Any, Any]) -> None:
    other = torch.from_numpy(theirs)
    if ours.shape != other.shape:
        raise ExportError(f"net: {what}: the ONNX file gives {tuple(other.shape)}, the network {tuple(ours.shape)}")
    if not is_close(other, ours):
        off = (ours.double() - other.double()).abs().max().item()
        raise ExportError(f"net: {what}: the ONNX file is off by {off:.2g}, {TOLERANCE:.0e} of the largest value is allowed")


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Whether tensors are the same but for rounding."""
    if found.shape != expected.shape or not expected.numel():
        return found.shape == expected.shape
    allowed = TOLERANCE * max(expected.double().abs().max().item(), 1.0)
    return bool((found.double() - expected.double()).abs().max().item() <= allowed)
