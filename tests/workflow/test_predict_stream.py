"""Streams: the same answers as batch by batch, in order or as they come, bounded, and whole after an error."""

import threading

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.workflow import inference
from tests.conftest import make_net, spread_policy

NET = make_net()
IMAGES = torch.randn(101, 3, 16, 16, generator=torch.Generator().manual_seed(5))
POLICY = spread_policy(NET, IMAGES)
WHOLE = xl.predict(NET, IMAGES, POLICY, attention=True)


def split(size: int) -> list[torch.Tensor]:
    return list(IMAGES.split(size))


def same(pred: xl.Prediction, rows: torch.Tensor) -> None:
    assert pred.exits.tolist() == WHOLE.exits[rows].tolist()
    assert pred.labels.tolist() == WHOLE.labels[rows].tolist()
    torch.testing.assert_close(pred.probabilities, WHOLE.probabilities[rows], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(pred.confidence, WHOLE.confidence[rows], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [1, 7, 200])
@pytest.mark.parametrize("micro_batch", [0, 1, 8])
def test_in_order_one_prediction_for_every_batch(size, micro_batch):
    assert WHOLE.exits.bincount(minlength=3).min() > 5
    net = make_net()
    net.tuning = xl.Tuning(micro_batch=micro_batch)
    start = 0
    for batch, pred in zip(split(size), xl.predict_stream(net, split(size), POLICY, attention=True), strict=True):
        rows = torch.arange(start, start + len(batch))
        assert pred.index.tolist() == rows.tolist()
        same(pred, rows)
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
        same(pred, pred.index)
        assert len(set(pred.exits.tolist())) == 1
    early = [pred.index[0].item() for pred in result if pred.exits[0] == 0]
    assert early == sorted(early)
    assert list(xl.predict_stream(NET, iter([]), POLICY)) == []


@pytest.mark.parametrize("size", [1, 16])
def test_loaders_and_data_sets_with_labels_and_names(size):
    data, named = TensorDataset(IMAGES, torch.zeros(101)), [(batch, ["x.png"] * len(batch)) for batch in split(size)]
    loader = DataLoader(TensorDataset(IMAGES), size)
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
    result = xl.predict_stream(net, (stream.append(i) or IMAGES[i : i + 1] for i in range(40)), POLICY)
    assert next(result).index.tolist() == [0]
    assert net.tuning.micro_batch > 1
    running = inference._Stream(net, POLICY, False, "input", None)
    for size, wanted in ((1, 1), (5, 5), (2, 5), (60, net.tuning.micro_batch)):
        running._feed(IMAGES[:size], 0)
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
        yield IMAGES[:4]
        gate.wait(20)
        yield IMAGES[4:8]

    net = make_net()
    net.tuning = xl.Tuning(micro_batch=64)
    stream = xl.predict_stream(net, source(), POLICY, max_delay_ms=20)
    same(next(stream), torch.arange(4))  # although nothing more comes
    gate.set()
    same(next(stream), torch.arange(4, 8))
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
        result.extend(xl.predict_stream(NET, [IMAGES[:3], IMAGES[3:6], bad, IMAGES[6:]], POLICY))
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


def test_an_error_of_the_network_keeps_what_was_answered_before():
    net = make_net()
    calls: list[int] = []

    def fails_at_the_fourth(*_: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError("no memory")

    net.stage(0).register_forward_hook(fails_at_the_fourth)
    result: list[xl.Prediction] = []
    with pytest.raises(MemoryError):
        result.extend(xl.predict_stream(net, split(10), POLICY))
    assert [len(pred) for pred in result] == [10, 10, 10]
    for i, pred in enumerate(result):
        same(pred, torch.arange(10 * i, 10 * i + 10))


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
        result.extend(xl.predict_stream(net, [IMAGES[:8], IMAGES[8:40]], POLICY))
    assert calls[:3] == [8, 8, 8]
    assert [pred.index.tolist() for pred in result] == [list(range(8))]
    same(result[0], torch.arange(8))


def test_a_small_first_batch_does_not_shrink_later_ones():
    net = make_net()
    sizes: list[int] = []
    net.stage(0).register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    list(xl.predict_stream(net, [IMAGES[:1], IMAGES[1:65], IMAGES[65:]], POLICY))
    assert max(sizes) == 64


def test_policies_of_other_networks_raise_at_the_call():
    with pytest.raises(xl.errors.PolicyError, match="exits"):
        xl.predict_stream(NET, iter([]), xl.Policy((0.5,)))
    with pytest.raises(xl.errors.PolicyError, match="calibrated for network"):
        xl.predict_stream(NET, iter([]), xl.Policy((0.5, 0.5), network="0123456789abcdef"))


def test_the_callers_modes_are_left_alone_between_batches():
    net = make_net().train()
    for _ in xl.predict_stream(net, split(20), POLICY):
        assert net.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_a_folder(tmp_path):
    from PIL import Image

    net = xl.attach("small", 2, 4, torch.zeros(1, 3, 32, 32)).eval()
    net.describe(preprocess=xl.data.Preprocess((32, 32)))
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
