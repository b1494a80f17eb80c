"""The explorer's panels as HTML: what a network says of an image, and what thresholds do to a trace."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup
from PIL import Image

from exitlens.delivery.explanations.pictures import heat
from exitlens.delivery.explanations.tokens import shade_tokens
from exitlens.delivery.explorer.core import DISPLAY, Answer, Subject
from exitlens.delivery.explorer.frontier import frontier_svg
from exitlens.delivery.pages import template
from exitlens.display import data_uri, pick_exit_colour
from exitlens.types import ExitView, Explanation
from exitlens.types.words import exit_name, tell_apart
from exitlens.workflow.evaluation import Report

BARS, MOST = 3, 50  # classes shown an exit, and on demand


def answer_page(answer: Answer, picture: Image.Image | None, side: int = 240) -> str:
    """What one network says: every exit's map over the picture, its probabilities, and the rule that let it answer.

    Args:
        side: pixels that a map is wide, at least.
    """
    why = answer.why
    base = "" if picture is None else data_uri(_base(picture), small=False)
    return template("explorer_answer.html.j2").render(
        name=answer.subject.name,
        reason=why.reason,
        ours_ms=answer.ours_ms,
        full_ms=answer.full_ms,
        times=_times(answer),
        rounds=answer.rounds,
        cost=why.exits[why.answered].cost,
        base=base,
        side=side,
        exits=[_exit(why, view, answer.subject, with_map=picture is not None) for view in why.exits],
    )


def _times(answer: Answer) -> str:
    ratio = answer.full_ms / answer.ours_ms
    return f"{ratio:.2f} times faster" if ratio >= 1.05 else f"{1 / ratio:.2f} times as long" if ratio < 0.95 else "as fast"


def _base(picture: Image.Image) -> Image.Image:
    factor = DISPLAY / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("L").resize(size, Image.Resampling.BICUBIC)


def _exit(why: Explanation, view: ExitView, subject: Subject, with_map: bool) -> dict[str, Any]:
    name = exit_name(view.exit, why.num_exits)
    top = view.probabilities.topk(min(BARS, len(view.probabilities)))
    bars = [(why.name(i), p) for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
    others = view.probabilities.argsort(descending=True)[len(bars) : MOST].tolist()
    later = view.exit > why.answered
    held = "was not trusted" if view.confidence >= view.threshold else "was not sure enough"
    held = "does not answer under these thresholds" if view.threshold == math.inf else held
    role = "answered" if view.exit == why.answered else "would say" if later else held
    return {
        "name": name,
        "colour": pick_exit_colour(view.exit, why.num_exits),
        "answered": view.exit == why.answered,
        "later": later,
        "role": role,
        "probabilities": bars,
        "others": [(why.name(i), view.probabilities[i].item()) for i in others],
        "rule": _rule(view, view.exit == why.num_exits - 1),
        "agreement": _agreement(view, view.exit == why.num_exits - 1),
        "alt": f"Where {name} looked for its answer {why.name(view.label)}",
        "heat": data_uri(heat(view.attention), small=False) if with_map else "",
        "tokens": [] if with_map else shade_tokens(why, view),
    }


def _rule(view: ExitView, is_final: bool) -> str:
    if is_final:
        return f"confidence {view.confidence:.3f}; it answers whatever comes to it"
    confidence, threshold = tell_apart(view.confidence, view.threshold)
    word = "≥" if view.fired or view.confidence >= view.threshold else "<"
    said = f"confidence {confidence} {word} threshold {threshold}"
    if view.threshold == math.inf:
        said = f"confidence {confidence}; under these thresholds it never answers"
    if view.estimate is None or view.limit is None:
        return said
    guess, limit = tell_apart(view.estimate, view.limit)
    word = "≤" if view.estimate <= view.limit else ">"
    return f"{said}; estimated divergence {guess} {word} {limit}, the gate's limit"


def _agreement(view: ExitView, is_final: bool) -> str:
    if is_final or view.divergence is None:
        return "the map that the others are compared with" if is_final else ""
    before = "" if view.previous_cc is None else f"; with the exit before, correlation {view.previous_cc:.2f}"
    return f"map against the final one: divergence {view.divergence:.3f}, correlation {view.cc:.2f}{before}"


def routed_page(subject: Subject, report: Report | str, changed: bool, kind: str) -> str:
    """What thresholds do on the trace of ``kind`` samples, and where that lies on the frontier."""
    if isinstance(report, str):
        return str(Markup("<section class='xl-routed'><p>{}</p></section>").format(report))
    promise = "Thresholds as calibrated." if not changed else "Thresholds chosen by hand: nothing is promised about them."
    drop = "" if report.accuracy_drop is None else f"{100 * report.accuracy_drop:+.2f} points lost to the final exit"
    shares = [
        {
            "name": exit_name(k, len(report.exit_shares)),
            "share": share,
            "colour": pick_exit_colour(k, len(report.exit_shares)),
        }
        for k, share in enumerate(report.exit_shares)
    ]
    return template("explorer_routed.html.j2").render(
        name=subject.name,
        samples=f"{report.samples:,} {kind}",
        promise=promise,
        accuracy=report.accuracy,
        drop=drop,
        cost=report.cost,
        divergence=report.divergence,
        exits=shares,
        plot=Markup(frontier_svg(report)),
    )
