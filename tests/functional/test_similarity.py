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
    a = torch.tensor([[5.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    b = torch.tensor([[5.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert similarity.top_iou(a, b).item() == pytest.approx(1 / 3)


def test_skill_is_zero_at_chance_and_one_when_perfect():
    assert similarity.skill(0.4, 0.4) == 0
    assert similarity.skill(1.0, 0.4) == 1
    assert math.isnan(similarity.skill(1.0, 1.0))


def test_uniform_map_shape():
    assert torch.allclose(similarity.uniform(torch.rand(2, 3, 3)), torch.full((2, 3, 3), 1 / 9))
