"""A backbone traced in one mode: its graph, where each named module has its output, and what running it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from exitlens.errors import AttachError, first_line
from exitlens.model._torch_compat import FAKE_TENSOR, is_mutating_operation, keeps_shape, use_fake_tensors
from exitlens.model.cutting.modes import preserve_state, switch_mode
from exitlens.types.inputs import Inputs, list_tensors

_IN_PLACE = ("iadd", "imul", "isub", "itruediv", "ipow", "imod", "iand", "ior", "ixor", "setitem")
_RANDOM = ("rand", "bernoulli", "dropout", "normal", "uniform", "exponential", "multinomial")
_RECURRENT = ("gru", "lstm", "rnn_")
ShapeOf = Callable[[Any], tuple[int, ...] | None]


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
        try:
            logits = pick_logits(returned, lambda value: two.shapes.get(value) if isinstance(value, fx.Node) else None)
        except AttachError as error:
            if not isinstance(returned, fx.Node) or len(two.shapes.get(returned, ())) <= 2:
                raise
            areas = {n: math.prod(shape[2:]) for n, shape in two.shapes.items() if len(shape) == 4}
            named = [find_name(n, self.last_nodes) for n, area in areas.items() if area == min(areas.values())]
            hint = next((f" (the smallest maps are after {name!r})" for name in reversed(named) if name), "")
            raise AttachError(f"{error}{hint}") from error  # the encoder ends where maps are smallest
        return NodeValues(two.shapes, two.dtypes, batched, sizes, dataless, logits)

    def share_values(self, other: TracedBackbone) -> None:
        """Take over the other mode's values if the graphs are the same: both run in evaluation mode."""
        if self.extras or other.extras or self.example is not other.example or "values" not in vars(other):
            return
        graphs = (self.nodes, other.nodes)
        listed, expected = ([(n.op, n.name, n.target, repr(n.args), repr(n.kwargs)) for n in nodes] for nodes in graphs)
        if listed != expected:
            return
        same, known = dict(zip(other.nodes, self.nodes, strict=True)), other.values
        shapes, dtypes = {same[n]: v for n, v in known.shapes.items()}, {same[n]: v for n, v in known.dtypes.items()}
        batched, sizes, dataless = ({same[n] for n in nodes} for nodes in (known.batched, known.sizes, known.dataless))
        self.values = NodeValues(shapes, dtypes, batched, sizes, dataless, same[known.logits])

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

    def constant_of(self, node: fx.Node) -> Any:
        """Return the parameter or constant that a node stands for; ``None`` if the node computes something."""
        return self._find(str(node.target)) if node.op == "get_attr" else None

    def _find(self, target: str) -> Any:
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
                members[target] = self._find(target)
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


def run_fake(make: Callable[[fx.GraphModule], Run], module: fx.GraphModule, tensors: Sequence[Tensor]) -> Run:
    """Run a graph by fake tensors, or for real where an operation refuses these, or recurrent layers make them slow."""
    called = (get_callee_name(node) for node in module.graph.nodes if node.op == "call_function")
    if not any(isinstance(m, nn.RNNBase) for m in module.modules()) and not any(n.startswith(_RECURRENT) for n in called):
        try:
            interpreter = make(module)
            with use_fake_tensors() as fake:
                interpreter.run(*map(fake.from_tensor, tensors))
            return interpreter
        except Exception:  # an operation without a fake implementation, or a wrong example: a real run tells which
            pass
    return run_real(make, module, tensors)


def run_real(make: Callable[[fx.GraphModule], Run], module: fx.GraphModule, tensors: Sequence[Tensor]) -> Run:
    """Run a graph for real; raises :class:`AttachError` if it fails on the tensors."""
    interpreter = make(module)
    try:
        interpreter.run(*tensors)
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
    """Return the logits ``(B,C)`` among a forward's results: the tensor, the field ``logits``, or the only matrix."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    chosen = output if named is None else named
    if named is None and isinstance(output, Mapping | tuple | list):
        parts = output.values() if isinstance(output, Mapping) else output
        matrices = [part for part in parts if len(shape(part) or ()) == 2]
        if len(matrices) != 1:
            raise AttachError(
                f"backbone: its forward returns {_describe_output(output, shape)}, of which {len(matrices)} could be the "
                "logits (B,C). Fix: return the logits alone, or a dict or named tuple with the field 'logits'"
            )
        chosen = matrices[0]
    size = shape(chosen)
    if size is None or len(size) != 2:
        fix = ". Fix: return the logits, or a dict with 'logits'"
        if len(size or ()) > 2:
            fix = (
                " (a map, as of an encoder-decoder with skips such as U-Net). Fix: exits classify whole samples, so make a "
                "classifier of the encoder: its last features, pooled, and a linear layer"
            )
        returned = _describe_output(output, shape)
        raise AttachError(f"backbone: expected logits (B,C), a row for each sample; its forward returns {returned}{fix}")
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
