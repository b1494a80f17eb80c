"""Measure `exitlens serve` beside another server with the plain backbone, in faults, in overload and under attack.

Cells: throughput-NETWORK[-SIZE], overhead, leavers-NETWORK, answers, faults-KIND, overload-NETWORK, hostile. Needs `make demo-full`; about an
hour on two cores, nothing else running.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import exitlens as xl
from benchmarks.attacks import Hostile, make_hostile
from benchmarks.edge import RESNET, find_near
from benchmarks.harness import Job, Promise, Study, promise_table, table, take_turns
from benchmarks.load import Array, Spec, Trial, find_capacity, make_infer_request, make_request, poll, run_load, start_load
from benchmarks.performance import SHARES, Network, force_shares
from benchmarks.results import Runs, Tree
from benchmarks.servers import Server, ask, start_ours, start_ray, start_replicas
from exitlens.delivery.benchmark import write_plain
from exitlens.delivery.bundle import find_bundle
from exitlens.serving.models import read_version

NETWORKS = {"small": Network("bundle", 40), "resnet50": Network("torchvision:resnet50", 160, RESNET)}
LIMITS = {"small": 0.1, "resnet50": 1.0}  # seconds, of 99 % of the answers
EXITS, PLAIN, RAY = "exits", "plain", "ray"
OUTPUTS = ("label", "exit", "confidence")
SERVER, LOAD = (0,), (1,)  # processors
START = {"small": 200.0, "resnet50": 10.0}  # requests a second at which the search begins
SECONDS = {"small": 4.0, "resnet50": 10.0}  # of a trial
PATIENT = {"max_wait_ms": 10_000.0, "max_waiting": 4096}  # of batching: nothing is refused
RATE, DURATION = 100.0, 20.0  # requests a second during a fault, and for how long
FAULTS = ("kill_worker", "kill_replica", "reload", "terminate")


def list_cells(quick: bool = False) -> dict[str, Job]:
    names = ["small"] if quick else list(NETWORKS)
    return {
        **{f"throughput-{name}": partial(measure_throughput, name) for name in names},
        "throughput-small-16": partial(measure_throughput, "small", 16),
        "overhead": measure_overhead,
        **{f"leavers-{name}": partial(measure_leavers, name) for name in names},
        "answers": partial(compare_answers, 500 if quick else 10_000),
        **{f"faults-{kind}": partial(measure_fault, kind, *((20.0, 6.0) if quick else (RATE, DURATION))) for kind in FAULTS},
        **{f"overload-{name}": partial(measure_overload, name, 5.0 if quick else 60.0) for name in names},
        "hostile": partial(send_hostile, 100, 20.0) if quick else send_hostile,
    }


# What is served: a small network and a ResNet-50, each with exits and plain, and samples that leave in fixed shares


@dataclass(frozen=True)
class Prepared:
    """Bundles to serve, with and without exits and tuned alike."""

    exits: Path
    plain: Path
    onnx: Path  # the plain backbone as an ONNX file, for other servers
    samples: Array  # ``(N,C,H,W)`` float32
    leaves: Array  # ``(N,)`` the exit at which each leaves


def prepare(name: str, threads: int = 1) -> Prepared:
    """Write the bundles of a network once, tuned on this number of threads; tuning may choose ONNX Runtime on both sides."""
    folder = STUDY.folder / f"{name}-{threads}"
    if not (folder / "samples.npz").exists():
        shutil.rmtree(folder, ignore_errors=True)
        torch.set_num_threads(threads)
        write_bundles(name, folder)
    with np.load(folder / "samples.npz") as kept:
        return Prepared(folder / EXITS, folder / PLAIN, folder / "plain.onnx", kept["samples"], kept["leaves"])


def write_bundles(name: str, folder: Path) -> None:
    plain, net, images, _ = NETWORKS[name].build()
    images = images[:256]
    if net.info.source == "":
        net.describe(source=NETWORKS[name].source)
    net.tune(images[:64])
    policy = force_shares(net, images)
    xl.save(net, policy, folder / EXITS)
    leaves = torch.cat([xl.predict(net, batch, policy).exits for batch in images.split(32)])
    whole = xl.attach(plain, [], net.info.num_classes, images[:1], final="keep")
    whole.describe(source=net.info.source)
    whole.tune(images[:64])
    xl.save(whole, xl.Policy(()), folder / PLAIN)
    file = write_plain(plain, images[:2])  # its directory goes with it
    shutil.copy(file.path, folder / "plain.onnx")
    shares = [(leaves == k).float().mean().item() for k in range(net.num_exits)]
    if max(abs(share - wanted) for share, wanted in zip(shares, SHARES, strict=True)) > 0.02:
        raise RuntimeError(f"{name}: expected the shares {SHARES}, got {shares}")
    np.savez(folder / "samples.npz", samples=images.numpy(), leaves=leaves.numpy())


def make_requests(prepared: Prepared, size: int = 1) -> list[bytes]:
    whole = len(prepared.samples) // size * size
    return [make_infer_request(prepared.samples[at : at + size], OUTPUTS) for at in range(0, whole, size)]


# Requests a second that each server sustains within the limit, its overhead for a single request, and the waits by exit


def measure_throughput(name: str, size: int = 1) -> Tree:
    """Find the requests a second at p99 within the limit: ours, the plain backbone in our server, and in Ray Serve."""
    prepared, measured = prepare(name), {}
    for server in (EXITS, PLAIN, RAY) if size == 1 else (EXITS, PLAIN):
        if server == RAY:
            requests = [make_request("/", sample.tobytes()) for sample in prepared.samples]
            start = start_ray(prepared.onnx, prepared.samples.shape[1:], SERVER)
        else:
            requests = make_requests(prepared, size)
            start = start_ours(getattr(prepared, server), prepared.samples[0], processors=SERVER, batching=PATIENT)
        with start as running:
            spec = Spec(running.port, requests, connections=64, warmup=1.0, grace=3.0, processors=LOAD)
            capacity = find_capacity(partial(run_trial, spec, SECONDS[name], count()), LIMITS[name], START[name] / size)
        p99 = [1000 * seconds for seconds in capacity.p99]
        measured[server] = {"samples_a_second": capacity.rate * size, "p99_ms": p99}
        print(f"  {name}, {size} a request, {server}: {measured[server]}", flush=True)
    return measured


def run_trial(spec: Spec, seconds: float, seeds: Iterator[int], rate: float) -> Trial:
    return run_load(spec.plan([(rate, spec.warmup + seconds)], seed=next(seeds)))


def find_rate(name: str) -> float:
    return STUDY.read()[f"throughput-{name}"][EXITS]["samples_a_second"]


def measure_overhead(name: str = "small", rounds: int = 400) -> Tree:
    """Time one request at a time over loopback, and ``predict`` on the same sample, in turn."""
    prepared = prepare(name, 2)
    (net, policy), requests = xl.load(prepared.exits), make_requests(prepared)
    with start_ours(prepared.exits, prepared.samples[0], batching={"threads": 2}) as server:
        connection = socket.create_connection(("127.0.0.1", server.port))

        def ask_server(turn: int) -> None:
            connection.sendall(requests[turn % len(requests)])
            answer = b""
            while not is_whole(answer):
                answer += connection.recv(1 << 16)

        def ask_library(turn: int) -> None:
            row = turn % len(requests)
            xl.predict(net, torch.from_numpy(prepared.samples[row : row + 1]), policy)

        works = {"over_http": ask_server, "predict": ask_library}
        seconds = take_turns(works, rounds, warm_up=rounds // 10, clock=time.perf_counter)
        connection.close()
    middle = {key: 1000 * statistics.median(values) for key, values in seconds.items()}
    return {"ms": middle, "above_ms": middle["over_http"] - middle["predict"]}


def measure_leavers(name: str, share: float = 0.7, seconds: float = 20.0) -> Tree:
    """Time the answers at exit 0, and at the last exit, at a share of the rate that the server sustains."""
    prepared, rate = prepare(name), share * find_rate(name)
    kinds = [f"exit {k}" for k in prepared.leaves.tolist()]
    with start_ours(prepared.exits, prepared.samples[0], processors=SERVER) as server:
        spec = Spec(server.port, make_requests(prepared), kinds=kinds, connections=64, warmup=2.0, processors=LOAD)
        trial = run_load(spec.plan([(rate, seconds)], seed=1))
    ms = {kind: [1000 * trial.quantile(q, kind) for q in (0.5, 0.9, 0.99)] for kind in sorted({*kinds})}
    return {"rate": rate, "failures": trial.failures, "ms": ms, "ratio": ms["exit 0"][0] / ms[max(kinds)][0]}


# Does the server answer what ``predict`` answers, however requests of many clients come in between one another?


class Answer(NamedTuple):
    """The server's answer to a request, and the version of the model that gave it."""

    version: str
    labels: Array
    exits: Array
    scores: Array


