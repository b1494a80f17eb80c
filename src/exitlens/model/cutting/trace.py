"""Traces a backbone in one mode, by torch.fx or torch.export: its graph, its modules' outputs, and what running it shows."""

from __future__ import annotations

import inspect
import io
import operator
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from exitlens.errors import AttachError, first_line
from exitlens.model._torch_compat import FAKE_TENSOR, is_mutating_operation, keeps_shape, use_fake_tensors
from exitlens.model.cutting.modes import mute, preserve_state, read_lengths_as_sizes, switch_mode
from exitlens.types.inputs import Inputs, list_input_names, list_tensors

_IN_PLACE = ("iadd", "imul", "isub", "itruediv", "ipow", "imod", "iand", "ior", "ixor", "setitem")
_RANDOM = ("rand", "bernoulli", "dropout", "normal", "uniform", "exponential", "multinomial")
_RECURRENT = ("gru", "lstm", "rnn_")
_SMALL = 1e10  # parameters times numbers in the inputs; fake tensors take about a millisecond for each operation
ShapeOf = Callable[[Any], tuple[int, ...] | None]


class TraceMismatchError(AttachError):
    """The traced graph does not compute what the backbone computes."""


@dataclass(frozen=True)
class NodeValues:
    """Facts about the value at every node, from running the graph with two samples and with three."""

    shapes: dict[fx.Node, tuple[int, ...]]  # of the tensors, with two samples
    dtypes: dict[fx.Node, torch.dtype]
    batched: set[fx.Node]  # tensors whose first axis, and no other, grows with the batch
    sizes: set[fx.Node]  # integers that are the number of samples
    dataless: set[fx.Node]  # made from parameters, constants and the number of samples: any stage can compute them
    logits: fx.Node  # among what the backbone returns


