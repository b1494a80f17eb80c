"""Two processes train one network."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import exitlens as xl
from exitlens.ranks import DistributedContext, find_ranks
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training.debiasing import ShallowExpert
from exitlens.workflow.training.distributed import use_common_statistics
from tests.conftest import TinyNet, make_tiny_set
from tests.ranks import open_pair
from tests.texts import make_text_net, make_texts
from tests.workflow.training.networks import QUICK, WithoutStatistics, fresh, raise_at, weights

make_data = partial(make_tiny_set, 29)


def make_loader(kind: str, data: xl.data.ImageSet):
    generator = torch.Generator().manual_seed(5)
    return {
        "set": lambda: data,
        "in order": lambda: DataLoader(data, 7),
        "own generator": lambda: DataLoader(data, 8, shuffle=True, generator=generator),
        "no generator": lambda: DataLoader(data, 8, shuffle=True),
        "sampler": lambda: DataLoader(data, 4, sampler=DistributedSampler(data)),
    }[kind]()


def train(rank: int, options: dict, plain=WithoutStatistics, count: int = 29, kind: str = "set"):
    """The weights and the history of a run; other ranks than the first begin with other weights."""
    data = make_tiny_set(count)
    net = fresh(backbone=plain, seed=7 + rank)
    result = xl.fit(net, make_loader(kind, data), data, **{**QUICK, **options})
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]
    return weights(net), history


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with open_pair(tmp_path_factory.mktemp("pair")) as outcome:
        yield outcome


def assert_equal(a, b):
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_close(actual, expected):
    for name in actual[0]:
        torch.testing.assert_close(actual[0][name], expected[0][name], rtol=1e-4, atol=2e-6)
    for row, other in zip(actual[1], expected[1], strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-6)
        assert row["accuracy"] == pytest.approx(other["accuracy"])
        assert row["cc"] == pytest.approx(other["cc"], abs=1e-3)
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, {}),
        ({}, {"count": 7}),  # the only batch splits into 4 and 3
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ({"accumulate": 2, "clip_norm": 0.1, "ema": 0.9, "balanced": True}, {}),
                ({"freeze_backbone": True, "batch_size": 5}, {}),
                ({}, {"kind": "own generator"}),
                ({}, {"kind": "in order"}),
            )
        ),
    ],
    ids=["plain", "one uneven batch", "options", "frozen and uneven", "own generator", "in order"],
)
def test_two_processes_train_as_one_does(pair, options, words):
    first, second = pair.run(partial(train, **words), options)
    assert_equal(first[0], second[0])
    assert first[1] == second[1]
    assert_close(first, train(0, options | {"ranks": DistributedContext()}, **words))


@pytest.mark.slow
def test_the_expert_learns_from_the_samples_of_both(pair):
    """Compared by mean gradients: where these are rounding alone, AdamW moves weights all the same."""
    first, second = pair.run(_train_expert)
    assert_equal(first, second)
    alone = _train_expert(0, DistributedContext(), parts=2)
    moments = [name for name in alone if name.endswith("exp_avg")]
    assert len(moments) == 6
    for name in moments:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-4, atol=1e-7)


def _train_expert(rank, ranks=None, parts=1):
    """Train on a rank's rows, or on all rows in ``parts``: weights and the expert's mean answer are those of a part."""
    ranks, data, net = find_ranks(ranks), make_data(), fresh(backbone=WithoutStatistics)
    expert = ShallowExpert(net, TrainingSettings(rely_on="map"), ranks)
    rows = torch.arange(len(data.labels))[ranks.rows]
    for part in (rows[i::parts] for i in range(parts)):
        outputs, shallow, *_ = net.observe(data.inputs[part])
        expert.weigh(outputs, shallow, data.labels[part], 1.0, len(part) / len(rows))
    expert.step(len(rows))
    return expert.dump()


@pytest.mark.slow
def test_rely_on_and_ignore_leave_both_with_the_same_weights(pair):
    first, second = pair.run(train, {"rely_on": "map", "ignore": "background", "epochs": 2})
    assert_equal(first[0], second[0])
    assert first[1] == second[1]


@pytest.mark.slow
def test_batch_norm_and_augmentation_are_reproducible(pair):
    options, words = {"augment": "crop", "ema": 0.9}, {"plain": TinyNet}
    runs = [pair.run(partial(train, **words), options) for _ in range(2)]
    for outcome in runs:
        for state, _ in outcome:
            assert_equal(runs[0][0][0], state)


@pytest.mark.slow
def test_the_ranks_draw_different_random_numbers(pair):
    first, second = pair.run(_draw)
    assert len(first) == len(second) > 0
    assert first != second


def _draw(rank):
    seen = []

    def augment(images):
        seen.append(torch.rand(()).item())
        return images

    xl.fit(fresh(backbone=WithoutStatistics), make_data(), make_data(), augment=augment, **{**QUICK, "epochs": 1})
    return seen


@pytest.mark.slow
def test_samplers_that_share_samples_are_respected_and_private_random_order_is_refused(pair):
    first, second = pair.run(partial(train, kind="sampler"), {})
    assert_equal(first[0], second[0])
    for error in pair.run(partial(train, kind="no generator"), {}):
        assert isinstance(error, xl.errors.InputError)
        assert "generator=torch.Generator()" in str(error)


@pytest.mark.slow
def test_texts_train_in_two_processes(pair):
    first, second = pair.run(_train_texts)
    assert_equal(first, second)


def _train_texts(rank):
    net, inputs = make_text_net(), make_texts()
    batches = [(inputs, torch.arange(len(next(iter(inputs.values())))) % net.info.num_classes)]
    xl.fit(net, DataLoader(batches, None), batches, **{**QUICK, "epochs": 1})
    return weights(net)


def train_by_ddp(rank: int, loss: xl.EGTLoss, options: dict[str, bool], ranks: int = 2):
    """The weights after four steps of a loop that wraps network and loss, on this rank's rows."""
    data, net = make_tiny_set(28), fresh(backbone=WithoutStatistics)
    model = net.with_loss(loss, steps=4, epochs=1).train()
    wrapped = DistributedDataParallel(model, **options) if ranks > 1 else model
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(4):
        terms, _ = wrapped(data.inputs[rank::ranks], data.labels[rank::ranks], step)
        terms.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(net)


