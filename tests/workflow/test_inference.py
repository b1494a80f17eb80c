"""predict and predict_stream: what the policy says on paper, in batches and streams of any size, bounded, and whole after an error."""

import math
import pathlib
import threading

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.functional.maps import place
from exitlens.workflow import inference
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


def test_batches_of_any_size_and_order_get_what_the_policy_gives_on_paper():
    assert PAPER.bincount(minlength=3).min() > 5
    for size in (*range(1, 36), *range(36, 258, 13), 257):
        rows = torch.randperm(257, generator=torch.Generator().manual_seed(size))[:size]
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


def test_channels_last_stays_and_agrees():
    x = IMAGES[:64].contiguous(memory_format=torch.channels_last)
    _same_as_on_paper(xl.predict(NET, x, POLICY), torch.arange(64))


@pytest.mark.slow
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


@pytest.mark.parametrize("verb", [xl.predict, xl.predict_stream])
def test_a_policy_of_another_network_is_refused_at_the_call(verb):
    other = make_net()
    with torch.no_grad():
        other.head(0).classifier.bias.add_(1)
    with pytest.raises(xl.errors.PolicyError, match="calibrated for network"):
        verb(other, IMAGES[:2], POLICY)
    with pytest.raises(xl.errors.PolicyError, match="exits"):
        verb(other, IMAGES[:2], xl.Policy((0.5,)))
    with pytest.raises(xl.errors.InputError, match="Policy"):
        verb(other, IMAGES[:2], 0.9)


@pytest.mark.parametrize(
    "given", ["photos", pathlib.Path("photos"), [IMAGES[:2]], DataLoader(TensorDataset(IMAGES)), TensorDataset(IMAGES), 3]
)
def test_several_batches_are_sent_to_predict_stream(given):
    with pytest.raises(xl.errors.InputError, match=r"inputs: expected a torch.Tensor .*got") as caught:
        xl.predict(NET, given, POLICY)
    assert ("predict_stream" in str(caught.value)) == (not isinstance(given, int))


def test_an_array_has_to_become_a_tensor():
    with pytest.raises(xl.errors.InputError, match=r"got ndarray\. Fix: torch\.from_numpy\(inputs\)"):
        xl.predict(NET, IMAGES[:2].numpy(), POLICY)


PART = IMAGES[:101]
WHOLE = xl.predict(NET, PART, POLICY, attention=True)


def split(size: int) -> list[torch.Tensor]:
    return list(PART.split(size))


@pytest.mark.parametrize("size", [1, 7, 200])
@pytest.mark.parametrize("micro_batch", [0, 1, 8])
@pytest.mark.slow
def test_in_order_one_prediction_for_every_batch(size, micro_batch):
    assert WHOLE.exits.bincount(minlength=3).min() > 5
    net = make_net()
    net.tuning = xl.Tuning(micro_batch=micro_batch)
    start = 0
    for batch, pred in zip(split(size), xl.predict_stream(net, split(size), POLICY, attention=True), strict=True):
        rows = torch.arange(start, start + len(batch))
        assert pred.index.tolist() == rows.tolist()
        _same_as_on_paper(pred, rows)
        for item, i in zip(pred.attention, rows.tolist(), strict=True):
            torch.testing.assert_close(item, WHOLE.attention[i], atol=1e-5, rtol=1e-3)
        start += len(batch)
    assert start == 101


@pytest.mark.parametrize("size", [3, 40])
def test_ready_order(size):
    result = list(xl.predict_stream(NET, iter(split(size)), POLICY, order="ready"))
    index = torch.cat([pred.index for pred in result])
    assert index.sort().values.tolist() == list(range(101))
    for pred in result:
        _same_as_on_paper(pred, pred.index)
        assert len(set(pred.exits.tolist())) == 1
    early = [pred.index[0].item() for pred in result if pred.exits[0] == 0]
    assert early == sorted(early)
    assert list(xl.predict_stream(NET, iter([]), POLICY)) == []


