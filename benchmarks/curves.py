"""Accuracy against cost as a curve: its upper hull, and the area under it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from exitlens.errors import InputError


def upper_hull(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The concave upper hull of ``(cost, accuracy)`` points: what randomising between policies reaches, cheapest first.

    Points dearer than the most accurate one are left out.
    """
    hull: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if hull and accuracy <= hull[-1][1]:
            continue
        while len(hull) > 1 and _below(hull[-2], hull[-1], (cost, accuracy)):
            hull.pop()
        hull.append((cost, accuracy))
    return hull


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether ``b`` lies on or below the line from ``a`` to ``c``."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def area_under_curve(
    points: Sequence[tuple[float, float]], low: float = 0.1, high: float = 1.0, guess: float = 0.0, hull: bool = True
) -> float:
    """Mean accuracy over mean costs from ``low`` to ``high``, along ``(cost, accuracy)`` points.

    Args:
        points: of policies or networks, at different costs.
        low: smallest cost, high: largest, in units of the plain backbone.
        guess: accuracy of an answer that costs nothing (``1/C``): from it the curve starts.
        hull: along the points' upper hull. That chooses among them by their accuracy, so it flatters many points over few:
            set it to ``False`` for points that were chosen on other data.

    Raises:
        InputError: for no point, or ``low`` not below ``high``.
    """
    if not points or not 0 <= low < high:
        raise InputError(f"points, low, high: expected points and 0 <= low < high, got {len(points)}, {low} and {high}")
    corners = [(0.0, guess), *points]
    corners = upper_hull(corners) if hull else sorted(corners)
    xs = torch.tensor([x for x, _ in corners], dtype=torch.float64)
    ys = torch.tensor([y for _, y in corners], dtype=torch.float64)
    inside = xs[(xs > low) & (xs < high)]
    grid = torch.cat([torch.tensor([low], dtype=torch.float64), inside, torch.tensor([high], dtype=torch.float64)])
    return (torch.trapezoid(_interpolate(grid, xs, ys), grid) / (high - low)).item()


def _interpolate(at: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Linear between the points, constant beyond the last."""
    if len(xs) == 1:
        return ys.expand(len(at))
    right = torch.searchsorted(xs, at).clamp(1, len(xs) - 1)
    left = right - 1
    share = ((at - xs[left]) / (xs[right] - xs[left]).clamp_min(1e-12)).clamp(0, 1)
    return ys[left] + share * (ys[right] - ys[left])
