"""What running a traced graph shows, and which of its outputs are the logits."""

from collections import namedtuple

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.cutting.placement import count_node_macs
from exitlens.model.cutting.trace import Recorder, pick_logits, run_real, trace
from tests.conftest import TinyNet
from tests.model.kinds import make_network

LOGITS, MAP = torch.zeros(2, 3), torch.zeros(2, 4, 5, 5)
Named = namedtuple("Named", ["logits", "aux"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "aux": torch.zeros(2, 3)},
        {"hidden": MAP, "answer": LOGITS},
        Named(LOGITS, torch.zeros(2, 3)),
        (MAP, LOGITS),
        [LOGITS],
        {"logits": None, "answer": LOGITS},
    ],
)
def test_the_logits_are_found(output):
    assert pick_logits(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (MAP, "U-Net"),
        ((LOGITS, LOGITS), "2 could be the logits"),
        ((), "a tuple of nothing, of which 0"),
        ({"hidden": MAP}, "'hidden': a tensor"),
        (torch.zeros(3), r"expected logits \(B,C\)"),
        ("text", "returns str"),
        (None, "returns NoneType"),
        ({"logits": MAP}, "a dict of 'logits'"),
    ],
)
def test_outputs_without_usable_logits(output, message):
    with pytest.raises(xl.errors.AttachError, match=message):
        pick_logits(output)


IMAGE = torch.zeros(1, 3, 16, 16)


def compute_mixed(net, x):
    """Use a size, a table that depends on no data, a mask of another dtype, an operation in place and a random one."""
    bias = net.table.mean(1).view(1, 4, 1, 1)
    rows = bias.expand(x.size(0), -1, -1, -1)
    noise = torch.rand_like(bias)
    x = net.a(x) + rows + noise
    x.relu_()
    large = x > 0
    return net.fc((x * large).mean((2, 3)))


@torch.fx.wrap
def shift(x, sizes):
    """Writes to the list that it is given, as torchvision's attention in windows of volumes does."""
    sizes[0] = 0
    return x.roll(sizes, (2, 3))


def test_functions_may_write_to_lists_that_they_are_given():
    traced = trace(make_network(lambda n, x: TinyNet.forward(n, shift(x, [4, 2])), TinyNet).eval(), False, IMAGE)
    assert not traced.exported
    assert traced.values.shapes[find(traced, "shift")] == (2, 3, 16, 16)
    assert sum(count_node_macs(traced).values()) > 0


@pytest.fixture
def mixed():
    members = {"a": nn.Conv2d(3, 4, 1), "fc": nn.Linear(4, 2), "table": nn.Parameter(torch.ones(4, 2))}
    return trace(make_network(compute_mixed, **members).eval(), False, torch.zeros(1, 3, 6, 5))


def find(traced, name):
    return next(node for node in traced.nodes if node.name == name)


def test_what_a_run_shows_by_hand(mixed):
    values = mixed.values
    names = {part: {n.name for n in getattr(values, part)} for part in ("batched", "sizes", "dataless")}
    assert names["sizes"] == {"size"}
    assert names["dataless"] == {"table", "mean", "view", "expand", "size"}  # the noise is drawn anew
    assert {"x", "expand", "a", "relu_", "gt", "fc"} <= names["batched"]
    assert not {"table", "mean", "view", "rand_like"} & names["batched"]
    assert mixed.shape_of(find(mixed, "a")) == (2, 4, 6, 5)
    assert mixed.shape_of(find(mixed, "size")) == ()
    assert values.dtypes[find(mixed, "gt")] == torch.bool
    assert values.logits.name == "fc"


def test_parents_and_changes_in_place(mixed):
    assert mixed.list_parents(find(mixed, "size")) == []
    assert mixed.list_parents(mixed.nodes[-1]) == [mixed.values.logits]
    assert {n.name for n in mixed.list_parents(find(mixed, "add"))} == {"a", "expand"}
    assert [n.name for n in mixed.nodes if mixed.is_in_place(n)] == ["relu_"]


