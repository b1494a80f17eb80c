"""Against SciPy and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine as scipy_cosine
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from scipy.stats import pearsonr

import exitlens as xl
from exitlens.functional import maps


def test_as_distribution_by_hand():
    x = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    expected = torch.tensor([[[0.25, 0.75], [0.0, 0.0]], [[0.25, 0.25], [0.25, 0.25]]])
    torch.testing.assert_close(maps.as_distribution(x), expected)
    features = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]).permute(1, 0, 2)  # (1,2,2): location 0 -> (1,0), 1 -> (0,2)
    torch.testing.assert_close(maps.energy(features), torch.tensor([[0.2, 0.8]]))


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_regrid_keeps_the_mean_where_cells_divide_evenly(factor, h, w):
    x = torch.rand(2, h * factor, w * factor)
    y = maps.regrid(x, (h, w))
    torch.testing.assert_close(y.mean((1, 2)), x.mean((1, 2)))


def test_regrid_tokens_and_refusals():
    torch.testing.assert_close(maps.regrid(torch.tensor([[1.0, 3.0, 5.0, 7.0]]), (2,)), torch.tensor([[2.0, 6.0]]))
    a, b = maps.on_common_grid(torch.rand(3, 8, 2), torch.rand(3, 4, 6))
    assert a.shape == b.shape == (3, 4, 2)
    torch.testing.assert_close(a.sum((1, 2)), torch.ones(3))
    with pytest.raises(xl.errors.InputError, match="coarser grid"):
        maps.regrid(torch.rand(1, 2, 2), (4, 4))
    with pytest.raises(xl.errors.InputError, match="fraction"):
        maps.top_cells(torch.rand(1, 4), 0)


@given(st.integers(1, 30), st.floats(0.01, 1.0))
@settings(max_examples=40, deadline=None)
def test_top_cells_takes_that_many_of_the_largest(n, fraction):
    x = torch.rand(3, n)
    top = maps.top_cells(x, fraction)
    wanted = max(1, math.ceil(round(fraction * n, 9)))
    assert abs(int(top[0].sum()) - wanted) <= 1
    for row, chosen in zip(x, top, strict=True):
        if (~chosen).any():
            assert row[chosen].min() >= row[~chosen].max()


def test_all_finite_also_where_the_sum_overflows():
    big = torch.full((4,), 3e38)
    assert maps.all_finite(big)
    assert not maps.all_finite(torch.tensor([1.0, math.nan]))
    assert not maps.all_finite(torch.tensor([math.inf, -math.inf]))


def test_the_mean_of_maps_is_geometric_on_the_coarsest_grid_and_detached():
    fine = torch.tensor([[[0.5, 0.1, 0.1, 0.0], [0.1, 0.1, 0.1, 0.0]]], requires_grad=True)  # halves: 0.8 and 0.2
    coarse = torch.tensor([[[0.2, 0.8]]])
    mean = maps.geometric_mean([fine, coarse])
    assert not mean.requires_grad
    assert mean.flatten().tolist() == pytest.approx([0.5, 0.5])
    sharp, flat = torch.tensor([[0.8, 0.2, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    assert maps.geometric_mean([sharp, flat]).flatten().tolist() == pytest.approx([2 / 3, 1 / 3, 0])  # roots of 0.4 and 0.1
    scores = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(maps.geometric_mean(list(scores.softmax(2))), scores.mean(0).softmax(1), atol=1e-6)


@given(st.integers(2, 6), st.floats(0.05, 0.95), st.floats(0.1, 30), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_maps_are_flattened_to_a_share_of_their_locations(side, share, scale, seed):
    logits = scale * torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))
    given_maps = logits.flatten(1).softmax(1).view_as(logits)
    flat = maps.keep_spread(given_maps, share)
    torch.testing.assert_close(flat.sum((1, 2)), torch.ones(3))
    for before, after in zip(given_maps, flat, strict=True):
        least = max(share * side**2, 1)
        if np.exp(scipy_entropy(before.flatten().double())) >= 1.001 * least:
            assert torch.equal(before, after)
        else:
            assert np.exp(scipy_entropy(after.flatten().double())) == pytest.approx(least, rel=0.02)
            assert before.argmax() == after.argmax()


def test_padding_is_no_place_to_spread_to():
    flat = maps.keep_spread(torch.tensor([[0.97, 0.01, 0.01, 0.01, 0.0, 0.0]]), 0.5)
    assert flat[0, 4:].tolist() == [0, 0]
    assert maps.entropy(flat).exp().item() == pytest.approx(2, rel=1e-3)  # half of four words


@given(st.integers(1, 7), st.integers(1, 7), st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_placing_keeps_mass_and_sign_and_moves_by_the_offset(h, w, dy, dx):
    x = maps.as_distribution(torch.rand(2, h, w))
    placed = maps.place(x, (dy, dx))
    assert placed.shape == x.shape
    assert placed.dtype == x.dtype
    assert (placed >= 0).all()
    torch.testing.assert_close(placed.sum((1, 2)), torch.ones(2))
    torch.testing.assert_close(maps.place(x, (dy, 0.0)).sum(1), x.sum(1))  # one axis at a time


def test_placing_by_hand():
    x = torch.tensor([[0.0, 4.0, 8.0, 0.0]])
    torch.testing.assert_close(maps.place(x, (-0.25,)), torch.tensor([[1.0, 5.0, 6.0, 0.0]]))
    torch.testing.assert_close(maps.place(x, (2.0,)), torch.tensor([[0.0, 0.0, 0.0, 12.0]]))  # nothing leaves
    signed = torch.tensor([[[-1.0, 1.0], [0.0, 2.0]]])  # (B,C,S): the axes before stay
    torch.testing.assert_close(maps.place(signed, (0.5,)), torch.tensor([[[-0.5, 0.5], [0.0, 2.0]]]))
    assert maps.place(x, (0.0,)) is maps.place(x, ()) is x


def test_evidence_of_labels_by_hand():
    one = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])  # (1, 2 classes, 2 locations)
    torch.testing.assert_close(maps.class_evidence(one, torch.tensor([1])), torch.tensor([[1.0, 2.0]]))  # centred
    evidence = torch.arange(12.0).view(2, 3, 2)
    labels = torch.tensor([[True, False, True], [False, False, False]])
    assert maps.label_evidence(evidence, labels).tolist() == [[2.0, 3.0], [-8.0, -9.0]]


def _pair(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(maps.as_distribution(torch.rand(5, n, n, generator=rng, dtype=torch.float64)) for _ in range(2))


@given(st.integers(0, 1000), st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_equals_scipy(seed, n):
    p, q = _pair(seed, n)
    for i in range(len(p)):
        a, b = p[i].flatten().numpy(), q[i].flatten().numpy()
        assert maps.kl(p, q)[i].item() == pytest.approx(scipy_entropy(a, b), abs=1e-9)
        assert maps.divergence(p, q)[i].item() == pytest.approx(jensenshannon(a, b, base=2) ** 2, abs=1e-9)
        assert maps.cosine(p, q)[i].item() == pytest.approx(1 - scipy_cosine(a, b), abs=1e-9)
        assert maps.pearson(p, q)[i].item() == pytest.approx(pearsonr(a, b).statistic, abs=1e-9)
        assert maps.sim(p, q)[i].item() == pytest.approx(np.minimum(a, b).sum(), abs=1e-9)


def test_pearson_and_top_iou_by_hand():
    assert maps.pearson(maps.uniform(torch.rand(1, 4)), torch.rand(1, 4)).item() == 0
    a = torch.tensor([[5.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).view(1, 2, 5)
    b = torch.tensor([[5.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).view(1, 2, 5)
    assert maps.top_iou(a, b).item() == pytest.approx(1 / 3)


def test_skill_is_zero_at_chance_and_one_when_perfect():
    assert maps.skill(0.4, 0.4) == 0
    assert maps.skill(1.0, 0.4) == 1
    assert math.isnan(maps.skill(1.0, 1.0))


@pytest.mark.parametrize("name", maps.MEASURES)
def test_padding_of_texts_changes_no_measure(name):
    measure = maps.MEASURES[name]
    a, b = torch.rand(6, 9).softmax(1), torch.rand(6, 9).softmax(1)
    padded = [torch.cat([m, torch.zeros(6, 20)], 1) for m in (a, b)]
    torch.testing.assert_close(measure(*padded), measure(a, b))
    torch.testing.assert_close(measure(a[:, None], b[:, None]), measure(a, b))  # as maps of one row
    even = [maps.uniform(m) for m in (padded[0], a)]
    torch.testing.assert_close(measure(padded[0], even[0]), measure(a, even[1]))


def test_a_map_of_another_text_is_cut_to_this_one():
    mine = torch.tensor([[0.0, 0.6, 0.4, 0.0], [0.0, 0.2, 0.3, 0.5]])
    other = torch.tensor([[0.0, 0.1, 0.1, 0.8], [0.0, 1.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(maps.transplant(other, mine), expected)
    assert torch.equal(maps.transplant(other[:, None], mine[:, None]), other[:, None])


def test_it_is_exact_where_the_score_is_linear():
    features = torch.tensor([[[1.0, -2.0, 0.0]], [[0.5, 3.0, 1.0]]], requires_grad=True)  # (2,1,3)
    weight = torch.tensor([2.0, 1.0, -1.0])
    scores = (features * weight).sum((1, 2)) + 5.0
    found = maps.gradient_x_input(scores, features)
    assert found.tolist() == [[[2.0, -2.0, 0.0]], [[1.0, 3.0, -1.0]]]
    torch.testing.assert_close(found.sum((1, 2)), scores.detach() - 5.0)
    assert not found.requires_grad


def test_the_graph_stays_if_it_is_needed():
    x = torch.ones(2, 3, requires_grad=True)
    scores = x.square().sum(1)
    first = maps.gradient_x_input(scores, x, retain_graph=True)
    scores.sum().backward()
    assert first.tolist() == x.grad.tolist() == [[2.0] * 3] * 2


def test_of_several_features_the_first_that_the_scores_depend_on():
    a, b, unused = (torch.tensor([[1.0, 2.0]], requires_grad=True) for _ in range(3))
    scores = (3 * a * b).sum(1)
    assert maps.gradient_x_input(scores, unused, b, a, retain_graph=True).tolist() == [[3.0, 12.0]]
    for none in (scores.detach(), (2 * a).sum(1)):
        with pytest.raises(xl.errors.InputError, match="no gradient leads from the answer back"):
            maps.gradient_x_input(none, unused)


def test_targets_by_hand():
    relevance = torch.tensor([[[4.0, -8.0], [0.0, 2.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    attention = torch.tensor([[[0.1, 0.6], [0.1, 0.2]], [[0.7, 0.1], [0.1, 0.1]]], requires_grad=True)
    alone, product = maps.mix_target(relevance, attention, share=False), maps.mix_target(relevance, attention, share=True)
    torch.testing.assert_close(alone[0], torch.tensor([[4.0, 0.0], [0.0, 2.0]]) / 6)
    torch.testing.assert_close(product[0], torch.tensor([[0.4, 0.0], [0.0, 0.4]]) / 0.8)
    for target in (alone, product):
        torch.testing.assert_close(target[1], attention[1].detach())  # nothing speaks for the answer
        assert not target.requires_grad


def test_targets_are_on_the_coarser_grid_and_tiny_values_do_not_vanish():
    fine = torch.zeros(1, 4, 4)
    fine[0, 0, 0], fine[0, 3, 3] = 1e-30, 3e-30
    attention = maps.as_distribution(torch.ones(1, 2, 2))
    target = maps.mix_target(fine, attention, share=True)
    torch.testing.assert_close(target, torch.tensor([[[0.25, 0.0], [0.0, 0.75]]]))


def test_targets_take_the_positive_part_on_their_own_grid():
    """What cancels within a cell is no mass, and each exit's grid has cells of its own."""
    relevance = torch.tensor([[[5.0, -6.0, 2.0, 1.0]]])
    attention = torch.tensor([[[0.4, 0.1, 0.25, 0.25]]])
    fine, coarse = (maps.mix_target(relevance, attention, share=False, size=size) for size in ((1, 4), (1, 2)))
    torch.testing.assert_close(fine, torch.tensor([[[0.625, 0.0, 0.25, 0.125]]]))
    torch.testing.assert_close(coarse, torch.tensor([[[0.0, 1.0]]]))
    product = maps.mix_target(relevance, attention, share=True, size=(1, 2))  # 2 - 0.6 and 0.5 + 0.25
    torch.testing.assert_close(product, torch.tensor([[[1.4, 0.75]]]) / 2.15)
    against = maps.mix_target(-relevance.abs(), attention, share=True, size=(1, 2))
    torch.testing.assert_close(against, torch.tensor([[[0.5, 0.5]]]))


