"""Traces a backbone in one mode: by torch.fx, or where that refuses the control flow, by torch.export for one image size."""

from __future__ import annotations

import inspect
import io
import logging
import operator
import threading
import traceback
import warnings
from collections import Counter
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from exitlens.errors import AttachError, first_line
from exitlens.model.cutting.graph import TracedBackbone, find_name, pick_logits
from exitlens.model.cutting.modes import preserve_state, read_lengths_as_sizes, switch_mode
from exitlens.types.inputs import Inputs, list_input_names, list_tensors

_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range")  # left out of the graph
_PREFIX = "backbone."


def trace(backbone: nn.Module, training: bool, example: Inputs, export: bool = False) -> TracedBackbone:
    """Trace ``backbone`` in one mode by torch.fx, or by torch.export if fx refuses or ``export`` asks for it."""
    parameters = list(inspect.signature(backbone.forward).parameters.values())
    given = list_input_names(example) or tuple(p.name for p in parameters[:1])
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in kinds and p.name not in given]
    if needed:
        raise AttachError(
            f"backbone: its forward also needs {needed}, which the example does not have. Fix: pass an example by name "
            f"({{{', '.join(repr(n) for n in (*given, *needed))}: ...}}), or give these arguments defaults"
        )
    tracer, refused = FxTracer(example), None
    with read_lengths_as_sizes(backbone):
        if not export:
            try:
                return trace_fx(backbone, training, tracer)
            except Exception as error:  # fx raises whatever the user's forward raises on a Proxy
                refused = error
        try:
            return trace_export(backbone, training, example)
        except AttachError:
            raise
        except Exception as error:  # torch.export has many error classes of its own
            raise AttachError(_describe_refusal(backbone, training, tracer, refused or error, error)) from error


def _describe_refusal(backbone: nn.Module, training: bool, tracer: FxTracer, first: Exception, second: Exception) -> str:
    module = tracer.running[-1] if tracer.running else ""
    place = f"in module {module!r} ({type(backbone.get_submodule(module)).__name__})" if module else "in its own forward"
    home = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(first.__traceback__) if not f.filename.startswith((home, "<"))]
    frames = [f for f in frames if "exitlens" not in Path(f.filename).parts]  # the last is in the user's code
    line = f", line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
    done = [name for name in tracer.outputs if tracer.calls[name] == 1 and not name.startswith(f"{module}.")]
    neighbours = [str(find_name(tracer.outputs[name], tracer.outputs)) for name in done[-1:]] + [module]
    cuts = f"; the nearest cuts, once that is done: {', '.join(map(repr, neighbours))}" if module else ""
    return (
        f"backbone {type(backbone).__name__} cannot be traced in {'training' if training else 'evaluation'} mode: {place}"
        f"{line}, torch.fx says {first_line(first)!r} and torch.export {first_line(second)!r}. What runs for a sample "
        "may not depend on the values in its batch, because exits route each sample alone. Fix: write the choice as "
        f"torch.where or torch.cond{cuts}"
    )


class FxTracer(fx.Tracer):
    """torch.fx's tracer, for the example's inputs and this thread only; it remembers which node each module returned."""

    proxy_buffer_attributes = True  # changes of a buffer (a count of batches) belong to the graph, not to tracing

    def __init__(self, example: Inputs) -> None:
        super().__init__()
        self.example, self.thread = example, threading.get_ident()
        self.outputs: dict[str, fx.Node] = {}
        self.calls: Counter[str] = Counter()
        self.running: list[str] = []  # the modules that are being traced; after an error, those it came from

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Return placeholders for the inputs, and defaults for the arguments before and between them."""
        parameters = inspect.signature(self.root.forward).parameters
        names = list(parameters)
        wanted = list_input_names(self.example) or names[:1]
        proxies = {name: self.create_proxy("placeholder", name, (), {}) for name in wanted}
        if absent := [name for name in wanted if name not in names]:
            raise TypeError(f"its forward has no argument {absent[0]!r}")
        reach = max(map(names.index, wanted)) + 1
        return root_fn, [self.root, *(proxies.get(name, parameters[name].default) for name in names[:reach])]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Return what a module's attribute is in the graph."""
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace the call and remember which node holds the module's output."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        self.running.append(name)
        out = super().call_module(m, forward, args, kwargs)
        self.running.pop()
        self.calls[name] += 1
        if isinstance(out, fx.Proxy):
            self.outputs[name] = out.node
        return out


