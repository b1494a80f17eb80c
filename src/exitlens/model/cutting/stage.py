"""A stage: the part of a backbone between two exits, as a module that runs alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from exitlens.model._torch_compat import list_member_tables

Activations = tuple[Tensor, ...]


class Stage(nn.Module):
    """Computes the tensors that cross one cut, the features first, from those that cross the cut before it.

    It holds one graph for each mode, because a trace bakes the training flag in; both use the backbone's own members.
    """

    def __init__(self, training_graph: fx.GraphModule, evaluation_graph: fx.GraphModule) -> None:
        super().__init__()
        _merge(training_graph, evaluation_graph)
        for table in ("_modules", "_parameters", "_buffers"):  # one set of members for both graphs
            evaluation_graph.__dict__[table] = training_graph.__dict__[table]
        self.body = training_graph
        # not registered: its members are those of `body`, so state_dict and parameters see each of them once
        self.__dict__["evaluation_body"] = evaluation_graph

    def forward(self, *activations: Tensor) -> Activations:
        """Return the tensors that cross the cut after the stage."""
        return cast(Activations, (self.body if self.training else self.evaluation)(*activations))

    @property
    def evaluation(self) -> fx.GraphModule:
        """The graph of evaluation mode, over the same members."""
        return cast(fx.GraphModule, self.__dict__["evaluation_body"])

    def replace_evaluation(self, graph: fx.GraphModule) -> None:
        """Set another graph for evaluation mode, with members of its own."""
        self.__dict__["evaluation_body"] = graph

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # what to(), cuda() and so on call
        moved: Any = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        for body in (self.body, self.evaluation):
            _retarget(body, device)
        return moved


def _retarget(body: fx.GraphModule, device: torch.device) -> None:
    """Make the graph's own tensors on ``device`` instead of the example's, which torch.export writes into the graph."""
    replaced: set[torch.device] = set()

    def retarget(value: Any) -> Any:
        if not isinstance(value, torch.device) or value == device:
            return value
        replaced.add(value)
        return device

    for node in body.graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, retarget), map_aggregate(node.kwargs, retarget)
    if replaced:
        body.recompile()


def _merge(into: nn.Module, other: nn.Module) -> None:
    """Add the members that only the other mode's graph uses."""
    for name, parameter in other.named_parameters(recurse=False):
        into.register_parameter(name, parameter)
    for name, buffer in other.named_buffers(recurse=False):
        into.register_buffer(name, buffer)
    for name, module in other.named_children():
        member = list_member_tables(into)[0].get(name)
        if member is None:
            into.add_module(name, module)
        elif member is not module:  # both are containers that fx made
            _merge(member, module)