class Expected(NamedTuple):
    """The answers of ``predict``: labels, exits, scores at those exits, and whether a score is near a threshold."""

    labels: Array
    exits: Array
    scores: Array
    near: Array


def read_answer(answer: bytes) -> Answer | None:
    read = read_outputs(answer)
    return None if read is None else Answer(read[0], *(read[1][name] for name in OUTPUTS))


def read_outputs(answer: bytes) -> tuple[str, dict[str, Array]] | None:
    """Return the model's version and the outputs by name; ``None``: the server has not answered."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if head[9:12] != b"200":
        return None
    fields = dict(line.partition(b":")[::2] for line in head.lower().split(b"\r\n"))
    at = int(fields.get(b"inference-header-content-length", len(body)))
    content, outputs = json.loads(body[:at]), {}
    for output in content["outputs"]:
        dtype = {"INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_}[output["datatype"]]
        if "data" in output:
            values = np.array(output["data"], dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            values, at = np.frombuffer(body[at : at + size], dtype), at + size
        outputs[output["name"]] = values.reshape(output["shape"])
    return content["model_version"], outputs


def predict(bundle: Path, samples: Array, policy: xl.Policy | None = None) -> Expected:
    """Return the library's answers under a policy; by default the bundle's own."""
    net, kept = xl.load(bundle)
    policy = policy or kept
    images = torch.from_numpy(samples)
    preds = [xl.predict(net, batch, policy) for batch in images.split(64)]
    parts = (torch.cat([getattr(pred, name) for pred in preds]).numpy() for name in ("labels", "exits", "confidence"))
    return Expected(*parts, find_near(net, policy, images))


def compare_answers(count: int = 10_000, rate: float = 150.0, part: int = 2000) -> Tree:
    """Compare answers to requests of 1 to 4 images, in random order over many connections, with those of ``predict``."""
    prepared, rng, compared = prepare("small"), np.random.default_rng(0), list[Tree]()
    connections, batching = 32, {"max_wait_ms": 60_000.0, "max_waiting": 4096}
    with start_ours(prepared.exits, prepared.samples[0], batching=batching) as server:
        for at in range(0, count, part):
            rows = rng.integers(0, len(prepared.samples), min(part, count - at))
            noise = 0.02 * rng.standard_normal((len(rows), *prepared.samples.shape[1:]))
            samples = (prepared.samples[rows] + noise).astype(np.float32)
            expected, cuts = predict(prepared.exits, samples), list(cut(len(samples), rng))
            requests = [make_infer_request(samples[rows], OUTPUTS) for rows in cuts]
            due, order = np.sort(rng.uniform(0, len(cuts) / rate, len(cuts))), rng.permutation(len(cuts))  # each once
            spec = Spec(server.port, requests, due, order, connections=connections, grace=20.0, keep=True)
            compared.append(compare(run_load(spec), [Expected(*(part[cuts[i]] for part in expected)) for i in order]))
    sums = {key: sum(counts[key] for counts in compared) for key in compared[0] if key != "score_gap"}
    return {"connections": connections, **sums, "score_gap": max(counts["score_gap"] for counts in compared)}


def cut(count: int, rng: np.random.Generator) -> Iterator[slice]:
    at = 0
    while at < count:
        size = min(int(rng.integers(1, 5)), count - at)
        yield slice(at, at + size)
        at += size


def compare(trial: Trial, expected: Sequence[Expected]) -> Tree:
    """Count samples whose label or exit differs from what is expected of each request, those near a threshold, and unanswered requests."""
    counts: Tree = {"requests": len(expected), "unanswered": 0, "samples": 0, "differing": 0, "differing_near": 0}
    gap = 0.0
    for answer, wanted in zip(map(read_answer, trial.answers), expected, strict=True):
        if answer is None:
            counts["unanswered"] += 1
            continue
        differs = (answer.labels != wanted.labels) | (answer.exits != wanted.exits)
        counts["samples"] += len(differs)
        counts["differing"] += int(differs.sum())
        counts["differing_near"] += int((differs & wanted.near).sum())
        gap = max(gap, *np.abs(answer.scores - wanted.scores)[~differs].tolist(), 0.0)
    return {**counts, "score_gap": gap}


# What happens to requests when a process is killed, a bundle is replaced, or the server is told to end


def measure_fault(kind: str, rate: float, seconds: float) -> Tree:
    prepared = prepare("small")
    if kind == "reload":
        return reload_under_load(prepared, rate, seconds)
    if kind == "terminate":
        return terminate_under_load(prepared, rate, seconds / 2)
    served = prepared.exits, prepared.samples[0]
    if kind == "kill_worker":
        return kill(start_ours(*served, workers=2), prepared, "multiprocessing.spawn", rate, seconds)
    return kill(start_replicas(*served), prepared, "ray::ServeReplica", rate, seconds)


def run_with(
    server: Server, prepared: Prepared, act: Callable[[], None], rate: float, seconds: float, **settings: Any
) -> tuple[Trial, Tree]:
    """Run a load of single samples and act in its middle; return the trial, and counts of requests and readiness checks."""
    spec = Spec(server.port, make_requests(prepared), connections=16, keep=True, **{"grace": 15.0, **settings})
    planned = spec.plan([(rate, seconds)], seed=3)
    with poll(lambda: ask(server.port, "/v2/health/ready")[0], 0.02) as ready, start_load(planned) as load:
        time.sleep(seconds / 2)
        act()
        trial = load.result()
    lost, codes = int((trial.status != 200).sum()), dict(sorted(Counter(map(str, ready)).items()))
    return trial, {"requests": len(trial.status), "lost": lost, "ready_codes": codes}


def kill(start: AbstractContextManager[Server], prepared: Prepared, word: str, rate: float, seconds: float) -> Tree:
    """Kill one of two processes with a word in their command lines; clients send again what Ray's proxy could not."""
    with start as server:
        server.wait_until_idle()  # when the second one is ready, too
        act = partial(os.kill, server.find_processes(word)[-1], signal.SIGKILL)
        again = (500, 502, 503) if "ray" in word else ()
        trial, counts = run_with(server, prepared, act, rate, seconds, retries=5, again=again)
    return counts | {"wrong": count_wrong(trial, {"": predict(prepared.exits, prepared.samples)})}


