"""Training with ``rely_on="map"``: its expert, its guide, recomposed samples, and what a run with it promises."""

import math
import shutil
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import exitlens as xl
from exitlens.types import ExitOutput
from exitlens.types.settings import TrainingSettings
from exitlens.workflow.training import debiasing
from exitlens.workflow.training.debiasing import Guide, ShallowExpert, find_known, mix_backgrounds, weigh_whole
from tests.conftest import make_net
from tests.kinds import KINDS
from tests.texts import make_text_net, make_texts
from tests.workflow.training.networks import QUICK, equal, fresh, raise_at, weights

LABELS = torch.tensor([0, 1, 2, 3] * 2)


def make_expert(net=None):
    return ShallowExpert(net or make_net(), TrainingSettings(rely_on="map", amp=False))


def observe(expert, images):
    with torch.no_grad():
        return expert.net.eval().observe(images)


def test_weights_follow_from_what_the_expert_says(images):
    expert = make_expert()
    outputs, shallow, *_ = observe(expert, images[:8])
    assert shallow.shape == (8, 6, 8, 8)  # the backbone's features at exit 0
    half, full = (expert.weigh(outputs, shallow, LABELS, progress) for progress in (0.05, 1.0))
    torch.testing.assert_close(full - 1, 2 * (half - 1))
    torch.testing.assert_close(full.mean(1), torch.ones(3))
    flat = shallow.flatten(2)
    moments = torch.cat([flat.mean(2), flat.std(2, correction=0), flat.amax(2)], 1)
    guess = expert.head(moments)
    easy = F.cross_entropy(guess - guess.mean(0), LABELS, reduction="none")
    for out, given in zip(outputs, full, strict=True):
        ratio = easy / (easy + F.cross_entropy(out.logits, LABELS, reduction="none"))
        torch.testing.assert_close(given, ratio / ratio.mean())
    assert not full.requires_grad


def test_the_expert_learns_and_the_network_gets_no_gradient(images):
    expert = make_expert()
    outputs = expert.net.train().observe(images[:8])
    start = guess_loss(expert, outputs)
    for _ in range(60):
        expert.weigh(outputs.outputs, outputs.shallow, LABELS, 1.0)
        expert.step(8)
    assert guess_loss(expert, outputs) < 0.8 * start
    assert all(p.grad is None for p in expert.net.parameters())


def test_an_expert_that_answers_one_class_for_all_goes_on_learning(images):
    expert = make_expert()
    expert.head[-1].bias.data[1] = 50.0  # without the mean taken off, its loss has no gradient
    outputs = expert.net.observe(images[:8])
    for _ in range(100):
        expert.weigh(outputs.outputs, outputs.shallow, LABELS, 1.0)
        expert.step(8)
    assert guess_loss(expert, outputs) < 0.8 * math.log(4)


def test_an_expert_that_tells_nothing_guesses_how_often_a_class_is(images):
    expert = make_expert()
    expert.head[-1].weight.data.zero_()
    outputs, shallow, *_ = observe(expert, images[:8])
    labels = torch.tensor([0] * 6 + [1, 2])
    easy = -torch.tensor([7.0] * 6 + [2.0, 2.0]).div(12).log()  # counts and 1 more, of 8 and 4 more
    given = expert.weigh(outputs, shallow, labels, 1.0)
    for out, row in zip(outputs, given, strict=True):
        ratio = easy / (easy + F.cross_entropy(out.logits, labels, reduction="none"))
        torch.testing.assert_close(row, ratio / ratio.mean())


def guess_loss(expert, seen):
    flat = seen.shallow.flatten(2)
    guess = expert.head(torch.cat([flat.mean(2), flat.std(2, correction=0), flat.amax(2)], 1))
    return F.cross_entropy(guess - guess.mean(0), LABELS).item()


def test_several_labels_are_weighed_by_sample(images):
    expert = make_expert()
    outputs, shallow, *_ = observe(expert, images[:8])
    labels = (torch.arange(32).view(8, 4) % 3 == 0).long()
    assert expert.weigh(outputs, shallow, labels, 1.0).shape == (3, 8)


