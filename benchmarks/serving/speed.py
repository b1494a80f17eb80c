"""How many requests a second each server bears in time, what it adds to one request, and what an early leaver waits."""

from __future__ import annotations

import contextlib
import http.client
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import exitlens as xl
from benchmarks.serving.load.capacity import Capacity, find_capacity, make_trials
from benchmarks.serving.load.requests import make_raw_request
from benchmarks.serving.load.trials import Spec, make_plan, run_load
from benchmarks.serving.networks import LIMITS, Prepared, prepare
from benchmarks.serving.ours import make_requests, start_ours
from benchmarks.serving.rivals.plain import Backbone, start_litserve, start_ray
from benchmarks.serving.rivals.servers import Server

SERVER, LOAD = (0,), (1,)  # processors
CONNECTIONS = 64
START = {"small": 200.0, "resnet50": 10.0}  # requests a second
SECONDS = {"small": 4.0, "resnet50": 10.0}  # of a trial
SPREAD = 0.02  # of a rate, to both sides


def measure_throughput(name: str, size: int = 1) -> dict[str, Any]:
    """Requests a second at p99 within the limit: ours, the plain backbone in our server, and in other servers."""
    prepared, found = prepare(name), dict[str, Any]()
    for server, (start, requests) in _list_servers(prepared, size).items():
        with start() as one:
            spec = Spec(
                one.port, requests(one), make_plan([(1.0, 1.0)], 1), connections=CONNECTIONS, grace=3.0, processors=LOAD
            )
            shares = ()
            capacity = find_capacity(
                make_trials(spec, seconds=SECONDS[name], warmup=1.0, shares=shares),
                LIMITS[name],
                START[name] / size,
                spread=SPREAD,
            )
        found[server] = _describe(capacity, size)
        print(f"  {name}, {size} a request, {server}: {found[server]}", flush=True)
    return found


def _list_servers(prepared: Prepared, size: int) -> dict[str, tuple[Callable[[], Any], Callable[[Server], Sequence[bytes]]]]:
    sample, shape = prepared.samples[0], prepared.samples.shape[1:]
    wait = {"batching": {"max_wait_ms": 10_000.0, "max_waiting": 4096}}
    found = {
        "exits": (
            lambda: start_ours(prepared.exits, sample, processors=SERVER, **wait),
            lambda _: make_requests(prepared, size),
        ),
        "plain": (
            lambda: start_ours(prepared.plain, sample, processors=SERVER, **wait),
            lambda _: make_requests(prepared, size),
        ),
    }
    if size == 1:
        backbone = Backbone(str(prepared.onnx), shape, threads=1)

        def raw(server: Server) -> list[bytes]:
            return [make_raw_request(server.path, one) for one in prepared.samples]

        found["litserve"] = (lambda: start_litserve(backbone, processors=SERVER), raw)
        found["ray"] = (lambda: start_ray(backbone, processors=SERVER), raw)
    return found


def _describe(capacity: Capacity, size: int) -> dict[str, Any]:
    return {
        "samples_a_second": capacity.rate * size,
        "p99_ms": [1000 * one for one in capacity.p99],
        "of_the_load": capacity.is_of_the_load,
    }


def measure_overhead(name: str = "small", count: int = 400) -> dict[str, Any]:
    """One request at a time: milliseconds over loopback, and of ``predict`` on the same sample, in turn."""
    prepared, ms = prepare(name, 2), dict[str, list[float]](over_http=[], predict=[])
    net, policy = xl.load(prepared.exits)
    requests = make_requests(prepared)
    with start_ours(prepared.exits, prepared.samples[0], batching={"threads": 2}) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for i in range(count):
            request, sample = (
                requests[i % len(requests)],
                torch.from_numpy(prepared.samples[i % len(prepared.samples)][None]),
            )
            started = time.perf_counter()
            _send(connection, request)
            ms["over_http"].append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()
            xl.predict(net, sample, policy)
            ms["predict"].append(1000 * (time.perf_counter() - started))
        connection.close()
    middle = {key: statistics.median(values[count // 10 :]) for key, values in ms.items()}
    return {"ms": middle, "above_ms": middle["over_http"] - middle["predict"]}


def _send(connection: http.client.HTTPConnection, request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    connection.request(method, path, body, dict(line.split(": ", 1) for line in lines))
    with contextlib.closing(connection.getresponse()) as answer:
        return answer.read()


def measure_leavers(name: str, rate: float, share: float = 0.7, seconds: float = 20.0) -> dict[str, Any]:
    """Milliseconds until who leaves at exit 0, and at the last, at so much of the rate that the server bears."""
    prepared = prepare(name)
    kinds = [f"exit {k}" for k in prepared.leaves.tolist()]
    with start_ours(prepared.exits, prepared.samples[0], processors=SERVER) as server:
        plan = make_plan([(share * rate, seconds)], len(kinds), seed=1)
        spec = Spec(
            server.port, make_requests(prepared), plan, kinds, connections=CONNECTIONS, warmup=2.0, processors=LOAD
        )  # fmt: skip
        trial = run_load(spec)
    deepest = max(kinds)
    ms = {kind: [1000 * trial.quantile(q, kind) for q in (0.5, 0.9, 0.99)] for kind in sorted({*kinds})}
    return {"rate": share * rate, "failures": trial.failures, "ms": ms, "ratio": ms["exit 0"][0] / ms[deepest][0]}