def count_wrong(trial: Trial, expected: Mapping[str, Expected]) -> int:
    """Count wrong answers to single samples, except near a threshold; ``expected`` is by version, or for all versions under the empty name."""
    wrong = 0
    for answer, i in zip(map(read_answer, trial.answers), trial.which.tolist(), strict=True):
        if answer is not None:
            wanted = expected.get(answer.version, expected.get(""))
            as_wanted = wanted and (answer.labels[0], answer.exits[0]) == (wanted.labels[i], wanted.exits[i])
            wrong += not (as_wanted or (wanted and wanted.near[i]))
    return wrong


def reload_under_load(prepared: Prepared, rate: float, seconds: float, times: int = 4) -> Tree:
    """Replace the bundle by one with another policy, and back, several times."""
    versions = list[str]()
    net, policy = xl.load(prepared.exits)
    policies = policy, force_shares(net, torch.from_numpy(prepared.samples), SHARES[::-1])
    answers = [predict(prepared.exits, prepared.samples, each) for each in policies]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        shutil.copytree(prepared.exits, bundle)
        versions.append(read_version(find_bundle(bundle)))

        def act() -> None:
            for i in range(times):
                others = {f"version-{i}": policy}  # so that no version is like another
                xl.save(net, policies[(i + 1) % 2], bundle, policies=others, overwrite=True)
                versions.append(read_version(find_bundle(bundle)))
                time.sleep(seconds / 2 / (times + 1))

        with start_ours(bundle, prepared.samples[0], reload_seconds=0.2) as server:
            trial, counts = run_with(server, prepared, act, rate, seconds)
    return counts | {"wrong": count_wrong(trial, {version: answers[i % 2] for i, version in enumerate(versions)})}