def test_samples_keep_their_objects_on_what_others_leave_out(images, monkeypatch):
    """Where a donor has its own object, what is behind it comes from the next donor."""
    guide, inputs = Guide(make_net(), half_precision=False), images[:8]
    objects = torch.zeros(8, 16, 16, dtype=torch.bool)
    objects[torch.arange(8), torch.arange(8) + 4, 3:9] = True  # a row of its own for each sample

    def find_object(self, maps, given, region):
        assert 0.2 <= region.float().mean() <= 0.4
        return objects[[next(i for i in range(8) if torch.equal(inputs[i], sample)) for sample in given]]

    monkeypatch.setattr(type(guide.net.input_spec.modality), "find_object", find_object)
    monkeypatch.setattr(debiasing, "MIXED", 0.0)
    changed, strength, is_whole = guide.exchange(inputs, LABELS)
    assert strength == 0  # all have outlines
    rows = (changed != inputs).flatten(1).any(1)
    assert torch.equal(is_whole, ~rows)
    assert int(rows.sum()) == round(0.7 * 8)
    firsts = []
    for row in rows.nonzero().flatten().tolist():
        kept = objects[row]
        assert torch.equal(changed[row][:, kept], inputs[row][:, kept])
        first = next(
            i for i in range(8) if torch.equal(changed[row][:, ~kept & ~objects[i]], inputs[i][:, ~kept & ~objects[i]])
        )
        behind = objects[first] & ~kept
        assert any(torch.equal(changed[row][:, behind], inputs[i][:, behind]) for i in range(8) if i not in (row, first))
        firsts.append(first)
    assert len(set(firsts)) == len(firsts)
    alone, strength, is_whole = guide.exchange(inputs[:1], LABELS[:1])
    assert torch.equal(alone, inputs[:1])
    assert strength == 0
    assert is_whole.all()


def test_half_of_the_backgrounds_are_mixed_of_two():
    donors = [torch.full((400, 3, 4, 4), value) for value in (1.0, 2.0)]
    hidden = [torch.zeros(400, 4, 4, dtype=torch.bool) for _ in donors]
    hidden[1][:, 0] = True
    (*images, plain, last), (*masks, _, covered) = mix_backgrounds(donors, hidden)
    assert torch.equal(plain, donors[0])
    assert torch.equal(last, donors[1])
    assert torch.equal(covered, hidden[1])
    first, second = (image[:, 0, 0, 0] for image in images)
    assert all((image == image[:, :1, :1, :1]).all() for image in images)
    torch.testing.assert_close(first - 1, 2 - second)  # the same shares
    assert 150 < int((first > 1).sum()) < 250
    assert ((first >= 1) & (first <= 2)).all()
    assert torch.equal(masks[0][:, 0].all(1), first > 1)  # a mixture shows the objects of both
    assert not masks[0][:, 1:].any()
    assert torch.equal(masks[1], hidden[1])


def test_images_without_outlines_are_recomposed_along_regions(monkeypatch):
    guide, inputs = Guide(make_net(), half_precision=False), torch.rand(40, 3, 16, 16)
    keeps_region = lambda self, maps, given, region: region  # noqa: E731
    monkeypatch.setattr(type(guide.net.input_spec.modality), "find_object", keeps_region)
    rows = []
    for _ in range(20):
        changed, strength, _ = guide.exchange(inputs, LABELS.repeat(5))
        assert strength == 0.5  # whether the guide knows labels or not
        rows.append((changed != inputs).flatten(1).any(1))
    assert 0.25 < torch.stack(rows).float().mean() < 0.45  # half of 70 %


def test_samples_that_stayed_whole_count_less_at_early_exits():
    """Of four samples two stayed whole; weights of 0.6, 0.9 and 1.2, scaled to a mean of 1."""
    weights = weigh_whole(torch.ones(3, 4), torch.tensor([True, True, False, False]))
    expected = [[0.75, 0.75, 1.25, 1.25], [18 / 19, 18 / 19, 20 / 19, 20 / 19], [12 / 11, 12 / 11, 10 / 11, 10 / 11]]
    torch.testing.assert_close(weights, torch.tensor(expected))
    alike = weigh_whole(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([True, True]))
    torch.testing.assert_close(alike, torch.tensor([[0.5, 1.5], [1.0, 1.0]]))
    assert weigh_whole(torch.ones(1, 2), torch.tensor([True, False]))[0].argmax() == 0  # a single exit is the final one


