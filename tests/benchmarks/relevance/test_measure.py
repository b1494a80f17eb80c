"""The comparison of maps on a tiny network, with makers of the tests' own instead of other libraries."""

import pytest
import torch

import exitlens as xl
from benchmarks.relevance.makers import WithLayer, list_makers
from benchmarks.relevance.measure import judge, spread, time_explanations, time_in_turns
from exitlens.workflow.faithfulness import faithfulness


def test_the_layer_changes_nothing_and_is_what_exit_0_reads(net, images):
    module, seen = WithLayer(net.eval()), []
    module.features.register_forward_hook(lambda *_: seen.append(_[2]))
    with torch.no_grad():
        assert torch.equal(module(images), net(images)[-1].logits)
        assert torch.equal(seen[0], net.stage(0)(images)[0])


def test_maps_of_others_are_judged_as_faithfulness_judges_ours(net):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 16, 16), generator=rng, dtype=torch.uint8)
    data = xl.ImageSet(pixels, torch.zeros(12, dtype=torch.long), ("a", "b", "c", "d"))
    makers = {
        "relevance": lambda x, _: xl.compute_relevance(net, x).clamp_min(0),
        "nothing": lambda x, _: torch.zeros(len(x), 8, 8),
    }
    found = judge(net.eval(), data.inputs, data.labels, makers)
    assert [row["judged_at"] for row in found.values()] == [0, 1, 2, 2, 2]
    assert {row["grid"] for row in found.values()} == {"4 x 4"}  # that of the deep exits
    last = faithfulness(net, data, grid=(4, 4), of="relevance", oracle_samples=12)
    for name in ("deletion", "insertion", "deletion_oracle", "deletion_random", "insertion_oracle"):
        assert found["relevance"][name] == pytest.approx(getattr(last, name)[-1], abs=1e-6)
    assert found["relevance"]["deletion_share"][0] == pytest.approx(last.deletion_share[-1], rel=1e-4)
    attention = faithfulness(net, data, grid=(4, 4), oracle_samples=12)
    for k, name in enumerate(("attention, exit 0", "attention, exit 1", "attention, final")):
        assert found[name]["insertion_share"][0] == pytest.approx(attention.insertion_share[k], rel=1e-4)


def test_makers_agree_where_libraries_compute_the_same(net, images):
    pytest.importorskip("torchcam")  # of the extra benchmark
    x = images[:4]
    labels = net.eval()(x)[-1].logits.argmax(1)
    maps = {name: make(x, labels) for name, make in list_makers(net).items()}
    assert all(len(one) == 4 and one.min() >= 0 and one.isfinite().all() and not one.requires_grad for one in maps.values())
    theirs, other = maps["captum, LayerGradCam"], maps["torchcam, GradCAM"]
    scaled = theirs - theirs.amin((1, 2), keepdim=True)
    scaled = scaled / scaled.amax((1, 2), keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(scaled, other, atol=1e-4, rtol=1e-3)


def test_all_works_take_turns_and_the_first_rounds_do_not_count(images):
    calls = []
    works = {name: lambda image, label, name=name: calls.append((name, len(image), int(label))) for name in "ab"}
    times = time_in_turns(works, images[:3], torch.arange(3), rounds=2)
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}
    assert calls[:4] == [("b", 1, 0), ("a", 1, 0), ("a", 1, 1), ("b", 1, 1)]
    assert [label for name, _, label in calls if name == "a"] == [0, 1, 2, 0]
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == [3.0, 2.0, 4.0]


def test_every_exit_answers_in_turn(net, images):
    found = time_explanations(net.eval(), images[:2], rounds=1)
    assert list(found) == ["0", "1", "2"]
    assert all(len(one["ratio"]) == 3 and one["forward_ms"][0] > 0 for one in found.values())