def terminate_under_load(prepared: Prepared, rate: float, seconds: float) -> Tree:
    """Send SIGTERM: what was sent before has to be answered, later requests may find nobody."""
    with start_ours(prepared.exits, prepared.samples[0], workers=1) as server:
        server.wait_until_idle()
        told = list[float]()

        def act() -> None:
            told.append(time.perf_counter())
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)

        trial, counts = run_with(server, prepared, act, rate, seconds, grace=1.0)
    wrong = count_wrong(trial, {"": predict(prepared.exits, prepared.samples)})
    return counts | {"lost": count_lost(trial, told[0] - trial.started), "wrong": wrong}


def count_lost(trial: Trial, at: float) -> int:
    """Count the requests that were sent before a moment and not answered with 200."""
    return int(((trial.sent <= at) & (trial.status != 200)).sum())  # one that was never sent has no time


# Three times the load that a server sustains: what is refused, how late the others are, and how soon it recovers

CALM, OVER, CALM_SECONDS = 0.3, 3.0, 10.0  # shares of the rate that the server sustains; seconds before and after
WAIT = 0.4  # share of the limit that work before a request may take; the rest is for the request and its batch


def measure_overload(name: str, seconds: float = 60.0) -> Tree:
    prepared, limit, rate = prepare(name), LIMITS[name], find_rate(name)
    phases = [(CALM * rate, CALM_SECONDS), (OVER * rate, seconds), (CALM * rate, CALM_SECONDS)]
    batching = {"max_wait_ms": 1000 * WAIT * limit, "max_waiting": 4096}
    with start_ours(prepared.exits, prepared.samples[0], processors=SERVER, batching=batching) as server:
        spec = Spec(server.port, make_requests(prepared), connections=512, warmup=1.0, processors=LOAD)
        before = server.read_memory()
        with poll(server.read_memory, 0.5) as memory:
            trial = run_load(spec.plan(phases, seed=7))
        after = server.read_memory()
    end = CALM_SECONDS + seconds
    held = {"before": before, "peak": max([before, after, *memory])}
    over, recovery = describe_part(trial, CALM_SECONDS, end), find_recovery(trial, end, limit)
    return {"limit_ms": 1000 * limit, "memory_mb": held, "recovery_seconds": recovery, "overload": over}


