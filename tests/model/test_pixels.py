"""Networks that answer one class a pixel: how they are cut, and what their exits give."""

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.functional.maps import attend_classes
from exitlens.functional.pixels import resize_logits
from exitlens.model.heads import KeptPixelHead, PixelHead, choose_dense_side
from tests.conftest import TinyNet, TinyUNet, make_unet

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_skip_connections_cross_the_cuts_and_kept_logits_are_the_backbones_to_the_bit():
    unet = TinyUNet().eval()
    net = xl.attach(unet, ["down1", "down2", "bottom", "up2"], 4, IMAGES[:1], final="keep")
    assert net.info.task == "segmentation"
    outs = net(IMAGES)
    assert torch.equal(outs[-1].logits, unet(IMAGES))
    assert isinstance(net.head(4), KeptPixelHead)
    assert [net.head(k).lateral for k in range(4)] == [None] * 4  # none is coarser than the map of the encoder's end
    assert [len(net.stage(k)(*given)) for k, given in enumerate(crossing(net))] == [1, 2, 3, 3, 1]
    for out in outs:
        assert out.logits.shape == (3, 4, 16, 16)
        assert out.evidence.shape == (3, 4, *out.attention.shape[1:])
        torch.testing.assert_close(out.attention.sum((1, 2)), torch.ones(3))
        assert torch.equal(out.attention, attend_classes(out.evidence))
    for out in outs[:-1]:
        torch.testing.assert_close(out.logits, resize_logits(out.evidence, (16, 16)))
    torch.testing.assert_close(
        outs[-1].evidence, nn.functional.adaptive_avg_pool2d(outs[-1].logits, outs[-1].evidence.shape[2:])
    )


def crossing(net):
    """Yield what each stage takes."""
    activations = (IMAGES,)
    for stage in net.stages:
        yield activations
        activations = stage(*activations)


@pytest.mark.parametrize("returns", ["out", "logits"])
def test_a_backbone_may_return_a_dict(returns):
    unet = TinyUNet(returns=returns).eval()
    net = xl.attach(unet, ["down1"], 4, IMAGES[:1], final="keep")
    assert torch.equal(net(IMAGES)[-1].logits, unet(IMAGES)[returns])


def test_a_new_final_head_reads_what_the_last_convolution_reads():
    net = make_unet()
    head = net.head(2)
    assert isinstance(head, PixelHead)
    assert head.neck is None
    assert head.classifier.in_channels == 6
    assert net(IMAGES)[-1].evidence.shape == (3, 4, 16, 16)
    assert net(torch.randn(2, 3, 24, 20))[0].logits.shape == (2, 4, 24, 20)  # of another size


def test_places_are_ends_of_blocks_of_the_encoder():
    unet = TinyUNet()
    names = [point.name for point in xl.list_exit_candidates(unet, IMAGES[:1], runs=0)]
    assert names == [
        "down1.0",
        "down1.1",
        "down1",
        "down2.0",
        "down2.1",
        "down2",
        "bottom.0",
        "bottom.1",
        "bottom",
        *names[9:],
    ]
    assert all(name.startswith("up") for name in names[9:])
    assert len(xl.attach(unet, 2, 4, IMAGES[:1]).info.at) == 2


