"""Recurrent networks and transformers of series, most of which take ``(B,T,C)``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.backbones.networks.convolutional import make_block


class Recurrent(nn.Module):
    """Layers of :class:`torch.nn.GRU` or :class:`torch.nn.LSTM`; the answer is read off the last step, or the mean."""

    def __init__(
        self, channels: int, classes: int, kind: type[nn.GRU | nn.LSTM], both_ways: bool = False, use_mean: bool = False
    ) -> None:
        super().__init__()
        width = 96 * (1 + both_ways)
        more = {"batch_first": True, "bidirectional": both_ways}
        self.layer1, self.layer2 = kind(channels, 96, **more), kind(width, 96, **more)
        self.layer3, self.layer4 = kind(width, 96, **more), kind(width, 96, **more)
        self.classifier, self.use_mean = nn.Linear(width, classes), use_mean

    def forward(self, x: Tensor) -> Tensor:  # (B,T,C) -> (B,classes)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x, _ = layer(x)
        return self.classifier(x.mean(1) if self.use_mean else x[:, -1])


class ConvolutionsThenLSTM(nn.Module):
    """Convolutions, then recurrent layers, as DeepConvLSTM for wearable sensors (Ordonez and Roggen, 2016)."""

    def __init__(self, channels: int, classes: int, width: int = 96) -> None:
        super().__init__()
        self.conv1, self.conv2 = make_block(channels, width, 5), make_block(width, width, 5, 2)
        self.lstm1, self.lstm2 = (nn.LSTM(width, width, batch_first=True) for _ in range(2))
        self.between, self.dropout, self.classifier = nn.Dropout(0.2), nn.Dropout(0.2), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        x = self.conv2(self.conv1(x)).transpose(1, 2)
        x, _ = self.lstm1(x)
        x, _ = self.lstm2(self.between(x))
        return self.classifier(self.dropout(x[:, -1]))


def make_layers(width: int, count: int, norm_first: bool = True) -> nn.ModuleList:
    """PyTorch's encoder layers."""
    more = {"batch_first": True, "norm_first": norm_first}
    return nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, **more) for _ in range(count))


class Transformer(nn.Module):
    """A token for every step, with or without a class token in front."""

    def __init__(self, channels: int, classes: int, steps: int, class_token: bool = False, width: int = 64) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(channels, width), make_layers(width, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.position = nn.Parameter(0.02 * torch.randn(1, steps + class_token, width))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,T,C) -> (B,classes)
        x = self.embed(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.position
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return self.classifier(x.mean(1) if self.token is None else x[:, 0])


class PatchTransformer(nn.Module):
    """A token for every patch of all channels: patches as in arXiv 2211.14730, channels mixed as in ViT."""

    def __init__(self, channels: int, classes: int, steps: int, patch: int = 8, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv1d(channels, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, steps // patch, width))
        self.layers, self.classifier = make_layers(width, 4, norm_first=False), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        x = self.patches(x).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x.mean(1))


class UnfoldedPatches(nn.Module):
    """Overlapping patches by ``unfold`` and a linear layer, each with all channels (as PatchTST's, arXiv 2211.14730)."""

    def __init__(self, channels: int, classes: int, steps: int, patch: int = 16, stride: int = 8, width: int = 64) -> None:
        super().__init__()
        self.patch, self.stride = patch, stride
        self.embed = nn.Linear(channels * patch, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, (steps - patch) // stride + 1, width))
        self.layers, self.classifier = make_layers(width, 4), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,T) -> (B,classes)
        x = x.unfold(2, self.patch, self.stride)  # (B,C,N,patch)
        x = self.embed(x.transpose(1, 2).flatten(2)) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x.mean(1))


class OfTransformers(nn.Module):
    """A classifier of waveforms ``(B,T)`` from the package transformers, as a network of series of one channel."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        import transformers

        small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
        convolutions = {"conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2)}
        more = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 32}
        config = getattr(transformers, f"{name}Config")(**small, **convolutions, **more, num_labels=classes)
        config.mask_time_prob = config.layerdrop = 0.0  # both decide by NumPy's random numbers, batch by batch
        self.model = getattr(transformers, f"{name}ForSequenceClassification")(config)

    def forward(self, x: Tensor) -> Tensor:  # (B,1,T) -> (B,classes)
        return self.model(input_values=x[:, 0]).logits
