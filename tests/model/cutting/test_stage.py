import copy
import pickle

import torch
from torch import fx, nn

from exitlens.model.cutting.stage import Stage


class Members(nn.Module):
    def __init__(self):
        super().__init__()
        self.both, self.extra = nn.Linear(3, 3), nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.full((3,), 2.0))
        self.register_buffer("shift", torch.ones(3))


def make_stage(source):
    """Training: ``both``; evaluation: ``extra(both) * scale + shift``."""
    training, evaluation = fx.Graph(), fx.Graph()
    training.output((training.call_module("both", (training.placeholder("x"),)),))
    x = evaluation.call_module("extra", (evaluation.call_module("both", (evaluation.placeholder("x"),)),))
    x = evaluation.call_method("mul", (x, evaluation.get_attr("scale")))
    evaluation.output((evaluation.call_method("add", (x, evaluation.get_attr("shift"))),))
    return Stage(*(fx.GraphModule(source, graph) for graph in (training, evaluation)))


def test_a_graph_for_each_mode_over_the_same_members():
    source, x = Members(), torch.randn(2, 3)
    stage = make_stage(source)
    assert torch.equal(stage.train()(x)[0], source.both(x))
    expected = source.extra(source.both(x)) * 2 + 1
    torch.testing.assert_close(stage.eval()(x)[0], expected)
    names = {"both.weight", "both.bias", "extra.weight", "extra.bias", "scale", "shift"}
    assert set(stage.state_dict()) == {f"body.{name}" for name in names}
    assert {id(p) for p in stage.parameters()} == {id(p) for p in source.parameters()}


def test_copies_share_members_between_modes_and_nothing_with_the_source():
    source, x = Members(), torch.randn(2, 3)
    for twin in (copy.deepcopy(make_stage(source)), pickle.loads(pickle.dumps(make_stage(source)))):
        with torch.no_grad():
            twin.body.both.weight.zero_()
            twin.body.both.bias.fill_(1.0)
        assert (twin.train()(x)[0] == 1).all()
        torch.testing.assert_close(twin.eval()(x)[0], source.extra(torch.ones(2, 3)) * 2 + 1)


def test_another_evaluation_graph_has_members_of_its_own():
    stage, graph = make_stage(Members()), fx.Graph()
    graph.output((graph.placeholder("x"),))
    stage.replace_evaluation(fx.GraphModule({}, graph))
    x = torch.randn(2, 3)
    assert torch.equal(stage.eval()(x)[0], x)
    assert not torch.equal(stage.train()(x)[0], x)


def test_tensors_that_the_graph_makes_move_with_it():
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(torch.ones, (3,), {"device": torch.device("cpu")})
    graph.output((graph.call_method("add", (x, made)),))
    stage = Stage(fx.GraphModule({}, graph), fx.GraphModule({}, copy.deepcopy(graph))).eval()
    assert stage.to("meta")(torch.ones(3, device="meta"))[0].device.type == "meta"
