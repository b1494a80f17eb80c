"""The router against the plain rule, on networks that are arithmetic: every stage notes who ran, and with whom."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exitlens as xl
from exitlens.functional.routing import find_first_firing
from exitlens.model.engine.engine import Engine
from exitlens.model.engine.router import Pool, Router, gather
from exitlens.model.engine.tuning import Tuning
from tests.conftest import make_net


class Head:
    """Logits of two classes whose maximum probability is the sample's own score at this exit."""

    def __init__(self, k: int) -> None:
        self.k = k

    def classify(self, scores: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        p = scores[:, self.k].double()
        return torch.stack([(p / (1 - p)).log(), torch.zeros_like(p)], 1)

    def with_attention(self, *activations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.classify(*activations), activations[1][:, None].float() + self.k / 10


def engine(exits: int) -> tuple[Engine, list[list[list[int]]]]:
    """An engine over ``(scores (B,K), number (B,))``, and a record: by stage the numbers of the samples of every call."""
    ran: list[list[list[int]]] = [[] for _ in range(exits)]

    def stage(k):
        def run(scores, number):
            ran[k].append(number.tolist())
            return scores, number

        return run

    return Engine([stage(k) for k in range(exits)], [Head(k) for k in range(exits)], Tuning()), ran


@st.composite
def cases(draw):
    exits, count = draw(st.integers(1, 5)), draw(st.integers(1, 60))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scores = 0.5 + 0.499 * torch.rand(count, exits, generator=rng)
    thresholds = tuple(draw(st.sampled_from([0.0, 0.6, 0.75, 0.9, math.inf])) for _ in range(exits - 1))
    cuts = sorted(draw(st.sets(st.integers(1, count), max_size=6)) | {0, count})
    return scores, thresholds, draw(st.integers(0, 20)), cuts, draw(st.booleans())


@given(cases())
@settings(max_examples=50, deadline=None)
def test_every_sample_leaves_once_at_its_exit_and_runs_no_further(case):
    scores, thresholds, micro_batch, cuts, attention = case
    count, exits = scores.shape
    expected = find_first_firing(scores[:, :-1], thresholds).tolist()
    running, ran = engine(exits)
    router = Router(running, xl.Policy(thresholds), attention, micro_batch)
    left = []
    for a, b in itertools.pairwise(cuts):
        numbers = torch.arange(a, b)
        left += router.feed(numbers, (scores[a:b], numbers))
        assert micro_batch == 0 or router.waiting < micro_batch * exits
    left += router.flush()
    assert router.waiting == 0
    assert router.oldest == math.inf
    left_at = {}
    for part in left:
        for i, (place, p, score) in enumerate(zip(part.where.tolist(), part.probabilities, part.scores, strict=True)):
            assert place not in left_at
            left_at[place] = part.exit
            torch.testing.assert_close(score, scores[place, part.exit], atol=1e-5, rtol=0)
            torch.testing.assert_close(p[0], scores[place, part.exit], atol=1e-5, rtol=0)
            if attention:
                assert part.attention[i].item() == pytest.approx(place + part.exit / 10, abs=1e-4)
    assert [left_at[i] for i in range(count)] == expected
    for k in range(exits):
        who = [i for call in ran[k] for i in call]
        assert sorted(who) == [i for i in range(count) if expected[i] >= k]
        assert who == sorted(who) or micro_batch  # in order where nothing waits
        if micro_batch:
            assert all(len(call) < 2 * micro_batch for call in ran[k])


def test_survivors_of_several_micro_batches_run_together():
    scores = torch.full((32, 2), 0.55)
    scores[::2, 0] = 0.5  # half of them stay
    running, ran = engine(2)
    router = Router(running, xl.Policy((0.54,)), micro_batch=8)
    left = router.feed(torch.arange(32), (scores, torch.arange(32)))
    assert [len(call) for call in ran[0]] == [8] * 4
    assert [len(call) for call in ran[1]] == [8] * 2
    assert sum(len(part.where) for part in left) == 32


def test_stages_run_one_at_a_time_on_those_that_wait():
    running, ran = engine(3)
    router = Router(running, xl.Policy((0.6, 0.6)), micro_batch=4)
    scores = torch.full((6, 3), 0.5)
    scores[1, 0] = scores[2, 1] = 0.9
    router.admit(torch.arange(2), (scores[:2], torch.arange(2)), 5.0)
    router.admit(torch.arange(2, 6), (scores[2:], torch.arange(2, 6)), 7.0)
    assert router.list_waiting() == [(6, 5.0), (0, math.inf), (0, math.inf)]
    assert [part.where.tolist() for part in router.run_stage(0)] == [[1]]  # all: fewer than two micro-batches
    count, entered = router.list_waiting()[1]
    assert (count, entered > 7.0) == (5, True)  # they wait for company from now on
    assert router.list_places() == [0, 2, 3, 4, 5]
    router.discard(torch.tensor([3, 4]))
    _, entered = router.list_waiting()[1]
    assert [part.where.tolist() for part in router.run_stage(1)] == [[2]]
    assert router.list_waiting()[1:] == [(0, math.inf), (2, entered)]  # they have waited, and go on with whatever is there
    assert [part.where.tolist() for part in router.run_stage(2)] == [[0, 5]]
    assert router.waiting == 0
    assert [len(calls[0]) for calls in ran] == [6, 3, 2]


def test_an_override_sees_what_an_exit_would_answer_and_needs_every_head():
    running, _ = engine(3)
    seen = []

    def override(batch, fired):
        seen.append((batch.exit, batch.where.tolist(), fired.tolist(), len(batch.probabilities)))
        return fired | (batch.exit == 1)

    router = Router(running, xl.Policy((math.inf, math.inf)), override=override, heads=(0, 1))
    left = router.run(torch.arange(2), (torch.full((2, 3), 0.6), torch.arange(2)))
    assert [part.exit for part in left] == [1]
    assert seen == [(0, [0, 1], [False, False], 2), (1, [0, 1], [False, False], 2)]


def test_images_of_another_size_do_not_wait_for_each_other():
    net = make_net()
    net.tuning = xl.Tuning(micro_batch=8)
    small, large = torch.randn(5, 3, 16, 16), torch.randn(6, 3, 20, 24)
    preds = list(xl.predict_stream(net, [small, large, small], xl.Policy((0.7, 0.7))))
    for images, pred in zip((small, large, small), preds, strict=True):
        assert pred.exits.tolist() == xl.predict(net, images, xl.Policy((0.7, 0.7))).exits.tolist()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gather_keeps_the_memory_format(memory_format):
    x, rows = torch.randn(6, 3, 4, 5).contiguous(memory_format=memory_format), torch.tensor([4, 0, 5])
    images, vectors = gather((x, x[:, 0, 0]), rows)
    assert torch.equal(images, x[rows])
    assert images.is_contiguous(memory_format=memory_format)
    assert torch.equal(vectors, x[rows, 0, 0])


def test_rows_come_out_as_they_came_in_but_for_those_that_were_discarded():
    pool, x = Pool(), torch.arange(12.0).reshape(12, 1)
    stay = torch.tensor([1, 3, 5])
    pool.add(stay, (x[stay],), 2.0)
    pool.add(torch.arange(8, 12), (x[8:],), 3.0)
    pool.discard(torch.tensor([3, 9, 77]))
    assert pool.count == 5
    where, (rows,), since, _ = pool.take(2)
    assert where.tolist() == rows.squeeze(1).tolist() == [1, 5]
    assert since == 2.0
    where, (rows,), *_ = pool.take(2)
    assert where.tolist() == rows.squeeze(1).tolist() == [8, 10, 11]
    assert (pool.count, pool.since) == (0, math.inf)
    pool.discard(torch.tensor([1]))
