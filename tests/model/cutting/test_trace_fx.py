from collections import namedtuple

import pytest
import torch
from torch import nn

from exitlens.model.cutting.trace_fx import FxTracer, trace_fx
from tests.conftest import TinyNet

X = torch.zeros(1, 3, 16, 16)
Answer = namedtuple("Answer", ["logits", "aux"])


def trace(backbone, example=X, training=False, leaf=None):
    return trace_fx(backbone, training, FxTracer(example, leaf))


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, ids, mask=None, scale=3.0, rest=None):
        x = ids if mask is None else ids * mask
        return self.fc(x) * scale


def test_inputs_by_name_and_defaults_for_the_rest():
    backbone, x = Optional(), torch.ones(1, 4)
    alone = trace(backbone, x)
    assert [n.name for n in alone.inputs] == ["ids"]
    assert torch.equal(alone.runnable()(x), backbone(x))
    both = trace(backbone, {"ids": x, "mask": x})
    assert [n.name for n in both.inputs] == ["ids", "mask"]
    with pytest.raises(TypeError, match="no argument 'images'"):
        trace(backbone, {"images": x})


def test_a_module_that_runs_again_is_counted():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(3):
                x = self.a(x)
            return self.b(x)

    traced = trace(Loop(), torch.ones(1, 4))
    assert set(traced.last_nodes) == {"b"}
    count, node = traced.repeated["a"]
    assert (count, node.name) == (3, "a_2")


def test_a_leaf_is_not_looked_into():
    traced = trace(TinyNet(), leaf="b")
    assert traced.module_of(traced.last_nodes["b"]) is traced.backbone.b
    assert "b.0" not in traced.last_nodes


def test_constants_have_names_of_their_mode_and_leave_the_backbone():
    class Constant(TinyNet):
        def forward(self, x):
            return super().forward(x * torch.tensor([1.0, 2.0, 3.0])[:, None, None])

    backbone, x = Constant().eval(), torch.randn(2, 3, 16, 16)
    traced = trace(backbone)
    assert all(name.endswith("_eval") for name in traced.extras)
    assert traced.extras
    assert not [name for name in vars(backbone) if "tensor_constant" in name]
    assert torch.equal(traced.runnable()(x), backbone(x))


def test_named_tuples_are_unpacked_and_other_objects_refused():
    class Named(TinyNet):
        def forward(self, x):
            logits = super().forward(x)
            return Answer(logits, logits + 1)

    class Wraps:
        def __init__(self, logits):
            self.logits = logits

    class Wrapped(TinyNet):
        def forward(self, x):
            return torch.fx.wrap and Wraps(super().forward(x))

    returned = trace(Named()).nodes[-1].args[0]
    assert isinstance(returned, Answer)
    assert [n.name for n in returned] == ["fc", "add"]
    with pytest.raises(Exception, match="Wraps"):
        trace(Wrapped())


def test_after_an_error_the_tracer_knows_where_it_was():
    class Chooses(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    tracer = FxTracer(X)
    with pytest.raises(torch.fx.proxy.TraceError):
        trace_fx(nn.Sequential(nn.ReLU(), nn.Sequential(Chooses())), False, tracer)
    assert tracer.running == ["1", "1.0"]
