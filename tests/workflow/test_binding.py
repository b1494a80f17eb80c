"""Swaps of what maps leave out, in traces and in certificates, against the definition and by hand."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset

import exitlens as xl
from exitlens.data.readers import ImageFiles
from exitlens.functional.groups import pair_groups
from exitlens.functional.maps import geometric_mean
from exitlens.types.policies import BindingCertificate, read_binding
from exitlens.workflow import binding as certifying
from tests.conftest import make_net, make_tiny_set, random_trace


def replaced(net, inputs, donors, kept, hidden):
    """Return every exit's answers when all but what is kept comes from the donors."""
    modality = net.input_spec.modality
    with torch.inference_mode():
        outputs = net(modality.exchange(inputs, modality.paint_over(donors, hidden), ~kept))
    return torch.stack([out.logits.argmax(1) for out in outputs], 1)


def partners(unit):
    """Return the other sample of each pair."""
    return torch.stack(
        [((unit == number) & (torch.arange(len(unit)) != i)).nonzero()[0, 0] for i, number in enumerate(unit)]
    )


@pytest.mark.parametrize("has_masks", [True, False])
def test_a_trace_records_what_changes_without_the_own_background(has_masks):
    net, data = make_net(), make_tiny_set()
    if not has_masks:
        data = xl.data.ImageSet(data.images, data.labels, data.classes)
    plain, trace = xl.collect(net, data), xl.collect(net, data, swapped=32)
    assert torch.equal(plain.logits, trace.logits)
    assert not plain.swaps
    unit, changed = trace.swaps["unit"], trace.swaps["changed"]
    assert unit.bincount().tolist() == [2] * 16
    kept = data.masks
    if not has_masks:
        with torch.inference_mode():
            final = net.info.place(2, net(data.inputs)[-1].attention)
        kept = net.input_spec.modality.choose_region(final, data.inputs, 0.4)
    other = partners(unit)
    after = replaced(net, data.inputs, data.inputs[other], kept, kept[other])
    assert torch.equal(changed, after != trace.answers)
    assert 0 < changed.float().mean() < 1


def test_some_of_the_samples_are_swapped(tmp_path):
    data = make_tiny_set()
    trace = xl.collect(make_net(), data, swapped=9, trace_dir=tmp_path / "trace")
    unit = trace.swaps["unit"]
    assert (unit >= 0).sum() == 9
    assert unit[unit >= 0].bincount().tolist() == [2, 2, 2, 3]  # the last three in a circle
    assert not trace.swaps["changed"][unit < 0].any()
    again = xl.Trace.load(tmp_path / "trace" / "trace.safetensors")
    assert all(torch.equal(again.swaps[name], value) for name, value in trace.swaps.items())
    part = trace.select(unit >= 0)
    assert torch.equal(part.swaps["changed"], trace.swaps["changed"][unit >= 0])


def test_groups_take_from_other_groups():
    data = make_tiny_set()
    groups = torch.arange(32) // 4
    named = xl.data.ImageSet(data.images, data.labels, data.classes, data.masks, groups=groups)
    unit = xl.collect(make_net(), named, swapped=32).swaps["unit"]
    assert unit.bincount().tolist() == [8] * 4
    assert all(len(unit[groups == number].unique()) == 1 for number in range(8))


def test_samples_without_a_background_are_left_out():
    data = make_tiny_set()
    data.masks[:3] = True
    data.masks[3] = False
    unit = xl.collect(make_net(), data, swapped=32).swaps["unit"]
    assert (unit[:4] == -1).all()
    assert (unit[4:] >= 0).all()


