import sys

import pytest
import torch
from torch import nn
from torchvision import models

import exitlens as xl
from exitlens.model.backbones import build
from exitlens.model.info import NetworkInfo


def test_torchvision_by_name():
    assert xl.build_backbone("torchvision:resnet18", 6).fc.out_features == 6


@pytest.mark.parametrize(
    ("source", "channels", "pretrained", "message"),
    [
        ("resnet18", 3, False, "torchvision:resnet18"),
        ("torchvision:resnet19", 3, False, "Did you mean 'resnet1"),
        ("keras:resnet18", 3, False, "expected .small."),
        ("torchvision:resnet18", 1, False, "3-channel"),
        ("small", 3, True, "no pretrained weights"),
    ],
)
def test_unknown_sources(source, channels, pretrained, message):
    with pytest.raises(xl.InputError, match=message):
        xl.build_backbone(source, 4, channels, pretrained)


def test_pretrained_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(xl.InputError, match="not cached"):
        xl.build_backbone("torchvision:resnet18", 4, pretrained=True)


def test_pretrained_for_other_classes_says_that_the_classifier_is_new(monkeypatch):
    state = models.squeezenet1_1().state_dict()
    monkeypatch.setattr(models.SqueezeNet1_1_Weights, "get_state_dict", lambda *args, **kwargs: state)
    lines = []
    made = xl.build_backbone("torchvision:squeezenet1_1", 4, pretrained=True, say=lines.append)
    assert torch.equal(made.features[0].weight, state["features.0.weight"])
    (line,) = lines
    assert line.startswith("weights: torchvision:squeezenet1_1: the classifier is made anew")
    assert "classifier.1.weight (4, 512, 1, 1), in the source (1000, 512, 1, 1)" in line
    lines.clear()
    assert xl.build_backbone("torchvision:squeezenet1_1", 1000, pretrained=True, say=lines.append)(
        torch.zeros(1, 3, 64, 64)
    ).shape
    assert lines == []


def test_timm_by_name():
    pytest.importorskip("timm")
    network = xl.build_backbone("timm:resnet18", 6, in_channels=1)
    net = xl.attach(network, ["layer1", "layer2"], 6, torch.zeros(1, 1, 64, 64))
    assert net(torch.randn(2, 1, 64, 64))[-1].logits.shape == (2, 6)
    with pytest.raises(xl.InputError, match="Did you mean"):
        xl.build_backbone("timm:resnet18x", 6)


def test_timm_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(xl.MissingExtraError, match=r"exitlens\[timm\]"):
        xl.build_backbone("timm:resnet18", 6)


@pytest.mark.parametrize(("names", "shape", "channels"), [((), (1, 28, 28), 1), (("input_ids",), (64,), 3)])
def test_a_token_count_is_not_taken_for_channels(monkeypatch, names, shape, channels):
    asked = []
    monkeypatch.setattr(build, "build_backbone", lambda *args, **kwargs: asked.append(args))
    dtypes = ("int64",) * len(names)
    build.rebuild_backbone(NetworkInfo(("a",), 5, "head", shape, source="hf:bert", inputs=names, dtypes=dtypes))
    assert asked == [("hf:bert", 5, channels)]


def test_an_example_fits_the_backbone():
    assert build.make_example(nn.Linear(2, 2), 1, 28).shape == (1, 1, 28, 28)
