"""What becomes of requests when a process is killed, a bundle is replaced, or the server is told to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import exitlens as xl
from benchmarks.edge.networks import SHARES, force_shares
from benchmarks.serving.answers import PARSE, Expected, predict
from benchmarks.serving.load.beside import Poll, start_load, wait_until_idle
from benchmarks.serving.load.trials import Spec, Trial, make_plan
from benchmarks.serving.networks import Prepared, prepare
from benchmarks.serving.ours import ask, make_requests, start_ours, write_json
from benchmarks.serving.rivals.plain import PROXIES, QUIET_RAY
from benchmarks.serving.rivals.servers import Server, start_server
from exitlens.delivery.bundle import find_bundle
from exitlens.serving.models import read_version

RATE, SECONDS = 100.0, 20.0  # requests a second, and for how long
RETRIES = 5
AGAIN = (500, 502, 503)  # which Ray's proxy answers for a replica that is gone
POLL_SECONDS = 0.02
READY = "/v2/health/ready"
WORKER, REPLICA = "multiprocessing.spawn", "ray::ServeReplica"  # in the command lines of the processes


def kill_worker(rate: float = RATE, seconds: float = SECONDS) -> dict[str, Any]:
    """One of two workers is killed in the middle."""
    prepared = prepare("small")
    with start_ours(prepared.exits, prepared.samples[0], workers=2) as server:
        wait_until_idle(server)  # when the second one is ready, too
        return _kill(server, prepared, WORKER, rate, seconds)


def kill_replica(rate: float = RATE, seconds: float = SECONDS, proxy: str = "python") -> dict[str, Any]:
    """One of two replicas of Ray Serve is killed in the middle."""
    try:
        import ray.serve  # noqa: F401
    except ImportError:
        return {"skipped": "Ray Serve is not installed: pip install 'ray[serve]'"}
    prepared = prepare("small")
    with start_replicas(prepared, proxy) as server:
        return _kill(server, prepared, REPLICA, rate, seconds, again=AGAIN)


def start_replicas(prepared: Prepared, proxy: str) -> AbstractContextManager[Server]:
    """Our own application in Ray Serve, ready."""
    arguments = {"bundle": f"net={prepared.exits.resolve()}", "replicas": 2, "cpus": 1, "reload_seconds": 0.0}
    return start_server(
        "benchmarks.serving.faults:serve_replicas",
        {"arguments": arguments},
        path="/v2/models/net/infer",
        probe=json.dumps({"inputs": [write_json(prepared.samples[:1])]}).encode(),
        environment={**QUIET_RAY, **PROXIES[proxy]},
    )


def serve_replicas(settings: Mapping[str, Any]) -> None:
    """In the server's process."""
    from benchmarks.serving.rivals.with_ray import run
    from exitlens.serving.ray import app

    run(app(settings["arguments"]), settings)


def _kill(server: Server, prepared: Prepared, word: str, rate: float, seconds: float, **more: Any) -> dict[str, Any]:
    before, killed = list_processes(server, word), list[int]()

    def kill() -> None:
        killed.append(before[-1])
        os.kill(killed[0], signal.SIGKILL)

    trial, ready = run_with(server, prepared, kill, rate, seconds, **more)
    replaced = sorted(set(list_processes(server, word)) - {*before})
    return {**describe(trial, expect(prepared)), "ready_codes": ready, "killed": len(killed), "replaced": len(replaced)}


def list_processes(server: Server, word: str) -> list[int]:
    """Those that the server started which have this word in their command line."""
    found = []
    for one in sorted(server.list_processes()):
        try:
            if word in Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(one)
        except OSError:  # it has ended
            continue
    return found


def run_with(
    server: Server, prepared: Prepared, act: Callable[[], None], rate: float, seconds: float, **more: Any
) -> tuple[Trial, dict[str, int]]:
    """Load, in the middle of which something is done, and what was said of readiness meanwhile."""
    spec = make_spec(server, prepared, rate, seconds, **{"retries": RETRIES, **more})
    with Poll(lambda: ask(server.port, READY)[0], POLL_SECONDS) as ready, start_load(spec) as load:
        time.sleep(seconds / 2)
        act()
        trial = load.result()
    return trial, ready.count()


def make_spec(server: Server, prepared: Prepared, rate: float, seconds: float, **more: Any) -> Spec:
    """Single samples, each as often as any other."""
    requests = make_requests(prepared)
    plan = make_plan([(rate, seconds)], len(requests), seed=3)
    return Spec(server.port, requests, plan, **{"connections": 16, "parse": PARSE, "grace": 15.0, **more})


def expect(prepared: Prepared, policy: xl.Policy | None = None) -> Expected:
    """What is right, for each prepared sample."""
    return predict(prepared.exits, prepared.samples, policy)


