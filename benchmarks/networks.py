"""Networks for series, vectors and several inputs, written as users write them; those for images, texts and volumes come by name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

# Convolutional networks of series (B,C,T): those of arXiv 1611.06455, 1909.04939 and 1803.01271


def make_block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())


class Residual1d(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(make_block(inputs, outputs, 7, stride), make_block(outputs, outputs, 5))
        self.last = nn.Sequential(nn.Conv1d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm1d(outputs))
        self.around = nn.Sequential(nn.Conv1d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm1d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.inner(x)) + self.around(x))


class ResNet1d(nn.Module):
    """Residual blocks of three convolutions (arXiv 1611.06455), each of half the steps of the one before but the first."""

    def __init__(self, channels: int, classes: int, widths: Sequence[int] = (64, 128, 128, 128)) -> None:
        super().__init__()
        sizes = zip((channels, *widths), widths, range(len(widths)), strict=False)
        self.blocks = nn.ModuleList(Residual1d(inputs, outputs, min(i + 1, 2)) for inputs, outputs, i in sizes)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean(2))


class InceptionModule(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(inputs, width, 1, bias=False)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, k, padding=k // 2, bias=False) for k in (9, 19, 39))
        self.pooled = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(inputs, width, 1, bias=False))
        self.norm = nn.BatchNorm1d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.bottleneck(x)
        return torch.relu(self.norm(torch.cat([*(convolve(narrow) for convolve in self.convolutions), self.pooled(x)], 1)))


class InceptionTime(nn.Module):
    """Six modules of convolutions of three lengths, with a residual connection around every three (arXiv 1909.04939)."""

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.modules_ = nn.ModuleList(InceptionModule(4 * width if i else channels, width) for i in range(6))
        norm = nn.BatchNorm1d(4 * width)
        self.shortcut1 = nn.Sequential(nn.Conv1d(channels, 4 * width, 1, bias=False), norm)
        self.shortcut2 = nn.BatchNorm1d(4 * width)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        start = self.shortcut1(x)
        for i, module in enumerate(self.modules_):
            x = module(x)
            if i in (2, 5):
                x = torch.relu(x + start)
                start = self.shortcut2(x) if i == 2 else start
        return self.classifier(x.mean(2))


class Causal(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.chop = 2 * dilation
        convolutions = (nn.Conv1d(n, outputs, 3, padding=self.chop, dilation=dilation) for n in (inputs, outputs))
        self.first, self.second = map(nn.utils.parametrizations.weight_norm, convolutions)
        self.around = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(torch.relu(self.first(x)[..., : -self.chop]))
        y = self.dropout(torch.relu(self.second(y)[..., : -self.chop]))
        return torch.relu(y + self.around(x))


class TCN(nn.Module):
    """Causal convolutions with growing gaps, weight normalisation, and the last step's answer (arXiv 1803.01271)."""

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Causal(width if i else channels, width, 2**i) for i in range(5)))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        return self.classifier(self.layers(x)[:, :, -1])


# Recurrent networks and transformers of series, most of which take (B,T,C)


class Recurrent(nn.Module):
    """Layers of :class:`torch.nn.GRU` or :class:`torch.nn.LSTM`; the answer is read off the last step, or the mean."""

    def __init__(
        self, channels: int, classes: int, kind: type[nn.GRU | nn.LSTM], both_ways: bool = False, use_mean: bool = False
    ) -> None:
        super().__init__()
        width = 96 * (1 + both_ways)
        options = {"batch_first": True, "bidirectional": both_ways}
        self.layer1, self.layer2 = kind(channels, 96, **options), kind(width, 96, **options)
        self.layer3, self.layer4 = kind(width, 96, **options), kind(width, 96, **options)
        self.classifier, self.use_mean = nn.Linear(width, classes), use_mean

    def forward(self, x: Tensor) -> Tensor:  # (B,T,C) -> (B,classes)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x, _ = layer(x)
        return self.classifier(x.mean(1) if self.use_mean else x[:, -1])


