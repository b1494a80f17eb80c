import pytest

import exitlens as xl
from exitlens.delivery import run_setup


def test_a_neck_that_nobody_asked_for_is_left_out_where_it_cannot_be(tiny_set, monkeypatch):
    asked = []

    def attach(*args, head, **how):
        asked.append(head)
        if head == "context":
            raise xl.HeadError("head: no plane")
        return xl.attach(*args, head=head, **how)

    monkeypatch.setattr(run_setup, "attach", attach)
    assert run_setup.build_network("small", "layer1", tiny_set).info.head == "evidence"
    assert asked == ["context", "evidence"]
    with pytest.raises(xl.HeadError):
        run_setup.build_network("small", "layer1", tiny_set, head="context")


def test_what_is_built_is_in_channels_last_and_where_exits_stand(tiny_set):
    net = run_setup.build_network("small", "layer1, layer3", tiny_set)
    assert net.is_channels_last
    assert net.info.at == ("layer1", "layer3")
    assert net.info.source == "small"
    assert run_setup.build_network("small", "", tiny_set, keep_final=True).info.at == ("layer1", "layer2", "layer3")


def test_a_network_that_takes_one_size_only_gets_it(tmp_path):
    assert run_setup.choose_size("small", True) == 0
    assert run_setup.choose_size("torchvision:resnet18", False) == 128
    assert run_setup.choose_size("hf:bert", True) == 0
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 96}')
    assert run_setup.choose_size(f"hf:{tmp_path}", False) == 96
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert run_setup.choose_size(f"hf:{tmp_path}", True) == 0
    (tmp_path / "config.json").write_text("{")
    assert run_setup.choose_size(f"hf:{tmp_path}", True) == 0
    pytest.importorskip("timm")
    assert run_setup.choose_size("timm:vit_tiny_patch16_224", False) == 224
    assert (run_setup.choose_size("timm:resnet18", False), run_setup.choose_size("timm:resnet18", True)) == (0, 128)
    assert run_setup.choose_size("timm:nothing_like_it", True) == 128  # refused where it is built
