"""Where features and maps lie, held against gradients and against cases by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import exitlens as xl
from exitlens.model.cutting.trace import trace
from exitlens.model.geometry import NOWHERE, Grid, MapGeometry, Spacing, join, locate, warn_of_small_reach
from tests.conftest import TinyNet
from tests.model.kinds import make_network


def test_windows_that_slide_by_hand():
    spacing = Spacing().slide(3, 2, 1)
    assert spacing == Spacing(0.5, 2, 3)  # a cell of two pixels has its middle at 1
    assert spacing.slide(3, 2, 1) == Spacing(0.5, 4, 7)
    assert Spacing().slide(4, 2, 1) == Spacing(1, 2, 4)
    assert Spacing(1, 2, 4).slide(3, dilation=2) == Spacing(5, 2, 12)
    assert Spacing(1, 2, 4).slide(3, before=2) == Spacing(-1, 2, 8)
    scattered = Spacing().slide(4, 2, 1).scatter(4, 2, 1, 1)  # undone
    assert (scattered.start, scattered.jump) == (0.5, 1)
    assert Spacing(1, 2).middle(4) == 4
    assert Spacing(5).skip(2, 3) == Spacing(7, 3)


def test_resizing_keeps_edges_or_corners():
    spacing = Spacing(2, 4, 4)  # 4 cells of 16 pixels
    assert spacing.resize(4, 8, reads=2) == Spacing(1, 2, 8)
    assert spacing.resize(4, 8, aligned=True, reads=2) == Spacing(2, 12 / 7, 8)
    assert spacing.resize(4, 2) == Spacing(2, 8, 4)  # the first of two
    assert spacing.pool_to(4, 2) == Spacing(4, 8, 8)
    assert spacing.pool_to(4, 3).reach == 4 + 2 * 4  # windows overlap


def test_joined_branches_weigh_the_same_and_reach_what_all_of_them_reach():
    one, other = (Grid((2,), (spacing,), (4,)) for spacing in (Spacing(0, 2, 2), Spacing(1, 2, 6)))
    assert join([one, other]) == Grid((2,), (Spacing(0.5, 2, 6),), (4,))
    assert join([one, Grid((2,), (Spacing(2, 2, 2),), (4,))]).spacings[0] == Spacing(1, 2, 4)
    assert join([one, NOWHERE]).spacings[0] == Spacing(0, 2, math.inf)
    assert join([one, Grid((2,), (Spacing(0, 1, math.inf),), (4,))]).spacings[0].reach == math.inf
    assert join([NOWHERE]) == NOWHERE
    assert join([one, one.move([1])]) == NOWHERE


SIZE = 48


def make_net(*layers):
    """Return a body of layers, pooling and a classifier."""
    forward = lambda n, x: n.fc(n.body(x).flatten(2).mean(2).mean(1, keepdim=True))  # noqa: E731
    return make_network(forward, body=nn.Sequential(*layers), fc=nn.Linear(1, 2))


def call(function):
    """Return a function as a layer."""
    return make_network(lambda n, x: function(x))


def add(inner, shortcut):
    return make_network(lambda n, x: F.relu(n.inner(x) + n.shortcut(x)), inner=inner, shortcut=shortcut)


def attend(x):
    """Attend over locations, beside what was there."""
    tokens = x.flatten(2).transpose(1, 2)
    mixed = (tokens @ tokens.transpose(1, 2)).softmax(2) @ tokens
    return x + mixed.transpose(1, 2).unflatten(2, x.shape[2:])


class SamePadding(nn.Module):
    """TensorFlow's: the odd pixel of padding goes behind."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv, self.kernel, self.stride = nn.Conv2d(2, 2, kernel, stride), kernel, stride

    def forward(self, x):
        more = [max((math.ceil(n / self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[-2:]]
        return self.conv(F.pad(x, (more[1] // 2, more[1] - more[1] // 2, more[0] // 2, more[0] - more[0] // 2)))


def conv(*args, **kwargs):
    return nn.Conv2d(2, 2, *args, **kwargs)


def merge_patches(x):
    return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


gate = make_network(lambda n, x: x * n.fc(x.mean((2, 3), keepdim=True)).sigmoid(), fc=conv(1))  # squeeze-excite
BODIES = {
    "centred": [conv(4, 2, 1)],
    "strided": [conv(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), conv(3, 2, 1)],
    "unlike axes": [conv((5, 3), (2, 1), (0, 1))],
    "dilated": [conv(3, 2, 2, dilation=2)],
    "same": [conv(4, padding="same")],
    "average pool": [nn.AvgPool2d(3, 2, 1, count_include_pad=True), conv(3, 1, 1)],
    "patches": [conv(6, 6), conv(1)],
    "function": [call(lambda x: F.avg_pool2d(F.conv2d(x, torch.ones(2, 2, 3, 3), None, 2, 1), 2))],
    "padding": [call(lambda x: F.pad(x, (0, 1, 2, 0))), conv(3, 2)],
    "pad layer": [nn.ZeroPad2d((3, 0, 1, 0)), conv(3, 2)],
    "TensorFlow": [SamePadding(3, 2), SamePadding(5, 2)],
    "bilinear": [conv(3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")],
    "nearest": [conv(2, 2), conv(2, 2), call(lambda x: F.interpolate(x, scale_factor=0.5)), conv(1)],
    "adaptive": [conv(3, 1, 1), nn.AdaptiveAvgPool2d(12)],
    "transposed": [conv(3, 2, 1), nn.ConvTranspose2d(2, 2, 2, 2), nn.AvgPool2d(2)],
    "residual": [conv(3, 2, 1), add(nn.Sequential(conv(3, 2, 1), nn.ReLU(), conv(3, 1, 1)), conv(1, 2))],
    "slices": [conv(3, 1, 1), call(merge_patches)],
    "channels last": [conv(3, 2, 1), call(lambda x: x.permute(0, 2, 3, 1).flatten(1, 2).mT.unflatten(2, (24, 24)))],
    "cropped": [conv(3, 1, 2), call(lambda x: x[:, :, 1:, : x.shape[2] - 2].narrow(3, 1, 40))],
    "shuffled channels": [conv(3, 2, 1), call(lambda x: x.view(-1, 2, 1, 24, 24).transpose(1, 2).reshape(-1, 2, 24, 24))],
    "a part": [conv(3, 2, 1), call(lambda x: x.chunk(2, 1)[1])],
    "new axes": [conv(3, 2, 1), call(lambda x: x[:, :, None, ..., None].squeeze(-1).squeeze(2))],
    "squeeze-excite": [conv(3, 2, 1), gate, conv(3, 1, 1)],
}


def weigh_alike(network):
    """Make all kernels weigh all sides alike: random ones lean a little."""
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.05)
    return network


def find_grid(network: nn.Module, *, export: bool = False) -> tuple[Grid, tuple[int, ...]]:
    """Return the grid of the body's output, and its shape."""
    traced = trace(weigh_alike(network).eval(), False, torch.ones(1, 2, SIZE, SIZE), export)
    node = traced.outputs["body"]
    return locate(traced).get(node), traced.shape_of(node)


def measure(network: nn.Module, place: tuple[int, int]) -> list[tuple[float, float]]:
    """Return centre of mass and extent, along each axis, of a location's gradient with respect to an image of ones."""
    image = torch.ones(1, 2, SIZE, SIZE, requires_grad=True)
    network.eval().body(image)[:, :, place[0], place[1]].sum().backward()
    weights = image.grad.sum((0, 1))
    measured = []
    for axis in (0, 1):
        mass = weights.sum(1 - axis)
        seen = (mass > 0.05 * mass.max()).nonzero()  # a gate leaves little everywhere
        measured.append(((mass * (torch.arange(SIZE) + 0.5)).sum() / mass.sum(), seen.max() - seen.min() + 1))
    return [(float(centre), float(extent)) for centre, extent in measured]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # once in a process
@pytest.mark.parametrize("export", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["fx", "export"])
@pytest.mark.parametrize("body", BODIES)
def test_places_and_reach_are_those_of_the_gradient(body, export):
    network = make_net(*BODIES[body])
    grid, shape = find_grid(network, export=export)
    assert grid.axes == (2, 3)
    assert grid.sizes == shape[2:]
    place = tuple(n // 2 for n in grid.sizes)
    for spacing, i, (centre, extent) in zip(grid.spacings, place, measure(network, place), strict=True):
        assert spacing.start + i * spacing.jump == pytest.approx(centre, abs=0.1 if body == "squeeze-excite" else 1e-4)
        assert spacing.reach == (extent + 1 if body == "transposed" else extent)  # the pooled read the same location
        assert spacing.jump == pytest.approx(SIZE / len(torch.arange(SIZE)[:: round(spacing.jump)]), abs=0.05)


def test_max_pooling_is_centred_where_average_pooling_is():
    grids = [find_grid(make_net(kind(3, 2, 1), conv(1)))[0] for kind in (nn.MaxPool2d, nn.AvgPool2d)]
    assert grids[0] == grids[1]
    assert grids[0].spacings[0].start == 0.5


def test_attention_beside_a_map_leaves_its_place_and_shows_the_whole_image():
    grid, _ = find_grid(make_net(conv(3, 2, 1), call(attend)))
    assert [(spacing.start, spacing.jump, spacing.reach) for spacing in grid.spacings] == [(0.5, 2, math.inf)] * 2


@pytest.mark.parametrize(
    "mixing",
    [
        lambda x: x.flatten(2).softmax(2).view(x.shape),
        lambda x: x @ x.transpose(2, 3),
        lambda x: F.linear(x, torch.ones(24, 24)),
        lambda x: torch.roll(x, 1, 2),
        lambda x: x.flip(3),
        lambda x: torch.stack([x, x], 1).flatten(1, 2),
        lambda x: torch.cat([x, x], 3),
        lambda x: x + x.transpose(2, 3),
        lambda x: x.view(-1, 2, 6, 4, 24),
        lambda x: x[:, :, 0],
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: x.max(2, keepdim=True)[0],
        lambda x: x[:, :, torch.arange(24)],
        lambda x: x[:, :, list(range(24))],
        lambda x: x.transpose(2, x.dim() - 1),
        lambda x: F.avg_pool2d(x, (x.shape[2] // 12, 2), 1, padding=x.shape[0] * 0),
        lambda x: F.pad(x, (0, x.shape[3] // 24)),
        lambda x: x.narrow(2, x.shape[2] // 12, 3),
        lambda x: F.cosine_similarity(x, 2 * x, 1)[:, None].expand(-1, 1, 24, 24),
    ],
)
def test_what_mixes_or_moves_all_locations_has_no_place(mixing):
    assert find_grid(make_net(conv(3, 2, 1), call(mixing)))[0] == Grid()


@pytest.mark.slow
def test_class_tokens_in_front_do_not_move_the_others():
    first = torch.zeros(1, 1, 2)
    join = call(lambda x: torch.cat([first.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1))
    grid, shape = find_grid(make_net(conv(3, 2, 1), join, nn.Linear(2, 2)))
    assert (shape, grid.is_flat, grid.axes) == ((2, 1 + 24 * 24, 2), True, (1,))
    assert [spacing.start for spacing in grid.spacings] == [0.5, 0.5]
    assert find_grid(make_net(conv(3, 2, 1), join, call(lambda x: x[:, 1:])))[0] == grid
    back = call(lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (24, 24)))
    assert find_grid(make_net(conv(3, 2, 1), join, back))[0].axes == (2, 3)


def test_what_does_not_depend_on_the_image_has_no_grid():
    assert find_grid(make_net(call(lambda x: torch.ones(x.shape[0], 1, 2, 2))))[0] is None


def attach(network, at, size=32, **more):
    return xl.attach(weigh_alike(network), at, 4, torch.zeros(1, 3, size, size), **more)


@pytest.mark.parametrize(
    ("first", "offsets"),
    [
        (nn.Conv2d(3, 6, 3, 2, 1), (-0.25, -0.25)),  # 0.5 in cells of 2 pixels
        (nn.Conv2d(3, 6, (3, 4), (2, 2), (1, 1)), (-0.25, 0.0)),
        (nn.Conv2d(3, 6, 5), (0.0, 0.0)),  # 28 locations in the middle of 32: the middles count
    ],
)
def test_strided_kernels_leave_maps_off_their_cells(first, offsets):
    network = TinyNet()
    network.a[0] = first
    net = attach(network, ["a", "b"])
    assert net.map_offsets[0] == net.info.feature_offsets[0] == offsets


def test_kernels_that_lean_against_their_padding_are_centred():
    network = TinyNet()
    network.a[0] = nn.Conv2d(3, 6, 3, 2, 1)
    offsets = []
    for weights in ((1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (2.0, 0.0, 1.0)):
        with torch.no_grad():
            weigh_alike(network).a[0].weight.copy_(torch.tensor(weights).expand(6, 3, 3, 3))
        offsets.append(xl.attach(network, ["a"], 4, torch.zeros(1, 3, 32, 32)).map_offsets[0])
    # from -0.25 cells of 2 pixels: half a pixel to the right, and 3/5 to the left by the weights' squares
    assert offsets == [(-0.25, -0.25), (-0.25, 0.0), (-0.25, pytest.approx(-0.55))]


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
    net = weigh_alike(attach(TinyNet(), ["b"], size=64, head=head).eval())
    image = torch.ones(1, 3, 64, 64, requires_grad=True)
    activations = net.stage(0)(image)
    located = net.head(0).locate(*activations)
    row, column = (n // 2 for n in located.shape[2:])
    located[0, :, row, column].sum().backward()
    mass = image.grad.sum((0, 1, 3))
    centre = (mass * (torch.arange(64) + 0.5)).sum() / mass.sum()
    cell = 64 / located.shape[2]
    assert centre.item() == pytest.approx((row + 0.5 + net.map_offsets[0][0]) * cell, abs=1e-3)


def test_tokens_are_followed():
    layers = {"embed": nn.Conv2d(3, 8, 4, 4, 1), "one": nn.Linear(8, 8), "two": nn.Linear(8, 8), "fc": nn.Linear(8, 4)}
    network = make_network(lambda n, x: n.fc(n.two(F.relu(n.one(n.embed(x).flatten(2).mT))).mean(1)), **layers)
    assert attach(network, ["one"]).map_offsets == ((-0.25, -0.25),) * 2  # one pixel of padding, in cells of 4


def test_an_exit_that_sees_too_little_is_named_with_the_fix_and_context_counts(recwarn):
    attach(TinyNet(), ["a"], head="context")
    assert not [warning for warning in recwarn if warning.category is xl.errors.ReachWarning]
    with pytest.warns(xl.errors.ReachWarning, match=r"exit 0 after 'a' sees 3 pixels .* of an image of 32x32.*'context'"):
        attach(TinyNet(), ["a"])


def test_the_limit_is_a_quarter_of_the_shorter_side(recwarn):
    seen = MapGeometry((0.0, 0.0), (0.0, 0.0), (8.0, 9.0))
    warn_of_small_reach([seen], ["a"], (32, 64), "evidence")
    warn_of_small_reach([MapGeometry((0.0,), (0.0,), (1.0,))], ["a"], (32,), "evidence")
    assert not recwarn.list
    with pytest.warns(xl.errors.ReachWarning, match="put it later$"):
        warn_of_small_reach([seen], ["a"], (33, 64), "context")
