"""One threshold for all exits, by hand."""

import torch

import exitlens as xl
from benchmarks.study.thresholds import LEVELS, fit_budget, follow_common_threshold, make_common_policy, measure_cost


def test_one_threshold_for_all_exits_by_hand():
    sure, unsure = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 0.0])  # confidence 0.95 and 0.73
    logits = torch.stack([torch.stack([sure, sure]), torch.stack([unsure, sure])])
    trace = xl.Trace(logits, torch.tensor([1, 1]), torch.zeros(2, 2), torch.tensor([0.25, 1.0]))
    curve = follow_common_threshold(trace, (1.0, 1.0))
    assert curve[0] == (0.25, 0.5)  # everything leaves at exit 0
    assert curve[-1] == (1.0, 1.0)
    assert (0.625, 1.0) in curve  # the unsure one goes on
    policy = fit_budget(trace, (1.0, 1.0), 0.7)
    assert measure_cost(trace, policy) == 0.625
    higher = [level for level in LEVELS if level > policy.thresholds[0]]
    assert measure_cost(trace, make_common_policy(higher[0], 2, (1.0, 1.0))) == 1.0
