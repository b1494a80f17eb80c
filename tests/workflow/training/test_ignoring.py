"""``fit(ignore=)``: what it takes, what it exchanges, and that answers no longer hang on it."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import exitlens as xl
from exitlens.modalities import TEXT
from exitlens.types.settings import Ignored
from exitlens.workflow.training.ignoring import Ignoring, pack_mask, read_ignored, unpack_mask
from tests.conftest import make_net, make_tiny_set
from tests.workflow.training.networks import QUICK, fresh

CORNER = torch.zeros(4, 4, dtype=torch.bool)
CORNER[0, 0] = True


@dataclass
class Cue:
    """As ``find_cues`` has them."""

    ignore: object


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_masks_are_packed_without_loss(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    if mask.any() and not mask.all():
        assert torch.equal(unpack_mask(pack_mask(mask)), mask)
        assert read_ignored(mask.numpy()).masks == (pack_mask(mask),)


def test_everything_that_can_be_ignored_is_recorded(tmp_path):
    Image.fromarray((CORNER.numpy() * 255).astype(np.uint8)).save(tmp_path / "m.png")
    np.save(tmp_path / "m.npy", CORNER.numpy())
    packed = (pack_mask(CORNER),)
    assert not read_ignored(None)
    assert read_ignored("background") == Ignored(background=True)
    for mask in (CORNER, CORNER.int(), tmp_path / "m.png", tmp_path / "m.npy", [Cue(CORNER), Cue(CORNER)]):
        assert read_ignored(mask) == Ignored(masks=packed)
    assert read_ignored(Cue(("lead",))) == Ignored(names=("lead",))
    assert read_ignored(("lead", "level")) == Ignored(names=("lead", "level"))
    mixed = read_ignored([Cue("background"), Cue(("a", "b")), ("b",), CORNER])
    assert mixed == Ignored(True, packed, ("a", "b"))
    assert xl.TrainingSettings(ignore={"background": True, "masks": [], "names": ["a"]}).ignore == Ignored(True, (), ("a",))


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        ("back", r"ignore: expected 'background'.*Did you mean 'background'"),
        (torch.zeros(4, 4), r"with some of both, got \(4, 4\)"),
        (torch.full((2, 2), 0.5), "True and False"),
        (3, "ignore: expected 'background', a mask or names, got int"),
        ([Cue("background"), Cue(None)], r"ignore: no part of the inputs can be exchanged for Cue\(ignore=None\)"),
        (torch.eye(4)[0], r"masks of images with 2 axes, got \(4,\)"),
        ([CORNER, torch.eye(3)], r"the shape of the others, \(4, 4\)"),
        (("red",), r"no channel is called 'red': expected one of \['0', '1', '2'\]"),
        (Ignored(masks=("4x4:?",)), "a mask cannot be read from '4x4:"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_set, ignore, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.fit(make_net(), tiny_set, tiny_set, ignore=ignore, **QUICK)


def test_a_background_needs_masks_and_kept_features_cannot_be_exchanged(tiny_set):
    for train in (TensorDataset(tiny_set.inputs, tiny_set.labels), DataLoader(tiny_set, 8)):
        with pytest.raises(xl.errors.InputError, match="'background' needs the masks"):
            xl.fit(make_net(), train, tiny_set, ignore="background", **QUICK)
    options = {"ignore": CORNER, "freeze_backbone": True, "cache_features": True}
    with pytest.raises(xl.errors.InputError, match=r"cache_features: what must not matter.*leave out ignore"):
        xl.fit(make_net(), tiny_set, tiny_set, **QUICK | options)


def take_apart(inputs, changed):
    """For each changed row, where it is still its own, and where it is each other row's."""
    rows = (changed != inputs).flatten(1).any(1).nonzero().flatten().tolist()
    return {row: [(changed[row] == other).all(0) for other in inputs] for row in rows}


def test_a_place_comes_from_one_other_sample_and_the_rest_stays(images):
    ignoring = Ignoring(Ignored(masks=(pack_mask(CORNER),)), make_net(), None)
    inputs = images[:10]
    parts = take_apart(inputs, ignoring.exchange(inputs))
    corner = torch.zeros(16, 16, dtype=torch.bool)
    corner[:4, :4] = True
    assert len(parts) == 7
    for row, same in parts.items():
        assert torch.equal(same[row], ~corner)
        assert sum(torch.equal(each, corner) for each in same) == 1
    assert ignoring.exchange(inputs[:1]) is not None


