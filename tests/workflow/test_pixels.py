"""One class a pixel, through every verb: a bright, a red or a blue square on noise."""

import json
import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import exitlens as xl
from exitlens.functional.pixels import count_borders, count_confusion, measure_border_f1, score_pixels
from exitlens.model.attribution import attribute
from exitlens.workflow.faithfulness import measure_faithfulness
from tests.conftest import TinyUNet, make_pixel_set, make_unet

POLICY = xl.Policy((0.7, 0.75), score="mean_probability")


@pytest.fixture
def unet():
    net = make_unet()
    net.describe(classes=make_pixel_set(1).classes)
    return net


@pytest.mark.slow
def test_training_learns_to_find_squares():
    torch.manual_seed(0)
    train = make_pixel_set(160)
    net = xl.attach(TinyUNet(), ["down1", "bottom"], 4, train.first(1).inputs)
    result = xl.fit(net, train, make_pixel_set(32), epochs=12, batch_size=16, learning_rate=1e-2, progress=False)
    assert result.history[0]["miou"][-1] < result.history[-1]["miou"][-1]
    assert result.history[-1]["miou"][-1] > 0.5
    assert net.info.task == "segmentation"
    data = make_pixel_set(32)
    counts = count_confusion(net(data.inputs)[-1].logits.argmax(1), data.labels, 4).sum(0)
    assert result.history[-1]["accuracy"][-1] == pytest.approx((counts.trace() / counts.sum()).item())


@pytest.mark.slow
def test_a_run_repeats_itself_and_logs_its_measure(tmp_path):
    data = make_pixel_set(16)
    whole, again = make_unet(), make_unet()
    options = {
        "batch_size": 8,
        "progress": False,
        "augment": "crop",
        "share_cores": False,
        "keep": "best",
        "monitor": "final_accuracy",
    }
    xl.fit(whole, data, data, epochs=2, out_dir=tmp_path / "whole", **options)
    xl.fit(again, data, data, epochs=2, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert "miou_exit2" in (tmp_path / "whole" / "log.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rely_on": "map"}, "rely_on: it is not there yet for networks that answer one class a pixel"),
        ({"balanced": True}, "balanced: it is not there yet"),
        ({"ignore": "background"}, "ignore: it is not there yet"),
        ({"freeze_backbone": True, "cache_features": True}, "cache_features: it is not there yet"),
        ({"augment": lambda images: images}, "augment: a function of the inputs does not move the labels"),
        ({"loss": xl.EGTLoss(target="relevance")}, "target: 'relevance' is not for answers to each pixel"),
        ({"loss": xl.EGTLoss(of="evidence", distance="mse")}, "of: 'evidence' is for classes or labels of whole samples"),
        ({"loss": xl.EGTLoss(class_weights="balanced")}, "class_weights: needs the training labels"),
    ],
)
def test_what_training_refuses(options, message):
    data = make_pixel_set(4)
    with pytest.raises(xl.errors.InputError, match=message):
        xl.fit(make_unet(), data, data, epochs=1, progress=False, **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(8, 8, 8, dtype=torch.long), r"labels: expected \(8, 16, 16\), of the size of the images"),
        (torch.full((8, 16, 16), 255), "val: none of its pixels has a class"),
    ],
)
def test_validation_labels_that_say_nothing_of_the_images_are_refused(labels, message):
    data = make_pixel_set(8)
    with pytest.raises(xl.errors.InputError, match=message):
        xl.fit(make_unet(), data, TensorDataset(data.inputs, labels), epochs=1, progress=False)


def test_labels_of_another_kind_are_refused(net, tiny_set):
    data, few = make_pixel_set(4), tiny_set.first(4)
    with pytest.raises(xl.errors.InputError, match=r"val labels: this network answers one class a sample: expected \(1,\)"):
        xl.fit(net, data, data, epochs=1, progress=False)
    with pytest.raises(
        xl.errors.InputError, match=r"val labels: this network answers one class a pixel: expected \(1,H,W\)"
    ):
        xl.fit(make_unet(), few, few, epochs=1, progress=False)
    coarse = TensorDataset(data.inputs, data.labels[:, ::2, ::2])
    with pytest.raises(
        xl.errors.InputError, match=r"labels: expected \(4, 16, 16\), of the size of the images, got \(4, 8, 8\)"
    ):
        xl.fit(make_unet(), coarse, coarse, epochs=1, progress=False)
    with pytest.raises(xl.errors.InputError, match=r"data, labels: expected \(4, 16, 16\), as the images, got \(4, 8, 8\)"):
        xl.collect(make_unet(), coarse)


