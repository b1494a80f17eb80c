"""Pools of stages answer as the network does, and samples leave where the request says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import exitlens as xl
from benchmarks.serving.load.trials import Plan, Spec, run_load
from benchmarks.serving.rivals.pools import (
    HEADER,
    Answer,
    Layout,
    Sample,
    Stages,
    make_pool_requests,
    plan_exits,
    start_pools,
)
from tests.conftest import make_net

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
SAMPLES = np.random.default_rng(0).normal(size=(12, 3, 16, 16)).astype(np.float32)
EXITS = [0, 1, 2, 0, 2, 1, 0, 0, 1, 2, 0, 1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, files_written_once):
    return xl.export(make_net(), xl.Policy((0.8, 0.7)), tmp_path_factory.mktemp("pools") / "edge")


@pytest.fixture(scope="module")
def expected() -> list[Answer]:
    with torch.no_grad():
        labels = [out.logits.argmax(1).tolist() for out in make_net()(torch.from_numpy(SAMPLES))]
    return [Answer(labels[k][i], k) for i, k in enumerate(EXITS)]


def run_groups(bundle, groups):
    """What the pools do, in one process."""
    first = Stages(bundle, groups[0], 1)
    found = [first.read(one.tobytes(), k) for one, k in zip(SAMPLES, EXITS, strict=True)]
    for group in groups:
        waiting = [i for i, one in enumerate(found) if isinstance(one, Sample)]
        for i, one in zip(waiting, Stages(bundle, group, 1)([found[i] for i in waiting]), strict=True):
            found[i] = one
    return found


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0], [1, 2]], [[0], [1], [2]], [[0, 1], [2]]])
def test_every_grouping_gives_the_answers_of_the_network(bundle, expected, groups):
    assert run_groups(bundle, groups) == expected


def test_all_may_leave_at_once_or_at_the_end(bundle):
    stages = Stages(bundle, [0, 1, 2], 1)
    for exit_ in (0, 2, 7):
        found = stages([stages.read(one.tobytes(), exit_) for one in SAMPLES])
        assert [one.exit for one in found] == [min(exit_, 2)] * 12


def test_exits_that_are_not_there(bundle):
    with pytest.raises(ValueError, match="expected some of the bundle's"):
        Stages(bundle, [1, 5], 1)


def test_the_plan_has_the_shares():
    exits = plan_exits(40, (0.5, 0.3, 0.0, 0.2))
    assert np.bincount(exits).tolist() == [20, 12, 0, 8]
    assert exits != sorted(exits)
    assert len(plan_exits(7, (1, 1, 1))) == 7
    assert f"{HEADER}: 3\r\n".encode() in make_pool_requests("/", SAMPLES[:1], [3])[0]


def read_answer(head, body):
    return Answer(**json.loads(body[body.index(b"{") : body.index(b"}") + 1]))


@pytest.mark.slow
def test_on_a_local_ray(bundle, expected):
    pytest.importorskip("ray.serve")
    with start_pools(bundle, Layout(((0,), (1, 2)), (1, 1)), max_batch=4, proxy="python") as server:
        requests = make_pool_requests(server.path, SAMPLES, EXITS)
        plan = Plan(np.arange(24) * 0.01, np.arange(24) % 12)
        parse = "tests.benchmarks.serving.test_pools:read_answer"
        found = run_load(Spec(server.port, requests, plan, connections=12, parse=parse, grace=15.0))
    assert found.failures == 0
    assert found.answers == expected * 2
