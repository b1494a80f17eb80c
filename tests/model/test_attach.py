import pytest
import torch

import exitlens as xl
from tests.conftest import TinyNet


def test_a_kept_backbone_is_bit_identical_with_the_never_exit_policy(backbone, images):
    net = xl.attach(backbone.eval(), ["a", "b"], 4, images, final="keep").eval()
    assert torch.equal(net(images)[-1].logits, backbone(images))
    net.tuning = xl.Tuning()
    pred = xl.predict(net, images, xl.Policy.never(3))
    with torch.inference_mode():
        assert torch.equal(pred.probabilities, backbone(images).softmax(-1))


def test_cost_by_hand():
    """TinyNet at 16x16: convolutions 8*8*6*27, 4*4*8*54, 4*4*10*72, linear 40; a head is D*N + D*N + D*C."""
    stages = [8 * 8 * 6 * 27, 4 * 4 * 8 * 54, 4 * 4 * 10 * 72]
    heads = [2 * d * n + d * 4 for d, n in ((6, 64), (8, 16), (10, 16))]
    plain = sum(stages) + 40
    net = xl.attach(TinyNet(), ["a", "b"], 4, torch.zeros(1, 3, 16, 16))
    expected = [(sum(stages[: k + 1]) + sum(heads[: k + 1])) / plain for k in range(3)]
    torch.testing.assert_close(net.cost, torch.tensor(expected))
    assert net.head_share == pytest.approx(sum(heads) / plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"at": "a"}, "list of module names"),
        ({"at": [1]}, "list of module names"),
        ({"num_classes": 1}, "num_classes"),
        ({"example": torch.zeros(3, 16, 16)}, "example"),
        ({"example": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}, "example"),
        ({"final": "cam"}, "final"),
        ({"num_classes": 9, "final": "keep"}, "has 4 outputs, got 9"),
        ({"head": "deep"}, "head: expected one of"),
        ({"layout": "chw"}, "layout: expected one of"),
        ({"backbone": 3}, "backbone: expected an"),
        ({"at": 99}, "99 early exits do not fit"),
        ({"at": 0}, "positive"),
        ({"at": True}, "at: expected"),
        ({"at": 1, "placement": "speed"}, r"placement: expected one of \('cost', 'time'\), got 'speed'"),
        ({"placement": "time"}, "placement: only with a number in at"),
        ({"end": "b", "final": "keep"}, "end: the final head is new"),
        ({"end": "b", "at": 1}, "end: the final head is new"),
        ({"end": "a"}, "at: .*a.*"),
        ({"end": 3}, "end: expected"),
    ],
)
def test_bad_attach_arguments(arguments, message):
    values = {"backbone": TinyNet(), "at": ["a"], "num_classes": 4, "example": torch.zeros(1, 3, 16, 16), **arguments}
    with pytest.raises(xl.ExitlensError, match=message):
        xl.attach(**values)


@pytest.mark.slow
def test_a_network_that_ends_before_the_backbone_does(images, tmp_path):
    """It is the whole one's exits so far, and costs what they cost."""
    whole, cut = (xl.attach(TinyNet(), at, 4, images, end=end).eval() for at, end in ((["a", "b"], ""), (["a"], "b")))
    cut.load_state_dict({name: value for name, value in whole.state_dict().items() if name in cut.state_dict()})
    for first, second in zip(whole(images)[:2], cut(images), strict=True):
        assert torch.equal(first.logits, second.logits)
    assert torch.equal(whole.cost[:2], cut.cost)
    assert not any(name.startswith("stages.2") for name in cut.state_dict())
    xl.save(xl.attach("small", [], 4, torch.zeros(1, 3, 32, 32), end="layer2"), None, tmp_path / "b")
    assert str(xl.load(tmp_path / "b")[0]).startswith("ExitNet(small up to layer2, 1 exits")


def test_a_final_map_of_one_cell_is_refused_for_exits_but_not_for_the_plain_network():
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(xl.errors.AttachError, match="1x1"):
        xl.attach(TinyNet(), ["a"], 4, x)
    assert xl.attach(TinyNet(), [], 4, x, final="keep").num_exits == 1


def test_the_network_has_the_backbones_mode_and_its_weights(backbone):
    backbone.train().b.eval()
    modes = [m.training for m in backbone.modules()]
    net = xl.attach(backbone, ["a"], 4, torch.zeros(1, 3, 16, 16))
    assert net.stage(0).training
    assert net.head(0).training
    assert [m.training for m in backbone.modules()] == modes
    assert not xl.attach(backbone.eval(), ["a"], 4, torch.zeros(1, 3, 16, 16)).head(1).training
    assert {id(p) for p in net.parameters()} >= {id(p) for p in backbone.a.parameters()}
    net = xl.attach(backbone.double(), ["a"], 4, torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_what_is_recorded():
    info = xl.attach("small", 1, 3, torch.zeros(2, 1, 32, 32), head="context", layout="nchw").info
    assert (info.num_classes, info.input_shape, info.source) == (3, (1, 32, 32), "small")
    assert (info.final, info.head, info.layout, info.inputs, info.dtypes) == ("head", "context", "nchw", (), ())
    assert len(info.at) == 1
