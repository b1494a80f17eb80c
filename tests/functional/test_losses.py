import math

import pytest
import torch
import torch.nn.functional as F

import exitlens as xl
from exitlens.functional import losses
from exitlens.functional.losses import classification_loss, distillation_loss
from exitlens.functional.maps import (
    as_distribution,
    divergence,
    energy,
    entropy,
    geometric_mean,
    kl,
    mix_target,
    on_common_grid,
)
from exitlens.types import ExitOutput

MATRIX = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])  # of several labels


def _outputs(requires_grad: bool = True):
    rng = torch.Generator().manual_seed(0)
    outs = []
    for size in (4, 2):
        attention = as_distribution(torch.rand(3, size, size, generator=rng)).requires_grad_(requires_grad)
        evidence = torch.randn(3, 5, size, size, generator=rng).requires_grad_(requires_grad)
        logits = torch.randn(3, 5, generator=rng).requires_grad_(requires_grad)
        outs.append(ExitOutput(logits, attention, evidence))
    return outs, torch.tensor([0, 4, 2])


def test_total_by_hand():
    outs, y = _outputs()
    terms = xl.EGTLoss(weight=0.5, distance="kl", exit_weights=(1.0, 2.0))(outs, y)
    assert xl.EGTLoss(exit_weights=torch.tensor([1.0, 2.0])).exit_weights == (1.0, 2.0)
    ce = (F.cross_entropy(outs[0].logits, y) + 2 * F.cross_entropy(outs[1].logits, y)) / 2
    coarse = as_distribution(F.avg_pool2d(outs[0].attention[:, None], 2)[:, 0])
    distance = kl(outs[1].attention, coarse).mean()
    torch.testing.assert_close(terms.total, ce + 0.5 * distance)
    torch.testing.assert_close(terms.classification, ce.detach())
    torch.testing.assert_close(terms.consistency, distance.detach())
    terms.total.backward()
    assert outs[0].attention.grad is not None
    assert outs[1].attention.grad is None


@pytest.mark.parametrize("distance", ["kl", "js", "cosine", "pearson", "mse"])
@pytest.mark.parametrize("of", ["attention", "activation"])
def test_every_distance_is_zero_for_equal_maps_and_has_a_gradient(of, distance):
    outs, y = _outputs()
    features = [torch.rand(3, 7, 4, 4, requires_grad=True), torch.rand(3, 9, 2, 2)]
    terms = xl.EGTLoss(weight=1.0, of=of, distance=distance)(outs, y, features=features)
    assert terms.consistency > 0
    terms.total.backward()
    source = outs[0].attention if of == "attention" else features[0]
    assert source.grad.abs().sum() > 0
    same = [energy(features[1])]
    assert losses.consistency_loss(same, same, distance).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("distance", ["pearson", "cosine", "mse"])
@pytest.mark.parametrize("several", [False, True])
def test_evidence_of_the_true_labels_pulls_the_early_exit(distance, several):
    outs, y = _outputs()
    y = MATRIX if several else y
    xl.EGTLoss(weight=1.0, of="evidence", distance=distance)(outs, y).total.backward()
    assert outs[0].evidence.grad.abs().sum() > 0
    assert outs[1].evidence.grad is None


def test_consistency_begins_without_weight():
    outs, y = _outputs()
    start = xl.EGTLoss(weight=1.0)(outs, y, progress=0.0)
    torch.testing.assert_close(start.total.detach(), start.classification)


def test_distillation_by_hand():
    outs, y = _outputs()
    terms = xl.EGTLoss(weight=0.0, distill=1.0)(outs, y)
    teacher, student = (outs[1].logits / 2).softmax(1), (outs[0].logits / 2).log_softmax(1)
    expected = 4 * (teacher * (teacher.log() - student)).sum(1).mean()
    torch.testing.assert_close(terms.distillation, expected.detach())


