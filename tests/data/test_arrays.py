"""Arrays and texts in memory become what networks take, whatever their layout."""

import numpy as np
import pytest
import torch

from exitlens.data.arrays import MOST_TOKENS, are_texts, arrange, choose_scaling, choose_tokens, prepare
from exitlens.errors import InputError


def test_texts_are_told_from_numbers():
    assert are_texts(["a", "b"])
    assert are_texts(np.array(["a", "b"], dtype=object))
    assert not are_texts([])
    assert not are_texts([[1.0, 2.0]])
    assert not are_texts(np.array([["a"], ["b"]]))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_come_first_and_pixels_stay_bytes(channels):
    images = np.random.default_rng(0).integers(0, 256, (2, channels, 8, 6))
    first, last = arrange(images), arrange(images.transpose(0, 2, 3, 1))
    assert first.dtype == torch.uint8
    assert torch.equal(first, last)
    assert np.array_equal(first.numpy(), images)
    preprocess = choose_scaling(first)
    assert torch.allclose(prepare(first, preprocess), prepare(arrange(images / 255), preprocess))


@pytest.mark.parametrize(
    ("shape", "scale", "message"),
    [
        ((2, 4, 8, 8), 1.0, "1 or 3 channels, got"),
        ((2, 1, 8, 8), 16.0, "from 0 to 1, got 0 to 16. Fix: scale"),
        ((2, 1, 2, 8, 8), 1.0, "series"),
    ],
)
def test_other_arrays_are_refused(shape, scale, message):
    values = np.zeros(shape)
    values.flat[-1] = scale
    with pytest.raises(InputError, match=message):
        arrange(values)


def test_vectors_and_series_are_standardised_as_the_training_samples():
    vectors = arrange(np.array([[1.0, 5.0], [3.0, 5.0]]))
    scaling = choose_scaling(vectors, ("age", "dose"))
    assert scaling.names == ("age", "dose")
    assert prepare(vectors, scaling).tolist() == [[-1.0, 0.0], [1.0, 0.0]]  # a constant column is moved to 0
    series = arrange(np.arange(12.0).reshape(1, 2, 6))
    assert prepare(series, choose_scaling(series)).mean(2).abs().max() < 1e-6


def test_texts_are_as_long_as_the_longest():
    texts = ["a good lamp", "bad"]
    preprocess = choose_tokens(texts)
    assert preprocess.length == 5
    assert prepare(texts, preprocess)["attention_mask"].sum(1).tolist() == [5, 3]
    assert choose_tokens(["word " * 999]).length == MOST_TOKENS
