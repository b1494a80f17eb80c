"""What is judged, on made-up runs."""

import pytest

from benchmarks.truth.promises import list_promises


def _run(share, skill, accuracy, energy=(0.8, 0.8, 0.8)):
    return {
        "cost": [0.2, 0.6, 1.0],
        "skill": skill,
        "tests": {name: {"samples": 9, "accuracy": accuracy} for name in ("agreeing", "unseen")},
        "attention": {"deletion_share": list(share), "energy_in_mask": list(energy)},
    }


def _make_runs(task, seeds):
    plain = {"cost": [1.0], "tests": {name: {"samples": 9, "accuracy": [0.91]} for name in ("agreeing", "unseen")}}
    runs = {f"{task}/plain-{seed}": plain for seed in range(seeds)}
    runs |= {f"{task}/egt-{seed}": _run((0.5, 0.95, 1.0), [0.5, 0.97], [0.8, 0.9, 0.9]) for seed in range(seeds)}
    return runs | {f"{task}/without-{seed}": _run((0.6, 0.9, 0.8), [0, 0], [0.82, 0.9, 0.9]) for seed in range(seeds)}


def test_promises_of_scenes():
    found = {one.key: one for one in list_promises(_make_runs("scenes", 5))}
    assert found["truth|scenes|share|1"].measured == pytest.approx(0.95)
    assert "truth|scenes|share|0" not in found  # it stands before 30 % of the cost
    assert found["truth|scenes|share|2"].bar == 0.9
    assert not found["truth|scenes|gain|0"].is_kept
    assert found["truth|scenes|gain|1"].is_kept
    assert found["truth|scenes|skill"].measured == pytest.approx(0.97)
    assert found["truth|scenes|final"].measured == pytest.approx(-1)
    assert found["truth|scenes|energy|0"].is_kept
    assert found["truth|scenes|exit0|unseen"].measured == pytest.approx(-2)


def test_pictures_are_judged_by_what_their_early_exits_know():
    found = {one.key: one for one in list_promises(_make_runs("pictures", 3))}
    assert found["truth|pictures|early|0.25"].measured == pytest.approx(0.8 / 0.9)
    assert found["truth|pictures|early|0.5"].measured == pytest.approx(0.8 / 0.9)
    assert "truth|pictures|energy|0" not in found


def test_the_control_has_to_lose():
    runs = _make_runs("scenes", 5)
    assert not any("control" in one.key for one in list_promises(runs))
    runs |= {f"scenes/permuted-{seed}": _run((0.5, 0.35, 1.0), [0.1, 0.01 * seed], [0.8, 0.9, 0.9]) for seed in range(3)}
    found = {one.key: one for one in list_promises(runs)}
    assert found["truth|scenes|control|faithfulness share"].measured == pytest.approx(0.3)
    assert "(0.68 ± " in found["truth|scenes|control|skill"].note
    assert found["truth|scenes|control|skill"].is_kept


def test_one_control_has_no_interval():
    runs = _make_runs("vit", 3) | {"vit/permuted-0": _run((0.5, 0.35, 1.0), [0.1, 0.01], [0.8, 0.9, 0.9])}
    found = {one.key: one for one in list_promises(runs)}["truth|vit|control|skill"]
    assert (found.measured, found.note) == (pytest.approx(0.68), "(one seed)")


def test_seeds_without_a_share_are_left_out_and_said():
    runs = _make_runs("digits", 3)
    for seed in range(3):
        runs[f"digits/egt-{seed}"] = _run((None, None if seed else 0.7, 1.0), [0.5, 0.97], [0.8, 0.9, 0.9])
    found = {one.key: one for one in list_promises(runs)}
    assert "truth|digits|gain|0" not in found
    assert found["truth|digits|gain|1"].measured == pytest.approx(-0.2)
    assert "(1 of 3 seeds)" in found["truth|digits|gain|1"].what


def test_tasks_that_are_not_complete_are_not_judged():
    runs = _make_runs("vit", 3)
    assert list(list_promises(runs))
    del runs["vit/egt-2"]
    assert not list(list_promises(runs))
