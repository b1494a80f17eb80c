"""Watches live answers: for drift, and by comparing a share of them with the final exit's."""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections import deque
from typing import Any

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


class Watch:
    """Watches one version of a model, by its answers under the bundle's own policy, which was calibrated."""

    def __init__(self, model: ServedModel, metrics: Metrics, watching: Watching) -> None:
        self.model, self.metrics, self.watching = model, metrics, watching
        self.monitor, policy = None, model.policies[DEFAULT]
        if watching.drift and policy.calibration is not None and policy.calibration.groups is not None:
            LOG.info("%s: no drift watch: the calibration counted groups, which requests do not name", model.name)
        elif watching.drift:
            try:
                self.monitor = DriftMonitor(policy)
            except PolicyError as error:
                LOG.info("%s: no drift watch: %s", model.name, error)
        self._pending: deque[Ticket] = deque()  # in the order of arrival: in that of answers, early exits would come first
        self._shadowed: deque[tuple[Activations, int, Any]] = deque(maxlen=SHADOWED)  # inputs, exit and label
        self._room, self._last = watching.drift_rate, time.monotonic()
        self._random = random.Random(0)
        self.is_drifting = False

    def expect(self, ticket: Ticket) -> None:
        """Note that a request came; called in the order of requests."""
        if self.monitor is None or not ticket.terms.are_default:
            return
        now, rate = time.monotonic(), self.watching.drift_rate
        self._room, self._last = min(rate, self._room + rate * (now - self._last)), now
        if self._room >= 1:  # a large request may overdraw it
            self._room -= len(ticket)
            self._pending.append(ticket)

    def see(self, done: list[Ticket]) -> None:
        """Note that requests ended."""
        for ticket in done if self.watching.shadow else ():
            rows = range(len(ticket)) if ticket.error is None and ticket.terms.are_default else ()
            for row in (row for row in rows if self._random.random() < self.watching.shadow):
                inputs = tuple(t[row : row + 1].clone() for t in ticket.activations)
                self._shadowed.append((inputs, int(ticket.exits[row]), ticket.labels[row].tolist()))
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

    def run_idle(self, engine: Engine) -> bool:
        """Run a sample of the shadow to the final exit; return true if there are more."""
        if not self._shadowed:
            return False
        inputs, exit_, label = self._shadowed.popleft()
        outputs = dict(zip(sorted(self.model.exits), engine.compute_outputs(engine.enter(inputs)), strict=True))
        logits, final = outputs[self.model.num_exits - 1]
        distance = divergence(*on_common_grid(outputs[exit_][1].float(), final.float())).item()
        expected = find_answers(logits[0], self.model.info.task).tolist()
        self.metrics.observe_shadow(self.model.name, exit_, expected == label, distance)
        return bool(self._shadowed)
