import math
import pathlib
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.functional.maps import place
from tests.conftest import make_net

NET = make_net()
IMAGES = torch.randn(257, 3, 16, 16, generator=torch.Generator().manual_seed(5))
TRACE = xl.collect(NET, IMAGES)
POLICY = xl.calibrate(TRACE, max_disagreement=0.3)
PAPER = xl.route(TRACE, POLICY)


def _same_as_on_paper(pred: xl.Prediction, rows: torch.Tensor) -> None:
    assert pred.exits.tolist() == PAPER[rows].tolist()
    logits = TRACE.logits[rows, PAPER[rows]]
    assert pred.labels.tolist() == logits.argmax(1).tolist()
    temperatures = torch.tensor(POLICY.temperatures)[PAPER[rows]]
    torch.testing.assert_close(pred.probabilities, (logits / temperatures[:, None]).softmax(1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(pred.confidence, pred.probabilities.max(1).values)


def test_batches_of_any_size_get_what_the_policy_gives_on_paper():
    assert PAPER.bincount(minlength=3).min() > 5
    for size in (*range(1, 36), *range(36, 258, 13), 257):
        start = (37 * size) % (258 - size)
        rows = torch.arange(start, start + size)
        _same_as_on_paper(xl.predict(NET, IMAGES[rows], POLICY), rows)


@given(st.integers(1, 257), st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_every_order_and_subset(size, seed):
    rows = torch.randperm(257, generator=torch.Generator().manual_seed(seed))[:size]
    _same_as_on_paper(xl.predict(NET, IMAGES[rows], POLICY), rows)


def test_attention_is_that_of_the_exit_that_answered():
    pred = xl.predict(NET, IMAGES[:60], POLICY, attention=True)
    outs = NET(IMAGES[:60])
    for i, k in enumerate(pred.exits.tolist()):
        placed = place(outs[k].attention[i], NET.map_offsets[k])  # the network's own maps are not moved
        torch.testing.assert_close(pred.attention[i], placed, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(placed, outs[k].attention[i], atol=1e-5)
    assert xl.predict(NET, IMAGES[:2], POLICY).attention is None


def test_an_exit_that_can_never_fire_is_not_computed():
    net = make_net()
    calls = []
    for k, head in enumerate(net.heads):
        classify = head.classify
        head.classify = lambda f, k=k, classify=classify: calls.append(k) or classify(f)
    xl.predict(net, IMAGES[:4], xl.Policy((math.inf, 0.9)))
    assert 0 not in calls
    calls.clear()
    stages = []
    for k, stage in enumerate(net.stages):
        stage.register_forward_hook(lambda *_, k=k: stages.append(k))
    xl.predict(net, IMAGES[:4], xl.Policy((0.0, 0.0)))
    assert calls == stages == [0]


@pytest.mark.parametrize("score", ["entropy", "margin"])
def test_other_scores(score):
    policy = xl.calibrate(TRACE, max_disagreement=0.3, score=score)
    assert xl.predict(NET, IMAGES, policy).exits.tolist() == xl.route(TRACE, policy).tolist()


@pytest.mark.parametrize("whole", [True, False])
def test_inputs_modes_and_gradients_are_left_alone(whole):
    net = make_net()
    (net if whole else net.stage(1)).train()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = IMAGES[:50].clone()
    pred = xl.predict(net, x, POLICY)
    _same_as_on_paper(pred, torch.arange(50))
    assert not pred.probabilities.requires_grad
    with pytest.raises(xl.errors.InputError):
        xl.predict(net, x[:, :1], POLICY)
    assert torch.equal(x, IMAGES[:50])
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_channels_last_stays_and_agrees():
    x = IMAGES[:64].contiguous(memory_format=torch.channels_last)
    _same_as_on_paper(xl.predict(NET, x, POLICY), torch.arange(64))


@pytest.mark.parametrize("tuning", [None, xl.Tuning(), xl.Tuning(micro_batch=5), xl.Tuning(folded=True, channels_last=True)])
def test_threads_share_a_network_that_is_in_training_mode(tuning):
    net = make_net().train()
    if tuning is not None:
        net.tuning = tuning
    before = {name: value.clone() for name, value in net.state_dict().items()}
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(15):
            rows = torch.arange(i * 20, i * 20 + 20)
            if xl.predict(net, IMAGES[rows], POLICY).exits.tolist() != PAPER[rows].tolist():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("images", [torch.zeros(0, 3, 16, 16), torch.zeros(2, 3, 17, 16, dtype=torch.float64)])
def test_empty_batches_and_other_dtypes_raise(images):
    with pytest.raises(xl.errors.InputError, match=r"empty|expected torch.float32"):
        xl.predict(NET, images, POLICY)


def test_one_odd_sized_image_runs():
    assert len(xl.predict(NET, torch.zeros(1, 3, 17, 19), POLICY)) == 1


def test_damaged_weights_raise():
    net = make_net()
    torch.nn.init.constant_(net.head(2).classifier.weight, math.nan)
    for call in (xl.predict, xl.explain_batch):
        with pytest.raises(xl.errors.InputError, match="NaN"):
            call(net, IMAGES[:3], xl.Policy.never(3))


def test_the_guard_notices_moves_and_loads():
    net = make_net()
    xl.predict(net, IMAGES[:2], POLICY)
    net.double()
    with pytest.raises(xl.errors.PolicyError):
        xl.predict(net, IMAGES[:2].double(), POLICY)
    net = make_net()
    xl.predict(net, IMAGES[:2], POLICY)
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()}, assign=True)
    with pytest.raises(xl.errors.PolicyError):
        xl.predict(net, IMAGES[:2], POLICY)


def test_a_policy_of_another_network_is_refused():
    other = make_net()
    with torch.no_grad():
        other.head(0).classifier.bias.add_(1)
    with pytest.raises(xl.errors.PolicyError, match="calibrated for network"):
        xl.predict(other, IMAGES[:2], POLICY)
    with pytest.raises(xl.errors.PolicyError, match="exits"):
        xl.predict(other, IMAGES[:2], xl.Policy((0.5,)))
    with pytest.raises(xl.errors.InputError, match="Policy"):
        xl.predict(other, IMAGES[:2], 0.9)


@pytest.mark.parametrize(
    "given",
    [
        "photos",
        pathlib.Path("photos"),
        [IMAGES[:2], IMAGES[2:4]],
        DataLoader(TensorDataset(IMAGES)),
        TensorDataset(IMAGES),
        3,
    ],
)
def test_several_batches_are_sent_to_predict_stream(given):
    with pytest.raises(xl.errors.InputError, match=r"inputs: expected a torch.Tensor .*got") as caught:
        xl.predict(NET, given, POLICY)
    assert ("predict_stream" in str(caught.value)) == (not isinstance(given, int))
