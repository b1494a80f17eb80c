"""A backbone traced in one mode: its graph, where each named module has its output, and what running it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from exitlens.errors import AttachError
from exitlens.model._torch_compat import is_fake, is_mutating_operation, use_fake_tensors
from exitlens.model.cutting.modes import preserve_state, switch_mode
from exitlens.types.inputs import Inputs, list_tensors

Shape = Callable[[Any], tuple[int, ...] | None]


def _get_shape(value: Any) -> tuple[int, ...] | None:
    """Shape of a tensor; ``None`` for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else None


def pick_logits(output: Any, shape: Shape = _get_shape) -> Any:
    """The logits ``(B,C)`` among what a forward returned: the tensor, the field ``logits``, or the one matrix there is.

    Named tuples of torchvision (GoogLeNet, Inception: auxiliary outputs in training) and the outputs of transformers have
    the field; a plain dict or tuple may hold other things, but one matrix only. Anything else is an :class:`AttachError`.
    """
    chosen = _choose(output, shape)
    found = shape(chosen)
    if found is None or len(found) != 2:
        raise AttachError(
            f"backbone: expected logits (B,C), a row for each sample; its forward returns {_describe_output(output, shape)}"
            + (_MAP_MEND if found is not None and len(found) > 2 else ". Mend: return the logits, or a dict with 'logits'")
        )
    return chosen


_MAP_MEND = (
    " (a map, as of an encoder-decoder with skips such as U-Net). Mend: exits classify whole samples, so make a classifier "
    "of the encoder: its last features, pooled, and a linear layer"
)


def _choose(output: Any, shape: Shape) -> Any:
    if isinstance(output, Mapping):
        if output.get("logits") is not None:
            return output["logits"]
        parts = list(output.values())
    elif getattr(output, "logits", None) is not None:
        return output.logits
    elif isinstance(output, tuple | list):
        parts = list(output)
    else:
        return output
    matrices = [part for part in parts if len(shape(part) or ()) == 2]
    if len(matrices) != 1:
        raise AttachError(
            f"backbone: its forward returns {_describe_output(output, shape)}, of which {len(matrices)} could be the logits "
            "(B,C). Mend: return the logits alone, or a dict or named tuple with the field 'logits'"
        )
    return matrices[0]


def _describe_output(output: Any, shape: Shape) -> str:
    def describe(value: Any) -> str:
        found = shape(value)
        return type(value).__name__ if found is None else f"a tensor {found}"

    if isinstance(output, Mapping):
        return "a dict of " + ", ".join(f"{name!r}: {describe(value)}" for name, value in output.items())
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of " + (", ".join(map(describe, output)) or "nothing")
    return describe(output)


_IN_PLACE = ("iadd", "imul", "isub", "itruediv", "ipow", "imod", "iand", "ior", "ixor", "setitem")
_RANDOM = ("rand", "bernoulli", "dropout", "normal", "uniform", "exponential", "multinomial")


@dataclass(frozen=True)
class NodeValues:
    """What is known of the value at every node, from running the graph with two samples and with three.

    Attributes:
        shapes: of the tensors, with two samples. dtypes: of the tensors.
        batched: tensors whose first axis, and no other, grows with the batch.
        sizes: integers that are the number of samples.
        dataless: depend on parameters, constants and the number of samples only, so that any stage can compute them.
        logits: the node of the logits among what the backbone returns.
    """

    shapes: dict[fx.Node, tuple[int, ...]]
    dtypes: dict[fx.Node, torch.dtype]
    batched: set[fx.Node]
    sizes: set[fx.Node]
    dataless: set[fx.Node]
    logits: fx.Node