@pytest.mark.parametrize(
    ("loss", "options"),
    [(xl.EGTLoss(), {}), (xl.EGTLoss(target="product", every=2), {"static_graph": True})],
)
def test_a_network_and_its_loss_are_wrapped_as_any_module(pair, loss, options):
    first, second = pair.run(train_by_ddp, loss, options)
    assert_equal(first, second)
    whole = train_by_ddp(0, loss, {}, 1)
    for name, value in first.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6)
    assert not torch.equal(first["heads.0.attend.weight"], fresh(backbone=WithoutStatistics).head(0).attend.weight)


@pytest.mark.parametrize(
    ("kind", "errors", "at_the_first", "at_the_second"),
    [
        ("labels", (xl.errors.InputError,) * 2, "process 1 of 2: labels: expected values in [0, 4)", "labels: expected"),
        ("nan", (xl.errors.TrainingError,) * 2, "process 1 of 2: loss: expected a finite number, got nan", "loss: "),
        ("bug", (xl.errors.DistributedError, KeyError), "process 1 of 2: KeyError", ""),
        ("network", (xl.errors.InputError,) * 2, *["the same network in every process"] * 2),
    ],
)
@pytest.mark.slow
def test_all_ranks_raise_what_one_raises(pair, kind, errors, at_the_first, at_the_second):
    first, second = pair.run(_fail, kind)
    assert (type(first), type(second)) == errors
    assert at_the_first in str(first)
    assert at_the_second in str(second)
    if kind == "labels":
        assert first.is_told is second.is_told is True


