import pytest
import torch

import exitlens as xl
from exitlens.functional.compact import compress
from exitlens.types import CompactLogits


def test_it_is_indexed_like_the_tensor_that_it_stands_for():
    logits = torch.randn(9, 3, 40)
    compact, rows = compress(logits, torch.arange(9)), torch.tensor([4, 1])
    for at in (rows, (slice(None), 1), (rows, 2), slice(2, 5), torch.arange(9) > 3):
        one, expected = compact[at], logits[at]
        assert one.shape == expected.shape
        assert one.ndim == expected.ndim
        assert len(one) == len(expected)
        assert torch.equal(one.argmax(-1), expected.argmax(-1))
    assert [len(part) for part in compact.split(4)] == [4, 4, 1]


def test_what_is_not_kept_is_refused():
    compact = compress(torch.randn(9, 3, 40))
    for at in ((0, 1, 2), ..., (..., 0)):
        with pytest.raises(
            xl.errors.InputError, match="there is no indexing along the classes: collect the trace with compact=False"
        ):
            compact[at]
    with pytest.raises(xl.errors.InputError, match="dim: expected -1"):
        compact.argmax(0)
    with pytest.raises(xl.errors.InputError, match="expected classes"):
        CompactLogits(compact.top, compact.classes[:3], None, compact.span, compact.weights, 40)


def test_it_says_what_it_is():
    assert repr(compress(torch.randn(9, 3, 40))) == "CompactLogits(9, 3, 40: the 16 largest)"
