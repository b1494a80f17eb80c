"""Which stage runs next."""

import pytest

from exitlens.serving.batching.scheduling import Pace, Pool, choose_pool

ARRIVALS, MIDDLE, DEEP = Pool(0, 0, 40, 9.0), Pool(0, 1, 5, 9.9), Pool(0, 2, 3, 9.8)


def test_arrivals_first_so_that_others_find_company():
    assert choose_pool([ARRIVALS, MIDDLE, DEEP], 50, 10.0, 0.5) == ARRIVALS


def test_whole_micro_batches_the_deepest_first():
    assert choose_pool([ARRIVALS, MIDDLE, DEEP], 4, 10.0, 0.5) == MIDDLE
    assert choose_pool([ARRIVALS, MIDDLE, DEEP], 3, 10.0, 0.5) == DEEP
    assert choose_pool([ARRIVALS, MIDDLE, DEEP], 30, 10.0, 0.5) == ARRIVALS


def test_who_waited_too_long_for_company_goes_on():
    assert choose_pool([ARRIVALS, MIDDLE, DEEP], 30, 10.0, 0.15) == DEEP  # arrivals do not wait for company
    assert choose_pool([ARRIVALS, MIDDLE, DEEP], 30, 10.0, 0.05) == DEEP  # the longer of two


def test_deadlines_before_all():
    urgent = Pool(1, 0, 1, 9.99, True), Pool(1, 1, 1, 9.99, True)
    assert choose_pool([ARRIVALS, *urgent, DEEP], 3, 10.0, 0.05) == urgent[1]


def test_the_pace_is_learnt():
    pace = Pace()
    assert (pace.forecast(0, 1), pace.forecast_longest(), pace.seconds_each) == (0.0, 0.0, 0.0)
    pace.observe(0, 1, 1.0)
    pace.observe(0, 16, 4.0)
    pace.observe(1, 1, 7.0)
    assert [pace.forecast(0, n) for n in (1, 2, 8, 16, 31, 500)] == [1.0, 1.0, 4.0, 4.0, 4.0, 4.0]
    pace.observe(0, 1, 2.0)
    assert pace.forecast(0, 1) == pytest.approx(1.1)
    assert pace.forecast_longest() == 7.0
    pace.observe_work(4, 2.0)
    assert pace.seconds_each == 0.5
    for _ in range(1000):
        pace.observe_work(2, 4.0)
    assert pace.seconds_each == pytest.approx(2.0)


def test_the_pace_of_answers_is_that_of_all_not_of_the_last_step():
    pace = Pace()
    for _ in range(30):
        pace.observe_work(16, 1.0)  # those that leave early, and the few that need the rest of the network
        pace.observe_work(4, 9.0)
    assert pace.seconds_each == pytest.approx(0.5, rel=0.1)
