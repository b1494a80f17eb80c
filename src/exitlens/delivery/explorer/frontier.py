"""The explorer's plot, redrawn in milliseconds whenever a threshold moves."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from exitlens.delivery.pages import load_template
from exitlens.display import pick_exit_colour
from exitlens.types.outputs import exit_name
from exitlens.workflow.evaluation import Report

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 58, WIDTH - 12, 26, HEIGHT - 40  # where the axes are


def draw_frontier(report: Report) -> str:
    """Draws accuracy against cost: the best thresholds at every cost, each exit alone, and the report's thresholds."""
    labelled = report.accuracy is not None
    exits = [(row.cost, row.agreement if row.accuracy is None else row.accuracy) for row in report.exits]
    now = (report.cost, 1 - report.disagreement if report.accuracy is None else report.accuracy)
    points = [*report.curve, *exits, now]
    costs = _choose_ticks(0.0, max(x for x, _ in points))
    low, high = (100 * f(y for _, y in points) for f in (min, max))
    levels = [level for level in _choose_ticks(low, high) if level <= 100]
    x1, y0, y1 = costs[-1], levels[0], max(levels[-1], high)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        share = (100 * point[1] - y0) / (y1 - y0)
        return LEFT + point[0] / x1 * (RIGHT - LEFT), BOTTOM - share * (BOTTOM - TOP)

    count = len(exits)
    titles = [f"{exit_name(k, count)} alone: {100 * y:.1f} % at cost {x:.3f}" for k, (x, y) in enumerate(exits)]
    what = "accuracy" if labelled else "agreement with final"
    return load_template("explorer_frontier.svg.j2").render(
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=BOTTOM,
        across=[(at((x, 0.0))[0], f"{x:g}") for x in costs],
        up=[(at((0.0, y / 100))[1], f"{y:g}") for y in levels],
        line=[at(p) for p in report.curve],
        exits=[{"at": at(p), "colour": pick_exit_colour(k, count), "title": titles[k]} for k, p in enumerate(exits)],
        here=at(now),
        what=what,
        alt=f"{what} against cost: these thresholds give {100 * now[1]:.1f} % at cost {now[0]:.3f}",
    )


def _choose_ticks(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` to ``high``, at least two."""
    found = MaxNLocator(5, min_n_ticks=2).tick_values(low, max(high, low + 1e-3))
    return [round(float(v), 10) for v in found]
