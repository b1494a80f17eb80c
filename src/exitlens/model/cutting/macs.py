"""Cost in multiply-accumulates (MACs), counted while running, by PyTorch's own counter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from exitlens.model._torch_compat import use_fake_tensors
from exitlens.model.cutting.graph import Interpreter, is_recurrent
from exitlens.model.cutting.modes import switch_mode
from exitlens.types.inputs import Inputs, list_tensors


def count_macs(run: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Multiply-accumulates of one call (half of ``torch.utils.flop_counter``'s FLOPs), and what the call returned.

    Convolutions, matrix products and attention count; normalisation, activations and pooling do not, as is usual.
    """
    with torch.no_grad(), disable_fused_kernels(), FlopCounterMode(display=False) as counter:
        out = run(*args)
    return int(counter.get_total_flops()) // 2, out


class _Counter(Interpreter):
    """Runs a graph and keeps the multiply-accumulates of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.macs = dict[fx.Node, int]()

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2
        return value


def count_node_macs(module: fx.GraphModule, example: Inputs) -> dict[fx.Node, int]:
    """Multiply-accumulates of every node in evaluation mode, without computing if the operations allow it."""
    counter, tensors = _Counter(module), list_tensors(example)
    with disable_fused_kernels(), switch_mode(module, False), torch.no_grad():
        if is_recurrent(module):
            counter.run(*tensors)
            return counter.macs
        try:
            with use_fake_tensors() as fake:
                counter.run(*map(fake.from_tensor, tensors))
        except Exception:  # an operation without a fake implementation
            counter.run(*tensors)
    return counter.macs


@contextmanager
def disable_fused_kernels() -> Iterator[None]:
    """Without the fused kernels of attention and recurrent layers, which the counter does not know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other settings that flags() touches
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