def describe_part(trial: Trial, start: float, end: float) -> Tree:
    """Describe requests that were due in these seconds: their number, the 99th percentile of answers, neither answered nor refused."""
    chosen = (trial.due >= start) & (trial.due < end)
    seconds, status = (trial.finished - trial.due)[chosen], trial.status[chosen]
    p99 = float(np.quantile(seconds[status == 200], 0.99, method="higher")) if (status == 200).any() else math.inf
    others = int((~np.isin(status, (200, 429, 503))).sum())
    return {"requests": int(chosen.sum()), "accepted_p99_ms": 1000 * p99, "others": others}


def find_recovery(trial: Trial, end: float, limit: float) -> float | None:
    """Return the seconds after ``end`` from which on all requests are answered with 200 within the limit; ``None``: never."""
    later = trial.due >= end
    bad = later & ~(trial.latency <= limit)
    if not later.any() or bad[np.flatnonzero(later)[-1]]:
        return None
    return float(trial.due[bad].max() - end) if bad.any() else 0.0


# Hostile requests beside good ones: each is refused with a reason, and no good one notices

PATIENCE, SENDERS = 5.0, 32  # seconds after the last byte, after which a connection hangs; hostile clients at a time
CLOSED, HANGS = "closed", "hangs"


class Reply(NamedTuple):
    """The outcome of a hostile request: a status, "closed" or "hangs"; and whether a JSON ``error`` says why."""

    kind: str
    outcome: str
    has_reason: bool


