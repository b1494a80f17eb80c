"""The load: when requests go out, what counts as latency, and what happens to lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.serving.load.capacity import find_capacity, make_trials
from benchmarks.serving.load.requests import make_infer_request, make_raw_request, make_request
from benchmarks.serving.load.trials import Plan, Spec, Trial, drive, make_plan


class Server:
    """A small HTTP server in the test's event loop: answers with the number of the request, and misbehaves as told."""

    def __init__(self, seconds=0.0, status=200, stall=0.0, reset=(), chunked=False):
        self.seconds, self.status, self.stall, self.reset, self.chunked = seconds, status, stall, set(reset), chunked
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


def read_size(head, body):
    assert b"content-length" in head.lower()
    return json.loads(body)["size"]


def put_load(plan, requests=(b"abc",), server=None, **more) -> tuple[Trial, Server]:
    async def main():
        async with server or Server() as own:
            payloads = [make_request("/", body) for body in requests]
            return await drive(Spec(own.port, payloads, plan, **{"connections": 4, **more})), own

    return asyncio.run(main())


def every(seconds, count):
    return Plan(np.arange(count) * seconds, np.zeros(count, int))


def test_arrivals_are_poisson_seeded_and_mixed():
    plan = make_plan([(2000.0, 5.0), (500.0, 4.0)], 3, shares=(2, 1, 1), seed=3)
    assert (np.diff(plan.due) >= 0).all()
    early, late = plan.due[plan.due < 5], plan.due[plan.due >= 5]
    assert len(early) == pytest.approx(10_000, abs=400)
    assert len(late) == pytest.approx(2_000, abs=180)
    gaps = np.diff(early)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as exponential ones
    assert np.bincount(plan.which) / len(plan.which) == pytest.approx([0.5, 0.25, 0.25], abs=0.02)
    again = make_plan([(2000.0, 5.0), (500.0, 4.0)], 3, shares=(2, 1, 1), seed=3)
    assert (again.due == plan.due).all()
    assert (again.which == plan.which).all()


@pytest.mark.parametrize("chunked", [False, True])
def test_every_request_is_answered_once_and_by_its_kind(chunked):
    plan = make_plan([(400.0, 0.25)], 2, seed=1)
    parse = "bytes" if chunked else "tests.benchmarks.serving.test_load:read_size"
    found, server = put_load(plan, (b"abc", b"defgh"), Server(chunked=chunked), kinds=("early", "deep"), parse=parse)
    assert (found.status == 200).all()
    assert sorted(map(len, server.bodies)) == sorted(3 + 2 * plan.which)
    assert server.connections == 4
    if not chunked:
        assert found.answers == (3 + 2 * plan.which).tolist()
    assert (found.sent >= found.scheduled).all()
    assert (found.finished > found.sent).all()
    assert found.select("deep").sum() == plan.which.sum()
    assert found.failures == 0
    assert found.summary()["p99 deep"] > 0
    assert 0 < found.busy <= 1.01


def test_latency_counts_from_when_a_request_was_due():
    """The server stalls for 0.2 s: all that come meanwhile wait for it, though only four connections can be busy."""
    found, _ = put_load(every(0.005, 60), server=Server(stall=0.2))
    at_start = found.latency[:8]
    assert (at_start > 0.1).all()  # the connections are busy from the first four on: the others were due, but not sent
    assert (found.sent - found.scheduled)[4:8].min() > 0.1
    assert found.p99 > 0.15


def test_too_few_connections_queue_in_the_load():
    found, server = put_load(every(0.001, 20), server=Server(seconds=0.01), connections=1)
    assert server.connections == 1
    assert found.latency[-1] > 20 * 0.01 - 0.02
    assert (np.diff(found.sent) > 0.009).all()


def test_lost_connections_are_retried_or_count_as_failures():
    kept, server = put_load(every(0.002, 30), server=Server(reset=(5, 11)), retries=2)
    assert kept.failures == 0
    assert kept.retries.sum() == 2
    assert len(server.bodies) == 32
    lost, _ = put_load(every(0.002, 30), server=Server(reset=(5, 11)))
    assert lost.failures == 2
    assert np.isinf(lost.p99)
    assert lost.retries.sum() == 0


