"""Plans of how many samples to collect: as a table and as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from exitlens.errors import InputError
from exitlens.io import make_directory
from exitlens.types import SamplePlan
from exitlens.types.plans import CHANCE

SUFFIXES = (".svg", ".png", ".pdf")


def tabulate_plan(plan: SamplePlan) -> list[list[str]]:
    """Return rows of text, the head first: a row for every second size, or for each case that is assumed."""
    if not plan.sizes:
        rows = [["early answers lose", "answers that differ", plan.unit]]
        for case in plan.cases:
            units = "more than anybody collects" if case.units is None else f"{case.units:,}"
            rows.append([f"{100 * case.lost:.3g} %", f"{100 * case.differing:.3g} %", units])
        return rows
    rows = [[plan.unit, "certified, % of draws", "mean cost", "cost in 8 of 10 draws"]]
    for size in plan.sizes[::2]:
        spread = f"{size.low:.2f} to {size.high:.2f}"
        rows.append([f"{size.units:,}", f"{100 * size.certified:.0f}", f"{size.cost:.2f}", spread])
    return rows


def check_picture(path: Path) -> None:
    """Raise :class:`InputError` unless a plan can be drawn into a file of this name."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"out: expected a picture {', '.join(SUFFIXES)}, got {path}. Fix: choose one of these suffixes.")


def draw_plan(plan: SamplePlan, path: Path) -> None:
    """Draw how often each number of samples gets a certificate, and what the policy costs."""
    figure = Figure((6.4, 3.6), layout="constrained")
    axes, units = figure.subplots(), [size.units for size in plan.sizes]
    axes.fill_between(units, [size.low for size in plan.sizes], [size.high for size in plan.sizes], alpha=0.25, lw=0)
    axes.plot(units, [size.cost for size in plan.sizes], label="mean cost (8 of 10 draws in the band)")
    axes.plot(units, [size.certified for size in plan.sizes], "--", label="share of draws with a certificate")
    if plan.limit_cost is not None:
        axes.axhline(plan.limit_cost, color="C0", lw=1, ls=":", label="cost that the limits allow")
    for at, name in ((plan.at_hand, "at hand"), (plan.needed, f"needed for {100 * CHANCE:.0f} %")):
        if at is not None:
            axes.axvline(at, color="0.4", lw=1)
            axes.annotate(f"{name}: {at:,}", (at, 1.03), rotation=30, fontsize=8, annotation_clip=False)
    axes.set(xscale="log", xlabel=plan.unit, ylim=(0, 1.02))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    make_directory(path.parent, "out")
    figure.savefig(path)
