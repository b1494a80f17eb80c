"""The kinds of input: how they are recognised, the checks that they share, and several of them at once."""

import pytest
import torch

import exitlens as xl
from exitlens.modalities import (
    IMAGE,
    SERIES,
    TEXT,
    VECTOR,
    VOLUME,
    SeveralInputs,
    find_modality,
    find_reader,
    recognise_example,
)  # fmt: skip
from exitlens.modalities.series import TIME_FIRST
from exitlens.modalities.vector import VectorModality
from exitlens.types.inputs import InputFormat
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


def test_the_arguments_of_a_backbone_tell_what_it_reads():
    assert find_reader(TinyNet().forward) is IMAGE
    assert find_reader(lambda input_ids, attention_mask: input_ids) is TEXT


@pytest.mark.parametrize("modality", [IMAGE, TEXT, SERIES, VOLUME, VECTOR])
def test_examples_for_a_backbone_are_of_their_own_kind(modality):
    example = modality.make_example(size=12)
    assert recognise_example(example) is modality


def test_a_map_is_coarsened_but_never_refined():
    assert IMAGE.coarsen(torch.rand(2, 9, 3), (5, 5)).shape == (2, 5, 3)


FORMAT = InputFormat(("image", "vector"), (3, 8, 8), vocabulary=(None, None), shapes=((3, 8, 8), (4,)))
BOTH = SeveralInputs((("image", IMAGE), ("vector", VECTOR)))


def make_inputs(count=2):
    return {"image": torch.randn(count, 3, 8, 8), "vector": torch.randn(count, 4)}


def test_each_is_checked_by_its_own_kind():
    inputs = make_inputs()
    tensors = BOTH.check(dict(reversed(inputs.items())), FORMAT, "inputs", torch.zeros(1))
    assert all(a is b for a, b in zip(tensors, inputs.values(), strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vector": torch.zeros(2, 5)}, r"inputs\['vector'\]: expected \(B,4\), got \(2, 5\)"),
        ({"vector": torch.zeros(3, 4)}, "2 samples of 'image', 3 of 'vector'"),
        ({"image": torch.full((2, 3, 8, 8), torch.inf)}, r"inputs\['image'\]: expected finite values"),
        (["image"], r"expected a dict with \['image', 'vector'\], got \['image'\]"),
        (None, "got Tensor"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    inputs = make_inputs()
    if isinstance(change, dict):
        given = inputs | change
    else:
        given = inputs["image"] if change is None else {name: inputs[name] for name in change}
    with pytest.raises(xl.errors.InputError, match=said):
        BOTH.check(given, FORMAT, "inputs", torch.zeros(1))


def test_maps_lie_on_the_first():
    inputs, cells = make_inputs(), torch.ones(2, 2, 2, dtype=torch.bool)
    deleted = BOTH.delete(inputs, cells)
    assert deleted["vector"] is inputs["vector"]
    torch.testing.assert_close(deleted["image"], IMAGE.delete(inputs["image"], cells))
    exchanged = BOTH.exchange(inputs, {name: value + 1 for name, value in inputs.items()}, cells)
    assert exchanged["vector"] is inputs["vector"]
    torch.testing.assert_close(exchanged["image"], inputs["image"] + 1)
    region = BOTH.choose_region(maps := torch.rand(2, 2, 2), inputs, 0.5)
    assert region.shape == BOTH.find_object(maps, inputs, region).shape == (2, *inputs["image"].shape[2:])
    assert BOTH.paint_over(inputs, cells)["vector"] is inputs["vector"]
    assert BOTH.view_grid(inputs) is not None
    assert VECTOR.view_grid(inputs["vector"]) is None
    assert BOTH.grid == (5, 5)
    assert BOTH.coarsen(torch.ones(1, 10, 10), (5, 5)).shape == (1, 5, 5)
    series = SeveralInputs((("series", SERIES), ("vector", VECTOR)))
    assert series.adapt(InputFormat(("series", "vector"), (9, 2), channels_last=True)).first is TIME_FIRST
    assert series.grid == (16,)


def test_a_file_holds_only_one():
    with pytest.raises(xl.errors.InputError, match=r"photo.jpg: the network takes \['image', 'vector'\]"):
        BOTH.read("photo.jpg", None)


def test_what_no_map_can_show_comes_from_others_too():
    inputs = {"image": torch.zeros(2, 3, 4, 4), "vector": torch.zeros(2, 5)}
    donors = {name: value + 1 for name, value in inputs.items()}
    cells = torch.zeros(2, 4, 4, dtype=torch.bool)
    cells[:, 0, 0] = True
    kept = BOTH.keep_only(inputs, donors, cells)
    assert kept["image"][:, 0].eq(0).equal(cells)
    assert kept["vector"].eq(1).all()
    grouped = VectorModality((("a", (0, 1)), ("b", (2,))))  # features 3 and 4 are in no group
    vectors = grouped.keep_only(inputs["vector"], donors["vector"], torch.tensor([[True, False], [False, True]]))
    assert vectors.tolist() == [[0, 0, 1, 1, 1], [1, 1, 0, 1, 1]]
