"""The optimiser, and what it trains at which share of the learning rate: heads, the body by depth, vectors without decay."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.optim import Optimizer

from exitlens.errors import InputError
from exitlens.model.heads.exit_heads import KeptHead
from exitlens.model.network import ExitNet
from exitlens.workflow.training.step import TrainingSettings, list_trained, select_trainable

# layer1.0 of layer1.0.conv1.weight, layers.2.blocks.5 of layers.2.blocks.5.mlp.fc1.weight
_NUMBERED = r"(?:[^.]*[^.\d][^.]*\.)*?\d+(?:\.\d+)*(?:\.(?:blocks?|layers?|stages?)\.\d+)*"
_BLOCK, _OUTER_BLOCK = re.compile(_NUMBERED + r"(?=\.)"), re.compile(_NUMBERED + r"(?=\..+\.)")
FUSED = ("cpu", "cuda")  # devices for which PyTorch has the kernel


def make_optimizer(groups: Sequence[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW over parameter groups.

    The fused kernel makes one pass over memory where the loop over tensors makes a dozen (ResNet-18 on one core: 6 ms a
    step in place of 45). It goes through the memory of a parameter, its gradient and its moments in step, whatever
    their strides say, so these have to agree: ``align_gradients`` and :func:`load_slots` see to it. With a
    parameter that has gaps in memory (every second row of another tensor) they cannot, and the loop it is.
    """
    parameters = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in FUSED and p.is_floating_point() and _is_dense(p) for p in parameters)
    return torch.optim.AdamW(groups, fused=fused)


def _is_dense(parameter: Tensor) -> bool:
    """Whether a new tensor like it has its strides."""
    return torch.empty_like(parameter, device="meta").stride() == parameter.stride()


def load_slots(optimizer: Optimizer, slots: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Gives an optimiser its moments and steps, by the number of the parameter, in the memory format of the parameters."""
    fitted: dict[int, dict[str, Tensor]] = {}
    for i, p in enumerate(list_trained(optimizer)):
        held = slots.get(i, {})
        moments = {name: t for name, t in held.items() if name != "step" and t.shape == p.shape}
        fitted[i] = {**held, **{name: torch.empty_like(p).copy_(t) for name, t in moments.items()}}
    optimizer.load_state_dict({"state": fitted, "param_groups": optimizer.state_dict()["param_groups"]})


def group_parameters(net: ExitNet, settings: TrainingSettings) -> list[dict[str, Any]]:
    """The groups for an optimiser: ``params``, ``peak`` (of the learning rate) and ``weight_decay``.

    One group in the network's own order where all parameters are treated alike. The exits' heads, and the classifier of a
    kept final exit, get ``head_learning_rate``. A block of the body, counted from its end, gets ``learning_rate`` times
    ``layer_decay`` to that count (arXiv 2003.10555, A.5); the stem and embeddings count as one more block, what follows
    the last block belongs to it. Without ``decay_vectors``, biases and norms have no weight decay.

    Raises:
        InputError: for ``layer_decay`` where the backbone has no blocks named by a number.
    """
    trainable = {id(p) for p in select_trainable(net, settings.freeze_backbone)}
    rate, head_rate = settings.learning_rate, settings.head_learning_rate or settings.learning_rate
    depths = number_blocks(net)
    last = max(depths.values(), default=0)
    if settings.layer_decay != 1 and last == 0 and not settings.freeze_backbone:
        raise InputError(
            f"layer_decay: this backbone has no blocks named by a number (layer1.0), got {settings.layer_decay}"
        )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for parameter in net.parameters():
        if id(parameter) not in trainable:
            continue
        depth = depths.get(id(parameter))
        peak = head_rate if depth is None else rate * settings.layer_decay ** (last - depth)
        decay = settings.weight_decay if settings.decay_vectors or parameter.ndim > 1 else 0.0
        group = groups.setdefault((peak, decay), {"params": [], "lr": peak, "peak": peak, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def number_blocks(net: ExitNet) -> dict[int, int]:
    """The depth of every parameter of the body by its ``id``: 0 before the first block, then the blocks in their order."""
    named = list(_name_body(net))
    deep = {found[0] for name, _ in named if (found := _OUTER_BLOCK.match(name))}  # a layer alone (stem.0) is no block
    depths: dict[int, int] = {}
    blocks: list[str] = []
    for name, parameter in named:
        matches = [match[0] for pattern in (_BLOCK, _OUTER_BLOCK) if (match := pattern.match(name))]
        block = next((match for match in matches if match in deep), None)
        if block is not None and block not in blocks:
            blocks.append(block)
        depths.setdefault(id(parameter), len(blocks) if block is None else blocks.index(block) + 1)
    return depths


def _name_body(net: ExitNet) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of the stages, and of a kept final exit all but its classifier, by their names in the backbone."""
    for k in range(net.num_exits):
        yield from _name_in_order(net.stage(k).body)
    final = net.head(net.num_exits - 1)
    if isinstance(final, KeptHead):
        named = list(_name_in_order(final.tail.body))
        classifier = next((name.rpartition(".")[0] for name, p in reversed(named) if p.ndim > 1), "")
        yield from ((name, p) for name, p in named if name.rpartition(".")[0] != classifier)


def _name_in_order(body: fx.GraphModule) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters in the order in which the graph uses them."""
    for node in body.graph.nodes:
        if node.op == "get_attr":
            value: Any = attrgetter(node.target)(body)
            if isinstance(value, nn.Parameter):
                yield node.target, value
        elif node.op == "call_module":
            yield from body.get_submodule(node.target).named_parameters(prefix=node.target)