def test_the_name_of_a_recurrent_layer_means_its_sequence():
    layers = {"e": nn.Embedding(9, 4), "rnn": nn.GRU(4, 6, batch_first=True), "fc": nn.Linear(6, 2)}
    network = make_network(lambda n, ids: n.fc(n.rnn(n.e(ids))[0].mean(1)), **layers)
    traced = trace(network, False, torch.zeros(1, 7, dtype=torch.int64))
    assert traced.shape_of(traced.outputs["rnn"]) == (2, 7, 6)


@torch.fx.wrap
def read_values(x):
    """Needs values: fake tensors have none."""
    return x * float(x.min().item() <= x.max().item())


def test_operations_without_a_fake_implementation_run_for_real():
    network = make_network(lambda n, x: TinyNet.forward(n, read_values(x)), TinyNet)
    traced = trace(network, False, torch.zeros(1, 3, 16, 16))
    assert traced.shape_of(traced.outputs["b"]) == (2, 8, 4, 4)
    assert count_node_macs(traced)[traced.outputs["a.0"]] == 8 * 8 * 6 * 27


def describe(facts):
    """Return facts on nodes by the names of the nodes."""
    return {n.name: facts[n] for n in facts} if isinstance(facts, dict) else {n.name for n in facts}


def test_both_modes_of_one_graph_are_run_once():
    net = TinyNet()
    training, evaluation, alone = (trace(net, mode, IMAGE) for mode in (True, False, False))
    evaluation.share_values(training)
    assert "values" not in vars(evaluation)  # nothing has run yet
    assert training.values.logits in training.nodes
    evaluation.share_values(training)
    assert "values" in vars(evaluation)
    assert evaluation.values.logits is find(evaluation, "fc")
    for name in ("shapes", "dtypes", "batched", "sizes", "dataless"):
        shared, expected = getattr(evaluation.values, name), getattr(alone.values, name)
        assert describe(shared) == describe(expected)
        assert set(shared) <= set(evaluation.nodes)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, training: x * 2 if training else x,
        lambda x, training: nn.functional.dropout(x, 0.1, training),
        lambda x, training: x + (torch.ones(1) if training else torch.ones(1, 3, 1, 1)),
    ],
)
def test_other_graphs_share_nothing(change):
    net = make_network(lambda n, x: TinyNet.forward(n, change(x, n.training)), TinyNet)
    training, evaluation = (trace(net, mode, IMAGE) for mode in (True, False))
    assert training.values.shapes
    evaluation.share_values(training)
    assert "values" not in vars(evaluation)
    assert evaluation.values.shapes.keys() <= set(evaluation.nodes)


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d(3), (1, 3)), (nn.BatchNorm2d(3), (1, 3, 4, 5)), (nn.BatchNorm3d(3), (1, 3, 4, 5, 6))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_normalisation_keeps_shape_and_dtype(norm, shape, dtype):
    net = nn.Sequential(norm, nn.Flatten(), nn.LazyLinear(2)).to(dtype).eval()
    net(torch.zeros(shape, dtype=dtype))
    traced = trace(net, False, torch.zeros(shape, dtype=dtype))
    real = run_real(Recorder, traced.runnable(), [torch.zeros(2, *shape[1:], dtype=dtype)])
    assert describe(traced.values.shapes) == describe(real.shapes)
    assert describe(traced.values.dtypes) == describe(real.dtypes)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(5), nn.BatchNorm1d(3)])
def test_a_normalisation_of_other_channels_or_axes_is_refused_as_when_it_runs(norm):
    net = nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    with pytest.raises(xl.errors.AttachError, match=r"example: .* shape \(2, 3, 16, 16\) torch.float32"):
        trace(net, False, IMAGE).values  # noqa: B018
