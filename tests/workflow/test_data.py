"""Every verb takes every kind of data, also sets that are read while it is asked for, and changes neither data nor network."""

import shutil

import pytest
import torch
from torch.utils.data import DataLoader

import exitlens as xl
from exitlens.types.settings import NetworkSettings
from exitlens.workflow.training.setup import build_network
from tests.conftest import make_net
from tests.data.conftest import Pixels
from tests.workflow.training.networks import QUICK, equal, fresh, weights

POLICY = xl.Policy((0.5, 0.4))
SOURCES = {
    "set": lambda data: data,
    "lazy": lambda data: xl.data.LazySet(Pixels(data.images), data.labels, data.classes, data.preprocess),
    "loader": lambda data: DataLoader(data, 8),
    "list": lambda data: list(data.inputs.split(8)),
    "tensor": lambda data: data.inputs,
}


def explain(net: xl.ExitNet, data: object) -> torch.Tensor:
    return torch.stack([why.exits[0].probabilities for why in xl.explain_batch(net, data, POLICY)])


def judge(net: xl.ExitNet, data: object) -> torch.Tensor:
    return torch.tensor(xl.measure_faithfulness(net, data, samples=8, oracle_samples=0, grid=(2, 2)).deletion)


VERBS = {
    "collect": lambda net, data: xl.collect(net, data).logits,
    "predict_stream": lambda net, data: torch.cat([pred.probabilities for pred in xl.predict_stream(net, data, POLICY)]),
    "explain_batch": explain,
    "faithfulness": judge,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.slow
def test_every_verb_takes_every_kind_of_data(tiny_set, verb):
    net, data = make_net(), tiny_set.first(20)
    expected, *others = (VERBS[verb](net, source(data)) for source in SOURCES.values())
    for result in others:
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("whole", [True, False])
def test_the_network_its_inputs_and_the_mode_of_torch_are_left_alone(images, verb, whole):
    net = make_net()
    (net if whole else net.stage(1)).train()
    modes, before, given = [module.training for module in net.modules()], weights(net), images.clone()
    assert not VERBS[verb](net, given).requires_grad
    with pytest.raises(xl.errors.InputError):
        VERBS[verb](net, given[:, :1])
    assert [module.training for module in net.modules()] == modes
    assert torch.is_grad_enabled()
    assert torch.equal(images, given)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("data", [3, [["a", "b"]]])
def test_other_types_are_refused(verb, data):
    errors = (xl.errors.InputError, xl.errors.StreamError)
    with pytest.raises(errors, match=r"expected (a Dataset|a folder|batches of inputs)"):
        VERBS[verb](make_net(), data)


PREPROCESS = xl.data.Preprocess((16, 16))


@pytest.fixture
def own(folder, tmp_path):
    """A copy of the folder, to be spoilt."""
    return shutil.copytree(folder, tmp_path / "own")


def _spoil(own, *numbers):
    for i in numbers:
        (own / "dark" / f"{i:02}.png").write_text("no image")


def _open(folder, workers=0, skip_bad=False):
    data = xl.data.load_folder(folder, PREPROCESS, skip_bad=skip_bad)
    data.workers = workers
    return xl.data.split_set(data, (0.7, 0.3))


def _train(train, val, **options):
    net = fresh(classes=2)
    result = xl.fit(net, train, val, **QUICK | {"epochs": 2} | options)
    return weights(net), result.history


@pytest.mark.slow
def test_lazy_sets_train_the_weights_of_sets_in_memory(folder):
    train, val = _open(folder)
    expected, history = _train(train.load(), val.load())
    for workers in (0, 3):
        outcome, same = _train(*_open(folder, workers))
        assert equal(outcome, expected)
        assert [row["accuracy"] for row in same] == [row["accuracy"] for row in history]
    assert equal(_train(*_open(folder), workers=2)[0], expected)


@pytest.mark.slow
def test_bad_files_stop_a_fit_which_resumes_without_them(own, tmp_path):
    _spoil(own, 3, 4, 5)
    with pytest.raises(xl.errors.DataError, match=r"dark/0[345]\.png.*--skip-bad") as caught:
        _train(*_open(own, 2), out_dir=tmp_path / "run")
    assert caught.value.is_skippable
    assert "--resume" not in str(caught.value)  # there is no run yet
    train, val = _open(own, 2, skip_bad=True)
    outcome, history = _train(train, val, out_dir=tmp_path / "run", resume=True)
    assert len(train.bad) == 3
    assert len(history) == 2
    assert equal(outcome, _train(*_open(own, 0, skip_bad=True))[0])


def test_batches_that_become_too_small_are_skipped(own):
    _spoil(own, *range(30))
    train, val = _open(own, skip_bad=True)
    _train(train, val)
    trace = xl.collect(fresh(classes=2), train)
    assert len(trace) == int((train.labels == train.classes.index("bright")).sum())


@pytest.mark.slow
def test_networks_are_built_on_the_first_readable_image(own):
    _spoil(own, 0, 1)
    data = xl.data.load_folder(own, PREPROCESS, skip_bad=True)
    dark = data.subset((data.labels == data.classes.index("dark")).nonzero().flatten())
    assert build_network(NetworkSettings(), dark).num_exits == 4
    with pytest.raises(xl.errors.DataError, match=r"00\.png"):
        build_network(NetworkSettings(), xl.data.load_folder(own, PREPROCESS).subset(dark.rows))
