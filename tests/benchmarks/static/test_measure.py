"""Ours and static networks on a tiny task, trained for an epoch."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import exitlens as xl
from benchmarks.static import jobs, measure, timing
from benchmarks.static.candidates import (
    CANDIDATES,
    FAMILIES,
    RIVALS,
    Candidate,
    list_candidates,
    make_cut,
    make_narrow,
    make_resized,
)
from benchmarks.static.distil import Teacher, make_loss
from benchmarks.store import Store
from benchmarks.study.runs import LAYOUT
from benchmarks.truth.page import TASK_TITLES
from benchmarks.truth.tasks import SEEDS, TASKS, Task, build_network
from exitlens.model.timing import Times
from exitlens.types.inputs import split_rows
from tests.conftest import TinyNet
from tests.texts import make_bert, make_text_net, make_texts


@pytest.fixture
def task(tiny_set):
    how = {"epochs": 1, "batch_size": 16}
    return Task(tiny_set, tiny_set, {"test": tiny_set}, TinyNet, ("a", "b"), how, "evidence", (4, 4))


def test_names():
    assert set(SEEDS) == set(TASK_TITLES) == set(CANDIDATES) == set(RIVALS)
    assert all(one.family in FAMILIES for candidates in CANDIDATES.values() for one in candidates.values())
    trained, timed = list(jobs.list_runs()), list(jobs.list_runs(timed=True))
    assert len(set(trained)) == len(trained)
    assert {name for task, name, seed in trained if (task, seed) == ("scenes", 0)} == {"adaptive", *CANDIDATES["scenes"]}
    assert {name for task, name, seed in trained if (task, seed) == ("scenes", 1)} == {
        "adaptive",
        *list_candidates("scenes", 1),
    }
    assert len(timed) == sum(SEEDS.values())


def test_a_narrow_network(task):
    net = Candidate("width", "", partial(make_narrow, width=0.25)).build(task, 0)
    assert net(task.train.first(2).inputs)[0].logits.shape == (2, 4)
    assert net.info.classes == ("w", "x", "y", "z")
    convolutions = [one for one in net.modules() if isinstance(one, nn.Conv2d)]
    assert (convolutions[0].out_channels, convolutions[-1].out_channels) == (8, 32)  # of 32 and 128


def test_a_cut_network_is_the_beginning_of_the_backbone(task):
    net = Candidate("cut", "", partial(make_cut, name="b")).build(task, 0).eval()
    torch.manual_seed(0)
    x, whole = task.train.first(2).inputs, TinyNet().eval()
    assert torch.allclose(net.stage(0)(x)[0], whole.b(whole.a(x)), atol=1e-5)
    assert net.num_exits == len(net(x)) == 1
    assert not any("c." in name for name, _ in net.stages.named_parameters())


def test_images_are_made_small_but_are_so_already_where_time_is_measured(task):
    candidate = Candidate("pixels", "", partial(make_resized, pixels=8), 8)
    images = task.train.first(2).inputs
    timed, small = candidate.build_timed(task, images)
    assert small.shape == (2, 3, 8, 8)
    net = candidate.build(task, 0).eval()
    timed.load_state_dict({name.replace("backbone.", ""): value for name, value in net.state_dict().items()})
    assert torch.allclose(net(images)[0].logits, timed.eval()(small)[0].logits, atol=1e-5)


def test_the_loss_follows_the_teacher_on_the_same_batch(task):
    net = build_network(task, 0, exits=False).eval()
    teacher = Teacher(net)
    images, labels = task.train.first(4).inputs, task.train.labels[:4]
    assert teacher(images) is images
    outputs = net(images)
    same = make_loss(teacher)(outputs, labels)
    assert same.distillation.item() == pytest.approx(0, abs=1e-5)
    assert same.total.item() == pytest.approx(xl.EGTLoss(weight=0.0)(outputs, labels).total.item(), abs=1e-5)
    flat = (outputs[0]._replace(logits=torch.zeros(4, 4, requires_grad=True)),)
    terms = make_loss(teacher)(flat, labels)
    soft = (teacher.logits / 2).softmax(1)
    by_hand = 4 * (soft * (soft * 4).log()).sum(1).mean()
    assert terms.distillation.item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert (terms.total - terms.classification).item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert terms.total.requires_grad


def test_ours_and_a_static_network_are_measured_on_every_test_set(task, tmp_path):
    found = measure.measure_adaptive(task, 0, tmp_path)
    assert found["full"]["tests"]["test"]["agreement"] == 1
    assert sum(found["tests"]["test"]["exit_shares"]) == pytest.approx(1)
    candidate = Candidate("cut", "short", partial(make_cut, name="b"))
    one = measure.measure_candidate(task, candidate, 0, tmp_path, tmp_path / "run")
    assert one["epochs"] == 1
    assert set(one["tests"]["test"]) == {"samples", "accuracy", "agreement"}
    again = measure.measure_candidate(task, candidate, 0, tmp_path, tmp_path / "run")
    assert again["tests"] == one["tests"]


def test_the_fast_policy_is_held_to_the_full_networks_accuracy(task, tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(measure.xl, "calibrate", lambda trace, max_accuracy_drop, folds: limits.append(max_accuracy_drop))
    labels = task.validation.labels
    for answers in ((labels + 1) % 4, labels):  # a full network that is always wrong, and one that never is
        monkeypatch.setattr(measure, "answer", lambda net, data, answers=answers: answers)
        net, _, _, _, accuracy = measure.adapt(task, 0, tmp_path)
        own = measure.rate(measure.answer_last(xl.collect(net, task.validation)), task.validation)["accuracy"]
        assert limits[-2:] == [measure.LIMIT, max(measure.LIMIT + own - accuracy, 0.0)]
    assert accuracy == 1.0
    assert limits[1] > measure.LIMIT
    assert limits[3] == 0.0


def test_answers_are_rated_by_labels_and_by_the_full_network(tiny_set):
    answers = tiny_set.labels.clone()
    answers[:8] = (answers[:8] + 1) % 4
    found = measure.rate(answers, tiny_set, tiny_set.labels.new_zeros(32))
    assert found == {"samples": 32, "accuracy": 0.75, "agreement": 0.25}


def test_inputs_by_name(tmp_path):
    """Texts: a teacher sees the batch that its student gets, and what is timed comes in batches."""
    net, inputs = make_text_net(), make_texts(5)
    teacher = Teacher(net)
    assert teacher(inputs) is inputs
    assert torch.equal(teacher.logits, net(inputs)[-1].logits)

    class Texts:
        def __len__(self):
            return 5

        def subset(self, rows):
            return SimpleNamespace(inputs={name: value[rows] for name, value in inputs.items()})

    batches = split_rows(timing._draw(Texts(), 7), 4)
    assert [len(one["input_ids"]) for one in batches] == [4, 3]
    task = Task(Texts(), Texts(), {}, make_bert, ())
    task.train.classes = ("a", "b", "c")
    short = make_cut(task, "bert.encoder.layer.0").eval()
    assert short(inputs)[0].logits.shape == (5, 3)


def test_the_nearest_static_network_that_is_not_faster_is_named():
    seconds = {"small": 1.0, "large": 3.0, "full": 4.0, "ours, near": 2.0, "ours, far": 3.5, "ours, slow": 5.0}
    times = Times({name: [[one]] * 3 for name, one in seconds.items()})
    candidates = {name: Candidate("width", "", make_narrow) for name in ("large", "small")}
    found = timing.choose(times, candidates, {"near": 0, "far": 0, "slow": 0}, 1)
    assert found["chosen"] == {"width": {"near": "large", "far": "full", "slow": "full"}}
    assert found["chosen_over_adaptive"]["width"]["near"] == [1.5] * 3
    assert found["chosen_over_adaptive"]["width"]["slow"] == [0.8] * 3


def test_what_is_timed_can_be_kept(task, tmp_path):
    measure.measure_adaptive(task, 0, tmp_path)  # trains what is timed
    candidates = {"short": Candidate("cut", "short", partial(make_cut, name="b"))}
    found = timing.measure_times(task, candidates, 0, tmp_path, quick=True)
    store = Store(tmp_path / "static.csv", tmp_path / "runs", LAYOUT)
    store.add("scenes/time-0", found)
    store.fold()
    kept = store.read()["scenes/time-0"]
    assert list(kept["exit_share"]) == ["exit 0", "exit 1", "exit 2"]
    assert all(len(ratio) == 3 for ratio in kept["exit_share"].values())
    assert kept["full_over_fast"][0] > 0


def test_a_task_cut_short(monkeypatch, task):
    monkeypatch.setitem(TASKS, "scenes", lambda seed: task)
    short = jobs.open_task("scenes", 0, most=8)
    assert len(short.train) == len(short.tests["test"]) == 8
    assert short.how == {"epochs": 1, "batch_size": 16}
    assert jobs.open_task("scenes", 0) is task