def test_the_mean_of_a_curve_by_hand():
    values = [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0])]
    torch.testing.assert_close(maps.average_over((0.1, 0.2, 0.5), values), torch.tensor([(0.05 + 0.6) / 0.4, 1.0]))


def test_sequences_keep_their_padding_empty():
    relevance, attention = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    assert maps.mix_target(relevance, attention, share=True).tolist() == [[0.25, 0.75, 0.0]]
    assert maps.mix_target(-relevance, attention, share=False).tolist() == [[0.5, 0.5, 0.0]]


def test_scores_are_centred_and_in_float32():
    logits = torch.tensor([[2.0, 0.0, 1.0], [4.0, 1.0, 1.0]], dtype=torch.bfloat16)
    found = maps.class_score(logits, torch.tensor([0, 1]))
    assert found.dtype == torch.float32
    assert found.tolist() == [1.0, -1.0]


def test_an_answer_of_several_labels_is_the_sum_of_their_logits():
    logits = torch.tensor([[1.0, -2.0, 3.0], [-3.0, -1.0, -2.0]])
    assert maps.choose_explained(logits, "multilabel").tolist() == [[True, False, True], [False, True, False]]
    assert maps.answer_score(logits, "multilabel").tolist() == [4.0, -1.0]
    assert maps.answer_score(logits, "multilabel", torch.tensor([[False, True, False]] * 2)).tolist() == [-2.0, -1.0]
    assert torch.equal(maps.answer_score(logits, "classes"), maps.class_score(logits, torch.tensor([2, 1])))