class Encoder(nn.Module):
    """Blocks of a transformer over tokens, with or without learned positions and a class token in front."""

    def __init__(self, width: int, classes: int, positions: int = 0, class_token: bool = False) -> None:
        super().__init__()
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width)) if class_token else None
        self.position = nn.Parameter(0.02 * torch.randn(1, positions + class_token, width)) if positions else None
        blocks = (nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, batch_first=True, norm_first=True) for _ in range(4))
        self.layers, self.norm, self.classifier = nn.ModuleList(blocks), nn.Identity(), nn.Linear(width, classes)

    def classify(self, x: Tensor) -> Tensor:  # (B,N,D) -> (B,classes)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        if self.position is not None:
            x = x + self.position
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return self.classifier(x.mean(1) if self.token is None else x[:, 0])


class Transformer(Encoder):
    """A token for every step."""

    def __init__(self, channels: int, classes: int, steps: int, class_token: bool = False, width: int = 64) -> None:
        super().__init__(width, classes, steps, class_token)
        self.embed, self.norm = nn.Linear(channels, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:  # (B,T,C) -> (B,classes)
        return self.classify(self.embed(x))


class UnfoldedPatches(Encoder):
    """Overlapping patches by ``unfold`` and a linear layer, each with all channels (as PatchTST's, arXiv 2211.14730)."""

    def __init__(self, channels: int, classes: int, steps: int, patch: int = 16, stride: int = 8, width: int = 64) -> None:
        super().__init__(width, classes, (steps - patch) // stride + 1)
        self.patch, self.stride, self.embed = patch, stride, nn.Linear(channels * patch, width)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        x = x.unfold(2, self.patch, self.stride)  # (B,C,N,patch)
        return self.classify(self.embed(x.transpose(1, 2).flatten(2)))


class Wav2Vec2(nn.Module):
    """The classifier of waveforms ``(B,T)`` from the package transformers, as a network of series of one channel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

        small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
        convolutions = {"conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2)}
        rest = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 32}
        config = Wav2Vec2Config(**small, **convolutions, **rest, num_labels=classes)
        config.mask_time_prob = config.layerdrop = 0.0  # both decide by NumPy's random numbers, batch by batch
        self.model = Wav2Vec2ForSequenceClassification(config)

    def forward(self, x: Tensor) -> Tensor:  # (B,1,T) -> (B,classes)
        return self.model(input_values=x[:, 0]).logits


# Networks of vectors (B,F), and of several inputs of which one is a vector


class MLP(nn.Module):
    def __init__(self, features: int, classes: int, width: int = 384) -> None:
        super().__init__()
        sizes = (features, *(width,) * 4)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.1)) for a, b in pairwise(sizes))
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,F) -> (B,classes)
        return self.classifier(self.layers(x))


class FeatureTokens(Encoder):
    """A token for every feature, then a transformer (FT-Transformer, arXiv 2106.11959)."""

    def __init__(self, features: int, classes: int, width: int = 48, class_token: bool = False) -> None:
        super().__init__(width, classes, class_token=class_token)
        self.weight = nn.Parameter(torch.randn(features, width))
        self.bias = nn.Parameter(0.1 * torch.randn(features, width))

    def forward(self, x: Tensor) -> Tensor:  # (B,F) -> (B,classes)
        return self.classify(x[..., None] * self.weight + self.bias)


class ImageAndVector(nn.Module):
    """Convolutions on an image, scaled and shifted by what a vector says (FiLM, arXiv 1709.07871)."""

    def __init__(self, channels: int, features: int, classes: int, width: int = 32) -> None:
        super().__init__()
        sizes = ((channels, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1), (2 * width, 4 * width, 2))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, s, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b, s in sizes
        )
        self.scale, self.shift = nn.Linear(features, 2 * width), nn.Linear(features, 2 * width)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:  # (B,C,H,W), (B,F) -> (B,classes)
        x = self.blocks[1](self.blocks[0](image))
        x = x * (1 + self.scale(vector)[..., None, None]) + self.shift(vector)[..., None, None]
        return self.classifier(self.blocks[3](self.blocks[2](x)).mean((2, 3)))
