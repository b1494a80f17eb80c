"""Results of deletion and of swaps: what answers do when parts of the inputs are deleted, or come from other samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exitlens.types.settings import check_choice

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SwapShares:
    """Shares of answers, for one kind of map: a row for each exit, the final one's last, with a value for each area.

    Attributes:
        binding: share of the exit's answers that stay when everything outside the map's top locations is replaced.
        necessity: share that change when these top locations are replaced; ``None`` where it was not measured.
        area_under: area under ``binding`` over the areas by trapezoids, divided by their span, for each exit: its mean.
        binding_error, necessity_error, area_under_error: standard errors, over samples.
    """

    binding: Table
    binding_error: Table
    necessity: Table | None
    necessity_error: Table | None
    area_under: tuple[float, ...]
    area_under_error: tuple[float, ...]


@dataclass(frozen=True)
class Binding:
    """Shares of answers that rest on what maps show, beside maps that show nothing, and beside what is possible.

    Attributes:
        areas: shares of the input's locations (of a text's tokens, at least one) that count as a map's top.
        maps: the exits' maps.
        another: maps of other samples, of the same exit: the null.
        centre: locations by their distance to the middle. ``None`` for texts and vectors, as the two below.
        edges: the magnitude of the input's gradient, averaged to the grid of exit 0's map.
        saliency: the spectral residual (Hou & Zhang, CVPR 2007), on that grid; ``None`` but for images.
        above_another: ``binding`` of ``maps`` less that of ``another``, a row for each exit with a value for each area.
        above_another_error: its standard error, paired by sample.
        oracle: binding at 20 %, with one donor, of cells chosen greedily; ``None`` without an oracle.
        oracle_share: ``(maps - another) / (oracle - another)`` over the oracle's samples, all with its one donor: the part
            of what is possible that the map reaches; ``None`` at an exit where the oracle gains nothing. Values above 1
            occur, because regions of maps are finer than the oracle's grid.
        oracle_error, oracle_share_error: standard errors, over samples.
        samples, oracle_samples, donors: the numbers of samples, and of others whose parts each of them took.
    """

    areas: tuple[float, ...]
    maps: SwapShares
    another: SwapShares
    centre: SwapShares | None
    edges: SwapShares | None
    saliency: SwapShares | None
    above_another: Table
    above_another_error: Table
    samples: int
    donors: int
    oracle_samples: int = 0
    oracle: tuple[float, ...] | None = None
    oracle_error: tuple[float, ...] | None = None
    oracle_share: tuple[float | None, ...] | None = None
    oracle_share_error: tuple[float | None, ...] | None = None

    def at(self, area: float = 0.2, of: Literal["maps", "another"] = "maps") -> tuple[float, ...]:
        """Return the binding of every exit at one of the ``areas``, of the exits' own maps or of another sample's."""
        check_choice("area", area, self.areas)
        check_choice("of", of, ("maps", "another"))
        swaps, column = self.maps if of == "maps" else self.another, self.areas.index(area)
        return tuple(row[column] for row in swaps.binding)


@dataclass(frozen=True)
class CueSwap:
    """Answers that change when the true background alone is replaced: a number for each exit, the final one's last.

    Attributes:
        change: share of the exit's answers that change.
        beyond_final: this share less the final exit's: what the exit rests on that the whole network does not.
        change_error, beyond_final_error: standard errors, over samples; the second paired by sample.
        samples, donors: the numbers of samples that have an object and a background, and of backgrounds for each.
    """

    change: tuple[float, ...]
    change_error: tuple[float, ...]
    beyond_final: tuple[float, ...]
    beyond_final_error: tuple[float, ...]
    samples: int
    donors: int


@dataclass(frozen=True)
class AreaUnderCurve:
    """The mean of a curve over the share of deleted or inserted cells, a number for each exit, the final exit's last.

    Curves have points at 5, 10, 20, 40 and 80 % of the cells; the mean is the area between the first and the last by the
    trapezoid rule, over its width. RISE (arXiv 1806.07421) also takes the ends, which are the same for every map.

    Attributes:
        map, random, oracle: of the map's cells, of random cells, and of the oracle's.
        share: ``(map - random) / (oracle - random)``; ``None`` at an exit where the oracle gains nothing.
        share_error: its standard error, over samples.
    """

    map: tuple[float, ...]
    random: tuple[float, ...]
    oracle: tuple[float, ...]
    share: tuple[float | None, ...]
    share_error: tuple[float | None, ...]
