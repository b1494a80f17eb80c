"""What is timed and compared, on a tiny network."""

import json

import numpy as np
import pytest
import torch

import exitlens as xl
from benchmarks.edge import int8, speed
from benchmarks.edge.decisions import _ask, _ask_cascade, find_near
from benchmarks.edge.networks import force_shares
from benchmarks.store import flatten
from tests.conftest import TinyNet, make_net

runtime = pytest.importorskip("exitlens_runtime")
pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True, scope="module")
def _written_once(files_written_once):
    """For every test here."""


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.5, 0.0, 0.5), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)])
def test_samples_leave_in_the_shares_that_are_forced(images, shares):
    net = make_net()
    exits = xl.predict(net, images, force_shares(net, images, shares)).exits
    assert exits.bincount(minlength=3).tolist() == [round(40 * share) for share in shares]


def test_everything_is_timed_side_by_side(images):
    pytest.importorskip("openvino")
    built, sizes = (TinyNet().eval(), make_net(), images), []
    rival = lambda images, policy: lambda: [sizes.append(len(images)) or 1.0]  # noqa: E731
    found = speed.measure_speed(built, 8, 1, shares=(0.5, 0.3, 0.2), count=16, seconds=0.0, others={speed.EARLYON: rival})
    assert found["rounds"] == 5
    assert sizes == [16] * 6  # once to warm up
    assert {"runtime", "cascade", "plain, ONNX Runtime", "exits, PyTorch", "runtime, OpenVINO"} < set(found["ms"])
    for name in ("torch_over_runtime", "plain_over_runtime", "runtime_over_cascade", "efficiency", "saving"):
        assert len(found[name]) == 3
    assert found["earlyon_over_runtime"][0] > 1  # a second a call
    assert list(flatten(json.loads(json.dumps(found))))


def test_the_ideal_is_stage_times_by_shares():
    steps = speed.StageTimes(None, [])
    steps.rounds = [[1.0, 2.0, 4.0]]
    assert steps.find_ideal((0.5, 0.25, 0.25)) == [1.0 + 0.5 * 2.0 + 0.25 * 4.0]


def test_other_decisions_are_seen(images, tmp_path):
    net = make_net()
    policy = force_shares(net, images, (0.5, 0.3, 0.2))
    edge = xl.export(net, policy, tmp_path / "edge")
    expected = xl.predict(net, images, policy, attention=True)
    for answer in (_ask(runtime.load(edge, threads=1)), _ask_cascade(speed.Cascade(edge, policy, 1))):
        labels, exits, maps = answer(images.numpy())
        assert exits.tolist() == expected.exits.tolist()
        assert labels.tolist() == expected.labels.tolist()
        assert all(np.abs(a - b.numpy()).max() < 1e-4 for a, b in zip(maps, expected.attention, strict=True))
    assert not find_near(net, policy, images).any()
    at = xl.Policy((float(expected.confidence[expected.exits == 0][0]), 2.0), temperatures=policy.temperatures)
    assert find_near(net, at, images).sum() == 1


def test_the_same_files_give_the_same_labels_in_float32(images, tmp_path):
    net = make_net()
    walk = int8.Walk(int8.write_stages(tmp_path, net, xl.Policy((0.0, 0.0))))
    with torch.no_grad():
        expected = [out.logits for out in net(images)]
    assert all(np.allclose(a, b.numpy(), atol=1e-4) for a, b in zip(walk(images.numpy()), expected, strict=True))
