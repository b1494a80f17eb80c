import pytest
import torch
from torchvision import models

import exitlens as xl
from tests.conftest import TinyNet


def test_kept_final_is_bit_identical(images):
    backbone = TinyNet().eval()
    kept = xl.attach(backbone, ["a", "b"], 4, images[:1], final="keep").eval()
    assert torch.equal(kept(images)[-1].logits, backbone(images))
    kept.tuning = xl.Tuning()
    never = xl.predict(kept, images, xl.Policy.never(3))
    with torch.inference_mode():
        assert torch.equal(never.probabilities, backbone(images).softmax(-1))


def test_kept_resnet18_is_bit_identical_with_the_never_exit_policy():
    backbone = models.resnet18(num_classes=7).eval()
    x = torch.randn(3, 3, 48, 48)
    net = xl.attach(backbone, ["layer1", "layer2", "layer3"], 7, x, final="keep").eval()
    net.tuning = xl.Tuning()
    pred = xl.predict(net, x, xl.Policy.never(4))
    with torch.inference_mode():
        assert torch.equal(pred.probabilities, backbone(x).softmax(-1))
    assert net.head_share < 0.05


def test_cost_counts_heads_and_grows():
    net = xl.attach("small", ["layer1", "layer2", "layer3"], 10, torch.zeros(1, 3, 40, 40))
    assert (net.cost.diff() > 0).all()
    assert net.cost[-1].item() == pytest.approx(1 + net.head_share, abs=0.01)
    assert net.head_share < 0.05
    assert net.info.source == "small"


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
    ],
)
def test_bad_attach_arguments(arguments, message):
    values = {"at": ["a"], "num_classes": 4, "example": torch.zeros(1, 3, 16, 16), **arguments}
    with pytest.raises(xl.ExitlensError, match=message):
        xl.attach(TinyNet(), **values)


def test_a_final_map_of_one_cell_is_refused_for_exits_but_not_for_the_plain_network():
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(xl.AttachError, match="1x1"):
        xl.attach(TinyNet(), ["a"], 4, x)
    assert xl.attach(TinyNet(), [], 4, x, final="keep").num_exits == 1


def test_attach_to_something_else():
    with pytest.raises(xl.InputError, match="backbone: expected an"):
        xl.attach(3, ["a"], 4, torch.zeros(1, 3, 16, 16))


def test_the_network_has_the_backbones_mode_and_its_weights(backbone):
    backbone.train().b.eval()
    modes = [m.training for m in backbone.modules()]
    net = xl.attach(backbone, ["a"], 4, torch.zeros(1, 3, 16, 16))
    assert net.stage(0).training
    assert net.head(0).training
    assert [m.training for m in backbone.modules()] == modes
    assert not xl.attach(backbone.eval(), ["a"], 4, torch.zeros(1, 3, 16, 16)).head(1).training
    assert {id(p) for p in net.parameters()} >= {id(p) for p in backbone.a.parameters()}


def test_what_is_recorded():
    info = xl.attach("small", 1, 3, torch.zeros(2, 1, 32, 32), head="context", layout="nchw").info
    assert (info.num_classes, info.input_shape, info.source) == (3, (1, 32, 32), "small")
    assert (info.final, info.head, info.layout, info.inputs, info.dtypes) == ("head", "context", "nchw", (), ())
    assert len(info.at) == 1


@pytest.mark.parametrize(("head", "kind"), [("average", "AverageHead"), ("evidence", "EvidenceHead")])
def test_kinds_of_heads(head, kind, backbone):
    net = xl.attach(backbone, ["a"], 4, torch.zeros(1, 3, 16, 16), head=head)
    assert [type(net.head(k)).__name__ for k in range(2)] == [kind, kind]


def test_heads_have_the_backbones_dtype(backbone):
    net = xl.attach(backbone.double(), ["a"], 4, torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_evidence_of_a_kept_classifier_is_exact_only_behind_global_pooling():
    class PoolsRows(TinyNet):
        """Averages over rows and takes the maximum over columns: no sum over locations gives that."""

        def forward(self, x):
            return self.fc(self.c(self.b(self.a(x))).mean(2).amax(2))

    for backbone, exact in ((TinyNet(), True), (PoolsRows(), False)):
        net = xl.attach(backbone.eval(), ["a"], 4, torch.zeros(1, 3, 16, 16), final="keep")
        assert net.head(1).exact_evidence is exact
        x = torch.randn(2, 3, 16, 16)
        assert torch.equal(net(x)[1].logits, backbone(x))
