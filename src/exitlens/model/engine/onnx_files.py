"""ONNX files of a network's parts: written for any number of samples, compared with PyTorch, and run in its process."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.dlpack import from_dlpack

from exitlens.errors import EngineError, ExportError, first_line, import_extra
from exitlens.functional.routing import needs_head
from exitlens.model.cutting.modes import mute
from exitlens.model.cutting.split import Activations, Stage
from exitlens.model.engine.engine import Asked, Engine, Step
from exitlens.model.engine.tuning import Tuning, prepare_graph, prepare_head
from exitlens.model.heads import ExitHead
from exitlens.types import Policy

OPSET = 18
OF_HEAD = LOGITS, ATTENTION, SUPPORT = "logits", "attention", "support"  # outputs of a file, before what crosses the cut
BATCHES = (1, 2, 3, 17, 64)  # sizes at which exported files are compared with PyTorch; size 0 crashes some (MaxViT's)
COMPARED = (1, 2, 9)  # the same for files of an engine
ATTENTION_CALLS = (functional.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
TOLERANCE = 1e-4  # relative to a tensor's largest absolute value


def import_onnx() -> Any:
    """Import ``onnx`` and the packages that writing needs; raise :class:`MissingExtraError`."""
    import_extra("onnxscript", "onnx", "writing ONNX files")
    import_extra("onnxruntime", "onnx", "comparing ONNX files with the network")
    return import_extra("onnx", "onnx", "writing ONNX files")


class Segment(nn.Module):
    """Stages up to an exit, and its head: activations -> what is ``OF_HEAD`` and, before the final exit, activations."""

    def __init__(self, bodies: Sequence[fx.GraphModule], head: ExitHead, exit_: int, is_last: bool) -> None:
        super().__init__()
        self.bodies, self.head = nn.ModuleList(bodies), head
        self.exit, self.is_last = exit_, is_last

    def forward(self, *activations: Tensor) -> Activations:
        """Return ``(B,C)`` logits, ``(B,*S)`` attention, ``(B,3)`` support, and what crosses the next cut."""
        for body in self.bodies:
            activations = body(*activations)
        outputs = self.head.with_support(*activations)
        return outputs if self.is_last else (*outputs, *activations)


def cut_segments(stages: Sequence[Stage], heads: Sequence[ExitHead], policy: Policy) -> list[Segment]:
    """Copy the network in float32, batch normalisation folded, as one segment for each exit that can answer.

    Stages whose exit can never fire join the next segment, because ONNX Runtime computes all outputs of a file.
    """
    segments, bodies, tuning = list[Segment](), list[fx.GraphModule](), Tuning(folded=True)
    with torch.inference_mode(False):
        for k, (stage, head) in enumerate(zip(stages, heads, strict=True)):
            bodies.append(prepare_graph(stage.evaluation, tuning).float())
            if needs_head(policy, k):
                segments.append(Segment(bodies, prepare_head(head, tuning).float(), k, k == len(heads) - 1).eval())
                bodies = []
    return segments


class Home:
    """A temporary directory, which exists as long as this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="exitlens-"))
        self.finalizer = weakref.finalize(self, self._remove, self.path, os.getpid())

    @staticmethod
    def _remove(path: Path, process: int) -> None:
        if os.getpid() == process:  # not in a process that was forked from the one that made it
            shutil.rmtree(path, ignore_errors=True)


