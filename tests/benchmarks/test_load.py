"""The load: when requests go out, what counts as latency, what happens to lost connections, and what a server bears."""

import asyncio
import contextlib
import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.load import Load, Spec, Trial, find_capacity, make_infer_request, make_request, poll, run_load


class Server:
    """A small HTTP server in the test's event loop, which misbehaves as told."""

    def __init__(self, seconds=0.0, status=200, stall=0.0, reset=(), chunked=False, closes=False):
        self.seconds, self.status, self.stall, self.reset = seconds, status, stall, set(reset)
        self.chunked, self.closes = chunked, closes
        self.bodies, self.connections, self.tasks, self.first = [], 0, [], 0.0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await asyncio.sleep(0.01)  # what the load closed is seen here
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks)

    async def serve(self, reader, writer):
        self.connections += 1
        self.tasks.append(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                await self.answer(reader, writer)
                if self.closes:
                    break
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        body = await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        self.bodies.append(body)
        if len(self.bodies) in self.reset:
            writer.transport.abort()
            raise ConnectionResetError
        now = asyncio.get_running_loop().time()
        self.first = self.first or now
        await asyncio.sleep(max(self.first + self.stall - now, self.seconds))
        answer = json.dumps({"size": len(body)}).encode()
        if self.chunked:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(answer), answer))
            await writer.drain()
            await asyncio.sleep(0.002)
            writer.write(b"0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (self.status, len(answer)))
            await asyncio.sleep(0)  # head and body may come apart
            writer.write(answer)
            await writer.drain()


def put_load(due, requests=(b"abc",), server=None, **settings):
    """Run requests that are due at these times, each in turn."""

    async def main():
        async with server or Server() as running:
            payloads = [make_request("/", body) for body in requests]
            which = np.arange(len(due)) % len(requests)
            spec = Spec(running.port, payloads, np.asarray(due), which, **{"connections": 4, "grace": 2.0, **settings})
            return await Load(spec).run(), running

    return asyncio.run(main())


def every(seconds, count):
    return np.arange(count) * seconds


def test_arrivals_are_poisson_and_seeded():
    spec = Spec(0, [b"a", b"b"])
    plan = spec.plan([(2000.0, 5.0), (500.0, 4.0)], seed=3)
    assert (np.diff(plan.due) >= 0).all()
    assert (plan.due < 5).sum() == pytest.approx(10_000, abs=400)
    assert (plan.due >= 5).sum() == pytest.approx(2_000, abs=180)
    gaps = np.diff(plan.due[plan.due < 5])
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as exponential ones
    assert np.bincount(plan.which) / len(plan.which) == pytest.approx([0.5, 0.5], abs=0.02)
    assert (spec.plan([(2000.0, 5.0), (500.0, 4.0)], seed=3).due == plan.due).all()


@pytest.mark.parametrize("chunked", [False, True])
def test_every_request_is_answered_once_and_by_its_kind(chunked):
    settings = {"kinds": ("early", "deep"), "keep": True}
    trial, server = put_load(every(0.002, 60), (b"abc", b"defgh"), Server(chunked=chunked), **settings)
    assert (trial.status == 200).all()
    assert sorted(map(len, server.bodies)) == sorted(3 + 2 * trial.which)
    assert server.connections == 4
    assert all(b'"size": %d' % (3 + 2 * which) in trial.answers[i] for i, which in enumerate(trial.which))
    assert ((trial.due <= trial.sent) & (trial.sent < trial.finished)).all()
    assert trial.failures == 0 < trial.quantile(0.99, "deep")
    assert 0 < trial.busy <= 1.01


def test_latency_counts_from_when_a_request_was_due():
    """The server stalls for 0.2 s: all that come meanwhile wait for it, though only four connections can be busy."""
    trial, _ = put_load(every(0.005, 60), server=Server(stall=0.2))
    assert (trial.latency[:8] > 0.1).all()
    assert (trial.sent - trial.due)[4:8].min() > 0.1
    assert trial.p99 > 0.15
    trial, server = put_load(every(0.001, 20), server=Server(seconds=0.01), connections=1)  # they queue in the load
    assert server.connections == 1
    assert trial.latency[-1] > 20 * 0.01 - 0.02
    assert (np.diff(trial.sent) > 0.009).all()


def test_lost_connections_are_retried_or_count_as_failures():
    kept, server = put_load(every(0.002, 30), server=Server(reset=(5, 11)), retries=2)
    assert (kept.failures, len(server.bodies)) == (0, 32)
    lost, server = put_load(every(0.002, 30), server=Server(reset=(5, 11)))
    assert (lost.failures, len(server.bodies)) == (2, 30)
    assert np.isinf(lost.p99)


def test_a_connection_that_the_server_closed_in_between_loses_nothing():
    trial, server = put_load(every(0.05, 6), server=Server(closes=True), connections=1)
    assert trial.failures == 0
    assert server.connections >= 6


def test_other_answers_and_a_hard_end():
    refused, _ = put_load(every(0.001, 5), server=Server(status=503))
    assert (refused.status.tolist(), refused.failures) == ([503] * 5, 5)
    _, server = put_load(every(0.001, 5), server=Server(status=503), retries=2, again=(503,))
    assert len(server.bodies) == 15
    late, _ = put_load(every(0.001, 5), server=Server(seconds=5.0), grace=0.1)
    assert late.failures == np.isnan(late.finished).sum() == 5


def test_quantiles_count_answers_that_never_came_and_no_warm_up():
    due, status = np.arange(100.0), np.full(100, 200)
    trial = Trial(due, due, due + 0.1, status, np.zeros(100, int))
    assert trial.quantile(0.5) == pytest.approx(0.1)
    assert replace(trial, finished=np.where(due < 5, due + 9.0, due + 0.1), warmup=5.0).p99 == pytest.approx(0.1)
    assert np.isfinite(replace(trial, status=np.where(due < 1, 0, status)).p99)  # one in a hundred
    assert np.isinf(replace(trial, status=np.where(due < 2, 503, status)).p99)


def test_requests_are_whole():
    sample = np.arange(4, dtype=np.float32).reshape(1, 4)
    head, _, body = make_infer_request(sample, ["label"]).partition(b"\r\n\r\n")
    fields = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
    size = int(fields["Inference-Header-Content-Length"])
    assert head.startswith(b"POST /v2/models/net/infer HTTP/1.1\r\n")
    assert int(fields["Content-Length"]) == len(body) == size + 16
    content = json.loads(body[:size])
    tensor = {"name": "inputs", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    assert content == {"inputs": [tensor], "outputs": [{"name": "label"}]}
    assert (np.frombuffer(body[size:], np.float32) == sample).all()


def make_trial(rate, most=100.0, busy=0.1):
    """A trial whose 99th percentile follows the rate: 1 / (most - rate)."""
    return SimpleNamespace(p99=1 / (most - rate) if rate < most else float("inf"), failures=int(rate > 500), busy=busy)


@pytest.mark.parametrize("start", [3.0, 50.0, 3000.0])
def test_the_capacity_is_found_from_anywhere(start):
    capacity = find_capacity(make_trial, 0.1, start, spread=0.04)
    assert 83 <= capacity.rate <= 90
    assert capacity.p99[1] <= capacity.p99[0] <= capacity.p99[2] <= 0.1


def test_one_bad_trial_does_not_count_and_a_server_that_always_fails_has_no_rate():
    bad = iter([True] + [False] * 100)
    assert find_capacity(lambda rate: make_trial(99.99 if next(bad) else rate), 0.1, 60).rate == pytest.approx(90, rel=0.08)
    none = find_capacity(lambda rate: make_trial(1e3), 0.1, 60)
    assert (none.rate, none.p99[0]) == (0.0, float("inf"))
    with pytest.raises(RuntimeError, match="the load computed for 95%"):
        find_capacity(lambda rate: make_trial(rate, busy=0.95), 0.1, 60)
    count = iter(range(10_000))  # two of three trials fail above 60, whatever the search saw
    lowered = find_capacity(lambda rate: make_trial(99.99 if rate > 60 and next(count) % 3 else rate), 0.1, 50, tries=3)
    assert lowered.rate <= 60 * 1.04


def test_a_poll_keeps_answers_and_errors():
    answers = iter([200, 200, ConnectionRefusedError(), 503])

    def ask():
        answer = next(answers, 200)
        if isinstance(answer, OSError):
            raise answer
        return answer

    with poll(ask, 0.005) as polled:
        while len(polled) < 4:
            os.sched_yield()
    assert polled[:4] == [200, 200, "ConnectionRefusedError", 503]


@pytest.mark.slow
def test_the_load_runs_in_a_process_of_its_own():
    async def main():
        async with Server() as server:
            spec = Spec(server.port, [make_request("/", b"abc")], connections=2, processors=[0], warmup=0.1)
            return await asyncio.to_thread(run_load, spec.plan([(100.0, 0.5)]))

    trial = asyncio.run(main())
    assert trial.failures == 0
    assert 20 < trial.counts.sum() < 70
