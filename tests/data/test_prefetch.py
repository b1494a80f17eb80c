import threading
import time

import pytest

from exitlens.data.prefetch import Prefetch


def test_gives_everything_in_order_and_ends():
    with Prefetch(iter(range(10))) as items:
        found = []
        while not items.ended:
            item = items.next()
            if item is not None:
                found.append(item)
    assert found == list(range(10))
    assert items.error is None


def test_reads_no_further_ahead_than_its_depth():
    read = []

    def source():
        for i in range(100):
            read.append(i)
            yield i

    with Prefetch(source(), depth=3) as items:
        for _ in range(200):
            if len(read) >= 4:
                break
            time.sleep(0.005)
        time.sleep(0.02)
        assert len(read) <= 5
        assert items.next() == 0


def test_waits_no_longer_than_it_is_told():
    gate = threading.Event()

    def source():
        gate.wait(10)
        yield 1

    with Prefetch(source()) as items:
        assert items.next(0.0) is None
        assert not items.ended
        gate.set()
        assert items.next() == 1


def test_an_exception_ends_it_after_what_came_before():
    def source():
        yield 1
        raise ValueError("broken")

    with Prefetch(source()) as items:
        assert items.next() == 1
        assert items.next() is None
        assert items.ended
        assert str(items.error) == "broken"


def test_what_is_no_exception_ends_it_too():
    def source():
        yield 1
        raise KeyboardInterrupt

    with Prefetch(source()) as items:
        assert items.next() == 1
        assert items.next(5) is None
        assert isinstance(items.error, KeyboardInterrupt)


def test_leaving_early_stops_the_thread():
    def source():
        yield from range(1_000_000)

    with Prefetch(source()) as items:
        items.next()
    names = [t.name for t in threading.enumerate()]
    assert "exitlens-prefetch" not in names


@pytest.mark.parametrize("depth", [1, 5])
def test_depths(depth):
    with Prefetch(iter("ab"), depth=depth) as items:
        assert [items.next(), items.next(), items.next()] == ["a", "b", None]