@pytest.mark.parametrize("size", [1, 16])
@pytest.mark.slow
def test_loaders_and_data_sets_with_labels_and_names(size):
    data, named = TensorDataset(PART, torch.zeros(101)), [(batch, ["x.png"] * len(batch)) for batch in split(size)]
    loader = DataLoader(TensorDataset(PART), size)
    for source in (DataLoader(data, size), data, named, loader, list(loader)):
        predictions = list(xl.predict_stream(NET, source, POLICY, batch_size=size))
        assert [len(pred) for pred in predictions] == [len(chunk) for chunk in split(size)]
        assert torch.cat([pred.exits for pred in predictions]).tolist() == WHOLE.exits.tolist()


def test_deep_stages_run_on_full_micro_batches():
    net = make_net()
    net.tuning = xl.Tuning(micro_batch=16)
    sizes: list[list[int]] = [[] for _ in range(3)]
    for k in range(3):
        net.stage(k).register_forward_hook(lambda _, given, __, k=k: sizes[k].append(len(given[0])))
    list(xl.predict_stream(net, split(2), POLICY))
    for k in range(3):
        assert all(16 <= size < 32 for size in sizes[k][:-2])  # the last ones run when the stream ends
        assert sum(sizes[k]) == int((WHOLE.exits >= k).sum())


def test_untuned_micro_batches_do_not_exceed_the_streams_batches():
    net, stream = make_net(), []
    result = xl.predict_stream(net, (stream.append(i) or PART[i : i + 1] for i in range(40)), POLICY)
    assert next(result).index.tolist() == [0]
    assert net.tuning.micro_batch > 1
    running = inference._Stream(net, POLICY, False, "input", None)
    for size, wanted in ((1, 1), (5, 5), (2, 5), (60, net.tuning.micro_batch)):
        running._feed(PART[:size], 0)
        assert running.router.micro_batch == wanted


def test_streams_are_lazy_and_bounded():
    taken, before = [], set(threading.enumerate())

    def source():
        for i, batch in enumerate(split(4)):
            taken.append(i)
            yield batch

    stream = xl.predict_stream(NET, source(), POLICY)
    assert set(threading.enumerate()) == before  # nothing reads yet
    next(stream)
    assert len(taken) < 12
    stream.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("order", ["input", "ready"])
def test_rare_survivors_do_not_delay_others_forever(monkeypatch, order):
    monkeypatch.setattr(inference, "MAX_WAITING", 30)
    net = make_net()
    net.tuning = xl.Tuning(micro_batch=1000)
    stream = inference._Stream(net, POLICY, False, order, None)
    with inference.Prefetch(iter(split(5))) as loading:
        behind = [stream.seen - int(pred.index.min()) for pred in stream.run(loading)]
    assert 0 < max(behind) <= 40


def test_no_sample_waits_longer_than_it_may():
    gate = threading.Event()

    def source():
        yield PART[:4]
        gate.wait(20)
        yield PART[4:8]

    net = make_net()
    net.tuning = xl.Tuning(micro_batch=64)
    stream = xl.predict_stream(net, source(), POLICY, max_delay_ms=20)
    _same_as_on_paper(next(stream), torch.arange(4))  # although nothing more comes
    gate.set()
    _same_as_on_paper(next(stream), torch.arange(4, 8))
    assert next(stream, None) is None


@pytest.mark.parametrize(
    ("stop", "error", "message"),
    [
        (OSError("no disk"), xl.errors.StreamError, r"OSError \(no disk\) after 3 batches; all their 30 samples"),
        (SystemExit(3), SystemExit, "3"),
    ],
)
def test_samples_before_an_error_are_answered(stop, error, message):
    def source():
        yield from split(10)[:3]
        raise stop

    answered: list[xl.Prediction] = []
    with pytest.raises(error, match=message) as caught:
        answered.extend(xl.predict_stream(NET, source(), POLICY))
    assert stop in (caught.value, caught.value.__cause__)
    assert torch.cat([pred.index for pred in answered]).tolist() == list(range(30))