def test_other_answers_and_a_hard_end():
    refused, _ = put_load(every(0.001, 5), server=Server(status=503))
    assert refused.status.tolist() == [503] * 5
    again, server = put_load(every(0.001, 5), server=Server(status=503), retries=2, again=(503,))
    assert again.status.tolist() == [503] * 5
    assert again.retries.tolist() == [2] * 5
    assert len(server.bodies) == 15
    assert refused.failures == 5
    assert refused.rate == 0
    late, _ = put_load(every(0.001, 5), server=Server(seconds=5.0), grace=0.1)
    assert late.failures == 5
    assert np.isnan(late.finished).all()
    assert late.wall_seconds < 2


def test_the_warm_up_does_not_count():
    found, _ = put_load(every(0.01, 10), warmup=0.05, kinds=("all",))
    assert found.counts.tolist() == [False] * 5 + [True] * 5
    assert found.summary()["requests"] == 5
    assert found.select("all").sum() == 5
    slow = replace(found, finished=np.where(found.counts, found.finished, 9.0))
    assert slow.p99 == found.p99


def test_quantiles_count_answers_that_never_came():
    due = np.arange(100.0)
    status = np.full(100, 200)
    found = Trial(due, due, due + 0.1, status, np.zeros(100, int), np.zeros(100, int))
    assert found.quantile(0.5) == pytest.approx(0.1)
    assert np.isfinite(replace(found, status=np.where(due < 1, 0, status)).p99)  # one in a hundred
    assert np.isinf(replace(found, status=np.where(due < 2, 503, status)).p99)


def test_requests_are_whole():
    sample = np.arange(4, dtype=np.float32).reshape(1, 4)
    head, _, body = make_infer_request("m", {"x": sample}, outputs=["label"], parameters={"priority": 1}).partition(
        b"\r\n\r\n"
    )
    fields = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
    size = int(fields["Inference-Header-Content-Length"])
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    assert int(fields["Content-Length"]) == len(body) == size + 16
    told = json.loads(body[:size])
    assert told["inputs"] == [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]
    assert told["outputs"] == [{"name": "label"}]
    assert told["parameters"] == {"priority": 1}
    assert (np.frombuffer(body[size:], np.float32) == sample).all()
    plain = make_infer_request("m", {"x": sample}, binary=False)
    assert json.loads(plain.partition(b"\r\n\r\n")[2])["inputs"][0]["data"] == [0, 1, 2, 3]
    assert make_raw_request("/", sample, {"x-exit": "2"}).endswith(sample.tobytes())


class Queue:
    """A trial whose 99th percentile follows the rate: 1 / (most - rate)."""

    def __init__(self, rate, most=100.0, busy=0.1):
        self.p99, self.failures, self.busy = 1 / (most - rate) if rate < most else float("inf"), int(rate > 500), busy


@pytest.mark.parametrize("start", [3.0, 50.0, 3000.0])
def test_the_capacity_is_found_from_anywhere(start):
    found = find_capacity(Queue, 0.1, start)
    assert found.rate == pytest.approx(90, rel=0.08)
    assert found.rate <= 90
    assert found.p99[1] <= found.p99[0] <= found.p99[2] <= 0.1
    assert not found.is_of_the_load
    assert pickle.loads(pickle.dumps(found)).to_dict()["attempts"][0]["rate"] == start


def test_one_bad_trial_does_not_count_and_nothing_is_said_of_what_fails_always():
    bad = iter([True] + [False] * 100)
    assert find_capacity(lambda rate: Queue(99.99 if next(bad) else rate), 0.1, 60).rate == pytest.approx(90, rel=0.08)
    none = find_capacity(lambda rate: Queue(1e3), 0.1, 60)
    assert (none.rate, none.p99[0]) == (0.0, float("inf"))
    assert find_capacity(lambda rate: Queue(rate, busy=0.95), 0.1, 60).is_of_the_load


def test_a_confirmation_that_fails_lowers_the_rate():
    """Two of three trials fail above 60, whatever the search saw."""
    count = iter(range(10_000))
    found = find_capacity(lambda rate: Queue(99.99 if rate > 60 and next(count) % 3 else rate), 0.1, 50, tries=3)
    assert found.rate <= 60 * 1.04


@pytest.mark.slow
def test_the_load_runs_in_a_process_of_its_own():
    async def main():
        async with Server() as server:
            spec = Spec(server.port, [make_request("/", b"abc")], every(1, 0), connections=2, processors=[0])
            return await asyncio.to_thread(make_trials(spec, seconds=0.4, warmup=0.1), 100.0)

    found = asyncio.run(main())
    assert found.failures == 0
    assert 20 < found.summary()["requests"] < 70
    assert found.warmup == 0.1
