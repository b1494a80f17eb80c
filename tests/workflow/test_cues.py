"""Cues that networks written by hand hang on at their first exit alone are found first; and where there is none, nothing is."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import exitlens as xl
from exitlens.delivery.cues import write_cues
from exitlens.workflow.training.ignoring import read_ignored

COUNT, SIDE, STEPS = 160, 8, 16
WORDS = ("[PAD]", "[CLS]", "[SEP]", "alder", "harrow", "good", "bad", "from", "sent", "is", "very")


def draw_bits(seed: int = 0, agreement: float = 0.7) -> tuple[Tensor, Tensor]:
    """Labels of 0 and 1, and what a cue says: the label in most samples."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(COUNT) % 2
    return labels, torch.where(torch.rand(COUNT, generator=rng) < agreement, labels, 1 - labels)


def set_heads(net: xl.ExitNet, *heads: tuple[list[float], list[float]]) -> xl.ExitNet:
    """Give every exit an attention vector, and the weights of the second class (the first has the opposite ones)."""
    with torch.no_grad():
        for k, (attends, reads) in enumerate(heads):
            net.head(k).attend.weight.copy_(torch.tensor(attends).view_as(net.head(k).attend.weight))
            rows = torch.tensor([[-value for value in reads], reads])
            net.head(k).classifier.weight.copy_(rows.view_as(net.head(k).classifier.weight))
            net.head(k).classifier.bias.zero_()
    return net.eval()


def keep(axes: int, channels: int) -> nn.Module:
    """A convolution that changes nothing."""
    layer = (nn.Conv1d, nn.Conv2d)[axes - 1](channels, channels, 1, bias=False)
    nn.init.dirac_(layer.weight)
    return layer


