"""The million samples are what as many full logits would have given."""

import torch

from benchmarks.traces.populations import draw_logits, make_million, make_trace
from exitlens.functional.compact import compress
from exitlens.functional.scores import score


def test_scaled_compact_logits_are_those_of_scaled_logits():
    trace = make_million(500, 700)
    logits, labels = draw_logits(500, 0)
    rng = torch.Generator().manual_seed(0)
    rows, scale = torch.randperm(700, generator=rng) % 500, 0.6 + torch.rand(700, generator=rng)
    some = slice(0, 40)
    expected = compress(logits[rows[some]] * scale[some, None, None], labels[rows[some]])
    assert torch.equal(trace.labels, labels[rows])
    for kind in ("max_probability", "entropy"):
        for k in range(4):
            torch.testing.assert_close(score(trace.logits[some, k], kind, 0.7), score(expected[:, k], kind, 0.7))
    assert len(set(trace.hash_samples())) == 700


def test_later_exits_are_better():
    trace = make_trace(*draw_logits(200, 1), compact=True)
    right = (trace.logits.argmax() == trace.labels[:, None]).float().mean(0)
    assert right[0] < right[-1]