def send(port: int, hostile: Hostile) -> Reply:
    answer, hangs = b"", False
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        with contextlib.suppress(OSError):  # the server may have closed it: its answer may still be there
            for i, part in enumerate(hostile.parts):
                client.sendall(part)
                if hostile.pause and i < len(hostile.parts) - 1:
                    time.sleep(hostile.pause)
            if hostile.closes:
                client.shutdown(socket.SHUT_WR)
        written = time.perf_counter()
        try:
            while not is_whole(answer) and time.perf_counter() - written < PATIENCE:
                part = client.recv(1 << 16)
                if not part:
                    break
                answer += part
        except TimeoutError:
            hangs = True
        except OSError:  # reset
            pass
    status = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.") else CLOSED
    reason: Any = None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        reason = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    has_reason = isinstance(reason, str) and len(reason) > 10
    return Reply(hostile.kind, HANGS if hangs else status, has_reason)


def is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"")
    return bool(end) and (not length or len(body) >= int(length.partition(b":")[2]))


def send_hostile(count: int = 1000, seconds: float = 90.0, rate: float = 50.0) -> Tree:
    """Send hostile requests of all kinds, evenly in time, beside good ones from another process."""
    prepared = prepare("small")
    attacks = list(make_hostile(count, prepared.samples.shape[1:]))
    limits = {"header_seconds": 1.0, "body_seconds": 1.0, "request_seconds": 10.0}
    with start_ours(prepared.exits, prepared.samples[0], limits=limits) as server:
        spec = Spec(server.port, make_requests(prepared), connections=16, warmup=1.0, grace=10.0, keep=True)
        with start_load(spec.plan([(rate, seconds)], seed=5)) as load:
            time.sleep(2.0)  # until it is under way
            replies = send_all(server.port, attacks, 0.8 * seconds)
            if load.done():
                raise RuntimeError("good requests had ended before the hostile ones. Fix: send them for longer.")
            trial = load.result()
    wrong = count_wrong(trial, {"": predict(prepared.exits, prepared.samples)})
    return {**describe_replies(replies), "beside_failures": trial.failures, "beside_wrong": wrong}


def send_all(port: int, attacks: Sequence[Hostile], seconds: float) -> list[Reply]:
    start = time.perf_counter()

    def wait_and_send(i: int) -> Reply:
        time.sleep(max(0.0, start + i * seconds / len(attacks) - time.perf_counter()))
        return send(port, attacks[i])

    with ThreadPoolExecutor(SENDERS) as threads:
        return list(threads.map(wait_and_send, range(len(attacks))))


def describe_replies(replies: Sequence[Reply]) -> Tree:
    """Count replies by outcome, and name the kinds of requests that were refused without a reason, or not refused."""
    return {
        "count": len(replies),
        "by_outcome": dict(sorted(Counter(reply.outcome for reply in replies).items())),
        "kinds_not_refused": sorted({reply.kind for reply in replies if reply.outcome[0] not in "4c"}),
        "kinds_without_reason": sorted(
            {reply.kind for reply in replies if reply.outcome[0] == "4" and not reply.has_reason}
        ),
    }


RIVALS = {PLAIN: "the same server", RAY: "Ray Serve"}


