"""Measures of pixels by hand, and against loops over pixels in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_dilation, distance_transform_edt

import exitlens as xl
from exitlens.functional import pixels


@st.composite
def images(draw):
    """Two images of labels and answers, of up to four classes; 255 among the labels."""
    classes, height, width = draw(st.integers(2, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    shape = (2, height, width)
    answers = draw(arrays(np.int64, shape, elements=st.integers(0, classes - 1)))
    labels = draw(arrays(np.int64, shape, elements=st.sampled_from([*range(classes), 255])))
    return torch.from_numpy(answers), torch.from_numpy(labels), classes


@given(images())
@pytest.mark.slow
def test_counts_and_measures_are_those_of_loops_over_pixels(given_images):
    answers, labels, classes = given_images
    counts = pixels.count_confusion(answers, labels.to(torch.uint8), classes)
    for i in range(2):
        pairs = [
            (y, a) for y, a in zip(labels[i].flatten().tolist(), answers[i].flatten().tolist(), strict=True) if y != 255
        ]
        expected = np.array([[pairs.count((y, a)) for a in range(classes)] for y in range(classes)])
        assert counts[i].tolist() == expected.tolist()
        ious = []
        for c in range(classes):
            both, either = sum(y == a == c for y, a in pairs), sum(c in pair for pair in pairs)
            iou = pixels.measure_iou(counts[i])[c].item()
            assert np.isnan(iou) if not either else iou == pytest.approx(both / either)
            there = sum(y == c for y, _ in pairs)
            if there:
                ious.append(both / either)
            missed = pixels.measure_missed(counts[i], c).item()
            assert missed == pytest.approx(1 - both / there if there else 0)
        assert pixels.measure_mean_iou(counts[i]).item() == pytest.approx(np.mean(ious) if ious else 1)


@given(
    arrays(np.float32, (2, 3, 2, 3), elements=st.floats(-30, 30, width=32)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_probabilities_are_resized_as_their_logits_are(values, size):
    logits = torch.from_numpy(values)
    expected = pixels.resize_logits(logits, size).softmax(1)
    torch.testing.assert_close(pixels.resize_probabilities(logits.softmax(1), size), expected, atol=1e-5, rtol=1e-4)


def test_what_has_the_size_already_stays_as_it_is():
    logits = torch.randn(1, 2, 3, 4)
    assert pixels.resize_logits(logits, (3, 4)) is logits
    assert pixels.resize_probabilities(logits, (3, 4)) is logits


def test_scores_by_hand():
    top = torch.tensor([0.95, 0.9, 0.6, 0.8]).view(2, 2)
    p = torch.stack([top, 1 - top])[None]
    assert pixels.score_pixels(p, "mean_probability").tolist() == pytest.approx([0.8125])
    assert pixels.score_pixels(p, "sure_share").tolist() == [0.5]
    assert pixels.score_pixels(p, "low_probability").tolist() == pytest.approx([0.6])
    ramp = torch.linspace(0.5, 1, 101).view(1, 101)
    low = pixels.score_pixels(torch.stack([ramp, 1 - ramp])[None], "low_probability")
    assert low.tolist() == pytest.approx([ramp.quantile(0.1).item()])
    confident = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4)], 1)
    for kind in ("mean_probability", "sure_share", "low_probability"):
        assert pixels.score_pixels(confident, kind).tolist() == [1.0] * 3


def test_a_summary_is_of_enlarged_answers_and_coarse_scores():
    rng = torch.Generator().manual_seed(0)
    outputs = [torch.randn(10, 3, 2, 2, generator=rng), torch.randn(10, 3, 8, 8, generator=rng)]
    labels = torch.randint(0, 3, (10, 8, 8), generator=rng)
    answers = [pixels.enlarge_answers(each, (8, 8)) for each in outputs]
    assert answers[0].tolist() == pixels.resize_logits(outputs[0], (8, 8)).argmax(1).tolist()
    kept = pixels.summarise(outputs, answers, labels)
    assert torch.equal(kept.disagreement[:, 0], (answers[0] != answers[1]).float().mean((1, 2)))
    assert kept.disagreement[:, 1].tolist() == [0.0] * 10
    assert torch.equal(kept.confusion[:, 0], pixels.count_confusion(answers[0], labels, 3))
    assert torch.equal(kept.scores[:, 0, 0], outputs[0].softmax(1).amax(1).mean((1, 2)))
    assert kept.shape == (10, 2, 3)
    assert pixels.summarise(outputs, answers, None).confusion is None
    trace = xl.Trace(kept, None, torch.zeros(10, 2), torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(trace.accuracy[:, 0], (answers[0] == labels).float().mean((1, 2)))


def draw_border(labels, c):
    """The pixels of a class beside one of another class, by dilation with a cross."""
    return (labels == c) & binary_dilation((labels != c) & (labels != 255)) & (labels != 255)


@pytest.mark.parametrize("size", [(20, 30), (150, 200)])
def test_borders_match_within_a_distance(size):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (2, size[0] // 10, size[1] // 10)), np.ones((1, 10, 10), int))
    labels[:, :5, :7] = 255
    answers = np.where(labels == 255, 0, labels)
    answers = np.roll(answers, 2, 1)
    counts = pixels.count_borders(torch.tensor(answers), torch.tensor(labels).byte(), 4)
    reach = math.ceil(0.0075 * math.hypot(*size))
    for i in range(2):
        told, truth = np.where(labels[i] == 255, 255, answers[i]), labels[i]
        for c in range(4):
            borders = draw_border(told, c), draw_border(truth, c)
            near = [distance_transform_edt(~border) <= reach if border.any() else border for border in borders]
            expected = [(borders[0] & near[1]), borders[0], (borders[1] & near[0]), borders[1]]
            assert counts[i, c].tolist() == [int(mask.sum()) for mask in expected]
    tiles = pixels.count_borders(torch.tensor(answers), torch.tensor(labels).byte(), 4, (2, 5))
    assert tiles.shape == (20, 4, 4)
    assert tiles.view(2, 10, 4, 4).sum(1).equal(counts)


def test_the_boundary_score_by_hand():
    # image 0: class 0 has precision 1/2 and recall 1, class 1 has no border in the label; image 1: all of class 1 is found
    borders = torch.tensor([[[2, 4, 3, 3], [0, 5, 0, 0]], [[0, 0, 0, 0], [6, 6, 8, 8]]])
    assert pixels.measure_border_f1(borders).item() == pytest.approx((2 / 3 + 1) / 2)
    assert pixels.measure_border_f1(borders[:1, 1:]).isnan()
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :4] = 1
    perfect = pixels.count_borders(labels, labels, 2)
    assert perfect[0].tolist() == [[8, 8, 8, 8], [8, 8, 8, 8]]
    assert pixels.measure_border_f1(perfect).item() == 1.0
