"""Checks that attach runs before it returns: the backbone can be cut, and its pieces together equal it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from exitlens.errors import AttachError, TraceMismatchError
from exitlens.model._torch_compat import list_member_tables
from exitlens.model.cutting.boundaries import count_embedding_rows
from exitlens.model.cutting.graph import pick_logits
from exitlens.model.cutting.modes import fill_zero_parameters, preserve_state, switch_mode
from exitlens.model.cutting.split import Pieces
from exitlens.model.cutting.stage import Activations
from exitlens.types.inputs import MASK, list_input_names, list_tensors

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")  # the last: compiled
_QUANTISED = tuple(f"torch.{part}.quantized" for part in ("ao.nn", "ao.nn.intrinsic", "nn", "nn.intrinsic"))
_FIX_FOR_INTEGERS = "which cannot be trained or cut. Fix: attach exits to the float network and quantise afterwards"


def check_backbone(backbone: nn.Module) -> None:
    """Raise :class:`AttachError` for a wrapped or scripted module, quantised layers, or parameters without own values."""
    if isinstance(backbone, torch.jit.ScriptModule):
        raise AttachError("backbone: it is TorchScript, which cannot be cut. Fix: attach to the Python module it came from")
    if type(backbone).__name__ in _WRAPPERS and type(backbone).__module__.startswith("torch."):
        raise AttachError(
            f"backbone: it is wrapped by {type(backbone).__name__}. Fix: attach to the module inside and wrap the network "
            "that attach returns"
        )
    for name, module in backbone.named_modules():
        if type(module).__module__.startswith(_QUANTISED):
            raise AttachError(f"backbone: {name!r} is a quantised {type(module).__name__}, {_FIX_FOR_INTEGERS}")
    for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
        if problem := _find_problem(tensor):
            raise AttachError(f"backbone: {name!r} is {problem}")
    for name in chain(*list_member_tables(backbone)):
        if hasattr(torch.fx.GraphModule, name):
            raise AttachError(f"backbone: its {name!r} has the name of something that torch.fx needs. Fix: rename it")
    if next(backbone.parameters(), None) is None:
        raise AttachError("backbone: it has no parameters: expected a network with weights")


def _find_problem(tensor: Tensor) -> str:
    """Return why a parameter or buffer cannot be trained or copied, and how to fix it; empty if it can."""
    if isinstance(tensor, UninitializedParameter):
        return "lazy and has no shape yet. Fix: run one batch through it first"
    if tensor.is_meta:
        return "on the meta device and has no values. Fix: backbone.to_empty(device='cpu'), then load its weights"
    if tensor.is_quantized:
        return f"quantised, {_FIX_FOR_INTEGERS}"
    is_strided = isinstance(tensor, nn.Parameter) and tensor.layout == torch.strided
    if is_strided and any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
        return "an expanded tensor, whose elements cannot differ. Fix: clone() it"
    return ""


def verify(pieces: Pieces) -> None:
    """Raise :class:`TraceMismatchError` unless staged and plain runs agree in both modes and at three batch sizes.

    Outputs, and buffers and gradients after a training pass, must be equal. With a row dropped and the others exchanged
    after the first cut, as routing does, every sample must get the answer that it gets in the full batch. Afterwards
    buffers (batch-norm statistics), the random state and the mode of every module are unchanged.
    """
    backbone, inputs = pieces.traced.backbone, make_random_inputs(pieces, 3)
    with fill_zero_parameters(backbone):
        plain = _compare_runs(pieces, inputs, False)
        with preserve_state(backbone):
            first = [t[:1] for t in inputs]
            _compare(run_plain(pieces, first, False), run_staged(pieces, first, False), 1e-6, "a single sample")
            routed = run_staged(pieces, [t[[2, 0]] for t in inputs], False, exchange=True)
        spread = (plain - plain.mean(0)).abs().max().item()  # how far samples differ; the rest of a logit may be a constant
        allowed = 2e-5 + 1e-3 * spread / max(plain.abs().max().item(), 1e-6) if math.isfinite(spread) else 1e-3
        _compare(plain[[0, 2]], routed, allowed, "two samples of three: they depend on who else is in the batch")
        _compare_runs(pieces, make_random_inputs(pieces, 2), True)


def _compare_runs(pieces: Pieces, inputs: Sequence[Tensor], training: bool) -> Tensor:
    """Compare logits, buffers and (in training mode) gradients of a staged run with a plain one; return the logits."""
    backbone, gradients = pieces.traced.backbone, None

    def list_scalars() -> list[int | float | str]:  # attributes in which a forward may keep a state
        return [value for m in backbone.modules() for value in vars(m).values() if isinstance(value, int | float | str)]

    with preserve_state(backbone):
        state, plain = list_scalars(), run_plain(pieces, inputs, training)
        if not training and list_scalars() != state:
            again = run_plain(pieces, inputs, False)
            _compare(plain, again, 1e-6, "a second call: its forward keeps a state that stages cannot share")
        buffers = {name: value.clone() for name, value in backbone.named_buffers()}
        if training:
            with suppress(RuntimeError):  # the plain backbone itself cannot be trained: there is nothing to be equal to
                gradients = _take_gradients(backbone, plain)
    with preserve_state(backbone):
        staged = run_staged(pieces, inputs, training)
        where = f"batch {len(inputs[0])} in {'training' if training else 'evaluation'} mode"
        _compare(plain.detach(), staged.detach(), 1e-6, where)
        changed = dict(backbone.named_buffers())
        for name, value in buffers.items():
            other = changed.get(name)
            if other is None or other.shape != value.shape or not torch.allclose(value, other, 1e-4, 1e-5, equal_nan=True):
                _refuse(f"buffer {name!r} is not what the plain backbone's forward makes it")
        if gradients is not None:
            _compare_gradients(gradients, _take_gradients(backbone, staged))
    return plain


def run_plain(pieces: Pieces, inputs: Sequence[Tensor], training: bool) -> Tensor:
    """Return the backbone's own logits, with the random state forked and seeded; in training mode with autograd."""
    backbone, names = pieces.traced.backbone, list_input_names(pieces.traced.example)
    with switch_mode(backbone, training), torch.set_grad_enabled(training), torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(inputs[0]))
        copies = [t.clone() for t in inputs]  # a forward may change its input
        output = backbone(**dict(zip(names, copies, strict=True))) if names else backbone(*copies)
        return cast(Tensor, pick_logits(output)).clone()


