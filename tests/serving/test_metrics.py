"""Metrics read back through Prometheus's own parser, also from several processes, and the dashboard uses them."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exitlens.errors import InputError, MissingExtraError
from exitlens.serving.metrics import SHARED, Metrics
from exitlens.types import AdaptiveStatus

DASHBOARD = Path(__file__).parents[2] / "examples" / "serving" / "grafana.json"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv(SHARED, raising=False)


def parse(text):
    """Return every sample by its name and labels."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}


def read(metrics):
    return parse(metrics.render()[0].decode())


def fill(metrics):
    metrics.count_request("photos", "/v2/models/{model}/infer", 200, 0.02)
    metrics.observe_answers("photos", [0, 2, 0], [0.004, 0.2, 0.006])
    metrics.observe_step("photos", 1, 12, 0.003)
    metrics.waiting("photos").set(7)
    metrics.rejected("photos", "full").inc()
    metrics.set_drift("photos", 3.5, True, {2: 0.25})
    metrics.observe_shadow("photos", 0, True, 0.25)
    metrics.observe_shadow("photos", 0, False, float("nan"))
    metrics.set_version("photos", "1")
    metrics.set_version("photos", "2", (0.25, 0.5, 1.0))
    for taken, lost in ((100, 1), (300, 3)):  # what was counted before is not this process's
        counts = {"taken": taken, "audited": taken // 50, "lost": lost, "alarms": lost // 3}
        more = {"open": 0, "bound": 10.0 * lost, "allowed": 40.0, "labelled": 0, "final_wrong": 0, "relearning": False}
        metrics.observe_adapting("photos", AdaptiveStatus(**counts, **more, thresholds=(0.5, math.inf)))
    return metrics


def test_everything_that_is_counted_reads_back():
    found = read(fill(Metrics()))
    model, early = ("model", "photos"), ("exit", "0")
    route = ("route", "/v2/models/{model}/infer")
    assert found["exitlens_requests_total", model, route, ("status", "200")] == 1
    assert found["exitlens_request_seconds_bucket", ("le", "0.025"), model, route] == 1
    assert found["exitlens_request_seconds_bucket", ("le", "0.01"), model, route] == 0
    assert found["exitlens_answers_total", early, model] == 2
    assert found["exitlens_answers_total", ("exit", "2"), model] == 1
    assert found["exitlens_answer_seconds_sum", early, model] == pytest.approx(0.01)
    assert found["exitlens_answer_seconds_count", ("exit", "2"), model] == 1
    assert found["exitlens_step_samples_bucket", ("le", "16.0"), model, ("stage", "1")] == 1
    assert found["exitlens_step_seconds_sum", model, ("stage", "1")] == pytest.approx(0.003)
    assert found["exitlens_waiting_samples", model] == 7
    assert found["exitlens_rejected_total", model, ("reason", "full")] == 1
    assert found["exitlens_drift_evidence", model] == 3.5
    assert found["exitlens_drift_alarm", model] == 1
    assert found["exitlens_gate_refused", ("label", "2"), model] == 0.25
    assert found["exitlens_shadow_answers_total", ("agrees", "true"), early, model] == 1
    assert found["exitlens_shadow_answers_total", ("agrees", "false"), early, model] == 1
    assert found["exitlens_shadow_divergence_count", early, model] == 1
    assert found["exitlens_exit_cost", ("exit", "1"), model] == 0.5
    assert found["exitlens_adaptive_audits_total", model] == 4
    assert found["exitlens_adaptive_lost_total", model] == 2
    assert found["exitlens_adaptive_alarms_total", model] == 1
    assert found["exitlens_adaptive_bound_over_allowed", model] == 0.75
    assert found["exitlens_adaptive_threshold", early, model] == 0.5
    assert found["exitlens_adaptive_threshold", ("exit", "1"), model] == 2
    assert found["exitlens_model_info", model, ("version", "1")] == 0
    assert found["exitlens_model_info", model, ("version", "2")] == 1


def test_two_servers_in_one_process_count_apart_and_every_metric_is_explained():
    filled, other = fill(Metrics()), Metrics()
    assert not {name for name, *_ in read(other) if name.startswith("exitlens")}
    text, kind = filled.render()
    assert kind.startswith("text/plain")
    assert all(family.documentation for family in text_string_to_metric_families(text.decode()))
    assert ("process_resident_memory_bytes",) in read(filled) or sys.platform != "linux"


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"exitlens\[serve\]"):
        Metrics()


def test_a_shared_directory_set_too_late_or_missing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(SHARED, str(tmp_path))
    with pytest.raises(InputError, match="before the process starts"):
        Metrics()
    monkeypatch.setenv(SHARED, str(tmp_path / "none"))
    with pytest.raises(InputError, match="directory that exists"):
        Metrics()


PROCESS = """
import sys
from exitlens.serving.metrics import Metrics
metrics = Metrics()
metrics.count_request("photos", "other", 200, 0.1)
metrics.observe_answers("photos", [0, 1], [0.1, 0.2])
metrics.waiting("photos").set(3)
metrics.set_drift("photos", float(sys.argv[1]), False, {})
metrics.set_version("photos", "2")
print(end="", flush=True)
if len(sys.argv) > 2:
    sys.stdout.buffer.write(metrics.render()[0])
"""


@pytest.mark.slow
def test_processes_share_their_metrics(monkeypatch, tmp_path):
    monkeypatch.setenv(SHARED, str(tmp_path))
    subprocess.run([sys.executable, "-c", PROCESS, "2"], check=True, timeout=60)
    last = subprocess.run([sys.executable, "-c", PROCESS, "1", "show"], check=True, timeout=60, capture_output=True).stdout
    found = parse(last.decode())
    model = ("model", "photos")
    assert found["exitlens_requests_total", model, ("route", "other"), ("status", "200")] == 2
    assert found["exitlens_answer_seconds_count", ("exit", "0"), model] == 2
    assert found["exitlens_waiting_samples", model] == 6
    assert found["exitlens_drift_evidence", model] == 2
    assert found["exitlens_model_info", model, ("version", "2")] == 1


def test_the_dashboard_asks_for_metrics_and_labels_that_exist():
    labels: dict[str, set[str]] = {}
    for name, *pairs in read(fill(Metrics())):
        labels.setdefault(name, set()).update(key for key, _ in pairs)
    dashboard = json.loads(DASHBOARD.read_text())
    used = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            names = set(re.findall(r"exitlens_\w+", target["expr"]))
            assert names
            assert names <= set(labels), panel["title"]
            grouped = {word.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for word in group.split(",")}
            filtered = set(re.findall(r"(\w+)=~?\"", target["expr"]))
            assert all(grouped | filtered <= labels[name] for name in names), panel["title"]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= grouped, panel["title"]
            used |= names
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in labels if name.startswith("exitlens_")}
    families -= {name for name in families if f"{name}_total" in families}  # the times at which counters were made
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