def test_samples_that_stayed_whole_are_told_to_the_expert(tiny_set, monkeypatch):
    steps, _, told = record_steps(tiny_set, monkeypatch)
    assert list(told[:steps]) == [None] * steps  # of the guide
    assert len(told[steps:]) == 2 * steps
    assert all(0 < int(is_whole.sum()) < len(is_whole) for is_whole in told[steps:])


def test_mixed_backgrounds_are_in_no_sample(monkeypatch):
    guide = Guide(make_net(), half_precision=False)
    inputs = torch.arange(1.0, 9.0).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone()
    middle = torch.zeros(1, 16, 16, dtype=torch.bool)
    middle[:, 4:12, 4:12] = True
    keeps_middle = lambda self, maps, given, region: middle.expand(len(given), -1, -1)  # noqa: E731
    monkeypatch.setattr(type(guide.net.input_spec.modality), "find_object", keeps_middle)
    monkeypatch.setattr(debiasing, "MIXED", 1.0)
    changed, *_ = guide.exchange(inputs, LABELS)
    backgrounds = changed[(changed != inputs).flatten(1).any(1)][:, :, 0]
    assert len(backgrounds) == 6
    assert (backgrounds != backgrounds.round()).all()


def record_steps(data, monkeypatch):
    """Return, for every step of a guide and then of its network, the strength of the expert and what stayed whole."""
    told, weigh = [], ShallowExpert.weigh

    def record(self, *given):
        told.append(given[-2:])
        return weigh(self, *given)

    monkeypatch.setattr(ShallowExpert, "weigh", record)
    xl.fit(fresh(), data, data, rely_on="map", **QUICK | {"epochs": 2})
    steps = len(told) // 3
    assert steps > 0
    return steps, *zip(*told, strict=True)


def test_the_expert_is_as_strong_as_the_guide_says(tiny_set, monkeypatch):
    monkeypatch.setattr(Guide, "exchange", lambda self, inputs, labels: (inputs, 0.3, None))
    steps, strengths, _ = record_steps(tiny_set, monkeypatch)
    assert list(strengths) == [0.75] * steps + [0.3] * (2 * steps)


def test_a_guide_stays_as_it_was(images):
    guide = Guide(make_net().train(), half_precision=False)
    before = weights(guide.net)
    guide.exchange(images[:8], LABELS)
    assert equal(before, weights(guide.net))
    assert not any(module.training for module in guide.net.modules())
    assert not any(p.requires_grad for p in guide.net.parameters())


@pytest.mark.slow
def test_a_guide_is_trained_for_a_third_of_the_epochs_and_resumed(tiny_set, tmp_path, monkeypatch, capsys):
    options = QUICK | {"epochs": 4, "rely_on": "map"}
    whole, stopped, resumed = fresh(), fresh(), fresh()
    xl.fit(whole, tiny_set, tiny_set, out_dir=tmp_path / "whole", **options)
    steps, original = [], torch.optim.AdamW.step

    def interrupt(self, *args):
        steps.append(1)
        if len(steps) == 11:  # of two optimisers, in the second epoch of the guide
            raise KeyboardInterrupt
        return original(self, *args)

    part = {"out_dir": tmp_path / "part", **options}
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", interrupt)
        with pytest.raises(KeyboardInterrupt) as stop:
            xl.fit(stopped, tiny_set, tiny_set, **part)
    assert stop.value.__notes__[0] == "guide, after epoch 1 of 2"
    assert stop.value.__notes__[1].endswith(str(tmp_path / "part"))
    with pytest.raises(xl.errors.OutputExistsError, match="holds a run already"):
        xl.fit(fresh(), tiny_set, tiny_set, **part)
    xl.fit(resumed, tiny_set, tiny_set, resume=True, **part | {"progress": True})
    assert "guide, epoch 2/2" in capsys.readouterr().out
    assert equal(weights(whole), weights(resumed))
    guide = (tmp_path / "part/guide/last.safetensors").read_bytes()
    assert xl.fit(resumed, tiny_set, tiny_set, resume=True, **part | {"epochs": 9}).history[-1]["epoch"] == 9
    assert (tmp_path / "part/guide/last.safetensors").read_bytes() == guide
    with pytest.raises(xl.errors.OutputExistsError, match=r"part holds a run already"):
        xl.fit(fresh(), tiny_set, tiny_set, **part)


