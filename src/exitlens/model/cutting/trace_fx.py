"""Tracing by torch.fx: modules stay modules, and images may have other sizes than the example."""

from __future__ import annotations

import inspect
import operator
import threading
from collections import Counter
from typing import Any

from torch import fx, nn

from exitlens.model.cutting.graph import TracedBackbone
from exitlens.model.cutting.modes import preserve_state, switch_mode
from exitlens.types.inputs import Inputs, list_input_names


class FxTracer(fx.Tracer):
    """torch.fx's tracer with placeholders for the inputs only; it remembers which node each module returned.

    The example has inputs by the names of the forward's arguments, or one tensor for its first; others keep their defaults.
    ``leaf`` names a module not to look into.
    """

    proxy_buffer_attributes = True  # a forward that changes a buffer (counts batches) does so in the graph, not while traced

    def __init__(self, example: Inputs, leaf: str | None = None) -> None:
        super().__init__()
        self.example, self.leaf, self.thread = example, leaf, threading.get_ident()
        self.outputs: dict[str, fx.Node] = {}
        self.calls: Counter[str] = Counter()
        self.running: list[str] = []  # the modules that are being traced; after an error, those it came from

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one node of the graph."""
        return module_qualified_name == self.leaf or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Placeholders for the inputs; the arguments before and between them keep their defaults."""
        parameters = inspect.signature(self.root.forward).parameters
        names = list(parameters)
        wanted = list_input_names(self.example) or names[:1]
        proxies = {name: self.create_proxy("placeholder", name, (), {}) for name in wanted}
        if absent := [name for name in wanted if name not in names]:
            raise TypeError(f"its forward has no argument {absent[0]!r}")
        reach = max(map(names.index, wanted)) + 1
        return root_fn, [self.root, *(proxies.get(name, parameters[name].default) for name in names[:reach])]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """What a module's attribute is in the graph; torch.fx asks for modules of other threads, too, which keep theirs."""
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Traces the call and remembers where the module has its output; other threads' calls run as they are."""
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
    """Traces by torch.fx (the training flag is baked into the graph); raises whatever fx or the forward raises."""
    before = set(vars(backbone))
    with preserve_state(backbone):
        with switch_mode(backbone, True), switch_mode(backbone, training):  # training, modules forget what they cached
            graph = tracer.trace(backbone)
        constants = {name: vars(backbone)[name] for name in set(vars(backbone)) - before}  # fx hangs them on the module
    renamed = {name: f"{name}_{'train' if training else 'eval'}" for name in constants}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in renamed:
            node.target = renamed[node.target]
    _unpack_output(graph)
    for node in reversed(list(graph.nodes)):  # parts of a tuple that nothing uses
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)
    repeated = {name: (count, tracer.outputs.get(name)) for name, count in tracer.calls.items() if count > 1}
    outputs = {name: node for name, node in tracer.outputs.items() if name not in repeated}
    extras = {renamed[name]: value for name, value in constants.items()}
    return TracedBackbone(backbone, tracer.example, graph, outputs, repeated, extras)


def _unpack_output(graph: fx.Graph) -> None:
    """Lets the graph return a named tuple of nodes instead of a node that makes the named tuple."""
    output = list(graph.nodes)[-1]
    returned = output.args[0]
    if isinstance(returned, fx.Node) and callable(returned.target) and hasattr(returned.target, "_fields"):
        output.args = (returned.target(*returned.args, **returned.kwargs),)
        graph.erase_node(returned)
    elif isinstance(returned, fx.Node) and isinstance(returned.target, type):
        raise TypeError(f"its output is a {returned.target.__name__}, which torch.fx does not look into")