def make_pictures(first_sees: str, agreement: float = 0.7) -> tuple[xl.ExitNet, xl.data.ImageSet]:
    """The red of the centre is the class, that of the upper right corner a cue. Green marks the corner, blue the centre."""
    labels, told = draw_bits(agreement=agreement)
    images = torch.full((COUNT, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    images[:, 0] += torch.randint(0, 20, (COUNT, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images[:, 0, 4, 3], images[:, 0, 0, 7] = (255 * labels).to(torch.uint8), (255 * told).to(torch.uint8)
    images[:, 1, 0, 7] = images[:, 2, 4, 3] = 255
    data = xl.data.ImageSet(images, labels, ("dark", "bright"))
    layers = (keep(2, 3), keep(2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    net = xl.attach(nn.Sequential(*layers), ["0"], 2, data.first(1).inputs, head="evidence")
    net.describe(classes=data.classes, preprocess=data.preprocess)
    corner, centre = ([0.0, 9.0, 0.0], [2.0, 0.0, 0.0]), ([0.0, 0.0, 9.0], [2.0, 0.0, 0.0])
    return set_heads(net, corner if first_sees == "corner" else centre, centre), data


def make_series(first_sees: str) -> tuple[xl.ExitNet, xl.data.ArraySet]:
    """The mean of one channel is the class, that of another a cue."""
    labels, told = draw_bits()
    rng = torch.Generator().manual_seed(1)
    values = torch.randn(COUNT, 2, STEPS, generator=rng) + 3 * torch.stack([2 * labels - 1, 2 * told - 1], 1)[:, :, None]
    preprocess = xl.data.SeriesPreprocess((0.0, 0.0), (1.0, 1.0), names=("signal", "level"))
    data = xl.data.ArraySet(values, labels, ("low", "high"), preprocess)
    layers = (keep(1, 2), keep(1, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 2))
    net = xl.attach(nn.Sequential(*layers), ["0"], 2, data.first(1).inputs, head="evidence")
    net.describe(classes=data.classes, preprocess=data.preprocess)
    level, signal = ([0.0, 0.0], [0.0, 2.0]), ([0.0, 0.0], [2.0, 0.0])
    return set_heads(net, level if first_sees == "cue" else signal, signal), data


class Embedded(nn.Module):
    """Numbers of words, which a layer leaves as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer, self.fc = nn.Embedding(len(WORDS), 3), nn.Linear(3, 3), nn.Linear(3, 2)
        table = torch.zeros(len(WORDS), 3)
        table[3:5, 0] = table[5:7, 1] = 1.0  # a shop, or an opinion
        table[3:7, 2] = torch.tensor([-1.0, 1.0, 1.0, -1.0])
        with torch.no_grad():
            self.words.weight.copy_(table)
            self.layer.weight.copy_(torch.eye(3))
            self.layer.bias.zero_()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.layer(self.words(input_ids))
        return self.fc((x * attention_mask[..., None]).sum(1))


class Reviews:
    """Texts such as ``from alder sent is good very``, as batches of tokens."""

    def __init__(self) -> None:
        labels, told = draw_bits()
        ids = torch.tensor([1, 7, 3, 8, 9, 5, 10, 2]).repeat(COUNT, 1)
        ids[:, 2], ids[:, 5] = 3 + told, 6 - labels
        self.batches = [({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)]

    def __iter__(self):
        return iter(self.batches)


def make_reviews(first_sees: str) -> tuple[xl.ExitNet, Reviews]:
    data = Reviews()
    example = {name: tensor[:2] for name, tensor in data.batches[0][0].items()}
    net = xl.attach(Embedded(), ["words"], 2, example, head="evidence")
    shop, opinion = ([9.0, 0.0, 0.0], [0.0, 0.0, 2.0]), ([0.0, 9.0, 0.0], [0.0, 0.0, 2.0])
    return set_heads(net, shop if first_sees == "cue" else opinion, opinion), data


def test_a_corner_is_found_and_drawn(tmp_path):
    net, data = make_pictures("corner")
    result = xl.find_cues(net, data, samples=COUNT)
    places = [cue for cue in result.cues if cue.kind == "place"]
    assert [bool(cue.ignore[0, 7]) for cue in places] == [True]  # overlapping ones are left out
    cue = places[0]
    assert len(read_ignored(places).masks) == 1
    assert (cue.exit, cue.classes) == (0, ("dark", "bright"))
    assert cue.changed[0] > cue.transfer[0] > 0.3 > 0.0 == cue.transfer[1] == cue.changed[1]
    assert cue.interval[0] < cue.excess < cue.interval[1]
    assert cue.examples[0].after == cue.examples[0].donor_class != cue.examples[0].before
    assert (cue.examples[0].sample[0] != cue.examples[0].swapped[0]).any(0)[~cue.ignore].sum() == 0
    assert json.loads(json.dumps(result.to_dict()))["cues"][0]["kind"] == result.cues[0].kind
    assert cue.name in str(result)
    write_cues(result, net, tmp_path / "cues.html")
    page = (tmp_path / "cues.html").read_text()
    assert page.count("<img ") == 3 * sum(len(cue.examples) for cue in result.cues)
    with pytest.raises(xl.errors.OutputExistsError):
        write_cues(result, net, tmp_path / "cues.html")


@pytest.mark.slow
def test_what_an_exit_follows_to_no_class_is_no_cue():
    net, data = make_pictures("corner", agreement=0.5)
    assert xl.find_cues(net, data, samples=COUNT).cues == ()


@pytest.mark.slow
def test_a_channel_and_its_level_are_found_first(tmp_path):
    net, data = make_series("cue")
    result = xl.find_cues(net, data, samples=COUNT)
    assert {cue.ignore for cue in result.cues[:2]} == {("level",)}
    assert {cue.kind for cue in result.cues[:2]} == {"channel", "level"}
    assert all("signal" not in (cue.ignore or ()) for cue in result.cues if not isinstance(cue.ignore, Tensor))
    write_cues(result, net, tmp_path / "cues.html")
    assert "<polyline" in (tmp_path / "cues.html").read_text()


def test_a_kind_of_word_is_found_alone_and_can_be_ignored():
    net, data = make_reviews("cue")
    result = xl.find_cues(net, data, samples=COUNT)
    assert set(read_ignored(result.cues).names) == {"3", "4"}
    assert [(cue.kind, set(cue.ignore)) for cue in result.cues] == [("words", {"3", "4"})]
    assert result.cues[0].classes == ("0", "1")


def test_words_of_a_single_class_cannot_be_swapped():
    """No text of another class has one to give."""
    net, data = make_reviews("cue")
    ids, labels = data.batches[0][0]["input_ids"], data.batches[0][1]
    ids[labels == 0, 1:4] = 10
    ids[labels == 1, 2] = 3 + torch.arange(COUNT // 2) % 2
    result = xl.find_cues(net, data, samples=COUNT)
    assert (result.tried, result.cues) == (2, ())


@pytest.mark.parametrize("make", [make_pictures, make_series, make_reviews])
@pytest.mark.slow
def test_without_a_cue_nothing_is_reported(make):
    net, data = make("the class")
    result = xl.find_cues(net, data, samples=COUNT)
    assert len(result.cues) == 0 < result.tried
    assert str(result).endswith("no cue")


def test_settings_and_data_are_checked():
    net, data = make_series("cue")
    for name, value in (("samples", 0), ("donors", 0), ("least", 1.0), ("delta", 0.0)):
        with pytest.raises(xl.errors.InputError, match=f"^{name}: expected"):
            xl.find_cues(net, data, **{name: value})
    with pytest.raises(xl.errors.InputError, match="expected 8 samples or more, got 4"):
        xl.find_cues(net, data.first(4))
    with pytest.raises(xl.errors.InputError, match="all samples are of one class"):
        xl.find_cues(net, data.subset((data.labels == 0).nonzero()[:, 0]))
