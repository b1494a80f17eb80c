"""A modality of the test's own, spectra (B,C,T), goes through every verb: it is one class, and one entry in MODALITIES."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pytest
import torch
from torch import Tensor, nn

import exitlens as xl
from exitlens import modalities
from exitlens.data.sets import SampleSet
from exitlens.modalities.base import Modality


@dataclass(frozen=True)
class Scale:
    """How raw series become inputs: divided by one number."""

    by: float = 1.0

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        return cls(**values)


class Series(Modality):
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


SERIES = Series()
LENGTH, CLASSES = 48, ("flat", "early", "late")


class ConvNet(nn.Module):
    """Three one-dimensional convolutions, the first two of stride 2."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv1d(2, 8, 5, 2, 2), nn.BatchNorm1d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv1d(8, 12, 5, 2, 2), nn.BatchNorm1d(12), nn.ReLU())
        self.c = nn.Sequential(nn.Conv1d(12, 16, 3, 1, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(16, len(CLASSES))

    def forward(self, x):
        return self.fc(self.pool(self.c(self.b(self.a(x)))).flatten(1))


class SeriesSet(SampleSet):
    """Noise, with a bump in the first or second half; ``masks`` is where it is."""

    by_sample = (*SampleSet.by_sample, "inputs")
    modality, classes, preprocess, inputs, groups = SERIES, CLASSES, Scale(2.0), None, None

    def __init__(self, inputs: Tensor, labels: Tensor, masks: Tensor):
        self.inputs, self.labels, self.masks = inputs, labels, masks

    def __getitem__(self, index):
        return self.inputs[index], self.labels[index]


def make_series(count: int, seed: int) -> SeriesSet:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    start = (labels - 1) * (LENGTH // 2) + torch.randint(4, 12, (count,), generator=rng)
    time = torch.arange(LENGTH)
    masks = (labels > 0)[:, None] & (time >= start[:, None]) & (time < start[:, None] + 8)
    noise = 0.3 * torch.randn(count, 2, LENGTH, generator=rng)
    noise[:, 1] += time < LENGTH // 2  # which half it is
    return SeriesSet(noise + 2 * masks[:, None] * torch.tensor([1.0, 0.0])[:, None], labels, masks)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(modalities, "MODALITIES", (SERIES, *modalities.MODALITIES))  # before the library's own


def attach() -> xl.ExitNet:
    torch.manual_seed(0)
    net = xl.attach(ConvNet(), ["a", "b"], 3, make_series(1, 0).inputs)
    net.describe(classes=CLASSES, preprocess=Scale(2.0))
    return net


def test_the_network_attends_over_time():
    net = attach()
    assert net.input_spec.modality is net.info.modality is SERIES
    outs = net(torch.randn(4, 2, LENGTH))
    assert [tuple(out.attention.shape) for out in outs] == [(4, 24), (4, 12), (4, 12)]
    assert [tuple(out.evidence.shape) for out in outs] == [(4, 3, 24), (4, 3, 12), (4, 3, 12)]
    for out in outs:
        torch.testing.assert_close(out.attention.sum(1), torch.ones(4))
    assert net(torch.randn(1, 2, 2 * LENGTH))[0].attention.shape == (1, LENGTH)  # series of another length
    with pytest.raises(xl.errors.InputError, match=r"expected \(B,2,T\), got \(4, 3, 48\)"):
        net.walk(torch.zeros(4, 3, LENGTH))
    with pytest.raises(xl.errors.InputError, match="normalise them first"):
        net.walk(torch.zeros(4, 2, LENGTH, dtype=torch.int64))


def test_every_verb(tmp_path):
    net, train, test = attach(), make_series(192, 1), make_series(96, 2)
    xl.fit(net, train, test, epochs=4, batch_size=32, learning_rate=1e-2, amp=False, progress=False)
    trace = xl.collect(net, test)
    policy = xl.calibrate(trace, max_accuracy_drop=0.05)
    report = xl.evaluate(trace, policy)
    assert report.accuracy > 0.6
    assert report.cost < 1
    pred = xl.predict(net, test.inputs, policy, attention=True)
    assert torch.equal(pred.exits, xl.route(trace, policy))
    found = xl.measure_faithfulness(net, test)
    assert found.deletion[-1] > found.deletion_random[-1]
    assert found.energy_in_mask is not None
    xl.save(net, policy, tmp_path / "bundle")
    again, policy = xl.load(tmp_path / "bundle", backbone=ConvNet())
    assert again.info.preprocess == Scale(2.0)
    torch.testing.assert_close(xl.predict(again, test.inputs, policy).probabilities, pred.probabilities)


def test_explanations():
    net, policy = attach().eval(), xl.Policy((0.0, 0.0))
    series = SERIES.read(" ".join(["1"] * LENGTH), Scale(2.0)).expand(1, 2, LENGTH)
    for inputs in (series, series[0]):
        why = xl.explain(net, inputs, policy)
        assert [view.attention.shape for view in why.exits] == [(24,), (12,), (12,)]
        assert why.exits[0].top(1)[0].at < (24,)
        assert why._repr_html_().count("<svg") == 3
    with pytest.raises(xl.errors.InputError, match=r"a torch.Tensor \(C,T\), got str"):
        xl.explain(net, "series", policy)


def test_tuned_networks_say_the_same():
    net, inputs = attach().eval(), make_series(24, 3).inputs
    policy = xl.Policy((0.4, 0.4))
    expected = xl.predict(net, inputs, policy)
    net.tuning = xl.Tuning(micro_batch=8)
    assert torch.equal(xl.predict(net, inputs, policy).exits, expected.exits)