def run_staged(pieces: Pieces, inputs: Sequence[Tensor], training: bool, exchange: bool = False) -> Tensor:
    """Return the logits of stages and tail; with ``exchange``, samples are in the opposite order after the first stage."""
    activations: Activations = tuple(inputs)
    with torch.set_grad_enabled(training), torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(inputs[0]))
        for k, stage in enumerate((*pieces.stages, pieces.tail)):
            with switch_mode(stage, training):
                activations = stage(*activations)
            if k == 0 and exchange:
                activations = tuple(t.flip(0) for t in activations)
    return activations[0].clone()


def _take_gradients(module: nn.Module, logits: Tensor) -> dict[str, Tensor | None]:
    """Return the gradients of a fixed random sum of the logits, by name, for the smallest parameter of each module."""
    smallest: dict[str, Tensor] = {}
    for prefix, owner in module.named_modules():
        trained = {name: p for name, p in owner.named_parameters(prefix, recurse=False) if p.requires_grad}
        smallest |= dict(sorted(trained.items(), key=lambda item: item[1].numel())[:1])
    if not logits.requires_grad or not smallest:
        return dict.fromkeys(smallest)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), list(smallest.values()), allow_unused=True)
    return dict(zip(smallest, gradients, strict=True))


def _compare(plain: Tensor, staged: Tensor, tolerance: float, where: str) -> None:
    gap, scale = float("nan"), 0.0
    if plain.shape == staged.shape:
        same = (plain == staged) | (plain.isnan() & staged.isnan())
        gap = (plain - staged).abs().masked_fill(same, 0).max().item()
        scale = plain.masked_fill(~plain.isfinite(), 0).abs().max().item()
    if not gap <= tolerance * max(scale, 1e-6):
        _refuse(f"staged and plain output differ by {gap:.3g} at {where}")


def _refuse(problem: str) -> NoReturn:
    raise TraceMismatchError(
        f"backbone: {problem}. Something in it does not show in a trace: a hook, a train() of its own, a state, a custom "
        "gradient. Fix: take that out of the forward, or cut elsewhere"
    )


def _compare_gradients(plain: dict[str, Tensor | None], staged: dict[str, Tensor | None]) -> None:
    scale = max((g.abs().max().item() for g in plain.values() if g is not None and g.numel()), default=0.0)
    for name, value in plain.items():
        other = staged[name]
        same = (value is None) == (other is None)
        if value is not None and other is not None and value.numel():
            same = bool((value - other).abs().max() <= 1e-4 * max(scale, 1e-6))
        if not same:
            _refuse(f"the gradient of {name!r} is not the plain network's (no_grad, or a gradient of its own)")


def make_random_inputs(pieces: Pieces, batch: int) -> tuple[Tensor, ...]:
    """Draw inputs like the example of a traced backbone."""
    example = pieces.traced.example
    return draw_inputs(list_input_names(example), list_tensors(example), count_embedding_rows(pieces.traced), batch)


def draw_inputs(
    names: Sequence[str], tensors: Sequence[Tensor], vocabulary: Sequence[int | None], batch: int
) -> tuple[Tensor, ...]:
    """Draw normal noise for images, tokens that the embedding knows, and masks with padding of different lengths."""
    rng = torch.Generator().manual_seed(batch)
    drawn = []
    for name, tensor, known in zip(names or ("",), tensors, vocabulary, strict=True):
        shape = (batch, *tensor.shape[1:])
        if tensor.is_floating_point():
            drawn.append(torch.randn(shape, generator=rng).to(tensor))
        elif name == MASK:
            lengths = tensor.shape[1] - torch.arange(batch) % 4 * (tensor.shape[1] // 4)
            drawn.append((torch.arange(tensor.shape[1]) < lengths[:, None]).to(tensor))
        else:
            drawn.append(torch.randint(0, known or int(tensor.max()) + 1, shape, generator=rng).to(tensor))
    return tuple(drawn)
