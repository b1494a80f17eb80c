"""Tracing a backbone, once per mode: by torch.fx where it can, by torch.export where fx refuses the control flow."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path

import torch
from torch import nn

from exitlens.errors import AttachError
from exitlens.model.cutting.graph import TracedBackbone, find_name
from exitlens.model.cutting.modes import read_lengths_as_sizes
from exitlens.model.cutting.trace_export import trace_export
from exitlens.model.cutting.trace_fx import FxTracer, trace_fx
from exitlens.types.inputs import Inputs, list_input_names


def trace(backbone: nn.Module, training: bool, example: Inputs, export: bool = False) -> TracedBackbone:
    """Traces ``backbone`` in one mode by torch.fx, or by torch.export if fx refuses (or ``export`` asks for it).

    Raises :class:`AttachError` if neither can follow the forward pass (control flow that depends on data, for example).
    """
    _check_forward(backbone, example)
    with read_lengths_as_sizes(backbone):
        return _trace(backbone, training, example, export)


def _trace(backbone: nn.Module, training: bool, example: Inputs, export: bool) -> TracedBackbone:
    tracer = FxTracer(example)
    refused: Exception | None = None
    if not export:
        try:
            return trace_fx(backbone, training, tracer)
        except Exception as error:  # fx raises whatever the user's forward raises on a Proxy
            refused = error
    try:
        return trace_export(backbone, training, example)
    except AttachError:
        raise
    except Exception as error:  # torch.export has many kinds of its own
        raise AttachError(_describe_refusal(backbone, training, tracer, refused or error, error)) from error


def _check_forward(backbone: nn.Module, example: Inputs) -> None:
    """Raises :class:`AttachError` if the forward needs an argument that the example does not have."""
    parameters = list(inspect.signature(backbone.forward).parameters.values())
    given = list_input_names(example) or tuple(p.name for p in parameters[:1])
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in kinds and p.name not in given]
    if needed:
        raise AttachError(
            f"backbone: its forward also needs {needed}, which the example does not have: pass an example by name "
            f"({{{', '.join(repr(n) for n in (*given, *needed))}: ...}}), or give them defaults"
        )


def _describe_refusal(backbone: nn.Module, training: bool, tracer: FxTracer, first: Exception, second: Exception) -> str:
    """What neither tracer could follow, where it is, and where an exit could be."""
    module = tracer.running[-1] if tracer.running else ""
    place = f"in module {module!r} ({type(backbone.get_submodule(module)).__name__})" if module else "in its own forward"
    line = _find_user_line(first)
    why = str(second).strip().split("\n", maxsplit=1)[0]
    text = (
        f"backbone {type(backbone).__name__} cannot be traced in {'training' if training else 'evaluation'} mode: {place}"
        f"{line}, torch.fx says {str(first).strip().splitlines()[0]!r} and torch.export {why!r}. What a sample runs may not "
        "depend on the values in its batch, because exits route each sample alone. Mend: write the choice as torch.where or "
        "torch.cond"
    )
    near = _list_names_around(backbone, training, tracer, module) if module else []
    return text + (f"; the nearest cuts, once that is done: {', '.join(map(repr, near))}" if near else "")


def _list_names_around(backbone: nn.Module, training: bool, failed: FxTracer, module: str) -> list[str]:
    """The module names right before and after a module that cannot be looked into."""
    tracer = FxTracer(failed.example, leaf=module)
    try:
        traced = trace_fx(backbone, training, tracer)
    except Exception:
        return []
    if module not in traced.last_nodes:
        return []
    place = traced.position(traced.last_nodes[module])
    earlier = [name for node in traced.nodes[:place] if (name := find_name(node, traced.last_nodes))]
    return [*earlier[-1:], module]


def _find_user_line(error: BaseException) -> str:
    """``, line 12 of net.py``: the last line of the traceback that is the user's."""
    home = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((home, "<"))]
    frames = [f for f in frames if "exitlens" not in Path(f.filename).parts]
    return f", line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