@pytest.mark.parametrize(
    "transform", [None, v2.RandomRotation(20, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}), "flip"]
)
def test_a_frozen_backbone_trains_with_transforms(transform):
    data, net = make_pixel_set(8), make_unet()
    net.describe(preprocess=data.preprocess)
    before = net.stage(0).body.get_submodule("down1.0").weight.clone()
    xl.fit(net, DataLoader(data, 4), data, epochs=1, augment=transform, freeze_backbone=True, progress=False)
    assert torch.equal(net.stage(0).body.get_submodule("down1.0").weight, before)


def test_a_trace_has_what_the_network_answers(unet, tmp_path):
    data = make_pixel_set(40)
    trace = xl.collect(unet, data, batch_size=16)
    outs = unet(data.inputs)
    final = outs[-1].logits.argmax(1)
    activations = (data.inputs,)
    for k, out in enumerate(outs):
        activations, answers = unet.stage(k)(*activations), out.logits.argmax(1)
        assert torch.equal(trace.logits.confusion[:, k], count_confusion(answers, data.labels, 4))
        assert torch.equal(trace.borders[:, k], count_borders(answers, data.labels, 4))
        torch.testing.assert_close(trace.disagreement[:, k], (answers != final).float().mean((1, 2)))
        expected = score_pixels(unet.head(k)(*activations).logits.softmax(1), "mean_probability")
        torch.testing.assert_close(trace.logits.scores[:, k, 0], expected, atol=1e-5, rtol=1e-5)
    assert trace.classes == data.classes
    assert trace.network == unet.fingerprint()
    assert trace.has_maps
    assert trace.gate_features is None
    trace.save(tmp_path / "trace")
    assert torch.equal(xl.Trace.load(tmp_path / "trace").borders, trace.borders)
    again = xl.collect(unet, data.inputs)
    assert not again.is_labelled
    assert again.borders is None
    with pytest.raises(xl.errors.InputError, match="compact: a summary is kept in place of logits"):
        xl.collect(unet, data, compact=True)
    with pytest.raises(xl.errors.InputError, match="some batches have labels and some have none"):
        xl.collect(unet, [(data.inputs[:4], data.labels[:4]), data.inputs[4:8]])


