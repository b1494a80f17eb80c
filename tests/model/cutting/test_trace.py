"""Tracing by torch.fx and by torch.export, what running a graph shows, and which of its outputs are the logits."""

import copy
import threading
from collections import namedtuple

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

import exitlens as xl
from exitlens.model.cutting.placement import count_node_macs
from exitlens.model.cutting.split import run_plain, run_staged, split
from exitlens.model.cutting.trace import FxTracer, Recorder, pick_logits, run_real, trace, trace_fx
from tests.conftest import TinyNet
from tests.model.kinds import check_outputs, make_network
from tests.texts import make_text_net, make_texts

X = torch.zeros(1, 3, 16, 16)


class OnValues(TinyNet):
    """Control flow that no tracer can follow."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


@pytest.mark.slow
def test_torch_fx_comes_first_and_torch_export_second():
    on_shapes = make_network(lambda n, x: TinyNet.forward(n, x if x.shape[2] > 1 else x * 2), TinyNet)
    assert not trace(TinyNet(), False, X).exported
    assert trace(on_shapes, False, X).exported
    assert trace(TinyNet(), False, X, export=True).exported


def test_what_neither_can_follow_names_the_line_and_the_mode():
    with pytest.raises(xl.errors.AttachError, match=r"OnValues.*evaluation mode.*line \d+ of test_trace.py.*torch.where"):
        trace(OnValues(), False, X)
    inside = nn.Sequential(nn.Conv2d(3, 3, 1), OnValues())
    with pytest.raises(xl.errors.AttachError, match=r"training mode: in module '1' \(OnValues\).*nearest cuts.*'0', '1'"):
        trace(inside, True, X)


def test_an_error_without_a_message_is_named():
    def forward(net, x):
        if type(x) is not torch.Tensor:
            raise ValueError
        return TinyNet.forward(net, x)

    with pytest.raises(xl.errors.AttachError, match=r"torch.fx says 'ValueError' and torch.export 'ValueError'"):
        trace(make_network(forward, TinyNet), False, X)


def test_arguments_that_the_example_lacks():
    network = make_network(lambda net, x, scale, *rest, shift=0, **more: x * scale)
    with pytest.raises(xl.errors.AttachError, match=r"also needs \['scale'\]"):
        trace(network, False, X)


def count_as_python_does(net, x):
    shape = x.shape
    tokens = torch.cat([net.token.expand(len(x), -1, -1), x], 1)
    return net.fc(tokens)[:, 0] * (len((1, 2)) + len(net.token) + len([shape]))


@pytest.mark.parametrize("export", [False, True])
def test_a_length_is_the_number_of_samples_of_any_batch(export):
    network = make_network(count_as_python_does, token=nn.Parameter(torch.ones(1, 1, 3)), fc=nn.Linear(3, 2)).eval()
    traced = trace(network, False, torch.zeros(2, 4, 3), export=export)
    assert traced.exported == export
    x = torch.randn(5, 4, 3)
    torch.testing.assert_close(traced.runnable()(x), network(x))
    assert "len" not in globals()


@pytest.mark.slow
def test_other_threads_go_on_while_a_backbone_is_traced():
    net, plain, stop, failed = TinyNet().eval(), torch.randn(2, 3, 16, 16), threading.Event(), []
    expected = net(plain)

    def run():
        while not stop.is_set():
            try:
                assert torch.equal(net(plain), expected)
            except Exception as error:
                failed.append(error)

    with torch.no_grad():
        thread = threading.Thread(target=run)
        thread.start()
        for _ in range(30):
            trace(TinyNet(), False, X)
        stop.set()
        thread.join()
    assert not failed


def trace_by_fx(backbone, example=X):
    return trace_fx(backbone, False, FxTracer(example))


def test_inputs_by_name_and_defaults_for_the_rest():
    def forward(net, ids, mask=None, scale=3.0, rest=None):
        return net.fc(ids if mask is None else ids * mask) * scale

    backbone, x = make_network(forward, fc=nn.Linear(4, 2)), torch.ones(1, 4)
    alone = trace_by_fx(backbone, x)
    assert [n.name for n in alone.inputs] == ["ids"]
    assert torch.equal(alone.runnable()(x), backbone(x))
    both = trace_by_fx(backbone, {"ids": x, "mask": x})
    assert [n.name for n in both.inputs] == ["ids", "mask"]
    with pytest.raises(TypeError, match="no argument 'images'"):
        trace_by_fx(backbone, {"images": x})


def test_constants_have_names_of_their_mode_and_leave_the_backbone():
    scale = lambda n, x: TinyNet.forward(n, x * torch.tensor([1.0, 2.0, 3.0])[:, None, None])  # noqa: E731
    backbone, x = make_network(scale, TinyNet).eval(), torch.randn(2, 3, 16, 16)
    traced = trace_by_fx(backbone)
    assert all(name.endswith("_eval") for name in traced.extras)
    assert traced.extras
    assert not [name for name in vars(backbone) if "tensor_constant" in name]
    assert torch.equal(traced.runnable()(x), backbone(x))


def test_objects_that_wrap_outputs_are_refused():
    class Wraps:
        def __init__(self, logits):
            self.logits = logits

    with pytest.raises(Exception, match="Wraps"):
        trace_by_fx(make_network(lambda n, x: Wraps(TinyNet.forward(n, x)), TinyNet))


class Stubborn(nn.Module):
    """Control flow on shapes that fx refuses, batch norm, dropout, stochastic depth, a constant, a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bias = nn.Parameter(torch.randn(8, 4))
        self.drop, self.depth = nn.Dropout(0.3), StochasticDepth(0.4, "row")
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        if x.shape[0] > 0 and x.mean(0).numel() > 1:
            x = torch.relu(self.norm(self.a(x)))
        table = self.bias.softmax(1).mean(1)[:, None, None]  # shared by all samples, made before the cut, used after it
        steps = torch.arange(x.shape[0])[:, None, None, None] * 0.0  # one row a sample, but made from their number alone
        x = x + self.depth(self.b(self.drop(x)))
        x = torch.relu_(x)
        x = self.c(x) * table * torch.tensor(2.0) + steps
        return self.fc(self.drop(x).mean((2, 3)))


