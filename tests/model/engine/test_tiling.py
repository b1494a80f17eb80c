"""Tiles of images leave each for itself, and answer what the whole image answers where the halo is large enough."""

import json
import math
from dataclasses import replace

import pytest
import torch

import exitlens as xl
from exitlens.functional.pixels import count_confusion, measure_mean_iou, measure_missed, split_tiles
from exitlens.functional.risk import mean_iou_drop, missed_area
from exitlens.types import Tiles
from exitlens.workflow.planning import _tell_apart
from tests.conftest import TinyNet, make_pixel_set, make_unet

IMAGES = torch.randn(2, 3, 128, 96, generator=torch.Generator().manual_seed(0))
NEVER = (math.inf, math.inf)


def test_tiles_are_cut_row_by_row():
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    tiles = split_tiles(x, (2, 3))
    assert tiles.shape == (12, 3, 2, 2)
    assert torch.equal(tiles[1], x[0, :, :2, 2:4])
    assert torch.equal(tiles[9], x[1, :, 2:, :2])
    assert torch.equal(split_tiles(x[:, 0], (4, 2))[2], x[0, 0, 1:2, :3])


@pytest.mark.parametrize("thresholds", [NEVER, (0.0, 0.0), (2.0, 2.0), None, (math.inf, 0.4)])
@pytest.mark.slow
def test_with_a_halo_as_large_as_what_is_seen_tiles_answer_as_the_whole(thresholds):
    net, tiles = make_unet(), Tiles(32, 32)
    medians = xl.collect(net, IMAGES, tiles=tiles).logits.scores[:, :-1, 0].quantile(0.5, 0).tolist()
    pred = xl.predict(net, IMAGES, xl.Policy(thresholds or medians, score="mean_probability"), tiles=tiles)
    with torch.no_grad():
        outs = net(IMAGES)
    assert pred.tile_exits.shape == (2, 4, 3)
    wholes = torch.stack([split_tiles(out.logits.softmax(1), (4, 3)) for out in outs])
    chosen = wholes[pred.tile_exits.flatten(), torch.arange(24)]
    torch.testing.assert_close(split_tiles(pred.probabilities, (4, 3)), chosen, atol=1e-5, rtol=1e-5)
    assert torch.equal(pred.labels, pred.probabilities.argmax(1))
    assert torch.equal(pred.exits, pred.tile_exits.flatten(1).amax(1))
    if thresholds is None:
        assert len(pred.tile_exits.unique()) == 3


def test_a_halo_that_is_too_small_changes_something():
    net = make_unet()
    pred = xl.predict(net, IMAGES, xl.Policy(NEVER, score="mean_probability"), tiles=Tiles(32, 0))
    assert (pred.probabilities - net(IMAGES)[-1].logits.softmax(1)).abs().max() > 1e-3


@pytest.mark.parametrize("halo", [0, 8])  # even where it is too small for the whole image's answer
def test_a_trace_of_tiles_says_what_tiles_do(halo):
    net, tiles = make_unet(), Tiles(8, halo)
    data = make_pixel_set(20)
    trace = xl.collect(net, data, tiles=tiles)
    assert (len(trace), trace.num_groups) == (80, 20)
    assert trace.groups.tolist() == torch.arange(20).repeat_interleave(4).tolist()
    overhead = (8 + halo) ** 2 / 64  # windows end at the image's edges
    torch.testing.assert_close(trace.cost, net.cost[0] + (net.cost - net.cost[0]) * overhead)
    scores = trace.logits.scores[:, :-1, 0].sort(0).values
    policy = xl.Policy(((scores[40] + scores[41]) / 2).tolist(), score="mean_probability")
    pred = xl.predict(net, data.inputs, policy, tiles=tiles)
    assert torch.equal(pred.tile_exits.flatten(), xl.route(trace, policy))
    told, labels = split_tiles(pred.labels, (2, 2)), split_tiles(data.labels, (2, 2))
    counts = trace.logits.confusion[torch.arange(80), pred.tile_exits.flatten()]
    assert torch.equal(counts, count_confusion(told, labels, 4))
    right = (split_tiles(pred.labels, (2, 2)) == split_tiles(data.labels, (2, 2))).flatten(1)
    known = (split_tiles(data.labels, (2, 2)) != 255).flatten(1)
    share = (right & known).sum(1) / known.sum(1)
    torch.testing.assert_close(trace.accuracy.gather(1, pred.tile_exits.flatten()[:, None])[:, 0], share)
    promised = xl.calibrate(trace, max_pixel_error_drop=0.9, delta=0.2)
    assert promised.calibration.groups == 20
    assert "more of a tile's pixels wrong" in promised.certificate()