def trace_fx(backbone: nn.Module, training: bool, tracer: FxTracer) -> TracedBackbone:
    """Trace by torch.fx (the training flag is baked into the graph); raises whatever fx or the forward raises."""
    before = set(vars(backbone))
    with preserve_state(backbone):
        with switch_mode(backbone, True), switch_mode(backbone, training):  # in training, modules forget what they cached
            graph = tracer.trace(backbone)
        constants = {name: vars(backbone)[name] for name in set(vars(backbone)) - before}  # fx hangs them on the module
    renamed = {name: f"{name}_{'train' if training else 'eval'}" for name in constants}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in renamed:
            node.target = renamed[node.target]
    output = list(graph.nodes)[-1]
    returned = output.args[0]
    if isinstance(returned, fx.Node) and callable(returned.target) and hasattr(returned.target, "_fields"):
        output.args = (returned.target(*returned.args, **returned.kwargs),)  # a named tuple of nodes
        graph.erase_node(returned)
    elif isinstance(returned, fx.Node) and isinstance(returned.target, type):
        raise TypeError(f"its output is a {returned.target.__name__}, which torch.fx does not look into")
    for node in reversed(list(graph.nodes)):  # parts of a tuple that nothing uses
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)
    repeated = {name: (count, tracer.outputs.get(name)) for name, count in tracer.calls.items() if count > 1}
    outputs = {name: node for name, node in tracer.outputs.items() if name not in repeated}
    extras = {renamed[name]: value for name, value in constants.items()}
    return TracedBackbone(backbone, tracer.example, graph, outputs, repeated, extras)


class _LogitsOnly(nn.Module):
    """Calls the backbone with its inputs by name and returns its logits alone."""

    def __init__(self, backbone: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, *tensors: Tensor) -> Tensor:
        named = dict(zip(self.names, tensors, strict=True)) if self.names else {}
        return cast(Tensor, pick_logits(self.backbone(**named) if named else self.backbone(*tensors)))


def trace_export(backbone: nn.Module, training: bool, example: Inputs) -> TracedBackbone:
    """Trace by torch.export with a dynamic batch axis; raises whatever export raises."""
    tensors = tuple(torch.cat([t, t])[:2] for t in list_tensors(example))  # a batch of 1 would be taken as constant
    batch = torch.export.Dim("batch", min=2, max=1 << 20)
    wrapped, shapes = _LogitsOnly(backbone, list_input_names(example)), (tuple({0: batch} for _ in tensors),)
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    with ExitStack() as stack, preserve_state(backbone), switch_mode(backbone, True), switch_mode(backbone, training):
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)  # where torch.export fails, it prints its graph
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", r"The tensor attributes? .*\._flat_weights", UserWarning)  # of PyTorch's own RNNs
        program = torch.export.export(wrapped, tensors, dynamic_shapes=shapes, strict=False)
    return _convert(program, backbone, example, "train" if training else "eval")


def _convert(program: torch.export.ExportedProgram, backbone: nn.Module, example: Inputs, mode: str) -> TracedBackbone:
    """Rewrite the program's graph so that parameters are attributes of the backbone instead of inputs."""
    graph, extras = fx.Graph(), dict[str, Any]()
    copies: dict[fx.Node, fx.Node] = {}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    names = iter(list_input_names(example))
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT:
                copies[node] = graph.placeholder(next(names, node.name))
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                copies[node] = graph.get_attr(str(spec.target).removeprefix(_PREFIX))
            else:
                target = f"_constant_{len(extras)}_{mode}"
                extras[target] = program.constants[str(spec.target)]
                copies[node] = graph.get_attr(target)
        elif node.op == "get_attr":
            target = f"_{node.target}_{mode}".replace(".", "_")
            extras[target] = getattr(program.graph_module, str(node.target))
            copies[node] = graph.get_attr(target)
        elif node.op == "output":
            kinds = [spec.kind for spec in program.graph_signature.output_specs]
            graph.output(copies[node.args[0][kinds.index(OutputKind.USER_OUTPUT)]])
        elif not any(check in str(node.target) for check in _CHECKS):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    outputs, calls = _find_module_outputs(program.graph)
    last_nodes = {name: copies[node] for name, node in outputs.items() if calls[name] == 1}
    repeated = {name: (n, copies[outputs[name]] if name in outputs else None) for name, n in calls.items() if n > 1}
    return TracedBackbone(backbone, example, graph, last_nodes, repeated, extras, exported=True)


def _find_module_outputs(graph: fx.Graph) -> tuple[dict[str, fx.Node], dict[str, int]]:
    """Return the last tensor of every module that other modules use, and how often every module runs, by name."""
    calls: dict[str, set[str]] = {}
    inside: dict[fx.Node, set[str]] = {}
    for node in graph.nodes:
        inside[node] = set()
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            name = path.split("@")[0]
            if name.startswith(_PREFIX):
                calls.setdefault(name.removeprefix(_PREFIX), set()).add(key)
                inside[node].add(name.removeprefix(_PREFIX))
    outputs: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor) and node.op != "placeholder":
            outputs |= {name: node for name in inside[node] if any(name not in inside[user] for user in node.users)}
    return outputs, {name: len(keys) for name, keys in calls.items()}
