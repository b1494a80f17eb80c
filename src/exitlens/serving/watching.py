"""Watches live answers: do samples drift, and what would the final exit have said of a share of them?"""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections import deque
from typing import Any, NamedTuple

import torch

from exitlens.errors import DriftWarning, PolicyError
from exitlens.functional.drift import DriftMonitor
from exitlens.functional.maps import divergence, on_common_grid
from exitlens.model.cutting.stage import Activations
from exitlens.model.engine.engine import Engine
from exitlens.serving.cascade import Ticket
from exitlens.serving.metrics import Metrics
from exitlens.serving.models import ServedModel
from exitlens.serving.settings import Watching
from exitlens.types import Prediction
from exitlens.types.policies import DEFAULT
from exitlens.types.tasks import find_answers

LOG = logging.getLogger("exitlens.serving")
SHADOWED = 64  # samples that may wait for idle time to be compared with the final exit


class _Shadowed(NamedTuple):
    activations: Activations
    exit: int
    label: Any


class Watch:
    """Watches one version of a model, by the answers under the bundle's own policy, which the calibration is about."""

    def __init__(self, model: ServedModel, metrics: Metrics, watching: Watching) -> None:
        self.model, self.metrics, self.watching = model, metrics, watching
        self.monitor = self._open_monitor() if watching.drift else None
        self._pending: deque[Ticket] = (
            deque()
        )  # in the order in which they came: by that of answers, early exits would come first
        self._shadowed: deque[_Shadowed] = deque(maxlen=SHADOWED)
        self._room, self._last = watching.drift_rate, time.monotonic()
        self._random = random.Random(0)
        self.is_drifting = False

    def _open_monitor(self) -> DriftMonitor | None:
        policy = self.model.policies[DEFAULT]
        if policy.calibration is not None and policy.calibration.groups is not None:
            LOG.info("%s: no drift watch: the calibration counted groups, which requests do not name", self.model.name)
            return None
        try:
            return DriftMonitor(policy)
        except PolicyError as error:
            LOG.info("%s: no drift watch: %s", self.model.name, error)
            return None

    def expect(self, ticket: Ticket) -> None:
        """Note that a request came; called in the order of requests."""
        if self.monitor is not None and _is_own(ticket) and self._has_room(len(ticket)):
            self._pending.append(ticket)

    def _has_room(self, count: int) -> bool:
        now, rate = time.monotonic(), self.watching.drift_rate
        self._room = min(rate, self._room + rate * (now - self._last))
        self._last = now
        if self._room < 1:  # a large request may overdraw it
            return False
        self._room -= count
        return True

    def see(self, done: list[Ticket]) -> None:
        """Note that requests ended."""
        if self.watching.shadow:
            self._choose_shadowed(done)
        while self._pending and not self._pending[0].left:
            ticket = self._pending.popleft()
            if ticket.error is None:
                self._count(ticket)

    def _count(self, ticket: Ticket) -> None:
        assert self.monitor is not None
        arrays = ticket.labels, ticket.exits, ticket.confidence, ticket.probabilities
        labels, exits, confidence, p = map(torch.from_numpy, arrays)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DriftWarning)  # it is logged
            state = self.monitor.update(Prediction(labels, exits, confidence, p))
        if state.alarm and not self.is_drifting:
            LOG.warning("%s: %s", self.model.name, state.summary)
        self.is_drifting = state.alarm
        self.metrics.set_drift(self.model.name, state.evidence, state.alarm)

    def _choose_shadowed(self, done: list[Ticket]) -> None:
        for ticket in done:
            rows = range(len(ticket)) if ticket.error is None and _is_own(ticket) else ()
            for row in (row for row in rows if self._random.random() < self.watching.shadow):
                given = tuple(t[row : row + 1].clone() for t in ticket.activations)
                self._shadowed.append(_Shadowed(given, int(ticket.exits[row]), ticket.labels[row].tolist()))

    def run_idle(self, engine: Engine) -> bool:
        """Run a sample of the shadow to the final exit; return true if there are more."""
        if not self._shadowed:
            return False
        sample = self._shadowed.popleft()
        outputs = dict(zip(sorted(self.model.exits), engine.compute_outputs(engine.enter(sample.activations)), strict=True))
        logits, final = outputs[self.model.num_exits - 1]
        away = divergence(*on_common_grid(outputs[sample.exit][1].float(), final.float())).item()
        says = find_answers(logits[0], self.model.info.task).tolist()
        self.metrics.observe_shadow(self.model.name, sample.exit, says == sample.label, away)
        return bool(self._shadowed)


def _is_own(ticket: Ticket) -> bool:
    """Return whether the bundle's own policy answers, and nothing else."""
    return ticket.terms.policy == DEFAULT and not ticket.terms.changes_policy
