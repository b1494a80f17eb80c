"""Writes the tables of docs/guides/serving.md from benchmarks/results/serving.csv: python -m benchmarks.serving.page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.markdown import fill, table
from benchmarks.promises import add_reasons
from benchmarks.serving.promises import list_promises
from benchmarks.serving.runs import SERVING

NAMES = {
    "exits": "with exits",
    "plain": "plain backbone, same server",
    "litserve": "plain backbone, LitServe",
    "ray": "plain backbone, Ray Serve",
}
DESIGNS = {
    "workers": "`exitlens serve --workers 2`",
    "replicas": "Ray Serve, two replicas of the whole network",
    "pools": "Ray Serve, a pool for exit 0 and one for the rest",
}


def write_throughput(runs: Mapping[str, Any]) -> Iterator[str]:
    """Samples a second in time."""
    rows = []
    for run, found in runs.items():
        kind, _, name = run.partition("-")
        if kind == "throughput":
            network, _, size = name.partition("-")
            for server, one in found.items():
                p99 = " / ".join(f"{value:.0f}" for value in one["p99_ms"])
                rows.append([network, size or "1", NAMES[server], f"{one['samples_a_second']:.0f}", p99])
    yield "50 / 30 / 0 / 20 % of the samples leave at exits 0 to 3. The server has one core, the load the other."
    yield ""
    head = ["network", "samples in a request", "server", "samples a second", "p99, ms: median / least / most of three"]
    yield from table(head, rows)


def write_promises(runs: Mapping[str, Any]) -> Iterator[str]:
    """What was promised and measured."""
    rows = []
    for one in add_reasons(one for run in runs for one in list_promises(run, runs[run])):
        note = "" if one.is_kept else f"missed: {one.reason}" if one.reason else "missed"
        rows.append([one.what, f"{one.measured:.3g}", f"{'≤' if one.sense == '<=' else '≥'} {one.bar:g}", note])
    yield from table(["what", "measured", "promised", ""], rows)


def write_designs(runs: Mapping[str, Any]) -> Iterator[str]:
    """Replicas and pools."""
    rows = [[DESIGNS[name], f"{one['requests_a_second']:.0f}"] for name, one in runs.get("designs", {}).items()]
    if rows:
        yield from table(["on two cores, with the load on the same ones", "requests a second in time"], rows)
        yield ""
    rows = []
    for run, found in runs.items():
        kind, _, name = run.partition("-")
        if kind == "simulated":
            for case, rates in found.items():
                if case not in ("ms", "crossing", "million"):
                    rows.append([name, case, f"{rates['replicas']:,.0f}", f"{rates['pools']:,.0f}"])
    if not rows:
        return
    yield "Simulated, 8 machines of 4 cores, requests a second in time:"
    yield ""
    yield from table(["network", "if", "replicas", "pools"], rows)
    yield ""
    for name, found in ((run.partition("-")[2], runs[run]) for run in runs if run.startswith("simulated")):
        one = found["million"]
        yield (
            f"- {name}: one machine of {one['cores']} cores answers {one['rate']:,.0f} a second in time, so that 1,000,000 take "
            f"{one['machines']:,} machines at {100 * one['headroom']:.0f} % load."
        )


def main() -> None:
    runs = SERVING.read()
    fill("serving-throughput", list(write_throughput(runs)))
    fill("serving-designs", list(write_designs(runs)))
    fill("serving-promises", list(write_promises(runs)))


if __name__ == "__main__":
    main()
