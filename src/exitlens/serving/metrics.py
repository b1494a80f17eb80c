"""What a server counts and times, in the form that Prometheus reads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from exitlens.errors import InputError, import_extra

SHARED = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_DIVERGENCE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1)


class _Children(dict[tuple[object, ...], Any]):
    """The children of one metric by their labels, which takes a tenth of the time of its ``labels``."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[object, ...]) -> Any:
        child = self[labels] = self._metric.labels(*labels)
        return child


class Metrics:
    """Counters, gauges and histograms of one server, apart from all others in the process.

    Where the environment variable ``PROMETHEUS_MULTIPROC_DIR`` names a directory, processes share their metrics through
    files there: :meth:`render` then tells those of all, waiting samples summed over the processes that live, drift by the
    worst of them. Set it before ``prometheus_client`` is imported, with an empty directory, and have whoever sees a process
    end call ``prometheus_client.multiprocess.mark_process_dead(pid)``.

    Every new combination of labels takes memory until the process ends: give no text of a client's as a label, such as the
    name of a model that is not served. Safe to call from several threads.

    Raises:
        MissingExtraError: without the package ``prometheus_client``.
        InputError: for a ``PROMETHEUS_MULTIPROC_DIR`` that is no directory, or was set too late.
    """

    def __init__(self) -> None:
        self._client = import_extra("prometheus_client", "serve", "counting requests")
        self._shared = os.environ.get(SHARED, "")
        self._check_shared()
        self._registry = self._client.CollectorRegistry()
        if not self._shared:
            self._client.ProcessCollector(registry=self._registry)
        self._make_of_requests()
        self._make_of_answers()
        self._versions: dict[str, str] = {}

    def _check_shared(self) -> None:
        values = import_extra("prometheus_client.values", "serve", "counting requests")
        if self._shared and not os.path.isdir(self._shared):  # noqa: PTH112
            raise InputError(
                f"{SHARED}: expected an empty directory that exists, got {self._shared!r}: make it, or unset it"
            )
        if bool(self._shared) != getattr(values.ValueClass, "_multiprocess", bool(self._shared)):
            raise InputError(
                f"{SHARED}: it was changed after prometheus_client had read it: set it before the process starts"
            )

    def _make_of_requests(self) -> None:
        self._requests = self._count("requests", "Requests that were answered.", "model", "route", "status")
        self._request_seconds = self._spread(
            "request_seconds", "Time from the head of a request to the end of its answer.", _SECONDS, "model", "route"
        )
        self._rejected = self._count("rejected", "Requests that were refused, by reason.", "model", "reason")
        self._waiting = self._gauge("waiting_samples", "Samples that wait for a batch.", "livesum", "model")
        self._version = self._gauge("model_info", "1 for the version that answers now.", "livemax", "model", "version")

    def _make_of_answers(self) -> None:
        self._answers = self._count("answers", "Samples that were answered, by the exit they left at.", "model", "exit")
        self._answer_seconds = self._spread(
            "answer_seconds", "Time from a sample's arrival to its answer.", _SECONDS, "model", "exit"
        )
        self._step_samples = self._spread("step_samples", "Samples in a batch, by stage.", _SAMPLES, "model", "stage")
        self._step_seconds = self._spread("step_seconds", "Time of one batch in one stage.", _STEP_SECONDS, "model", "stage")
        self._evidence = self._gauge("drift_evidence", "Evidence that the samples have changed.", "livemax", "model")
        self._alarm = self._gauge("drift_alarm", "1 if the samples have changed, else 0.", "livemax", "model")
        self._shadow = self._count(
            "shadow_answers",
            "Early answers that were compared with the final exit's.",
            *("model", "exit", "agrees"),
        )
        self._divergence = self._spread(
            "shadow_divergence",
            "Divergence of an early exit's map from the final one.",
            _DIVERGENCE,
            *("model", "exit"),
        )

    def _count(self, name: str, text: str, *labels: str) -> _Children:
        return _Children(self._client.Counter(f"exitlens_{name}", text, labels, registry=self._registry))

    def _spread(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> _Children:
        kind = self._client.Histogram
        return _Children(kind(f"exitlens_{name}", text, labels, registry=self._registry, buckets=buckets))

    def _gauge(self, name: str, text: str, mode: str, *labels: str) -> _Children:
        kind = self._client.Gauge
        return _Children(kind(f"exitlens_{name}", text, labels, registry=self._registry, multiprocess_mode=mode))

    def count_request(self, model: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that was answered; ``route`` is the template, such as ``/v2/models/{model}/infer``."""
        self._requests[model, route, status].inc()
        self._request_seconds[model, route].observe(seconds)

    def observe_answers(self, model: str, exits: Sequence[int], seconds: Sequence[float]) -> None:
        """Counts the samples of an answer by exit, with the time that each took since it came."""
        for exit_, count in Counter(exits).items():
            self._answers[model, exit_].inc(count)
        for exit_, second in zip(exits, seconds, strict=True):
            self._answer_seconds[model, exit_].observe(second)

    def observe_step(self, model: str, stage: int, count: int, seconds: float) -> None:
        """Notes that a batch of ``count`` samples went through a stage."""
        self._step_samples[model, stage].observe(count)
        self._step_seconds[model, stage].observe(seconds)

    def set_waiting(self, model: str, count: int) -> None:
        """Says how many samples wait now."""
        self._waiting[(model,)].set(count)

    def reject(self, model: str, reason: str) -> None:
        """Counts a request that was refused; ``reason`` is one of few words."""
        self._rejected[model, reason].inc()

    def set_drift(self, model: str, evidence: float, alarm: bool) -> None:
        """Says what the drift monitor knows now."""
        self._evidence[(model,)].set(evidence)
        self._alarm[(model,)].set(int(alarm))

    def observe_shadow(self, model: str, exit: int, agrees: bool, divergence: float) -> None:
        """Compares an early answer with the final exit's; a divergence of NaN was not measured."""
        self._shadow[model, exit, "true" if agrees else "false"].inc()
        if divergence == divergence:
            self._divergence[model, exit].observe(divergence)

    def set_version(self, model: str, version: str) -> None:
        """Says which version answers from now on; those before it become 0."""
        before = self._versions.get(model, version)
        self._versions[model] = version
        self._version[model, before].set(0)
        self._version[model, version].set(1)

    def render(self) -> tuple[bytes, str]:
        """The metrics as Prometheus's text format, and its content type."""
        registry = self._registry
        if self._shared:
            registry = self._client.CollectorRegistry()
            import_extra("prometheus_client.multiprocess", "serve", "metrics").MultiProcessCollector(registry, self._shared)
        kind = getattr(self._client, "CONTENT_TYPE_PLAIN_0_0_4", self._client.CONTENT_TYPE_LATEST)
        return self._client.generate_latest(registry), kind
