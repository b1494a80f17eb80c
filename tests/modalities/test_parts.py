import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exitlens.modalities import IMAGE, VECTOR, SeveralInputs
from exitlens.modalities import parts as parts_of
from exitlens.modalities.series import SERIES, TIME_FIRST
from exitlens.modalities.vector import VectorModality
from exitlens.types.inputs import find_inner

SIZES = st.lists(st.integers(2, 9), min_size=1, max_size=3).map(tuple)


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(SIZES, st.integers(1, 8))
def test_cells_of_a_grid_cover_every_place_once(size, cells):
    masks = torch.stack(list(parts_of.cut_grid(size, cells)))
    assert bool((masks.sum(0) == 1).all())
    assert bool(masks.flatten(1).any(1).all())


def test_places_are_named_by_their_ranges():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:2, 6:] = True
    assert parts_of.name_place(mask) == "rows 0 to 1, columns 6 to 7"
    assert parts_of.name_place(mask[0]) == "steps 6 to 7"


@pytest.mark.parametrize("axis", [1, 2])
def test_levels_are_exchanged_and_shapes_stay(axis):
    inputs, donors = draw((5, 3, 4)), 3 * draw((5, 3, 4), 1) + 2
    swapped, before, other = (
        each.movedim(axis, 1) for each in (parts_of.swap_levels(inputs, donors, axis, [1]), inputs, donors)
    )
    assert torch.equal(swapped[:, 0], before[:, 0])
    assert torch.allclose(swapped[:, 1].mean(1), other[:, 1].mean(1), atol=1e-5)
    assert torch.allclose(swapped[:, 1].std(1), other[:, 1].std(1), atol=1e-5)
    scores = [(each - each.mean(1, keepdim=True)) / each.std(1, keepdim=True) for each in (swapped[:, 1], before[:, 1])]
    assert torch.allclose(*scores, atol=1e-5)


def test_textures_are_exchanged_and_phases_and_means_stay():
    inputs, donors = draw((2, 3, 8, 6)), draw((2, 3, 8, 6), 1)
    swapped = parts_of.swap_textures(inputs, donors, 1)
    result, before, other = (np.fft.fft2(each.numpy()) for each in (swapped, inputs, donors))
    result[..., 0, 0] = other[..., 0, 0] = 1.0
    inner = np.s_[..., 1:4, 1:3]  # frequencies whose phase is free: others are real
    assert np.allclose(abs(result[inner]), abs(other[inner]), atol=1e-4)
    assert np.allclose(np.exp(1j * np.angle(result[inner])), np.exp(1j * np.angle(before[inner])), atol=1e-4)
    assert torch.allclose(swapped.mean((2, 3)), inputs.mean((2, 3)), atol=1e-5)


def test_words_in_the_same_places_are_of_a_kind():
    """``1 a x b 2`` with x of 5 and 6, and ``1 c y d 2`` with y of 7 and 8."""
    rows = [[1, 10, x, 11, 2] for x in (5, 6)] * 3 + [[1, 12, y, 13, 2] for y in (7, 8)] * 3
    ids = torch.tensor(rows)
    inner = find_inner(torch.ones_like(ids))
    assert inner[0].tolist() == [False, True, True, True, False]
    kinds = {frozenset(kind) for kind in parts_of.group_words(ids, inner, 3)}
    assert kinds == {frozenset({5, 6}), frozenset({7, 8}), *(frozenset({n}) for n in (10, 11, 12, 13))}
    assert parts_of.group_words(ids, inner, 7) == []


def test_words_take_each_others_places():
    ids = torch.tensor([[1, 5, 9, 6, 5, 2], [1, 5, 2, 0, 0, 0]])
    donors = torch.tensor([[1, 9, 7, 9, 8, 2], [1, 9, 9, 2, 0, 0]])
    batches = [{"input_ids": each, "attention_mask": (each > 0).long()} for each in (ids, donors)]
    swapped = parts_of.swap_words(*batches, torch.tensor([5, 6, 7, 8]))["input_ids"]
    assert swapped.tolist() == [[1, 7, 9, 8, 7, 2], [1, 5, 2, 0, 0, 0]]  # the second donor has no such word


def test_every_kind_of_input_lists_its_parts():
    def count(modality, inputs, preprocess=None):
        parts = modality.list_parts(inputs, preprocess, 1)
        donors = {name: part + 1 for name, part in inputs.items()} if isinstance(inputs, dict) else inputs + 1
        for part in parts:
            swapped = part.swap(inputs, donors)
            pairs = [(swapped, inputs)] if torch.is_tensor(inputs) else [(swapped[name], inputs[name]) for name in inputs]
            assert all(new.shape == old.shape for new, old in pairs)
            assert part.kind == "texture" or any(not torch.equal(*pair) for pair in pairs)
        return [part.kind for part in parts]

    series = ["place"] * 28 + ["level", "texture", "channel", "channel", "level", "level"]
    assert count(IMAGE, draw((1, 3, 8, 8))) == ["place"] * 84 + ["level", "texture"]
    assert count(SERIES, draw((1, 2, 16))) == count(TIME_FIRST, draw((1, 16, 2))) == series
    assert count(VECTOR, draw((1, 3))) == ["channel"] * 3
    assert count(VectorModality((("a", (0, 1)), ("b", (2,)))), draw((1, 3))) == ["channel"] * 2
    several = SeveralInputs((("x", VECTOR), ("y", VECTOR)))
    assert count(several, {"x": draw((1, 2)), "y": draw((1, 2), 1)}) == ["channel", "channel", "input"]