@pytest.mark.parametrize(
    "bad",
    [
        torch.randn(2, 1, 16, 16),
        torch.full((2, 3, 16, 16), float("nan")),
        torch.randn(0, 3, 16, 16),
        torch.randn(2, 3, 16, 16, dtype=torch.float64),
    ],
)
def test_a_bad_batch_is_named_after_the_answers_before_it(bad):
    result: list[xl.Prediction] = []
    with pytest.raises(xl.errors.InputError, match=r"batches\[2\]"):
        result.extend(xl.predict_stream(NET, [PART[:3], PART[3:6], bad, PART[6:]], POLICY))
    assert torch.cat([pred.index for pred in result]).tolist() == list(range(6))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"order": "sorted"}, "order"),
        ({"max_delay_ms": -1}, "max_delay_ms"),
        ({"max_delay_ms": float("nan")}, "max_delay_ms"),
        ({"batch_size": 0}, "batch_size"),
        ({"batches": "no/such/folder"}, "describe"),
        ({"batches": 3}, "batches: .*got int"),
    ],
)
def test_bad_arguments_raise_at_the_call(values, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.predict_stream(NET, **{"batches": iter([]), "policy": POLICY} | values)


def test_weights_but_not_tuning_may_change_during_a_stream():
    net = make_net()
    net.tuning = xl.Tuning(folded=True)
    stream = xl.predict_stream(net, split(10), xl.Policy.never(3))
    first = next(stream)
    with torch.no_grad():
        net.head(2).classifier.bias.copy_(torch.tensor([1e4, 0, 0, 0]))
    rest = list(stream)
    assert set(first.labels.tolist()) != {0}
    assert set(rest[-1].labels.tolist()) == {0}
    stream = xl.predict_stream(net, split(10), xl.Policy.never(3))
    next(stream)
    net.tuning = xl.Tuning()
    with pytest.raises(xl.errors.EngineError, match="while it answered a stream"):
        list(stream)


def test_samples_that_waited_with_those_of_the_failed_batch_are_answered(monkeypatch):
    net = make_net()
    net.tuning = xl.Tuning(micro_batch=8)
    calls: list[int] = []
    ran = type(net.stage(0)).forward

    def fails_in_the_middle_of_the_second_batch(stage, *activations):
        if stage is net.stage(0):
            calls.append(len(activations[0]))
            if len(calls) == 3:  # by then samples of the second batch wait with those of the first
                raise MemoryError("no memory")
        return ran(stage, *activations)

    monkeypatch.setattr(type(net.stage(0)), "forward", fails_in_the_middle_of_the_second_batch)
    result: list[xl.Prediction] = []
    with pytest.raises(MemoryError):
        result.extend(xl.predict_stream(net, [PART[:8], PART[8:40]], POLICY))
    assert calls[:3] == [8, 8, 8]
    assert [pred.index.tolist() for pred in result] == [list(range(8))]
    _same_as_on_paper(result[0], torch.arange(8))


def test_a_folder(tmp_path):
    net = make_net()
    net.describe(preprocess=xl.data.Preprocess((16, 16)))
    for i in range(5):
        Image.new("RGB", (40, 30), (50 * i, 20, 30)).save(tmp_path / f"{i}.png")
    images = xl.data.load_unlabelled(tmp_path, net.info.preprocess).inputs
    whole = xl.predict(net, images, xl.Policy((0.3, 0.3)))
    for source in (tmp_path, str(tmp_path)):
        result = list(xl.predict_stream(net, source, xl.Policy((0.3, 0.3)), batch_size=2))
        assert [len(pred) for pred in result] == [2, 2, 1]
        assert torch.cat([pred.exits for pred in result]).tolist() == whole.exits.tolist()


def test_progress_is_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(inference, "track", lambda items, what, total: shown.append((what, total)) or items)
    assert len(list(xl.predict_stream(NET, split(50), POLICY, progress=True))) == 3
    assert shown == [("predicting", 3)]