def test_what_is_routed_on_paper_is_what_is_predicted(unet):
    data = make_pixel_set(60)
    trace = xl.collect(unet, data)
    scores = trace.logits.scores[:, :-1, 0].sort(0).values
    policy = xl.Policy(((scores[30] + scores[31]) / 2).tolist(), score="mean_probability")
    pred, outs = xl.predict(unet, data.inputs, policy, attention=True), unet(data.inputs)
    assert torch.equal(pred.exits, xl.route(trace, policy))
    assert len(pred.exits.unique()) == 3
    for i, k in enumerate(pred.exits.tolist()):
        torch.testing.assert_close(pred.probabilities[i], outs[k].logits[i].softmax(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pred.confidence[i], trace.logits.scores[i, k, 0], atol=1e-5, rtol=1e-5)
        assert pred.attention[i].shape == outs[k].attention.shape[1:]
    assert torch.equal(pred.labels, pred.probabilities.argmax(1))
    report = xl.evaluate(trace, policy)
    drop = (pred.labels != data.labels)[data.labels != 255].float().mean() - (outs[-1].logits.argmax(1) != data.labels)[
        data.labels != 255
    ].float().mean()
    assert report.pixels.exit_accuracy[-1] - report.pixels.accuracy == pytest.approx(drop.item(), abs=1e-5)
    borders = count_borders(pred.labels, data.labels, 4)
    assert report.pixels.boundary_f1 == pytest.approx(measure_border_f1(borders).item())
    assert report.pixels.exit_boundary_f1 == pytest.approx(measure_border_f1(trace.borders).tolist())
    json.dumps(report.to_dict())


@pytest.mark.parametrize("order", ["input", "ready"])
def test_a_stream_gives_what_predict_gives(unet, order):
    data = make_pixel_set(40)
    whole = xl.predict(unet, data.inputs, POLICY)
    parts = list(xl.predict_stream(unet, data.inputs.split(7), POLICY, order=order))
    index = torch.cat([part.index for part in parts])
    assert torch.equal(torch.cat([part.labels for part in parts])[index.argsort()], whole.labels)
    assert torch.equal(torch.cat([part.exits for part in parts])[index.argsort()], whole.exits)


def test_a_stream_may_change_its_size(unet):
    batches = [torch.randn(3, 3, 16, 16), torch.randn(2, 3, 24, 20), torch.randn(3, 3, 16, 16)]
    parts = list(xl.predict_stream(unet, batches, xl.Policy((0.6, math.inf), score="low_probability")))
    assert [part.labels.shape for part in parts] == [(3, 16, 16), (2, 24, 20), (3, 16, 16)]


def test_explanations_show_where_exits_differ(unet):
    data = make_pixel_set(12)
    pred, outs = xl.predict(unet, data.inputs, POLICY), unet(data.inputs)
    for i, why in enumerate(xl.explain_batch(unet, data.inputs, POLICY)):
        assert why.answered == pred.exits[i]
        view = why.exits[why.answered]
        assert torch.equal(view.pixels.labels, pred.labels[i])
        assert view.answer == tuple(pred.labels[i].unique().tolist())
        assert torch.equal(view.pixels.differs, pred.labels[i] != outs[-1].logits[i].argmax(0))
        torch.testing.assert_close(view.pixels.class_maps.sum((1, 2)), torch.ones(len(view.pixels.told)))
        torch.testing.assert_close(view.probabilities, pred.labels[i].flatten().bincount(minlength=4) / 256)
        assert why.disagrees == bool(view.pixels.differs.any())
        assert "the full network's cost" in why.reason
    json.dumps(why.to_dict())
    assert why.reason.startswith(", ".join(unet.info.classes[c] for c in view.answer))
    why._repr_html_()
    short = xl.explain(unet, data.inputs[0], xl.Policy((0.0, 0.0), score="sure_share"), final=False)
    assert len(short.exits) == 1
    assert short.exits[0].pixels.differs is None
    assert not short.disagrees
    late = xl.explain(unet, data.inputs[0], xl.Policy.never(3, score="sure_share"))
    assert "so the final exit answered, with confidence" in late.reason


def test_a_bundle_is_the_same_network(unet, tmp_path):
    data = make_pixel_set(24)
    policy = xl.calibrate(xl.collect(unet, data), max_miou_drop=0.05, max_missed_area={"red": 1, 1: 1})
    xl.save(unet, policy, tmp_path / "b")
    net, again = xl.load(tmp_path / "b", backbone=TinyUNet())
    assert again == policy
    assert net.info == unet.info
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(net(data.inputs), unet(data.inputs), strict=True))


def test_measured_time(unet):
    timing = xl.types.ExitLatency((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 3.0, 1, 1)
    trace = xl.collect(unet, make_pixel_set(30))
    trace = xl.Trace(trace.logits, None, trace.divergence, torch.tensor(timing.cost), timing=timing)
    assert xl.evaluate(trace, xl.calibrate(trace, max_ms=2.0)).ms <= 2.0


@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("precision: judging bfloat16", lambda net, data, path: net.tune(data.inputs[:2], precision="bfloat16")),
        ("net: certify_binding", lambda net, data, path: xl.certify_binding(net, data, POLICY)),
        ("net: find_cues", lambda net, data, path: xl.find_cues(net, data)),
        ("net: measure_faithfulness", lambda net, data, path: measure_faithfulness(net, data)),
        ("net: relevance", lambda net, data, path: attribute(net, data.inputs[:1])),
        ("relevance: it", lambda net, data, path: xl.explain(net, data.inputs[0], POLICY, relevance=True)),
        ("relevance: it", lambda net, data, path: net.observe(data.inputs, relevance=True)),
        ("swapped: it", lambda net, data, path: xl.collect(net, data, swapped=4)),
        (r"members\[0\]: a cascade", lambda net, data, path: xl.cascade([net, net])),
        ("policy: an Adaptive", lambda net, data, path: xl.predict(net, data.inputs, xl.Adaptive(POLICY, 0.1))),
    ],
)
def test_other_verbs_say_that_they_do_not_know_pixels_yet(what, call, tmp_path):
    with pytest.raises(xl.errors.InputError, match=f"{what} is not there yet for networks that answer one class a pixel"):
        call(make_unet(), make_pixel_set(4), tmp_path)