def test_what_cannot_be_swapped():
    net, data = make_net(), make_tiny_set()
    with pytest.raises(xl.errors.InputError, match="swapped: the data are read twice"):
        xl.collect(net, iter([data.inputs]), swapped=4)
    shuffled = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(xl.errors.InputError, match="swapped: the data came in another order"):
        xl.collect(net, shuffled, swapped=32)
    in_order = xl.collect(net, DataLoader(data, 8), swapped=32)
    assert in_order.swaps["unit"].bincount().tolist() == [2] * 16
    with pytest.raises(xl.errors.InputError, match="swapped: expected two samples or more"):
        xl.collect(net, data.first(1), swapped=2)
    with pytest.raises(xl.errors.InputError, match="swapped: expected a whole number"):
        xl.collect(net, data, swapped=-1)
    trace = random_trace()
    for swaps, message in (
        ({"changed": torch.zeros(300, 3).bool()}, "swaps: expected"),
        ({"changed": torch.zeros(300, 3), "unit": torch.zeros(300).long()}, "swaps: expected 'changed' as bool"),
    ):
        with pytest.raises(xl.errors.InputError, match=message):
            replace(trace, swaps=swaps)


def test_texts_without_a_mask_cannot_be_swapped():
    texts = torch.randint(0, 9, (40, 8), generator=torch.Generator().manual_seed(0))
    layers = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Flatten(), nn.Linear(32, 2))
    net = xl.attach(layers, ["0"], 2, texts[:2])
    for swap in (lambda: xl.collect(net, texts, swapped=20), lambda: xl.certify_binding(net, texts, xl.Policy((0.6,)))):
        with pytest.raises(xl.errors.InputError, match=r"net: to delete from texts it has to take 'attention_mask'. Fix:"):
            swap()


