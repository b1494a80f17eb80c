"""The backbones that are tried."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torchvision import models

import exitlens as xl

AUXILIARY: dict[str, Callable[[], nn.Module]] = {  # sources by name build these without their auxiliary outputs
    "googlenet(aux_logits=True)": lambda: models.googlenet(num_classes=5, aux_logits=True, init_weights=False),
    "inception_v3(aux_logits=True)": lambda: models.inception_v3(num_classes=5, aux_logits=True, init_weights=False),
}
BACKBONES = [  # family, source, pixels a side (tokens of a text)
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


def build(source: str) -> nn.Module:
    torch.manual_seed(0)
    return AUXILIARY[source]() if source in AUXILIARY else xl.build_backbone(source, 5)
