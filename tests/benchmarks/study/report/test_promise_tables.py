"""The table of promises, how they are counted, and why some were missed."""

from dataclasses import replace

from benchmarks.promises import Promise
from benchmarks.study.report.promise_tables import count_promises, list_misses, promises_table

FIRST = Promise("a", "what", 1.0, ">=", 0.5, half=0.4, track="neck and EGT")
WORSE = Promise("b", "more", 2.0, "<=", 1.0)


def test_promises_are_counted_once_and_open_ones_are_said_to_be():
    same, other = replace(FIRST, track="context heads alike"), replace(FIRST, measured=0.4)
    line = count_promises([FIRST, same, other, replace(WORSE, half=0.5)])
    assert "1 promises were kept and 2 **missed**" in line
    assert "Of all these, 1 have an interval that reaches over the bar" in line


def test_a_column_for_each_comparison():
    lines = promises_table([FIRST, replace(FIRST, measured=0.4, track="context heads alike"), WORSE])
    assert lines[2:] == [
        "| what | >= 0.5 | 1 ± 0.4, kept | **0.4 ± 0.4, missed** (*open*) |  |",
        "| more | <= 1 | **2, missed** |  |  |",
    ]


def test_misses_stand_under_their_reason():
    missed = replace(FIRST, measured=0.1, reason="For this reason.")
    again, other = replace(missed, track="context heads alike"), replace(missed, what="else", track="")
    assert list_misses([FIRST, missed, again, other, WORSE]) == [
        "- For this reason.\n  (*what [neck and EGT, context heads alike]; else*)",
        "- No reason is known yet.\n  (*more*)",
    ]
