"""Stages in 8-bit integers: static quantisation of their files, weights per channel, activations by samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exitlens.errors import ExportError, import_extra
from exitlens.model.engine.onnx.files import Written, import_onnx, open_file, shorten

Feed = dict[str, "np.ndarray[Any, Any]"]
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter says which module a node is of


@dataclass
class _Reader:
    """Samples as ONNX Runtime's calibration takes them: one batch after the other."""

    feeds: Iterator[Feed]

    def get_next(self) -> Feed | None:
        """The next batch; ``None`` at the end."""
        return next(self.feeds, None)


def quantise_files(files: Sequence[Written], batches: Sequence[Mapping[str, Any]], directory: Path) -> list[Written]:
    """Writes each file again, its convolutions and the backbone's linear layers in int8 (QDQ, arXiv 1712.05877).

    Attention, classifiers and all else stay in float32. Each stage sees what the quantised stages before it give.

    Args:
        files: of all stages, in order.
        batches: samples as the first stage takes them, by name; not those that a certificate rests on.
        directory: of the new files, which have the names of the old ones.

    Raises:
        ExportError: where a stage cannot be quantised.
    """
    tools = import_extra("onnxruntime.quantization", "onnx", "int8")
    feeds = [{name: np.asarray(value) for name, value in batch.items()} for batch in batches]
    found = []
    for file in files:
        known = {one.name for one in open_file(file.path).get_inputs()}
        reader = _Reader(iter([{name: value for name, value in feed.items() if name in known} for feed in feeds]))
        path = directory / file.path.name
        try:
            prepared = directory / f".{file.path.name}"
            tools.shape_inference.quant_pre_process(str(file.path), str(prepared), skip_symbolic_shape=True)
            tools.quantize_static(
                str(prepared),
                str(path),
                reader,
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                nodes_to_quantize=list_quantised(prepared),
                extra_options={"QuantizeBias": True},
            )
        except Exception as error:  # of many kinds
            raise ExportError(f"net: exit {file.exit} cannot be quantised ({shorten(error)})") from error
        prepared.unlink()
        session, outputs = open_file(path), list(file.outputs[2:])
        if outputs:
            runs = [session.run(outputs, {n: v for n, v in feed.items() if n in known}) for feed in feeds]
            feeds = [dict(zip(outputs, run, strict=True)) for run in runs]
        found.append(file._replace(path=path))
    return found


def list_quantised(path: Path) -> list[str]:
    """Names of the nodes that run in int8: convolutions, and products with weights in the backbone."""
    graph = import_onnx().load(path).graph
    weights = {one.name for one in graph.initializer}
    names = []
    for node in graph.node:
        scopes = next((one.value for one in node.metadata_props if one.key == SCOPES), "")
        is_linear = node.op_type in ("MatMul", "Gemm") and node.input[1] in weights and "bodies." in scopes
        if node.op_type == "Conv" or is_linear:
            names.append(node.name)
    return names
