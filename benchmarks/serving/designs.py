"""Replicas of the whole network or a pool for each stage: measured on this machine, and simulated on many."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import exitlens as xl
from benchmarks.edge.networks import SHARES
from benchmarks.serving.load.capacity import find_capacity, make_trials
from benchmarks.serving.load.trials import Spec, make_plan
from benchmarks.serving.networks import LIMITS, prepare
from benchmarks.serving.ours import make_requests, start_ours
from benchmarks.serving.rivals.pools import POOLS, WHOLE, make_pool_requests, start_pools
from benchmarks.serving.scaling import count_machines, find_throughput, make_pools, make_replicas
from benchmarks.serving.simulate import Network, Policy

SIZES = (1, 2, 4, 8, 16, 32)
BOTH = (0, 1)  # processors, for the load, too: as many for each design
FORWARD = 1e6  # requests a second of a large deployment


def compare_designs(name: str = "small") -> dict[str, Any]:
    """Requests a second in time on two cores: our workers, and on Ray Serve replicas of the whole network and pools."""
    prepared, found = prepare(name), dict[str, Any]()
    sample, wait = prepared.samples[0], {"max_wait_ms": 10_000.0, "max_waiting": 4096}
    edge = _export(prepared.exits)  # the same files for all
    with start_ours(edge, sample, processors=BOTH, workers=2, batching=wait) as server:
        found["workers"] = _measure(name, server.port, make_requests(prepared))
    leaves = prepared.leaves.tolist()
    for design, layout in (("replicas", WHOLE), ("pools", POOLS)):
        with start_pools(edge, layout, processors=BOTH) as server:
            found[design] = _measure(name, server.port, make_pool_requests(server.path, prepared.samples, leaves))
    return found


def _measure(name: str, port: int, requests: list[bytes]) -> dict[str, Any]:
    spec = Spec(port, requests, make_plan([(1.0, 1.0)], 1), connections=64, grace=3.0)
    found = find_capacity(make_trials(spec), LIMITS[name], 100.0, repeats=3)
    print(f"  {found.rate:.0f} a second", flush=True)
    return {"requests_a_second": found.rate, "p99_ms": [1000 * one for one in found.p99]}


def _export(bundle: Path) -> Path:
    target = bundle.parent / "edge"
    if not target.exists():
        net, policy = xl.load(bundle)
        net.tuning = xl.Tuning()
        xl.export(net, policy, target)
    return target


def time_stages(name: str, rounds: int = 15) -> dict[str, Any]:
    """Milliseconds of each stage with its head by the number of samples, one core; bytes that cross each cut."""
    prepared = prepare(name)
    net, _ = xl.load(prepared.exits)
    before, found = torch.get_num_threads(), dict[str, Any](ms={}, crossing=[])
    torch.set_num_threads(1)
    try:
        with net.open_engine() as engine:
            for size in SIZES:
                images = torch.from_numpy(np.resize(prepared.samples, (size, *prepared.samples.shape[1:])))
                activations = engine.enter(net.check_input(images))
                for k in range(net.num_exits):
                    times = []
                    for _ in range(rounds):
                        started = time.perf_counter()
                        following, *_ = engine.answer(k, activations, 1.0, "max_probability")
                        times.append(1000 * (time.perf_counter() - started))
                    found["ms"].setdefault(str(k), {})[str(size)] = median(times[2:])
                    activations = following
                    if size == 1:
                        found["crossing"].append(sum(t.numel() * t.element_size() for t in following))
    finally:
        torch.set_num_threads(before)
    found["crossing"][-1] = 0
    return found


def simulate_designs(name: str) -> dict[str, Any]:
    """By simulation with measured stage times: 8 machines of 4 cores, and how many machines a million a second take."""
    timed = time_stages(name)
    ms = [{int(size): value for size, value in sizes.items()} for sizes in timed["ms"].values()]
    steady = [{size: values[1] * (1 + 0.02 * (size - 1)) for size in values} for values in ms]  # as on a GPU
    own = Network(ms, SHARES, timed["crossing"])
    cases = {
        "these times": own,
        "time hardly grows with the batch": Network(steady, SHARES, timed["crossing"]),
        "weights of one stage at a time fit": replace(own, load_ms=[20 * values[1] for values in ms]),
    }
    policy, limit, found = Policy(max_batch=32), LIMITS[name], dict[str, Any](timed)
    for case, network in cases.items():
        rates = {
            design: find_throughput(network, make(network, 8, 4), policy, limit).rate
            for design, make in (("replicas", make_replicas), ("pools", make_pools))
        }
        found[case] = rates
        print(f"  {name}, {case}: {rates}", flush=True)
    size = count_machines(own, FORWARD, 4, policy, limit)
    found["million"] = {"machines": size.machines, "rate": size.rate, "headroom": 0.7, "cores": 4}
    return found
