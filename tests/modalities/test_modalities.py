import pytest
import torch

import exitlens as xl
from exitlens.modalities import IMAGE, SERIES, TEXT, VECTOR, VOLUME, find_modality, find_reader, recognise_example
from tests.conftest import TinyNet
from tests.texts import make_texts


def test_a_modality_follows_from_names_shape_and_dtypes():
    assert find_modality((), (3, 8, 9)) is IMAGE
    assert find_modality((), (3, 8, 9), (torch.float16,)) is IMAGE
    assert find_modality((), (7,), (torch.int64,)) is TEXT
    assert find_modality((), (3, 8)) is SERIES
    assert find_modality((), (1, 8, 8, 8)) is VOLUME
    assert find_modality((), (5,)) is VECTOR
    several = find_modality(("image", "vector"), (3, 8, 8), (), ((3, 8, 8), (5,)))
    assert several.parts == (("image", IMAGE), ("vector", VECTOR))
    with pytest.raises(xl.errors.InputError, match=r"\(1, 2, 3, 4, 5\)"):
        find_modality((), (1, 2, 3, 4, 5))


def test_examples_are_recognised():
    assert recognise_example(torch.zeros(1, 3, 8, 8)) is IMAGE
    assert recognise_example(make_texts()) is TEXT
    assert recognise_example(torch.zeros(2, 3, 8)) is SERIES
    assert recognise_example({"a": torch.zeros(2, 3, 8), "b": torch.zeros(2, 4, dtype=torch.int64)}).parts[1][1] is TEXT


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(3),
        torch.zeros(1, 3, 8, 8, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8),
        {},
        {"x": torch.zeros(1, 3, 8, 8), "y": torch.zeros(2, 3)},
        {"x": torch.zeros(1, 3, 8, 8), "y": torch.zeros(1)},
        {"ids": torch.zeros(1, 8, dtype=torch.long), "mask": torch.zeros(1, 9, dtype=torch.long)},
        {"ids": [1, 2]},
        torch.zeros(2, 2, 24).long(),
        "image",
        None,
    ],
)
def test_examples_of_no_known_kind(example):
    with pytest.raises(xl.errors.InputError, match=r"example: expected a float tensor.*\(B,C,T\)"):
        recognise_example(example)


class Reader(torch.nn.Module):
    def forward(self, input_ids, attention_mask):
        return input_ids


def test_the_arguments_of_a_backbone_tell_what_it_reads():
    assert find_reader(TinyNet().forward) is IMAGE
    assert find_reader(Reader().forward) is TEXT


@pytest.mark.parametrize("modality", [IMAGE, TEXT, SERIES, VOLUME, VECTOR])
def test_examples_for_a_backbone_are_of_their_own_kind(modality):
    example = modality.make_example(size=12)
    assert recognise_example(example) is modality
