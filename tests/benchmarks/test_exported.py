"""Exported and timed networks, relevance maps, backbones and versions: on a tiny network and made-up figures."""

import json
import tomllib

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

import exitlens as xl
from benchmarks import backbones, compat, edge, performance, relevance
from benchmarks.results import flatten
from exitlens.workflow.faithfulness import measure_faithfulness
from scripts.release.environments import VERSIONS
from scripts.release.versions import ROOT
from tests.conftest import TinyNet, make_net

# Performance


def test_savings_are_of_the_faster_form_and_memory_is_compared_with_the_first_fifth():
    rows = {
        "exits, all at exit 0": {"ms": [2.0], "saving": [0.9, 0.89, 0.91], "efficiency": [0.8, 0.79, 0.81]},
        "exits, all at exit 0, compiled": {"ms": [1.0], "saving": [0.97, 0.96, 0.98], "efficiency": [0.9, 0.89, 0.91]},
    }
    runs = {"x-1": {"batches": {"8": {"rows": rows}}}, "memory-x-1": {"resident_mb": [100.0, 101.0, 104.0]}}
    judged = {promise.key: promise for promise in performance.list_promises(runs)}
    assert judged["saving|all at exit 0|x-1|8"].measured == 0.97
    assert "(compiled, the faster)" in judged["saving|all at exit 0|x-1|8"].what
    assert judged["memory|x-1"].measured == 1.04


# Edge


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.5, 0.0, 0.5), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)])
def test_samples_leave_in_the_shares_that_are_forced(images, shares):
    net = make_net()
    exits = xl.predict(net, images, performance.force_shares(net, images, shares)).exits
    assert exits.bincount(minlength=3).tolist() == [round(40 * share) for share in shares]


@pytest.mark.slow
def test_everything_is_timed_side_by_side(images, files_written_once):
    pytest.importorskip("openvino")
    built = TinyNet().eval(), make_net(), images
    measured = edge.measure_speed(built, 8, 1, shares=(0.5, 0.3, 0.2), count=16, seconds=0.0)
    assert measured["rounds"] == 5
    assert {"runtime", "cascade", "plain, ONNX Runtime", "exits, PyTorch", "runtime, OpenVINO"} < set(measured["ms"])
    assert list(flatten(json.loads(json.dumps(measured))))


def test_the_ideal_is_stage_times_by_shares():
    steps = edge.StageTimes(None, [])
    steps.rounds = [[1.0, 2.0, 4.0]]
    assert steps.find_ideal((0.5, 0.25, 0.25)) == [1.0 + 0.5 * 2.0 + 0.25 * 4.0]


@pytest.mark.slow
def test_other_decisions_are_seen(images, tmp_path, files_written_once):
    pytest.importorskip("openvino")
    net = make_net()
    policy = performance.force_shares(net, images, (0.5, 0.3, 0.2))
    expected = xl.predict(net, images, policy, attention=True)
    for answer in edge.make_answers(xl.export(net, policy, tmp_path / "edge"), policy).values():
        labels, exits, maps = answer(images.numpy())
        assert exits.tolist() == expected.exits.tolist()
        assert labels.tolist() == expected.labels.tolist()
        assert all(np.abs(a - b.numpy()).max() < 1e-4 for a, b in zip(maps, expected.attention, strict=True))
    assert not edge.find_near(net, policy, images).any()
    at = xl.Policy((float(expected.confidence[expected.exits == 0][0]), 2.0), temperatures=policy.temperatures)
    assert edge.find_near(net, at, images).sum() == 1
    walk = edge.Walk(edge.write_stages(tmp_path, net, xl.Policy((0.0, 0.0))))
    with torch.no_grad():
        logits = [out.logits for out in net(images)]
    assert all(np.allclose(a, b.numpy(), atol=1e-4) for a, b in zip(walk(images.numpy()), logits, strict=True))


# Relevance


def test_the_layer_changes_nothing_and_is_what_exit_0_reads(net, images):
    module, seen = relevance.WithLayer(net.eval()), []
    module.features.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    with torch.no_grad():
        assert torch.equal(module(images), net(images)[-1].logits)
        assert torch.equal(seen[0], net.stage(0)(images)[0])


