import json
from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.functional.maps import top_cells
from exitlens.modalities.image import IMAGE
from exitlens.workflow import faithfulness as module
from exitlens.workflow.faithfulness import FRACTIONS
from tests.conftest import make_net


@pytest.mark.slow
def test_measures_by_exit(net, tiny_set):
    net.train()
    result = xl.measure_faithfulness(net, tiny_set, samples=20, grid=(4, 4), oracle_samples=4)
    assert net.training
    kinds = [f"{measure}{kind}" for measure in ("deletion", "insertion") for kind in ("", "_random", "_oracle")]
    for name in (*kinds, "energy_in_mask", "pointing_game"):
        assert len(getattr(result, name)) == 3, name
    assert result.samples == 20
    assert (result.binding.samples, result.binding.oracle_samples) == (4, 1)
    assert len(result.cue_swap.change) == 3
    assert len(result.dependence) == 2
    assert all(-1 <= cc <= 1 for cc in result.randomised_cc)
    json.dumps(result.to_dict())


def make_bright_cell(attends: float, bias: float = -3.0) -> tuple[xl.ExitNet, xl.data.ImageSet]:
    """One bright cell of 4x4 decides; the map is on it (``attends`` above 0), or off it."""
    torch.manual_seed(0)
    reads = {"a": torch.nn.AvgPool2d(2), "b": torch.nn.Conv2d(1, 2, 1), "pool": torch.nn.AdaptiveAvgPool2d(1)}
    backbone = torch.nn.Sequential(OrderedDict(reads, flat=torch.nn.Flatten(), fc=torch.nn.Linear(2, 2)))
    net = xl.attach(backbone, [], 2, torch.zeros(1, 1, 8, 8))
    with torch.no_grad():
        backbone.b.weight.copy_(torch.tensor([[[[1.0]]], [[[0.0]]]]))
        backbone.b.bias.zero_()
        net.head(0).attend.weight.copy_(torch.tensor([[attends, 0.0]]))
        net.head(0).classifier.weight.copy_(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
        net.head(0).classifier.bias.copy_(torch.tensor([bias, -bias]))
    pixels = torch.zeros(30, 1, 8, 8, dtype=torch.uint8)
    masks = torch.zeros(30, 8, 8, dtype=torch.bool)
    for i in range(30):
        y, x = 2 * (i % 4), 2 * (i // 4 % 4)
        pixels[i, 0, y : y + 2, x : x + 2] = 255
        masks[i, y : y + 2, x : x + 2] = True
    return net, xl.data.ImageSet(pixels, torch.zeros(30).long(), ("bright", "dark"), masks)


@pytest.fixture
def one_cell(monkeypatch):
    """One cell of a grid of 4 x 4 is deleted."""
    monkeypatch.setattr(module, "FRACTION", 1 / 16)


def test_deleting_what_the_answer_depends_on_hurts_more_than_deleting_at_random(one_cell):
    net, data = make_bright_cell(4.0)
    result = xl.measure_faithfulness(net, data, grid=(4, 4))
    assert result.deletion[0] > 0.5
    assert result.deletion_random[0] < 0.2
    assert result.pointing_game == (1.0,)
    assert result.energy_in_mask[0] > 0.9
    assert result.deletion_share == result.insertion_share == (1.0,)  # the oracle finds the same cell
    assert result.deletion_share_error == (0.0,)
    assert result.oracle_samples == 30


def test_maps_are_placed_before_cells_are_judged(one_cell):
    """The network reads everything one cell further down than it is, as a padded kernel of one does."""
    net, data = make_bright_cell(4.0)
    moved = data.images.roll(2, 2)
    shifted = xl.data.ImageSet(moved, data.labels, data.classes, data.masks)  # what it sees; the masks are where it is
    options = {"grid": (4, 4), "oracle_samples": 0}
    off = xl.measure_faithfulness(net, shifted, **options)
    net.describe(map_offsets=((-1.0, 0.0),))
    placed = xl.measure_faithfulness(net, shifted, **options)
    assert placed.energy_in_mask[0] > 0.6 > 0.3 > off.energy_in_mask[0]
    assert placed.pointing_game[0] > 0.6 > 0.3 > off.pointing_game[0]
    assert placed.deletion[0] < 0.4 < off.deletion[0]  # here the cells of the image itself are the right ones
    assert placed.randomised_cc == off.randomised_cc


def test_without_an_oracle_and_without_a_head_to_randomise(kept, tiny_set):
    result = xl.measure_faithfulness(kept, tiny_set, samples=8, oracle_samples=0)
    assert result.oracle_samples == 0
    assert result.binding is result.dependence is None
    assert result.deletion_oracle is result.deletion_share is result.insertion_share_error is None
    assert result.randomised_cc[-1] is None  # the classifier is the backbone's


def test_fewer_samples_are_drawn_from_all(net, tiny_set, monkeypatch):
    """Folders are sorted by class: the first samples would be of the first classes."""
    seen, subset = [], type(tiny_set).subset
    monkeypatch.setattr(type(tiny_set), "subset", lambda self, rows: seen.append(rows) or subset(self, rows))
    xl.measure_faithfulness(net, tiny_set, samples=8, oracle_samples=0)
    assert len(seen[0]) == 8
    assert seen[0].max() > 16
    assert seen[0].tolist() == sorted(set(seen[0].tolist()))


def test_randomised_heads_are_judged_on_every_sample(net, tiny_set):
    whole, *halves = (
        xl.measure_faithfulness(net, tiny_set.subset(torch.arange(*rows)), oracle_samples=0).randomised_cc
        for rows in ((0, 32), (0, 16), (16, 32))
    )
    assert whole == pytest.approx([(a + b) / 2 for a, b in zip(*halves, strict=True)], abs=1e-5)


@pytest.mark.parametrize("final", ["head", "keep"])
def test_the_tuned_network_is_measured(final, tiny_set):
    net = make_net(final)
    plain = xl.measure_faithfulness(net, tiny_set, grid=(4, 4), oracle_samples=0)
    net.tuning = xl.Tuning(folded=True, channels_last=True)
    tuned = xl.measure_faithfulness(net, tiny_set, grid=(4, 4), oracle_samples=0)
    for name in ("deletion", "insertion", "energy_in_mask"):
        assert getattr(tuned, name) == pytest.approx(getattr(plain, name), abs=1e-4)
    net.tuning = xl.Tuning(precision="bfloat16")
    rough = xl.measure_faithfulness(net, tiny_set, grid=(4, 4), oracle_samples=0)
    assert rough.deletion != plain.deletion
    assert rough.deletion == pytest.approx(plain.deletion, abs=0.1)
    assert not any(p.dtype == torch.bfloat16 for p in net.parameters())


@pytest.mark.parametrize("baseline", ["mean", "road"])
def test_deletion_and_insertion_by_hand(net, tiny_set, baseline):
    """On the plain network: an untuned engine changes no digit."""
    net.tuning = xl.Tuning()
    result = xl.measure_faithfulness(net, tiny_set, grid=(4, 4), oracle_samples=0, baseline=baseline)
    assert result.baseline == baseline
    modality = net.input_spec.modality
    with torch.inference_mode():
        for k, out in enumerate(net(tiny_set.inputs)):
            cells = top_cells(modality.coarsen(net.info.place(k, out.attention), (4, 4)), 0.2)
            answer, changes = out.logits.argmax(1, keepdim=True), (modality.insert, modality.delete)
            changed = [net(change(tiny_set.inputs, cells, baseline))[k] for change in changes]
            before, kept, left = (item.logits.softmax(1).gather(1, answer) for item in (out, *changed))
            assert result.insertion[k] == kept.mean().item()
            assert result.deletion[k] == pytest.approx((before - left).mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"net": 1}, "net"),
        ({"data": 3}, "data"),
        ({"grid": 4}, "grid"),
        ({"oracle_samples": -1}, "oracle_samples"),
        ({"of": "gradient"}, "of"),
        ({"baseline": "grey"}, "baseline"),
    ],
)
def test_bad_arguments_are_refused(net, tiny_set, values, name):
    given = {"net": net, "data": tiny_set} | values
    with pytest.raises(xl.errors.InputError, match=f"{name}: expected"):
        xl.measure_faithfulness(**given)