@pytest.mark.parametrize("delta", [None, 0.3])
@pytest.mark.parametrize("limits", [{"max_miou_drop": 0.1}, {"max_missed_area": {1: 0.8}}, {"max_miou_drop": 1.0}])
def test_limits_on_images_count_all_tiles_of_an_image_together(limits, delta):
    net, tiles, data = make_unet(), Tiles(8, 8), make_pixel_set(60)
    data.labels[3] = data.labels[7, :, 8:] = 255  # an image without labels, and one of which half has some
    whole, trace = xl.collect(net, data), xl.collect(net, data, tiles=tiles)
    policy = xl.calibrate(trace, **limits, delta=delta)
    pred = xl.predict(net, data.inputs, policy, tiles=tiles)
    routed, final = count_confusion(pred.labels, data.labels, 4), whole.logits.confusion[:, -1]
    if "max_miou_drop" in limits:
        losses = (measure_mean_iou(final) - measure_mean_iou(routed))[final.flatten(1).any(1)]
        risk = mean_iou_drop(trace, limits["max_miou_drop"])
        assert xl.evaluate(trace, policy).pixels.image_mean_iou_drop == pytest.approx(losses.mean().item(), abs=1e-6)
    else:
        losses = measure_missed(routed, 1)[final[:, 1].any(1)]
        risk = missed_area(trace, "1", limits["max_missed_area"][1])
    torch.testing.assert_close(risk.mean(pred.tile_exits.flatten()), losses.mean().item())
    assert len(risk.units(pred.tile_exits.flatten())) == len(losses)
    assert delta or losses.mean() <= risk.limit + 1e-6
    if delta and limits == {"max_miou_drop": 1.0}:  # which nothing exceeds
        assert policy.calibration.certification.tests[0].p_value <= delta
        assert len(losses) / 2 < policy.calibration.certification.tests[0].groups < len(losses)
        assert "of an image's mean IoU" in policy.certificate()


