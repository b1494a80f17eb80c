import pytest
import torch

import exitlens as xl
from exitlens.modalities import IMAGE
from exitlens.types.inputs import InputFormat

FORMAT = InputFormat((), (3, 16, 16))
LIKE = torch.zeros(1)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("image", "expected a torch.Tensor, got str"),
        (torch.zeros(3, 16, 16), r"\(B,3,H,W\).*add the batch axis"),
        (torch.zeros(2, 1, 16, 16), r"\(B,3,H,W\), got \(2, 1, 16, 16\)"),
        (torch.zeros(0, 3, 16, 16), "batch is empty"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "expected floats, got torch.uint8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.float64), "expected torch.float32 on cpu"),
        (torch.zeros(2, 3, 7, 16), "far below"),
        (torch.full((2, 3, 16, 16), torch.nan), "NaN or Inf"),
    ],
)
def test_bad_batches_are_one_clear_error(inputs, message):
    with pytest.raises(xl.errors.InputError, match=f"x: .*{message}"):
        IMAGE.check(inputs, FORMAT, "x", LIKE)


def test_exact_sizes():
    with pytest.raises(xl.errors.InputError, match=r"\(3, 16, 16\) only"):
        IMAGE.check(torch.zeros(2, 3, 20, 20), InputFormat((), (3, 16, 16), exact_size=True), "x", LIKE)


def test_a_map_is_coarsened_but_never_refined():
    assert IMAGE.coarsen(torch.rand(2, 9, 3), (5, 5)).shape == (2, 5, 3)
