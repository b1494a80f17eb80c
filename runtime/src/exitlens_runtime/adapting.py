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

BET = 0.6  # of the smallest chance of an audit
RATIO, DOUBTFUL = 3.0, 0.25  # doubtful early answers are audited so many times as often; their share of the early answers
BOOST = 2.0  # at most this many times as many audits until ``warm_up`` samples were taken
WARM_UP = 4.0  # times the samples at which the limit allows what the bound is where no audit showed a loss
SLACK = 0.2  # part of the allowed losses that stays free if thresholds aim at the limit
SPARE = 2.0  # standard errors below the loss that thresholds aim at, by which samples choose them
# samples to learn from: at most, at least, new ones for each early exit until it happens, and the part that is new by then
KEPT, LEAST, EVERY, GROWN = 3000, 200, 25, 12
WORSE, SURE = 5.0, 5.3  # an alarm tells the limit from so many times as much, at this logarithm of the likelihood ratio
LARGEST = 0.5  # larger shares of losses are not taken as expected: no rise above them could be seen
LEVELS, ROUNDS = 20, 2  # thresholds that are tried at each exit, and times that the exits take turns


class Adaptive:
    """Moves a network's thresholds while it answers, and keeps a limit on answers that are not the final exit's.

    A coin chooses early answers to audit: such a sample goes on to the final exit and gets its answer; an early answer that
    differs is *wrong*. With probability ``1 - delta``, of the n samples taken in so far no more than ``limit`` times n got a
    wrong answer, and while n is below ``warm_up``, no more than ``limit * warm_up``: at every moment, whatever the data do.
    The bound is that of ``exitlens.functional.adapting.charge_audit``. It is not thread-safe.

    Args:
        net: whose policy is where thresholds start; it needs its heads at all exits.
        limit: in (0, 1). delta: the largest chance that the promise is broken.
        audit: share of the early answers; a doubtful quarter, whose scores are nearest the thresholds, three times as often
            as others, and all up to twice as often until ``warm_up`` samples were taken in.
        warm_up: number of samples at the beginning that share a budget; by default so many that early answers begin at once.
        seed: of the coins, for tests; by default the operating system's.

    Attributes:
        taken, audited, lost, alarms: samples, audits, wrong answers among these, and sudden changes so far.
    """

    def __init__(
        self,
        net: EdgeNetwork,
        limit: float,
        delta: float = 0.1,
        *,
        audit: float = 0.025,
        warm_up: int | None = None,
        seed: int | None = None,
    ) -> None:
        for name, value in (("limit", limit), ("delta", delta), ("audit", audit)):
            if not (isinstance(value, int | float) and 0 < value < 1):
                raise InputError(f"{name}: expected a number above 0 and below 1, got {value!r:.60}. Fix: pass a share.")
        if warm_up is not None and not (isinstance(warm_up, int) and warm_up > 0):
            raise InputError(
                f"warm_up: expected a whole number of 1 or more, got {warm_up!r:.60}. Fix: pass a number of samples."
            )
        if missing := [k for k in range(net.num_exits) if not net.has_head(k)]:
            raise InputError(f"net: it has no heads at exits {missing}. Fix: export with a policy that uses all exits.")
        self.limit, self.audit = float(limit), float(audit)
        self._chance = audit / (1 + DOUBTFUL * (RATIO - 1))  # of an audit, at least
        self._bet, self._log_delta = BET * self._chance, math.log(delta)
        self.warm_up = math.ceil(-WARM_UP * self._log_delta / self._bet / limit) if warm_up is None else warm_up
        self._chosen, self._cost, early = net.policy.thresholds, np.asarray(net.cost), net.num_exits - 1
        self._scores_of = f"{net.manifest['network']} {replace(net.policy, thresholds=(0.0,) * early).rule_hash()}"
        self._rng = np.random.default_rng(seed)  # by default seeded by the system
        self.taken = self.audited = self.lost = self.alarms = self._fresh = self._open = 0
        self._charged = self._charged_open = 0.0  # open: of audits without a final answer yet
        self._doubt, self._expected = math.inf, (self.limit, self.limit)
        self._evidence, self._is_relearning = 0.0, False
        self._scores, self._losses = np.empty((0, early), np.float32), np.empty((0, early), np.float32)
        self._weights = np.empty(0, np.float32)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Those of now; infinite while no sample may leave early."""
        is_stopped = self._is_relearning or self._charged > self._find_room()
        return (math.inf,) * len(self._chosen) if is_stopped else self._chosen

    def to_dict(self) -> dict[str, Any]:
        """Return what was learnt and promised, JSON-ready; audits that are on their way count as wrong."""
        counts = {"taken": self.taken, "audited": self.audited, "lost": self.lost + self._open, "alarms": self.alarms}
        inner = {"charged": self._charged + self._charged_open, "relearning": self._is_relearning}
        *levels, doubt = (None if t == math.inf else t for t in (*self._chosen, self._doubt))
        learnt = {"thresholds": levels, "doubt": doubt, "expected": list(self._expected)}
        rows = {name: getattr(self, f"_{name}").tolist() for name in ("scores", "losses", "weights")}
        return {"settings": self._list_settings(), **counts, **inner, **learnt, **rows}

    def restore(self, values: Mapping[str, Any]) -> Self:
        """Go on from what :meth:`to_dict` of another one returned.

        Samples answered after ``values`` was made are not in it: their wrong answers come on top of the limit. Raises
        :class:`InputError` for another network, other settings or damaged values.
        """
        settings = values.get("settings") if isinstance(values, Mapping) else None
        if settings != (expected := self._list_settings()):
            words = "Fix: pass what to_dict returned for the same network and settings, or start a new Adaptive."
            raise InputError(
                f"values: expected the state of an Adaptive with settings {expected}, got {settings!r:.80}. {words}"
            )
        shape = (len(values.get("weights", ())), len(self._chosen))
        try:
            scores, losses = (np.array(values[name], np.float32).reshape(shape) for name in ("scores", "losses"))
            weights = np.array(values["weights"], np.float32).reshape(shape[0])
            levels = [*values["thresholds"], values["doubt"]]
            *chosen, doubt = (math.inf if t is None else float(t) for t in levels)
            sure, others = map(float, values["expected"])
            if len(chosen) != shape[1]:
                raise ValueError(f"{len(chosen)} thresholds")
            counts = [int(values[name]) for name in ("taken", "audited", "lost", "alarms")]
            charged = float(values["charged"])
            is_relearning = bool(values["relearning"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"values: they are damaged ({error!r:.80}). Fix: start a new Adaptive.") from error
        self.taken, self.audited, self.lost, self.alarms = counts
        self._scores, self._losses, self._weights, self._charged = scores, losses, weights, charged
        self._chosen, self._doubt, self._expected = tuple(chosen), doubt, (sure, others)
        self._is_relearning, self._fresh, self._open, self._charged_open = is_relearning, KEPT, 0, 0.0
        return self

    def _list_settings(self) -> list[float | str]:
        return [self.limit, self.audit, self._log_delta, float(self.warm_up), self._scores_of]

    def _find_room(self) -> float:
        """Return the charges above which no sample leaves early."""
        return self._bet * self.limit * max(self.taken, self.warm_up) + self._log_delta

    def watch(self, count: int) -> Watch:
        """Take samples in, and return what follows them through the exits."""
        sure = self._chance * min(BOOST, max(1.0, self.warm_up / max(1, self.taken)))
        self.taken += count
        chances = min(1.0, sure), min(1.0, RATIO * sure)
        return Watch(self, self._rng.random(count), chances, self._is_relearning)

    def doubt(self, k: int, scores: Array) -> Array:  # (n,) -> (n,) bool
        """Return which scores at an exit are so near the threshold that answers are audited more often."""
        doubtful: Array = scores - np.float32(self._chosen[k]) <= self._doubt
        return doubtful

    def decide(self, fired: Array, chances: Array, audited: Array) -> Array:  # (n,) each -> (n,) bool
        """Return which samples leave, if no coin keeps them: each by the lost and open audits before it."""
        charges = np.array([charge_audit(p, self._bet) if a else 0.0 for p, a in zip(chances, fired & audited, strict=True)])
        before = charges.cumsum() - charges + self._charged + self._charged_open
        leaving: Array = fired & (before <= self._find_room())
        opened = int((leaving & audited).sum())
        self._open, self.audited = self._open + opened, self.audited + opened
        self._charged_open += float(charges[leaving].sum())
        return leaving

    def learn(self, scores: Array, losses: Array, exits: Array, chances: Array) -> None:
        """Take in samples that were observed to the end: ``(n,K-1)`` twice, ``(n,)`` and the chances of it ``(n,)``."""
        early = exits < scores.shape[1]
        lost = _select(losses, exits)
        for chance, loss in zip(chances[early].tolist(), lost[early].tolist(), strict=True):
            charge = charge_audit(chance, self._bet)
            self._open -= 1
            self._charged_open = max(0.0, self._charged_open - charge) if self._open else 0.0
            self._charged += loss * charge
            self.lost += int(loss)
        doubtful = self._find_doubtful(scores, exits)[early]
        for loss, is_doubtful in () if self._is_relearning else zip(lost[early].tolist(), doubtful.tolist(), strict=True):
            self._evidence = add_evidence(self._evidence, loss, self._expected[is_doubtful])
        if math.isinf(self._evidence):
            self.alarms, self._evidence, self._fresh, self._is_relearning = self.alarms + 1, 0.0, 0, True
            self._scores, self._losses, self._weights = self._scores[:0], self._losses[:0], self._weights[:0]
            return
        finite = np.isfinite(scores).all(1)
        self._scores = np.concatenate([self._scores, scores[finite]])[-KEPT:]
        self._losses = np.concatenate([self._losses, losses[finite]])[-KEPT:]
        self._weights = np.concatenate([self._weights, (1 / chances[finite]).astype(np.float32)])[-KEPT:]
        self._fresh += int(finite.sum())
        due = max(EVERY * scores.shape[1], len(self._scores) / GROWN)
        if (self._is_relearning or self._fresh >= due) and len(self._scores) >= LEAST:
            self._choose()

    def _choose(self) -> None:
        spent = self._charged + charge_audit(self._chance, self._bet)  # with room for an audit that is open
        free = 1 - (spent - self._log_delta) / self._bet / (self.limit * max(self.taken, self.warm_up))
        risk, weights = self.limit * min(1.0, max(0.0, free) / SLACK), self._weights / self._weights.mean()
        risk -= SPARE * math.sqrt(risk * float((weights**2).mean()) / len(weights))
        self._chosen = choose_thresholds(self._scores, self._losses, self._cost, risk, weights)
        self._fresh, self._is_relearning = 0, False
        exits, last = _find_exits(self._scores, self._chosen), self._scores.shape[1]
        early = exits < last
        above = _select(self._scores - np.array(self._chosen, np.float32), exits)[early]
        passed, order = weights[early], above.argsort()
        passed = passed[order].cumsum()
        self._doubt = float(above[order][passed >= DOUBTFUL * passed[-1]][0]) if len(above) else math.inf
        doubtful, lost = self._find_doubtful(self._scores, exits), _select(self._losses, exits)
        parts = [part & early for part in (~doubtful, doubtful)]
        means = (float(np.average(lost[part], weights=weights[part])) if part.any() else 0.0 for part in parts)
        usual, doubted = (min(max(self.limit, LARGEST), max(self.limit, mean)) for mean in means)
        self._expected = usual, doubted

    def _find_doubtful(self, scores: Array, exits: Array) -> Array:  # (n,K-1), (n,) -> (n,) bool
        return _select(np.stack([self.doubt(k, column) for k, column in enumerate(scores.T)], 1), exits).astype(bool)


class Watch:
    """Samples of one call on their way: what observed ones show, and who leaves."""

    def __init__(self, adaptive: Adaptive, luck: Array, chances: tuple[float, float], observes_all: bool) -> None:
        self.adaptive, self.luck, (self.sure, self.doubtful) = adaptive, luck, chances
        self.chances = np.full(len(luck), 1.0 if observes_all else self.doubtful)  # of being observed
        shape = len(luck), len(adaptive.thresholds)
        self.scores, self.exits = np.zeros(shape, np.float32), np.full(len(luck), shape[1])
        self.answers: list[Array] = []

    def decide(self, k: int, where: Array, scores: Array, answers: Array) -> Array:  # -> (n,) bool
        """Return which of the samples at places ``where`` leave at exit k."""
        self.scores[where, k] = scores
        every = np.zeros((len(self.luck), *answers.shape[1:]), answers.dtype)
        every[where] = answers
        self.answers.append(every)
        fired = (scores >= np.float32(self.adaptive.thresholds[k])) & (self.exits[where] == self.scores.shape[1])
        chances = np.where(self.adaptive.doubt(k, scores), self.doubtful, self.sure)
        audited = self.luck[where] < chances
        leaving = self.adaptive.decide(fired, chances, audited)
        self.exits[where[leaving]], self.chances[where[leaving]] = k, chances[leaving]
        return leaving & ~audited

    def end(self, where: Array, answers: Array) -> None:
        """Learn from the samples that came to the final exit."""
        chosen = self.luck[where] < self.chances[where]
        rows, final = where[chosen], answers[chosen]
        if len(rows):
            differs = [each[rows] != final for each in self.answers]
            losses = np.stack([d.any(1) if d.ndim == 2 else d for d in differs], 1).astype(np.float32)
            self.adaptive.learn(self.scores[rows], losses, self.exits[rows], self.chances[rows])


def charge_audit(chance: float, bet: float) -> float:
    """Return what an audited loss of 1 is charged, where audits had this chance (``exitlens.functional.adapting``)."""
    rest = chance * math.exp(bet) - math.expm1(bet)
    return max(0.0, -math.log(rest / chance)) if rest > 0 else math.inf


def add_evidence(evidence: float, loss: float, expected: float) -> float:
    """Return the evidence that wrong answers come faster than expected, after another audit (Page 1954)."""
    expected = min(expected, 0.99)
    more = min((1 + expected) / 2, WORSE * expected)
    ratio = loss * math.log(more / expected) + (1 - loss) * math.log((1 - more) / (1 - expected))
    evidence = max(0.0, evidence + ratio)
    return evidence if evidence <= SURE else math.inf


def _select(values: Array, exits: Array) -> Array:  # (n,K-1), (n,) -> (n,)
    """Return each sample's value at its exit; 0 at the final one."""
    padded = np.concatenate([values, np.zeros((len(values), 1), values.dtype)], 1)
    chosen: Array = padded[np.arange(len(exits)), exits]
    return chosen


def _find_exits(scores: Array, thresholds: tuple[float, ...]) -> Array:  # (n,K-1) -> (n,)
    fired = np.concatenate([scores >= np.array(thresholds), np.ones((len(scores), 1), bool)], 1)
    exits: Array = fired.argmax(1)
    return exits


def choose_thresholds(scores: Array, losses: Array, cost: Array, risk: float, weights: Array) -> tuple[float, ...]:
    """Return cheap thresholds whose mean loss is at most ``risk``: exits take turns, each with its best of some levels."""
    early = scores.shape[1]
    levels = [
        np.append(np.unique(np.quantile(column, np.linspace(0, 1, LEVELS), method="higher")), np.inf) for column in scores.T
    ]
    best, least = [math.inf] * early, float(cost[-1])
    for _, k in itertools.product(range(ROUNDS), range(early)):
        for level in levels[k]:
            exits = _find_exits(scores, (*best[:k], level, *best[k + 1 :]))
            spent = float(np.average(cost[exits], weights=weights))
            if np.average(_select(losses, exits), weights=weights) <= max(0.0, risk) and spent < least:
                best[k], least = float(level), spent
    return tuple(best)
