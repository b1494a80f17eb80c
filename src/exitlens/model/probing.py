"""Is this a backbone that can be cut, and do the pieces equal it? Run before attach returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from exitlens.errors import AttachError
from exitlens.functional.inputs import MASK, Inputs, input_names, tensors_of
from exitlens.model.modes import mode_of, no_zeros, untouched
from exitlens.model.outputs import pick_logits
from exitlens.model.stages import Carried, Split

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")  # the last: compiled
_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.nn.quantized",
    "torch.nn.intrinsic.quantized",
)


def admit(backbone: nn.Module) -> None:
    """Raises :class:`AttachError` for a wrapped or scripted module, quantised layers, or parameters without values."""
    if isinstance(backbone, torch.jit.ScriptModule):
        raise AttachError("backbone: it is TorchScript, which cannot be cut. Mend: attach to the Python module it came from")
    if type(backbone).__name__ in _WRAPPERS and type(backbone).__module__.startswith("torch."):
        raise AttachError(
            f"backbone: it is wrapped by {type(backbone).__name__}. Mend: attach to the module inside and wrap the network "
            "that attach returns"
        )
    for name, module in backbone.named_modules():
        if type(module).__module__.startswith(_QUANTISED):
            raise AttachError(
                f"backbone: {name!r} is a quantised {type(module).__name__}, which cannot be trained or cut. Mend: attach "
                "exits to the float network and quantise afterwards"
            )
    for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
        if isinstance(tensor, UninitializedParameter):
            raise AttachError(f"backbone: {name!r} is lazy and has no shape yet. Mend: run one batch through it first")
        if tensor.is_meta:
            raise AttachError(
                f"backbone: {name!r} is on the meta device and has no values. Mend: backbone.to_empty(device='cpu'), then "
                "load its weights"
            )
        if tensor.is_quantized:
            raise AttachError(f"backbone: {name!r} is quantised. Mend: attach to the float network and quantise afterwards")
    if next(backbone.parameters(), None) is None:
        raise AttachError("backbone: it has no parameters: expected a network with weights")


def probe(backbone: nn.Module, pieces: Split, example: Inputs) -> None:
    """Runs staged and plain on the same random inputs, in both modes and at two batch sizes; they must be equal.

    Then once more with a row dropped, and the others exchanged at the first cut, as routing does: every sample must get the
    answer that it gets in the full batch. Buffers (batch-norm statistics), the random state and the mode of every module are
    what they were afterwards.

    Raises:
        AttachError: if they differ.
    """
    with no_zeros(backbone):
        for training, batch in ((False, 3), (True, 2)):
            inputs = random_inputs(example, pieces, batch)
            with untouched(backbone):
                state = _scalars(backbone)
                plain = plain_logits(backbone, inputs, input_names(example), training)
                if _scalars(backbone) != state:
                    again = plain_logits(backbone, inputs, input_names(example), training)
                    _compare(plain, again, 1e-6, "a second call: its forward keeps a state that stages cannot share")
            with untouched(backbone):
                staged = staged_logits(pieces, inputs, training)
            _compare(plain, staged, 1e-6, f"batch {batch} in {'training' if training else 'evaluation'} mode")
            if not training:
                routed = staged_logits(pieces, [t[[2, 0]] for t in inputs], training, exchange=True)
                _compare(plain[[0, 2]], routed, 1e-3, "two samples of three: they depend on who else is in the batch")


def plain_logits(backbone: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], training: bool) -> Tensor:
    """The backbone's own logits, without gradients, with the random state forked and seeded."""
    with mode_of(backbone, training), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(inputs[0]))
        own = [t.clone() for t in inputs]  # a forward may change its input
        output = backbone(**dict(zip(names, own, strict=True))) if names else backbone(*own)
        logits: Tensor = pick_logits(output)
        return logits.clone()


def staged_logits(pieces: Split, inputs: Sequence[Tensor], training: bool, exchange: bool = False) -> Tensor:
    """The same by stages and tail; after the first stage in the opposite order, if asked for."""
    carried: Carried = tuple(inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(inputs[0]))
        for k, stage in enumerate((*pieces.stages, pieces.tail)):
            with mode_of(stage, training):
                carried = stage(*carried)
            if k == 0 and exchange:
                carried = tuple(t.flip(0) for t in carried)
    return carried[0].clone()


def _scalars(module: nn.Module) -> list[Any]:
    """The numbers and words among the attributes of all submodules."""
    return [value for m in module.modules() for value in vars(m).values() if isinstance(value, int | float | str)]


def _compare(plain: Tensor, staged: Tensor, tolerance: float, where: str) -> None:
    gap = (plain - staged).abs().max().item() if plain.shape == staged.shape else float("nan")
    if not gap <= tolerance * max(1.0, plain.abs().max().item()):
        raise AttachError(
            f"probe: staged and plain output differ by {gap:.3g} at {where}: this backbone cannot be cut there; try other "
            "module names"
        )


def random_inputs(example: Inputs, pieces: Split, batch: int) -> tuple[Tensor, ...]:
    """Normal noise for images, random tokens below what the embedding knows, masks with padding of different lengths."""
    rng = torch.Generator().manual_seed(batch)
    names = input_names(example) or ("",)
    made = []
    for name, tensor, known in zip(names, tensors_of(example), pieces.vocabulary, strict=True):
        shape = (batch, *tensor.shape[1:])
        if tensor.is_floating_point():
            made.append(torch.randn(shape, generator=rng).to(tensor))
        elif name == MASK:
            lengths = tensor.shape[1] - torch.arange(batch) * (tensor.shape[1] // 4)
            made.append((torch.arange(tensor.shape[1]) < lengths[:, None]).to(tensor))
        else:
            made.append(torch.randint(0, known or int(tensor.max()) + 1, shape, generator=rng).to(tensor))
    return tuple(made)
