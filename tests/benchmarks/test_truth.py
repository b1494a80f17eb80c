"""What is judged on seven tasks, on made-up runs, and one run on a tiny task."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import exitlens as xl
from benchmarks import tasks, truth
from exitlens.model.backbones.small import SmallResNet


def make_run(share, skill, accuracy, energy=(0.8, 0.8, 0.8)):
    return {
        "cost": [0.2, 0.6, 1.0],
        "skill": skill,
        "tests": {name: {"samples": 9, "accuracy": accuracy} for name in ("agreeing", "unseen")},
        "attention": {"deletion_share": list(share), "deletion_share_error": [0.0] * 3, "energy_in_mask": list(energy)},
        "relevance": {"deletion_share": [1, 1, 1]},
    }


def make_runs(task, seeds):
    plain = {"cost": [1.0], "tests": {name: {"samples": 9, "accuracy": [0.91]} for name in ("agreeing", "unseen")}}
    runs = {f"{task}/plain-{seed}": plain for seed in range(seeds)}
    runs |= {f"{task}/egt-{seed}": make_run((0.5, 0.95, 1.0), [0.5, 0.97], [0.8, 0.9, 0.9]) for seed in range(seeds)}
    return runs | {f"{task}/without-{s}": make_run((0.6, 0.9, 0.8), [0, 0], [0.82, 0.9, 0.9]) for s in range(seeds)}


def judge(runs):
    return {promise.key: promise for promise in truth.list_promises(runs)}


def test_promises_of_scenes():
    judged = judge(make_runs("scenes", 5))
    expected = {"share|1": 0.95, "skill": 0.97, "final": -1.0, "exit0|unseen": -2.0}
    assert {key: judged[f"truth|scenes|{key}"].measured for key in expected} == pytest.approx(expected)
    assert "truth|scenes|share|0" not in judged  # it stands before 30 % of the cost
    assert judged["truth|scenes|share|2"].bar == 0.9
    states = [judged[f"truth|scenes|{key}"].state for key in ("gain|0", "gain|1", "energy|0", "final")]
    assert states == ["missed", "kept", "kept", "undecided"]  # of 9 test samples


def test_pictures_are_judged_by_what_their_early_exits_know():
    judged = judge(make_runs("pictures", 3))
    assert judged["truth|pictures|early|0.25"].measured == pytest.approx(0.8 / 0.9)
    assert "truth|pictures|energy|0" not in judged


def test_the_control_has_to_lose():
    runs = make_runs("scenes", 5)
    assert not any("control" in key for key in judge(runs))
    runs |= {f"scenes/permuted-{s}": make_run((0.5, 0.35, 1.0), [0.1, 0.01 * s], [0.8, 0.9, 0.9]) for s in range(3)}
    judged = judge(runs)
    assert judged["truth|scenes|control|faithfulness share"].measured == pytest.approx(0.3)
    assert judged["truth|scenes|control|skill"].figure.startswith("0.68 ± ")
    runs = make_runs("vit", 3) | {"vit/permuted-0": make_run((0.5, 0.35, 1.0), [0.1, 0.01], [0.8, 0.9, 0.9])}
    single = judge(runs)["truth|vit|control|skill"]
    assert (single.measured, single.state) == (pytest.approx(0.68), "undecided")


def test_answers_that_were_kept_are_compared_one_by_one():
    """With the same 8 of 9 right in every run, 7 of them without: the difference is one sample's, whatever else is wrong."""
    runs = make_runs("scenes", 5)
    for name, run in runs.items():
        bits = np.array([1, 1, 1, 1, 1, 1, 1, "plain" not in name, 0], bool)
        kept = {test: {**part, "right": [np.packbits(bits).tobytes().hex()] * 3} for test, part in run["tests"].items()}
        runs[name] = {**run, "tests": kept}
    judged = judge(runs)
    assert judged["truth|scenes|final"].measured == pytest.approx(100 / 9)
    assert judged["truth|scenes|exit0|agreeing"].ends == (0, 0)


