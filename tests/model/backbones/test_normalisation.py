"""What a backbone's weights were trained with; read from records, nothing is built."""

import json

import pytest

import exitlens as xl
from exitlens.model.backbones.normalisation import Normalisation, read_normalisation
from exitlens.types.preprocessing import IMAGENET_MEAN, IMAGENET_STD

HALVES = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


def test_it_is_said_in_words():
    assert str(Normalisation((0.5, 0.25, 0.123456), (1.0,) * 3, "of x")) == "mean 0.5 0.25 0.1235, std 1 1 1 (of x)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tf_efficientnet_lite0", HALVES),  # TensorFlow's weights
        ("efficientnet_lite0", IMAGENET),
        ("vit_tiny_patch16_224", HALVES),
        ("resnet18.a1_in1k", IMAGENET),
    ],
)
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
    assert read_normalisation("torchvision:nothing_like_it") is None


def test_inception_is_built_without_the_change_of_inputs_that_torchvision_makes_for_its_weights():
    plain = xl.build_backbone("torchvision:googlenet", 2)
    assert not plain.transform_input
    assert read_normalisation("torchvision:googlenet")[:2] == HALVES


def test_a_directory_of_transformers_has_a_file(tmp_path):
    path, source = tmp_path / "preprocessor_config.json", f"hf:{tmp_path}"
    assert read_normalisation(source) is None
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}))
    assert read_normalisation(source) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), f"of {tmp_path}")
    path.write_text(json.dumps({"do_normalize": False, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}))
    assert read_normalisation(source)[:2] == ((0.0,) * 3, (1.0,) * 3)
    for odd in ({}, {"image_mean": [0.5], "image_std": [0.5]}, {"image_mean": HALVES[0], "image_std": [0, 0, 0]}):
        path.write_text(json.dumps(odd))
        assert read_normalisation(source) is None


def test_nobody_says():
    assert read_normalisation("small") is None
    assert read_normalisation("timm:") is None
    pytest.importorskip("transformers")
    assert read_normalisation("hf:vit") is None  # a type of model has no weights


def test_other_pixels_than_in_0_to_1_are_taken_into_account(tmp_path):
    """Statistics of bytes, or of pixels in [-1, 1], for a network that gets pixels in [0, 1]."""

    def read(**values):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        found = read_normalisation(f"hf:{tmp_path}")
        return (found.mean[0], found.std[2])

    bytes_ = {"image_mean": [127.5] * 3, "image_std": [51.0] * 3}
    assert read(do_rescale=False, **bytes_) == pytest.approx((0.5, 0.2))
    assert read(rescale_factor=1.0, **bytes_) == pytest.approx((0.5, 0.2))
    halves = {"image_mean": [0.0] * 3, "image_std": [0.5] * 3}
    assert read(rescale_factor=1 / 127.5, rescale_offset=True, **halves) == pytest.approx((0.5, 0.25))
    assert read(rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False) == pytest.approx((0.5, 0.5))
    assert read(rescale_factor=0.00392156862745098, **halves) == (0.0, 0.5)


@pytest.mark.parametrize(
    "text", ["{", "3", "[" * 100_000, '{"rescale_factor": 0}', '{"rescale_factor": "x"}', '{"rescale_factor": NaN}']
)
def test_damaged_processors(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(xl.errors.InputError, match=r"preprocessor_config.json is damaged .* copy it again"):
        read_normalisation(f"hf:{tmp_path}")


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_say_nothing(tmp_path, odd):
    for mean, std in (([odd, 0, 0], [1, 1, 1]), ([0, 0, 0], [1, odd, 1])):
        text = json.dumps({"image_mean": mean, "image_std": std}).replace('"' + odd + '"', odd)
        (tmp_path / "preprocessor_config.json").write_text(text)
        assert read_normalisation(f"hf:{tmp_path}") is None
