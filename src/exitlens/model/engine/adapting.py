"""A policy that adapts: random audits go on to the final exit; early answers stop before too many are wrong.

"Wrong" means here that an early answer is not the final exit's. A coin decides which early answers are audited, with a
chance that is larger where the score is near its threshold. The audited losses therefore bound those that nobody saw,
whatever the data do, as long as a sample's own coin has no part in whether it may leave.
"""

from __future__ import annotations

import logging
import math
import operator
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import numpy as np
import torch
from torch import Tensor

from exitlens.errors import InputError, PolicyError, require
from exitlens.functional.adapting import (
    LEAST,
    add_evidence,
    average,
    bound_losses,
    charge_audit,
    choose_thresholds,
    count_alike,
    count_effective,
    find_doubt,
    select_losses,
)
from exitlens.functional.risk import disagreement, select_exits
from exitlens.functional.routing import find_first_firing, fires, score_early_exits
from exitlens.model.engine.journal import SCORED_BY, Journal, Line
from exitlens.types import AdaptiveStatus, Policy, Trace
from exitlens.types.inputs import Inputs
from exitlens.types.policies import read_levels, write_levels
from exitlens.types.settings import COUNT, PROPER_SHARE, LimitedLoss, check_choice, check_number
from exitlens.types.tasks import are_same

DAMAGED = (LookupError, TypeError, ValueError, RuntimeError, AttributeError)  # what lines raise that say something else
LOG = logging.getLogger("exitlens.adapting")
BET = 0.6  # of the smallest chance of an audit
RATIO, DOUBTFUL = 3.0, 0.25  # doubtful early answers are audited so many times as often; their share of the early answers
BOOST = 2.0  # at most this many times as many audits until ``warm_up`` samples were taken
WARM_UP = 4.0  # times the samples at which the limit allows what the bound is where no audit showed a loss
SLACK = 0.2  # part of the allowed losses that stays free if thresholds aim at the limit; with less of it they aim lower
SPARE = 2.0  # standard errors below the loss that thresholds aim at, by which samples choose them
KEPT, EVERY = 3000, 25  # observed samples that are kept; new ones, for each early exit, until thresholds are chosen again
STEPS = 30, 12  # levels of scores and prices of losses, by which thresholds are searched while answers wait
GROWN = 12  # thresholds are chosen again when one in so many of the kept samples is new
WAITING = 10_000  # observed samples that wait for a label
LARGEST = 0.5  # larger shares of losses are not taken as expected: no rise above them could be seen


KINDS = {
    "scores": torch.float32,
    "losses": torch.float32,
    "exits": torch.long,
    "chances": torch.float64,
}  # of an Observed's columns


@dataclass(frozen=True)
class Observed:
    """Samples that reached the final exit and were observed at every exit."""

    scores: Tensor  # (n,K-1) what thresholds are compared with
    losses: Tensor  # (n,K-1) in [0, 1]: what the limit is on
    exits: Tensor  # (n,) where it would have left; K-1: nowhere
    chances: Tensor  # (n,) float64: how likely it was that such a sample is observed
    names: tuple[str, ...] = ()  # by which feedback calls them; empty: it cannot
    answers: Tensor | None = None  # (n,K) or (n,K,C), needed with names

    @property
    def weights(self) -> Tensor:  # (n,)
        """Number of samples that each stands for."""
        return (1 / self.chances).float()

    def select(self, rows: Tensor | slice) -> Observed:
        """Return some of them, without their answers."""
        columns = (getattr(self, name)[rows] for name in KINDS)
        if not self.names:
            return self._of(columns, ())
        if isinstance(rows, slice):
            return self._of(columns, self.names[rows])
        return self._of(columns, tuple(self.names[i] for i in torch.arange(len(self.exits))[rows].tolist()))

    def select_finite(self) -> Observed:
        """Return those whose scores and losses are numbers."""
        return self.select((self.scores + self.losses).isfinite().all(1))

    def join(self, others: Observed) -> Observed:
        """Return these and others, without their answers."""
        columns = (torch.cat([getattr(self, name), getattr(others, name)]) for name in KINDS)
        if not self.names and not others.names:
            return self._of(columns, ())
        names = (part.names or ("",) * len(part.exits) for part in (self, others))
        return self._of(columns, sum(names, ()))

    def to_dict(self) -> dict[str, Any]:
        """Return it for a journal."""
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(self).items()}

    @classmethod
    def from_line(cls, line: Line, early: int) -> Observed:
        """Return what a line of a journal says of samples, of none if it is about something else."""
        seen = line.get("seen") or {}
        shapes = {"scores": (-1, early), "losses": (-1, early)}
        columns = [
            torch.tensor(seen.get(name, []), dtype=kind).view(shapes.get(name, (-1,))) for name, kind in KINDS.items()
        ]
        names, answers = tuple(seen.get("names", ())), torch.tensor(seen["answers"]) if seen.get("answers") else None
        sizes = {*map(len, columns), len(names) or len(columns[0]), len(columns[0] if answers is None else answers)}
        if len(sizes) > 1:
            raise ValueError("columns of several lengths")
        return replace(cls._of(columns, names), answers=answers)

    @classmethod
    def _of(cls, columns: Iterable[Tensor], names: tuple[str, ...]) -> Observed:
        scores, losses, exits, chances = columns
        return cls(scores, losses, exits, chances, names)