def test_one_exit_has_no_consistency():
    outs, y = _outputs()
    terms = xl.EGTLoss(weight=1.0, distill=1.0)(outs[1:], y)
    torch.testing.assert_close(terms.total.detach(), F.cross_entropy(outs[1].logits, y).detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"of": "gradcam"}, "of: expected"),
        ({"distance": "l1"}, "distance: expected"),
        ({"of": "evidence", "distance": "kl"}, "negative values"),
        ({"target": "saliency"}, "target: expected"),
        ({"target": "relevance", "of": "activation"}, "target: 'relevance' is for attention maps"),
        ({"ramp_share": 2.0}, "ramp_share"),
        ({"reach": "body"}, "reach: expected one of"),
        *(({"exit_weights": w}, "exit_weights") for w in ((0.0, 0.0), (), 5, ("a", 1), (math.nan, 1), (math.inf, 1))),
        ({"weight": "a"}, "weight"),
        *(({"sharpness": value}, "sharpness") for value in ("a", 0, math.inf)),
        ({"sharpness": 2.0, "target": "attention"}, r"sharpness: it is for targets .*, got target='attention'"),
        *(({"spread": value}, "spread: expected a share") for value in (-0.1, 1)),
        ({"spread": 0.2, "target": "attention"}, r"spread: it is for targets .*, got target='attention'"),
        ({"routed": 1.5}, "routed: expected a share"),
        *(({"every": value}, "every") for value in (0, 1.5, "a")),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"class_weights": "even"}, "class_weights"),
        ({"class_weights": (1.0, 0.0)}, "above 0"),
        ({"class_weights": 3}, "number per class"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.EGTLoss(**arguments)


LABELS = torch.tensor([0, 4, 2])


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        (xl.EGTLoss(), LABELS + 3, r"values in \[0, 5\)"),
        (xl.EGTLoss(), LABELS.float(), r"\(3,\) integers"),
        (xl.EGTLoss(), torch.zeros(3, 4).long(), r"labels: .*several labels \(3,5\) integers or bool"),
        (xl.EGTLoss(exit_weights=(1.0,)), LABELS, "exit_weights: expected 2"),
        (xl.EGTLoss(class_weights=(1.0, 2.0)), LABELS, "class_weights: expected 5 numbers"),
        (xl.EGTLoss(class_weights="balanced"), LABELS, "class_weights: expected 5 numbers"),
        (xl.EGTLoss(of="activation"), LABELS, r"net\.observe\(x, features=True\)"),
        (xl.EGTLoss(target="relevance"), LABELS, r"relevance: .*net\.observe\(x, relevance=True\)"),
    ],
)
def test_bad_calls(loss, labels, message):
    with pytest.raises(xl.errors.InputError, match=message):
        loss(_outputs()[0], labels)


@pytest.mark.parametrize("distance", ["kl", "js", "cosine", "pearson", "mse"])
def test_padding_of_texts_leaves_the_gradient_finite(distance):
    scores = torch.randn(3, 8, requires_grad=True)
    masked = scores.masked_fill(torch.arange(8) > 4, -torch.inf)
    target = torch.randn(3, 8).masked_fill(torch.arange(8) > 4, -torch.inf).softmax(1)
    losses.consistency_loss([target], [masked.softmax(1)], distance).backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[:, :5].abs().sum() > 0
    assert (scores.grad[:, 5:] == 0).all()


def test_label_smoothing_and_class_weights_by_hand():
    outs, y = _outputs(False)
    loss = xl.EGTLoss(weight=0.0, exit_weights=(1.0, 1.0), label_smoothing=0.2, class_weights=[1, 2, 3, 4, 5])
    expected = 0.0
    for out in outs:
        target = F.one_hot(y, 5) * 0.8 + 0.2 / 5
        each = -(target * out.logits.log_softmax(1)).sum(1)
        expected += (each * torch.tensor([1.0, 5.0, 3.0])).mean() / 2
    torch.testing.assert_close(loss(outs, y).total, expected)
    torch.testing.assert_close(loss.classify(outs, y), expected)
    plain = xl.EGTLoss(weight=0.0, label_smoothing=0.2)(outs, y).classification
    early, final = (F.cross_entropy(out.logits, y, label_smoothing=0.2) for out in outs)
    torch.testing.assert_close(plain, (0.25 * early + final) / 2)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_labels_are_any_integers(kind):
    outs, y = _outputs()
    for loss in (xl.EGTLoss(class_weights=(1.0, 2.0, 3.0, 4.0, 5.0)), xl.EGTLoss(of="evidence", distance="cosine")):
        assert torch.equal(loss(outs, y.to(kind)).total, loss(outs, y).total)


