"""Plans: how many calibration samples a certificate takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from exitlens.types.settings import CalibrationRequest

CHANCE = 0.9  # with which the planned number of samples gets a certificate


class PlannedSize(NamedTuple):
    """What calibration on so many samples (or groups) would bring."""

    units: int
    certified: float  # share of draws in which an early exit is certified
    cost: float  # mean over the draws, of which those without a certificate cost 1 or more
    low: float  # tenth and ninetieth percentile of the cost
    high: float


class PlannedCase(NamedTuple):
    """The samples that a limit takes if early answers lose so much."""

    lost: float  # accuracy, or the share of answers that differ
    differing: float  # share of samples of which only one of the two answers is right
    units: int | None  # None: more than anybody collects


@dataclass(frozen=True)
class SamplePlan:
    """The number of samples that a certificate takes.

    Attributes:
        request: what :func:`exitlens.calibrate` would be asked for.
        unit: what is counted: ``samples`` or ``groups``.
        at_hand: so many the trace has; ``None`` without a trace.
        needed: with so many, the early exits are certified in 9 of 10 draws; ``None``: not with any size that was tried.
        sizes: what each size would bring, by simulation; empty without a trace.
        limit_cost: the cost that the limits allow on the trace, which a certificate approaches with more samples.
        cases: without a trace, the samples needed by what early answers lose.

    Examples:
        >>> plan = xl.plan_samples(xl.CalibrationRequest(max_disagreement=0.05, delta=0.1))
        >>> plan.cases[0].lost, plan.cases[0].units
        (0.0, 75)
    """

    request: CalibrationRequest
    unit: str = "samples"
    at_hand: int | None = None
    needed: int | None = None
    sizes: tuple[PlannedSize, ...] = ()
    limit_cost: float | None = None
    cases: tuple[PlannedCase, ...] = ()

    def __str__(self) -> str:
        if not self.sizes:
            least = self.cases[0].units
            shown = "More samples than anybody collects" if least is None else f"{least:,} independent samples"
            return f"{shown} if early answers lose nothing, more if they do"
        here = next((size for size in self.sizes if size.units == self.at_hand), None)
        seen = f"The {self.at_hand:,} {self.unit} at hand are too few for any."
        if here is not None:
            seen = f"The {self.at_hand:,} {self.unit} at hand get a certificate in {100 * here.certified:.0f} % of draws"
            seen += f", at a mean cost of {here.cost:.2f} (the limits alone allow {self.limit_cost:.2f})."
        if self.needed is None:
            most = self.sizes[-1].units
            return f"{seen} Even {most:,} like these would not do in {100 * CHANCE:.0f} %: raise a limit, or collect others."
        return f"About {self.needed:,} {self.unit} get one in {100 * CHANCE:.0f} %. {seen}"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        return asdict(self) | {name: [part._asdict() for part in getattr(self, name)] for name in ("sizes", "cases")}
