"""What a backbone costs up to a node of its graph: multiply-accumulates (MACs), and measured time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from exitlens.model.cutting.graph import Interpreter, TracedBackbone, run_fake, run_real
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.process import hold_memory
from exitlens.types.inputs import list_tensors

SAMPLES = 4  # so that calls and the reading of weights do not hide what the maps take
SECONDS = 1.5
MOST_SECONDS = 10.0  # of all runs together, if two runs take no longer


def count_macs(run: Callable[..., Any], *args: Any) -> tuple[int, Any]:
    """Return the MACs of one call (half of ``torch.utils.flop_counter``'s FLOPs), and what the call returned.

    Convolutions, matrix products and attention count; normalisation, activations and pooling do not, as is usual.
    """
    with torch.no_grad(), _disable_fused_kernels(), FlopCounterMode(display=False) as counter:
        out = run(*args)
    return int(counter.get_total_flops()) // 2, out


class _Counter(Interpreter):
    """Runs a graph and keeps the MACs of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.macs = dict[fx.Node, int]()

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2
        return value


def count_node_macs(traced: TracedBackbone) -> dict[fx.Node, int]:
    """Return the MACs of every node for the example in evaluation mode, without computing if the operations allow it."""
    module = traced.runnable()
    with _disable_fused_kernels(), switch_mode(module, False), torch.no_grad():
        return run_fake(_Counter, module, list_tensors(traced.example)).macs


@contextmanager
def _disable_fused_kernels() -> Iterator[None]:
    """Do without the fused kernels of attention and recurrent layers, which PyTorch's counter does not know."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other settings that flags() touches
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Clock(nn.Module):
    """Notes the time at every call, once the device has done what came before."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.times = device, list[float]()

    def forward(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        self.times.append(time.perf_counter())


class NodeTimer:
    """Times the parts of a backbone between nodes, in a ``with`` block, for as long as it is asked to.

    The graph runs as generated code with a clock after every node, because an interpreter would add its own time to each.
    For every part the shortest time counts, because other work on the machine only adds to it. Runs are on
    ``SAMPLES`` copies of the example's first sample, or on one if they take long, and alternate between two halves.
    """

    def __init__(self, traced: TracedBackbone, nodes: Sequence[fx.Node]) -> None:
        self._traced, self._stack, self.seconds, self.done = traced, ExitStack(), 0.0, 0
        self._tensors = [torch.cat([t[:1]] * SAMPLES) for t in list_tensors(traced.example)]
        self._halves = [[float("inf")] * (len(nodes) + 1) for _ in range(2)]
        self._clock = _Clock(self._tensors[0].device)
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.output(graph.graph_copy(traced.graph, copies))
        for node in nodes:
            with graph.inserting_after(copies[node]):
                graph.call_module("exitlens_clock")
        self.module = fx.GraphModule({**traced.list_members(traced.graph), "exitlens_clock": self._clock}, graph)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(switch_mode(self.module, False))
            stack.enter_context(torch.no_grad())  # inference mode would spoil for training what a forward keeps
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(hold_memory())
            started = time.perf_counter()
            run_real(Interpreter, self._traced.runnable(), [t.clone() for t in self._tensors])
            if 4 * (time.perf_counter() - started) > MOST_SECONDS:
                self._tensors = [t[:1] for t in self._tensors]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, runs: int, seconds: float) -> None:
        """Do at least ``runs`` runs more, for ``seconds``; fewer, but two in all, once ``MOST_SECONDS`` have passed."""
        started, enough, before = time.perf_counter(), self.done + runs, self.seconds
        while self.done < enough or time.perf_counter() - started < seconds:
            if self.done >= 2 and self.seconds >= MOST_SECONDS:
                break
            half = self._halves[self.done % 2]
            half[:] = map(min, half, self.time_parts(self._tensors))
            self.done += 1
            self.seconds = before + time.perf_counter() - started

    def time_parts(self, tensors: Sequence[Tensor]) -> list[float]:
        """Return the seconds of every part in one run, on copies, because a backbone may change its input."""
        copies, self._clock.times = [t.clone() for t in tensors], []
        self._clock()
        self.module(*copies)
        self._clock()
        return [later - earlier for earlier, later in pairwise(self._clock.times)]

    def shares(self, half: int | None = None) -> list[float]:
        """Return the share of the time up to each node, by all runs or by those of one half (0 or 1)."""
        shortest = list(map(min, *self._halves)) if half is None else self._halves[half]
        return [seconds / sum(shortest) for seconds in accumulate(shortest[:-1])]