@pytest.mark.parametrize("target", ["relevance", "product", "mean"])
def test_a_target_pulls_every_map_the_final_one_too(target):
    outputs, labels = _outputs()
    relevance = torch.randn(3, *outputs[0].attention.shape[1:], generator=torch.Generator().manual_seed(0))
    loss = xl.EGTLoss(weight=2.0, target=target)
    assert loss.needs_relevance == (target != "mean")
    terms = loss(outputs, labels, relevance=relevance)
    given = relevance, outputs[0].attention, target == "product", 1.0
    goals = [mix_target(*given, o.attention.shape[1:]) for o in outputs]  # each on its exit's grid
    if target == "mean":
        goals = [geometric_mean([o.attention for o in outputs], 1.03)] * len(outputs)
    pairs = zip(goals, outputs, strict=True)
    by_hand = torch.stack([divergence(*on_common_grid(goal, o.attention)).mean() for goal, o in pairs]).mean()
    assert terms.consistency.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert terms.total.item() == pytest.approx(terms.classification.item() + 2 * by_hand.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(by_hand, outputs[-1].attention, retain_graph=True)
    assert gradient.abs().sum() > 0


def test_the_mean_is_as_sharp_as_asked_for():
    maps = [one.attention for one in _outputs()[0]]
    (target, *_), (flat, *_) = (xl.EGTLoss(target="mean", sharpness=p).make_targets(maps, None) for p in (3.0, 1.0))
    assert torch.allclose(target, as_distribution(flat**3), atol=1e-6)
    with pytest.raises(xl.errors.InputError, match="sharpness: it is for targets"):
        xl.EGTLoss(sharpness=2.0).for_network(attends=False, keeps_final=True)


def test_targets_of_texts_are_softer():
    maps = [one.attention for one in _outputs()[0]]
    relevance = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = xl.EGTLoss().for_network(attends=True, of_images=False)
    sharp = xl.EGTLoss(target="product", sharpness=1.0).make_targets(maps, relevance)
    for soft, one in zip(loss.make_targets(maps, relevance), sharp, strict=True):
        torch.testing.assert_close(soft, as_distribution(one.sqrt()), atol=1e-6, rtol=1e-5)


def test_consistency_of_every_other_step_has_twice_the_weight():
    loss = xl.EGTLoss(weight=1.5, every=2)
    assert [loss.at(step, 4, 1)[0].weight for step in range(4)] == [3.0, 0.0, 3.0, 0.0]
    assert xl.EGTLoss(weight=1.5).at(1, 4, 1)[0].weight == 1.5
    outputs, labels = _outputs()
    found = [loss.at(step, 4, 1)[0](outputs, labels) for step in range(2)]
    each = xl.EGTLoss(weight=1.5)(outputs, labels)
    assert loss.at(0, 4, 1)[0].at(0, 4, 1)[0].weight == 3.0
    assert not xl.EGTLoss(target="product", every=2).at(1, 4, 1)[0].needs_relevance
    assert (found[0].total + found[1].total).item() == pytest.approx(2 * each.total.item(), rel=1e-5)
    assert found[1].total.item() == pytest.approx(each.classification.item(), rel=1e-5)


class Own(xl.EGTLoss):
    """May count on being asked at every step."""


@pytest.mark.parametrize(
    ("loss", "network", "target", "sharpness", "every"),
    [
        (xl.EGTLoss(), {"attends": False}, "mean", 1.03, 1),
        (xl.EGTLoss(), {"attends": True}, "product", None, 2),
        (xl.EGTLoss(), {"attends": True, "of_images": False}, "product", 0.5, 1),
        (xl.EGTLoss(), {"attends": False, "keeps_final": True}, "attention", None, 1),
        (xl.EGTLoss(), {"attends": True, "keeps_final": True}, "product", None, 2),
        (xl.EGTLoss(every=1), {"attends": True}, "product", None, 1),
        (xl.EGTLoss(sharpness=2.0), {"attends": False}, "mean", 2.0, 1),
        (xl.EGTLoss(sharpness=1.0), {"attends": True, "of_images": False}, "product", 1.0, 1),
        (xl.EGTLoss(weight=0.0), {"attends": False}, "mean", None, 1),
        (xl.EGTLoss(weight=0.0), {"attends": True}, "product", None, 1),
        (xl.EGTLoss(of="evidence", distance="pearson"), {"attends": False}, "attention", None, 1),
        (xl.EGTLoss(of="evidence", distance="pearson"), {"attends": True}, "attention", None, 1),
        (Own(), {"attends": True}, "product", None, 1),
    ],
)
def test_target_sharpness_and_steps_suit_the_network_unless_given(loss, network, target, sharpness, every):
    given = xl.EGTLoss(target="attention", reach="network", every=1)
    assert given.for_network(**network) == given
    chosen = loss.for_network(**network)
    assert (chosen.target, chosen.sharpness, chosen.every, chosen.reach) == (target, sharpness, every, "heads")
    assert chosen.needs_relevance == (target == "product" and loss.weight > 0)
    assert chosen.ask()["separate_maps"] == (loss.of == "attention" and loss.weight > 0)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["mean", "product"])
