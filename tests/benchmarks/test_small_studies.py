"""Small studies: the figures that they judge, and their measurements on little data."""

import os
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import exitlens as xl
from benchmarks import (
    adapting,
    binding,
    compare,
    cues,
    demo,
    fashion,
    loading,
    neighbour,
    planning,
    processes,
    recipes,
    rules,
    segmentation,
    series,
    targets,
    tasks,
    traces,
    training,
    vectors,
)
from exitlens.functional.compact import compress
from exitlens.functional.scores import score
from exitlens.model.backbones.small import SmallResNet
from exitlens.types.comparisons import Contender
from exitlens.types.settings import TrainingSettings
from tests.conftest import random_trace


@pytest.mark.slow
def test_scaled_compact_logits_are_those_of_scaled_logits():
    trace = traces.make_million(500, 700)
    logits, labels = traces.draw_logits(500, 0)
    rng = torch.Generator().manual_seed(0)
    rows, scale = torch.randperm(700, generator=rng) % 500, 0.6 + torch.rand(700, generator=rng)
    few = slice(0, 40)
    expected = compress(logits[rows[few]] * scale[few, None, None], labels[rows[few]])
    assert torch.equal(trace.labels, labels[rows])
    for kind in ("max_probability", "entropy"):
        for k in range(4):
            torch.testing.assert_close(score(trace.logits[few, k], kind, 0.7), score(expected[:, k], kind, 0.7))
    assert len(set(trace.hash_samples())) == 700


@pytest.mark.slow
def test_maps_on_garments_are_judged_by_every_way_to_delete(net):
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = {"blind": [torch.rand(6, 5, 5, generator=torch.Generator().manual_seed(k)) for k in range(3)]}
    for name, replaced in fashion.list_fills(0.0).items():
        judged = fashion.judge(net.eval(), images, maps, replaced)
        assert list(judged) == [*fashion.DROPS, "blind", "blind, error"], name
        assert all(len(values) == 3 for values in judged.values())
        assert all(best >= control for control, best in zip(*(judged[drop] for drop in fashion.DROPS), strict=True))


def test_the_demo_keeps_what_a_table_can_hold():
    assert demo.drop_curves({"a": [[1, 2]], "b": {"c": [1, 2], "d": [[3]]}, "e": []}) == {"b": {"c": [1, 2]}, "e": []}


def test_a_patch_names_a_class_and_its_swap_is_that_of_a_background():
    data = tasks.make_scene_set("validation", 0, 1, 0.1, 300)
    right, wrong = (binding.plant_patch(data, agreement, 5) for agreement in (1.0, 0.0))
    patches = [[part.images[i, 0, : binding.PATCH, : binding.PATCH] for i in range(len(data))] for part in (right, wrong)]
    first = [patches[0][(data.labels == label).nonzero()[0, 0]] for label in range(10)]
    assert len({tuple(patch.flatten().tolist()) for patch in first}) == 10  # a direction for each class
    for label, agreeing, other in zip(data.labels.tolist(), *patches, strict=True):
        assert torch.equal(agreeing, first[label])
        assert not torch.equal(other, first[label])
    assert torch.equal(right.images[..., binding.PATCH :, :], data.images[..., binding.PATCH :, :])
    assert torch.equal(~right.masks, binding.draw_corner().expand(len(data), -1, -1))


def test_few_labels_are_wrong():
    labels = torch.arange(2000) % 10
    told = binding.mislead(labels, 0.05, 0)
    assert 0.03 < (told != labels).float().mean() < 0.07
    assert (told.min(), told.max()) == (0, 9)


