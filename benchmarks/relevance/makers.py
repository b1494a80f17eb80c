"""Makers of maps: images in, one map for each of them out, by our methods and by those of other libraries.

All of them are about the final exit's answer and the features of exit 0. Others get the network as their users would give it: a
module that returns logits, with the layer in it. Captum is told the answers, the others find them. Only what is positive counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import exitlens as xl
from exitlens.model.attribution import METHODS, STEPS, Method

Maker = Callable[[Tensor, Tensor], Tensor]  # (B,C,H,W), answers (B,) -> (B,h,w), not negative
OURS = "exitlens, "


class WithLayer(nn.Module):
    """Images to the logits of the final exit, past a layer ``features``, whose output exit 0 reads."""

    def __init__(self, net: xl.ExitNet) -> None:
        super().__init__()
        self.net, self.features = net, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        features, *others = self.net.stage(0)(images)
        activations = (self.features(features), *others)
        for stage in list(self.net.stages)[1:]:
            activations = stage(*activations)
        return self.net.head(self.net.num_exits - 1).classify(*activations)


def list_makers(net: xl.ExitNet) -> dict[str, Maker]:
    """All of them by name; each has a module of its own, so that no hook of one library is called for another."""
    return {
        **{f"{OURS}{method.replace('_', ' ')}": partial(_ours, net, method) for method in METHODS},
        "captum, LayerGradientXActivation": _make_captum(net, "LayerGradientXActivation"),
        "captum, LayerGradCam": _make_captum(net, "LayerGradCam"),
        f"captum, LayerIntegratedGradients, {STEPS} steps": _make_captum(
            net, "LayerIntegratedGradients", n_steps=STEPS, method="riemann_middle"
        ),
        "pytorch-grad-cam, GradCAM": _make_grad_cam(net, "GradCAM"),
        "pytorch-grad-cam, LayerCAM": _make_grad_cam(net, "LayerCAM"),
        "torchcam, GradCAM": _make_torchcam(net, "GradCAM"),
        "torchcam, LayerCAM": _make_torchcam(net, "LayerCAM"),
    }


def _ours(net: xl.ExitNet, method: Method, images: Tensor, _: Tensor) -> Tensor:
    return xl.compute_relevance(net, images, method=method).clamp_min(0)


def _make_captum(net: xl.ExitNet, name: str, **settings: Any) -> Maker:
    from captum import attr

    module = WithLayer(net).eval()
    method = getattr(attr, name)(module, module.features)

    def make(images: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = method.attribute(images, target=labels, **settings)
        return found.detach().float().sum(1).clamp_min(0)

    return make


def _make_grad_cam(net: xl.ExitNet, name: str) -> Maker:
    import pytorch_grad_cam

    module = WithLayer(net).eval()
    cam = getattr(pytorch_grad_cam, name)(module, [module.features])

    def make(images: Tensor, _: Tensor) -> Tensor:
        found = torch.from_numpy(cam(images, targets=None))  # of the answers, in the images' size
        net.zero_grad()  # it leaves gradients of all weights
        return found

    return make


def _make_torchcam(net: xl.ExitNet, name: str) -> Maker:
    from torchcam import methods

    module = WithLayer(net).eval()
    cam = getattr(methods, name)(module, target_layer="features")

    def make(images: Tensor, _: Tensor) -> Tensor:
        scores = module(images)
        (found,) = cam(scores.argmax(1).tolist(), scores)
        return found.detach().nan_to_num(0.0)  # of a map that is 0 everywhere

    return make
