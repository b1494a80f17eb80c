"""Thresholds that adapt, in NumPy: the promise of ``exitlens.Adaptive``, for one device and its own stream."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from exitlens_runtime.errors import InputError
from exitlens_runtime.routing import Array

if TYPE_CHECKING:
    from exitlens_runtime.network import EdgeNetwork

WINDOW = 2000  # wrong answers that a window may have, where none is given
SPENT = 0.85  # of the audited wrong answers that end early ones: thresholds aim at so many
KEPT, LEAST, EVERY = (
    1000,
    200,
    25,
)  # samples to learn from: at most, at least, and new ones for each early exit until it happens
WORSE, SURE = 5.0, 5.3  # an alarm tells the limit from so many times as much, at this logarithm of the likelihood ratio
LEVELS, ROUNDS = 20, 2  # thresholds that are tried at each exit, and times that the exits take turns


class Adaptive:
    """Moves a network's thresholds while it answers, and keeps a limit on answers that are not the final exit's.

    A coin chooses ``audit`` of the samples, which go on to the final exit and get its answer; an early answer that differs
    is *wrong*. With probability ``1 - delta``, of the first n samples no more than ``limit`` times n, rounded up to whole
    windows, got a wrong answer, for every n at once and whatever the data do. The bound is that of
    ``exitlens.functional.adapting.find_largest_sum``. It is not thread-safe.

    Args:
        net: whose policy is where thresholds start; it needs its heads at all exits.
        limit: in (0, 1). delta: the largest chance that the promise is broken. audit: share of the samples.
        window: samples that share a budget of ``limit * window`` wrong answers; by default as many as make 2,000.
        seed: of the coins, for tests; by default the operating system's.

    Attributes:
        most: audited wrong answers of a window after which no sample leaves early.
        taken, audited, lost, alarms: samples, audits, wrong answers among them, and sudden changes so far.
    """

    def __init__(
        self,
        net: EdgeNetwork,
        limit: float,
        delta: float = 0.1,
        *,
        audit: float = 0.02,
        window: int | None = None,
        seed: int | None = None,
    ) -> None:
        for name, value in (("limit", limit), ("delta", delta), ("audit", audit)):
            if not (isinstance(value, int | float) and 0 < value < 1):
                raise InputError(f"{name}: expected a number above 0 and below 1, got {value!r:.60}. Fix: pass a share.")
        if window is not None and not (isinstance(window, int) and window > 0):
            raise InputError(
                f"window: expected a whole number of 1 or more, got {window!r:.60}. Fix: pass a number of samples."
            )
        if missing := [k for k in range(net.num_exits) if not net.has_head(k)]:
            raise InputError(f"net: it has no heads at exits {missing}. Fix: export with a policy that uses all exits.")
        self.limit, self.audit = float(limit), float(audit)
        self.window = math.ceil(WINDOW / limit) if window is None else window
        self.most = find_largest_sum(limit, self.window, audit, delta)
        if self.most < 1:
            raise InputError(f"window: {self.window:,} samples tell too little. Fix: pass a larger window or audit.")
        self._chosen, self._cost, early = net.policy.thresholds, np.asarray(net.cost), net.num_exits - 1
        self._scores_of = f"{net.manifest['network']} {replace(net.policy, thresholds=(0.0,) * early).rule_hash()}"
        self._rng = np.random.default_rng(seed)  # by default seeded by the system
        self.taken = self.audited = self.lost = self.alarms = self._fresh = 0
        self._window_taken = self._window_lost = self._open = self.number = 0
        self._evidence, self._is_relearning = 0.0, False
        self._scores, self._losses = np.empty((0, early), np.float32), np.empty((0, early), np.float32)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Those of now; infinite while no sample may leave early."""
        is_stopped = self._is_relearning or self._window_lost > self.most - 1
        return (math.inf,) * len(self._chosen) if is_stopped else self._chosen

    def to_dict(self) -> dict[str, Any]:
        """Return what was learnt and promised, JSON-ready; audits that are on their way count as wrong."""
        lost = self.lost + self._open, self._window_lost + self._open
        counts = {"taken": self.taken, "audited": self.audited, "lost": lost[0], "alarms": self.alarms}
        inner = {"window_taken": self._window_taken, "window_lost": lost[1], "number": self.number}
        inner |= {"relearning": self._is_relearning}
        levels = [None if t == math.inf else t for t in self._chosen]
        rows = {"scores": self._scores.tolist(), "losses": self._losses.tolist()}
        return {"settings": self._name_settings(), **counts, **inner, "thresholds": levels, **rows}

    def restore(self, values: Mapping[str, Any]) -> Self:
        """Go on from what :meth:`to_dict` of another one returned.

        Samples answered after ``values`` was made are not in it: their wrong answers come on top of the limit. Raises
        :class:`InputError` for another network, other settings or damaged values.
        """
        settings = values.get("settings") if isinstance(values, Mapping) else None
        if settings != (expected := self._name_settings()):
            words = "Fix: pass what to_dict returned for the same network and settings, or start a new Adaptive."
            raise InputError(
                f"values: expected the state of an Adaptive with settings {expected}, got {settings!r:.80}. {words}"
            )
        shape = (-1, len(self._chosen))
        try:
            scores, losses = (np.array(values[name], np.float32).reshape(shape) for name in ("scores", "losses"))
            chosen = tuple(math.inf if t is None else float(t) for t in values["thresholds"])
            counts = [
                values[name] for name in ("taken", "audited", "lost", "alarms", "window_taken", "window_lost", "number")
            ]
            is_relearning = bool(values["relearning"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"values: they are damaged ({error!r:.80}). Fix: start a new Adaptive.") from error
        self.taken, self.audited, self.lost, self.alarms, self._window_taken, self._window_lost, self.number = counts
        self._scores, self._losses, self._chosen, self._is_relearning = scores, losses, chosen, is_relearning
        return self

    def _name_settings(self) -> list[float | str]:
        return [self.limit, self.most, self.audit, float(self.window), self._scores_of]

    def watch(self, count: int) -> Watch:
        """Take samples in, and return what follows them through the exits."""
        if self._window_taken >= self.window:
            self.number, self._window_taken, self._window_lost, self._open = self.number + 1, 0, 0, 0
            self._fresh = KEPT
        self.taken += count
        self._window_taken += count
        audited = self._rng.random(count) < self.audit
        self.audited += int(audited.sum())
        return Watch(self, audited, self._is_relearning)

    def decide(self, fired: Array, audited: Array) -> Array:  # (n,) bool each -> (n,) bool
        """Return which samples leave, if no coin keeps them: each by the wrong and open audits before it."""
        charged = fired & audited
        before = charged.cumsum() - charged + self._window_lost + self._open
        leaving: Array = fired & (before <= self.most - 1)
        self._open += int((leaving & audited).sum())
        return leaving

    def learn(self, scores: Array, losses: Array, exits: Array, audited: Array, number: int) -> None:
        """Take in samples that were observed to the end: ``(n,K-1)``, ``(n,K-1)``, ``(n,)``, ``(n,)`` and their window."""
        early = audited & (exits < scores.shape[1])
        lost = np.concatenate([losses, np.zeros((len(losses), 1), np.float32)], 1)[np.arange(len(exits)), exits]
        if number == self.number:
            self._open -= int(early.sum())
            self._window_lost += int(lost[early].sum())
        self.lost += int(lost[early].sum())
        for loss in () if self._is_relearning else lost[audited].tolist():
            self._evidence = add_evidence(self._evidence, loss, self.limit)
        if math.isinf(self._evidence):
            self.alarms, self._evidence, self._fresh, self._is_relearning = self.alarms + 1, 0.0, 0, True
            self._scores, self._losses = self._scores[:0], self._losses[:0]
            return
        finite = np.isfinite(scores).all(1)
        self._scores = np.concatenate([self._scores, scores[finite]])[-KEPT:]
        self._losses = np.concatenate([self._losses, losses[finite]])[-KEPT:]
        self._fresh += int(finite.sum())
        if (self._is_relearning or self._fresh >= EVERY * scores.shape[1]) and len(self._scores) >= LEAST:
            left = max(self.window - self._window_taken, self.window / 10)
            risk = min(self.limit, max(0.0, SPENT * self.most - self._window_lost) / (self.audit * left))
            self._chosen = choose_thresholds(self._scores, self._losses, self._cost, max(0.0, risk - 1 / len(self._scores)))
            self._fresh, self._is_relearning = 0, False


class Watch:
    """Samples of one call on their way: what observed ones show, and who leaves."""

    def __init__(self, adaptive: Adaptive, audited: Array, observes_all: bool) -> None:
        self.adaptive, self.audited, self.number = adaptive, audited, adaptive.number
        self.observed = np.ones_like(audited) if observes_all else audited
        shape = len(audited), len(adaptive.thresholds)
        self.scores, self.exits = np.zeros(shape, np.float32), np.full(len(audited), shape[1])
        self.answers: list[Array] = []

    def decide(self, k: int, where: Array, scores: Array, answers: Array) -> Array:  # -> (n,) bool
        """Return which of the samples at places ``where`` leave at exit k."""
        self.scores[where, k] = scores
        every = np.zeros((len(self.audited), *answers.shape[1:]), answers.dtype)
        every[where] = answers
        self.answers.append(every)
        audited, last = self.audited[where], self.scores.shape[1]
        fired = (scores >= np.float32(self.adaptive.thresholds[k])) & (self.exits[where] == last)
        leaving = self.adaptive.decide(fired, audited)
        self.exits[where[leaving]] = k
        return leaving & ~audited

    def end(self, where: Array, answers: Array) -> None:
        """Learn from the samples that came to the final exit."""
        chosen = self.observed[where]
        rows, final = where[chosen], answers[chosen]
        if len(rows):
            differs = [each[rows] != final for each in self.answers]
            losses = np.stack([d.any(1) if d.ndim == 2 else d for d in differs], 1).astype(np.float32)
            self.adaptive.learn(self.scores[rows], losses, self.exits[rows], self.audited[rows], self.number)


def find_largest_sum(limit: float, window: int, audit: float, delta: float) -> float:
    """Return the sum of a window's audited losses before which early answers have to stop (``exitlens.Adaptive``)."""
    a = np.geomspace(1e-3, 10, 2000)
    b = np.log((1 - audit * np.exp(-a)) / (1 - audit))
    return float(((b * limit * window + math.log(delta)) / a).max())


def add_evidence(evidence: float, loss: float, limit: float) -> float:
    """Return the evidence that wrong answers come faster than the limit, after another audit (Page 1954)."""
    more = min((1 + limit) / 2, WORSE * limit)
    ratio = loss * math.log(more / limit) + (1 - loss) * math.log((1 - more) / (1 - limit))
    evidence = max(0.0, evidence + ratio)
    return evidence if evidence <= SURE else math.inf


def choose_thresholds(scores: Array, losses: Array, cost: Array, risk: float) -> tuple[float, ...]:
    """Return cheap thresholds whose mean loss is at most ``risk``: exits take turns, each with its best of some levels."""
    early = scores.shape[1]
    levels = [
        np.append(np.unique(np.quantile(column, np.linspace(0, 1, LEVELS), method="higher")), np.inf) for column in scores.T
    ]
    best = [math.inf] * early
    padded = np.concatenate([losses, np.zeros((len(losses), 1), losses.dtype)], 1)
    rows = np.arange(len(scores))
    least = float(cost[-1])
    for _, k in itertools.product(range(ROUNDS), range(early)):
        for level in levels[k]:
            tried = np.array([*best[:k], level, *best[k + 1 :]])
            fired = np.concatenate([scores >= tried, np.ones((len(scores), 1), bool)], 1)
            exits = fired.argmax(1)
            spent = float(cost[exits].mean())
            if padded[rows, exits].mean() <= risk and spent < least:
                best[k], least = float(level), spent
    return tuple(best)