@pytest.mark.long
@pytest.mark.slow
def test_binding_is_trained_for_and_judged(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cells = binding.list_cells(quick=True)
    runs = {}
    for name in ("scenes/egt-0", "scenes/rely-0", "corner/ignore-0", "motifs/rely-0"):
        runs[name] = cells[name]()
        assert runs[name]["accuracy"].keys() == runs[name]["right"].keys()
        for test, rows in runs[name]["accuracy"].items():
            assert 100 * np.array(rows) == pytest.approx(binding.read_right(runs[name], test).mean(1))
    promises = {promise.key: promise for promise in binding.list_promises(runs)}
    gain = 100 * (runs["scenes/rely-0"]["accuracy"]["unseen"][2] - runs["scenes/egt-0"]["accuracy"]["unseen"][2])
    assert promises["binding|scenes|rely|2|unseen"].measured == pytest.approx(gain)
    assert promises["binding|scenes|rely|3|20"].measured == runs["scenes/rely-0"]["binding"]["20"][3]
    assert {promise.state for promise in promises.values()} == {"undecided"}  # one seed
    assert sum(line.startswith("| EGT, `rely_on") for line in binding.write_tables(runs)) == 2


def test_data_of_processes_show_their_class_and_batch_norm_is_replaced():
    backbone = SmallResNet(10)
    processes.replace_batch_norm(backbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    image = processes.make_set(20, 40).images[7].float().mean((0, 1))
    assert image[28:32].min() > image[:28].max()


@pytest.mark.slow
def test_neighbour(monkeypatch):
    shared = {"seconds": [1.8, 1.7, 1.9], "ratio": {"training": [1.5, 1.4, 1.6], "loop": [2.6, 2.0, 2.7]}}
    assert [promise.state for promise in neighbour.list_promises({"shared": shared})] == ["kept", "undecided"]
    assert neighbour.write_table({"shared": shared})[2].startswith("| `fit` | 1.80 (1.70 to 1.90) | 1.50 (1.40 to 1.60) |")
    monkeypatch.setattr(neighbour, "SAMPLES", 16)
    assert len(neighbour.train("shared")) == len(neighbour.train("plain")) == 3


def test_planted_cues_are_recognised_and_counted():
    def make(kind, name, ignore):
        return xl.types.Cue(kind, name, 0, (), (), (), 0.3, (0.2, 0.4), ("a", "b"), ignore)

    corner = torch.zeros(cues.SIDE, cues.SIDE, dtype=torch.bool)
    corner[:4, -4:] = True
    assert cues.is_planted("patch", make("place", "", corner))
    assert not cues.is_planted("patch", make("place", "", corner.flip(1)))
    assert cues.is_planted("words", make("words", "", ("alder", "harrow", "box")))
    assert not cues.is_planted("words", make("words", "", ("good", "bad")))
    assert cues.is_planted("level", make("channel", "level", ("level",)))
    assert cues.is_planted("colour", make("background", "background", "background"))
    run = {"place": 1, "listed": 2, "accuracy": [0.5, 0.7]}
    runs = {f"{name}-{seed}": run for name in ("patch", "none-patch") for seed in range(2)}
    assert [(promise.measured, promise.state) for promise in cues.list_promises(runs)] == [(1, "undecided"), (1, "missed")]
    assert "| patch | 50 / 70 | 1 1 | 2 2 |" in cues.write_tables(runs)


def test_stripes_are_planted_where_they_should():
    data = xl.data.ImageSet(torch.full((4, 3, 32, 32), 99, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    data.masks = torch.zeros(4, 32, 32, dtype=torch.bool)
    data.masks[:, 8:24, 8:24] = True
    patch, texture = (cues.plant_stripes(data, in_corner, 1.0, 0).images != 99 for in_corner in (True, False))
    assert patch[:, :, : cues.CORNER, -cues.CORNER :].float().mean() > 0.9
    assert not patch[:, :, cues.CORNER :].any()
    assert not texture[:, :, 8:24, 8:24].any()
    assert texture[:, :, :8].float().mean() > 0.9


def test_loading_watches_memory_of_children_and_reads_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(type(loading.STUDY), "folder", tmp_path)
    folder = loading.find_folder(loading.draw_small, 20)
    assert len(list(folder.rglob("*.jpg"))) == 20
    assert loading.find_folder(loading.draw_small, 20) == folder
    assert loading.draw_photograph(np.random.default_rng(0)).size == (500, 375)
    assert loading.read_resident(os.getpid()) > 10


@pytest.mark.slow
def test_a_frozen_backbone_that_runs_once_gives_the_same_weights():
    measured = training.measure_frozen(training.Case("small", 32, samples=64), rounds=1)
    assert measured["furthest_weight"] < 1e-3
    assert measured["kb_a_sample"] > 0
    assert len(measured["speedup"]) == 3


@pytest.mark.slow
def test_steps_with_and_without_egt_are_timed(tiny_set, monkeypatch):
    settings = {"batch_size": 8, "amp": False}
    task = tasks.Task(tiny_set, tiny_set, {}, partial(SmallResNet, 4, 3, 8, (8, 8, 8, 8)), ("layer1", "layer3"), settings)
    monkeypatch.setitem(tasks.TASKS, "vit", lambda seed: task)
    measured = training.measure_steps("vit", rounds=2)
    assert (measured["batch_size"], measured["every"]) == (8, 1)
    assert set(measured["ratio"]) == set(training.STEPS)
    for middle, low, high in measured["ratio"].values():
        assert 0 < low <= middle <= high


def test_maps_after_long_trainings_are_compared_with_those_after_short_ones(tiny_set):
    uniform, pointed = torch.full((1, 4, 4), 1 / 16), torch.zeros(1, 4, 4).index_fill(2, torch.tensor([0]), 0.25)
    outputs = [SimpleNamespace(attention=part.expand(20, -1, -1)) for part in (uniform, pointed)]
    fake = SimpleNamespace(num_exits=2, eval=lambda: lambda inputs: outputs)
    assert targets.measure_entropy(fake, tiny_set.first(20)) == pytest.approx([np.log(16), np.log(4)])
    short, long = ({"entropy": [3.0], "binding": [0.5]}, {"entropy": [2.4], "binding": [0.6]})
    runs = {
        f"digits/{target}/{epochs}-0": run for target in ("spread", "default") for epochs, run in ((10, short), (100, long))
    }
    measured = {promise.key: promise.measured for promise in targets.list_promises(runs)}
    assert (
        measured["targets|digits|spread|0|entropy|least"]
        == measured["targets|digits|spread|0|entropy|most"]
        == pytest.approx(0.8)
    )
    assert (
        measured["targets|digits|spread|0|binding|least"]
        == measured["targets|digits|default|0|binding|least"]
        == pytest.approx(1.2)
    )


def test_a_target_is_chosen_without_the_set_that_it_is_judged_on(monkeypatch):
    """The first is best on all sets together; without the digits the second is, which does badly on them."""
    monkeypatch.setattr(targets, "TARGETS", {"first": ("1st", None), "second": ("2nd", None)})
    shares = {"digits": (0.8, 0.3), "pictures": (0.75, 0.95), "scenes": (0.9, 0.9)}
    runs = {
        f"{task}/{target}/0-0": {"share": [0.1, share, 1.0], "cost": [0.2, 0.5, 1.0], "entropy": [], "binding": []}
        for task, both in shares.items()
        for target, share in zip(("first", "second"), both, strict=True)
    }
    promises = {promise.key: promise for promise in targets.list_promises(runs)}
    assert {key: promise.measured for key, promise in promises.items()} == {
        "targets|digits|chosen": 0.3,
        "targets|pictures|chosen": 0.75,
        "targets|scenes|chosen": 0.9,
    }
    assert "2nd" in promises["targets|digits|chosen"].what
    assert "1st" in promises["targets|pictures|chosen"].what


def test_every_trial_of_recipes_has_arguments_that_fit_takes():
    cells = [re.fullmatch(r"(\w+)/(.+)-\d", cell).groups() for cell in recipes.list_cells()]
    assert {trial for _, trial in cells} == set(recipes.TRIALS)
    for settings in recipes.TRIALS.values():
        assert TrainingSettings(**settings).learning_rate == settings["learning_rate"]


# Series


def make_archive(name):
    labels = torch.arange(40) % 3
    values = labels[:, None, None] + torch.randn(40, 2, 24, generator=torch.Generator().manual_seed(0))
    return xl.data.ArraySet(5 + values, labels, ("a", "b", "c"), xl.data.SeriesPreprocess((0.0, 0.0), (1.0, 1.0)))


def test_half_of_each_class_trains_and_seeds_draw_anew(monkeypatch):
    monkeypatch.setattr(series, "read_archive", make_archive)
    task, other = series.load_task("gunpoint", 0), series.load_task("gunpoint", 1)
    parts = [task.train, task.validation, *task.tests.values()]
    assert [torch.bincount(part.labels).tolist() for part in parts] == [[7, 6, 6], [3, 3, 3], [4, 4, 4]]
    assert len(torch.cat([part.values for part in parts]).flatten(1).unique(dim=0)) == 40
    torch.testing.assert_close(task.train.inputs.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    assert not torch.equal(task.train.values, other.train.values)
    assert task.settings["epochs"] * 2 >= series.UPDATES


def test_without_aeon_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(series, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install aeon"):
        series.load_task("gunpoint", 0)


@pytest.mark.slow
def test_a_cell_of_series_has_what_the_page_needs(tmp_path, monkeypatch):
    whole = series.load_task(series.MOTIFS, 0)
    parts = {"train": whole.train.first(32), "validation": whole.validation.first(40)}
    parts["tests"] = {name: data.first(40) for name, data in whole.tests.items()}
    task = replace(whole, **parts, settings={**whole.settings, "epochs": 1})
    monkeypatch.setattr(series, "load_task", lambda *words: task)
    monkeypatch.chdir(tmp_path)
    ours, plain = (series.measure_cell(series.MOTIFS, condition, 0) for condition in (series.EGT, series.PLAIN))
    assert len(ours["cost"]) == len(ours["tests"]["independent"]["accuracy"]) == len(ours["maps"]["energy_in_mask"]) == 4
    assert ours["head_share"] <= 0.05
    assert len(plain["cost"]) == 1
    assert 0 < ours["routed"]["cost"] <= ours["cost"][-1]


def test_photographs_are_the_rows_of_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "PHOTOGRAPHS", tmp_path)
    (tmp_path / "package").mkdir()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    rows = images.permute(0, 2, 3, 1).reshape(3, 1024, 3)
    Image.fromarray(rows.numpy()).save(tmp_path / "package" / "test_batch.png")
    (tmp_path / "package" / "test_lables.json").write_text("[3, 8, 8]")
    assert torch.equal(tasks.read_photographs("test_batch"), images)
    assert tasks.read_photograph_labels("test").tolist() == [3, 8, 8]


def test_streams_change_as_they_are_called():
    traces = {name: random_trace(200, c=4, seed=i) for i, name in enumerate(("agreeing", "unseen"))}
    traces["unseen"] = replace(traces["unseen"], labels=traces["unseen"].labels * 0 + 3)  # so that one can tell them
    rng = torch.Generator().manual_seed(0)
    thirds = {
        shift: [
            (part == 3).float().mean().item() for part in _draw_labels(traces, "scenes", shift, 30_000, rng).split(10_000)
        ]
        for shift in ("steady", "sudden", "gradual", "recurring")
    }
    usual = (traces["agreeing"].labels == 3).float().mean().item()
    mixed = [usual + (1 - usual) * share for share in (1 / 6, 1 / 2, 5 / 6)]
    assert thirds["steady"] == pytest.approx([usual] * 3, abs=0.03)
    assert thirds["sudden"] == pytest.approx([usual, 1, usual], abs=0.03)
    assert thirds["recurring"] == pytest.approx([usual, 1, usual], abs=0.03)
    assert thirds["gradual"] == pytest.approx(mixed, abs=0.03)
    labels = _draw_labels(traces, "scenes", "vanishing", 30_000, rng).split(10_000)
    assert [bool((part == 0).any()) for part in labels] == [True, False, True]


def _draw_labels(*words):
    return adapting.draw_stream(*words).labels


def test_the_largest_running_share_counts_from_some_answers_on():
    lost = torch.zeros(10_000, dtype=torch.bool)
    lost[:100] = True
    assert adapting.find_worst(lost) == pytest.approx(100 / 5001)
    run = {"streams": 2, "length": 10, "over": [0.01, 0.03], "over_fixed": [0.03, 0.03], "cost": [0.2, 0.3]}
    run |= {"cost_fixed": [0.4, 0.3], "saved": [0.9, 1.0], "audited": [0.02, 0.02]}
    runs = {"scenes/steady": run, "time": {"microseconds": [17.0, 18.0]}}
    over, cost, saved, audited, spent = adapting.list_promises(runs)
    assert (over.measured, cost.measured, saved.measured, audited.state) == (0.5, 0.75, 0.95, "kept")
    assert spent.measured == 17.5
    assert adapting.write_tables(runs)[2].startswith("| scenes/steady | 2 | 50.0 | 100.0 | 0.020 |")


@pytest.mark.slow
def test_rivals_of_thresholds_that_adapt_answer_a_stream():
    trace = random_trace(2000, seed=0)
    policy = xl.Policy((0.5,) * (trace.num_exits - 1))
    for exits in (adapting.run_apparate(trace, policy), adapting.run_bandit(trace)):
        assert exits.shape == (2000,)
        assert 0 <= int(exits.min()) <= int(exits.max()) < trace.num_exits
    lost = torch.zeros(3000, dtype=torch.bool)
    lost[1000:1400] = True
    assert adapting.find_reaction(lost, 1000) == pytest.approx(390)  # ten of the next 500 are within the limit
    assert adapting.find_reaction(torch.ones(3000, dtype=torch.bool), 1000) == 3000
    run = {
        "streams": 1,
        "over": [0.01],
        "cost": [0.25],
        "over_bandit": [0.03],
        "cost_bandit": [0.3],
        "reaction_bandit": [390.0],
    }
    rows = adapting.write_rivals({"scenes/sudden": run})[4:6]
    assert rows == ["| scenes/sudden | ours | 0 | 0.250 |  |", "| scenes/sudden | a bandit (UAT) | 100 | 0.300 | 390 |"]


def test_a_sentence_is_judged_by_samples_that_it_did_not_see():
    rival = Contender("cut", "backbone cut after x", 0.8, (-2.0, -3.0, -1.0), 1.0, (1.0, 0.9, 1.1))
    worse, better = torch.tensor([-100.0, 0, 0, 0]), torch.tensor([100.0, 0, 0, 0])
    assert compare.judge(rival, worse) == {
        "said": compare.EXITS,
        "rival": "cut",
        "right": True,
        "told": [-2.0, -3.0, -1.0],
        "fresh": [-25.0, -74.0, 24.0],
    }
    runs = {"0": compare.judge(rival, better), "1": compare.judge(replace(rival, gain=(2.0, 1.0, 3.0)), better)}
    assert [run["right"] for run in runs.values()] == [False, True]
    undecided = replace(rival, gain=(0.0, -1.0, 1.0))
    assert [compare.judge(undecided, gains.repeat(1000))["right"] for gains in (better, better * 0)] == [False, True]
    assert compare.write_table(runs)[2] == "| 0 | the exits | cut | -2.0 (-3.0 to -1.0) | +25.0 (-24.0 to +74.0) | no |"
    (right,) = compare.list_promises(dict.fromkeys(map(str, range(compare.TRIES)), runs["1"]))
    assert right.state == "kept"


def test_plans_are_judged_by_their_ratio_to_brute_force():
    runs = {"0": {"planned": [110, 100, None], "needed": [100.0, 100.0, None], "size": [500] * 3}}
    most, least = planning.list_promises(runs)
    assert most.measured == least.measured == pytest.approx(1.1**0.5)
    assert most.state == "undecided"
    assert planning.write_tables(runs)[2].startswith("| 2 | 1.05 | 100 % |")
    trace = planning.Population(4, (1.5, 0.7), 0.5).sample(400, seed=0)
    early, final = trace.correct.double().mean(0).tolist()
    assert early + 0.1 < final


@pytest.mark.slow
def test_every_rule_routes_between_its_cheapest_and_its_dearest_exits():
    known, trace = random_trace(600, c=5), random_trace(500, c=5, seed=1)
    features = torch.rand(600, 2, 3, generator=torch.Generator().manual_seed(0))
    known, trace = replace(known, gate_features=features), replace(trace, gate_features=features[:500])
    usual = rules.trace_curve(rules.by_score("max_probability", known, trace), trace.cost, (0.0, 0.5, 2.0)).mean(1)
    accuracy = trace.correct.float().mean(0)
    torch.testing.assert_close(usual[[0, 2]], accuracy[[0, -1]])
    for name, (_, rule) in rules.RULES.items():
        judged = rule(known, trace)
        assert judged.scores.shape == (500, 2), name
        middle = rules.trace_curve(judged, trace.cost, (0.5,)).mean().item()
        if name == "oracle":
            assert middle > max(usual[1].item(), accuracy.max().item())
        else:
            assert accuracy[0] < middle < 1, name


def test_an_ensemble_of_copies_answers_as_one_of_them():
    trace = random_trace(400, k=1, c=4)
    twice = xl.Trace(trace.logits.repeat(1, 2, 1), trace.labels, torch.zeros(400, 2), torch.tensor([0.5, 1.0]))
    judged = rules.by_ensemble(twice, twice)
    assert torch.equal(judged.correct, twice.correct)


def test_the_oracle_leaves_where_it_is_right_or_nothing_helps():
    correct = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]).bool()
    logits = torch.where(correct[:, :, None], torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]))
    trace = xl.Trace(logits, torch.zeros(4, dtype=torch.long), torch.zeros(4, 3), torch.tensor([0.2, 0.6, 1.0]))
    assert (rules.by_oracle(trace, trace).scores >= 0.5).tolist() == [
        [True, False],
        [False, True],
        [False, False],
        [True, True],
    ]


@pytest.mark.slow
def test_static_rivals_of_segmentation_are_the_network_cut_or_narrower():
    example = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    nets = {
        kind: segmentation.build("unet", kind, 4, example, seed=0).eval() for kind in ("full", "exits", "cut-1", "narrow-50")
    }
    exits = nets["exits"]
    assert [net.num_exits for net in nets.values()] == [1, 4, 1, 1]
    assert nets["cut-1"](example)[0].logits.shape == (1, 4, 64, 64)
    assert nets["cut-1"].head(0).neck.width == exits.head(1).neck.width
    assert exits.cost[0] < nets["cut-1"].cost[0] < exits.cost[1]  # which has the head of exit 0, too
    weights = {kind: sum(p.numel() for p in net.parameters()) for kind, net in nets.items()}
    assert weights["narrow-50"] < 0.3 * weights["full"] < weights["cut-1"] < weights["exits"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slim", "resnet"])
def test_exits_on_a_frozen_network_have_its_weights_and_its_final_exit(name):
    example = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    plain = segmentation.build(name, "full", 4, example[:1], seed=0).eval()
    net = segmentation.build(name, "exits", 4, example[:1], seed=1, plain=plain).eval()
    assert net.num_exits == 2
    assert torch.equal(net(example)[-1].logits, plain(example)[0].logits)
    assert list(segmentation.BACKBONES[name].held_to) == ["full"]


def test_parts_of_wide_scenes_show_garments(monkeypatch):
    monkeypatch.setattr(segmentation, "WIDE", 96)
    monkeypatch.setattr(segmentation, "CHUNK", 4)
    scenes = list(segmentation.draw_wide("test", 6, 0))
    assert [len(each) for each in scenes] == [4, 2]
    parts = segmentation.crop(iter(scenes), 0)
    assert parts.images.shape == (24, 3, 48, 48)
    assert (parts.labels.view(6, 4, -1)[:, :3] > 0).any(2).all()
    again = segmentation.crop(segmentation.draw_wide("test", 6, 0), 0)
    assert torch.equal(again.images, parts.images)
    assert not torch.equal(next(segmentation.draw_wide("test", 4, 1)).images, scenes[0].images)


def test_certificates_of_tiles_are_of_draws_of_whole_images():
    rng = torch.Generator().manual_seed(0)
    right = torch.rand(40, 4, 2, generator=rng) < torch.tensor([0.7, 0.9])  # (images, tiles, exits)
    confusion = torch.zeros(40, 4, 2, 2, 2, dtype=torch.int32)
    confusion[..., 0, 0], confusion[..., 0, 1] = 20, 20 * ~right  # of class 0; class 1 is right everywhere
    confusion[..., 1, 1] = 10
    summary = xl.types.PixelSummary(
        torch.rand(160, 2, 3, generator=rng), torch.zeros(160, 2, 2), torch.zeros(160, 2), confusion.flatten(0, 1)
    )
    images = torch.arange(40).repeat_interleave(4)
    trace = xl.Trace(
        summary,
        None,
        torch.zeros(160, 2),
        torch.tensor([0.3, 1.0]),
        task="segmentation",
        images=images,
        tiles=xl.types.Tiles(8, 0),
    )
    limits = {"loose": {"max_miou_drop": 0.9}, "strict": {"max_miou_drop": 1e-3}}
    measured = segmentation.draw_certificates(trace, limits, 3, 60, 0.2)
    assert measured["loose"] == {"draws": 3, "broken": 0.0, "cost": pytest.approx(0.3)}
    assert measured["strict"]["cost"] == pytest.approx(1.0)


def test_segmentation_is_judged_at_equal_time():
    kinds = segmentation.list_kinds(segmentation.BACKBONES["unet"])
    ious = dict(zip(kinds, (0.8, 0.8, 0.6, 0.7, 0.3, 0.4), strict=True))  # full, exits, narrow 50 71, cut 0 1
    ms = dict(zip(kinds, (10.0, 4.0, 3.0, 5.0, 2.5, 3.5), strict=True))
    points = {"final": {"mean_iou": 0.79}, "full": {"mean_iou": 0.78}}
    runs = {
        f"scenes/unet-{kind}-{seed}": {"validation": ious[kind], "ious": [ious[kind]], "points": points}
        for kind in kinds
        for seed in range(2)
    }
    ms |= {f"exits {to}": ms["exits"] for to in points}
    times = {"ms": {kind: [value] for kind, value in ms.items() if kind != "exits"}, "speed": {to: [2.5] for to in points}}
    runs |= {f"scenes/unet-time-{seed}": {f"batch {size}": times for size in segmentation.BATCHES} for seed in range(2)}
    promises = {promise.key: promise for promise in segmentation.list_promises(runs)}
    assert promises["segmentation|scenes|unet|final|lost"].measured == pytest.approx(1.0)
    assert promises["segmentation|scenes|unet|full|lost"].measured == pytest.approx(2.0)
    assert promises["segmentation|scenes|unet|full|speed|1"].state == "kept"
    gain = promises["segmentation|scenes|unet|final|gain|16"].measured  # at 4 ms static ones have 0.65, between 3 and 5 ms
    assert gain == pytest.approx(14.0)


def test_static_rivals_of_sentences_keep_the_first_and_the_last_layers():
    assert [vectors.choose_layers(count) for count in vectors.CUTS] == [[0, 5], [0, 1, 5], [0, 1, 4, 5], [0, 1, 2, 4, 5]]


def test_recall_counts_documents_that_both_find():
    rng = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(3, 8, generator=rng), torch.randn(40, 8, generator=rng)
    assert vectors.measure_recall(queries, documents, (queries, documents)) == 1.0
    wanted = [set((query @ documents.T).argsort(descending=True)[:10].tolist()) for query in queries]
    given = [set((query @ documents.T).argsort()[:10].tolist()) for query in queries]
    expected = np.mean([len(a & b) / 10 for a, b in zip(wanted, given, strict=True)])
    assert vectors.measure_recall(-queries, documents, (queries, documents)) == pytest.approx(expected)


def test_sentences_are_judged_at_equal_time():
    recalls, ms = {2: 0.4, 3: 0.5, 4: 0.7, 5: 0.8}, {"full": [6.0], "exits": [5.5]}
    ms |= {f"cut-{n}": [float(n)] for n in recalls}
    ways = {
        f"{way}, batch {size}": {"ms": ms, "speed": [1.1]}
        for way in (vectors.TORCH, vectors.ONNX)
        for size in vectors.BATCHES
    }
    runs = {}
    for seed in range(2):
        runs |= {f"sentences/cut-{n}-{seed}": {"validation": x, "recall": x, "cosine": x} for n, x in recalls.items()}
        runs[f"sentences/exits-{seed}"] = {"recall": 0.96, "cosine": 0.99, "exit_recall": [0.7, 0.5, 1.0]}
        runs |= {f"sentences/time-{seed}": ways, f"sentences/index-{seed}": {"routed": 0.97}}
    promises = {promise.key: promise for promise in vectors.list_promises(runs)}
    assert promises["vectors|gain|PyTorch, batch 1"].measured == pytest.approx(6.0)  # static: 0.9, between 0.8 and 1
    assert promises["vectors|speed|ONNX Runtime, batch 32"].state == "missed"
    assert {promises[f"vectors|{name}"].state for name in ("recall", "cosine", "index")} == {"kept"}
    assert "| exits | 0.960 | 0.990 | 0.70 / 0.50 / 1.00 | 5.50" in "\n".join(vectors.write_table(runs))


@pytest.mark.parametrize(("name", "shape"), [("covid", (1, 84)), ("cardano", (2, 24))])
def test_series_with_numbers_come_with_aeon(name, shape):
    pytest.importorskip("aeon")
    data = vectors.load_series(name, seed=0)
    assert data.train.tensors[0].shape[1:] == shape
    assert sum(len(part) for part in vars(data).values()) == {"covid": 201, "cardano": 107}[name]
    assert data.train.tensors[1].std() > 0
    assert abs(data.train.tensors[0].mean()) < 1e-3
