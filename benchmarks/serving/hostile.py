"""Hostile requests beside good ones: each is refused with a reason, and no good one notices."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from benchmarks.serving.answers import PARSE, Expected, predict
from benchmarks.serving.attacks.catalogue import list_kinds, make_hostile
from benchmarks.serving.attacks.making import Hostile
from benchmarks.serving.faults import count_wrong
from benchmarks.serving.load.beside import start_load
from benchmarks.serving.load.trials import Spec, Trial, make_plan, run_load
from benchmarks.serving.networks import prepare
from benchmarks.serving.ours import make_requests, start_ours
from benchmarks.serving.rivals.servers import Server

PATIENCE = 5.0  # seconds after the last byte, after which a connection hangs
SENDERS = 32  # hostile clients at most at a time
SHORT = {"header_seconds": 1.0, "body_seconds": 1.0, "request_seconds": 10.0}
CLOSED, HANGS = "closed", "hangs"
RATE = 50.0  # good requests a second


class Reply(NamedTuple):
    """What came of a hostile request: a status, "closed" or "hangs"; whether a JSON ``error`` says why; and seconds."""

    kind: str
    outcome: str
    has_reason: bool
    seconds: float


def send(port: int, hostile: Hostile) -> Reply:
    """One hostile request on a connection of its own."""
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        _write(client, hostile)
        written, found = time.perf_counter(), b""
        try:
            while not _is_whole(found) and time.perf_counter() - written < PATIENCE:
                part = client.recv(1 << 16)
                if not part:
                    break
                found += part
            outcome = _read_status(found)
        except TimeoutError:
            outcome = HANGS
        except OSError:  # reset
            outcome = _read_status(found)
    return Reply(hostile.kind, outcome, _has_reason(found), time.perf_counter() - started)


def _write(client: socket.socket, hostile: Hostile) -> None:
    try:
        for i, part in enumerate(hostile.parts):
            client.sendall(part)
            if hostile.pause and i < len(hostile.parts) - 1:
                time.sleep(hostile.pause)
        if hostile.closes:
            client.shutdown(socket.SHUT_WR)
    except TimeoutError:
        return
    except OSError:  # the server has closed it: its answer may still be there
        return


def _is_whole(found: bytes) -> bool:
    head, end, body = found.partition(b"\r\n\r\n")
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"")
    return bool(end) and (not length or len(body) >= int(length.partition(b":")[2]))


def _read_status(found: bytes) -> str:
    return found[9:12].decode(errors="replace") if found.startswith(b"HTTP/1.") else CLOSED


def _has_reason(found: bytes) -> bool:
    try:
        reason = json.loads(found.partition(b"\r\n\r\n")[2])["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(reason, str) and len(reason) > 10


def send_hostile(count: int = 1000, rate: float = RATE, seconds: float = 90.0, calm_seconds: float = 20.0) -> dict[str, Any]:
    """So many hostile requests of all kinds, evenly in time, beside good ones from another process.

    Args:
        rate: good requests a second. seconds: for which they come. calm_seconds: of a trial before, without hostile ones.
    """
    prepared = prepare("small")
    hostile = list(make_hostile(count, prepared.samples.shape[1:]))
    expected, requests = predict(prepared.exits, prepared.samples), make_requests(prepared)
    with start_ours(prepared.exits, prepared.samples[0], limits=SHORT) as server:
        calm = run_load(_make_spec(server, requests, rate, calm_seconds))
        with start_load(_make_spec(server, requests, rate, seconds)) as load:
            time.sleep(2.0)  # until it is under way
            replies = send_all(server.port, hostile, 0.8 * seconds)
            during_all = not load.done()
            beside = load.result()
        alive = server.process.poll() is None
    good = {
        f"{name}_{key}": value
        for name, trial in (("calm", calm), ("beside", beside))
        for key, value in describe_good(trial, expected).items()
    }
    return {**describe_replies(replies), **good, "good_came_throughout": during_all, "alive": alive}


def _make_spec(server: Server, requests: Sequence[bytes], rate: float, seconds: float) -> Spec:
    plan = make_plan([(rate, seconds)], len(requests), seed=5)
    return Spec(server.port, requests, plan, connections=16, warmup=1.0, parse=PARSE, grace=10.0)


def send_all(port: int, hostile: Sequence[Hostile], seconds: float) -> list[Reply]:
    """All of them, spread over so many seconds."""
    start = time.perf_counter()

    def wait_and_send(i: int) -> Reply:
        time.sleep(max(0.0, start + i * seconds / len(hostile) - time.perf_counter()))
        return send(port, hostile[i])

    with ThreadPoolExecutor(SENDERS) as threads:
        return list(threads.map(wait_and_send, range(len(hostile))))


def describe_replies(replies: Sequence[Reply]) -> dict[str, Any]:
    """Counts by kind and outcome, and the kinds that were not refused as they have to be."""
    by_kind = {kind: dict(Counter(one.outcome for one in replies if one.kind == kind)) for kind in list_kinds()}
    refused = [one for one in replies if one.outcome[0] == "4"]
    return {
        "count": len(replies),
        "by_outcome": dict(sorted(Counter(one.outcome for one in replies).items())),
        "by_kind": by_kind,
        "kinds_with_5xx": sorted({one.kind for one in replies if one.outcome[0] == "5"}),
        "kinds_that_hang": sorted({one.kind for one in replies if one.outcome == HANGS}),
        "kinds_let_through": sorted({one.kind for one in replies if one.outcome[0] in "123"}),
        "kinds_without_reason": sorted({one.kind for one in refused if not one.has_reason}),
        "longest_seconds": max((one.seconds for one in replies), default=0.0),
    }


def describe_good(trial: Trial, expected: Expected) -> dict[str, Any]:
    """Of the good requests."""
    counts = {"requests": int(trial.counts.sum()), "failures": trial.failures, "wrong": count_wrong(trial, {"": expected})}
    return {**counts, "p50_ms": 1000 * trial.quantile(0.5), "p99_ms": 1000 * trial.p99}