@pytest.mark.slow
def test_relevance_and_evidence_are_judged_as_attention_is(one_cell):
    """The bright cell speaks for the answer, the dark ones against it: attention is on those, the others find the cell."""
    net, data = make_bright_cell(-0.1, 6.0)
    options = {"grid": (4, 4), "oracle_samples": 20}
    kinds = "attention", "relevance", "evidence"
    attention, relevance, evidence = (xl.measure_faithfulness(net, data, of=of, **options) for of in kinds)
    assert attention.oracle_samples == 20
    assert attention.deletion_oracle[0] > attention.deletion_random[0]
    assert attention.deletion_share[0] < 0 <= attention.deletion_share_error[0]
    assert relevance.deletion_share[0] == pytest.approx(1, abs=1e-6)
    assert relevance.energy_in_mask[0] > 0.9 > attention.energy_in_mask[0]
    assert relevance.randomised_cc == (None,)
    assert relevance.cascade_cc is None
    assert relevance.deletion_random == attention.deletion_random
    assert evidence.deletion_share == relevance.deletion_share
    assert evidence.energy_in_mask[0] > 0.9
    assert len(evidence.cascade_cc[0]) == 2


@pytest.mark.slow
def test_areas_are_means_of_curves_over_shares_of_cells(monkeypatch):
    """Every point by itself, and the trapezoids between them by hand."""
    net, data = make_bright_cell(1.0)
    few = data.subset(torch.arange(4))
    points = []
    for share in FRACTIONS:
        monkeypatch.setattr(module, "FRACTION", share)
        points.append(xl.measure_faithfulness(net, few, grid=(4, 4), oracle_samples=4))
    widths = [b - a for a, b in pairwise(FRACTIONS)]
    for name in ("deletion", "insertion"):
        area = getattr(points[0], f"{name}_area")
        for kind, of in (("", area.map), ("_random", area.random), ("_oracle", area.oracle)):
            (curve,) = zip(*(getattr(point, name + kind) for point in points), strict=True)
            by_hand = sum(w * (a + b) / 2 for w, (a, b) in zip(widths, pairwise(curve), strict=True)) / 0.75
            assert of[0] == pytest.approx(by_hand, abs=1e-5)
        assert area.share[0] == pytest.approx((area.map[0] - area.random[0]) / (area.oracle[0] - area.random[0]), abs=1e-4)
        assert area.share_error[0] >= 0


