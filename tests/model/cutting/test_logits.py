from collections import namedtuple

import pytest
import torch

import exitlens as xl
from exitlens.model.cutting.logits import pick_logits

LOGITS, MAP = torch.zeros(2, 3), torch.zeros(2, 4, 5, 5)
Named = namedtuple("Named", ["logits", "aux"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "aux": torch.zeros(2, 3)},
        {"hidden": MAP, "answer": LOGITS},
        Named(LOGITS, torch.zeros(2, 3)),
        (MAP, LOGITS),
        [LOGITS],
        {"logits": None, "answer": LOGITS},
    ],
)
def test_the_logits_are_found(output):
    assert pick_logits(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (MAP, "U-Net"),
        ((LOGITS, LOGITS), "2 could be the logits"),
        ((), "a tuple of nothing, of which 0"),
        ({"hidden": MAP}, "'hidden': a tensor"),
        (torch.zeros(3), r"expected logits \(B,C\)"),
        ("text", "returns str"),
        (None, "returns NoneType"),
        ({"logits": MAP}, "a dict of 'logits'"),
    ],
)
def test_outputs_without_usable_logits(output, message):
    with pytest.raises(xl.AttachError, match=message):
        pick_logits(output)
