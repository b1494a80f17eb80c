import torch
from torch import fx, nn

from exitlens.model.cutting.stage import Stage
from tests.model.kinds import make_network


def make_members():
    members = {"both": nn.Linear(3, 3), "extra": nn.Linear(3, 3), "scale": nn.Parameter(torch.full((3,), 2.0))}
    return make_network(lambda n, x: x, **members, shift=torch.ones(3))


def make_stage(source):
    """Training: ``both``; evaluation: ``extra(both) * scale + shift``."""
    training, evaluation = fx.Graph(), fx.Graph()
    training.output((training.call_module("both", (training.placeholder("x"),)),))
    x = evaluation.call_module("extra", (evaluation.call_module("both", (evaluation.placeholder("x"),)),))
    x = evaluation.call_method("mul", (x, evaluation.get_attr("scale")))
    evaluation.output((evaluation.call_method("add", (x, evaluation.get_attr("shift"))),))
    return Stage(*(fx.GraphModule(source, graph) for graph in (training, evaluation)))


def test_a_graph_for_each_mode_over_the_same_members():
    source, x = make_members(), torch.randn(2, 3)
    stage = make_stage(source)
    assert torch.equal(stage.train()(x)[0], source.both(x))
    expected = source.extra(source.both(x)) * 2 + 1
    torch.testing.assert_close(stage.eval()(x)[0], expected)
    names = {"both.weight", "both.bias", "extra.weight", "extra.bias", "scale", "shift"}
    assert set(stage.state_dict()) == {f"body.{name}" for name in names}
    assert {id(p) for p in stage.parameters()} == {id(p) for p in source.parameters()}


def test_another_evaluation_graph_has_members_of_its_own():
    stage, graph = make_stage(make_members()), fx.Graph()
    graph.output((graph.placeholder("x"),))
    stage.replace_evaluation(fx.GraphModule({}, graph))
    x = torch.randn(2, 3)
    assert torch.equal(stage.eval()(x)[0], x)
    assert not torch.equal(stage.train()(x)[0], x)