def test_a_buffer_that_the_forward_changes():
    def forward(net, x):
        if net.training:
            net.seen.add_(1)  # as timm's batch norm does
        return net.fc(torch.relu(net.b(torch.relu(net.a(x)))).mean((2, 3)))

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 1), "fc": nn.Linear(8, 3)}
    network, x = make_network(forward, **layers, seen=torch.tensor(0)), torch.randn(2, 3, 10, 10)
    net = xl.attach(network, ["a"], 3, x, final="keep")
    assert network.seen == 0
    net.train()(x), net.train()(x), net.eval()(x)
    assert network.seen == 2


@pytest.mark.parametrize("at", [["norm", "b"], *(pytest.param(at, marks=pytest.mark.slow) for at in (["norm"], ["b"]))])
@pytest.mark.slow
def test_control_flow_on_shapes(at):
    network, x = Stubborn(), torch.randn(5, 3, 10, 10)
    pieces = split(network, at, x[:1])
    assert pieces.exact_size
    for training in (True, False):
        logits, buffers, state = [], [], copy.deepcopy(network.state_dict())
        for run in (run_plain, run_staged):
            network.load_state_dict(state)
            logits.append(run(pieces, (x,), training))
            buffers.append({name: value.clone() for name, value in network.named_buffers()})
        assert torch.equal(*logits)
        assert all(torch.equal(value, buffers[1][name]) for name, value in buffers[0].items())
        assert buffers[0]["norm.running_mean"].abs().sum() > 0


