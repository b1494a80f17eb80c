"""A traced backbone: one mode's graph, with the place at which every named module has its output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx


@dataclass
class TracedGraph:
    """One mode's graph: nodes in order of execution, and the node at which each named module has its output.

    Attributes:
        graph: one placeholder for each input; targets are names in the backbone, or in ``extras``.
        outputs: by name of the modules that run once.
        repeated: how often the others run (their names cannot say which time is meant), and where they last have an output.
        extras: constants that tracing made, by target.
        exported: traced by torch.export: for the example's size only (any batch).
    """

    graph: fx.Graph
    outputs: dict[str, fx.Node]
    repeated: dict[str, tuple[int, fx.Node | None]] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    exported: bool = False

    def __post_init__(self) -> None:
        self._places = {node: i for i, node in enumerate(self.graph.nodes)}

    def position(self, node: fx.Node) -> int:
        """Place of a node in the order of execution."""
        return self._places[node]

    @property
    def inputs(self) -> list[fx.Node]:
        """The placeholders, in the order of the inputs."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def returned(self) -> fx.Node:
        """The logits (once :func:`~exitlens.model.cutting.looking.look` has found them among what the backbone returns)."""
        node: Any = list(self.graph.nodes)[-1].args[0]
        assert isinstance(node, fx.Node)
        return node

    def name_of(self, node: fx.Node) -> str | None:
        """The shortest module name that means this node's place."""
        names = [name for name, output in self.outputs.items() if output is node]
        return min(names, key=lambda name: (name.count("."), len(name))) if names else None