def test_maps_that_follow_their_own_targets_do_not_shrink_to_one_cell(target):
    relevance = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    for spread, least, most in ((0.25, 8.9, 9.1), (0.0, 0.9, 1.1)):
        loss, maps = xl.EGTLoss(target=target, spread=spread), [as_distribution(relevance)] * 2
        for _ in range(1000):
            maps = loss.make_targets(maps, relevance)
        assert least < entropy(maps[0]).exp().min() <= entropy(maps[0]).exp().max() < most


def test_targets_keep_a_floor_from_the_eleventh_epoch_on():
    loss = xl.EGTLoss(target="mean")
    assert [loss.at(epoch, 100, 100)[0].spread for epoch in (0, 10, 11, 15, 20, 99)] == [
        None,
        None,
        *map(pytest.approx, (0.02, 0.1, 0.2, 0.2)),
    ]
    assert xl.EGTLoss(target="mean", spread=0.0).at(99, 100, 100)[0].spread == 0
    assert xl.EGTLoss(target="attention").at(99, 100, 100)[0].spread is None


def test_a_step_has_its_progress_its_weight_and_its_floor():
    loss = xl.EGTLoss(target="product", weight=1.5, every=2)
    found = [loss.at(step, 60, 30) for step in (0, 29, 30, 59)]
    assert [(each.weight, progress) for each, progress in found] == [(3.0, 0.0), (0.0, 29 / 60), (3.0, 0.5), (0.0, 59 / 60)]
    assert [each.spread for each, _ in found] == [None, *map(pytest.approx, (0.08, 0.1, 0.2))]


def test_a_loss_asks_for_what_it_needs():
    heads, whole = ({"target": "product", "reach": reach} for reach in ("heads", "network"))
    everything = {"separate_maps": True, "features": False, "relevance": True}
    assert xl.EGTLoss(**heads).ask() == everything
    assert xl.EGTLoss(**heads).ask(frozen=True) == xl.EGTLoss(**whole).ask() == everything | {"separate_maps": False}
    assert not any(xl.EGTLoss(**heads, weight=0.0).ask().values())
    assert xl.EGTLoss(of="activation").ask()["features"]


def test_several_labels_by_hand():
    logits, labels = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[1, 0]])
    assert classification_loss(logits, labels).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    smooth = 0.2  # the targets become 0.9 and 0.1
    second = -(0.1 * math.log(0.75) + 0.9 * math.log(0.25))
    assert classification_loss(logits, labels, smooth).item() == pytest.approx((math.log(2) + second) / 2)
    weighted = classification_loss(logits, labels.bool(), 0.0, (1.0, 3.0)).item()
    assert weighted == pytest.approx((math.log(2) + 3 * math.log(4)) / 2)


def test_distillation_of_labels_is_the_divergence_of_yes_and_no():
    outs = [ExitOutput(torch.randn(5, 3, requires_grad=True), torch.empty(0), torch.empty(0)) for _ in range(2)]
    found = distillation_loss(outs, 2.0, several=True)
    p, q = ((out.logits / 2).sigmoid() for out in reversed(outs))
    by_hand = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(found, by_hand)
    found.backward()
    assert outs[1].logits.grad is None
    assert distillation_loss([outs[1], outs[1]], several=True).item() == pytest.approx(0, abs=1e-6)


def test_generalised_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # probabilities 3/4 and 1/4; 1/2 and 1/2
    labels = torch.tensor([0, 1])
    expected = ((1 - 0.75**0.7) / 0.7 + (1 - 0.5**0.7) / 0.7) / 2
    assert losses.generalised_cross_entropy(logits, labels).item() == pytest.approx(expected)
    assert losses.generalised_cross_entropy(logits, labels, 1.0).item() == pytest.approx(1 - 0.625)
    small = losses.generalised_cross_entropy(logits, labels, 1e-3).item()
    assert small == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-3)
    several = losses.generalised_cross_entropy(torch.tensor([[math.log(3.0), -math.log(3.0)]]), torch.tensor([[1, 0]]))
    assert several.item() == pytest.approx((1 - 0.75**0.7) / 0.7)


