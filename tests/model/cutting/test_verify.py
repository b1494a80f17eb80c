import pytest
import torch
from torch import nn

import exitlens as xl
from exitlens.errors import TraceMismatchError
from exitlens.model.cutting.split import split
from exitlens.model.cutting.verify import check_backbone, make_random_inputs, run_plain, run_staged, verify
from tests.conftest import TinyNet
from tests.model.kinds import make_network

X = torch.zeros(1, 3, 16, 16)


def change_features(stage, change):
    def forward(net, *activations):
        features, *rest = net.stage(*activations)
        return change(features), *rest

    return make_network(forward, stage=stage)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: 2 * f, "batch 3 in evaluation mode"),
        (lambda f: f * (2 if len(f) == 1 else 1), "a single sample"),
        (lambda f: f * (2 if len(f) == 2 else 1), "who else is in the batch"),
        (lambda f: f.detach(), r"the gradient of 'a.* is not"),
    ],
)
def test_pieces_that_differ_are_found(change, message, backbone):
    pieces = split(backbone, ["a"], X)
    pieces.stages[0] = change_features(pieces.stages[0], change)
    with pytest.raises(TraceMismatchError, match=message):
        verify(pieces)


def test_buffers_must_change_as_in_the_plain_backbone(backbone):
    pieces = split(backbone, ["a"], X)

    def shift_statistics(features):
        backbone.a[1].running_mean.add_(1.0)
        return features

    pieces.stages[0] = change_features(pieces.stages[0], shift_statistics)
    with pytest.raises(TraceMismatchError, match=r"buffer 'a\.1\.running_mean'"):
        verify(pieces)


def test_plain_and_staged_runs_are_seeded(backbone):
    backbone = nn.Sequential(nn.Dropout(0.5), backbone)
    pieces = split(backbone, ["1.a"], X)
    inputs = make_random_inputs(pieces, 2)
    runs = [run(pieces, inputs, True) for run in (run_plain, run_plain, run_staged)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_random_inputs_are_like_the_example():
    def forward(net, input_ids, attention_mask):
        return net.fc((net.a(net.e(input_ids)) * attention_mask[:, :, None]).mean(1))

    words = make_network(forward, e=nn.Embedding(7, 5), a=nn.Linear(5, 6), fc=nn.Linear(6, 2))
    example = {name: torch.ones(1, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    ids, mask = make_random_inputs(split(words, ["a"], example), 3)
    assert (ids.shape, ids.dtype) == ((3, 8), torch.int64)
    assert int(ids.max()) < 7
    assert mask.sum(1).tolist() == [8, 6, 4]
    (images,) = make_random_inputs(split(TinyNet(), [], X), 2)
    assert (images.shape, images.dtype) == ((2, 3, 16, 16), torch.float32)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.ReLU()), "no parameters"),
        (TinyNet().to("meta"), "'a.0.weight' is on the meta device.*to_empty"),
        (nn.Sequential(nn.LazyLinear(3)), "'0.weight' is lazy"),
        (nn.ParameterList([nn.Parameter(torch.zeros(1).expand(4))]), "'0' is an expanded tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # lazy modules
def test_backbones_that_cannot_be_cut(network, message):
    with pytest.raises(xl.errors.AttachError, match=message):
        check_backbone(network)
