"""Backbones by name, and a small residual network of our own for images of 28 to 64 pixels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from exitlens.errors import BundleError, InputError, MissingExtraError, did_you_mean
from exitlens.types.inputs import MASK, Inputs
from exitlens.model.backbones.transformers import build_transformers


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm around a shortcut (arXiv 1512.03385, fig. 2), aligned when they halve the size.

    A strided 3x3 convolution centres output ``i`` on input ``2i``, half a cell off the pair of inputs it replaces; over
    three of them an attention map slides by half a cell off the object. A 4x4 convolution with stride 2 and an averaging
    shortcut (arXiv 1812.01187, ResNet-D) stay centred.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: 1 or 2.
        second_kernel: 3, or 1 to mix channels only and keep the receptive field small.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, second_kernel: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 4 if stride == 2 else 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, second_kernel, 1, second_kernel // 2, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2 or inputs != outputs:
            shrink: nn.Module = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
            self.shortcut = nn.Sequential(shrink, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:  # (B,inputs,H,W) -> (B,outputs,H/stride,W/stride)
        """Residual sum, rectified."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for images of 28 to 64 pixels (even sizes): a stem and four groups, ``layer1`` to ``layer4``.

    Early groups see little of the image (small receptive fields) and are cheap; the last one is deep and sees most of it.

    Args:
        num_classes: ``C``.
        in_channels: 1 for grey, 3 for colour.
        stem: channels after the stem (4x4, stride 2).
        widths: channels of the groups.
        blocks: residual blocks in each group.
        strides: of each group's first block.
        second_kernels: kernel of the second convolution in each group's blocks, 1 or 3.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        stem: int = 32,
        widths: Sequence[int] = (48, 96, 128, 128),
        blocks: Sequence[int] = (1, 1, 1, 3),
        strides: Sequence[int] = (1, 2, 1, 1),
        second_kernels: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem, 4, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        channels = stem
        for group, (width, count, stride, kernel) in enumerate(zip(widths, blocks, strides, second_kernels, strict=True), 1):
            layers = [ResidualBlock(channels, width, stride, kernel)]
            layers += [ResidualBlock(width, width, 1, kernel) for _ in range(count - 1)]
            self.add_module(f"layer{group}", nn.Sequential(*layers))
            channels = width
        self.groups = tuple(f"layer{group}" for group in range(1, len(widths) + 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (B,in_channels,H,W) -> (B,num_classes)
        """Logits of global average pooling and a linear classifier."""
        x = self.stem(x)
        for name in self.groups:
            x = self.get_submodule(name)(x)
        return self.fc(self.pool(x).flatten(1))  # type: ignore[no-any-return]


SMALL: dict[str, Callable[..., nn.Module]] = {"small": SmallResNet}


def build_backbone(
    source: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    config: dict[str, Any] | None = None,
    vocabulary: int | None = None,
) -> nn.Module:
    """Builds a backbone from its source.

    ``small``, ``torchvision:NAME``, ``timm:NAME`` (extra ``timm``), or ``hf:NAME`` (extra ``hf``): an image or text
    classifier of transformers from a directory, a model's name, or a model type such as ``hf:bert``.

    Args:
        source: for example ``"torchvision:resnet18"``.
        num_classes: outputs of the backbone's own classifier.
        in_channels: channels of the images; torchvision's networks take 3.
        pretrained: load the library's default weights (needs network access unless they are cached already).
        config: of a transformers model, instead of what the name stands for (a bundle has it).
        vocabulary: how many different tokens a text classifier with random weights shall know.

    Raises:
        InputError: for a source that does not exist.
    """
    if source in SMALL:
        if pretrained:
            raise InputError(f"pretrained: {source!r} has no pretrained weights: train it with exitlens fit")
        return SMALL[source](num_classes=num_classes, in_channels=in_channels)
    family, _, name = source.partition(":")
    if family == "timm" and name:
        return _timm(name, num_classes, in_channels, pretrained)
    if family == "hf" and (name or config):
        return build_transformers(name, num_classes, in_channels, pretrained, config, vocabulary)
    if family != "torchvision" or not name:
        raise InputError(
            "backbone: expected 'small', 'torchvision:NAME' (torchvision:resnet18), 'timm:NAME' or 'hf:DIRECTORY', got "
            f"{source!r}"
        )
    if in_channels != 3:
        raise InputError(f"backbone: {source} takes 3-channel images, the data has {in_channels}: use backbone 'small'")
    return _torchvision(name, num_classes, pretrained)


def _torchvision(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError("torchvision", "vision", f"backbone torchvision:{name}") from error
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(f"backbone: torchvision has no model {name!r}.{did_you_mean(name, known)}")
    if not pretrained:
        # exits take the place of auxiliary classifiers, which would be computed for nothing
        extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        plain: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
        return plain
    try:
        network: nn.Module = models.get_model(name, weights="DEFAULT")
    except OSError as error:  # urllib's errors are OSErrors
        raise InputError(
            f"pretrained: the weights of torchvision:{name} are not cached and cannot be downloaded ({error}): put the "
            "file into torch.hub's checkpoint folder, or train without --pretrained"
        ) from error
    classifier = network.get_submodule("fc") if hasattr(network, "fc") else None
    if isinstance(classifier, nn.Linear) and classifier.out_features != num_classes:
        network.fc = nn.Linear(classifier.in_features, num_classes)
    return network


def _timm(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "timm", f"backbone timm:{name}") from error
    if name.partition(".")[0] not in timm.list_models():
        raise InputError(f"backbone: timm has no model {name!r}.{did_you_mean(name, timm.list_models())}")
    try:
        made: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"pretrained: the weights of timm:{name} cannot be loaded ({error}): give a local file with --weights, or train "
            "without --pretrained"
        ) from error
    return made


def zeros_for(backbone: nn.Module, channels: int = 3, size: int = 0) -> Inputs:
    """An example for a backbone: an image of this size (0: 224), or ``size`` tokens (0: 64) if its forward takes ids."""
    if "input_ids" not in inspect.signature(backbone.forward).parameters:
        return torch.zeros(1, channels, size or 224, size or 224)
    ids = torch.zeros(1, size or 64, dtype=torch.int64)
    return {"input_ids": ids, MASK: torch.ones_like(ids)}


def load_weights(backbone: nn.Module, path: Path | str) -> None:
    """Loads a local state dict (``.safetensors``, or a PyTorch file read with ``weights_only=True``) into a backbone.

    Raises:
        BundleError: for a file that is missing or damaged, or whose tensors do not fit (all are named before any is
            written).
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"weights: no file {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors raise many kinds for damaged files
        raise BundleError(f"weights: {path} cannot be read as a state dict ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BundleError(f"weights: {path} is no state dict of tensors: save module.state_dict()")
    mine = backbone.state_dict()
    missing, extra = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
    shapes = [name for name in mine.keys() & state.keys() if mine[name].shape != state[name].shape]
    if missing or extra or shapes:
        raise BundleError(
            f"weights: {path} does not fit this backbone: missing {missing[:3]}, unexpected {extra[:3]}, other shapes "
            f"{sorted(shapes)[:3]}"
        )
    backbone.load_state_dict(state)