def test_samples_that_the_expert_gets_wrong_count_more():
    easy, exits = torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    # exit 0: 1/2 and 3/4, of mean 5/8; exit 1: 1/4 and 3/4, of mean 1/2
    torch.testing.assert_close(losses.weigh_difficulty(exits, easy), torch.tensor([[0.8, 1.2], [0.5, 1.5]]))
    torch.testing.assert_close(losses.weigh_difficulty(exits, easy, 0.5), torch.tensor([[0.9, 1.1], [0.75, 1.25]]))
    assert (losses.weigh_difficulty(exits, easy, 0.0) == 1).all()
    sure = losses.weigh_difficulty(torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.zeros(2))  # of an expert
    torch.testing.assert_close(sure, torch.tensor([[1.0, 1.0], [1.5, 0.5]]))


def test_exits_weigh_what_earlier_ones_leave_to_them():
    # exit 0 is sure of the first sample alone; exit 1 of the second, and unsure of the first, which has left
    logits = [torch.tensor([[9.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 2.0]])]
    logits.append(torch.zeros(3, 2))
    whole = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.5, 1.5], [0.0, 0.0, 3.0]])
    torch.testing.assert_close(losses.weigh_by_routing(logits), whole)
    torch.testing.assert_close(losses.weigh_by_routing(logits, 0.5), 1 + (whole - 1) / 2)
    # of several labels the least decided one counts: the second sample's is, although its other label is sure
    several = [torch.tensor([[2.0, -2.0], [9.0, 0.1]]), torch.zeros(2, 2)]
    torch.testing.assert_close(losses.weigh_by_routing(several, several=True)[1], torch.tensor([0.0, 2.0]))
    assert losses.weigh_by_routing([torch.full((2, 2), 5.0)] * 3).sum(1).tolist() == [2.0, 2.0, 2.0]  # equally sure


@pytest.mark.parametrize("y", [torch.tensor([0, 4, 2]), MATRIX])
def test_routed_training_takes_these_weights_and_those_given(y):
    outs, _ = _outputs()
    weights = losses.weigh_by_routing([out.logits for out in outs], 0.7, y.ndim == 2)
    given = torch.tensor([[1.0, 2.0, 0.0]] * 2)
    for more, expected in (({}, weights), ({"sample_weights": given}, weights * given)):
        terms = xl.EGTLoss(weight=0.0, routed=0.7)(outs, y, **more)
        torch.testing.assert_close(terms.total, xl.EGTLoss(weight=0.0)(outs, y, sample_weights=expected).total)
    assert not weights.requires_grad


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("class_weights", [None, (1.0, 2.0, 3.0, 4.0, 5.0)])
def test_samples_have_a_weight_at_every_exit(several, class_weights):
    outs, y = _outputs()
    y, loss = MATRIX if several else y, xl.EGTLoss(weight=0.0, class_weights=class_weights, label_smoothing=0.1)
    torch.testing.assert_close(loss(outs, y, sample_weights=torch.ones(2, 3)), loss(outs, y))
    only = loss(outs, y, sample_weights=torch.tensor([[0.0, 3.0, 0.0]] * 2))
    second = [ExitOutput(*(part[1:2] for part in out)) for out in outs]
    torch.testing.assert_close(only.total, loss(second, y[1:2]).total)


@pytest.mark.parametrize("y", [torch.tensor([0, 4, 2]), MATRIX])
def test_losses_of_samples_have_the_classification_loss_as_their_mean(y):
    logits = _outputs()[0][0].logits.detach()
    torch.testing.assert_close(losses.sample_losses(logits, y).mean(), classification_loss(logits, y))


def _pixel_outputs():
    rng = torch.Generator().manual_seed(0)
    outs = []
    for size in (2, 4):
        evidence = torch.randn(2, 3, size, size, generator=rng).requires_grad_()
        logits = F.interpolate(evidence, (4, 4), mode="bilinear")
        outs.append(ExitOutput(logits, torch.full((2, size, size), 1 / size**2), evidence))
    labels = torch.randint(0, 2, (2, 4, 4), generator=rng)  # no pixel has class 2
    labels[1] = 255
    labels[1, 0, :2] = 1
    return outs, labels


