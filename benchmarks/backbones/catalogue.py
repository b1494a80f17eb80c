"""The backbones that are tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torchvision import models

import exitlens as xl
from benchmarks.backbones.networks import convolutional, features, sequential, volumes

CLASSES = 5
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Backbone:
    """One that is tried.

    Attributes:
        family: of the networks of its kind.
        source: by which :func:`exitlens.build_backbone` knows it, or what it is called here.
        size: pixels a side of an image, tokens of a text, or the shape of a sample (of each of several inputs, by name).
        make: builds what has no source; ``None``: the source does.
        groups: of a vector's features.
        at: early exits, as :func:`exitlens.attach` takes them.
    """

    family: str
    source: str
    size: int | Shape | Mapping[str, Shape]
    make: Callable[[], nn.Module] | None = field(default=None, compare=False)
    groups: Mapping[str, list[int]] | None = None
    at: int | tuple[str, ...] = 3

    @property
    def inputs(self) -> str:
        """The kind of its inputs, as the page calls it."""
        if isinstance(self.size, Mapping):
            return "Several inputs"
        return "Images and texts" if isinstance(self.size, int) else KINDS[len(self.size)]

    def build(self) -> nn.Module:
        """With random weights, always the same ones."""
        torch.manual_seed(0)
        return xl.build_backbone(self.source, CLASSES) if self.make is None else self.make()


KINDS = {2: "Series", 4: "Volumes", 1: "Vectors"}  # by the axes of a sample
_AUXILIARY: dict[str, Callable[[], nn.Module]] = {  # sources by name build these without their auxiliary outputs
    "googlenet(aux_logits=True)": lambda: models.googlenet(num_classes=5, aux_logits=True, init_weights=False),
    "inception_v3(aux_logits=True)": lambda: models.inception_v3(num_classes=5, aux_logits=True, init_weights=False),
}
_IMAGES_AND_TEXTS = [  # family, source, pixels a side (tokens of a text)
    ("small (ours)", "small", 40),
    ("ResNet", "torchvision:resnet18", 64),
    ("ResNet", "torchvision:resnet50", 64),
    ("ResNeXt", "torchvision:resnext50_32x4d", 64),
    ("Wide ResNet", "torchvision:wide_resnet50_2", 64),
    ("DenseNet", "torchvision:densenet121", 64),
    ("VGG", "torchvision:vgg11", 64),
    ("VGG", "torchvision:vgg11_bn", 64),
    ("AlexNet", "torchvision:alexnet", 128),
    ("SqueezeNet", "torchvision:squeezenet1_1", 64),
    ("ShuffleNet v2", "torchvision:shufflenet_v2_x1_0", 64),
    ("MNASNet", "torchvision:mnasnet0_5", 64),
    ("MobileNet v2", "torchvision:mobilenet_v2", 64),
    ("MobileNet v3", "torchvision:mobilenet_v3_small", 64),
    ("MobileNet v3", "torchvision:mobilenet_v3_large", 64),
    ("EfficientNet", "torchvision:efficientnet_b0", 64),
    ("EfficientNet v2", "torchvision:efficientnet_v2_s", 64),
    ("RegNet", "torchvision:regnet_x_400mf", 64),
    ("RegNet", "torchvision:regnet_y_400mf", 64),
    ("ConvNeXt", "torchvision:convnext_tiny", 64),
    ("GoogLeNet", "torchvision:googlenet", 96),
    ("GoogLeNet (auxiliary outputs)", "googlenet(aux_logits=True)", 96),
    ("Inception v3", "torchvision:inception_v3", 160),
    ("Inception v3 (auxiliary outputs)", "inception_v3(aux_logits=True)", 299),
    ("ViT", "torchvision:vit_b_16", 224),
    ("Swin", "torchvision:swin_t", 64),
    ("Swin v2", "torchvision:swin_v2_t", 64),
    ("ResNet (timm)", "timm:resnet18", 64),
    ("EfficientNet-Lite", "timm:efficientnet_lite0", 64),
    ("ViT (timm)", "timm:vit_tiny_patch16_224", 224),
    ("ViT with registers", "timm:vit_small_patch14_reg4_dinov2", 518),
    ("DeiT", "timm:deit_tiny_patch16_224", 224),
    ("DeiT, distilled", "timm:deit_tiny_distilled_patch16_224", 224),
    ("Swin (timm)", "timm:swin_tiny_patch4_window7_224", 224),
    ("MLP-Mixer", "timm:mixer_s32_224", 224),
    ("PoolFormer", "timm:poolformer_s12", 64),
    ("MobileViT", "timm:mobilevit_xxs", 256),
    ("MobileViT v2", "timm:mobilevitv2_050", 256),
    ("LeViT", "timm:levit_128s", 224),
    ("CaiT", "timm:cait_xxs24_224", 224),
    ("Twins", "timm:twins_svt_small", 224),
    ("EfficientFormer", "timm:efficientformer_l1", 224),
    ("ConvMixer", "timm:convmixer_768_32", 64),
    ("gMLP", "timm:gmlp_s16_224", 224),
    ("ConvNeXt (timm)", "timm:convnext_atto", 64),
    ("RegNet (timm)", "timm:regnety_002", 64),
    ("GhostNet", "timm:ghostnet_100", 64),
    ("ResNeSt", "timm:resnest14d", 64),
    ("RepVGG", "timm:repvgg_a0", 64),
    ("HRNet", "timm:hrnet_w18_small", 64),
    ("DarkNet", "timm:darknet53", 64),
    ("CSPNet", "timm:cspresnet50", 64),
    ("BERT", "hf:bert", 32),
    ("DistilBERT", "hf:distilbert", 32),
    ("RoBERTa", "hf:roberta", 32),
    ("ELECTRA", "hf:electra", 32),
    ("DeBERTa", "hf:deberta", 32),
    ("ALBERT", "hf:albert", 32),
    ("ViT (transformers)", "hf:vit", 224),
    ("DeiT (transformers)", "hf:deit", 224),
    ("DINOv2 (transformers)", "hf:dinov2", 224),
    ("Swin (transformers)", "hf:swin", 224),
    ("ConvNeXt (transformers)", "hf:convnext", 64),
    ("MobileViT (transformers)", "hf:mobilevit", 256),
    ("ResNet (transformers)", "hf:resnet", 64),
    ("FocalNet", "hf:focalnet", 224),
    ("MaxViT", "torchvision:maxvit_t", 224),
    ("MaxViT (timm)", "timm:maxvit_rmlp_pico_rw_256", 256),
]
FIRST, LAST = (3, 128), (128, 3)  # series with channels first and last
SHORT = (32, 3)  # of recurrent layers, which are exported step by step
CLIP, SCAN = (3, 8, 32, 32), (1, 16, 24, 24)  # volumes
IMAGE_AND_VECTOR = {"image": (3, 48, 48), "vector": (12,)}
SERIES_AND_VECTOR = {"series": (3, 128), "vector": (12,)}
INSIDE = ("modules_.1", "modules_.2", "modules_.4")  # residual connections: what goes around crosses, too
GROUPS = {"first": list(range(8)), "second": list(range(8, 20)), "third": list(range(20, 32))}


def _make(network: Callable[..., nn.Module], *sizes: int, **more: object) -> Callable[[], nn.Module]:
    return partial(network, *sizes, CLASSES, **more)


def _video(name: str) -> Callable[[], nn.Module]:
    return partial(models.get_model, name, weights=None, num_classes=CLASSES)


_OTHERS = [
    Backbone("FCN", "FCN", FIRST, _make(convolutional.FCN, 3)),
    Backbone("ResNet", "ResNet1d", FIRST, _make(convolutional.ResNet1d, 3)),
    Backbone("InceptionTime", "InceptionTime", FIRST, _make(convolutional.InceptionTime, 3), at=INSIDE),
    Backbone("TCN", "TCN", FIRST, _make(convolutional.TCN, 3)),
    Backbone("Transformer", "Transformer", LAST, _make(sequential.Transformer, 3, steps=128)),
    Backbone("Transformer", "Transformer, class token", LAST, _make(sequential.Transformer, 3, steps=128, class_token=True)),
    Backbone("Patches", "PatchTransformer", FIRST, _make(sequential.PatchTransformer, 3, steps=128)),
    Backbone("Patches", "UnfoldedPatches", FIRST, _make(sequential.UnfoldedPatches, 3, steps=128)),
    Backbone("GRU", "GRU", SHORT, _make(sequential.Recurrent, 3, kind=nn.GRU)),
    Backbone("LSTM", "LSTM, mean", SHORT, _make(sequential.Recurrent, 3, kind=nn.LSTM, use_mean=True)),
    Backbone("GRU", "GRU, both ways", SHORT, _make(sequential.Recurrent, 3, kind=nn.GRU, both_ways=True, use_mean=True)),
    Backbone("Convolutions, then LSTM", "ConvolutionsThenLSTM", (3, 64), _make(sequential.ConvolutionsThenLSTM, 3)),
    Backbone("wav2vec 2.0", "Wav2Vec2", (1, 1600), partial(sequential.OfTransformers, "Wav2Vec2", CLASSES)),
    Backbone("HuBERT", "Hubert", (1, 1600), partial(sequential.OfTransformers, "Hubert", CLASSES)),
    Backbone("ResNet", "ResNet3d", SCAN, _make(volumes.ResNet3d, 1)),
    Backbone("ResNet", "torchvision r3d_18", CLIP, _video("r3d_18")),
    Backbone("Swin", "torchvision swin3d_t", CLIP, _video("swin3d_t")),
    Backbone("MViT", "MViT of 4 blocks", CLIP, volumes.make_mvit),
    Backbone("MLP", "MLP", (32,), _make(features.MLP, 32)),
    Backbone("MLP", "MLP, groups", (32,), _make(features.MLP, 32), GROUPS),
    Backbone("MLP", "ResidualMLP", (32,), _make(features.ResidualMLP, 32)),
    Backbone("FT-Transformer", "FeatureTokens", (32,), _make(features.FeatureTokens, 32)),
    Backbone("FT-Transformer", "FeatureTokens, class token", (32,), _make(features.FeatureTokens, 32, class_token=True)),
    Backbone("Image and vector", "ImageAndVector", IMAGE_AND_VECTOR, _make(features.ImageAndVector, 3, 12)),
    Backbone("Series and vector", "SeriesAndVector", SERIES_AND_VECTOR, _make(features.SeriesAndVector, 3, 12)),
]
BACKBONES = [*(Backbone(*one, _AUXILIARY.get(one[1])) for one in _IMAGES_AND_TEXTS), *_OTHERS]