class Written(NamedTuple):
    """The file of a segment."""

    path: Path
    exit: int
    inputs: Sequence[str]  # names of its tensors
    outputs: Sequence[str]  # those of the head come first
    map_shape: Sequence[int]  # the attention's shape without the batch axis
    offset: Sequence[float] = ()  # how far the map is off its cells, along each axis
    home: Home | None = None  # the directory, if that is to exist as long as the file is used

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, without the directory."""
        names = {"inputs": list(self.inputs), "outputs": list(self.outputs), "map_shape": list(self.map_shape)}
        return {"file": self.path.name, "exit": self.exit} | names

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], directory: Path, home: Home | None = None) -> Written:
        """Inverse of :meth:`to_dict`; raises :class:`KeyError` or :class:`TypeError` for anything else."""
        names = {name: tuple(values[name]) for name in ("inputs", "outputs", "map_shape")}
        return cls(directory / str(values["file"]), int(values["exit"]), **names, home=home)


def write_segments(
    directory: Path, segments: Sequence[Segment], examples: Mapping[int, Activations], names: Sequence[str]
) -> list[Written]:
    """Write ``stage_0.onnx`` and so on; ``examples`` are samples by batch size, 2 included, of the tensors ``names``."""
    files, batches = list[Written](), examples
    for place, segment in enumerate(segments):
        path, known, k = directory / f"stage_{place}.onnx", list(OF_HEAD), segment.exit
        outputs, expected = write_module(segment, batches, path, names, known, f"features_{k}", f"exit {k}")
        files.append(Written(path, segment.exit, names, outputs, tuple(expected[2][1].shape[1:])))
        first = len(OF_HEAD)
        names, batches = outputs[first:], {size: tensors[first:] for size, tensors in expected.items()}
    return files


def write_module(
    module: nn.Module,
    batches: Mapping[int, Activations],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    rest: str,
    part: str,
) -> tuple[list[str], dict[int, Activations]]:
    """Write a module (``*tensors`` -> a tuple of tensors) for any number of samples; compare the two on all ``batches``.

    ``inputs`` and ``outputs`` name the tensors; further outputs are called ``rest``, with a number. ``part`` names the
    module in errors. Returns the names of all outputs, and the module's outputs by batch size. Raises :class:`ExportError`
    where the module cannot be exported for any number of samples, or the file gives something else.
    """
    with torch.inference_mode():
        expected: dict[int, Activations] = {size: module(*batch) for size, batch in batches.items()}
    names = [*outputs, *(f"{rest}_{i}" for i in range(len(expected[2]) - len(outputs)))]
    activations = tuple(t.clone() for t in batches[2])  # two samples: with one, torch.export would fix the batch size
    try:
        with warnings.catch_warnings(), mute("onnxscript"), torch.no_grad(), _FlatAttention():  # of what it cannot simplify
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                activations,
                input_names=list(inputs),
                output_names=names,
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=(tuple({0: torch.export.Dim.DYNAMIC} for _ in activations),),
                optimize=True,
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except Exception as error:  # torch.export and the ONNX exporter raise errors of many kinds
        raise ExportError(f"net: {part} cannot be written as ONNX ({shorten(error)})") from error
    graph = import_onnx().load(path, load_external_data=False).graph
    for value in (*graph.input, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if not dimensions or not dimensions[0].dim_param:
            raise ExportError(f"net: {part}: the number of samples of {value.name!r} is fixed in its ONNX file")
    session = open_file(path)
    for size, batch in batches.items():
        try:
            feed = {name: t.numpy() for name, t in zip(inputs, batch, strict=True)}
            results = session.run(names, {value.name: feed[value.name] for value in session.get_inputs()})
        except Exception as error:
            raise ExportError(f"net: {part}: its ONNX file does not run ({shorten(error)})") from error
        for name, wanted, output in zip(names, expected[size], map(torch.from_numpy, results), strict=True):
            tensor = f"net: {part}, {name}, {size} samples"
            if wanted.shape != output.shape:
                raise ExportError(f"{tensor}: the ONNX file gives {tuple(output.shape)}, the network {tuple(wanted.shape)}")
            if not is_close(output, wanted):
                off = (wanted.double() - output.double()).abs().max().item()
                raise ExportError(
                    f"{tensor}: the ONNX file is off by {off:.2g}; allowed is {TOLERANCE:.0e} of the largest value"
                )
    return names, expected


class _FlatAttention(TorchFunctionMode):
    """Flattens several axes of groups (windows) before attention, because the exporter supports four axes only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_masked = (args[3] if len(args) > 3 else kwargs.get("attn_mask")) is not None
        if func not in ATTENTION_CALLS or len(args) < 3 or args[0].ndim <= 4 or is_masked:
            return func(*args, **kwargs)
        query, key, value = (t.flatten(0, -4) for t in args[:3])
        return func(query, key, value, *args[3:], **kwargs).unflatten(0, args[0].shape[:-3])