def test_pixels_by_hand():
    outs, y = _pixel_outputs()
    terms = xl.EGTLoss(weight=0.5, distill=0.3)(outs, y.to(torch.uint8))
    known = y != 255
    each = [F.cross_entropy(out.logits.movedim(1, -1)[known], y[known]) for out in outs]
    torch.testing.assert_close(terms.classification, (0.25 * each[0] + each[1]).detach() / 2)
    pairs = [(0, 0), (0, 1), (1, 1)]  # classes that the labels have
    distances = []
    for i, c in pairs:
        early, final = (out.evidence[i, c].flatten().softmax(0).view(1, *out.evidence.shape[2:]) for out in outs)
        coarse = F.adaptive_avg_pool2d(final.detach()[:, None], 2)[:, 0]
        distances.append(divergence(early, as_distribution(coarse)))
    torch.testing.assert_close(terms.consistency, torch.cat(distances).mean().detach())
    early, final = (out.logits.detach() / 2 for out in outs)
    steps = (final.softmax(1) * (final.log_softmax(1) - early.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(terms.distillation, 4 * steps)
    terms.total.backward()
    assert outs[0].evidence.grad.abs().sum() > 0


def test_the_maps_of_pixels_pull_the_early_exit_only():
    outs, y = _pixel_outputs()
    (xl.EGTLoss()(outs, y).total - xl.EGTLoss(weight=0)(outs, y).total).backward()
    assert outs[0].evidence.grad[1, 0].abs().sum() == 0  # a class that its label does not have
    assert outs[0].evidence.grad[1, 1].abs().sum() > 1e-6
    assert outs[1].evidence.grad.abs().sum() < 1e-6


def test_pixels_without_a_class_count_nowhere():
    outs, y = _pixel_outputs()
    nothing = torch.full_like(y, 255)
    terms = xl.EGTLoss()(outs, nothing)
    assert (terms.total.item(), terms.consistency.item()) == (0.0, 0.0)
    weights = torch.tensor([1.0, 2.0, 4.0])
    known = y != 255
    each = F.cross_entropy(outs[0].logits.movedim(1, -1)[known], y[known], reduction="none") * weights[y[known]]
    torch.testing.assert_close(classification_loss(outs[0].logits, y, class_weights=weights.tolist()), each.mean())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 2, 2).long(), r"labels: expected \(2, 4, 4\), of the size of the images, got \(2, 2, 2\)"),
        (torch.zeros(2).long(), "this network answers one class a pixel"),
        (torch.full((2, 4, 4), 3), "expected classes in"),
    ],
)
def test_labels_that_do_not_fit_pixels(labels, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.EGTLoss()(_pixel_outputs()[0], labels)


def test_labels_of_pixels_for_a_classifier():
    with pytest.raises(xl.errors.InputError, match="this network answers one class a sample"):
        xl.EGTLoss()(_outputs()[0], torch.zeros(3, 4, 4).long())
    with pytest.raises(xl.errors.InputError, match="sample_weights: they are not for one class a pixel"):
        xl.EGTLoss()(*_pixel_outputs(), sample_weights=torch.ones(2, 2))


def test_defaults_for_pixels():
    with pytest.raises(xl.errors.InputError, match=r"routed: 0\.5 is for classes or labels of whole samples"):
        xl.EGTLoss(routed=0.5).for_network(True, task="segmentation")
    chosen = xl.EGTLoss().for_network(True, task="segmentation")
    assert (chosen.target, chosen.reach, chosen.sharpness, chosen.every) == ("attention", "heads", None, 1)


def test_a_teachers_answers_weigh_as_much_as_the_labels(net, images):
    labels, out = torch.tensor([0, 1, 2, 3]), net(images[:4])[-1]
    loss, teacher = xl.EGTLoss(weight=0.0), out.logits.detach()
    usual, same = loss((out,), labels), loss((out,), labels, teacher=teacher)
    assert same.distillation.item() == pytest.approx(0, abs=1e-5)
    assert same.total.item() == pytest.approx(usual.total.item(), abs=1e-5)
    flat = out._replace(logits=torch.zeros(4, 4, requires_grad=True))
    soft = (teacher / 2).softmax(1)
    by_hand = 4 * (soft * (soft * 4).log()).sum(1).mean().item()  # T^2 KL(teacher ‖ uniform)
    alone = loss((flat,), labels, teacher=teacher)
    assert alone.total.requires_grad
    assert (alone.total - alone.classification).item() == pytest.approx(by_hand, rel=1e-4)
    both = loss((flat, out), labels, 0.0, teacher=teacher)  # early exits weigh 0.25, and there is no ramp
    assert both.distillation.item() == pytest.approx(0.25 * by_hand / 2, rel=1e-3)
    for other, wrong in ((loss, teacher[:3]), (xl.EGTLoss(weight=0.0, task="regression"), torch.zeros(4, 4))):
        with pytest.raises(xl.errors.InputError, match="teacher: expected logits of classes"):
            other((out,), torch.zeros(4, 3) if other.task else labels, teacher=wrong)
