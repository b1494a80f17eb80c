import json

import pytest

import exitlens as xl
from exitlens.types.timings import format_ms, make_increasing
from tests.conftest import make_timing


def test_a_timing_says_what_it_holds_for_and_goes_through_json():
    timing = make_timing()
    assert timing.cost == (0.2, 0.5, 1.05)
    assert timing.spread == pytest.approx((0.1, 0.04, 0.02), abs=1e-3)
    assert timing.where() == "batches of 64 on Slow 9000, 2 threads"
    assert timing.list_ms() == "2, 5, 10.5 ms at the exits, batches of 64 on Slow 9000, 2 threads"
    quartiles = "2 (1.9 to 2.1), 5 (4.9 to 5.1), 10.5 (10.4 to 10.6) ms at the exits, with quartiles"
    assert str(timing) == f"{quartiles}; batches of 64 on Slow 9000, 2 threads"
    assert xl.Timing.from_dict(json.loads(json.dumps(timing.to_dict()))) == timing


def test_single_samples_on_an_accelerator():
    one = xl.Timing((1.0,), (1.0,), (1.0,), 1.0, 1, 1, {"processor": "P", "device": "Card"})
    assert one.where() == "single samples on Card (P), 1 thread"
    assert xl.Timing((1.0,), (1.0,), (1.0,), 1.0, 1, 1).where() == "single samples on this machine, 1 thread"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ms": (2.0, 2.0, 3.0)}, "increase from exit to exit"),
        ({"ms": (0.0, 2.0, 3.0)}, "positive milliseconds"),
        ({"ms": (1.0, 2.0, float("inf"))}, "positive milliseconds"),
        ({"ms": (1.0, 2.0)}, "two quartiles for each exit"),
        ({"low": "abc"}, "expected milliseconds of each exit"),
        ({"whole_ms": -1}, "positive milliseconds"),
        ({"batch_size": 0}, "batch_size of 1 or more"),
        ({"threads": True}, "threads of 1 or more"),
        ({"machine": "Slow 9000"}, "description of the machine by name"),
        ({"colour": 1}, "expected what Timing.to_dict gave"),
    ],
)
def test_what_is_no_timing(change, message):
    with pytest.raises(xl.InputError, match=message):
        xl.Timing.from_dict(make_timing().to_dict() | change)


def test_numbers_as_text_and_in_order():
    assert [format_ms(value) for value in (0.12345, 12.345, 123.45)] == ["0.123", "12.3", "123"]
    assert make_increasing([2.0, 1.0, 3.0], step=0.5) == (2.0, 3.0, 4.5)
    assert make_increasing([1.0, 2.0]) == (1.0, 2.0)
