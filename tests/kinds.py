"""A small network for each kind of input, and data that it can learn from."""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from exitlens.types.inputs import Inputs, map_inputs


class Recurrent(nn.Module):
    """Three recurrent layers over ``(B,T,C)``."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.GRU(2, 12, batch_first=True), nn.GRU(12, 12, batch_first=True)
        self.third = nn.LSTM(12, 12, batch_first=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        x, _ = self.first(x)
        x, _ = self.second(x)
        x, _ = self.third(x)
        return self.fc(x[:, -1])


class Convolutional(nn.Module):
    """Three convolutions over so many axes."""

    def __init__(self, channels=2, axes=1):
        super().__init__()
        layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.first = nn.Sequential(layer(channels, 8, 4, 2, 1), nn.ReLU())
        self.second = nn.Sequential(layer(8, 12, 4, 2, 1), nn.ReLU())
        self.third = nn.Sequential(layer(12, 12, 3, 1, 1), nn.ReLU())
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        return self.fc(self.third(self.second(self.first(x))).flatten(2).mean(2))


class Perceptron(nn.Module):
    """Three layers over vectors."""

    def __init__(self, features=8):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(features, 16), nn.ReLU())
        self.second, self.third = (nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(2))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.third(self.second(self.first(x))))


class Both(nn.Module):
    """An image, and a vector that is added to what the network makes of it."""

    def __init__(self):
        super().__init__()
        body = Convolutional(1, 2)
        self.first, self.second, self.third, self.fc = body.first, body.second, body.third, body.fc
        self.vector = nn.Linear(4, 12)

    def forward(self, image, vector):
        x = self.second(self.first(image)) + self.vector(vector)[:, :, None, None]
        return self.fc(self.third(x).mean((2, 3)))


class Samples(Dataset):
    """Inputs in memory, of three classes."""

    preprocess = groups = None

    def __init__(self, inputs: Inputs, labels: Tensor, masks: Tensor | None = None):
        self.inputs, self.labels, self.masks, self.classes = inputs, labels, masks, ("a", "b", "c")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return map_inputs(self.inputs, lambda t: t[index]), self.labels[index]

    def subset(self, rows) -> Self:
        return Samples(map_inputs(self.inputs, lambda t: t[rows]), self.labels[rows])

    def first(self, count) -> Self:
        return self.subset(torch.arange(min(count, len(self))))


class Kind(NamedTuple):
    """A network, the shapes of its inputs, by name where there are several, the axis that says the class, and groups."""

    build: type[nn.Module] | object
    shapes: dict[str, tuple[int, ...]]
    axis: int = 1
    groups: dict[str, list[int]] | None = None

    def make(self, count: int, seed: int = 0) -> Samples:
        """Noise; the class is in the first channel (or step, or feature) of the first input."""
        rng = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 3
        inputs = {name: torch.randn(count, *shape, generator=rng) for name, shape in self.shapes.items()}
        first = next(iter(inputs.values()))
        first.select(self.axis, 0).add_((2.0 * labels - 2).view(-1, *[1] * (first.ndim - 2)))
        return Samples(inputs if len(inputs) > 1 else first, labels)


KINDS = {
    "series": Kind(Convolutional, {"x": (2, 32)}),
    "series, time first": Kind(Recurrent, {"x": (32, 2)}, axis=2),
    "volume": Kind(lambda: Convolutional(1, 3), {"x": (1, 8, 8, 8)}),
    "vector": Kind(Perceptron, {"x": (8,)}),
    "vector, groups": Kind(Perceptron, {"x": (8,)}, groups={"says": [0, 1], "noise": [2, 3, 4], "more": [5, 6, 7]}),
    "several": Kind(Both, {"image": (1, 16, 16), "vector": (4,)}),
}