def _fail(rank, kind):
    data, net, options = make_data(), fresh(backbone=WithoutStatistics), {}
    if kind == "labels" and rank == 1:
        data = TensorDataset(data.inputs, data.labels + 3)
    elif kind == "network" and rank == 1:
        net = xl.attach(WithoutStatistics(), ["a"], 4, torch.zeros(1, 3, 16, 16))
    elif rank == 1:
        options["augment"] = partial(_break, net) if kind == "nan" else {}.pop
    xl.fit(net, data, make_data(), **QUICK, **options)


def _break(net, images):
    with torch.no_grad():
        net.head(0).classifier.weight.fill_(float("nan"))
    return images


@pytest.mark.slow
def test_rank_0_writes_and_a_stopped_run_is_resumed_to_the_bit(pair, tmp_path):
    options = {"keep": "best", "ema": 0.5}
    whole, _ = pair.run(train, options | {"out_dir": tmp_path / "whole"})
    stopped = pair.run(_train_until, options | {"out_dir": tmp_path / "part"}, 5)
    assert [str(first) for first in stopped] == ["stopped", "stopped"]
    again, second = pair.run(train, options | {"out_dir": tmp_path / "part", "resume": True})
    assert_equal(whole[0], again[0])
    assert_equal(whole[0], second[0])
    refused = pair.run(train, options | {"out_dir": tmp_path / "part"})
    assert all(isinstance(first, xl.errors.OutputExistsError) for first in refused)


def _train_until(rank, options, steps):
    augment = raise_at(xl.errors.TrainingError("stopped"), steps + 1)
    xl.fit(fresh(backbone=WithoutStatistics), make_data(), make_data(), augment=augment, **QUICK | options)


@pytest.mark.slow
def test_more_processes_than_samples_in_a_batch(pair):
    for error in pair.run(train, {"batch_size": 1}):
        assert "at least a sample for each of 2 processes" in str(error)
    for error in pair.run(partial(train, count=1), {}):
        assert "a sample for each of 2 processes" in str(error)


def test_sync_batch_norm_on_gpus_is_undone_afterwards(monkeypatch):
    net = fresh()
    names = {name: type(module) for name, module in net.named_modules()}
    with use_common_statistics(net, DistributedContext(0, 2)):  # on a CPU
        assert {name: type(module) for name, module in net.named_modules()} == names
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    before = weights(net)
    with use_common_statistics(net, DistributedContext(0, 2)):
        assert sum(isinstance(module, nn.SyncBatchNorm) for module in net.modules()) == 2
        assert_equal(before, net.state_dict())
        for parameter in net.parameters():
            parameter.data.add_(1)
    assert {name: type(module) for name, module in net.named_modules()} == names
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name] + 1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_both_processes_read_folders_and_know_bad_files(pair, folder, tmp_path, workers):
    for file in sorted(folder.rglob("*.png"))[::3]:
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / file.parent.name)
    alone = _train_folder(0, tmp_path, workers, ranks=DistributedContext())
    first, second = pair.run(_train_folder, tmp_path, workers)
    assert_equal(first[0], second[0])
    for name in alone[0]:
        torch.testing.assert_close(first[0][name], alone[0][name], rtol=1e-4, atol=2e-6)
    (tmp_path / "dark" / "bad.png").write_bytes(b"no image")
    first, second = pair.run(_train_folder, tmp_path, workers)
    assert_equal(first[0], second[0])
    assert len(first[1]) == 1
    assert first[1] == second[1]
    assert "bad.png" in first[1][0]


def _train_folder(rank, folder, workers, ranks=None):
    net, preprocess = fresh(backbone=WithoutStatistics), xl.data.Preprocess((16, 16), (0.5,) * 3, (0.2,) * 3)
    data = xl.data.load_folder(folder, preprocess, skip_bad=True)
    xl.fit(net, data, data, workers=workers, ranks=ranks, **{**QUICK, "epochs": 2})
    return weights(net), data.bad