def add_swaps(trace: xl.Trace, early: float, final: float, seed: int = 0) -> xl.Trace:
    """Of a share of the answers, exit 0's alone change; of another, all exits'."""
    rng, count = torch.Generator().manual_seed(seed), len(trace)
    draw = torch.rand(count, generator=rng)
    changed = (draw < final)[:, None].expand(-1, trace.num_exits).clone()
    changed[:, 0] |= draw > 1 - early
    return replace(trace, swaps={"changed": changed, "unit": torch.arange(count) // 2})


def test_a_limit_on_answers_that_hang_on_the_background():
    trace = add_swaps(random_trace(2000), early=0.3, final=0.2)
    policy = xl.calibrate(trace, max_cue_drop=0.05)
    exits = xl.route(trace, policy)
    drop = (trace.swaps["changed"].float().gather(1, exits[:, None])[:, 0] - trace.swaps["changed"][:, -1].float()).mean()
    assert 0.04 < drop <= 0.05  # as much as is allowed leaves at exit 0; at exit 1 nothing is lost
    assert xl.evaluate(trace, policy).cue_drop == pytest.approx(drop.item())
    assert "answers change 5.0 points more often" in str(xl.evaluate(trace, policy))
    assert xl.evaluate(random_trace(), policy).cue_drop is None
    with pytest.raises(xl.errors.InputError, match=r"max_cue_drop: this trace has no swaps. Fix: collect it with swapped"):
        xl.calibrate(random_trace(), max_cue_drop=0.05)


def test_only_swapped_samples_are_in_the_mean():
    trace = add_swaps(random_trace(2000), early=0.3, final=0.2)
    unit = trace.swaps["unit"].clone()
    unit[500:] = -1
    part = replace(trace, swaps={"changed": trace.swaps["changed"] & (unit >= 0)[:, None], "unit": unit})
    exits = torch.zeros(2000, dtype=torch.int64)
    expected = (trace.swaps["changed"][:500, 0].float() - trace.swaps["changed"][:500, -1].float()).mean()
    assert xl.evaluate(part, xl.Policy((0.0, 0.0))).cue_drop == pytest.approx(expected.item())
    assert xl.route(part, xl.Policy((0.0, 0.0))).equal(exits)


@pytest.mark.slow
def test_the_certificate_counts_pairs():
    trace = add_swaps(random_trace(2000), early=0.1, final=0.2)
    policy = xl.calibrate(trace, max_cue_drop=0.05, max_accuracy_drop=0.05, delta=0.1)
    tested = policy.calibration.certification
    accuracy, cue = tested.tests
    assert (accuracy.groups, accuracy.samples) == (None, 2000 - tested.path_samples)
    assert cue.groups == cue.samples // 2
    assert cue.mean <= 0.05
    assert "at most 5 points more often than the full network" in policy.certificate()
    assert f"{cue.groups} independent units of {cue.samples:,} swapped samples" in policy.certificate()
    assert tested.path_groups is None  # the data have no groups
    assert xl.route(trace, policy).float().mean() < 2
    refused = xl.calibrate(trace, max_cue_drop=1e-4, delta=0.1).calibration.certification
    assert refused.samples_needed is None or refused.samples_needed > 2000
    assert "samples" in refused.reason


def test_groups_count_in_their_own_risks_and_pairs_of_groups_in_that_of_swaps():
    swapped = add_swaps(random_trace(2000), early=0.1, final=0.2)
    unit = torch.arange(2000) // 8
    trace = replace(swapped, groups=torch.arange(2000) // 4, swaps=swapped.swaps | {"unit": unit})
    tested = xl.calibrate(trace, max_cue_drop=0.3, max_accuracy_drop=0.3, delta=0.1).calibration.certification
    accuracy, cue = tested.tests
    assert (tested.path_groups, accuracy.groups, cue.groups) == (200, 300, 150)
    assert tested.largest_group == 4
    with pytest.raises(xl.errors.InputError, match="equal_groups: swaps couple groups"):
        xl.calibrate(trace, max_cue_drop=0.3, delta=0.1, equal_groups=True)


def test_another_draw_of_swaps_is_another_request():
    trace = add_swaps(random_trace(200), early=0.3, final=0.2)
    assert xl.calibrate(trace, max_cue_drop=0.001, delta=0.1).calibration.certification.reason
    again = replace(trace, swaps=trace.swaps | {"unit": torch.arange(200).roll(1) // 2})
    again.certificate_requests[:] = trace.certificate_requests  # as a bundle keeps them, by the samples
    with pytest.raises(xl.errors.CalibrationError, match="these samples refused a certificate before"):
        xl.calibrate(again, max_cue_drop=0.001, delta=0.1)
    assert xl.calibrate(trace, max_cue_drop=0.001, delta=0.1).calibration.certification.request_number == 1


def test_too_few_swaps_are_refused_before_anything_is_spent():
    trace = add_swaps(random_trace(2000), early=0.3, final=0.2)
    few = replace(trace, swaps=trace.swaps | {"unit": torch.where(torch.arange(2000) < 12, trace.swaps["unit"], -1)})
    late = trace.with_groups(torch.randint(40, (2000,)))  # named after the swaps, which couple all of them
    for spoilt, count in ((few, 6), (late, 1)):
        with pytest.raises(xl.errors.CalibrationError, match=f"max_cue_drop: the swapped samples form {count} independent"):
            xl.calibrate(spoilt, max_cue_drop=0.3, delta=0.1)
        assert not spoilt.certificate_requests
    none = few.select(few.swaps["unit"] < 0)
    assert xl.evaluate(none, xl.Policy((0.0, 0.0))).cue_drop is None
    with pytest.raises(xl.errors.InputError, match="max_cue_drop: this trace has no swaps"):
        xl.calibrate(none, max_cue_drop=0.3)


def test_copies_of_pairs_need_twice_as_many_samples_as_pairs():
    """With no loss at all, the test needs so many pairs; the estimate is of samples."""
    trace = replace(random_trace(200), swaps={"changed": torch.zeros(200, 3).bool(), "unit": torch.arange(200) // 2})
    needed = xl.calibrate(trace, max_cue_drop=0.02, delta=0.1).calibration.certification.samples_needed
    assert 2 * 116 / 0.6 - 15 < needed < 2 * 120 / 0.6 + 15


def test_binding_is_what_its_definition_says():
    net, data = make_net(), make_tiny_set(64)
    policy = xl.Policy((0.6, 0.6), network=net.identity())
    certified = xl.certify_binding(net, data, policy, area=0.3)
    binding = certified.binding
    with torch.inference_mode():
        outputs = net(data.inputs)
    exits = xl.route(xl.collect(net, data), policy)
    assert len(exits.unique()) > 1
    maps = [net.info.place(k, out.attention) for k, out in enumerate(outputs)]
    modality = net.input_spec.modality
    other = partners(pair_groups(torch.arange(64), certifying.SEED)[1])
    hidden = modality.choose_region(geometric_mean(maps), data.inputs, 0.4)
    stays = torch.zeros(64)
    for k, out in enumerate(outputs):
        kept = modality.choose_region(maps[k], data.inputs, 0.3)
        after = replaced(net, data.inputs, data.inputs[other], kept, hidden[other])[:, k]
        stays[exits == k] = (after == out.logits.argmax(1)).float()[exits == k]
    assert binding.seen == pytest.approx(stays.mean().item())
    assert [count for count, _ in binding.by_exit] == exits.bincount(minlength=3).tolist()
    shares = [stays[exits == k].mean().item() if (exits == k).any() else None for k in range(3)]
    assert [share for _, share in binding.by_exit] == pytest.approx(shares)
    assert 0 <= binding.share < binding.seen
    assert xl.Policy.from_dict(certified.to_dict()) == certified
    assert certified.rule_hash() == policy.rule_hash()


def test_groups_count_the_same():
    data, net = make_tiny_set(64), make_net()
    groups = torch.cat([torch.zeros(24), torch.arange(1, 41)]).long()
    named = xl.data.ImageSet(data.images, data.labels, data.classes, data.masks, groups=groups)
    binding = xl.certify_binding(net, named, xl.Policy.never(3)).binding
    assert binding.groups == 41
    assert binding.samples == 64
    assert xl.certify_binding(net, named, xl.Policy.never(3), samples=41).binding.samples == 41  # one of each
    assert xl.certify_binding(net, named, xl.Policy.never(3), samples=82).binding.samples == 42
    only = torch.zeros(64)
    only[:24] = 1  # all of one group
    _, seen = certifying.bound_share(only, groups, pair_groups(groups, 0)[1], 0.1)
    assert seen == pytest.approx(40 / 41)


def test_repeats_and_repeated_requests():
    net, data = make_net(), make_tiny_set(64)
    policy = xl.certify_binding(net, data, xl.Policy.never(3))
    assert xl.certify_binding(net, data, policy).binding == policy.binding  # the same request again
    with pytest.raises(xl.errors.CalibrationError, match=r"data: these samples have certified binding at area 0\.2"):
        xl.certify_binding(net, data, policy, area=0.4)
    copies = xl.certify_binding(net, data.inputs[:1].expand(30, -1, -1, -1), xl.Policy.never(3))
    assert copies.binding.distinct == 1
    assert str(copies.binding).endswith("But only 1 of the 30 samples are distinct, and repeats prove nothing.")


def test_as_much_is_shown_as_there_is():
    """Two groups of features: the top 20 % is one of them."""
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    net = xl.attach(body, ["1"], 3, torch.zeros(2, 4), groups={"a": [0, 1], "b": [2, 3]}).eval()
    binding = xl.certify_binding(net, torch.randn(40, 4), xl.Policy.never(net.num_exits)).binding
    assert (binding.area, binding.shown) == (0.2, 0.5)
    assert str(binding).startswith("The top 50 % of a map")


def test_groups_come_along_behind_loaders_and_subsets():
    data = make_tiny_set(64)
    named = xl.data.ImageSet(data.images, data.labels, data.classes, data.masks, groups=torch.arange(64) // 2)
    for source in (named, DataLoader(named, 8), Subset(named, range(64)), DataLoader(Subset(named, range(64)), 7)):
        assert xl.certify_binding(make_net(), source, xl.Policy.never(3)).binding.groups == 32


@pytest.mark.slow
def test_bad_files_move_no_swaps(tmp_path):
    data = make_tiny_set(60)
    for i, (image, label) in enumerate(zip(data.images, data.labels.sort().values, strict=True)):
        path = tmp_path / f"c{label}" / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    files = sorted(tmp_path.rglob("*.png"))
    files[3].write_bytes(b"x")
    lazy, stream = (
        xl.data.load_folder(tmp_path, data.preprocess, skip_bad=True),
        xl.data.ImageStream(files, data.preprocess, 7, skip_bad=True),
    )
    trace, streamed = xl.collect(make_net(), lazy, swapped=20), xl.collect(make_net(), stream, swapped=20)
    whole = xl.collect(make_net(), lazy.leave_out_bad().load(), swapped=20)
    for name in ("unit", "changed"):
        assert torch.equal(trace.swaps[name], whole.swaps[name])
        assert torch.equal(streamed.swaps[name], whole.swaps[name])


def test_a_stream_reads_no_more_than_is_certified(tmp_path, monkeypatch):
    data = make_tiny_set(64)
    for i, image in enumerate(data.images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i:03}.png")
    files, read = sorted(tmp_path.glob("*.png")), set()
    files[5].write_bytes(b"x")
    original = ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda self, i: (read.add(i), original(self, i))[1])
    stream = xl.data.ImageStream(files, data.preprocess, 8, skip_bad=True, workers=0)
    binding = xl.certify_binding(make_net(), stream, xl.Policy.never(3), samples=40).binding
    assert len(read) == 40
    assert binding.samples == 40 - len(stream.bad)


def test_no_more_is_promised_than_was_seen():
    """The bet is won in the first half, where nothing changes."""
    changed, samples = torch.cat([torch.zeros(600), torch.ones(40)]), torch.arange(640)
    share, seen = certifying.bound_share(changed, samples, samples // 2, 0.1)
    assert seen == pytest.approx(0.9375)
    assert share == seen
    fewer, _ = certifying.bound_share(changed.flip(0), samples, samples // 2, 0.1)
    assert fewer < 0.93


def test_who_may_be_told(images):
    net, data = make_net(), make_tiny_set(64)
    policy = xl.certify_binding(net, data, xl.Policy((0.6, 0.6)), area=0.4, delta=0.2)
    assert policy.network == net.identity()  # of no other network
    assert policy.certificate().endswith(str(policy.binding))
    why = xl.explain(net, images[0], policy)
    assert why.reason.endswith(policy.binding.describe(why.answered))
    assert why.to_dict()["binding"] == policy.describe_binding(why.answered)
    changed = replace(policy, thresholds=(0.7, 0.6))
    assert changed.describe_binding(0) == ""
    assert "decides" not in changed.certificate()
    assert "decides" not in xl.explain(net, images[0], changed).reason


def test_the_promise_in_words():
    binding = BindingCertificate(0.2, 0.1, 0.9189, 0.94, 2000, None, ((1500, 0.95), (500, None)), "x", 0.2, 2000)
    assert str(binding).startswith("The top 20 % of a map decides at least 91.8 % of the answers, with 90 % confidence")
    expected = "The top 20 % of a map decides at least 91 % of the answers (90 % confidence"
    assert binding.describe(0) == f"{expected}; seen at this exit: 95 % of 1,500)."
    assert binding.describe(1) == f"{expected})."
    with pytest.raises(xl.errors.PolicyError, match="binding: expected what certify_binding wrote"):
        read_binding({"area": 0.2})


def test_what_cannot_be_promised():
    net, data = make_net(), make_tiny_set(64)
    with pytest.raises(
        xl.errors.CalibrationError, match=r"data: 16 samples are too few to promise anything. Fix: pass 20 or more"
    ):
        xl.certify_binding(net, data.first(16), xl.Policy.never(3))
    for name, value in (("area", 0.0), ("area", 1.0), ("delta", 0), ("samples", 19)):
        with pytest.raises(xl.errors.InputError, match=f"{name}: expected"):
            xl.certify_binding(net, data, xl.Policy.never(3), **{name: value})
    policy = xl.calibrate(xl.collect(net, data, batch_size=1), max_disagreement=0.2)
    with pytest.raises(xl.errors.CalibrationError, match="data: the policy was calibrated on some of these samples"):
        xl.certify_binding(net, data, policy)
