"""Thresholds that adapt: some answers are audited by the final exit, and early answers stop before too many are others.

A coin decides about every sample, before it is looked at, whether it is audited: then it goes on to the final exit wherever
it would have left, and gets the final answer. Of the samples whose early answer is another one, the coins that fall are
independent of everything else, whatever the data do. So the number of others that were given before the r-th was seen in an
audit has a negative binomial distribution, and stopping there bounds it (:func:`find_most`). Where thresholds are moved to
is another matter, on which no promise rests.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import nbinom
from torch import Tensor

from exitlens.errors import InputError, require
from exitlens.functional.risk import Risk, disagreement, select_exits
from exitlens.functional.routing import find_first_firing, score_early_exits
from exitlens.functional.search import find_cheapest, quantise
from exitlens.types import Policy, Trace
from exitlens.types.settings import COUNT, NumberRule, check_number

WINDOW = 2000  # changed answers that a window may have, where none is given
SPENT = 0.85  # of the audited losses that end early answers: so many are aimed at in a window
KEPT, LEAST, EVERY = (
    1000,
    200,
    50,
)  # audited samples that thresholds are chosen by, the fewest, and how many new ones between
WORSE, SURE = 5.0, 5.3  # an alarm tells the limit from so many times as much, at this logarithm of the likelihood ratio
OTHER = 4.0  # standard errors between the share of losses of late and before, from which on what was before is forgotten
LEVELS = 100  # of scores, between which thresholds are
SHARE = NumberRule("a number above 0 and below 1", lambda value: 0 < value < 1)


def find_most(limit: float, window: int, audit: float, delta: float) -> int:
    """Return the r for which early answers that stop at the r-th audited loss of a window keep the limit.

    With probability 1 - delta no number m of windows, from the first on, had more than ``m * limit * window`` losses that
    nobody audited. In m windows there are no more than failures before the (m r)-th success in independent trials that
    succeed with probability ``audit`` (a negative binomial distribution), and chances add up over m.
    """
    allowed = math.floor(limit * window)
    return bisect_left(range(1, allowed + 2), True, key=lambda most: _chance_of_more(allowed, most, audit, delta) > delta)


def _chance_of_more(allowed: int, most: int, audit: float, delta: float) -> float:
    total, windows, chance = 0.0, 0, 1.0
    while chance > 1e-4 * delta and total <= delta:
        windows += 1
        chance = float(nbinom.sf(windows * allowed, windows * most, audit))
        total += chance
    return total


@dataclass(frozen=True)
class AdaptiveStatus:
    """Counts of an :class:`Adaptive`: of all answers, and of those of the present window."""

    answered: int
    audited: int
    alarms: int  # sudden changes that audits have shown
    stops: int  # times that early answers had to stop, if only until an audit was done
    window_answered: int
    window_lost: int  # audited samples whose early answer was another, or may have been
    thresholds: tuple[float, ...]


class Adaptive:
    """A policy that learns while it answers, and keeps a limit on disagreement with the final exit whatever the data do.

    Args:
        policy: to start from; its score, temperatures and gate stay.
        limit: on the share of answers that are not the final exit's, in ``(0, 1)``; default: that of the policy's request.
        delta: chance that it is broken.
        audit: share of the samples that are audited.
        window: answers that share a budget of ``limit * window`` losses; default: as many as make 2,000 losses.
        seed: of the coins; ``None``: unpredictable, as the promise needs where somebody else may choose the inputs.

    With probability ``1 - delta``, of the first n answers no more than ``limit`` times n, rounded up to whole windows, were
    not the final exit's: at every n, and for any data. Data may shift in any way, even by what was answered before, if they
    do not know the coins to come. It says nothing of samples that fail, or whether the final exit is right.

    Examples:
        >>> adaptive = xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.05)
        >>> adaptive.window, adaptive.most
        (40000, 32)
    """

    def __init__(
        self,
        policy: Policy,
        limit: float | None = None,
        delta: float = 0.1,
        *,
        audit: float = 0.02,
        window: int | None = None,
        seed: int | None = None,
    ) -> None:
        require(policy, Policy, "policy", "see exitlens.calibrate")
        if policy.num_exits < 2:
            raise InputError("policy: its network has no early exits, so there is nothing to adapt. Fix: attach one.")
        if limit is None and policy.calibration is not None:
            limit = policy.calibration.request.max_disagreement
        if limit is None:
            raise InputError("limit: the policy was not calibrated with one. Fix: pass limit=0.02, or another share.")
        for name, value in (("limit", limit), ("delta", delta), ("audit", audit)):
            check_number(name, value, SHARE)
        self.policy, self.limit, self.delta, self.audit = policy, limit, delta, audit
        self.window = math.ceil(WINDOW / limit) if window is None else window
        check_number("window", self.window, COUNT)
        self.most = find_most(limit, self.window, audit, delta)
        if not self.most:
            raise InputError(
                f"window: in {self.window:,} answers {audit:g} of them tell too little of a limit of {limit:g}. "
                f"Fix: pass a larger window, such as {math.ceil(20 / audit / limit):,}, or a larger audit."
            )
        self.window_number = 0
        # not torch's generator: data that somebody drew by the same seed would know the coins
        self._lock, self._coins = threading.Lock(), np.random.default_rng(seed)
        self._chosen, self._never = policy.thresholds, (math.inf,) * (policy.num_exits - 1)
        self._answered = self._audited = self._alarms = self._stops = self._window_answered = self._lost = 0
        self._evidence, self._fresh, self._is_relearning = 0.0, 0, False
        self._scores, self._losses = torch.empty(0, len(self._never)), torch.empty(0, len(self._never))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The thresholds of now: infinite while no sample may leave early."""
        return self._never if self._is_relearning or self._lost >= self.most else self._chosen

    @property
    def status(self) -> AdaptiveStatus:
        """Counts so far."""
        counts = self._answered, self._audited, self._alarms, self._stops, self._window_answered, self._lost
        return AdaptiveStatus(*counts, self.thresholds)

    @property
    def is_relearning(self) -> bool:
        """True after an alarm, until enough samples were seen: no sample leaves early, and all can be learnt from."""
        return self._is_relearning

    def draw(self, count: int, cost: Tensor) -> Tensor:  # (K,) -> (count,) bool
        """Count samples that arrive, and draw which of them are audited."""
        with self._lock:
            if self._window_answered >= self.window:
                self._window_answered = self._lost = 0
                self.window_number += 1
                self._choose(cost)
            self._answered += count
            self._window_answered += count
            audited = torch.from_numpy(self._coins.random(count) < self.audit)
            self._audited += int(audited.sum())
            return audited

    def admit(self, fired: Tensor, audited: Tensor) -> Tensor:  # (n,) bool, (n,) bool -> (n,) bool
        """Return which of the samples that would leave here do, in this order: not the audited ones, and none too many.

        An audited sample counts as lost until :meth:`learn` is told that its early answer was the final one.
        """
        with self._lock:
            suspected = (fired & audited).cumsum(0) + self._lost
            self._stops += bool(self._lost < self.most <= int(suspected[-1])) if len(suspected) else 0
            self._lost += int((fired & audited).sum())
            return fired & ~audited & (suspected < self.most)

    def learn(self, audits: Audits, cost: Tensor) -> None:
        """Take in samples that reached the final exit and were seen at all exits; thresholds may move."""
        lost = select_exits(torch.cat([audits.losses, torch.zeros(len(audits.exits), 1)], 1), audits.exits).bool()
        early = audits.exits < len(self._never)
        with self._lock:
            self._lost -= int((early & ~lost & (audits.windows == self.window_number)).sum())
            if not self._is_relearning and self._rings(lost[audits.audited].tolist()):
                self._alarms += 1
                self._evidence, self._fresh, self._is_relearning = 0.0, 0, True
                self._scores, self._losses = self._scores[:0], self._losses[:0]
                return
            self._scores = torch.cat([self._scores, audits.scores])[-KEPT:]
            self._losses = torch.cat([self._losses, audits.losses])[-KEPT:]
            self._fresh += len(audits.exits)
            if len(self._scores) >= LEAST and (self._is_relearning or self._fresh >= EVERY):
                self._is_relearning = False
                self._choose(cost)

    def replay(self, trace: Trace, batch_size: int = 64) -> Tensor:
        """Answer the samples of a trace in their order, as :func:`exitlens.predict` would in batches of this size.

        Returns the exits ``(N,)`` that answered. The coins are tossed, and what is learnt stays.

        Examples:
            >>> exits = xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.2, seed=0).replay(trace)
            >>> exits.shape
            torch.Size([64])
        """
        self.policy.check(trace.num_exits, trace.network, trace.task)
        scores, losses = score_early_exits(trace, self.policy), disagreement(trace)[:, :-1].float()
        last, taken = trace.num_exits - 1, []
        for part, lost in zip(scores.split(batch_size), losses.split(batch_size), strict=True):
            audited = self.draw(len(part), trace.cost)
            exits = find_first_firing(part, self.thresholds)
            leave = self.admit(exits < last, audited)
            rows = audited | (self._is_relearning & ~leave)
            windows = torch.full((int(rows.sum()),), self.window_number)
            self.learn(Audits(part[rows], lost[rows], exits[rows], audited[rows], windows), trace.cost)
            taken.append(torch.where(leave, exits, last))
        return torch.cat(taken)

    def _rings(self, lost: Sequence[bool]) -> bool:
        """Return whether losses come so fast that the data must have changed (Page's test, 1954)."""
        more = min(0.5, WORSE * self.limit)
        for is_lost in lost:
            ratio = math.log(more / self.limit) if is_lost else math.log((1 - more) / (1 - self.limit))
            self._evidence = max(0.0, self._evidence + ratio)
            if self._evidence > SURE:
                return True
        return False

    def _forget(self) -> None:
        """Forget all but the samples of late if the share of other answers at exit 0 has changed."""
        before, late = self._losses[:-LEAST, :1], self._losses[-LEAST:, :1]
        share = self._losses[:, :1].mean()
        error = (share * (1 - share) * (1 / max(len(before), 1) + 1 / LEAST)).sqrt()
        if len(before) >= LEAST and (before.mean() - late.mean()).abs() > OTHER * error:
            self._scores, self._losses = self._scores[-LEAST:], self._losses[-LEAST:]

    def _choose(self, cost: Tensor) -> None:
        """Choose the cheapest thresholds that would spend what is left of the window's budget, by the samples of late."""
        self._fresh = 0
        self._forget()
        if (count := len(self._scores)) < LEAST:
            return
        left = max(self.window - self._window_answered, self.window / 10)
        risk = min(self.limit, max(0.0, SPENT * self.most - self._lost) / (self.audit * left))
        losses = torch.cat([self._losses, torch.zeros(count, 1)], 1)
        levels = quantise(self._scores, LEVELS)
        best = find_cheapest(levels, [Risk("max_disagreement", losses, max(0.0, risk - 1 / count), "binary")], cost)
        self._chosen = levels.thresholds(best.cuts)


@dataclass(frozen=True)
class Audits:
    """Samples that reached the final exit and were seen at every exit."""

    scores: Tensor  # (n,K-1) what thresholds are compared with
    losses: Tensor  # (n,K-1) 1.0 where the answer is not the final one
    exits: Tensor  # (n,) where it would have left; K-1: nowhere
    audited: Tensor  # (n,) bool: drawn, not only seen
    windows: Tensor  # (n,) the number of the window in which it would have left
