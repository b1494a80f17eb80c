"""The moving average of a network's weights (Polyak averaging, with exponential weights)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from exitlens.model.backbones.weights import unique_state
from exitlens.model.network import ExitNet

PREFIX = "ema."


class WeightAverage:
    """An exponential moving average of all that a network's state holds, batch-norm statistics included.

    At optimiser step t the average moves by ``1 - min(decay, (1 + t) / (10 + t))`` of the way to the weights (the warm-up is
    TensorFlow's ``ExponentialMovingAverage(num_updates=t)``), so that it does not remember the random start for long. Counts
    of batches are copied.

    Args:
        net: where the average starts.
        decay: in (0, 1), of a step.
    """

    def __init__(self, net: ExitNet, decay: float) -> None:
        self.net, self.decay, self.steps = net, decay, 0
        self.state = unique_state(net)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after an optimiser step."""
        self.steps += 1
        rate = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        now = self._current()
        floats = [name for name, value in self.state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in floats], [now[name] for name in floats], rate)
        for name in self.state.keys() - set(floats):
            self.state[name].copy_(now[name])

    def _current(self) -> dict[str, Tensor]:
        state = self.net.state_dict()
        return {name: state[name] for name in self.state}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the average for weights, and its own again afterwards."""
        own = unique_state(self.net)
        self._write(self.state)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, state: dict[str, Tensor]) -> None:
        for name, value in self._current().items():
            value.copy_(state[name])

    def dump(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        named = {PREFIX + name: value for name, value in self.state.items()}
        return named | {PREFIX + "steps": torch.tensor(self.steps)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of :meth:`dump`."""
        self.steps = int(tensors[PREFIX + "steps"])
        for name, value in self.state.items():
            value.copy_(tensors[PREFIX + name])
