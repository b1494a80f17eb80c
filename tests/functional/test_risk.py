import pytest
import torch
from scipy import stats

import exitlens as xl
from exitlens.functional.risk import accuracy_drop, binomial_upper, disagreement, taken
from tests.conftest import random_trace


def test_risks_by_hand():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[0.0, 2.0], [2.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]])
    trace = xl.Trace(logits, torch.tensor([1, 1, 0]), torch.zeros(3, 2), torch.tensor([0.5, 1.0]))
    assert accuracy_drop(trace)[:, 0].tolist() == [1.0, -1.0, 0.0]
    assert disagreement(trace)[:, 0].tolist() == [1.0, 1.0, 0.0]
    assert accuracy_drop(trace)[:, 1].tolist() == disagreement(trace)[:, 1].tolist() == [0.0] * 3
    assert taken(accuracy_drop(trace), torch.tensor([0, 1, 0])).tolist() == [1.0, 0.0, 0.0]


def test_accuracy_drop_needs_labels():
    with pytest.raises(xl.InputError, match="labels"):
        accuracy_drop(random_trace(labelled=False))


@pytest.mark.parametrize(("errors", "count"), [(0, 1), (0, 299), (3, 100), (70, 70), (1, 2), (40, 2000)])
def test_the_upper_bound_is_clopper_and_pearsons(errors, count):
    expected = 1.0 if errors == count else stats.beta.ppf(0.95, errors + 1, count - errors)
    assert binomial_upper(errors, count, 0.05) == pytest.approx(expected, abs=1e-9)