def shorten(error: Exception) -> str:
    """Return the class and first line of the error that caused this one."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"[:200]


def open_file(path: Path, threads: int = 1) -> Any:
    """Open a session of ONNX Runtime on the CPU; its threads wait as in exitlens-runtime (sessions.py)."""
    runtime = import_extra("onnxruntime", "onnx", "running ONNX files")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4  # failures are raised
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "10")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"{path.name}: ONNX Runtime cannot open the file that was written ({shorten(error)})") from error


def is_close(output: Tensor, expected: Tensor) -> bool:
    """Return whether tensors are the same up to rounding."""
    if output.shape != expected.shape or not expected.numel():
        return output.shape == expected.shape
    allowed = TOLERANCE * max(expected.double().abs().max().item(), 1.0)
    return bool((output.double() - expected.double()).abs().max().item() <= allowed)


class OnnxFile:
    """An ONNX file, run on as many threads as PyTorch has at the call. Threads may share it.

    ``inputs`` and ``outputs`` name its tensors; ``home`` is its directory, if that is to exist as long as this object.
    """

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str], home: Home | None = None) -> None:
        self.path, self.inputs, self.outputs, self.home = path, inputs, outputs, home
        self._sessions = dict[int, tuple[Any, frozenset[str]]]()
        self._wrap = import_extra(
            "onnxruntime", "onnx", "backend='onnx' (net.tuning = exitlens.Tuning() goes without)"
        ).OrtValue.from_dlpack

    @classmethod
    def write(cls, module: nn.Module, example: Activations, part: str) -> Self:
        """Write a module as a file, with :func:`write_module`; ``example`` is one sample of each tensor."""
        import_onnx()
        home, names = Home(), [f"input_{i}" for i in range(len(example))]
        outputs, _ = write_module(module, draw_batches(example), home.path / "module.onnx", names, (), "output", part)
        return cls(home.path / "module.onnx", names, outputs, home)

    def __call__(self, activations: Activations) -> list[Tensor]:
        """Return every output; raise :class:`EngineError` where ONNX Runtime cannot run the file."""
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


def draw_batches(example: Activations) -> dict[int, Activations]:
    """Return batches by size: noise for floats, other tensors repeated; ``example`` is one sample."""
    rng, batches = torch.Generator().manual_seed(0), dict[int, Activations]()
    for n in COMPARED:
        draw = partial(torch.randn, n, generator=rng)
        batches[n] = tuple(draw(*t.shape[1:]) if t.is_floating_point() else t.repeat_interleave(n, 0) for t in example)
    return batches


class OnnxEngine(Engine):
    """Answers with ONNX files: one for each exit that can answer, with everything since the previous file's exit.

    Heads are part of the files, so their cost is paid even at exits that are only passed. Evidence maps come from
    ``stages`` and ``heads``, in PyTorch.
    """

    def __init__(
        self, files: Sequence[Written], tuning: Tuning, stages: Sequence[Any] = (), heads: Sequence[ExitHead] = ()
    ) -> None:
        super().__init__(stages, heads, tuning)
        self.files = files
        self.opened = {file.exit: OnnxFile(file.path, file.inputs, file.outputs, file.home) for file in files}
        self.exits = tuple(self.opened)

    def run_stage(self, k: int, activations: Activations) -> Activations:
        """Run stage k alone; nothing runs if it is part of a later file."""
        return tuple(self.opened[k](activations)[len(OF_HEAD) :]) if k in self.opened else activations

    def run_step(self, k: int, activations: Activations, asked: Asked) -> Step:
        """Run stage k and the head of exit k, with support as the file has them."""
        logits, maps, support, *crossing = self.opened[k](activations)
        return tuple(crossing), logits, None if asked == "logits" else maps, support if asked == "support" else None

    def compute_logits(self, k: int, activations: Activations) -> Tensor:  # -> (B,C)
        """Return the logits of exit k; no later stage runs."""
        for i in range(k):
            activations = self.run_stage(i, activations)
        return self.opened[k](activations)[0]


def build_engine(
    stages: Sequence[Stage], heads: Sequence[ExitHead], tuning: Tuning, example: Activations, files: Sequence[Written] = ()
) -> Engine:
    """Make an engine on copies of stages and heads in the tuning's form, with its backend.

    ``example`` is one sample; ``files`` of these weights are used if they answer here as the network does. With ONNX
    Runtime, raises :class:`EngineError` unless the network is in float32 on the CPU and can be written as ONNX.
    """
    if tuning.precision == "int8":
        raise EngineError("tuning: the int8 files hold other weights. Fix: call exitlens.export_int8 again.")
    for t in (*example, *heads[0].parameters()) if tuning.backend == "onnx" else ():
        if t.device.type != "cpu" or (t.is_floating_point() and t.dtype is not torch.float32):
            raise EngineError(
                f"tuning: backend='onnx' is for networks in float32 on the CPU, got {t.dtype} on {t.device}. Fix: set "
                "net.tuning = Tuning() to use PyTorch."
            )
    plain = Engine.prepare(stages, heads, tuning)
    if tuning.backend == "torch":
        return plain
    batches = draw_batches(example)
    if files:
        engine = OnnxEngine(files, tuning, plain.stages, plain.heads)
        with engine.mode(), suppress(ExportError, EngineError):  # perhaps written by another version of ONNX Runtime
            exits = zip(engine.compute_outputs(batches[2]), plain.compute_outputs(batches[2]), strict=True)
            if all(is_close(*tensors) for outputs in exits for tensors in zip(*outputs, strict=True)):
                return engine
    import_onnx()
    home = Home()
    try:
        segments = cut_segments(stages, heads, Policy((0.0,) * (len(heads) - 1)))
        written = write_segments(home.path, segments, batches, [f"input_{i}" for i in range(len(example))])
    except ExportError as error:
        raise EngineError(
            f"tuning: this network does not run with backend='onnx' ({error}). Fix: set backend='torch'."
        ) from error
    return OnnxEngine([file._replace(home=home) for file in written], tuning, plain.stages, plain.heads)
