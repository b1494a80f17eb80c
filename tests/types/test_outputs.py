import torch

import exitlens as xl


def test_a_prediction_is_as_long_as_its_batch():
    pred = xl.Prediction(torch.zeros(5).long(), torch.zeros(5).long(), torch.ones(5), torch.ones(5, 2))
    assert len(pred) == 5
    assert pred.attention is pred.divergence_estimate is None
