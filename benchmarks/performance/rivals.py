"""earlyon 0.3.0 on the same backbone with heads at the same places, its exits forced by the same plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import exitlens as xl
from exitlens.delivery.bench.benchmark import MIXED
from exitlens.delivery.bench.timing import time_calls
from exitlens.model.timing import Work
from exitlens.types.inputs import Inputs, split_rows

Maker = Callable[[Inputs, int, Mapping[str, Tensor]], Work]


def make_rivals(plain: nn.Module, net: xl.ExitNet, pixels: int) -> dict[str, Maker]:
    """earlyon as it comes, and with the memory format and the kept memory that ours has."""
    return {
        f"earlyon, {MIXED}": _make_earlyon(plain, net, pixels, tuned=False),
        f"earlyon, {MIXED}, same formats": _make_earlyon(plain, net, pixels, tuned=True),
    }


def _make_earlyon(plain: nn.Module, net: xl.ExitNet, pixels: int, tuned: bool) -> Maker:
    from earlyon.models.custom import custom_ee

    to_channels_last = tuned and net.tuning.channels_last
    backbone = copy.deepcopy(plain).eval()
    if to_channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapper = custom_ee(backbone, list(net.info.at), 10, input_shape=(1, 3, pixels, pixels), dropout=0.0).eval()
    state: dict[str, Tensor] = {}
    for k, name in enumerate(wrapper.exit_heads):
        wrapper.exit_heads[name] = _Forced(wrapper.exit_heads[name], k, state)

    def make(inputs: Inputs, size: int, plans: Mapping[str, Tensor]) -> Work:
        plan = plans[MIXED]

        def run(call: tuple[int, Inputs]) -> None:
            start, batch = call
            state["plan"] = plan[start : start + size]
            if to_channels_last:
                batch = batch.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
            wrapper(batch) if size == 1 else wrapper.forward_inference_batched(batch)

        calls = list(zip(range(0, len(plan), size), split_rows(inputs, size), strict=True))
        return time_calls(run, calls, tuned and net.tuning.keep_memory)

    return make


class _Forced(nn.Module):
    """A head that is computed, and then says what the plan wants: sure where the sample is to leave, else unsure."""

    def __init__(self, head: nn.Module, exit_: int, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.head, self.exit, self.state = head, exit_, state

    def forward(self, features: Tensor) -> Tensor:
        logits = 0 * self.head(features)
        logits[:, 0] = torch.where(self.state["plan"] <= self.exit, 100.0, 0.0)
        return logits
