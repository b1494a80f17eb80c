"""Names of exits, and numbers as text, the same wherever people read them."""

from __future__ import annotations

import math


def exit_name(k: int, count: int) -> str:
    """``exit 0``, ``exit 1``, ... and ``final``."""
    return "final" if k == count - 1 else f"exit {k}"


def format_threshold(threshold: float, digits: int) -> str:
    """``never`` for an infinite one."""
    return "never" if threshold == math.inf else f"{threshold:.{digits}f}"


def tell_apart(one: float, other: float, digits: int = 3) -> tuple[str, str]:
    """Both numbers, with enough digits (``digits`` to 7) to tell them apart where that is possible."""
    while digits < 7 and one != other and f"{one:.{digits}f}" == f"{other:.{digits}f}":
        digits += 1
    return f"{one:.{digits}f}", f"{other:.{digits}f}"