def test_no_rim_of_the_background_stays_and_donors_give_theirs_first(images):
    data = make_tiny_set(10)
    ignoring = Ignoring(Ignored(background=True), make_net(), data)
    inputs, objects = images[:10], torch.zeros(10, 16, 16, dtype=torch.bool)
    objects[:, 4:12, 4:12] = True
    objects[0, 0, 0] = True  # covered in one sample only: two other donors are free there
    for _ in range(3):
        for row, same in take_apart(inputs, ignoring.exchange(inputs, objects)).items():
            assert torch.equal(same[row], objects[row])
            if row != 0:
                assert not same[0][0, 0]


def test_channels_come_from_one_other_sample(images):
    inputs = images[:10]
    changed = Ignoring(Ignored(names=("1",)), make_net(), None).exchange(inputs)
    assert torch.equal(changed[:, [0, 2]], inputs[:, [0, 2]])
    donors = [[i for i in range(10) if torch.equal(changed[row, 1], inputs[i, 1])] for row in range(10)]
    assert all(len(each) == 1 for each in donors)
    assert sum(each != [row] for row, each in enumerate(donors)) == 7


@pytest.fixture(scope="module")
def words():
    texts = ["a red lamp is good", "the blue lamp is bad or so", "a red door", "no colour is told here at all"]
    preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(texts), 10)
    info = SimpleNamespace(preprocess=preprocess)
    return preprocess, SimpleNamespace(info=info, input_spec=SimpleNamespace(modality=TEXT)), texts


def test_ignored_words_go_both_ways(words):
    preprocess, net, texts = words
    inputs = preprocess.encode(texts)
    ignoring = Ignoring(Ignored(names=("red", "blue")), net, None)
    ids = set(ignoring.words)
    assert [preprocess.tokens(torch.tensor([i]))[0] for i in sorted(ids)] == sorted(
        ["red", "blue"], key=lambda w: w != "red"
    )
    counts = []
    for _ in range(30):
        changed = ignoring.exchange(inputs)
        assert torch.equal(changed["attention_mask"], inputs["attention_mask"])
        ends = (inputs["attention_mask"] * torch.arange(10)).amax(1)
        assert torch.equal(changed["input_ids"][:, 0], inputs["input_ids"][:, 0])
        assert torch.equal(changed["input_ids"].gather(1, ends[:, None]), inputs["input_ids"].gather(1, ends[:, None]))
        counts.append([sum(int(i) in ids for i in row) for row in changed["input_ids"]])
        for row, text in enumerate(changed["input_ids"]):
            if row == 3 and counts[-1][row]:  # it has a colour now, in place of one word
                assert int((text != inputs["input_ids"][row]).sum()) == 1
    assert {row[3] for row in counts} == {0, 1}
    assert {row[0] for row in counts} == {0, 1}


def test_words_need_a_tokenizer_that_knows_them(words):
    _, net, _ = words
    with pytest.raises(xl.errors.InputError, match="the tokenizer does not know 'green'"):
        Ignoring(Ignored(names=("green",)), net, None)
    without = SimpleNamespace(info=SimpleNamespace(preprocess=None), input_spec=net.input_spec)
    with pytest.raises(xl.errors.InputError, match="words need the network's tokenizer"):
        Ignoring(Ignored(names=("red",)), without, None)


def make_marked(count, seed, right):
    """Two classes: a faint bar tells the class in all samples, a corner pixel in a share ``right`` of them."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    x = 0.3 * torch.randn(count, 3, 16, 16, generator=rng)
    x[:, 1, 4:12, 4:12] += (0.3 * (2 * labels - 1))[:, None, None]
    told = torch.where(torch.rand(count, generator=rng) < right, labels, 1 - labels)
    x[:, 0, :2, :2] = (4.0 * (2 * told - 1))[:, None, None]
    return TensorDataset(x, labels)


@pytest.mark.slow
def test_answers_no_longer_hang_on_an_ignored_corner():
    train, wrong = make_marked(256, 0, 0.95), make_marked(100, 1, 0.0)
    corner, accuracy = torch.zeros(8, 8, dtype=torch.bool), []
    corner[0, 0] = True
    for ignore in (None, corner):
        net = fresh(classes=2)
        xl.fit(net, train, wrong, ignore=ignore, learning_rate=0.02, **QUICK | {"epochs": 6, "batch_size": 32})
        trace = xl.collect(net, wrong)
        accuracy.append((trace.logits.argmax(2) == trace.labels[:, None]).float().mean(0))
    assert (accuracy[1] > 0.9).all(), accuracy
    assert (accuracy[0] < 0.7).any(), accuracy
