"""Tracing by torch.export: a graph of ATen operations, each of which knows the module that it came from."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from exitlens.model.cutting.graph import TracedBackbone
from exitlens.model.cutting.logits import pick_logits
from exitlens.model.cutting.modes import preserve_state, switch_mode
from exitlens.types.inputs import Inputs, list_input_names, list_tensors

_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")
_PREFIX = "backbone."


class _LogitsOnly(nn.Module):
    """Calls the backbone with its inputs by name and returns its logits alone."""

    def __init__(self, backbone: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Inputs -> logits ``(B,C)``."""
        named = dict(zip(self.names, tensors, strict=True)) if self.names else {}
        logits: Tensor = pick_logits(self.backbone(**named) if named else self.backbone(*tensors))
        return logits


def trace_export(backbone: nn.Module, training: bool, example: Inputs) -> TracedBackbone:
    """Traces by torch.export with a dynamic batch axis; raises whatever export raises.

    Parameters and buffers are the backbone's own, by name. Operations that only check shapes are left out.
    """
    tensors = tuple(torch.cat([t, t])[:2] for t in list_tensors(example))  # a batch of 1 would be taken as constant
    batch = torch.export.Dim("batch", min=2, max=1 << 20)
    with preserve_state(backbone), switch_mode(backbone, True), switch_mode(backbone, training), _quiet():
        program = torch.export.export(
            _LogitsOnly(backbone, list_input_names(example)),
            tensors,
            dynamic_shapes=(tuple({0: batch} for _ in tensors),),
            strict=False,
        )
    return _convert(program, backbone, example, "train" if training else "eval")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch.export, which prints its graph where it fails; the error says what matters.

    It also warns of the lists in which recurrent layers of PyTorch's own keep their weights.
    """
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"The tensor attributes? .*\._flat_weights", UserWarning)
            yield
    finally:
        logger.setLevel(before)


def _convert(program: torch.export.ExportedProgram, backbone: nn.Module, example: Inputs, mode: str) -> TracedBackbone:
    """The program's graph, in which parameters are attributes of the backbone instead of inputs."""
    graph, extras = fx.Graph(), dict[str, Any]()
    copies: dict[fx.Node, fx.Node] = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    names = iter(list_input_names(example))
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                copies[node] = graph.placeholder(next(names, node.name))
            else:
                copies[node] = graph.get_attr(_attribute(program, spec, mode, extras))
        elif node.op == "get_attr":
            target = f"_{node.target}_{mode}".replace(".", "_")
            extras[target] = getattr(program.graph_module, str(node.target))
            copies[node] = graph.get_attr(target)
        elif node.op == "output":
            kinds = [spec.kind for spec in program.graph_signature.output_specs]
            graph.output(copies[node.args[0][kinds.index(OutputKind.USER_OUTPUT)]])
        elif not any(check in str(node.target) for check in _CHECKS):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    outputs, repeated = _module_outputs(program.graph)
    last_nodes = {name: copies[node] for name, node in outputs.items()}
    again = {name: (count, None if node is None else copies[node]) for name, (count, node) in repeated.items()}
    return TracedBackbone(backbone, example, graph, last_nodes, again, extras, exported=True)


def _attribute(program: torch.export.ExportedProgram, spec: Any, mode: str, extras: dict[str, Any]) -> str:
    """The name under which the parameter, buffer or constant of an input is found."""
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        return str(spec.target).removeprefix(_PREFIX)
    name = f"_constant_{len(extras)}_{mode}"
    extras[name] = program.constants[spec.target]
    return name


def _module_outputs(graph: fx.Graph) -> tuple[dict[str, fx.Node], dict[str, tuple[int, fx.Node | None]]]:
    """The last tensor of every module that others use; modules that run more than once are apart, with how often they do."""
    calls: dict[str, set[str]] = {}
    inside: dict[fx.Node, set[str]] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        inside[node] = set()
        for key, (path, _) in stack.items():
            name = path.split("@")[0]
            if name.startswith(_PREFIX):
                calls.setdefault(name.removeprefix(_PREFIX), set()).add(key)
                inside[node].add(name.removeprefix(_PREFIX))
    outputs: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor) and node.op != "placeholder":
            for name in inside[node]:
                if any(name not in inside[user] for user in node.users):
                    outputs[name] = node
    repeated = {name: (len(keys), outputs.pop(name, None)) for name, keys in calls.items() if len(keys) > 1}
    return outputs, repeated