@pytest.mark.slow
def test_a_run_that_failed_leaves_its_directory_for_a_corrected_call(tiny_set, tmp_path):
    """The run's record is there while its guide is trained; an error before its own first epoch removes both."""
    options = QUICK | {"rely_on": "map", "out_dir": tmp_path / "run"}
    seen = []

    def fail(inputs):
        seen.append((tmp_path / "run/settings.json").exists())
        if len(seen) == 6:  # the guide has an epoch of four steps
            raise RuntimeError("augmentation")
        return inputs

    with pytest.raises(RuntimeError, match="augmentation"):
        xl.fit(fresh(), tiny_set, tiny_set, augment=fail, **options)
    assert all(seen)
    assert not list((tmp_path / "run").iterdir())
    (tmp_path / "run/guide").mkdir()
    (tmp_path / "run/guide/notes.txt").write_text("not ours")
    broken = raise_at(RuntimeError("augmentation"), 2)
    with pytest.raises(RuntimeError, match="augmentation"):
        xl.fit(fresh(), tiny_set, tiny_set, augment=broken, **options | {"rely_on": "anything"})
    assert (tmp_path / "run/guide/notes.txt").exists()
    shutil.rmtree(tmp_path / "run/guide")
    assert xl.fit(fresh(), tiny_set, tiny_set, learning_rate=1e-3, **options).history
    shutil.rmtree(tmp_path / "run/guide")
    xl.fit(fresh(), tiny_set, tiny_set, resume=True, learning_rate=1e-3, **options)  # which is over
    with pytest.raises(xl.errors.TrainingError, match="guide of this run, is missing"):
        xl.fit(fresh(), tiny_set, tiny_set, resume=True, learning_rate=1e-3, **options | {"epochs": 4})
    xl.fit(fresh(), tiny_set, tiny_set, **QUICK | {"out_dir": tmp_path / "plain"})
    with pytest.raises(xl.errors.TrainingError, match="rely_on"):
        xl.fit(fresh(), tiny_set, tiny_set, resume=True, **options | {"out_dir": tmp_path / "plain"})
    assert not (tmp_path / "plain/guide").exists()


def test_data_that_can_be_read_once_and_networks_that_cannot_be_copied_are_refused(tiny_set):
    batches = [tiny_set.first(8)[i] for i in range(8)]
    once = DataLoader(Once(iter(batches)), batch_size=4)
    with pytest.raises(xl.errors.InputError, match="train: expected at least one batch"):
        xl.fit(fresh(), once, tiny_set, rely_on="map", **QUICK)
    with pytest.raises(xl.errors.InputError, match="an iterator can be read once"):
        xl.fit(fresh(), tiny_set, iter(DataLoader(tiny_set, 8)), rely_on="map", **QUICK)
    net = fresh()
    net.lock = threading.Lock()
    with pytest.raises(xl.errors.InputError, match=r"net: .* cannot be copied"):
        xl.fit(net, tiny_set, tiny_set, rely_on="map", **QUICK)


