"""How a network runs for answers: sizes, formats and precision that do not change what it is, only how fast it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from exitlens.errors import InputError, require

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Tuning:
    """What :meth:`~exitlens.model.network.ExitNet.tune` found, or what you set by hand (``net.tuning = Tuning(...)``).

    Args:
        micro_batch: samples that run through a stage together; 0: all that there are.
        channels_last: images and convolution weights in that memory format.
        precision: ``float32`` leaves the network's own; ``bfloat16`` runs the stages in it (heads and softmax stay).
        folded: batch normalisation folded into the convolutions before it (arXiv 1712.05877, section 3.2).
        threads: of PyTorch while it answers, if the process has that many; 0: as they are.
        keep_memory: from the first answer on the process keeps the memory it has used (:mod:`exitlens.model.malloc`).
        measured: what the choice rests on, for the record.

    Raises:
        InputError: for numbers below 0 or an unknown precision.
    """

    micro_batch: int = 0
    channels_last: bool = False
    precision: str = "float32"
    folded: bool = False
    threads: int = 0
    keep_memory: bool = False
    measured: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("micro_batch", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f"{name}: expected an integer of 0 or more, got {value!r}")
        for name in ("channels_last", "folded", "keep_memory"):
            require(getattr(self, name), bool, name)
        require(self.measured, Mapping, "measured")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision: expected one of {PRECISIONS}, got {self.precision!r}")

    @property
    def changes_weights(self) -> bool:
        """Whether it needs a copy of the weights in another form."""
        return self.channels_last or self.folded or self.precision != "float32"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tuning:
        """Inverse of :meth:`to_dict`."""
        return cls(**values)

    def entering(self, activations: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The tensors that the first stage takes, in this tuning's format and precision."""
        if self.precision == "bfloat16":
            activations = tuple(t.to(torch.bfloat16) if t.is_floating_point() else t for t in activations)
        if self.channels_last:
            activations = tuple(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in activations)
        return activations


def prepare_graph(body: fx.GraphModule, tuning: Tuning) -> fx.GraphModule:
    """A copy of an evaluation graph as the tuning wants it; the original is left as it is."""
    body = copy.deepcopy(body).eval()
    if tuning.folded:
        fold(body)
    if tuning.precision == "bfloat16":
        body = body.to(torch.bfloat16)
    if tuning.channels_last:
        body = body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return body.requires_grad_(False)


def fold(body: fx.GraphModule) -> int:
    """Folds every batch normalisation into the convolution that it alone follows; returns how many there were."""
    modules = dict(body.named_modules())
    calls: dict[str, int] = {}
    for node in body.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    folded = 0
    for node in list(body.graph.nodes):
        if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        before = node.args[0]
        if (
            before.op != "call_module"
            or len(before.users) > 1
            or calls[str(node.target)] > 1
            or calls[str(before.target)] > 1
        ):
            continue
        norm, conv = modules[str(node.target)], modules[str(before.target)]
        if type(norm) is not nn.BatchNorm2d or type(conv) is not nn.Conv2d or norm.running_mean is None:
            continue  # a subclass may do more than its name says
        parent, _, name = str(before.target).rpartition(".")
        modules[str(before.target)] = fuse_conv_bn_eval(conv, norm)
        setattr(body.get_submodule(parent), name, modules[str(before.target)])
        node.replace_all_uses_with(before)
        body.graph.erase_node(node)
        folded += 1
    body.delete_all_unused_submodules()
    body.recompile()
    return folded
