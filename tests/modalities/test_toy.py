"""A modality of the test's own, spectra (B,C,T), goes through every verb: it is one class, and one entry in MODALITIES."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pytest
import torch

import exitlens as xl
from exitlens import modalities
from exitlens.data.sets import SampleSet
from exitlens.modalities.base import Modality
from tests.kinds import Convolutional


@dataclass(frozen=True)
class Scale:
    """How raw spectra become inputs: divided by one number."""

    by: float = 1.0

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        return cls(**values)


class Spectrum(Modality):
    """What ``modalities/spectrum.py`` would hold."""

    name, plural, axes = "spectrum", "spectra", ("C", "T")
    expected = "a float tensor (B,C,T) of spectra"
    preprocess, reader = Scale, "numpy.loadtxt"

    def make_example(self, channels=3, size=0):
        return torch.zeros(1, channels, size or 64)

    def read(self, source, preprocess):
        return torch.tensor([[list(map(float, source.split()))]]) / preprocess.by

    def draw_map(self, sample, preprocess, attention, evidence, label):
        bars = "".join(f'<rect height="{value:.3f}"/>' for value in attention.tolist())
        return f'<svg aria-label="{label}">{bars}</svg>'


SPECTRUM, LENGTH, CLASSES = Spectrum(), 48, ("flat", "early", "late")


class Spectra(SampleSet):
    """Noise, with a bump in the first or second half; ``masks`` is where it is."""

    by_sample = (*SampleSet.by_sample, "inputs")
    modality, classes, preprocess, inputs, groups = SPECTRUM, CLASSES, Scale(2.0), None, None

    def __init__(self, count: int, seed: int):
        rng, time = torch.Generator().manual_seed(seed), torch.arange(LENGTH)
        self.labels = torch.arange(count) % 3
        start = (self.labels - 1) * (LENGTH // 2) + torch.randint(4, 12, (count,), generator=rng)
        self.masks = (self.labels > 0)[:, None] & (time >= start[:, None]) & (time < start[:, None] + 8)
        self.inputs = 0.3 * torch.randn(count, 2, LENGTH, generator=rng)
        self.inputs[:, 0] += 2 * self.masks
        self.inputs[:, 1] += time < LENGTH // 2  # which half it is

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(modalities, "MODALITIES", (SPECTRUM, *modalities.MODALITIES))  # before the library's own


def attach() -> xl.ExitNet:
    torch.manual_seed(0)
    net = xl.attach(Convolutional(), ["first", "second"], 3, torch.zeros(1, 2, LENGTH))
    net.describe(classes=CLASSES, preprocess=Scale(2.0))
    return net


def test_the_network_takes_spectra():
    net = attach()
    assert net.input_spec.modality is net.info.modality is SPECTRUM
    assert net(torch.randn(1, 2, 2 * LENGTH))[1].attention.shape == (1, LENGTH // 2)  # of another length
    with pytest.raises(xl.errors.InputError, match=r"expected \(B,2,T\), got \(4, 3, 48\)"):
        net.walk(torch.zeros(4, 3, LENGTH))
    with pytest.raises(xl.errors.InputError, match="normalise them first"):
        net.walk(torch.zeros(4, 2, LENGTH, dtype=torch.int64))


@pytest.mark.slow
def test_every_verb(tmp_path):
    net, train, test = attach(), Spectra(192, 1), Spectra(96, 2)
    xl.fit(net, train, test, epochs=4, batch_size=32, learning_rate=1e-2, amp=False, progress=False)
    trace = xl.collect(net, test)
    policy = xl.calibrate(trace, max_accuracy_drop=0.05)
    report = xl.evaluate(trace, policy)
    assert report.accuracy > 0.6
    assert report.cost < 1
    pred = xl.predict(net, test.inputs, policy, attention=True)
    assert torch.equal(pred.exits, xl.route(trace, policy))
    faithfulness = xl.measure_faithfulness(net, test)
    assert faithfulness.deletion[-1] > faithfulness.deletion_random[-1]
    assert faithfulness.energy_in_mask is not None
    xl.save(net, policy, tmp_path / "bundle")
    again, policy = xl.load(tmp_path / "bundle", backbone=Convolutional())
    assert again.info.preprocess == Scale(2.0)
    torch.testing.assert_close(xl.predict(again, test.inputs, policy).probabilities, pred.probabilities)


def test_explanations():
    net, policy = attach().eval(), xl.Policy((0.0, 0.0))
    spectra = SPECTRUM.read(" ".join(["1"] * LENGTH), Scale(2.0)).expand(1, 2, LENGTH)
    for inputs in (spectra, spectra[0]):
        why = xl.explain(net, inputs, policy)
        assert [view.attention.shape for view in why.exits] == [(24,), (12,), (12,)]
        assert why.exits[0].top(1)[0].at < (24,)
        assert why._repr_html_().count("<svg") == 3
    with pytest.raises(xl.errors.InputError, match=r"a torch.Tensor \(C,T\), got str"):
        xl.explain(net, "spectra", policy)