class Once(IterableDataset):
    """Gives its samples to the first reader, and nothing to the next."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return 8

    def __iter__(self):
        return self.samples


@pytest.mark.parametrize("count", [2, 3, 4])
def test_in_small_batches_no_sample_is_its_own_donor(count, monkeypatch):
    guide = Guide(make_net(), half_precision=False)
    inputs = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone()
    middle = torch.zeros(1, 16, 16, dtype=torch.bool)
    middle[:, 4:12, 4:12] = True
    monkeypatch.setattr(
        type(guide.net.input_spec.modality),
        "find_object",
        lambda self, maps, given, region: middle.expand(len(given), -1, -1),
    )
    changed, *_ = guide.exchange(inputs, torch.zeros(count, dtype=torch.long))
    rows = [i for i in range(count) if not torch.equal(changed[i], inputs[i])]
    assert len(rows) == max(2, round(0.7 * count))
    for i in rows:
        assert (changed[i][:, middle[0]] == i + 1).all()
        assert (changed[i][:, ~middle[0]] != i + 1).all()


@pytest.mark.parametrize(
    "kind",
    [
        "vector, groups",
        *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS if not name.startswith("vector")),
    ],
)
def test_every_kind_of_input_trains(kind):
    net, data = attach_kind(kind), KINDS[kind].make(24)
    result = xl.fit(net, data, data, rely_on="map", **QUICK | {"epochs": 1})
    assert result.history[-1]["loss"]["total"] > 0


def attach_kind(kind):
    entry = KINDS[kind]
    return xl.attach(entry.build(), ["first", "second"], 3, entry.make(2).inputs, groups=entry.groups)


@pytest.mark.slow
def test_padding_of_texts_is_not_read(monkeypatch):
    expert, inputs = make_expert(make_text_net()), make_texts(8)
    outputs, shallow, *_ = observe(expert, inputs)
    noise = shallow + 7 * (inputs["attention_mask"] == 0)[:, None]
    labels = torch.arange(8) % 3
    plain, changed = (expert.weigh(outputs, each, labels, 1.0) for each in (shallow, noise))
    torch.testing.assert_close(plain, changed)
    guide = Guide(expert.net, half_precision=False)
    monkeypatch.setattr(debiasing, "WITHOUT_OUTLINE", 1.0)
    monkeypatch.setattr(debiasing, "find_known", lambda outputs, labels: labels >= 0)
    mixed, *_ = guide.exchange(inputs, labels)
    assert torch.equal(mixed["attention_mask"], inputs["attention_mask"])
    assert not torch.equal(mixed["input_ids"], inputs["input_ids"])


@pytest.mark.slow
def test_what_has_no_outline_is_recomposed_where_the_guide_knows_its_label(monkeypatch):
    guide, inputs = Guide(make_text_net(), half_precision=False), make_texts(40)
    labels = (torch.arange(40) < 20).long()
    monkeypatch.setattr(debiasing, "find_known", lambda outputs, given: given == 1)
    rows = torch.stack([exchange_texts(guide, inputs, labels)[0] for _ in range(20)])
    assert not rows[:, 20:].any()
    assert 0.25 < rows[:, :20].float().mean() < 0.45  # half of 70 %
    assert exchange_texts(guide, inputs, torch.ones(40))[1] == 0.5
    assert exchange_texts(guide, inputs, torch.zeros(40))[1] == 0  # all that is easy may be all that there is
    outlines = lambda self, maps, given, region: ~region  # noqa: E731
    monkeypatch.setattr(type(guide.net.input_spec.modality), "find_object", outlines)
    assert exchange_texts(guide, inputs, torch.ones(40))[1] == 0  # as with images among several inputs


def exchange_texts(guide, inputs, labels):
    """Return which texts were recomposed, and the strength of an expert."""
    mixed, strength, _ = guide.exchange(inputs, labels)
    return (mixed["input_ids"] != inputs["input_ids"]).any(1), strength


def test_a_label_is_known_below_half_the_loss_of_the_mean_answer():
    """Two exits, four classes, each the truth of a sample: mean answers are even, so that known is what loses below log 4 / 2."""
    chances = torch.tensor([[0.6, 0.6, 0.6, 0.6], [0.3, 0.3, 0.3, 0.3], [0.9, 0.9, 0.9, 0.9]])  # of the truth
    logits = [torch.where(torch.eye(4).bool(), p, (1 - p) / 3).log() for p in chances[:, :, None]]
    nothing = torch.empty(0)
    first, second, third = [ExitOutput(part, nothing, nothing) for part in logits]
    assert find_known([first, first], torch.arange(4)).all()
    assert find_known([second, third], torch.arange(4)).all()  # -log 0.27 / 2 < log 4 / 2 < -log 0.18 / 2
    assert not find_known([second, first], torch.arange(4)).any()


@pytest.mark.parametrize("several", [False, True])
def test_base_rates_are_no_knowledge(several):
    """A guide that always answers how often a label is knows none of 95 % and 5 %; one that can tell knows the rare one, too."""
    labels = (torch.arange(40) >= 38).long()
    told = torch.where(labels == 1, 40.0, -40.0)
    base, knowing = [torch.stack([-each / 2, each / 2], 1) for each in (torch.full((40,), -2.944), told)]
    if several:
        labels = torch.stack([1 - labels, labels], 1)
    nothing = torch.empty(0)
    assert not find_known([ExitOutput(base, nothing, nothing)], labels).any()
    assert find_known([ExitOutput(knowing, nothing, nothing)], labels).all()


def test_networks_without_maps_and_losses_of_other_arguments_are_refused(tiny_set):
    net, data = attach_kind("vector"), KINDS["vector"].make(12)
    with pytest.raises(xl.errors.InputError, match="rely_on='map' needs attention maps"):
        xl.fit(net, data, data, rely_on="map", loss=xl.EGTLoss(weight=0.0), **QUICK)

    class Short(xl.EGTLoss):
        def __call__(self, outputs, labels, progress=1.0, features=None):
            return super().__call__(outputs, labels, progress, features)

    with pytest.raises(xl.errors.InputError, match=r"loss: .*sample_weights"):
        xl.fit(make_net(), tiny_set, tiny_set, rely_on="map", loss=Short(target="attention"), **QUICK)
    with pytest.raises(xl.errors.InputError, match=r"rely_on: expected one of .*'anything', 'map'"):
        xl.fit(make_net(), tiny_set, tiny_set, rely_on="maps", **QUICK)


@pytest.mark.slow
def test_features_of_a_frozen_backbone_are_not_kept(tiny_set, capsys):
    xl.fit(fresh(), tiny_set, tiny_set, rely_on="map", freeze_backbone=True, **QUICK | {"progress": True})
    assert "what a map leaves out is exchanged anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [{"loss": xl.EGTLoss(target="relevance")}, pytest.param({"amp": True, "accumulate": 2}, marks=pytest.mark.slow)],
)
def test_it_works_with_relevance_and_in_half_precision(tiny_set, options):
    result = xl.fit(fresh(), tiny_set, tiny_set, rely_on="map", **QUICK | {"epochs": 1} | options)
    assert result.history[-1]["loss"]["consistency"] > 0


def test_several_labels_train(tiny_set):
    labels = F.one_hot(tiny_set.labels, 4)
    data = TensorDataset(tiny_set.inputs, labels)
    assert xl.fit(fresh(), data, data, rely_on="map", **QUICK | {"epochs": 1}).history


def make_shortcut(count, seed, right):
    """Two classes: an object of its own colour tells the class faintly, the background's level in a share ``right``."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    told = torch.where(torch.rand(count, generator=rng) < right, labels, 1 - labels)
    x = 0.3 * torch.randn(count, 3, 16, 16, generator=rng)
    x[:, 0] += (2.0 * told - 1)[:, None, None]
    x[:, 0, 4:10, 4:12] = 0.3 * torch.randn(count, 6, 8, generator=rng)
    x[:, 2, 4:10, 4:12] += 2.0
    x[:, 1, 4:10, 4:12] += (0.3 * labels - 0.15)[:, None, None]
    return TensorDataset(x, labels)


@pytest.mark.slow
def test_a_cue_outside_the_object_decides_fewer_answers():
    train, wrong = make_shortcut(512, 0, 0.95), make_shortcut(200, 1, 0.0)
    accuracy = []
    for rely_on in ("anything", "map"):
        net = fresh(classes=2)
        xl.fit(net, train, wrong, rely_on=rely_on, learning_rate=0.01, **QUICK | {"epochs": 12, "batch_size": 32})
        accuracy.append(xl.collect(net, wrong).correct.float().mean(0))
    gained = accuracy[1] - accuracy[0]
    assert gained[0] > 0.4, accuracy  # it sees three pixels at a time, and the cue is what they show best
    assert gained.min() >= 0, accuracy
