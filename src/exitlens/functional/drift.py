"""Drift: whether new samples still look like those that a policy was calibrated on."""

from __future__ import annotations

import math
import random
import warnings
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from exitlens.errors import DriftWarning, InputError, PolicyError, require
from exitlens.types import Policy, Prediction
from exitlens.types.policies import DriftReference
from exitlens.types.settings import PROPER_SHARE, check_number

BINS = 8  # cells for the scores at each exit
STAKES = np.array([-0.9, -0.5, 0.5, 0.9])  # for tilted and for bent densities
PERIOD = 25  # samples between two times at which new bets start
TOTAL = 2.10974  # the sum of 1 / (n ln(n)^2) over n >= 2


@dataclass(frozen=True)
class Drift:
    """The state of a :class:`DriftMonitor`.

    Attributes:
        samples: number seen. exit_shares: of these; expected_shares: of the calibration samples.
        confidence: mean score at the exit that answered; expected_confidence: of the calibration samples.
        refused: share of the samples that the gate refused at an exit at which their confidence was enough; ``None`` without
            a gate. refused_by_class: the same among the samples of each answer, by its number.
        evidence: the largest factor by which the bet against "nothing changed" has multiplied its stake so far.
        alarm: whether that reached ``1 / false_alarm``. since: the sample at which it did.
        groups: number of groups, if they are counted: shares and confidences are then of the first sample of each.
    """

    samples: int
    exit_shares: tuple[float, ...]
    expected_shares: tuple[float, ...]
    confidence: float
    expected_confidence: float
    refused: float | None
    refused_by_class: Mapping[int, float]
    evidence: float
    alarm: bool
    since: int | None
    groups: int | None = None

    @property
    def summary(self) -> str:
        """The state in plain words."""
        groups = "" if self.groups is None else f" in {self.groups} groups"
        both = self.exit_shares, self.expected_shares
        seen, expected = ("/".join(f"{100 * share:.0f} %" for share in shares) for shares in both)
        shares = f"exit shares {seen}, expected {expected}"
        if self.refused is not None:
            shares += f"; the gate refused {100 * self.refused:.1f} % of the samples"
        if self.alarm:
            return (
                f"drift: since sample {self.since} of {self.samples}{groups}, samples no longer look like those of the "
                f"calibration ({shares}): calibrate again, unless they only come in another order, such as sorted by class"
            )
        return f"no drift seen in {self.samples} samples{groups} ({shares}; evidence {self.evidence:.3g})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class DriftMonitor:
    """Tests, sample by sample, whether new samples and the calibration samples are exchangeable.

    Every sample's exit and score are ranked among all before it, those of the calibration included. With ties broken at
    random, the ranks are uniform and independent as long as nothing changes (conformal test martingales, Vovk 2021, arXiv
    1906.09256). The monitor bets against that, and starts new bets from time to time, so that a late change is seen too. If
    nothing changes, its wealth ever reaches ``1 / false_alarm`` with probability at most ``false_alarm`` (Ville), however
    long the stream. Memory is constant: samples are counted in cells, eight of the score at each exit.

    The order of samples matters: a folder sorted by class is not exchangeable (docs/concepts/guarantees.md). With groups,
    only the first sample of each is counted, and compared with the first samples of the calibration's groups. The ids that
    were seen are kept.

    Args:
        policy: from :func:`exitlens.calibrate`, and unchanged since.
        false_alarm: in (0, 1).
        seed: of the ties.

    Examples:
        >>> monitor = xl.DriftMonitor(xl.calibrate(trace, max_disagreement=0.5))
        >>> monitor.update(xl.predict(net, images, policy)).samples
        8
    """

    def __init__(self, policy: Policy, false_alarm: float = 0.05, seed: int = 0) -> None:
        require(policy, Policy, "policy", "see exitlens.calibrate")
        if policy.is_changed:
            raise PolicyError("policy: it was changed since it was calibrated: there is nothing to compare with: calibrate")
        if policy.calibration is None or policy.calibration.reference is None:
            raise PolicyError("policy: it was made by hand, so there are no calibration samples to compare with: calibrate")
        self._reference, counts = policy.calibration.reference, policy.calibration.reference.counts
        check_number("false_alarm", false_alarm, PROPER_SHARE)
        self.false_alarm = false_alarm
        self._cells = [*chain(*counts)]  # from the surest at exit 0 on
        self._starts = [sum(map(len, counts[:k])) for k in range(len(counts))]
        self._taken = [0] * len(counts)  # how often, by exit
        self._rng = random.Random(seed)
        self._samples, self._sum = 0, 0.0
        self._groups: set[Hashable] | None = None if policy.calibration.groups is None else set()
        self._refused: dict[int, list[int]] = {}  # by answer: refused, all
        self._wealth = np.full(2 * len(STAKES), -math.inf)  # logarithms, by kind of bet
        self._unspent, self._blocks, self._most = 1.0, 0, 0.0
        self._since: int | None = None

    def update(self, pred: Prediction, groups: Tensor | Sequence[Hashable] | None = None) -> Drift:
        """Count predictions, in the order in which the samples came; warns once, by :class:`DriftWarning`, on alarm.

        ``groups`` ``(B,)`` are integers or names, needed if the calibration counted groups.
        """
        require(pred, Prediction, "pred", "what exitlens.predict returns")
        exits, scores = pred.exits.tolist(), pred.confidence.double().tolist()
        if exits and not 0 <= min(exits) <= max(exits) < len(self._taken):
            raise InputError(f"pred: it was answered at exit {max(exits)}, the policy has {len(self._taken)} exits")
        if not all(math.isfinite(score) for score in scores):
            raise InputError("pred: expected finite confidences, got NaN or Inf")
        before = self._since
        for exit_, score, is_new in zip(exits, scores, self._find_new(groups, len(exits)), strict=True):
            self._samples += 1
            if is_new:
                self._count(exit_, score)
        if pred.refused is not None:
            strongest = pred.probabilities.argmax(1)
            answers = pred.labels if pred.labels.ndim == 1 else strongest
            for answer, exit_ in zip(answers.tolist(), pred.refused.tolist(), strict=True):
                counts = self._refused.setdefault(answer, [0, 0])
                counts[0] += exit_ >= 0
                counts[1] += 1
        if before is None and self._since is not None:
            warnings.warn(f"{self.state().summary}: the policy's promises do not hold for them", DriftWarning, stacklevel=2)
        return self.state()

    def watch(
        self, predictions: Iterable[Prediction], groups: Iterable[Tensor | Sequence[Hashable]] | None = None
    ) -> Iterator[Prediction]:
        """Pass predictions on, and update with each, and with the next of ``groups`` if there are some."""
        ids = None if groups is None else iter(groups)
        for pred in predictions:
            self.update(pred, None if ids is None else next(ids, None))
            yield pred

    def state(self) -> Drift:
        """Return the state of the monitor."""
        count, expected = max(1, sum(self._taken)), [*map(sum, self._reference.counts)]
        refused, asked = map(sum, zip(*self._refused.values(), strict=True)) if self._refused else (0, 0)
        return Drift(
            samples=self._samples,
            exit_shares=tuple(number / count for number in self._taken),
            expected_shares=tuple(number / sum(expected) for number in expected),
            confidence=self._sum / count,
            expected_confidence=self._reference.confidence,
            refused=refused / asked if asked else None,
            refused_by_class={answer: few / many for answer, (few, many) in sorted(self._refused.items())},
            evidence=math.exp(min(self._most, 700.0)),
            alarm=self._since is not None,
            since=self._since,
            groups=None if self._groups is None else len(self._groups),
        )

    def _find_new(self, groups: Tensor | Sequence[Hashable] | None, count: int) -> list[bool]:
        """Tell which of the samples are the first of their group; all of them without groups."""
        if groups is None:
            if self._groups is not None:
                raise InputError(
                    "groups: the calibration, or an earlier update, counted groups: give the group of each sample, too"
                )
            return [True] * count
        ids: list[Hashable] = groups.tolist() if isinstance(groups, Tensor) else list(groups)
        if len(ids) != count:
            raise InputError(f"groups: expected one for each of the {count} samples, got {len(ids)}")
        if self._groups is None:
            if self._samples:
                raise InputError("groups: earlier updates had none: give them with every update, or with none")
            self._groups = set()
        seen, is_new = self._groups, []
        for group in ids:
            is_new.append(group not in seen)
            seen.add(group)
        return is_new

    def _count(self, exit_: int, score: float) -> None:
        """Rank a sample and bet on its rank ``u``, uniform in [0, 1] if nothing changed: every factor then has mean 1."""
        self._taken[exit_] += 1
        self._sum += score
        cell = self._starts[exit_] + find_cell(self._reference.edges[exit_], score)
        self._cells[cell] += 1
        u = (sum(self._cells[:cell]) + self._rng.random() * self._cells[cell]) / sum(self._cells)
        if sum(self._taken) % PERIOD == 1:
            share = 1 / ((self._blocks + 2) * math.log(self._blocks + 2) ** 2 * TOTAL)
            self._blocks += 1
            self._unspent = max(0.0, self._unspent - share)
            self._wealth = np.logaddexp(self._wealth, math.log(share / len(self._wealth)))
        tilt, bend = 2 * u - 1, 6 * (u - 0.5) ** 2 - 0.5  # means 0, in [-1, 1] and [-0.5, 1]
        self._wealth = self._wealth + np.log1p(np.concatenate([STAKES * tilt, STAKES * bend]))
        unspent = math.log(self._unspent) if self._unspent else -math.inf
        total = float(np.logaddexp.reduce([*self._wealth, unspent]))
        self._most = max(self._most, total)
        if self._since is None and total >= -math.log(self.false_alarm):
            self._since = self._samples


def find_cell(edges: Sequence[float], score: float) -> int:
    """Return the cell of a score, between ``edges`` that increase; cell 0 has the highest scores."""
    return len(edges) - bisect_left(edges, score)


def summarize_reference(exits: Tensor, scores: Tensor, num_exits: int) -> DriftReference:  # (N,), (N,)
    """Count calibration samples by the exit that they take, and by their score there."""
    edges, counts = [], []
    for k in range(num_exits):
        here = scores[exits == k].double()
        cuts = here.quantile(here.new_tensor(range(1, BINS)) / BINS).unique().tolist() if len(here) >= BINS else []
        cells = [0] * (len(cuts) + 1)
        for score in here.tolist():
            cells[find_cell(cuts, score)] += 1
        edges.append(tuple(cuts))
        counts.append(tuple(cells))
    return DriftReference(tuple(edges), tuple(counts), scores.double().mean().item())