def describe(trial: Trial, expected: Expected) -> dict[str, Any]:
    """Counts of requests: all, lost (no answer with status 200), wrong, sent again."""
    return {
        "requests": len(trial.status),
        "lost": int((trial.status != 200).sum()),
        "wrong": count_wrong(trial, {"": expected}),
        "retries": int(trial.retries.sum()),
        "status": count_status(trial.status),
    }


def count_status(status: Sequence[int] | np.ndarray[Any, Any]) -> dict[str, int]:
    """How often each came; 0: no answer."""
    return {str(code): int(count) for code, count in sorted(Counter(np.asarray(status).tolist()).items())}


def count_wrong(trial: Trial, expected: Mapping[str, Expected]) -> int:
    """Answers to single samples that differ from what is right, but for those near a threshold.

    Args:
        expected: by version; under the empty name, for all versions. An answer by an unknown version is wrong.
    """
    wrong = 0
    for answer, i in zip(trial.answers, trial.which.tolist(), strict=True):
        if answer is None or isinstance(answer, bytes):
            continue
        wanted = expected.get(answer.version, expected.get(""))
        if wanted is None:
            wrong += 1
        elif not wanted.near[i]:
            wrong += bool(answer.labels[0] != wanted.labels[i] or answer.exits[0] != wanted.exits[i])
    return wrong


def reload_under_load(rate: float = RATE, seconds: float = SECONDS, times: int = 4) -> dict[str, Any]:
    """The bundle is replaced by one with another policy, and back, so many times under load."""
    prepared, expected, versions = prepare("small"), dict[str, Expected](), list[str]()
    net, own = xl.load(prepared.exits)
    assert own is not None
    policies = own, force_shares(net, torch.from_numpy(prepared.samples), SHARES[::-1])
    answers = [expect(prepared, one) for one in policies]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        shutil.copytree(prepared.exits, bundle)
        versions.append(read_version(find_bundle(bundle)))

        def replace() -> None:
            for i in range(times):
                others = {f"version-{i}": own}  # so that no version is like another
                xl.save(net, policies[(i + 1) % 2], bundle, policies=others, overwrite=True)
                versions.append(read_version(find_bundle(bundle)))
                time.sleep(seconds / 2 / (times + 1))

        with start_ours(bundle, prepared.samples[0], reload_seconds=0.2) as server:
            trial, ready = run_with(server, prepared, replace, rate, seconds, retries=0)
    expected = {version: answers[i % 2] for i, version in enumerate(versions)}
    named = Counter(one.version for one in trial.answers if one is not None and not isinstance(one, bytes))
    return {
        **describe(trial, answers[0]),
        "wrong": count_wrong(trial, expected),
        "ready_codes": ready,
        "replaced": times,
        "answers_by_version": [named[one] for one in dict.fromkeys(versions)],
        "differing_by_policy": int((answers[0].exits != answers[1].exits).sum()),
        "p99_ms": 1000 * trial.p99,
    }


def terminate_under_load(rate: float = RATE, seconds: float = 8.0, workers: int = 1) -> dict[str, Any]:
    """SIGTERM in the middle: what was sent before has to be answered, later requests may find nobody."""
    prepared, at, ended = prepare("small"), list[float](), list[float]()

    with start_ours(prepared.exits, prepared.samples[0], workers=workers) as server:
        wait_until_idle(server)

        def terminate() -> None:
            at.append(time.perf_counter())
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)
            ended.append(time.perf_counter())

        trial, ready = run_with(server, prepared, terminate, rate, seconds, retries=0, grace=1.0)
    found = describe(trial, expect(prepared)) | part_by_signal(trial, at[0] - trial.started)
    return {**found, "ready_codes": ready, "drain_seconds": ended[0] - at[0]}


def part_by_signal(trial: Trial, at: float) -> dict[str, Any]:
    """Counts of requests sent before a signal and after it.

    ``lost`` are those that were sent before and have no answer with status 200. Of the others, ``answered_after`` were
    sent after it and are answered, ``closed_after`` were sent over a connection that was closed before an answer began,
    ``refused_after`` got another status, and ``unsent`` found nobody to connect to.
    """
    good, sent = trial.status == 200, np.isfinite(trial.sent)
    before, after = sent & (trial.sent <= at), sent & (trial.sent > at)
    return {
        "sent_before": int(before.sum()),
        "lost": int((before & ~good).sum()),
        "answered_after": int((after & good).sum()),
        "closed_after": int((after & (trial.status == 0)).sum()),
        "refused_after": int((after & ~good & (trial.status != 0)).sum()),
        "unsent": int((~sent).sum()),
    }
