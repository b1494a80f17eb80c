"""What a backbone costs up to a node of its graph: multiply-accumulates, and measured time."""

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

from exitlens.model._torch_compat import use_fake_tensors
from exitlens.model.cutting.graph import Interpreter, TracedBackbone, is_recurrent, run_graph
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.process import hold_memory
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


SAMPLES = 4  # so that calls and the reading of weights do not hide what the maps take
SECONDS = 1.5
MOST_SECONDS = 10.0  # of all runs together, if two runs take no longer


class _Clock(nn.Module):
    """Notes the time at every call, once the device has done what came before."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.times = device, list[float]()

    def forward(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        self.times.append(time.perf_counter())


def time_shares(traced: TracedBackbone, nodes: Sequence[fx.Node], runs: int) -> list[float]:
    """Share of the time up to each node (in the order of execution) of a backbone traced in evaluation mode, in [0, 1].

    The shares of all runs; see :class:`NodeTimer`. There are at least ``runs`` of them, and they go on for ``SECONDS``.
    """
    with NodeTimer(traced, nodes) as timer:
        timer.run(runs, SECONDS)
        return timer.shares()


class NodeTimer:
    """Times the parts of a backbone between nodes, in a ``with`` block, for as long as it is asked to.

    The graph runs as generated code, with a clock after every node and nothing else between its operations: an interpreter
    of single nodes would add its own time to each. One run warms up. For every part between two clocks the shortest time
    counts, because other work on the machine only ever adds to it. Runs are on ``SAMPLES`` copies of the example's first
    sample; on one, where the warm-up says that a few runs would take longer than ``MOST_SECONDS``.

    Every second run belongs to one half, the others to the other, so that halves can be compared.
    """

    def __init__(self, traced: TracedBackbone, nodes: Sequence[fx.Node]) -> None:
        self._traced, self._stack, self.seconds = traced, ExitStack(), 0.0
        self._tensors = [torch.cat([t[:1]] * SAMPLES) for t in list_tensors(traced.example)]
        self._clock = _Clock(self._tensors[0].device)
        self._module = _add_clock(traced, nodes, self._clock)
        self._halves = [[float("inf")] * (len(nodes) + 1) for _ in range(2)]
        self.done = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(switch_mode(self._module, False))
            stack.enter_context(torch.no_grad())  # inference mode would spoil for training what a forward keeps
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(hold_memory())
            started = time.perf_counter()
            run_graph(self._traced.runnable(), [t.clone() for t in self._tensors])
            if 4 * (time.perf_counter() - started) > MOST_SECONDS:
                self._tensors = [t[:1] for t in self._tensors]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, runs: int, seconds: float) -> None:
        """At least ``runs`` runs more, for ``seconds``; fewer, but two in all, where ``MOST_SECONDS`` have passed."""
        started, enough, before = time.perf_counter(), self.done + runs, self.seconds
        while self.done < enough or time.perf_counter() - started < seconds:
            if self.done >= 2 and self.seconds >= MOST_SECONDS:
                break
            half = self._halves[self.done % 2]
            half[:] = map(min, half, _time_parts(self._module, self._clock, self._tensors))
            self.done += 1
            self.seconds = before + time.perf_counter() - started

    def shares(self, half: int | None = None) -> list[float]:
        """Share of the time up to each node, by all runs or by those of one half (0 or 1)."""
        shortest = list(map(min, *self._halves)) if half is None else self._halves[half]
        return [seconds / sum(shortest) for seconds in accumulate(shortest[:-1])]


def _add_clock(traced: TracedBackbone, nodes: Sequence[fx.Node], clock: nn.Module) -> fx.GraphModule:
    """The graph as a module that also calls ``clock`` after each of the nodes."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(traced.graph, copies))
    for node in nodes:
        with graph.inserting_after(copies[node]):
            graph.call_module("exitlens_clock")
    return fx.GraphModule({**traced.list_members(traced.graph), "exitlens_clock": clock}, graph)


def _time_parts(module: fx.GraphModule, clock: _Clock, tensors: Sequence[Tensor]) -> list[float]:
    """Seconds of every part in one run, on copies: a backbone may change its input."""
    copies = [t.clone() for t in tensors]
    clock.times = []
    clock()
    module(*copies)
    clock()
    return [later - earlier for earlier, later in pairwise(clock.times)]
