"""The study's promises as Markdown: all of them, and those that were missed with the reasons."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.markdown import table
from benchmarks.promises import Promise
from benchmarks.study.report.promises import TRACKS


def promises_table(promises: Sequence[Promise]) -> list[str]:
    """A row for each promise, a column for each comparison; what is judged once stands in the first."""
    columns = [track.name for track in TRACKS]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for promise in promises:
        row = rows.setdefault((promise.what, f"{promise.sense} {promise.bar:g}"), {})
        row[promise.track or columns[0]] = _judge(promise)
    lines = [[*names, *(row.get(column, "") for column in columns)] for names, row in rows.items()]
    return table(["promise", "bar", *columns], lines)


def count_promises(promises: Sequence[Promise]) -> str:
    """How many were kept; the same figure for two comparisons (about EGT alone, say) counts once."""
    once = {(promise.what, promise.measured, promise.bar): promise for promise in promises}.values()
    missed = [promise for promise in once if not promise.is_kept]
    still_open = sum(promise.is_open for promise in once)
    return (
        f"{len(once) - len(missed)} promises were kept and {len(missed)} **missed**, counting what stands in two columns once. "
        f"Of all these, {still_open} have an interval that reaches over the bar (*open*: other seeds could turn them)."
    )


def list_misses(promises: Sequence[Promise]) -> list[str]:
    """What was missed, by reason, each with the comparisons that missed it."""
    found: dict[str, dict[str, list[str]]] = {}
    for promise in promises:
        if not promise.is_kept:
            reason = promise.reason or "No reason is known yet."
            found.setdefault(reason, {}).setdefault(promise.what, []).append(promise.track)
    return [f"- {reason}\n  (*{'; '.join(map(_name, which, which.values()))}*)" for reason, which in found.items()]


def _name(what: str, tracks: Sequence[str]) -> str:
    return f"{what} [{', '.join(tracks)}]" if any(tracks) else what


def _judge(promise: Promise) -> str:
    note = promise.note if promise.half is None else f"± {promise.half:.2g}"
    figure = f"{promise.measured:.3g} {note}".strip()
    judged = f"{figure}, kept" if promise.is_kept else f"**{figure}, missed**"
    return f"{judged} (*open*)" if promise.is_open else judged