@pytest.mark.slow
def test_what_stands_in_the_padding_changes_nothing():
    net, texts = make_text_net(), make_texts()
    noise = torch.randint(4, 40, texts["input_ids"].shape)
    other = texts | {"input_ids": torch.where(texts["attention_mask"] == 1, texts["input_ids"], noise)}
    assert not torch.equal(other["input_ids"], texts["input_ids"])
    outs, pads = net(texts), texts["attention_mask"] == 0
    pads[:, 0] = True  # the class token gets no attention, either
    check_outputs(outs, net.heads)
    for a, b in zip(outs, net(other), strict=True):
        torch.testing.assert_close(a.logits, b.logits)
        torch.testing.assert_close(a.attention, b.attention)
        assert torch.equal(a.attention == 0, pads)
        assert (a.evidence.transpose(1, 2)[pads] == 0).all()
    assert (make_text_net("keep")(texts)[-1].attention[pads] == 0).all()


@pytest.mark.slow
def test_tensors_that_the_graph_makes_follow_the_network_to_another_device():
    net, texts = make_text_net().to("meta"), make_texts()
    outs = net({name: value.to("meta") for name, value in texts.items()})
    assert all(out.logits.device.type == "meta" for out in outs)
    assert net.device.type == "meta"


LOGITS, MAP = torch.zeros(2, 3), torch.zeros(2, 4, 5, 5)
Answer = namedtuple("Answer", ["logits", "aux"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "aux": torch.zeros(2, 3)},
        {"hidden": MAP, "answer": LOGITS},
        Answer(LOGITS, torch.zeros(2, 3)),
        (MAP, LOGITS),
        [LOGITS],
        {"logits": None, "answer": LOGITS},
    ],
)
def test_the_logits_are_found(output):
    assert pick_logits(output) is LOGITS


@pytest.mark.parametrize(
    "output", [MAP, {"out": MAP, "aux": MAP}, {"logits": MAP}, {"hidden": torch.zeros(3), "answer": MAP}, (MAP,)]
)
def test_logits_of_pixels_are_found(output):
    assert pick_logits(output) is MAP


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2, 3, 4, 5, 5), r"expected logits \(B,C\), .* or \(B,C,H,W\), for each pixel"),
        ((LOGITS, LOGITS), "2 could be the logits"),
        ((), "a tuple of nothing, of which 0"),
        ({"hidden": MAP, "other": MAP}, "'hidden': a tensor.* of which 2"),
        (torch.zeros(3), r"expected logits \(B,C\)"),
        ("text", "returns str"),
        (None, "returns NoneType"),
        ({"logits": torch.zeros(3)}, "a dict of 'logits'"),
    ],
)
def test_outputs_without_usable_logits(output, message):
    with pytest.raises(xl.errors.AttachError, match=message):
        pick_logits(output)


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
    traced = trace(make_network(lambda n, x: TinyNet.forward(n, shift(x, [4, 2])), TinyNet).eval(), False, X)
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
    traced = trace(network, False, X)
    assert traced.shape_of(traced.outputs["b"]) == (2, 8, 4, 4)
    assert count_node_macs(traced)[traced.outputs["a.0"]] == 8 * 8 * 6 * 27


def describe(facts):
    """Return facts on nodes by the names of the nodes."""
    return {n.name: facts[n] for n in facts} if isinstance(facts, dict) else {n.name for n in facts}


def test_one_graph_does_for_both_modes_where_they_agree():
    net = TinyNet()
    training, evaluation = (trace(net, mode, X) for mode in (True, False))
    assert evaluation.has_same_graph(training)
    stage = split(net, ["a"], X).stages[0]
    assert stage.body is stage.evaluation


@pytest.mark.parametrize(
    "change",
    [
        lambda x, training: x * 2 if training else x,
        lambda x, training: nn.functional.dropout(x, 0.1, training),
        lambda x, training: x + (torch.ones(1) if training else torch.ones(1, 3, 1, 1)),
    ],
)
def test_graphs_of_modes_that_differ_are_both_kept(change):
    net = make_network(lambda n, x: TinyNet.forward(n, change(x, n.training)), TinyNet)
    training, evaluation = (trace(net, mode, X) for mode in (True, False))
    assert not evaluation.has_same_graph(training)
    stage = split(net, ["a"], X).stages[0]
    assert stage.body is not stage.evaluation


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
        trace(net, False, X).values  # noqa: B018
