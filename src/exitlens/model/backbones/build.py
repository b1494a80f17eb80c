"""Backbones by name, from our small network, torchvision, timm and transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from exitlens.errors import InputError, import_extra, suggest
from exitlens.modalities import IMAGE, SERIES, TEXT, VECTOR, VOLUME, Modality, find_reader
from exitlens.model.backbones.matching import Say, tell_misfits
from exitlens.model.backbones.small import build_small
from exitlens.model.backbones.transformers import build_transformers
from exitlens.model.backbones.weights import load_state
from exitlens.model.info import NetworkInfo
from exitlens.types.inputs import Inputs

_SMALL = (IMAGE, SERIES, VOLUME, VECTOR)


def build_backbone(
    source: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    config: dict[str, Any] | None = None,
    vocabulary: int | None = None,
    say: Say | None = None,
    modality: Modality = IMAGE,
) -> nn.Module:
    """Builds a backbone from its source.

    ``small``, ``torchvision:NAME``, ``timm:NAME`` (extra ``timm``), or ``hf:NAME`` (extra ``hf``): an image or text
    classifier of transformers from a directory, a model's name, or a model type such as ``hf:bert``.

    Args:
        num_classes: outputs of the backbone's own classifier.
        in_channels: channels of the images, series or volumes, or features of vectors; torchvision's networks take 3.
        pretrained: load the library's default weights (needs network access unless they are cached). A classifier for
            another number of classes is made anew.
        config: of a transformers model, instead of what the name stands for (from a bundle).
        vocabulary: size of the vocabulary of a text classifier with random weights.
        say: called with a line for each kind of tensor that pretrained weights did not fit.
        modality: what the backbone is for; ``small`` is there for images, series, volumes and vectors.

    Raises:
        InputError: for a source that does not exist, or is not for that kind of input.

    Examples:
        >>> backbone = xl.build_backbone("small", num_classes=10)
        >>> backbone(images).shape
        torch.Size([8, 10])
    """
    if source == "small":
        if pretrained:
            raise InputError("pretrained: 'small' has no pretrained weights: train it with exitlens fit")
        if modality not in _SMALL:
            raise InputError(f"backbone: 'small' does not take {modality.plural}")
        return build_small(num_classes, in_channels, len(modality.axes) - 1)
    if modality not in (IMAGE, TEXT):
        raise InputError(f"backbone: {source} does not take {modality.plural}: use 'small', or a module of your own")
    family, _, name = source.partition(":")
    if family == "timm" and name:
        return _build_timm(name, num_classes, in_channels, pretrained, say)
    if family == "hf" and (name or config):
        return build_transformers(name, num_classes, in_channels, pretrained, config, vocabulary, say)
    if family != "torchvision" or not name:
        raise InputError(
            "backbone: expected 'small', 'torchvision:NAME' (torchvision:resnet18), 'timm:NAME' or 'hf:DIRECTORY', got "
            f"{source!r}"
        )
    if in_channels != 3:
        raise InputError(f"backbone: {source} takes 3-channel images, the data has {in_channels}: use backbone 'small'")
    return _build_torchvision(name, num_classes, pretrained, say)


def rebuild_backbone(info: NetworkInfo) -> nn.Module:
    """Builds the backbone that a network was attached to, with random weights, from what its bundle records."""
    return build_backbone(info.source, info.num_classes, info.channels, config=info.config, modality=info.modality)


def _build_torchvision(name: str, num_classes: int, pretrained: bool, say: Say | None) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InputError(f"backbone: torchvision has no model {name!r}.{suggest(name, known)}")
    # exits replace the auxiliary classifiers
    extra = {"aux_logits": False, "init_weights": not pretrained} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    if not pretrained:
        return network
    try:
        state = models.get_model_weights(name)["DEFAULT"].get_state_dict(progress=False, check_hash=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise InputError(
            f"pretrained: the weights of torchvision:{name} are not cached and cannot be downloaded ({error}): put the "
            "file into torch.hub's checkpoint folder, or train without --pretrained"
        ) from error
    tell_misfits(load_state(network, state, f"torchvision:{name}"), say)
    return network


def _build_timm(name: str, num_classes: int, in_channels: int, pretrained: bool, say: Say | None) -> nn.Module:
    timm = import_extra("timm", "timm", f"backbone timm:{name}")
    if name.partition(".")[0] not in timm.list_models():
        raise InputError(f"backbone: timm has no model {name!r}.{suggest(name, timm.list_models())}")
    try:
        made: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"pretrained: the weights of timm:{name} cannot be loaded ({error}): give a local file with --init-weights, or "
            "train without --pretrained"
        ) from error
    theirs = (getattr(made, "pretrained_cfg", None) or {}).get("num_classes", num_classes)
    if pretrained and theirs != num_classes and say is not None:
        say(f"weights: timm:{name}: the classifier for {theirs} classes is made anew, for {num_classes}")
    return made


def make_example(backbone: nn.Module, channels: int = 3, size: int = 0) -> Inputs:
    """An example input for a backbone: an image of ``size`` (0: 224), or as many tokens (0: 64) if it takes ids."""
    return find_reader(backbone.forward).make_example(channels, size)