@pytest.mark.slow
def test_maps_of_others_are_judged_as_faithfulness_judges_ours(net):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 16, 16), generator=rng, dtype=torch.uint8)
    data = xl.data.ImageSet(pixels, torch.zeros(12, dtype=torch.long), ("a", "b", "c", "d"))
    ours = relevance.make_ours(net.eval(), "gradient_x_input")
    makers = {"relevance": ours, "nothing": lambda x, _: torch.zeros(len(x), 8, 8)}
    judged = relevance.judge(net, data.inputs, data.labels, makers)
    assert [row["judged_at"] for row in judged.values()] == [0, 1, 2, 2, 2]
    assert {row["grid"] for row in judged.values()} == {"4 x 4"}  # that of the deep exits
    last = measure_faithfulness(net, data, grid=(4, 4), of="relevance", oracle_samples=12)
    for name in ("deletion", "insertion", "deletion_oracle", "deletion_random", "insertion_oracle"):
        assert judged["relevance"][name] == pytest.approx(getattr(last, name)[-1], abs=1e-6)
    attention = measure_faithfulness(net, data, grid=(4, 4), oracle_samples=12)
    for k, name in enumerate(("attention, exit 0", "attention, exit 1", "attention, final")):
        assert judged[name]["insertion_share"][0] == pytest.approx(attention.insertion_share[k], rel=1e-4)


@pytest.mark.slow
def test_makers_agree_where_libraries_compute_the_same(net, images):
    pytest.importorskip("torchcam")  # of the extra benchmark
    x = images[:4]
    labels = net.eval()(x)[-1].logits.argmax(1)
    maps = {name: make(x, labels) for name, make in relevance.list_makers(net).items()}
    assert all(len(values) == 4 and values.isfinite().all() for values in maps.values())
    assert maps["captum, LayerGradientXActivation"].min() < 0  # judged by the positive part of averages
    positive = maps["captum, LayerGradCam"].clamp_min(0)
    scaled = positive - positive.amin((1, 2), keepdim=True)
    scaled = scaled / scaled.amax((1, 2), keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(scaled, maps["torchcam, GradCAM"], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_explanations_are_timed_by_the_exit_that_answers(net, images):
    explained = relevance.time_explanations(net.eval(), images[:2], rounds=1)
    assert list(explained) == ["0", "1", "2"]
    assert all(len(row["ratio"]) == 3 and row["forward_ms"][0] > 0 for row in explained.values())


# Backbones and versions


@pytest.mark.slow
def test_a_small_backbone_passes_everything():
    row = backbones.try_backbone(backbones.Backbone("small (ours)", "small", 40, at=("layer2",)))
    assert backbones.passes(row)
    assert not backbones.passes({**row, "edge": False})
    assert not backbones.passes({**row, "eval_gap": 1e-9})
    assert not backbones.passes({"error": "refused"})


REPORT = """<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1">
<testcase name="test_a"/><testcase name="test_b"><failure message="AssertionError: 1 != 2&#10;more"/></testcase>
<testcase name="test_c"><skipped/></testcase><testcase name="test_d"/></testsuite></testsuites>"""


def test_the_report_of_tests(tmp_path):
    (tmp_path / "r.xml").write_text(REPORT)
    assert compat.read_report(tmp_path / "r.xml") == {"tests": 3, "failed": 1, "fault": "test_b: AssertionError: 1 != 2"}


def test_cells_hold_to_the_lower_bounds_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={VERSIONS[0]}"
    assert f"torch>={compat.TORCH[0]}" in project["dependencies"]
    assert compat.find_lowest("transformers").endswith(".*")
    assert len({cell.name for cell in compat.CELLS}) == len(compat.CELLS)
    assert {cell.torch for cell in compat.CELLS} == set(compat.TORCH)
    assert {cell.python for cell in compat.CELLS} == set(VERSIONS)
    for cell in compat.CELLS:
        bounds = [req.specifier for req in map(Requirement, cell.list_requirements()) if req.name == "torch"]
        assert all(bound.contains(f"{cell.torch}.1") for bound in bounds)