@dataclass(eq=False)
class TracedBackbone:
    """One mode's graph of a backbone. It runs, to see what its nodes compute, when that is first asked for."""

    backbone: nn.Module  # the graph's targets are names in it, or in `extras`
    example: Inputs
    graph: fx.Graph
    last_nodes: dict[str, fx.Node]  # what each module returns that runs once, by name
    repeated: dict[str, tuple[int, fx.Node | None]] = field(default_factory=dict)  # the others: how often, the last output
    extras: dict[str, Any] = field(default_factory=dict)  # constants that tracing made, by target
    exported: bool = False  # by torch.export: for the example's size only, with any number of samples

    def __post_init__(self) -> None:
        self.nodes: list[fx.Node] = list(self.graph.nodes)  # in order of execution; the last is the output
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]  # in the order of the example's
        self._positions = {node: i for i, node in enumerate(self.nodes)}

    @cached_property
    def values(self) -> NodeValues:
        """Facts from running the graph; raises :class:`AttachError` if the example does not fit or no logits come out."""
        module, tensors = self.runnable(), list_tensors(self.example)
        with preserve_state(self.backbone), switch_mode(module, False), torch.no_grad():  # some operations write to buffers
            two, three = (run_fake(Recorder, module, [torch.cat([t] * 3)[:count] for t in tensors]) for count in (2, 3))
        dataless: set[fx.Node] = set()
        batched = {n for n, shape in two.shapes.items() if shape[:1] == (2,) and three.shapes.get(n) == (3, *shape[1:])}
        sizes = {n for n, value in two.integers.items() if value == 2 and three.integers.get(n) == 3}
        for node in self.nodes:
            repeatable = node.op.startswith("call") and not self._is_random(node) and not self.is_in_place(node)
            if node.op == "get_attr" or node in sizes or (repeatable and dataless.issuperset(node.all_input_nodes)):
                dataless.add(node)
        returned: Any = self.nodes[-1].args[0]
        logits = pick_logits(returned, lambda value: two.shapes.get(value) if isinstance(value, fx.Node) else None)
        return NodeValues(two.shapes, two.dtypes, batched, sizes, dataless, logits)

    @property
    def is_dense(self) -> bool:
        """True if the backbone answers each pixel: its logits are ``(B,C,H,W)``."""
        return len(self.shape_of(self.values.logits)) == 4

    def has_same_graph(self, other: TracedBackbone) -> bool:
        """Return whether the other mode's graph is the same, without constants of its own, so that one serves both."""
        listed, expected = ([(n.op, n.name, n.target, repr(n.args), repr(n.kwargs)) for n in t.nodes] for t in (self, other))
        return listed == expected and not self.extras and not other.extras

    @cached_property
    def outputs(self) -> dict[str, fx.Node]:
        """The output nodes of the modules that run once; for a tuple (recurrent layers), its first element."""
        outputs = dict[str, fx.Node]()
        for name, node in self.last_nodes.items():
            firsts = [user for user in node.users if get_callee_name(user) == "getitem" and user.args[1] == 0]
            outputs[name] = firsts[0] if firsts and node not in self.values.shapes else node
        return outputs

    def position(self, node: fx.Node) -> int:
        """Return the place of a node in the order of execution."""
        return self._positions[node]

    def name_of(self, node: fx.Node) -> str | None:
        """Return the shortest module name that means this node."""
        return find_name(node, self.outputs)

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of a tensor for two samples; empty for other values."""
        return self.values.shapes.get(node, ())

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        return self.backbone.get_submodule(str(node.target)) if node.op == "call_module" else None

    def find_member(self, target: str) -> Any:
        """Return the module, parameter, buffer or constant that a node's target names."""
        return self.extras[target] if target in self.extras else attrgetter(target)(self.backbone)

    def list_parents(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes that a node is computed from: none for the number of samples, the logits for the output."""
        if node.op == "output":
            return [self.values.logits]
        return [] if node in self.values.sizes else list(node.all_input_nodes)

    def is_in_place(self, node: fx.Node) -> bool:
        """Return whether a node changes its first argument."""
        module, name = self.module_of(node), get_callee_name(node)
        if module is not None:
            return bool(getattr(module, "inplace", False))
        if (mutating := is_mutating_operation(node.target)) is not None:
            return mutating
        return bool(node.kwargs.get("inplace", False)) or name in _IN_PLACE or name.endswith("_")

    def _is_random(self, node: fx.Node) -> bool:
        if (module := self.module_of(node)) is not None:
            return any("Drop" in type(m).__name__ for m in module.modules())
        return any(word in get_callee_name(node) for word in _RANDOM)

    def list_members(self, graph: fx.Graph) -> dict[str, Any]:
        """Return the modules, parameters, buffers and constants that a graph uses, by target."""
        members: dict[str, Any] = {}
        for target in (str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")):
            try:
                members[target] = self.find_member(target)
            except AttributeError as error:
                raise AttachError(
                    f"backbone: its first forward makes {target!r}, which is not there yet. Fix: run one batch through it"
                ) from error
        return members

    def runnable(self, graph: fx.Graph | None = None) -> fx.GraphModule:
        """Return the whole graph, or another over the same targets, as a module with the backbone's own parameters."""
        graph = self.graph if graph is None else graph
        return fx.GraphModule(self.list_members(graph), graph)


def get_callee_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    return getattr(node.target, "__name__", str(node.target))


def find_name(node: fx.Node, outputs: Mapping[str, fx.Node]) -> str | None:
    """Return the shortest of the names whose module has its output at this node."""
    names = [name for name, output in outputs.items() if output is node]
    return min(names, key=lambda name: (name.count("."), len(name))) if names else None


class Interpreter(fx.Interpreter):
    """Runs a graph node by node; functions get lists they may write to, and fake tensors skip slow batch normalisations."""

    def call_function(self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the function returns."""
        thawed = {name: _thaw(value) for name, value in kwargs.items()}
        return super().call_function(target, tuple(map(_thaw, args)), thawed)

    def call_module(self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the module returns."""
        is_fake = len(args) == 1 and not kwargs and isinstance(args[0], FAKE_TENSOR)
        if is_fake and keeps_shape(self.fetch_attr(str(target)), args[0]):
            return torch.empty_like(args[0])
        return super().call_module(target, args, kwargs)


def _thaw(value: Any) -> Any:
    return [_thaw(item) for item in value] if isinstance(value, list) else value


class Recorder(Interpreter):
    """Runs a graph and keeps every tensor's shape and dtype, and every integer."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes = dict[fx.Node, tuple[int, ...]]()
        self.integers, self.dtypes = dict[fx.Node, int](), dict[fx.Node, torch.dtype]()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and keep what is known of its value."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n], self.dtypes[n] = tuple(value.shape), value.dtype
        elif isinstance(value, int):
            self.integers[n] = int(value)
        return value


Run = TypeVar("Run", bound=Interpreter)


def _is_quick(module: fx.GraphModule, tensors: Sequence[Tensor]) -> bool:
    """Return whether a real run takes less time than one by fake tensors: of a small network, or of recurrent layers."""
    called = (get_callee_name(node) for node in module.graph.nodes if node.op == "call_function")
    if any(isinstance(m, nn.RNNBase) for m in module.modules()) or any(n.startswith(_RECURRENT) for n in called):
        return True
    return sum(t.numel() for t in tensors) * sum(p.numel() for p in module.parameters()) <= _SMALL


def run_fake(make: Callable[[fx.GraphModule], Run], module: fx.GraphModule, tensors: Sequence[Tensor]) -> Run:
    """Run a graph by fake tensors, or for real where an operation refuses these, or they would take longer."""
    if not _is_quick(module, tensors):
        try:
            interpreter = make(module)
            with use_fake_tensors() as fake:
                interpreter.run(*map(fake.from_tensor, tensors))
            return interpreter
        except Exception:  # an operation without a fake implementation, or a wrong example: a real run tells which
            pass
    return run_real(make, module, tensors)


def run_real(make: Callable[[fx.GraphModule], Run], module: fx.GraphModule, tensors: Sequence[Tensor]) -> Run:
    """Run a graph for real; raise :class:`AttachError` if it fails on the tensors."""
    interpreter = make(module)
    try:
        with torch.random.fork_rng(devices=[]):
            interpreter.run(*(t.clone() for t in tensors))  # an operation may change its input
    except Exception as error:  # any operation of the user's network may refuse the shape
        shapes = " and ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors)
        raise AttachError(
            f"example: the backbone fails on an input of shape {shapes}: {first_line(error)}. Fix: pass an example of the "
            "size and channels that the backbone takes"
        ) from error
    return interpreter


def pick_logits(
    output: Any, shape: ShapeOf = lambda value: tuple(value.shape) if isinstance(value, Tensor) else None
) -> Any:
    """Return the logits among a forward's results: the tensor, the field ``logits`` or ``out``, or the only one they can be.

    They are ``(B,C)``, or ``(B,C,H,W)`` of a network that answers each pixel; torchvision's return a dict with ``out``.
    """
    named = getattr(output, "logits", None)
    if isinstance(output, Mapping):
        named = output.get("logits", output.get("out"))
    chosen = output if named is None else named
    if named is None and isinstance(output, Mapping | tuple | list):
        parts = list(output.values() if isinstance(output, Mapping) else output)
        matrices = [part for part in parts if len(shape(part) or ()) == 2] or [p for p in parts if len(shape(p) or ()) == 4]
        if len(matrices) != 1:
            raise AttachError(
                f"backbone: its forward returns {_describe_output(output, shape)}, of which {len(matrices)} could be the "
                "logits (B,C). Fix: return the logits alone, or a dict or named tuple with the field 'logits'"
            )
        chosen = matrices[0]
    size = shape(chosen)
    if size is None or len(size) not in (2, 4):
        raise AttachError(
            "backbone: expected logits (B,C), a row for each sample, or (B,C,H,W), for each pixel; its forward returns "
            f"{_describe_output(output, shape)}. Fix: return the logits, or a dict with 'logits'"
        )
    return chosen


def _describe_output(output: Any, shape: ShapeOf) -> str:
    def describe(value: Any) -> str:
        size = shape(value)
        return type(value).__name__ if size is None else f"a tensor {size}"

    if isinstance(output, Mapping):
        return "a dict of " + ", ".join(f"{name!r}: {describe(value)}" for name, value in output.items())
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of " + (", ".join(map(describe, output)) or "nothing")
    return describe(output)


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
        f"torch.where or torch.cond, or remove it if it is an early exit{cuts}"
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
    """Trace by torch.fx (the training flag is baked into the graph); raise whatever fx or the forward raises."""
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
    """Trace by torch.export with a dynamic batch axis; raise whatever export raises."""
    tensors = tuple(torch.cat([t, t])[:2] for t in list_tensors(example))  # a batch of 1 would be taken as constant
    batch = torch.export.Dim("batch", min=2, max=1 << 20)
    wrapped, shapes = _LogitsOnly(backbone, list_input_names(example)), (tuple({0: batch} for _ in tensors),)
    with ExitStack() as stack, preserve_state(backbone), switch_mode(backbone, True), switch_mode(backbone, training):
        stack.enter_context(mute("torch.fx.experimental.symbolic_shapes"))  # where torch.export fails, it prints its graph
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
