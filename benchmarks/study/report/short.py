"""The study in short: sentences of words/*.md with the figures of the runs put in."""

from __future__ import annotations

from statistics import mean

from benchmarks.store import Store
from benchmarks.study.conditions import FOR, TIMED
from benchmarks.study.report.figures import Pick, Rows, accuracy, area, consistency, load_rows, over_seeds, pair
from benchmarks.study.report.tables import show


def early_accuracy(test: str) -> Pick:
    """Mean over the early exits, in points."""
    return lambda found: 100 * mean(found["tests"][test]["accuracy"][:-1])


FIGURES: dict[str, tuple[Pick, int]] = {
    "skill": (consistency("cc", "skill"), 2),
    "kl": (consistency("kl", "value"), 2),
    "exit 0": (accuracy(0), 1),
    "exit 0, disagreeing": (accuracy(0, "disagreeing"), 1),
    "exit 0, unseen": (accuracy(0, "unseen"), 1),
    "early": (early_accuracy("agreeing"), 1),
    "early, disagreeing": (early_accuracy("disagreeing"), 1),
    "early, unseen": (early_accuracy("unseen"), 1),
    "final": (accuracy(-1), 1),
    "final, disagreeing": (accuracy(-1, "disagreeing"), 1),
    "final, unseen": (accuracy(-1, "unseen"), 1),
    "area": (area, 1),
}


class Figures(dict[str, str]):
    """``{figure|condition}``, and ``{figure|condition|other}`` for the difference paired by seed; KeyError where there is no run.

    Of scenes, or of what stands before a slash: ``{digits/skill|egt}``.
    """

    def __init__(self, store: Store, others: dict[str, str]) -> None:
        super().__init__(others)
        self.rows: dict[str, Rows] = {data: load_rows(store, data) for data in FOR}

    def __missing__(self, key: str) -> str:
        what, *conditions = key.split("|")
        data, _, name = what.rpartition("/")
        rows = self.rows[data or "scenes"]
        pick, digits = FIGURES[name]
        if len(conditions) == 2:
            return show(pair(rows, *conditions, pick), digits)
        return show(over_seeds(rows, conditions[0], pick), digits)


def show_speeds(store: Store, data: str) -> dict[str, str]:
    """How much faster, and what is lost, under each policy: what the promises are judged on, and others."""
    runs = load_rows(store, "speed").get(data, {}).values()
    texts = {}
    for policy in dict.fromkeys(policy for found in runs for policy in found["rows"]):
        rows = [found["rows"][policy] for found in runs if policy in found["rows"]]
        texts[f"times, {data}, {policy}"] = show([row["speed"]["speedup"] for row in rows], 1)
        texts[f"lost, {data}, {policy}"] = show([100 * row["accuracy_drop"] for row in rows], 2)
    return texts


def fill_in(store: Store, template: str) -> list[str]:
    """The template's items that there are runs for."""
    figures = Figures(store, {key: text for data in TIMED for key, text in show_speeds(store, data).items()})
    lines = []
    for item in template.rstrip().split("\n- "):
        try:
            lines.append(item.format_map(figures))
        except KeyError:
            continue  # no run of that condition yet
    return "\n- ".join(lines).split("\n") if len(lines) > 1 else []
