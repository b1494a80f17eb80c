"""What a traced graph shows when it runs: shapes, what is one row a sample, what depends on no data."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from exitlens.errors import AttachError
from exitlens.model.cutting.graph import TracedGraph
from exitlens.model.cutting.logits import pick_logits
from exitlens.model.cutting.modes import preserve_state, switch_mode
from exitlens.types.inputs import Inputs, list_tensors

_RANDOM = ("rand", "bernoulli", "dropout", "normal", "uniform", "exponential", "multinomial")


@dataclass(frozen=True)
class Seen:
    """What the values at the nodes are, by node name, from runs with two and with three samples.

    Attributes:
        shapes: of tensors, with two samples. dtypes: of tensors.
        batched: tensors whose first axis, and no other, is the batch's.
        sizes: integers that are the number of samples.
        dataless: nodes that depend on parameters, constants and the number of samples only: any stage can make them anew.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    batched: frozenset[str]
    sizes: frozenset[str]
    dataless: frozenset[str]


class _Values(fx.Interpreter):
    """Runs a graph and keeps every tensor's shape and every integer."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes, self.integers = dict[str, tuple[int, ...]](), dict[str, int]()
        self.dtypes: dict[str, torch.dtype] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n.name], self.dtypes[n.name] = tuple(value.shape), value.dtype
        elif isinstance(value, int):
            self.integers[n.name] = int(value)
        return value


def runnable(backbone: nn.Module, traced: TracedGraph) -> fx.GraphModule:
    """The whole graph as a module over the backbone's own parameters."""
    return fx.GraphModule(members(backbone, traced, traced.graph), traced.graph)


def members(backbone: nn.Module, traced: TracedGraph, graph: fx.Graph) -> dict[str, Any]:
    """The modules, parameters, buffers and constants that a graph uses, by target."""
    found: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            try:
                found[target] = traced.extras[target] if target in traced.extras else operator.attrgetter(target)(backbone)
            except AttributeError as error:
                raise AttachError(
                    f"backbone: its first forward makes {target!r}, which is not there yet: run one batch through it first"
                ) from error
    return found


def look(backbone: nn.Module, traced: TracedGraph, example: Inputs) -> Seen:
    """Runs the graph on two and on three samples, without computing if the operations allow it (fake tensors).

    Then the graph returns the logits alone; auxiliary outputs are still computed, as in the plain backbone.

    Raises:
        AttachError: if the network refuses the example, or returns no logits.
    """
    module = runnable(backbone, traced)
    with preserve_state(backbone):  # fake tensors or not, some operations write to them
        two, three = (_values(module, example, count) for count in (2, 3))
    output = list(traced.graph.nodes)[-1]
    try:
        logits = pick_logits(output.args[0], lambda v: two.shapes.get(v.name) if isinstance(v, fx.Node) else None)
    except AttachError as error:
        is_map = len(two.shapes.get(getattr(output.args[0], "name", ""), ())) > 2
        raise AttachError(f"{error}{_encoder_end(traced, two.shapes) if is_map else ''}") from error
    output.args = (logits,)
    batched = {name for name, shape in two.shapes.items() if shape[:1] == (2,) and three.shapes.get(name) == (3, *shape[1:])}
    sizes = {name for name, value in two.integers.items() if value == 2 and three.integers.get(name) == 3}
    dataless: set[str] = set()
    for node in traced.graph.nodes:
        free = all(parent.name in dataless for parent in node.all_input_nodes)
        if (
            node.op == "get_attr"
            or node.name in sizes
            or (node.op.startswith("call") and free and not _random(backbone, node) and not in_place(backbone, node))
        ):
            dataless.add(node.name)
    _first_of_tuples(traced, two.shapes)
    return Seen(two.shapes, two.dtypes, frozenset(batched), frozenset(sizes), frozenset(dataless))


def _first_of_tuples(traced: TracedGraph, shapes: dict[str, tuple[int, ...]]) -> None:
    """Where a module returns a tuple (a recurrent one), its first element is what its name means."""
    for name, node in traced.outputs.items():
        users = [user for user in node.users if name_of(user) == "getitem" and user.args[1] == 0]
        if node.name not in shapes and users:
            traced.outputs[name] = users[0]


def _encoder_end(traced: TracedGraph, shapes: dict[str, tuple[int, ...]]) -> str:
    """Where the maps are smallest: the end of the encoder, for a network that returns a map."""
    maps = {node: math.prod(shapes[node.name][2:]) for node in traced.graph.nodes if len(shapes.get(node.name, ())) == 4}
    named = [node for node, size in maps.items() if size == min(maps.values()) and traced.name_of(node)]
    return f" (the smallest maps are after {traced.name_of(named[-1])!r})" if named else ""


def _values(module: fx.GraphModule, example: Inputs, count: int) -> _Values:
    tensors = [torch.cat([t] * 3)[:count] for t in list_tensors(example)]
    with switch_mode(module, False), torch.no_grad():
        try:
            values = _Values(module)
            with FakeTensorMode(allow_non_fake_inputs=True) as fake:
                values.run(*[fake.from_tensor(t) for t in tensors])
            return values
        except Exception:  # an operation without a fake implementation, or an example that does not fit: the run tells
            return run_values(module, tensors)


def run_values(module: fx.GraphModule, tensors: list[Tensor]) -> _Values:
    """Runs a graph for real; raises :class:`AttachError` if it fails on the tensors."""
    values = _Values(module)
    try:
        values.run(*tensors)
    except Exception as error:  # any operation of the user's network may refuse the shape
        where = str(error).strip().split("\n", maxsplit=1)[0]
        shapes = " and ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors)
        raise AttachError(
            f"example: the backbone fails on an input of shape {shapes}: {where}. Mend: pass an example of the size and "
            "channels that the backbone takes"
        ) from error
    return values


def name_of(node: fx.Node) -> str:
    """Name of the function or method that a node calls."""
    return getattr(node.target, "__name__", str(node.target))


_IN_PLACE = ("iadd", "imul", "isub", "itruediv", "ipow", "imod", "iand", "ior", "ixor", "setitem")


def in_place(backbone: nn.Module, node: fx.Node) -> bool:
    """Whether the node changes its first argument."""
    if node.op == "call_module":
        return bool(getattr(backbone.get_submodule(str(node.target)), "inplace", False))
    schema = getattr(node.target, "_schema", None)
    if schema is not None:  # an ATen operation
        return bool(schema.is_mutable)
    name = name_of(node)
    return bool(node.kwargs.get("inplace", False)) or name in _IN_PLACE or name.endswith("_")


def _random(backbone: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any("Drop" in type(m).__name__ for m in backbone.get_submodule(str(node.target)).modules())
    return any(word in name_of(node) for word in _RANDOM)
