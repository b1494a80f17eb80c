"""What takes data takes a data set, a loader, batches in a list, or a tensor, in every verb; anything else is an error."""

import pytest
import torch
from torch.utils.data import DataLoader

import exitlens as xl
from tests.conftest import make_net

POLICY = xl.Policy((0.5, 0.4))
SOURCES = {
    "set": lambda data: data,
    "loader": lambda data: DataLoader(data, 8),
    "list": lambda data: list(data.inputs.split(8)),
    "tensor": lambda data: data.inputs,
}


def explain(net: xl.ExitNet, data: object) -> torch.Tensor:
    return torch.stack([why.exits[0].probabilities for why in xl.explain_batch(net, data, POLICY)])


def judge(net: xl.ExitNet, data: object) -> torch.Tensor:
    return torch.tensor(xl.measure_faithfulness(net, data, samples=8, oracle_samples=0, grid=(2, 2)).deletion)


VERBS = {
    "collect": lambda net, data: xl.collect(net, data).logits,
    "predict_stream": lambda net, data: torch.cat([pred.probabilities for pred in xl.predict_stream(net, data, POLICY)]),
    "explain_batch": explain,
    "faithfulness": judge,
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_every_kind_of_data(tiny_set, verb):
    net, data = make_net(), tiny_set.first(20)
    expected, *others = (VERBS[verb](net, source(data)) for source in SOURCES.values())
    for result in others:
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("data", [3, [["a", "b"]]])
def test_other_types_are_refused(verb, data):
    with pytest.raises(
        (xl.errors.InputError, xl.errors.StreamError), match=r"expected (a Dataset|a folder|batches of inputs)"
    ):
        VERBS[verb](make_net(), data)
