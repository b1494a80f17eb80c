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

from exitlens.functional import similarity
from exitlens.functional.maps import as_distribution


def _pair(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(as_distribution(torch.rand(5, n, n, generator=rng, dtype=torch.float64)) for _ in range(2))


@given(st.integers(0, 1000), st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_equals_scipy(seed, n):
    p, q = _pair(seed, n)
    for i in range(len(p)):
        a, b = p[i].flatten().numpy(), q[i].flatten().numpy()
        assert similarity.kl(p, q)[i].item() == pytest.approx(scipy_entropy(a, b), abs=1e-9)
        assert similarity.divergence(p, q)[i].item() == pytest.approx(jensenshannon(a, b, base=2) ** 2, abs=1e-9)
        assert similarity.cosine(p, q)[i].item() == pytest.approx(1 - scipy_cosine(a, b), abs=1e-9)
        assert similarity.pearson(p, q)[i].item() == pytest.approx(pearsonr(a, b).statistic, abs=1e-9)
        assert similarity.sim(p, q)[i].item() == pytest.approx(np.minimum(a, b).sum(), abs=1e-9)


def test_divergence_is_one_for_disjoint_maps_and_symmetric():
    p, q = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert similarity.divergence(p, q).item() == pytest.approx(1)
    a, b = _pair(0, 4)
    torch.testing.assert_close(similarity.divergence(a, b), similarity.divergence(b, a))


def test_pearson_of_a_constant_map_is_zero():
    assert similarity.pearson(torch.ones(1, 4), torch.rand(1, 4)).item() == 0


def test_top_iou_by_hand():
    a = torch.tensor([[5.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).view(1, 2, 5)
    b = torch.tensor([[5.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]).view(1, 2, 5)
    assert similarity.top_iou(a, b).item() == pytest.approx(1 / 3)


def test_skill_is_zero_at_chance_and_one_when_perfect():
    assert similarity.skill(0.4, 0.4) == 0
    assert similarity.skill(1.0, 0.4) == 1
    assert math.isnan(similarity.skill(1.0, 1.0))


def test_uniform_map_shape():
    assert torch.allclose(similarity.uniform(torch.rand(2, 3, 3)), torch.full((2, 3, 3), 1 / 9))


@pytest.mark.parametrize("name", similarity.MEASURES)
def test_padding_of_texts_changes_no_measure(name):
    measure = similarity.MEASURES[name]
    a, b = torch.rand(6, 9).softmax(1), torch.rand(6, 9).softmax(1)
    padded = [torch.cat([m, torch.zeros(6, 20)], 1) for m in (a, b)]
    torch.testing.assert_close(measure(*padded), measure(a, b))
    torch.testing.assert_close(measure(a[:, None], b[:, None]), measure(a, b))  # as maps of one row
    even = [similarity.uniform(m) for m in (padded[0], a)]
    torch.testing.assert_close(measure(padded[0], even[0]), measure(a, even[1]))


def test_a_map_of_another_text_is_cut_to_this_one():
    mine = torch.tensor([[0.0, 0.6, 0.4, 0.0], [0.0, 0.2, 0.3, 0.5]])
    other = torch.tensor([[0.0, 0.1, 0.1, 0.8], [0.0, 1.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(similarity.transplant(other, mine), expected)
    assert torch.equal(similarity.transplant(other[:, None], mine[:, None]), other[:, None])