def list_promises(runs: Runs) -> Iterator[Promise]:
    for run, measured in runs.items():
        kind, _, name = run.partition("-")
        match kind:
            case "throughput":
                ours = measured[EXITS]["samples_a_second"]
                for rival in [rival for rival in RIVALS if rival in measured]:
                    what = f"{name}: requests a second within the limit, over the plain backbone in {RIVALS[rival]}"
                    yield Promise(f"serving|{name}|{rival}", what, ours / measured[rival]["samples_a_second"], ">=", 2.0)
            case "overhead":
                what = "one request at a time: milliseconds above predict's own"
                yield Promise("serving|overhead", what, measured["above_ms"], "<=", 2.0)
            case "leavers":
                what = f"{name}: at 70 % load, p50 at exit 0 over p50 at the final exit"
                yield Promise(f"serving|leavers|{name}", what, measured["ratio"], "<=", 0.5)
            case "answers":
                what = f"{measured['samples']:,} images from {measured['connections']} connections"
                others = measured["differing"] - measured["differing_near"] + measured["unanswered"]
                different = f"{what}: other labels or exits than predict, or no answer"
                yield Promise("serving|answers", different, others, "<=", 0, exact=True)
                yield Promise("serving|scores", f"{what}: furthest score", measured["score_gap"], "<=", 1e-5, exact=True)
            case "faults":
                codes = {code: count for code, count in measured["ready_codes"].items() if code != "200"}
                counts = {f"requests {key}": measured[key] for key in ("lost", "wrong")}
                counts |= {"readiness checks that failed": sum(codes.values())} if name != "terminate" else {}
                for key, count in counts.items():
                    what = f"{name.replace('_', ' ')}, under load: {key}"
                    yield Promise(f"serving|{name}|{key}", what, count, "<=", 0, exact=True)
            case "overload":
                yield from promise_overload(name, measured)
            case "hostile":
                refused = sum(n for code, n in measured["by_outcome"].items() if code[0] == "4" or code == CLOSED)
                what = f"{measured['count']:,} hostile requests: neither a 4xx with a reason nor, where they end the connection, closed"
                without = measured["count"] - refused + len(measured["kinds_without_reason"])
                yield Promise("serving|hostile|bad", what, without, "<=", 0, exact=True)
                what, bad = (
                    "good requests beside them: lost or wrong",
                    measured["beside_failures"] + measured["beside_wrong"],
                )
                yield Promise("serving|hostile|good", what, bad, "<=", 0, exact=True)


def promise_overload(name: str, measured: Tree) -> Iterator[Promise]:
    over, memory, recovery = (measured[key] for key in ("overload", "memory_mb", "recovery_seconds"))
    for key, what, figure, bar in (
        ("memory", "megabytes added", memory["peak"] - memory["before"], 200),
        ("p99", "p99 of accepted requests over the limit", over["accepted_p99_ms"] / measured["limit_ms"], 2),
        ("other", "neither answered nor refused", over["others"], 0),
        ("recovery", "seconds until it recovers", 99.0 if recovery is None else recovery, 2),
    ):
        what = f"{name}, a minute at three times its capacity: {what}"
        yield Promise(f"serving|overload|{name}|{key}", what, figure, "<=", bar, exact=key == "other")


def write_throughput(runs: Runs) -> list[str]:
    rows = []
    for run, measured in runs.items():
        if run.startswith("throughput-"):
            network, _, size = run.removeprefix("throughput-").partition("-")
            for server, capacity in measured.items():
                p99 = " / ".join(f"{value:.0f}" for value in capacity["p99_ms"])
                title = f"plain backbone in {RIVALS[server]}" if server in RIVALS else "with exits"
                rows.append([network, size or "1", title, f"{capacity['samples_a_second']:.0f}", p99])
    head = ["network", "samples in a request", "server", "samples a second", "p99, ms: median / least / most of three"]
    note = "50 / 30 / 0 / 20 % of the samples leave at exits 0 to 3. The server has one core, the load the other."
    return [note, "", *table(head, rows)]


TABLES = {"serving-throughput": write_throughput, "serving-promises": lambda runs: promise_table(list_promises(runs))}
STUDY = Study("serving", list_cells, list_promises, TABLES)