@dataclass(eq=False)
class TracedBackbone:
    """One mode's graph of a backbone. It runs, to see what its nodes compute, when that is first asked for.

    Attributes:
        backbone: the graph's targets are names in it, or in ``extras``.
        example: inputs that the backbone takes.
        graph: one placeholder for each input; nodes in order of execution.
        last_nodes: of the modules that run once, by name: the node that the module returns.
        repeated: for each other module, how often it runs, and where it last has an output; its name does not say which run
            is meant.
        extras: constants that tracing made, by target.
        exported: traced by torch.export: for the example's size only, with any number of samples.
    """

    backbone: nn.Module
    example: Inputs
    graph: fx.Graph
    last_nodes: dict[str, fx.Node]
    repeated: dict[str, tuple[int, fx.Node | None]] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    exported: bool = False

    def __post_init__(self) -> None:
        self.nodes: list[fx.Node] = list(self.graph.nodes)  # the last is the output
        self._positions = {node: i for i, node in enumerate(self.nodes)}

    @cached_property
    def values(self) -> NodeValues:
        """What running the graph shows; raises :class:`AttachError` if the example does not fit or no logits come out."""
        module = self.runnable()
        with preserve_state(self.backbone):  # fake tensors or not, some operations write to its buffers
            two, three = _record(module, self.example, 2, 3)
        dataless: set[fx.Node] = set()
        batched = {n for n, shape in two.shapes.items() if shape[:1] == (2,) and three.shapes.get(n) == (3, *shape[1:])}
        sizes = {n for n, value in two.integers.items() if value == 2 and three.integers.get(n) == 3}
        for node in self.nodes:
            repeatable = node.op.startswith("call") and not self._is_random(node) and not self.is_in_place(node)
            if node.op == "get_attr" or node in sizes or (repeatable and dataless.issuperset(node.all_input_nodes)):
                dataless.add(node)
        return NodeValues(two.shapes, two.dtypes, batched, sizes, dataless, self._find_logits(two.shapes))

    def share_values(self, other: TracedBackbone) -> None:
        """Takes over what running the other mode's graph has shown, if that graph is this one, node by node.

        Graphs run in evaluation mode, of whichever mode they are.
        """
        if self.extras or other.extras or self.example is not other.example or "values" not in vars(other):
            return
        if list(map(_describe, self.nodes)) != list(map(_describe, other.nodes)):
            return
        mine, theirs = dict(zip(other.nodes, self.nodes, strict=True)), other.values
        shapes, dtypes = {mine[n]: v for n, v in theirs.shapes.items()}, {mine[n]: v for n, v in theirs.dtypes.items()}
        batched, sizes, dataless = ({mine[n] for n in known} for known in (theirs.batched, theirs.sizes, theirs.dataless))
        self.values = NodeValues(shapes, dtypes, batched, sizes, dataless, mine[theirs.logits])

    def _find_logits(self, shapes: dict[fx.Node, tuple[int, ...]]) -> fx.Node:
        returned: Any = self.nodes[-1].args[0]
        try:
            logits: fx.Node = pick_logits(returned, lambda value: shapes.get(value) if isinstance(value, fx.Node) else None)
        except AttachError as error:
            if not isinstance(returned, fx.Node) or len(shapes.get(returned, ())) <= 2:
                raise
            sizes = {n: math.prod(shapes[n][2:]) for n in self.nodes if len(shapes.get(n, ())) == 4}
            named = [find_name(n, self.last_nodes) for n, size in sizes.items() if size == min(sizes.values())]
            hint = next((f" (the smallest maps are after {name!r})" for name in reversed(named) if name), "")
            raise AttachError(f"{error}{hint}") from error  # the encoder ends where maps are smallest
        return logits

    @cached_property
    def outputs(self) -> dict[str, fx.Node]:
        """Where the modules that run once have their output; of a tuple (recurrent layers), it is the first element."""
        found = dict[str, fx.Node]()
        for name, node in self.last_nodes.items():
            firsts = [user for user in node.users if get_callee_name(user) == "getitem" and user.args[1] == 0]
            found[name] = firsts[0] if firsts and node not in self.values.shapes else node
        return found

    @property
    def inputs(self) -> list[fx.Node]:
        """The placeholders, in the order of the inputs."""
        return [node for node in self.nodes if node.op == "placeholder"]

    def position(self, node: fx.Node) -> int:
        """Place of a node in the order of execution."""
        return self._positions[node]

    def name_of(self, node: fx.Node) -> str | None:
        """The shortest module name that means this node."""
        return find_name(node, self.outputs)

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a tensor for two samples; empty for other values."""
        return self.values.shapes.get(node, ())

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if it calls one."""
        return self.backbone.get_submodule(str(node.target)) if node.op == "call_module" else None

    def constant_of(self, node: fx.Node) -> Any:
        """The parameter or constant that a node stands for; ``None`` for what is computed."""
        return self._find(str(node.target)) if node.op == "get_attr" else None

    def _find(self, target: str) -> Any:
        return self.extras[target] if target in self.extras else attrgetter(target)(self.backbone)

    def list_parents(self, node: fx.Node) -> list[fx.Node]:
        """What a node is computed from; nothing for the number of samples, and only the logits for the output."""
        if node.op == "output":
            return [self.values.logits]
        return [] if node in self.values.sizes else list(node.all_input_nodes)

    def is_in_place(self, node: fx.Node) -> bool:
        """Whether a node changes its first argument."""
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
        """The modules, parameters, buffers and constants that a graph uses, by target."""
        members: dict[str, Any] = {}
        for target in (str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")):
            try:
                members[target] = self._find(target)
            except AttributeError as error:
                made = f"its first forward makes {target!r}, which is not there yet"
                raise AttachError(f"backbone: {made}: run one batch through it") from error
        return members

    def runnable(self, graph: fx.Graph | None = None) -> fx.GraphModule:
        """The whole graph, or another over the same targets, as a module with the backbone's own parameters."""
        graph = self.graph if graph is None else graph
        return fx.GraphModule(self.list_members(graph), graph)


def get_callee_name(node: fx.Node) -> str:
    """Name of the function or method that a node calls."""
    return getattr(node.target, "__name__", str(node.target))


def find_name(node: fx.Node, outputs: Mapping[str, fx.Node]) -> str | None:
    """The shortest of the names whose module has its output at this node."""
    names = [name for name, output in outputs.items() if output is node]
    return min(names, key=lambda name: (name.count("."), len(name))) if names else None


def _describe(node: fx.Node) -> tuple[Any, ...]:
    return node.op, node.name, node.target, repr(node.args), repr(node.kwargs)


class Interpreter(fx.Interpreter):
    """Runs a graph; fake tensors go round the normalisations, whose own way to an equal shape is long.

    Functions get lists that they may write to, as they do where the graph's code runs.
    """

    def call_function(self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the function returns."""
        thawed = {name: _thaw(value) for name, value in kwargs.items()}
        return super().call_function(target, tuple(map(_thaw, args)), thawed)

    def call_module(self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module returns."""
        if len(args) == 1 and not kwargs and is_fake(args[0]) and _keeps_shape(self.fetch_attr(str(target)), args[0]):
            return torch.empty_like(args[0])
        return super().call_module(target, args, kwargs)


def _thaw(value: Any) -> Any:
    return [_thaw(one) for one in value] if isinstance(value, list) else value


def _keeps_shape(module: nn.Module, x: Tensor) -> bool:
    """Whether it is a plain batch normalisation that takes ``x``."""
    if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return False
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    module._check_input_dim(x)
    known = [t for t in (module.weight, module.bias, module.running_mean, module.running_var) if t is not None]
    plain = not module._forward_hooks and not module._forward_pre_hooks
    return plain and x.shape[1] == module.num_features and all(t.dtype == x.dtype for t in known)


class _Recorder(Interpreter):
    """Runs a graph and keeps every tensor's shape and dtype, and every integer."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes = dict[fx.Node, tuple[int, ...]]()
        self.integers, self.dtypes = dict[fx.Node, int](), dict[fx.Node, torch.dtype]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n], self.dtypes[n] = tuple(value.shape), value.dtype
        elif isinstance(value, int):
            self.integers[n] = int(value)
        return value


def _record(module: fx.GraphModule, example: Inputs, *counts: int) -> list[_Recorder]:
    """Runs a graph in evaluation mode, without computing if its operations allow it (fake tensors): once for each count."""
    recorders = list[_Recorder]()
    fake = use_fake_tensors()
    with switch_mode(module, False), torch.no_grad():
        for count in counts:
            tensors = [torch.cat([t] * max(counts))[:count] for t in list_tensors(example)]
            if is_recurrent(module):
                recorders.append(run_graph(module, tensors))
                continue
            try:
                recorder = _Recorder(module)
                with fake:
                    recorder.run(*[fake.from_tensor(t) for t in tensors])
            except Exception:  # an operation without a fake implementation, or a wrong example: a real run tells
                recorder = run_graph(module, tensors)
            recorders.append(recorder)
    return recorders


def is_recurrent(module: fx.GraphModule) -> bool:
    """Whether it has recurrent layers, which take fake tensors longer than real ones: step by step, each operation alone."""
    names = (get_callee_name(node) for node in module.graph.nodes if node.op == "call_function")
    return any(isinstance(m, nn.RNNBase) for m in module.modules()) or any(
        n.startswith(("gru", "lstm", "rnn_")) for n in names
    )


def run_graph(module: fx.GraphModule, tensors: Sequence[Tensor]) -> _Recorder:
    """Runs a graph for real; raises :class:`AttachError` if it fails on the tensors."""
    recorder = _Recorder(module)
    try:
        recorder.run(*tensors)
    except Exception as error:  # any operation of the user's network may refuse the shape
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        shapes = " and ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors)
        raise AttachError(
            f"example: the backbone fails on an input of shape {shapes}: {reason}. Mend: pass an example of the size and "
            "channels that the backbone takes"
        ) from error
    return recorder