def test_seeds_without_a_share_are_left_out_and_said():
    runs = make_runs("digits", 3)
    for seed in range(3):
        runs[f"digits/egt-{seed}"] = make_run((None, None if seed else 0.7, 1.0), [0.5, 0.97], [0.8, 0.9, 0.9])
    judged = judge(runs)
    assert "truth|digits|gain|0" not in judged
    assert judged["truth|digits|gain|1"].measured == pytest.approx(-0.2)
    assert "(1 of 3 seeds)" in judged["truth|digits|gain|1"].what
    del runs["digits/egt-2"]
    assert not judge(runs)  # not complete


def test_swaps_stand_in_the_tables_of_what_measured_them():
    runs = make_runs("scenes", 2)
    assert "binding" not in "".join(truth.write_task(runs, "scenes"))
    runs["scenes/egt-1"]["swaps"] = {"binding": [0.6, 0.7, 0.8], "another": [0.3, 0.4, 0.5]}
    _, _, head, _, *rows = truth.write_task(runs, "scenes")
    assert "| binding at 20 % | another's map | skill |" in head
    assert [("0.60 / 0.70 / 0.80 | 0.30 / 0.40 / 0.50 | 0.50 / 0.97" in row) for row in rows[:3]] == [False, False, True]
    assert {row.count(" | ") for row in (head, *rows[:3])} == {head.count(" | ")}


def make_task(tiny_set):
    build, settings = partial(SmallResNet, 4, 3, 8, (8, 8, 8, 8)), {"epochs": 1, "batch_size": 16}
    return tasks.Task(tiny_set, tiny_set, {"test": tiny_set}, build, ("layer1", "layer3"), settings, grid=(4, 4))


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["plain", "permuted"])
def test_a_cell_says_how_good_true_and_alike(tiny_set, condition, tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "digits", lambda seed: make_task(tiny_set))
    monkeypatch.setattr(truth, "find_folder", lambda *words: tmp_path)
    monkeypatch.setattr(truth, "SAMPLES", 8)
    monkeypatch.setattr(truth, "ORACLE", 4)
    measured = truth.measure_cell("digits", condition, 0)
    assert len(measured["tests"]["test"]["accuracy"]) == len(measured["cost"]) == (1 if condition == "plain" else 3)
    assert len(measured["tests"]["test"]["right"]) == len(measured["cost"])
    if condition != "plain":
        assert len(measured["skill"]) == 2
        assert len(measured["swaps"]["binding"]) == len(measured["swaps"]["cue"]) == 3
        assert len(measured["attention"]["deletion_share"]) == len(measured["relevance"]["deletion"]) == 3
    short = truth.open_task("digits", 0, most=8)
    assert len(short.train) == len(short.tests["test"]) == 8


@pytest.mark.slow
def test_all_networks_of_a_seed_start_alike(tiny_set):
    task = make_task(tiny_set)
    first, second = (tasks.build_network(task, 0, exits=True) for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    assert tasks.build_network(replace(task, at=1), 1, exits=True).fingerprint() != first.fingerprint()


def test_the_control_takes_targets_of_other_samples():
    maps = [torch.rand(3, 4, 4) for _ in range(2)]
    (target,) = truth.PermutedLoss().make_targets(maps, None)
    assert torch.equal(target, maps[-1].roll(1, 0))
    assert isinstance(truth.CONDITIONS["permuted"][0].for_network(True), truth.PermutedLoss)


@pytest.mark.slow
def test_scenes_are_drawn_anew_by_seed_and_small_ones_have_their_sizes():
    first, again, other = (tasks.small(seed, 300) for seed in (0, 0, 1))
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images[:100], other.train.images[:100])
    assert len(first.train.classes) == len(first.tests["agreeing"].classes) == 9
    assert len(first.tests["agreeing"]) == len(first.tests["disagreeing"]) == 150


@pytest.mark.slow
def test_the_vision_transformer_has_cells_of_five_pixels():
    torch.manual_seed(0)  # random kernels may lean
    net = xl.attach(tasks.build_vit(), ("blocks.0", "blocks.2", "blocks.4"), 10, torch.zeros(1, 3, 40, 40), head="context")
    assert [tuple(out.attention.shape[1:]) for out in net(torch.zeros(1, 3, 40, 40))] == [(8, 8)] * 4
    assert set(net.map_offsets) == {(0.0, 0.0)}
