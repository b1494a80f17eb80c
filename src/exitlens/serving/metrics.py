"""Counts and times of a server, for Prometheus."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from exitlens.errors import InputError, import_extra
from exitlens.types import AdaptiveStatus

SHARED = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DIVERGENCE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1)


class Metrics:
    """Counters, gauges and histograms of one server, apart from all others in the process; safe between threads.

    Where the environment variable ``PROMETHEUS_MULTIPROC_DIR`` names an empty directory, processes share their metrics
    through files there: :meth:`render` then gives the metrics of all, with waiting samples summed over the live processes,
    and the largest drift. Raises :class:`InputError` if it is no directory, or was set after ``prometheus_client`` read it.

    Every new combination of labels takes memory until the process ends, so no text from a client may become a label.

    Attributes:
        waiting: gauge of the samples that wait, by model.
        rejected: counter of refused requests, by model and reason (a word from a short list).
    """

    def __init__(self) -> None:
        self._client = import_extra("prometheus_client", "serve", "counting requests")
        self._shared = os.environ.get(SHARED, "")
        values = import_extra("prometheus_client.values", "serve", "counting requests")
        if self._shared and not Path(self._shared).is_dir():
            raise InputError(f"{SHARED}: expected an empty directory that exists, got {self._shared!r}. Fix: make it.")
        if bool(self._shared) != getattr(values.ValueClass, "_multiprocess", bool(self._shared)):
            words = "it was changed after prometheus_client had read it. Fix: set it before the process starts."
            raise InputError(f"{SHARED}: {words}")
        self._registry = self._client.CollectorRegistry()
        if not self._shared:
            self._client.ProcessCollector(registry=self._registry)

        def make(kind: str, name: str, text: str, *labels: str, **options: Any) -> Callable[..., Any]:
            metric = getattr(self._client, kind)
            metric = metric(f"exitlens_{name}", text, ("model", *labels), registry=self._registry, **options)
            return cache(metric.labels)  # a tenth of the time

        largest = {"multiprocess_mode": "livemax"}
        self._requests = make("Counter", "requests", "Requests that were answered.", "route", "status")
        text = "Time from the head of a request to the end of its answer."
        self._request_seconds = make("Histogram", "request_seconds", text, "route", buckets=_SECONDS)
        self.rejected = make("Counter", "rejected", "Requests that were refused, by reason.", "reason")
        self.waiting = make("Gauge", "waiting_samples", "Samples that wait for a batch.", multiprocess_mode="livesum")
        self._version = make("Gauge", "model_info", "1 for the version that answers now.", "version", **largest)
        self._cost = make(
            "Gauge", "exit_cost", "Computation up to an exit, as a share of the plain network's.", "exit", **largest
        )
        self._answers = make("Counter", "answers", "Samples that were answered, by the exit they left at.", "exit")
        text = "Time from a sample's arrival to its answer."
        self._answer_seconds = make("Histogram", "answer_seconds", text, "exit", buckets=_SECONDS)
        self._step_samples = make("Histogram", "step_samples", "Samples in a batch, by stage.", "stage", buckets=_SAMPLES)
        text = "Time of one batch in one stage."
        self._step_seconds = make("Histogram", "step_seconds", text, "stage", buckets=_STEP_SECONDS)
        self._evidence = make("Gauge", "drift_evidence", "Evidence that the samples have changed.", **largest)
        self._alarm = make("Gauge", "drift_alarm", "1 if the samples have changed, else 0.", **largest)
        text = "Share of the samples with this answer that the gate refused at an exit although it was sure."
        self._refused = make("Gauge", "gate_refused", text, "label", **largest)
        text = "Early answers that were compared with the final exit's."
        self._shadow = make("Counter", "shadow_answers", text, "exit", "agrees")
        text = "Divergence of an early exit's map from the final one."
        self._divergence = make("Histogram", "shadow_divergence", text, "exit", buckets=_DIVERGENCE)
        text = "Score at which an early exit answers, with thresholds that adapt; 2: never."
        self._threshold = make("Gauge", "adaptive_threshold", text, "exit", **largest)
        self._audits = make("Counter", "adaptive_audits", "Samples that the final exit checked.")
        text = "Checked samples whose early answer was not the final exit's."
        self._lost = make("Counter", "adaptive_lost", text)
        self._alarms = make("Counter", "adaptive_alarms", "Sudden changes that audits have shown.")
        text = "Bound on the losses over what the limit allows; above 1 no sample leaves early."
        self._budget = make("Gauge", "adaptive_bound_over_allowed", text, **largest)
        self._counted: dict[str, AdaptiveStatus] = {}
        self._versions: dict[str, str] = {}

    def count_request(self, model: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered; ``route`` is the template, such as ``/v2/models/{model}/infer``."""
        self._requests(model, route, status).inc()
        self._request_seconds(model, route).observe(seconds)

    def observe_answers(self, model: str, exits: Sequence[int], seconds: Sequence[float]) -> None:
        """Count the samples of an answer by exit, with the time that each took since it came."""
        for exit_, count in Counter(exits).items():
            self._answers(model, exit_).inc(count)
        for exit_, second in zip(exits, seconds, strict=True):
            self._answer_seconds(model, exit_).observe(second)

    def observe_step(self, model: str, stage: int, count: int, seconds: float) -> None:
        """Note that a batch of ``count`` samples went through a stage."""
        self._step_samples(model, stage).observe(count)
        self._step_seconds(model, stage).observe(seconds)

    def set_drift(self, model: str, evidence: float, alarm: bool, refused: Mapping[int, float]) -> None:
        """Set the state of the drift monitor; ``refused``: shares of the samples that a gate refused, by answer."""
        self._evidence(model).set(evidence)
        self._alarm(model).set(int(alarm))
        for answer, share in refused.items():
            self._refused(model, answer).set(share)

    def observe_shadow(self, model: str, exit: int, agreement: float, divergence: float) -> None:
        """Compare an early answer with the final exit's; a divergence of NaN was not measured.

        The agreement is 0 or 1; of pixels, the share of those with the same class.
        """
        for word, share in (("true", agreement), ("false", 1 - agreement)):
            if share:
                self._shadow(model, exit, word).inc(share)
        if divergence == divergence:
            self._divergence(model, exit).observe(divergence)

    def observe_adapting(self, model: str, status: AdaptiveStatus) -> None:
        """Set the state of thresholds that adapt."""
        before = self._counted.get(model, status)
        self._counted[model] = status
        for counter, name in ((self._audits, "audited"), (self._lost, "lost"), (self._alarms, "alarms")):
            counter(model).inc(max(0, getattr(status, name) - getattr(before, name)))
        self._budget(model).set(status.bound / status.allowed)
        for k, threshold in enumerate(status.thresholds):
            self._threshold(model, k).set(2.0 if threshold == math.inf else threshold)

    def set_version(self, model: str, version: str, cost: Sequence[float] = ()) -> None:
        """Set which version answers from now on, and the cost of its exits."""
        for k, value in enumerate(cost):
            self._cost(model, k).set(value)
        before = self._versions.get(model, version)
        self._versions[model] = version
        self._version(model, before).set(0)
        self._version(model, version).set(1)

    def render(self) -> tuple[bytes, str]:
        """Return the metrics as Prometheus's text format, and its content type."""
        registry = self._registry
        if self._shared:
            registry = self._client.CollectorRegistry()
            import_extra("prometheus_client.multiprocess", "serve", "metrics").MultiProcessCollector(registry, self._shared)
        kind = getattr(self._client, "CONTENT_TYPE_PLAIN_0_0_4", self._client.CONTENT_TYPE_LATEST)
        return self._client.generate_latest(registry), kind
