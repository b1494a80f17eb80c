"""The optimiser: its parameters and learning rates, the mode and precision they train in, and the moving average."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from exitlens.errors import InputError, TrainingError
from exitlens.functional.schedules import one_cycle_rate
from exitlens.model.backbones.weights import unique_state
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.heads import KeptHead
from exitlens.model.network import ExitNet
from exitlens.types.settings import BatchNorm, TrainingSettings

# layer1.0 of layer1.0.conv1.weight, layers.2.blocks.5 of layers.2.blocks.5.mlp.fc1.weight
_NUMBERED = r"(?:[^.]*[^.\d][^.]*\.)*?\d+(?:\.\d+)*(?:\.(?:blocks?|layers?|stages?)\.\d+)*"
_BLOCK, _OUTER_BLOCK = re.compile(_NUMBERED + r"(?=\.)"), re.compile(_NUMBERED + r"(?=\..+\.)")
FUSED = ("cpu", "cuda")  # devices for which PyTorch has the kernel
PREFIX = "ema."
_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}
_CONVOLUTIONS |= {getattr(torch.ops.aten, f.__name__).default for f in (F.conv1d, F.conv2d, F.conv3d)}
_ATTENTION = {F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default}


def select_trainable(net: ExitNet, freeze_backbone: bool) -> list[nn.Parameter]:
    """Return the parameters to train; raise :class:`TrainingError` if there are none."""
    frozen = {id(p) for p in net.stages.parameters()} if freeze_backbone else set()
    if freeze_backbone and net.info.final == "keep":
        frozen |= {id(p) for p in net.heads[-1].parameters()}
    parameters = [p for p in net.parameters() if id(p) not in frozen]
    if not parameters:
        raise TrainingError("freeze_backbone: nothing is left to train: this network has no early exit head")
    return parameters


@contextmanager
def enter_training_mode(net: ExitNet, freeze_backbone: bool, batch_norm: BatchNorm | None = "update") -> Iterator[None]:
    """Switch to training mode, but leave the backbone in evaluation mode if it is frozen or keeps running statistics.

    A frozen backbone takes no gradient; one with ``batch_norm="keep"`` is trained.
    """
    bodies: list[nn.Module] = [*net.stages, *([net.heads[-1]] if net.info.final == "keep" else [])]
    trained = {id(p) for p in select_trainable(net, freeze_backbone)}
    frozen = [p for p in net.parameters() if id(p) not in trained and p.requires_grad]
    with switch_mode(net, True):
        for body in bodies:
            has_statistics = any(name.endswith("running_mean") for name, _ in body.named_buffers())
            if freeze_backbone or (batch_norm == "keep" and has_statistics):
                body.eval()
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)


def make_optimizer(groups: Sequence[dict[str, Any]]) -> torch.optim.AdamW:
    """Return AdamW over parameter groups.

    The fused kernel makes one pass over memory where the loop over tensors makes a dozen (ResNet-18 on one core: 6 ms a step
    instead of 45). It reads a parameter, its gradient and its moments in memory order and ignores their strides, which
    :func:`apply_gradients` and :func:`load_slots` therefore keep equal. They cannot for a parameter with gaps in memory
    (every second row of another tensor): then the loop is used.
    """
    parameters = [p for group in groups for p in group["params"]]
    fused = all(
        p.device.type in FUSED and p.is_floating_point() and torch.empty_like(p, device="meta").stride() == p.stride()
        for p in parameters
    )
    return torch.optim.AdamW(groups, fused=fused)


def dump_slots(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """Return an optimiser's moments and steps as tensors for a checkpoint, named ``PREFIX.NUMBER.SLOT``."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{number}.{name}": value for number, slots in state.items() for name, value in slots.items()}


