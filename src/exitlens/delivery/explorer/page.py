"""The explorer's panels as HTML: a network's answer, and the effect of thresholds on a trace with its plot."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from PIL import Image

from exitlens.delivery.explanations import load_template
from exitlens.delivery.explorer.core import DISPLAY, Answer, LoadedRun
from exitlens.delivery.pictures import draw_heat
from exitlens.display import data_uri, pick_exit_colour, shade_names
from exitlens.functional.maps import as_distribution
from exitlens.types import ExitView, Explanation
from exitlens.types.outputs import exit_name, tell_apart
from exitlens.types.preprocessing import TextPreprocess
from exitlens.workflow.evaluation import Report

BARS, MOST = 3, 50  # classes shown for each exit at once, and on demand
WIDTH, HEIGHT = 380, 240  # of the plot
LEFT, RIGHT, TOP, BOTTOM = 58, WIDTH - 12, 26, HEIGHT - 40  # where the axes are


def answer_page(answer: Answer, picture: Image.Image | None, side: int = 240) -> str:
    """Renders a network's answer: every exit's map over the picture, its probabilities, and the rule that decided.

    ``picture`` is what was answered, if it is one; ``side`` is the least width of a map in pixels.
    """
    base, ratio = "", answer.full_ms / answer.ours_ms
    if picture is not None:
        width, height = (max(1, round(length * DISPLAY / max(picture.size))) for length in picture.size)
        base = data_uri(picture.convert("L").resize((width, height), Image.Resampling.BICUBIC), small=False)
    times = (
        f"{ratio:.2f} times faster" if ratio >= 1.05 else "as fast" if ratio >= 0.95 else f"{1 / ratio:.2f} times as long"
    )
    exits = []
    for view, share in zip(answer.why.exits, answer.run.shares, strict=False):
        shown = _describe_exit(answer.why, view, with_map=picture is not None)
        shown |= _describe_relevance(answer, view, with_map=picture is not None) | {"faithfulness": ""}
        if share is not None:
            reached = f"{share.value:.2f}\u00a0±\u00a0{share.error:.2f} of what trying every cell does"
            shown["faithfulness"] = f"its attention reaches {reached} (deletion, {share.samples} test images)"
        exits.append(shown)
    return load_template("explorer_answer.html.j2").render(answer=answer, times=times, base=base, side=side, exits=exits)


def _describe_exit(why: Explanation, view: ExitView, with_map: bool) -> dict[str, Any]:
    """Describes an exit's map, its probabilities and the rule that decided."""
    name, is_final = exit_name(view.exit, why.num_exits), view.exit == why.num_exits - 1
    top = view.probabilities.topk(min(BARS, len(view.probabilities)))
    bars = [(why.name(i), p) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
    others = view.probabilities.argsort(descending=True)[len(bars) : MOST].tolist()
    later = view.exit > why.answered
    refusal = "was not trusted" if view.confidence >= view.threshold else "was not sure enough"
    refusal = "does not answer under these thresholds" if view.threshold == math.inf else refusal
    drawn = "" if with_map or isinstance(why.preprocess, TextPreprocess) else Markup(why.draw_exit(view))
    role = "answered" if view.exit == why.answered else "would say" if later else refusal
    agreement = "the map that the others are compared with" if is_final else ""
    if not is_final and view.divergence is not None:
        before = "" if view.previous_cc is None else f"; with the exit before, correlation {view.previous_cc:.2f}"
        agreement = f"map against the final one: divergence {view.divergence:.3f}, correlation {view.cc:.2f}{before}"
    return {
        "name": name,
        "colour": pick_exit_colour(view.exit, why.num_exits),
        "answered": view.exit == why.answered,
        "later": later,
        "role": role,
        "probabilities": bars,
        "others": [(why.name(i), view.probabilities[i].item()) for i in others],
        "rule": _explain_rule(view, is_final),
        "agreement": agreement,
        "alt": f"Where {name} looked for its answer {why.name_answer(view)}",
        "heat": data_uri(draw_heat(view.attention), small=False) if with_map else "",
        "drawn": drawn,
        "tokens": [] if with_map or drawn else shade_names(why.tokens, view.attention),
    }


def _describe_relevance(answer: Answer, view: ExitView, with_map: bool) -> dict[str, Any]:
    """Describes what speaks for the exit's answer, drawn as its attention is; empty if relevance was not asked for."""
    if not answer.relevance:
        return {"depends": "", "depends_drawn": "", "depends_tokens": []}
    why, speaks_for = answer.why, as_distribution(answer.relevance[view.exit][None])[0]
    plain = with_map or isinstance(why.preprocess, TextPreprocess)
    drawn = "" if plain else Markup(why.draw_relevance(answer.relevance[view.exit]))
    name = exit_name(view.exit, why.num_exits)
    return {
        "depends": data_uri(draw_heat(speaks_for), small=False) if with_map else "",
        "depends_alt": f"What the answer {why.name_answer(view)} of {name} depends on",
        "depends_drawn": drawn,
        "depends_tokens": [] if with_map or drawn else shade_names(why.tokens, speaks_for),
    }


def _explain_rule(view: ExitView, is_final: bool) -> str:
    if is_final:
        return f"confidence {view.confidence:.3f}; it answers whatever comes to it"
    confidence, threshold = tell_apart(view.confidence, view.threshold)
    word = "≥" if view.fired or view.confidence >= view.threshold else "<"
    rule = f"confidence {confidence} {word} threshold {threshold}"
    if view.threshold == math.inf:
        rule = f"confidence {confidence}; under these thresholds it never answers"
    if view.estimate is None or view.limit is None:
        return rule
    guess, limit = tell_apart(view.estimate, view.limit)
    word = "≤" if view.estimate <= view.limit else ">"
    return f"{rule}; estimated divergence {guess} {word} {limit}, the gate's limit"


def routed_page(run: LoadedRun, report: Report | str, changed: bool, kind: str) -> str:
    """Renders the effect of thresholds on a trace of ``kind`` samples, and where it lies on the frontier."""
    if isinstance(report, str):
        return str(Markup("<section class='xl-routed'><p>{}</p></section>").format(report))
    promise = "Thresholds as calibrated." if not changed else "Thresholds chosen by hand: nothing is promised about them."
    drop = "" if report.accuracy_drop is None else f"{100 * report.accuracy_drop:+.2f} points lost to the final exit"
    count = len(report.exit_shares)
    shares = [
        {"name": exit_name(k, count), "share": share, "colour": pick_exit_colour(k, count)}
        for k, share in enumerate(report.exit_shares)
    ]
    return load_template("explorer_routed.html.j2").render(
        name=run.name, report=report, kind=kind, promise=promise, drop=drop, exits=shares, plot=Markup(draw_frontier(report))
    )


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
    """Returns about five round numbers from ``low`` to ``high``, at least two."""
    ticks = MaxNLocator(5, min_n_ticks=2).tick_values(low, max(high, low + 1e-3))
    return [round(float(tick), 10) for tick in ticks]
