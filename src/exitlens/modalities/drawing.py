"""Maps over series and volumes: curves over shaded time, and projections."""

from __future__ import annotations

from html import escape

import torch
from torch import Tensor

from exitlens.display import COLOURS, map_svg, pick_exit_colour, shades, to_picture

WIDTH, HEIGHT, SIDE = 320, 90, 120  # pixels
MOST_CURVES, MOST_POINTS = 6, 640


def draw_series(values: Tensor, attention: Tensor, evidence: Tensor, label: str) -> str:  # (C,T), (t,), (t,)
    """Draw the first channels as curves, each scaled to its range, over bars that are darker where the exit attends."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    heat, width = shades(attention[None])[0].tolist(), WIDTH / len(attention)
    bars = []
    for i, share in enumerate(heat):
        colour = to_hex(colormaps[COLOURS](share))
        tip = f"{i + 1} of {len(heat)}: {100 * attention[i]:.1f} % of the attention, evidence {evidence[i]:+.3f}"
        place = f'x="{i * width:.2f}" y="0" width="{width:.2f}" height="{HEIGHT}"'
        fill = f'fill="{colour}" fill-opacity="{0.15 + 0.6 * share:.2f}"'
        bars.append(f"<rect {place} {fill}><title>{tip}</title></rect>")
    curves = [_draw_curve(row, c, min(len(values), MOST_CURVES)) for c, row in enumerate(values[:MOST_CURVES])]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(label)}">{"".join(bars)}{"".join(curves)}</svg>'
    )


def _draw_curve(row: Tensor, c: int, count: int) -> str:
    steps = torch.linspace(0, len(row) - 1, min(len(row), MOST_POINTS)).round().long()
    low, high = row.min().item(), row.max().item()
    x = (steps.float() + 0.5) / len(row) * WIDTH
    y = HEIGHT - 5 - (row[steps] - low) / max(high - low, 1e-12) * (HEIGHT - 10)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    colour = "currentColor" if count == 1 else pick_exit_colour(c, count)
    tip = f"channel {c}: {low:.4g} to {high:.4g}"
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"><title>{tip}</title></polyline>'


def draw_volume(values: Tensor, attention: Tensor, evidence: Tensor, label: str) -> str:  # (D,H,W), (d,h,w), (d,h,w)
    """Draw maximum projections along every axis, whose squares sum what lies behind them, and the most attended slice."""
    low, high = values.min(), values.max()
    shown = (values - low) / (high - low).clamp_min(1e-12)
    parts = []
    for axis, seen in enumerate(("front", "top", "side")):
        picture = shown.amax(axis)
        parts.append((f"{label}, from the {seen}", picture, attention.sum(axis), evidence.sum(axis)))
    at = int(attention.sum((1, 2)).argmax())
    depth = min(len(values) - 1, int((at + 0.5) * len(values) / len(attention)))
    share = attention[at] / attention[at].sum().clamp_min(1e-12)
    parts.append((f"{label}, slice {depth} of {len(values)}", shown[depth], share, evidence[at]))
    drawn = []
    for tip, picture, weight, adds in parts:
        base = to_picture(picture[None])
        base = base.resize((SIDE, max(1, round(SIDE * base.height / base.width))))
        drawn.append(map_svg(base, weight, adds, tip, str(SIDE)))
    return f'<div style="display:flex;gap:3px">{"".join(drawn)}</div>'