def test_energy_in_mask_and_pointing_game_by_hand():
    attention = torch.tensor([[[0.7, 0.1], [0.1, 0.1]]])
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2, 0] = True  # half of the first cell
    torch.testing.assert_close(maps.energy_in_mask(attention, mask), torch.tensor([0.35]))
    assert maps.pointing_game(attention, mask).tolist() == [1.0]
    assert maps.pointing_game(attention.flip(2), mask).tolist() == [0.0]


def test_maps_are_averaged_to_the_grid_but_never_refines():
    fine, coarse = torch.rand(2, 10, 10), torch.rand(2, 3, 3)
    assert maps.coarsen_map(fine, (5, 5)).shape == (2, 5, 5)
    assert maps.coarsen_map(coarse, (5, 5)).shape == (2, 3, 3)


def test_random_map_is_repeatable():
    torch.testing.assert_close(maps.draw_random_map(torch.ones(3, 5, 5), 1), maps.draw_random_map(torch.zeros(3, 5, 5), 1))
    blind = maps.draw_random_map(torch.tensor([[0.0, 0.5, 0.5, 0.0]]), 1)
    assert (blind != 0).tolist() == [[False, True, True, False]]  # never padding


def test_ranks_pass_over_padding_and_take_negative_values():
    values = torch.tensor([[[-0.5, 0.2], [9.0, -0.1]]])
    real = torch.tensor([[[True, True], [False, True]]])
    assert maps.rank_locations(values, None).tolist() == [[[1, 3], [4, 2]]]
    assert maps.rank_locations(values, real).tolist() == [[[2, 4], [0, 3]]]