def test_images_of_one_patient_count_each_by_itself():
    net, tiles, data = make_unet(), Tiles(8, 8), make_pixel_set(60)
    patients = torch.arange(60) // 3
    whole, trace = (xl.collect(net, data, tiles=each).with_groups(patients) for each in (None, tiles))
    exits = torch.zeros(240, dtype=torch.int64)
    for limit, make in ((0.5, mean_iou_drop), (0.5, lambda trace, limit: missed_area(trace, "1", limit))):
        risk, same = make(trace, limit), make(whole, limit)
        numbers = torch.arange(20).flip(0)[patients]
        ours = risk.with_groups(numbers.repeat_interleave(4), torch.arange(120), equal=False)
        theirs = same.with_groups(numbers, torch.arange(30), equal=False)
        torch.testing.assert_close(ours.units(exits), theirs.units(exits[:60]))
        assert ours.mean(exits) == pytest.approx(theirs.mean(exits[:60]))
    assert trace.groups.unique().numel() == 20
    policy = xl.calibrate(trace, max_miou_drop=1.0, delta=0.3)
    assert policy.calibration.groups == 20
    for names in (torch.arange(240), torch.arange(240) // 2):
        with pytest.raises(xl.errors.InputError, match="tiles of one image are in several groups"):
            trace.with_groups(names)
    with pytest.raises(xl.errors.InputError, match="images: expected them with tiles"):
        replace(trace, images=None)


def test_samples_are_planned_by_image():
    trace = xl.collect(make_unet(), make_pixel_set(60), tiles=Tiles(8, 8))
    plan = xl.plan_samples(xl.CalibrationRequest(max_miou_drop=0.9, delta=0.3), trace, draws=2)
    assert (plan.unit, plan.at_hand) == ("groups", 60)
    twice = trace.select(torch.arange(4).repeat(2))  # one image, drawn twice
    apart = _tell_apart(twice, torch.tensor([0, 1]).repeat_interleave(4))
    assert len(apart.images.unique()) == apart.num_groups == 2


def test_the_drift_monitor_sees_images_and_not_tiles():
    net, tiles, data = make_unet(), Tiles(8, 8), make_pixel_set(60)
    trace = xl.collect(net, data, tiles=tiles)
    policy = xl.calibrate(trace, max_miou_drop=0.05)
    pred = xl.predict(net, data.inputs, policy, tiles=tiles)
    counts = [sum(cells) for cells in policy.calibration.reference.counts]
    assert counts == pred.exits.bincount(minlength=3).tolist()
    assert policy.calibration.reference.confidence == pytest.approx(pred.confidence.double().mean().item(), abs=1e-6)


def test_what_a_tile_adds_is_exact_for_areas_and_for_one_tile_alone():
    net, tiles, data = make_unet(), Tiles(8, 8), make_pixel_set(30)
    trace = xl.collect(net, data, tiles=tiles)
    last, exits = (
        torch.full((120,), trace.num_exits - 1),
        torch.randint(3, (120,), generator=torch.Generator().manual_seed(0)),
    )
    missed, drop = missed_area(trace, "1", 0.5), mean_iou_drop(trace, 0.5)
    added = missed.column().gather(1, exits[:, None]).double().mean().item()
    assert added == pytest.approx(missed.mean(exits), abs=1e-6)
    one = last.clone()
    one[17] = 0
    assert drop.column()[17, 0].item() / 120 == pytest.approx(drop.mean(one), abs=1e-7)


def test_a_policy_keeps_to_the_tiles_that_it_was_calibrated_on(tmp_path):
    net, tiles, data = make_unet(), Tiles(8, 8), make_pixel_set(20)
    trace, whole = xl.collect(net, data, tiles=tiles), xl.collect(net, data)
    trace.save(tmp_path / "t")
    assert xl.Trace.load(tmp_path / "t").tiles == trace.select(torch.arange(4)).tiles == tiles
    of_tiles, of_images = (xl.calibrate(each, max_disagreement=0.5) for each in (trace, whole))
    assert xl.Policy.from_dict(json.loads(json.dumps(of_tiles.to_dict()))) == of_tiles
    for run in (
        lambda: xl.predict(net, data.inputs, of_tiles),
        lambda: xl.predict(net, data.inputs, of_tiles, tiles=Tiles(8, 0)),
        lambda: xl.predict(net, data.inputs, of_images, tiles=tiles),
        lambda: next(iter(xl.predict_stream(net, data, of_tiles))),
        lambda: xl.route(whole, of_tiles),
        lambda: xl.evaluate(trace, of_images),
        lambda: xl.explain(net, data.inputs[0], of_tiles),
        lambda: xl.export(net, of_tiles, tmp_path / "edge"),
    ):
        with pytest.raises(xl.errors.PolicyError, match=r"policy: it was calibrated on .*, this is for .*. Fix: collect"):
            run()


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (Tiles(40, 8), r"images whose sides are multiples of 40, got \(128, 96\)"),
        (Tiles(2, 0), "features of 4 pixels a cell do not divide a side of 2"),
        (Tiles(32, 6), "a halo of 6. Fix: choose multiples of 4"),
        ((32, 8), "tiles: expected Tiles, got tuple"),
    ],
)
def test_tiles_that_do_not_fit(tiles, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.predict(make_unet(), IMAGES, xl.Policy((0.5, 0.5), score="mean_probability"), tiles=tiles)


def test_tiles_are_for_pixels(net, images):
    with pytest.raises(xl.errors.InputError, match="tiles: they are for answers to each pixel"):
        xl.predict(net, images, xl.Policy((0.5, 0.5)), tiles=Tiles(8, 0))
    with pytest.raises(xl.errors.InputError, match="tiles: they are for answers to each pixel"):
        xl.collect(net, images, tiles=Tiles(8, 0))


def test_a_classifier_with_decoders_has_tiles_too():
    net = xl.attach(TinyNet(), ["a", "b"], 4, IMAGES[:1, :, :96], task="segmentation").eval()
    pred = xl.predict(net, IMAGES, xl.Policy((2.0, 2.0), score="mean_probability"), tiles=Tiles(32, 32))
    torch.testing.assert_close(pred.probabilities, net(IMAGES)[-1].logits.softmax(1), atol=1e-5, rtol=1e-5)