def load_slots(optimizer: Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Load what :func:`dump_slots` returned, among other tensors, in the memory format of the parameters."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            number, name = key.removeprefix(f"{prefix}.").split(".", 1)
            slots.setdefault(int(number), {})[name] = value
    state: dict[int, dict[str, Tensor]] = {}
    for i, p in enumerate(list_trained(optimizer)):
        held = slots.get(i, {})
        moments = {name: t for name, t in held.items() if name != "step" and t.shape == p.shape}
        state[i] = {**held, **{name: torch.empty_like(p).copy_(t) for name, t in moments.items()}}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def list_trained(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return all parameters of an optimiser, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def apply_gradients(optimizer: Optimizer, progress: float, settings: TrainingSettings) -> None:
    """Take one step of the optimiser along the current gradients, at ``progress`` in [0, 1) of training."""
    rates = settings.rates
    for group in optimizer.param_groups:
        group["lr"] = one_cycle_rate(progress, group.get("peak", rates.learning_rate), rates.warm_up)
    trained = list_trained(optimizer)
    if settings.clip_norm is not None:
        clip_grad_norm_(trained, settings.clip_norm)
    for p in trained:
        if p.grad is not None and p.grad.stride() != p.stride():  # a user's hook may do this, autograd does not
            p.grad = torch.empty_like(p).copy_(p.grad)
    optimizer.step()


def group_parameters(net: ExitNet, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return the groups for an optimiser: ``params``, ``peak`` (learning rate) and ``weight_decay``.

    The exits' heads, and the classifier of a kept final exit, get ``head_learning_rate``. A block of the body, counted from
    its end, gets ``learning_rate`` times ``layer_decay`` to that count (arXiv 2003.10555, A.5); stem and embeddings count as
    one more block, and layers after the last block belong to that block. Without ``decay_vectors``, biases and norms have no
    weight decay.
    """
    rates, depths = settings.rates, number_blocks(net)
    last = max(depths.values(), default=0)
    if rates.layer_decay != 1 and last == 0 and not settings.freeze_backbone:
        raise InputError(f"layer_decay: expected 1 without blocks named by a number (layer1.0), got {rates.layer_decay}")
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for parameter in select_trainable(net, settings.freeze_backbone):
        depth = depths.get(id(parameter))
        head_rate = rates.head_learning_rate or rates.learning_rate
        peak = head_rate if depth is None else rates.learning_rate * rates.layer_decay ** (last - depth)
        decay = rates.weight_decay if rates.decay_vectors or parameter.ndim > 1 else 0.0
        group = groups.setdefault((peak, decay), {"params": [], "lr": peak, "peak": peak, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def number_blocks(net: ExitNet) -> dict[int, int]:
    """Return the depth of every parameter of the body by its ``id``: 0 before the first block, then by block.

    The body is all stages, and of a kept final exit all but its classifier.
    """
    named = [pair for k in range(net.num_exits) for pair in _name_in_order(net.stage(k).body)]
    final = net.head(net.num_exits - 1)
    if isinstance(final, KeptHead):
        tail = list(_name_in_order(final.tail.body))
        classifier = next((name.rpartition(".")[0] for name, p in reversed(tail) if p.ndim > 1), "")
        named += [(name, p) for name, p in tail if name.rpartition(".")[0] != classifier]
    deep = {match[0] for name, _ in named if (match := _OUTER_BLOCK.match(name))}  # a layer alone (stem.0) is no block
    depths: dict[int, int] = {}
    blocks: list[str] = []
    for name, parameter in named:
        matches = [match[0] for pattern in (_BLOCK, _OUTER_BLOCK) if (match := pattern.match(name))]
        block = next((match for match in matches if match in deep), None)
        if block is not None and block not in blocks:
            blocks.append(block)
        depths.setdefault(id(parameter), len(blocks) if block is None else blocks.index(block) + 1)
    return depths


def _name_in_order(body: fx.GraphModule) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parameters with their names in the backbone, in the order in which the graph uses them."""
    for node in body.graph.nodes:
        if node.op == "get_attr":
            value: Any = attrgetter(node.target)(body)
            if isinstance(value, nn.Parameter):
                yield node.target, value
        elif node.op == "call_module":
            yield from body.get_submodule(node.target).named_parameters(prefix=node.target)


class WeightAverage:
    """Exponential moving average of a network's whole state, batch-norm statistics included; batch counts are copied.

    At optimiser step t the average moves by ``1 - min(decay, (1 + t) / (10 + t))`` of the way to the weights (the warm-up of
    TensorFlow's ``ExponentialMovingAverage(num_updates=t)``), so that it soon forgets the random start.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net, self.decay, self.steps = net, decay, 0
        self.state = unique_state(net)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights after an optimiser step."""
        self.steps += 1
        rate = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        current = self.net.state_dict()
        floats = [name for name, value in self.state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in floats], [current[name] for name in floats], rate)
        for name in self.state.keys() - set(floats):
            self.state[name].copy_(current[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the average as weights, and restore its own afterwards."""
        weights = unique_state(self.net)
        self.net.load_state_dict(self.state, strict=False)
        try:
            yield
        finally:
            self.net.load_state_dict(weights, strict=False)

    def dump(self) -> dict[str, Tensor]:
        """Return the average as tensors for a checkpoint."""
        named = {PREFIX + name: value for name, value in self.state.items()}
        return named | {PREFIX + "steps": torch.tensor(self.steps)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what :meth:`dump` returned."""
        self.steps = int(tensors[PREFIX + "steps"])
        for name, value in self.state.items():
            value.copy_(tensors[PREFIX + name])


@contextmanager
def use_half_precision(device: torch.device, enabled: bool) -> Iterator[None]:
    """Autocast to bfloat16; on CPUs, depthwise convolutions and attention run in float32 (their outputs are bfloat16).

    Their backward pass is slow in bfloat16: it doubles the time of a training step of an EfficientNet-Lite0. Attention
    inside ``nn.MultiheadAttention`` is autocast.
    """
    exceptions = _InFloat32() if enabled and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), exceptions:
        yield


class _InFloat32(TorchFunctionMode):
    """Runs the exceptions of :func:`use_half_precision`, whether modules, functions or exported code call them."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_depthwise = func in _CONVOLUTIONS and len(args) > 1 and args[1].shape[1] == 1 < args[0].shape[1 - args[1].ndim]
        if func not in _ATTENTION and not is_depthwise:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            widened = {name: _widen(value) for name, value in kwargs.items()}
            return func(*map(_widen, args), **widened).to(torch.bfloat16)


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