def test_the_share_of_what_is_possible_by_hand():
    values, control, best = torch.tensor([0.3, 0.5]), torch.tensor([0.1, 0.1]), torch.tensor([0.5, 0.5])
    share, error = maps.share_of_possible(values, control, best)
    assert share == pytest.approx(0.3 / 0.4)
    # residuals of 0.2 and 0.4 from 0.75 * 0.4: -0.1 and 0.1; their root mean square over 0.4, over the root of 2
    assert error == pytest.approx(0.1 / 0.4 / 2**0.5)
    assert maps.share_of_possible(values, control, control) == (None, None)


def test_the_share_of_random_maps_is_near_0_and_its_error_says_how_near():
    rng = torch.Generator().manual_seed(0)
    draws = [torch.rand(3, 200, generator=rng) for _ in range(200)]
    shares = [maps.share_of_possible(values, control, best + 0.5) for values, control, best in draws]
    mean, spread = torch.tensor([s for s, _ in shares]), torch.tensor([e for _, e in shares])
    assert mean.mean().abs() < 0.02
    assert mean.std().item() == pytest.approx(spread.mean().item(), rel=0.2)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_moments_of_chosen_locations_are_those_of_the_features_there(channels, side, seed):
    rng = torch.Generator().manual_seed(seed)
    features, real = torch.randn(3, channels, side, 2, generator=rng), torch.rand(3, side, 2, generator=rng) < 0.6
    moments = torch.stack(maps.pool_moments(features, real))
    for row in range(3):
        there = features[row][:, real[row]].numpy()  # (D,n)
        expected = np.stack([there.mean(1), there.std(1), there.max(1)]) if there.size else np.zeros((3, channels))
        np.testing.assert_allclose(moments[:, row], expected, rtol=1e-4, atol=1e-5)
    whole = torch.stack(maps.pool_moments(features))
    torch.testing.assert_close(whole, torch.stack(maps.pool_moments(features, torch.ones_like(real))), rtol=1e-4, atol=1e-5)
