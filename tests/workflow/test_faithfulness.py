import json
from collections import OrderedDict

import pytest
import torch

import exitlens as xl
from exitlens.functional.maps import top_cells
from tests.conftest import make_net


def test_measures_by_exit(net, tiny_set):
    net.train()
    result = xl.measure_faithfulness(net, tiny_set, samples=20, grid=(4, 4), oracle_samples=4, binding_samples=4)
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


def test_deleting_what_the_answer_depends_on_hurts_more_than_deleting_at_random():
    net, data = make_bright_cell(4.0)
    result = xl.measure_faithfulness(net, data, grid=(4, 4), fraction=1 / 16, binding_samples=0)
    assert result.deletion[0] > 0.5
    assert result.deletion_random[0] < 0.2
    assert result.pointing_game == (1.0,)
    assert result.energy_in_mask[0] > 0.9
    assert result.deletion_share == result.insertion_share == (1.0,)  # the oracle finds the same cell
    assert result.deletion_share_error == (0.0,)
    assert result.oracle_samples == 30


def test_maps_are_placed_before_cells_are_judged():
    """The network reads everything one cell further down than it is, as a padded kernel of one does."""
    net, data = make_bright_cell(4.0)
    moved = data.images.roll(2, 2)
    shifted = xl.data.ImageSet(moved, data.labels, data.classes, data.masks)  # what it sees; the masks are where it is
    off = xl.measure_faithfulness(net, shifted, grid=(4, 4), fraction=1 / 16, binding_samples=0)
    net.describe(map_offsets=((-1.0, 0.0),))
    placed = xl.measure_faithfulness(net, shifted, grid=(4, 4), fraction=1 / 16, binding_samples=0)
    assert placed.energy_in_mask[0] > 0.6 > 0.3 > off.energy_in_mask[0]
    assert placed.pointing_game[0] > 0.6 > 0.3 > off.pointing_game[0]
    assert placed.deletion[0] < 0.4 < off.deletion[0]  # here the cells of the image itself are the right ones
    assert placed.randomised_cc == off.randomised_cc


def test_without_an_oracle_and_without_a_head_to_randomise(kept, tiny_set):
    result = xl.measure_faithfulness(kept, tiny_set, samples=8, oracle_samples=0, binding_samples=2)
    assert result.oracle_samples == result.binding.oracle_samples == 0
    assert result.binding.oracle is result.dependence is None
    assert result.deletion_oracle is result.deletion_share is result.insertion_share_error is None
    assert result.randomised_cc[-1] is None  # the classifier is the backbone's


def test_fewer_samples_are_drawn_from_all(net, tiny_set, monkeypatch):
    """Folders are sorted by class: the first samples would be of the first classes."""
    seen, subset = [], type(tiny_set).subset
    monkeypatch.setattr(type(tiny_set), "subset", lambda self, rows: seen.append(rows) or subset(self, rows))
    xl.measure_faithfulness(net, tiny_set, samples=8, oracle_samples=0, binding_samples=0)
    assert len(seen[0]) == 8
    assert seen[0].max() > 16
    assert seen[0].tolist() == sorted(set(seen[0].tolist()))


def test_randomised_heads_are_judged_on_every_sample(net, tiny_set):
    options = {"oracle_samples": 0, "binding_samples": 0}
    whole = xl.measure_faithfulness(net, tiny_set, **options).randomised_cc
    parts = [tiny_set.subset(torch.arange(i, i + 16)) for i in (0, 16)]
    halves = [xl.measure_faithfulness(net, part, **options).randomised_cc for part in parts]
    assert whole == pytest.approx([(a + b) / 2 for a, b in zip(*halves, strict=True)], abs=1e-5)


@pytest.mark.parametrize("final", ["head", "keep"])
def test_the_tuned_network_is_measured(final, tiny_set):
    net = make_net(final)
    plain = xl.measure_faithfulness(net, tiny_set, grid=(4, 4), oracle_samples=0, binding_samples=0)
    net.tuning = xl.Tuning(folded=True, channels_last=True)
    tuned = xl.measure_faithfulness(net, tiny_set, grid=(4, 4), oracle_samples=0, binding_samples=0)
    for name in ("deletion", "insertion", "energy_in_mask"):
        assert getattr(tuned, name) == pytest.approx(getattr(plain, name), abs=1e-4)
    net.tuning = xl.Tuning(precision="bfloat16")
    rough = xl.measure_faithfulness(net, tiny_set, grid=(4, 4), oracle_samples=0, binding_samples=0)
    assert rough.deletion != plain.deletion
    assert rough.deletion == pytest.approx(plain.deletion, abs=0.1)
    assert not any(p.dtype == torch.bfloat16 for p in net.parameters())


def test_an_untuned_engine_equals_the_plain_network(net, tiny_set):
    """Insertion by hand, on the network itself: an engine with everything off changes no digit."""
    net.tuning = xl.Tuning()
    result, modality = (
        xl.measure_faithfulness(net, tiny_set, grid=(4, 4), oracle_samples=0, binding_samples=0),
        net.input_spec.modality,
    )
    with torch.inference_mode():
        for k, out in enumerate(net(tiny_set.inputs)):
            cells = top_cells(modality.coarsen(net.info.place(k, out.attention), (4, 4)), 0.2)
            answer = out.logits.argmax(1, keepdim=True)
            after = net(modality.insert(tiny_set.inputs, cells))[k].logits.softmax(1).gather(1, answer)
            assert result.insertion[k] == after.mean().item()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"net": 1}, "net"),
        ({"data": 3}, "data"),
        ({"grid": 4}, "grid"),
        ({"fraction": 1.0}, "fraction"),
        ({"oracle_samples": -1}, "oracle_samples"),
        ({"binding_samples": 0.5}, "binding_samples"),
        ({"of": "evidence"}, "of"),
    ],
)
def test_bad_arguments_are_refused(net, tiny_set, values, name):
    given = {"net": net, "data": tiny_set} | values
    with pytest.raises(xl.errors.InputError, match=f"{name}: expected"):
        xl.measure_faithfulness(**given)


def test_relevance_is_judged_as_attention_is():
    """The bright cell speaks for the answer, the dark ones against it: attention is on those, relevance finds the cell."""
    net, data = make_bright_cell(-0.1, 6.0)
    options = {"grid": (4, 4), "fraction": 1 / 16, "oracle_samples": 20, "binding_samples": 0}
    attention, relevance = (xl.measure_faithfulness(net, data, of=of, **options) for of in ("attention", "relevance"))
    assert attention.oracle_samples == 20
    assert attention.deletion_oracle[0] > attention.deletion_random[0]
    assert attention.deletion_share[0] < 0 <= attention.deletion_share_error[0]
    assert relevance.deletion_share[0] == pytest.approx(1, abs=1e-6)
    assert relevance.energy_in_mask[0] > 0.9 > attention.energy_in_mask[0]
    assert relevance.randomised_cc == (None,)
    assert relevance.deletion_random == attention.deletion_random
