"""Measured time: the share of a backbone's time that is spent up to each of some places on its path."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, fx, nn

from exitlens.model.cutting.graph import TracedBackbone, run_graph
from exitlens.model.cutting.modes import switch_mode
from exitlens.model.malloc import hold_memory
from exitlens.types.inputs import list_tensors

SAMPLES = 4  # so that calls and the reading of weights do not hide what the maps take
SECONDS = 1.5


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

    The graph runs as generated code, with a clock after every node of ``nodes`` and nothing else between its operations:
    an interpreter of single nodes would add its own time to each. One run warms up. For every part between two clocks the
    shortest time counts, because other work on the machine only ever adds to it. There are at least ``runs`` of them, and
    they go on for ``SECONDS``, on ``SAMPLES`` copies of the example's first sample.
    """
    tensors = [torch.cat([t[:1]] * SAMPLES) for t in list_tensors(traced.example)]
    clock = _Clock(tensors[0].device)
    module = _add_clock(traced, nodes, clock)
    # not inference mode: what a forward keeps for later calls must stay fit for training
    with switch_mode(module, False), torch.no_grad(), torch.random.fork_rng(devices=[]), hold_memory():
        run_graph(traced.runnable(), [t.clone() for t in tensors])
        shortest = [float("inf")] * (len(nodes) + 1)
        done, started = 0, time.perf_counter()
        while done < runs or time.perf_counter() - started < SECONDS:
            shortest = list(map(min, shortest, _time_parts(module, clock, tensors)))
            done += 1
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