class Residual(nn.Module):
    """A block whose shortcut crosses in its middle, between convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


def test_no_exit_is_placed_inside_a_residual_block():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 2, 2), Residual(), Residual(), nn.Conv2d(4, 4, 2, 2), nn.Upsample(scale_factor=4), nn.Conv2d(4, 5, 1)
    )
    names = [point.name for point in xl.list_exit_candidates(net, IMAGES[:1], runs=0)]
    assert names == ["0", "1", "2", "3"]


def test_a_classifier_gets_a_decoder_at_every_exit():
    net = xl.attach(TinyNet(), ["a", "b"], 5, IMAGES[:1], task="segmentation").eval()
    outs = net(IMAGES)
    assert [out.logits.shape for out in outs] == [(3, 5, 16, 16)] * 3
    assert [out.evidence.shape[2:] for out in outs] == [(4, 4)] * 3  # that of the final features
    assert net.info.head == "context"
    plain = xl.attach(TinyNet(), ["a", "b"], 5, IMAGES[:1], task="segmentation", head="evidence")
    assert [out.evidence.shape[2:] for out in plain(IMAGES)] == [(8, 8), (4, 4), (4, 4)]


def test_heads_of_coarse_features_read_finer_ones():
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)]
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    net = xl.attach(backbone, ["0", "1", "2"], 5, torch.zeros(1, 3, 64, 64), task="segmentation")
    assert [out.evidence.shape[2:] for out in net(torch.randn(2, 3, 64, 64))] == [(16, 16)] * 4
    assert [net.head(k).lateral is not None for k in range(4)] == [False, False, True, True]


@pytest.mark.slow
def test_a_location_answers_several_pixels_within_the_budget():
    few, many = (xl.attach("small", ["layer1"], count, IMAGES[:1], task="segmentation").head(0) for count in (2, 300))
    assert (few.finer, many.finer) == (4, 1)
    activations = (torch.randn(1, few.classifier.in_channels, 4, 4),)
    few.neck = None
    out, logits = few(*activations), few.classifier(*activations)
    assert out.logits.shape == (1, 2, 16, 16)
    assert torch.equal(out.logits[0, 1, 4:8, 8:12].flatten(), logits[0, 16:, 1, 2])  # class 1 of the cell in row 1, column 2
    torch.testing.assert_close(out.evidence[0, 1, 1, 2], logits[0, 16:, 1, 2].mean())


def test_heads_together_cost_a_few_per_cent_of_a_usual_network():
    net = xl.attach("small", 3, 11, torch.zeros(1, 3, 32, 32), task="segmentation")
    assert 0.01 < net.head_share < 0.05
    assert net(torch.randn(2, 3, 32, 32))[0].evidence.shape == (2, 11, 8, 8)


@pytest.mark.parametrize(("side", "expected"), [(16, 4), (32, 8), (64, 16), (100, 16), (256, 32), (250, 32)])
def test_the_side_of_the_grid(side, expected):
    assert choose_dense_side((3, side, side + 5)) == expected


@pytest.mark.parametrize("separate", [False, True])
def test_gradients_of_maps_end_at_the_heads_if_they_are_separate(separate):
    net = make_unet().train()
    out = net(IMAGES, separate_maps=separate)[0]
    weight = net.stage(0).body.get_submodule("down1.0").weight
    (gradient,) = torch.autograd.grad(out.evidence.square().sum(), weight, allow_unused=True, retain_graph=True)
    assert (gradient is None) is separate
    (gradient,) = torch.autograd.grad(out.logits.square().sum(), weight)
    assert gradient.abs().max() > 0


def test_each_row_is_answered_alone():
    net = make_unet()
    whole = net(IMAGES)
    for i in range(3):
        for out, part in zip(whole, net(IMAGES[i : i + 1]), strict=True):
            torch.testing.assert_close(out.logits[i : i + 1], part.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"backbone": TinyNet(), "task": "segmentation", "final": "keep"},
            "AttachError",
            "final: 'keep' keeps a classifier of whole",
        ),
        ({"backbone": TinyUNet(), "task": "classes"}, "AttachError", "returns a map .* such as U-Net.*got task='classes'"),
        ({"backbone": TinyUNet(), "head": "average"}, "AttachError", "head: 'average' is for classifiers of whole images"),
        ({"backbone": TinyUNet(), "end": "bottom", "at": ["down1"]}, "AttachError", "end: it is for classifiers"),
        ({"backbone": TinyUNet(), "num_classes": 5, "final": "keep"}, "AttachError", "classifier has 4 outputs, got 5"),
        ({"backbone": TinyUNet(), "task": "boxes"}, "InputError", "task: expected one of"),
        ({"backbone": nn.Conv2d(3, 4, 1), "at": []}, "AttachError", "has no two convolutions"),
        ({"backbone": TinyUNet(), "at": ["up1"]}, "AttachError", "'up1' is where the final exit already answers"),
    ],
)
@pytest.mark.slow
def test_refused_with_the_reason(options, error, message):
    values = {
        "at": ["bottom"] if isinstance(options["backbone"], TinyUNet) else ["a"],
        "num_classes": 4,
        "example": IMAGES[:1],
    }
    with pytest.raises(getattr(xl.errors, error), match=message):
        xl.attach(**values | options)


def test_a_series_has_no_pixels():
    with pytest.raises(xl.errors.InputError, match="task: 'segmentation' is for images"):
        xl.attach("small", 1, 4, torch.zeros(1, 2, 64), task="segmentation")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("lraspp_mobilenet_v3_large", marks=pytest.mark.slow),
        pytest.param("deeplabv3_mobilenet_v3_large", marks=pytest.mark.long),
    ],
)
def test_networks_of_torchvision(name):
    from torchvision.models import segmentation

    torch.manual_seed(0)
    backbone = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5).eval()
    net = xl.attach(backbone, 2, 5, torch.zeros(1, 3, 48, 48), final="keep")
    images = torch.randn(2, 3, 48, 48)
    outs = net(images)
    assert torch.equal(outs[-1].logits, backbone(images)["out"])
    assert [out.logits.shape for out in outs] == [(2, 5, 48, 48)] * 3
    assert 0 < net.head_share < 0.05
