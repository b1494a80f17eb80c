from pathlib import Path

import pytest

import exitlens as xl
from exitlens.data.sources import open_source
from exitlens.types.settings import NetworkSettings
from exitlens.workflow.training.setup import build_network, choose_normalisation, choose_size, load_training_sets


@pytest.mark.slow
def test_what_is_built_is_in_channels_last_and_has_the_exits_and_heads_asked_for(tiny_set):
    net = build_network(NetworkSettings(exits="layer1, layer3"), tiny_set)
    assert net.is_channels_last
    assert (net.info.at, net.info.source, net.info.head) == (("layer1", "layer3"), "small", "context")
    assert build_network(NetworkSettings(keep_final=True), tiny_set).info.at == ("layer1", "layer2", "layer3")
    assert build_network(NetworkSettings(exits="layer1", head="evidence"), tiny_set).info.head == "evidence"


@pytest.mark.parametrize(
    "settings",
    [
        NetworkSettings(exits="stem,layer9", init_weights=Path("no_file.pt")),
        NetworkSettings("torchvision:resnet18", "layer1,layer9", pretrained=True),
    ],
)
def test_unknown_places_are_reported_before_weights_are_read_or_downloaded(tiny_set, settings, monkeypatch):
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *args, **kwargs: pytest.fail("downloads"))
    message = r"at \(option --exits\): .*no module 'layer9' on its path.* Fix: choose .* in order: \w+.*exitlens inspect"
    with pytest.raises(xl.errors.AttachError, match=message):
        build_network(settings, tiny_set)


def test_a_network_that_takes_one_size_only_gets_it(tmp_path):
    assert choose_size("small", True) == 0
    assert choose_size("torchvision:resnet18", False) == 128
    assert choose_size("hf:bert", True) == 0
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": [96, 96]}')
    assert choose_size(f"hf:{tmp_path}", False) == 96
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 96}')
    assert choose_size(f"hf:{tmp_path}", False) == 96
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert choose_size(f"hf:{tmp_path}", True) == 0
    (tmp_path / "config.json").write_text("{")
    assert choose_size(f"hf:{tmp_path}", True) == 0
    assert choose_size("torchvision:vit_b_16", False) == 224
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert [choose_size(f"hf:{tmp_path}", pretrained) for pretrained in (False, True)] == [0, 128]
    pytest.importorskip("timm")
    assert choose_size("timm:vit_tiny_patch16_224", False) == 224
    assert (choose_size("timm:resnet18", False), choose_size("timm:resnet18", True)) == (0, 128)
    assert choose_size("timm:nothing_like_it", True) == 128  # refused where it is built
    assert choose_size("timm:sam2_hiera_tiny", True) == 224  # its least


def test_whose_mean_and_std():
    def choose(backbone, normalise="", weights=False):
        return choose_normalisation(NetworkSettings(backbone, normalise=normalise, pretrained=weights))

    assert choose("torchvision:resnet18") == (None, "")
    assert choose("small", weights=True) == (None, "")  # its weights come from fit, and its data were the usual
    found, line = choose("torchvision:resnet18", weights=True)
    assert found.mean == (0.485, 0.456, 0.406)
    assert line.startswith("pixels: mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (of torchvision's ResNet18_Weights")
    assert choose("torchvision:resnet18", "half", weights=True)[0].std == (0.5,) * 3
    assert choose("small", "imagenet")[0].std == (0.229, 0.224, 0.225)
    assert choose("torchvision:resnet18", "own")[0] == found
    found, line = choose("torchvision:nothing_like_it", weights=True)
    assert found is None
    assert "does not say which mean and std" in line
    with pytest.raises(xl.errors.InputError, match="normalise: small does not say"):
        choose("small", "own")
    with pytest.raises(xl.errors.InputError, match="normalise: expected one of own, imagenet, half, got 'imagnet'"):
        choose("small", "imagnet")


@pytest.mark.slow
def test_images_of_every_source_are_normalised_as_the_weights_say(folder):
    lines = []
    for name in (str(folder), "fashion"):
        source = open_source(name, size=16)
        sets = load_training_sets(
            NetworkSettings("torchvision:efficientnet_v2_l", pretrained=True), source, say=lines.append
        )
        channels, size = (1, 28) if name == "fashion" else (3, 16)
        for data in sets:
            assert (data.preprocess.mean, data.preprocess.std) == ((0.5,) * channels, (0.5,) * channels)
        assert sets[0].preprocess.size == (size, size)
        assert lines[-1].startswith("pixels: mean 0.5 0.5 0.5")
    assert load_training_sets(NetworkSettings(), open_source("fashion"))[0].preprocess.std == (0.25,)


@pytest.mark.slow
def test_texts_have_the_tokenizer_of_the_backbone_or_it_is_said(tmp_path):
    pytest.importorskip("transformers")
    lines = []
    (tmp_path / "data.csv").write_text(
        "text,label\n" + "".join(f"{w} film,{w}\n" for w in ("good", "bad") for _ in range(20))
    )
    source = open_source(str(tmp_path / "data.csv"), size=8)
    load_training_sets(NetworkSettings(f"hf:{tmp_path}", pretrained=True), source, say=lines.append)
    assert "no tokenizer comes with hf:" in lines[-1]
    (tmp_path / "tokenizer.json").write_text(xl.data.word_tokenizer(["other words"]))
    train, _ = load_training_sets(NetworkSettings(f"hf:{tmp_path}", pretrained=True), source, say=lines.append)
    assert train.preprocess.tokenizer == xl.data.word_tokenizer(["other words"])
    assert lines[-1] == f"texts: tokens by the tokenizer of hf:{tmp_path}"
    with pytest.raises(xl.errors.InputError, match="normalise: it is for images"):
        load_training_sets(NetworkSettings(normalise="half"), source)
    with pytest.raises(xl.errors.InputError, match="reads texts, scenes has images"):
        load_training_sets(NetworkSettings(f"hf:{tmp_path}"), open_source("scenes"))


@pytest.mark.slow
def test_networks_for_series_and_volumes_are_built_from_their_data():
    for name, size, axes in (("motifs", 64, 1), ("blobs", 16, 3)):
        source = open_source(name, size=size)
        train = source.load("validation").first(8)
        net = build_network(NetworkSettings(), train)
        assert net.num_exits == 4
        assert len(net(train.inputs)[0].attention.shape) == 1 + axes
        assert net.info.preprocess == train.preprocess
        with pytest.raises(xl.errors.InputError, match=f"normalise: it is for images, {name} has"):
            load_training_sets(NetworkSettings(normalise="half"), source)
