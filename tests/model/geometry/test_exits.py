import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from exitlens.model.backbones.small import SmallResNet
from exitlens.model.geometry.exits import MapGeometry, warn_of_small_reach
from tests.conftest import TinyNet
from tests.texts import make_text_net


def attach(network, at, size=32, **more):
    """With kernels that weigh all sides alike: random ones lean a little."""
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.05)
    return xl.attach(network, at, 4, torch.zeros(1, 3, size, size), **more)


def test_strided_kernels_leave_maps_off_their_cells():
    net = attach(TinyNet(), ["a", "b"])
    assert net.map_offsets == ((-0.25, -0.25), (-0.375, -0.375), (-0.375, -0.375))  # 0.5 in cells of 2 and of 4 pixels
    assert net.info.feature_offsets == net.map_offsets


def test_a_centred_network_has_no_offsets():
    net = attach(SmallResNet(4), ["layer1", "layer2"])
    assert net.info.map_offsets == ()
    assert net.map_offsets == ((0.0, 0.0),) * 3


def test_kernels_that_lean_against_their_padding_are_centred():
    network = TinyNet()
    network.a[0] = nn.Conv2d(3, 6, 3, 2, 1)
    offsets = []
    for weights in ((1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (2.0, 0.0, 1.0)):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(0.05)
            network.a[0].weight.copy_(torch.tensor(weights).expand(6, 3, 3, 3))
        offsets.append(xl.attach(network, ["a"], 4, torch.zeros(1, 3, 32, 32)).map_offsets[0])
    # from -0.25 cells of 2 pixels: half a pixel to the right, and 3/5 to the left by the weights' squares
    assert offsets == [(-0.25, -0.25), (-0.25, 0.0), (-0.25, pytest.approx(-0.55))]


def test_random_weights_lean_too_little_to_count():
    torch.manual_seed(0)
    assert xl.attach(SmallResNet(4), ["layer1", "layer2"], 4, torch.zeros(1, 3, 32, 32)).info.map_offsets == ()


def test_a_sequence_has_none():
    assert make_text_net().map_offsets == ((),) * make_text_net().num_exits


def test_axes_have_offsets_of_their_own():
    network = TinyNet()
    network.a[0] = nn.Conv2d(3, 6, (3, 4), (2, 2), (1, 1))
    assert attach(network, ["a"], size=32).map_offsets[0] == (-0.25, 0.0)


def test_without_padding_it_is_the_middles_that_count():
    network = TinyNet()
    network.a[0] = nn.Conv2d(3, 6, 5)  # 28 locations in the middle of 32
    assert attach(network, ["a"]).map_offsets[0] == (0.0, 0.0)


def test_a_neck_shrinks_by_whole_cells():
    net = attach(TinyNet(), ["a", "b"], head="context")
    assert net.head(0).neck.shrink == 2
    assert net.map_offsets == ((0.0, 0.0), (-0.375, -0.375), (-0.375, -0.375))  # half a pixel in cells of 4: too little
    assert net.info.feature_offsets[0] == (-0.25, -0.25)


def test_enlarged_features_and_those_they_are_added_to_weigh_the_same():
    network = TinyNet()
    network.c[0] = nn.Conv2d(8, 10, 3, 2, 1)  # 4x4 in an image of 32, so the final head reads the 8x8 before
    net = attach(network, ["a", "b"], head="context")
    assert net.head(2).neck.lateral is not None
    beside, own = -1.5, -3.5  # in pixels: cells of 4 and 8 pixels, centred at 0.5
    assert net.map_offsets[2] == pytest.approx(((beside + own) / 2 / 4,) * 2)
    assert net.info.feature_offsets[2] == pytest.approx((own / 8,) * 2)


@pytest.mark.parametrize("head", ["evidence", "context"])
def test_geometry_is_that_of_the_gradient_of_a_head(head):
    """One location of the map, with respect to the image, when all kernels are ones."""
    net = attach(TinyNet(), ["b"], size=64, head=head).eval()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.05)
    image = torch.ones(1, 3, 64, 64, requires_grad=True)
    activations = net.stage(0)(image)
    located = net.head(0).locate(*activations)
    row, column = (n // 2 for n in located.shape[2:])
    located[0, :, row, column].sum().backward()
    mass = image.grad.sum((0, 1, 3))
    centre = (mass * (torch.arange(64) + 0.5)).sum() / mass.sum()
    cell = 64 / located.shape[2]
    assert centre.item() == pytest.approx((row + 0.5 + net.map_offsets[0][0]) * cell, abs=1e-3)


class ChannelsLast(TinyNet):
    def forward(self, x):
        x = self.b(self.a(x).contiguous()).permute(0, 2, 3, 1)
        return self.fc(self.last(self.rest(x)).mean((1, 2)))

    def __init__(self):
        super().__init__()
        self.rest, self.last = nn.Linear(8, 8), nn.Linear(8, 10)


def test_features_with_channels_last_are_followed():
    assert attach(ChannelsLast(), ["rest"], layout="nhwc").map_offsets == ((-0.375, -0.375),) * 2


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.one, self.two, self.fc = nn.Conv2d(3, 8, 4, 4, 1), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.fc(self.two(F.relu(self.one(x))).mean(1))


def test_tokens_are_followed():
    assert attach(Tokens(), ["one"]).map_offsets == ((-0.25, -0.25),) * 2  # one pixel of padding, in cells of 4


def test_an_exit_that_sees_too_little_is_named_with_the_mend():
    with pytest.warns(xl.ReachWarning, match=r"exit 0 after 'a' sees 3 pixels .* of an image of 32x32.*head='context'"):
        attach(TinyNet(), ["a"])


def test_context_counts(recwarn):
    attach(TinyNet(), ["a"], head="context")
    assert not [one for one in recwarn if one.category is xl.ReachWarning]


def test_the_limit_is_a_quarter_of_the_shorter_side(recwarn):
    seen = MapGeometry((0.0, 0.0), (0.0, 0.0), (8.0, 9.0))
    warn_of_small_reach([seen], ["a"], (32, 64), "evidence")
    warn_of_small_reach([MapGeometry((0.0,), (0.0,), (1.0,))], ["a"], (32,), "evidence")
    assert not recwarn.list
    with pytest.warns(xl.ReachWarning, match="put it later$"):
        warn_of_small_reach([seen], ["a"], (33, 64), "context")
