import threading

import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.model.cutting.trace import trace
from tests.conftest import TinyNet

X = torch.zeros(1, 3, 16, 16)


class OnShapes(TinyNet):
    """Control flow that torch.fx refuses and torch.export follows."""

    def forward(self, x):
        return super().forward(x if x.shape[2] > 1 else x * 2)


class OnValues(TinyNet):
    """Control flow that no tracer can follow."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_torch_fx_comes_first_and_torch_export_second():
    assert not trace(TinyNet(), False, X).exported
    assert trace(OnShapes(), False, X).exported
    assert trace(TinyNet(), False, X, export=True).exported


def test_modes_are_traced_apart():
    class Drops(TinyNet):
        def forward(self, x):
            return super().forward(x * 2 if self.training else x)

    counts = [len(trace(Drops(), training, X).nodes) for training in (True, False)]
    assert counts[0] == counts[1] + 1


def test_what_neither_can_follow_names_the_line_and_the_mode():
    with pytest.raises(xl.AttachError, match=r"OnValues.*evaluation mode.*line \d+ of test_trace.py.*torch.where"):
        trace(OnValues(), False, X)
    inside = nn.Sequential(nn.Conv2d(3, 3, 1), OnValues())
    with pytest.raises(xl.AttachError, match=r"training mode: in module '1' \(OnValues\).*nearest cuts.*'0', '1'"):
        trace(inside, True, X)


def test_arguments_that_the_example_lacks():
    class Two(nn.Module):
        def forward(self, x, scale, *rest, shift=0, **more):
            return x * scale

    with pytest.raises(xl.AttachError, match=r"also needs \['scale'\]"):
        trace(Two(), False, X)
    named = {"x": torch.ones(1, 4), "scale": torch.ones(1, 4)}
    assert [n.name for n in trace(Two(), False, named).inputs] == ["x", "scale"]


class Counts(nn.Module):
    """Asks how many samples there are as Python does, as class tokens are often repeated."""

    def __init__(self):
        super().__init__()
        self.token, self.fc = nn.Parameter(torch.ones(1, 1, 3)), nn.Linear(3, 2)

    def forward(self, x):
        shape = x.shape
        tokens = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.fc(tokens)[:, 0] * (len((1, 2)) + len(self.token) + len([shape]))


@pytest.mark.parametrize("export", [False, True])
def test_a_length_is_the_number_of_samples_of_any_batch(export):
    network = Counts().eval()
    traced = trace(network, False, torch.zeros(2, 4, 3), export=export)
    assert traced.exported == export
    x = torch.randn(5, 4, 3)
    torch.testing.assert_close(traced.runnable()(x), network(x))
    assert "len" not in globals()


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
            trace(TinyNet(), False, torch.zeros(1, 3, 16, 16))
        stop.set()
        thread.join()
    assert not failed
