import pytest
import torch

import exitlens as xl
from exitlens.functional import attribution as f
from exitlens.functional.attribution import answer_score, choose_explained, class_score, gradient_x_input, mix_target
from exitlens.functional.maps import as_distribution


def test_it_is_exact_where_the_score_is_linear():
    features = torch.tensor([[[1.0, -2.0, 0.0]], [[0.5, 3.0, 1.0]]], requires_grad=True)  # (2,1,3)
    weight = torch.tensor([2.0, 1.0, -1.0])
    scores = (features * weight).sum((1, 2)) + 5.0
    found = gradient_x_input(scores, features)
    assert found.tolist() == [[[2.0, -2.0, 0.0]], [[1.0, 3.0, -1.0]]]
    torch.testing.assert_close(found.sum((1, 2)), scores.detach() - 5.0)
    assert not found.requires_grad


def test_the_graph_stays_if_it_is_needed():
    x = torch.ones(2, 3, requires_grad=True)
    scores = x.square().sum(1)
    first = gradient_x_input(scores, x, retain_graph=True)
    scores.sum().backward()
    assert first.tolist() == x.grad.tolist() == [[2.0] * 3] * 2


def test_of_several_features_the_first_that_the_scores_depend_on():
    a, b, unused = (torch.tensor([[1.0, 2.0]], requires_grad=True) for _ in range(3))
    scores = (3 * a * b).sum(1)
    assert gradient_x_input(scores, unused, b, a, retain_graph=True).tolist() == [[3.0, 12.0]]
    for none in (scores.detach(), (2 * a).sum(1)):
        with pytest.raises(xl.errors.InputError, match="no gradient leads from the answer back"):
            gradient_x_input(none, unused)


def test_targets_by_hand():
    relevance = torch.tensor([[[4.0, -8.0], [0.0, 2.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    attention = torch.tensor([[[0.1, 0.6], [0.1, 0.2]], [[0.7, 0.1], [0.1, 0.1]]], requires_grad=True)
    alone, product = mix_target(relevance, attention, share=False), mix_target(relevance, attention, share=True)
    torch.testing.assert_close(alone[0], torch.tensor([[4.0, 0.0], [0.0, 2.0]]) / 6)
    torch.testing.assert_close(product[0], torch.tensor([[0.4, 0.0], [0.0, 0.4]]) / 0.8)
    for target in (alone, product):
        torch.testing.assert_close(target[1], attention[1].detach())  # nothing speaks for the answer
        assert not target.requires_grad


def test_targets_are_on_the_coarser_grid_and_tiny_values_do_not_vanish():
    fine = torch.zeros(1, 4, 4)
    fine[0, 0, 0], fine[0, 3, 3] = 1e-30, 3e-30
    attention = as_distribution(torch.ones(1, 2, 2))
    target = mix_target(fine, attention, share=True)
    torch.testing.assert_close(target, torch.tensor([[[0.25, 0.0], [0.0, 0.75]]]))


def test_sequences_keep_their_padding_empty():
    relevance, attention = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    assert mix_target(relevance, attention, share=True).tolist() == [[0.25, 0.75, 0.0]]
    assert mix_target(-relevance, attention, share=False).tolist() == [[0.5, 0.5, 0.0]]


def test_scores_are_centred_and_in_float32():
    logits = torch.tensor([[2.0, 0.0, 1.0], [4.0, 1.0, 1.0]], dtype=torch.bfloat16)
    found = class_score(logits, torch.tensor([0, 1]))
    assert found.dtype == torch.float32
    assert found.tolist() == [1.0, -1.0]


def test_an_answer_of_several_labels_is_the_sum_of_their_logits():
    logits = torch.tensor([[1.0, -2.0, 3.0], [-3.0, -1.0, -2.0]])
    assert choose_explained(logits, "multilabel").tolist() == [[True, False, True], [False, True, False]]
    assert answer_score(logits, "multilabel").tolist() == [4.0, -1.0]
    assert answer_score(logits, "multilabel", torch.tensor([[False, True, False]] * 2)).tolist() == [-2.0, -1.0]
    assert torch.equal(answer_score(logits, "classes"), class_score(logits, torch.tensor([2, 1])))


def test_energy_in_mask_and_pointing_game_by_hand():
    attention = torch.tensor([[[0.7, 0.1], [0.1, 0.1]]])
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2, 0] = True  # half of the first cell
    torch.testing.assert_close(f.energy_in_mask(attention, mask), torch.tensor([0.35]))
    assert f.pointing_game(attention, mask).tolist() == [1.0]
    assert f.pointing_game(attention.flip(2), mask).tolist() == [0.0]


def test_maps_are_averaged_to_the_grid_but_never_refines():
    fine, coarse = torch.rand(2, 10, 10), torch.rand(2, 3, 3)
    assert f.coarsen_map(fine, (5, 5)).shape == (2, 5, 5)
    assert f.coarsen_map(coarse, (5, 5)).shape == (2, 3, 3)


def test_random_map_is_repeatable():
    torch.testing.assert_close(f.draw_random_map(torch.ones(3, 5, 5), 1), f.draw_random_map(torch.zeros(3, 5, 5), 1))
    blind = f.draw_random_map(torch.tensor([[0.0, 0.5, 0.5, 0.0]]), 1)
    assert (blind != 0).tolist() == [[False, True, True, False]]  # never padding


def test_ranks_pass_over_padding_and_take_negative_values():
    values = torch.tensor([[[-0.5, 0.2], [9.0, -0.1]]])
    real = torch.tensor([[[True, True], [False, True]]])
    assert f.rank_locations(values, None).tolist() == [[[1, 3], [4, 2]]]
    assert f.rank_locations(values, real).tolist() == [[[2, 4], [0, 3]]]


def test_the_share_of_what_is_possible_by_hand():
    values, control, best = torch.tensor([0.3, 0.5]), torch.tensor([0.1, 0.1]), torch.tensor([0.5, 0.5])
    share, error = f.share_of_possible(values, control, best)
    assert share == pytest.approx(0.3 / 0.4)
    # residuals of 0.2 and 0.4 from 0.75 * 0.4: -0.1 and 0.1; their root mean square over 0.4, over the root of 2
    assert error == pytest.approx(0.1 / 0.4 / 2**0.5)
    assert f.share_of_possible(values, control, control) == (None, None)


def test_the_share_of_random_maps_is_near_0_and_its_error_says_how_near():
    rng = torch.Generator().manual_seed(0)
    draws = [torch.rand(3, 200, generator=rng) for _ in range(200)]
    shares = [f.share_of_possible(values, control, best + 0.5) for values, control, best in draws]
    mean, spread = torch.tensor([s for s, _ in shares]), torch.tensor([e for _, e in shares])
    assert mean.mean().abs() < 0.02
    assert mean.std().item() == pytest.approx(spread.mean().item(), rel=0.2)