def test_maps_are_compared_with_themselves_as_weights_are_randomised_from_the_head_on(kept, tiny_set):
    cascade = xl.measure_faithfulness(kept, tiny_set, oracle_samples=0).cascade_cc
    assert [len(curve) for curve in cascade] == [2, 3, 4]
    assert cascade[2][0] is None  # the backbone's own classifier has no weights of its map
    assert all(-1 <= value <= 1 for curve in cascade for value in curve if value is not None)
    with torch.no_grad():  # an early stage that maps do not depend on: everything after it is constant
        for weight in kept.stage(1).parameters():
            weight.zero_()
    constant = xl.measure_faithfulness(kept, tiny_set, oracle_samples=0).cascade_cc
    assert constant[1] == (0.0, 0.0, 0.0)


def test_what_cancels_within_a_cell_is_no_mass():
    """Noise of one location against its neighbour; 0.5 of the next cell is all that speaks for the answer."""
    signed = torch.tensor([[[8.0, -9.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    assert IMAGE.coarsen(signed, (1, 2)).tolist() == [[[0.0, 1.0]]]


def test_relevance_of_vectors_is_on_no_group():
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    net = xl.attach(body, ["1"], 3, torch.zeros(2, 4), groups={"a": [0, 1], "b": [2, 3]}).eval()
    with pytest.raises(xl.errors.InputError, match=r"of: relevance .* Fix: pass 'attention' or"):
        xl.measure_faithfulness(net, torch.randn(8, 4), of="relevance")
