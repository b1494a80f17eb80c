"""export_int8: write an edge bundle in 8-bit integers, with a policy that is calibrated on its own answers."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from exitlens.data.batches import iterate_inputs
from exitlens.edge.export import check_arguments, name_inputs, open_target, write_bundle, write_stages
from exitlens.errors import ExportError, InputError, import_extra
from exitlens.functional.calibration import run_calibration
from exitlens.functional.routing import route
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.onnx_files import OnnxEngine, Written, import_onnx, open_file, shorten
from exitlens.model.engine.tuning import Tuning
from exitlens.model.network import ExitNet
from exitlens.types import Int8Report, Policy
from exitlens.types.settings import SWAPPED
from exitlens.types.tasks import are_same, refuse_task
from exitlens.workflow.collection import collect

SAMPLES, BATCH = 512, 32  # number of samples that set the range of activations, and their batch size
SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's record of the module that a node belongs to


def export_int8(
    net: ExitNet,
    policy: Policy,
    directory: str | Path,
    samples: Any,
    calibration: Any,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Int8Report:
    """Write an edge bundle whose convolutions and linear layers run in int8, and calibrate its policy again.

    Scores change with the weights, so policies of the float32 network are void. A trace is collected from the quantised
    files, and a policy is chosen on it for the same request, temperatures included, certified if the old policy was. The
    bundle has no named policies.

    Args:
        net: a network in float32.
        policy: a calibrated policy of this network.
        directory: a new directory; it appears complete or not at all.
        samples: data whose first 512 samples set the range of activations; not the calibration data.
        calibration: data for the new policy, with labels if the limits need them.
        overwrite: replace an existing edge bundle.
        progress: show a progress bar.

    Raises:
        ExportError: where the network cannot be quantised; also the errors of :func:`exitlens.export` and
            :func:`exitlens.calibrate`.

    Examples:
        >>> policy = xl.calibrate(trace, max_disagreement=0.5)  # int8 is calibrated on the same limits
        >>> report = xl.export_int8(net, policy, "int8", samples=scenes, calibration=scenes)
        >>> len(report.agreement)
        3
    """
    check_arguments(net, policy, directory)
    refuse_task(net.info.task, "net: int8")
    if policy.calibration is None:
        raise InputError(
            "policy: expected a calibrated policy, whose limits int8 is calibrated on, got one made by hand. Fix: use "
            "xl.calibrate."
        )
    request = policy.calibration.request
    if request.max_ms is not None:
        raise InputError("policy: it has limits in milliseconds, which differ in int8. Fix: calibrate one without max_ms.")
    with open_target(directory, overwrite) as temporary:
        before = collect(net, calibration, progress=progress)
        twin, parts = quantise(net, samples, temporary)
        swapped = 0 if request.max_cue_drop is None else SWAPPED
        after = collect(twin, calibration, swapped=swapped, progress=progress)
        chosen = run_calibration(after, request.for_any_network())
        write_bundle(temporary, twin, chosen, parts)
    target, exits = Path(directory).resolve(), (route(before, policy), route(after, chosen))
    first, second = (tuple((taken.bincount(minlength=before.num_exits) / len(taken)).tolist()) for taken in exits)
    agreement = tuple(are_same(before.answers, after.answers, before.task).double().mean(0).tolist())
    if before.labels is None:
        return Int8Report(target, chosen, agreement, None, None, (first, second))
    correct = [trace.correct.double() for trace in (before, after)]
    plain, int8 = (tuple(rows.mean(0).tolist()) for rows in correct)
    old, new = (rows.gather(1, taken[:, None]).mean().item() for rows, taken in zip(correct, exits, strict=True))
    return Int8Report(target, chosen, agreement, (plain, int8), (old, new), (first, second))


def quantise(net: ExitNet, samples: Any, directory: Path) -> tuple[ExitNet, list[Written]]:
    """Write int8 files to ``directory``; return a copy of the network that answers with them, and the files."""
    names, batches, size, count = name_inputs(net), list[Mapping[str, Any]](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        parts = write_stages(Path(folder), net, Policy((0.0,) * (net.num_exits - 1)))
        for batch in iterate_inputs(samples, BATCH):
            tensors = net.check_input(batch, "samples")
            size = size or len(tensors[0])
            if len(tensors[0]) == size:  # ONNX Runtime needs batches of one size, and the last one may be smaller
                batches.append(dict(zip(names, tensors, strict=True)))
            count += len(tensors[0])
            if count >= SAMPLES:
                break
        if not count:
            raise InputError("samples: expected at least one sample, got none. Fix: pass representative samples.")
        files = quantise_files(parts, batches, directory)
    digest = hashlib.sha256(b"".join(file.path.read_bytes() for file in files)).hexdigest()[:8]
    tuning = Tuning(backend="onnx", precision="int8", measured={"files": digest})
    twin = copy.deepcopy(net).eval()
    plain = Engine.prepare(*net.engine.parts, Tuning())
    twin.engine.use(OnnxEngine(files, tuning, plain.stages, plain.heads))
    return twin, files


def quantise_files(files: Sequence[Written], batches: Sequence[Mapping[str, Any]], directory: Path) -> list[Written]:
    """Write each file again with convolutions and the backbone's linear layers in int8 (QDQ, arXiv 1712.05877).

    Weights are quantised per channel, activations by the range in ``batches`` (samples by name, none of a certificate's).
    Attention, classifiers and all else stay in float32. Each stage sees the outputs of the quantised stages before it.
    """
    tools = import_extra("onnxruntime.quantization", "onnx", "int8")
    feeds = [{name: np.asarray(value) for name, value in batch.items()} for batch in batches]
    written = []
    for file in files:
        known = {value.name for value in open_file(file.path).get_inputs()}
        feeds = [{name: value for name, value in feed.items() if name in known} for feed in feeds]
        path, prepared = directory / file.path.name, directory / f".{file.path.name}"
        try:
            tools.shape_inference.quant_pre_process(str(file.path), str(prepared), skip_symbolic_shape=True)
            graph, nodes = import_onnx().load(prepared).graph, []
            weights = {tensor.name for tensor in graph.initializer}
            for node in graph.node:
                scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
                is_linear = node.op_type in ("MatMul", "Gemm") and node.input[1] in weights and "bodies." in scopes
                if node.op_type == "Conv" or is_linear:
                    nodes.append(node.name)
            tools.quantize_static(
                str(prepared),
                str(path),
                SimpleNamespace(get_next=partial(next, iter(feeds), None)),  # a CalibrationDataReader
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                nodes_to_quantize=nodes,
                extra_options={"QuantizeBias": True},
            )
        except Exception as error:  # of many kinds
            raise ExportError(
                f"net: exit {file.exit} cannot be quantised ({shorten(error)}). Fix: use xl.export."
            ) from error
        prepared.unlink()
        session, outputs = open_file(path), list(file.outputs[2:])
        if outputs:
            feeds = [dict(zip(outputs, session.run(outputs, feed), strict=True)) for feed in feeds]
        written.append(file._replace(path=path))
    return written