class _Waiting(NamedTuple):
    """An observed sample without a label."""

    exit: int
    chance: float
    answers: Tensor  # (K,) or (K,C)


class Coins(NamedTuple):
    """What chance decides about samples that were taken in."""

    luck: Tensor  # (n,) float64, uniform in [0, 1): an early answer is audited if it is below the chance
    chances: tuple[float, float]  # of audits: where an answer is not doubtful, and where it is
    observed: float  # the chance that a sample is observed that leaves nowhere
    first: int  # the first one's number, among those of the object

    def find_chances(self, doubtful: Tensor) -> Tensor:  # (n,) bool -> (n,) float64
        """Return the chances of audits."""
        return torch.tensor(self.chances, dtype=torch.float64)[doubtful.long()]


def _is_shared(name: str) -> bool:
    """Return whether all processes call a sample so: by its request, not by its number in one of them."""
    return "/" in name


def read_observed(lines: Iterable[Line], early: int) -> Iterator[tuple[Observed, Line]]:
    """Yield what lines say of samples, without those that are damaged."""
    for line in lines:
        with suppress(*DAMAGED):
            yield Observed.from_line(line, early), line


class Adaptive:
    """A policy that learns while it answers, and keeps a limit on what early answers lose, whatever the data do.

    Args:
        policy: to start from; its score, temperatures and gate stay.
        limit: on the share of answers that are not the final exit's, in ``(0, 1)``; default: that of the policy's request.
        loss: what the limit is on: ``disagreement``; ``divergence``, the mean over all answers of how far the early exit's
            attention is from the final exit's (Jensen-Shannon over ln 2, as in a :class:`Trace`); or ``binding``, the share
            of early answers that do not rest on their maps: they change if all outside the top fifth of the map comes from
            the sample observed before, without its object.
        delta: the largest chance that the promise is broken.
        audit: share of the early answers that are audited; a doubtful quarter, whose scores are nearest the thresholds,
            three times as often as others, and all up to twice as often until ``warm_up`` samples were taken in. At first
            all are doubtful. No chance exceeds 1.
        warm_up: number of samples at the beginning that share a budget of ``limit * warm_up`` wrong answers; by default so
            many that early answers begin at once and have room for chance.
        act: move thresholds and stop early answers. Otherwise samples leave by the policy as it is, nothing is promised, and
            ``status`` counts what would have happened. Audits go on to the final exit either way.
        seed: of the coins, for tests; by default they come from the operating system, and nobody can foresee them.

    With probability ``1 - delta``, of the n samples taken in so far no more than ``limit`` times n got an answer that is not
    the final exit's, and while n is below ``warm_up``, no more than ``limit * warm_up``: at every moment, and for any data.
    Data may depend on all answers so far, but not on coins to come. The promise is about one object, or one folder
    (:meth:`keep`): another starts with a new budget, and a copy spends the same again. It does not say whether the final
    exit is right. A sample that fails counts as taken in, and an audit that fails as lost.

    Where labels arrive later, :meth:`feedback` takes them: an answer whose label shows that it is not worse than the final
    exit's (the early exit is right, or the final exit wrong, too) counts no more. Then at most ``limit`` is promised of the
    answers that are worse than the final exit's.

    Examples:
        >>> adaptive = xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.05)
        >>> adaptive.warm_up
        18421
    """

    def __init__(
        self,
        policy: Policy,
        limit: float | None = None,
        delta: float = 0.1,
        *,
        loss: LimitedLoss = "disagreement",
        audit: float = 0.025,
        warm_up: int | None = None,
        act: bool = True,
        seed: int | None = None,
    ) -> None:
        require(policy, Policy, "policy", "see exitlens.calibrate")
        if policy.num_exits < 2:
            raise InputError("policy: its network has no early exits, so there is nothing to adapt. Fix: attach one.")
        check_choice("loss", loss, get_args(LimitedLoss))
        if limit is None and policy.calibration is not None:
            limit = getattr(policy.calibration.request, f"max_{loss}", None)
        if limit is None:
            raise InputError("limit: the policy was not calibrated with one. Fix: pass limit=0.02, or another share.")
        for name, value in (("limit", limit), ("delta", delta), ("audit", audit)):
            check_number(name, value, PROPER_SHARE)
        self.limit, self.delta, self.loss, self.audit, self._act = limit, delta, loss, audit, act
        self._chance = audit / (1 + DOUBTFUL * (RATIO - 1))  # of an audit, at least
        self.bet, self._delta = BET * self._chance, delta
        if warm_up is None:
            warm_up = math.ceil(WARM_UP * bound_losses(0.0, self.bet, delta) / limit)
        check_number("warm_up", warm_up, COUNT)
        self.warm_up = warm_up
        self._lock, self._coins = threading.Lock(), None if seed is None else np.random.default_rng(seed)
        self._given = self._chosen = replace(policy, calibration=None, binding=None)
        early = policy.num_exits - 1
        self._never = replace(self._chosen, thresholds=(math.inf,) * early)
        self._taken = self._audited = self._open = self._alarms = self._fresh = 0
        self._lost = self._charged = self._charged_open = 0.0  # open: of audits without a final answer yet
        self._doubt = math.inf  # scores at most so far above their threshold are doubtful
        self._expected = limit, limit  # share of losses among audits that were not doubtful, and among those that were
        self._evidence, self._is_relearning = 0.0, False
        self.classes = 0  # of the network, as far as they are known
        self._kept = Observed.from_line({}, early)
        self._waiting: dict[str, _Waiting] = {}  # observed samples without a label, in their order
        self._labelled = self._final_wrong = self._told = self._forgiven = 0  # told: losses, some of which were none
        # the inputs of the sample observed last, without its object, for a limit on binding
        self.donor: Inputs | None = None
        self._before = 0  # samples that were taken in before this object
        self._journal: Journal | None = None
        self._has_failed = self._is_closed = False  # the journal cannot be written, or was given back

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_journal")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock(), "_journal": None}

    def keep(self, folder: Path | str, processes: int = 1) -> Self:
        """Keep what is learnt in a folder, from which another object goes on; return this one.

        Up to ``processes`` processes can share a folder, each with an object of its own. Each keeps the limit for its own
        samples, with probability ``1 - delta / processes``, and learns from the audits of all. When a process ends, for
        whatever reason, the next one takes its place; audits without a final answer then count as lost. Every audit is
        written before later samples leave, so a killed process forgets no loss; a power failure may lose the last seconds.
        Samples since the last audit are then not counted, which lets fewer leave, not more.

        Raises :class:`InputError` if the folder belongs to something else, is damaged, or has no place left, and
        :class:`OutputError` if it cannot be written. If it cannot be written later, no sample leaves early any more, and the
        log says so.

        Examples:
            >>> adaptive = xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.05).keep(folder)
            >>> adaptive.close()
        """
        check_number("processes", processes, COUNT)
        if self._journal is not None or self._is_closed or self._taken:
            raise InputError("folder: this object has one, was closed or has taken samples in. Fix: make a new Adaptive.")
        facts = {name: getattr(self, name) for name in ("limit", "delta", "loss", "audit", "warm_up", "act")}
        values = self._given.to_dict()
        facts |= {"processes": processes} | {name: values[name] for name in SCORED_BY}
        journal = Journal(Path(folder), processes, facts)
        try:
            past = self._restore(journal)
        except BaseException as error:
            journal.close()
            if isinstance(error, InputError) or not isinstance(error, (*DAMAGED, PolicyError)):
                raise
            raise InputError(
                f"folder: {folder} is damaged ({error!r:.80}). Fix: choose another folder, which begins a new promise."
            ) from error
        self._delta, self._journal = self.delta / processes, journal
        for place, lines in past.items():
            for line in lines if place != journal.place else ():
                self._apply_feedback(line)  # labels that the one before did not apply, each of which is written down
        return self

    def _restore(self, journal: Journal) -> dict[int, list[Line]]:
        """Go on from what all have learnt, and from the counts of the one before in this place; return the latest lines."""
        past, early = journal.read_past(), len(self._never.thresholds)
        every = sorted((line for lines in past.values() for line in lines), key=lambda line: float(line["time"]))
        for line in every:
            seen = Observed.from_line(line, early)
            names = tuple(name if _is_shared(name) else "" for name in seen.names)
            self._remember(replace(seen, names=names))
            if "told" in line:
                self._correct(str(line["told"]), torch.tensor(line["losses"]))
        for line in past[journal.place] if self.act else ():  # what was proposed then is not known
            self._wait_for_labels(Observed.from_line(line, early))
            self._waiting.pop(line.get("told", ""), None)
        self._waiting = {name: waiting for name, waiting in self._waiting.items() if _is_shared(name)}
        if (last := journal.read_last()) is not None:
            counts, chosen = AdaptiveStatus(**last["status"]), read_levels(last["chosen"])
            (self._doubt,), (sure, doubtful) = read_levels([last["doubt"]]), last["expected"]
            self._expected, (self._told, self._forgiven) = (float(sure), float(doubtful)), last["labels"]
            self._taken, self._audited, self._alarms = counts.taken, counts.audited + counts.open, counts.alarms
            self._labelled, self._final_wrong, self.classes = counts.labelled, counts.final_wrong, int(last["classes"])
            self._lost, self._charged = counts.lost + counts.open, float(last["charged"])
            self._chosen, self._is_relearning = replace(self._chosen, thresholds=chosen), counts.relearning
        if self._is_relearning:
            self._forget()
        self._before, self._fresh = self._taken, KEPT  # thresholds are chosen with the next audit
        return past

    def _write(self, seen: Observed | None = None, **facts: Any) -> None:
        if self._journal is None or self._has_failed:
            return
        facts |= {"chosen": write_levels(self._chosen.thresholds), "doubt": write_levels([self._doubt])[0]}
        facts |= {"expected": self._expected, "labels": (self._told, self._forgiven)}
        facts |= {"charged": self._charged + self._charged_open, "classes": self.classes}
        facts |= {} if seen is None else {"seen": seen.to_dict()}
        try:
            self._journal.write(status=self.status.to_dict(), **facts)
        except OSError as error:
            self._has_failed = True
            LOG.error("%s cannot be written (%s): no sample leaves early any more", self._journal.folder, error)

    def close(self) -> None:
        """Give the place in the folder back, if there is one; no sample leaves early any more."""
        with self._lock:
            if self._journal is not None:
                self._journal.close()
                self._journal, self._is_closed = None, True

    @property
    def act(self) -> bool:
        """True if thresholds move and early answers stop; otherwise they are only proposed."""
        return self._act

    @property
    def policy(self) -> Policy:
        """The policy of now: thresholds are infinite while no sample may leave early."""
        return self._wanted if self.act else self._given

    @property
    def _wanted(self) -> Policy:
        is_stopped = self._is_relearning or self._has_failed or self._is_closed or self._charged > self._find_room()
        return self._never if is_stopped else self._chosen

    def _find_allowed(self) -> float:
        """Return how many losses the limit allows by now."""
        return self.limit * max(self._taken, self.warm_up)

    def _find_room(self) -> float:
        """Return the charges above which no sample leaves early."""
        return self.bet * self._find_allowed() + math.log(self._delta)

    @property
    def free(self) -> float:
        """Charges of audited losses until no sample leaves early."""
        return max(0.0, self._find_room() - self._charged)

    @property
    def opened(self) -> float:
        """Charges of audits without a final answer, if all of them are lost."""
        return self._charged_open

    @property
    def status(self) -> AdaptiveStatus:
        """Counts so far."""
        bound = bound_losses(self._charged + self._charged_open, self.bet, self._delta)
        counts = self._taken, self._audited, self._lost, self._open, bound, self._find_allowed()
        others = self._alarms, self._labelled, self._final_wrong, self._is_relearning
        return AdaptiveStatus(*counts, *others, self._wanted.thresholds)

    def draw(self, count: int) -> Coins:
        """Take samples in, and toss their coins."""
        with self._lock:
            first, boost = self._taken - self._before, min(BOOST, max(1.0, self.warm_up / max(1, self._taken)))
            self._taken += count
            if self._coins is None:
                luck = np.frombuffer(os.urandom(4 * count), np.uint32) / 2**32
            else:
                luck = self._coins.random(count)
            chances = min(1.0, boost * self._chance), min(1.0, RATIO * boost * self._chance)
            observed = 1.0 if self._is_relearning and self.act else chances[1]
            return Coins(torch.from_numpy(luck), chances, observed, first)

    def doubt(self, k: int, scores: Tensor) -> Tensor:  # (n,) -> (n,) bool
        """Return which scores at an exit are so near the threshold that answers are audited more often."""
        return scores - self._chosen.thresholds[k] <= self._doubt

    def decide(self, fired: Tensor, chances: Tensor, audited: Tensor) -> Tensor:  # (n,) each -> (n,) bool
        """Return which samples may leave at an exit where they fire.

        Audited ones among them go on, and are open until they are observed. Samples are decided in their order, each by the
        losses and open audits before it, so that its own coin has no part in it.
        """
        if not self.act:
            return fired
        charges = torch.zeros(len(fired), dtype=torch.float64)
        for i in (fired & audited).nonzero().flatten().tolist():
            charges[i] = charge_audit(float(chances[i]), self.bet)
        with self._lock:
            before = charges.cumsum(0) - charges + self._charged + self._charged_open
            leaving = fired & (before <= self._find_room()) & (not (self._has_failed or self._is_closed))
            if opened := int((leaving & audited).sum()):
                self._open += opened
                self._charged_open += charges[leaving].sum().item()
                self._write()
            return leaving & (not self._has_failed)  # which may have come just now

    def give_up(self, chance: float) -> None:
        """Count an open audit as lost: its sample will never be observed."""
        if not self.act:
            return
        with self._lock:
            self._settle(chance, 1.0)
            self._write()

    def _settle(self, chance: float, loss: float) -> None:
        """Charge what an audit has shown."""
        charge = charge_audit(chance, self.bet)
        if self.act:
            self._open -= 1
            self._charged_open = max(0.0, self._charged_open - charge) if self._open else 0.0
        self._audited += 1
        self._lost += loss
        self._charged += loss * charge

    def learn(self, seen: Observed, cost: Tensor) -> None:
        """Take in observed samples; thresholds may move. ``cost`` ``(K,)`` is the network's."""
        if not len(seen.exits):
            return
        early, journal = seen.losses.shape[1], self._journal
        with self._lock:
            counted = self._count(seen)
            lost = select_losses(counted.losses, counted.exits).tolist()
            for exit_, chance, loss in zip(counted.exits.tolist(), counted.chances.tolist(), lost, strict=True):
                if exit_ < early:
                    self._settle(chance, loss)
            self._watch_losses(counted)
            self._wait_for_labels(counted)
            self._write(seen)
        others = list(read_observed([] if journal is None else journal.read_new(), early))
        with self._lock:
            for part, line in others:
                self._watch_losses(replace(self._count(part), names=()))
                self._apply_feedback(line)
            is_due = self._is_relearning or self._fresh >= max(EVERY * early, len(self._kept.exits) / GROWN)
            if not is_due or len(self._kept.exits) < LEAST:
                return
            # labels come later, and take losses back, so with them late samples look worse
            if not self._labelled:
                self._kept = self._kept.select(slice(-count_alike(self._kept.losses, self._kept.weights), None))
            kept, self._fresh, alarms = self._kept, 0, self._alarms
            spent = self._charged + charge_audit(self._chance, self.bet)  # with room for an audit that is open
            free = 1 - bound_losses(spent, self.bet, self._delta) / self._find_allowed()
        risk = self.limit * min(1.0, max(0.0, free) / SLACK)
        risk -= SPARE * math.sqrt(risk / count_effective(kept.weights))
        thresholds = choose_thresholds(kept.scores, kept.losses, cost, risk, kept.weights, *STEPS)
        doubt = find_doubt(kept.scores, thresholds, kept.weights, DOUBTFUL)
        with self._lock:
            if alarms == self._alarms:
                self._chosen, self._is_relearning = replace(self._chosen, thresholds=thresholds), False
                self._doubt = doubt
                self._expect(kept)
                self._write()

    def _expect(self, kept: Observed) -> None:
        """Estimate the losses of early answers with the thresholds of now, of those that are not doubtful and of others."""
        exits = find_first_firing(kept.scores, self._chosen.thresholds)
        early = exits < kept.scores.shape[1]
        scores, lost, weights = kept.scores[early], select_losses(kept.losses, exits)[early], kept.weights[early]
        doubtful, most = self._find_doubtful(scores, exits[early]), max(self.limit, LARGEST)
        means = (average(lost[part], weights[part]) if part.any() else 0.0 for part in (~doubtful, doubtful))
        usual, doubted = (min(most, max(self.limit, mean)) for mean in means)
        self._expected = usual, doubted

    def _find_doubtful(self, scores: Tensor, exits: Tensor) -> Tensor:  # (n,K-1), (n,) early -> (n,) bool
        return select_exits(scores - torch.tensor(self._chosen.thresholds), exits) <= self._doubt

    def _count(self, seen: Observed) -> Observed:
        """Return samples as they are counted: if the policy does not act, where they would have left if it did."""
        if self.act:
            return seen
        return replace(seen, exits=find_first_firing(seen.scores, self._wanted.thresholds))

    def _watch_losses(self, seen: Observed) -> None:
        """Keep samples, perhaps another process's, for the next thresholds; or forget all if their losses are an alarm."""
        early = seen.exits < seen.losses.shape[1]
        scores, losses, exits = (part[early] for part in (seen.scores, seen.losses, seen.exits))
        lost, doubtful = select_losses(losses, exits).tolist(), self._find_doubtful(scores, exits).tolist()
        harmful = 1 - self._forgiven / (self._told + 1)  # share of the losses, by the labels so far
        for loss, is_doubtful in () if self._is_relearning else zip(lost, doubtful, strict=True):
            expected = self._expected[is_doubtful]
            self._evidence = add_evidence(self._evidence, loss, min(expected / harmful, max(expected, LARGEST)))
        if math.isinf(self._evidence):
            self._alarms, self._is_relearning = self._alarms + 1, True
            self._forget()
        else:
            self._remember(seen)

    def _forget(self) -> None:
        self._evidence, self._fresh = 0.0, 0
        self._kept = self._kept.select(slice(0, 0))

    def _remember(self, seen: Observed) -> None:
        finite = seen.select_finite()
        self._kept = self._kept.join(finite).select(slice(-KEPT, None))
        self._fresh += len(finite.exits)

    def _correct(self, name: str, losses: Tensor) -> None:  # (K-1,)
        """Learn from a sample's losses as its label tells them."""
        if name and name in self._kept.names:
            corrected = self._kept.losses.clone()  # learnt in inference mode, it cannot be changed in place
            corrected[self._kept.names.index(name)] = losses
            self._kept = replace(self._kept, losses=corrected)

    def feedback(self, name: str, label: int | Sequence[int]) -> bool:
        """Use the label of an answered sample; return whether an observed sample of this process was waiting for it.

        ``name`` is the sample's number in the order in which this object took samples in, from 0, as text; in a server its
        request's id and its row (``"id/0"``), which any process of a folder takes. ``label`` is the number of a class, or
        the numbers of all its labels. It may come twice. The latest 10,000 observed samples wait for their labels.

        Raises :class:`InputError` for another label, and unless the limit is on disagreement.

        Examples:
            >>> xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.05).feedback("12", 1)  # nobody has answered it
            False
        """
        if self.loss != "disagreement":
            raise InputError(f"loss: labels tell nothing of {self.loss}. Fix: use loss='disagreement'.")
        told = self._read_label(label)
        with self._lock:
            is_known = self._apply_label(name, told)
            if not is_known and self._journal is not None and self._journal.places > 1 and _is_shared(name):
                self._write(feedback={"name": name, "label": told})
            return is_known

    def _read_label(self, label: Any) -> int | list[int]:
        """Return a label as numbers; raise :class:`InputError` for anything else."""
        several = self._given.task == "multilabel"
        try:
            numbers = [operator.index(each) for each in (label if several else [label])]
        except TypeError:
            numbers = [-1]
        if any(number < 0 for number in numbers):
            expected = "the numbers of all labels" if several else "the number of a class"
            raise InputError(f"label: expected {expected}, got {label!r:.60}. Fix: pass numbers from 0 on.")
        return numbers if several else numbers[0]

    def _wait_for_labels(self, seen: Observed) -> None:
        for i, name in enumerate(seen.names):
            if seen.answers is not None:
                self._waiting[name] = _Waiting(int(seen.exits[i]), float(seen.chances[i]), seen.answers[i])
        for name in list(self._waiting)[: max(0, len(self._waiting) - WAITING)]:
            del self._waiting[name]

    def _apply_feedback(self, line: Line) -> None:
        """Apply a label that another process was told."""
        told = line.get("feedback")
        if isinstance(told, dict) and _is_shared(str(told.get("name"))):
            with suppress(InputError):
                self._apply_label(str(told["name"]), self._read_label(told.get("label")))

    def _apply_label(self, name: str, label: int | list[int]) -> bool:
        """Take back a loss that its label shows to be none: where the early answer is right, or the final one wrong, too."""
        waiting, task = self._waiting.get(name), self._given.task
        if waiting is None or self._is_closed:
            return False
        answers, truth, several = waiting.answers, torch.tensor(label), task == "multilabel"
        count = answers.shape[1] if several else self.classes
        if count and max(label if isinstance(label, list) else [label], default=0) >= count:
            raise InputError(f"label: expected numbers below {count}, got {label!r:.60}. Fix: pass those of classes.")
        if several:
            truth = torch.zeros(count, dtype=torch.bool).index_fill(0, truth.long().flatten(), True)
        del self._waiting[name]
        right = are_same(answers, truth, task)
        losses = (right[-1] & ~right[:-1]).float()
        self._labelled += 1
        self._final_wrong += int(not right[-1])
        self._correct(name, losses)
        if waiting.exit < len(losses) and not are_same(answers[waiting.exit], answers[-1], task):
            is_lost = bool(losses[waiting.exit])
            self._told, self._forgiven = self._told + 1, self._forgiven + (not is_lost)
            if not is_lost:
                self._lost = max(0.0, self._lost - 1)
                self._charged = max(0.0, self._charged - charge_audit(waiting.chance, self.bet))
        self._write(told=name, losses=losses.tolist())
        return True

    def replay(self, trace: Trace, batch_size: int = 64) -> Tensor:
        """Answer the samples of a trace in their order, in batches that are answered one after the other.

        Returns the exits ``(N,)`` that answered. Coins are tossed, and what is learnt stays. A trace does not tell binding:
        with a limit on it, this raises :class:`InputError`.

        Examples:
            >>> exits = xl.Adaptive(xl.Policy((0.9, 0.9)), limit=0.2, seed=0).replay(trace)
            >>> exits.shape
            torch.Size([64])
        """
        self.policy.check(trace.num_exits, trace.network, trace.task)
        if self.loss == "binding":
            raise InputError("loss: a trace does not tell binding. Fix: answer the samples themselves, by predict_stream.")
        losses = (disagreement(trace) if self.loss == "disagreement" else trace.divergence)[:, :-1].float()
        scores, self.classes = score_early_exits(trace, self._chosen), trace.logits.shape[-1]
        last, taken = trace.num_exits - 1, []
        for part, lost in zip(scores.split(batch_size), losses.split(batch_size), strict=True):
            coins, exits = self.draw(len(part)), torch.full((len(part),), last)
            chances = torch.full((len(part),), coins.observed, dtype=torch.float64)
            for k, threshold in enumerate(self.policy.thresholds):
                fired = fires(part[:, k], threshold) & (exits == last)
                chance = coins.find_chances(self.doubt(k, part[:, k]))
                leaving = self.decide(fired, chance, coins.luck < chance)
                exits[leaving], chances[leaving] = k, chance[leaving]
            rows = coins.luck < chances
            self.learn(Observed(part[rows], lost[rows], exits[rows], chances[rows]), trace.cost)
            taken.append(torch.where(rows, last, exits))
        return torch.cat(taken)
