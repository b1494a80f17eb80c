"""Writes the tables and the chart of docs/performance.md from benchmarks/results/performance. Run after performance.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.markdown import replace

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "performance"
PAGE, CHART = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.svg"
NAMES = {"small": "our small network, 40 px", "resnet18": "ResNet-18", "resnet50": "ResNet-50", "deit_tiny": "DeiT-tiny"}
MIXED = "50/30/0/20"
BARS = {  # rows of the chart: name, label, colour (Okabe-Ito)
    "plain, tuned": ("plain backbone, tuned", "#999999"),
    "plain, compiled": ("plain backbone, tuned and compiled", "#555555"),
    f"earlyon, {MIXED}, same formats": ("earlyon 0.3.0, same formats", "#E69F00"),
    f"exits, {MIXED}, whole batches": ("ours, whole batches", "#56B4E9"),
    f"exits, {MIXED}": ("ours, tuned", "#0072B2"),
    f"exits, {MIXED}, compiled": ("ours, tuned and compiled", "#009E73"),
}


def parts() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Network, threads and results, in the order of the page."""
    for threads in (2, 1):
        for name in NAMES:
            path = RESULTS / f"{name}-{threads}.json"
            if path.exists():
                yield name, threads, json.loads(path.read_text())


def batch_table(found: dict[str, Any]) -> list[str]:
    """One table of all contenders by batch size: milliseconds a sample, and how many times faster than plain."""
    sizes = [batch["batch"] for batch in found["batches"]]
    lines = [
        "| ms a sample (times faster than plain as PyTorch runs it) | " + " | ".join(f"batch {s}" for s in sizes) + " |",
        "| --- |" + " --- |" * len(sizes),
    ]
    by_size = [{row["name"]: row for row in batch["rows"]} for batch in found["batches"]]
    for name in by_size[0]:
        cells = []
        for rows in by_size:
            row = rows.get(name)
            cells.append("" if row is None else f"{row['ms'][0]:.2f} ({row['speedup'][0]:.2f}x)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def ideal_table(found: dict[str, Any]) -> list[str]:
    """Measured against ideal, and what a call takes."""
    lines = [
        "| batch | exit shares | measured ms (95 %) | ideal ms | saving / ideal saving | call p50, p95 ms | samples/s | peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for batch in found["batches"]:
        for row in batch["rows"]:
            if "ideal_ms" not in row:
                continue
            ms = row["ms"]
            saving = f"{row['saving'][0]:.3f}" if "saving" in row else ""
            shares = row["name"].removeprefix("exits, ")
            lines.append(
                f"| {batch['batch']} | {shares} | {ms[0]:.2f} ({ms[1]:.2f} to {ms[2]:.2f}) | {row['ideal_ms']:.2f} | {saving} | "
                f"{row['call_p50_ms']:.1f}, {row['call_p95_ms']:.1f} | {row['per_second']:.0f} | {row.get('peak_mb', '')} |"
            )
    return lines


def section(name: str, threads: int, found: dict[str, Any]) -> list[str]:
    """All about one network in this many threads."""
    network, tuning = found["network"], found["tuning"]
    at, cost = ", ".join(f"`{a}`" for a in network["exits"]), ", ".join(f"{100 * c:.0f} %" for c in network["cost"])
    words = [
        f"micro-batch {tuning['micro_batch']}",
        "channels_last" if tuning["channels_last"] else "own memory format",
        "batch normalisation folded" if tuning["folded"] else "nothing to fold",
        "memory kept" if tuning["keep_memory"] else "memory not kept",
        f"{tuning['threads'] or threads} thread{'s' if (tuning['threads'] or threads) > 1 else ''}",
    ]
    lines = [f"### {NAMES[name]}, {threads} core{'s' if threads > 1 else ''}", ""]
    lines += [f"Exits after {at} (cost {cost}). Tuned: {', '.join(words)}, {tuning['precision']}.", ""]
    lines += [*batch_table(found), ""]
    half = {row["name"]: row for row in found["bfloat16"]["rows"]}
    ours, plain = half[f"exits, {MIXED}"], half["plain, tuned"]
    lines.append(
        f"In bfloat16, batch 32: plain {plain['ms'][0]:.2f} ms, ours at {MIXED} {ours['ms'][0]:.2f} ms "
        f"({ours['speedup'][0]:.1f} times faster than plain as PyTorch runs it)."
    )
    if "stream" in found:
        stream = found["stream"]
        shares = "/".join(f"{100 * s:.0f}" for s in stream["shares"])
        lines.append(
            f"A stream of {stream['samples']:,} images in loader batches of 8 (shares {shares}): {stream['gain'][0]:.2f} times the "
            "throughput of batch-by-batch compaction."
        )
    if "decisions" in found:
        same = found["decisions"]
        lines.append(
            f"Compiled stages decide as eager ones for {100 * same['equal']:.2f} % of {same['samples']:,} scenes; of the others "
            f"no score is further than {same['furthest_from_threshold']:.1e} from its threshold."
        )
    lines += [
        "",
        "<details><summary>Ideal and measured, latency, memory</summary>",
        "",
        *ideal_table(found),
        "",
        "</details>",
        "",
    ]
    return lines


def chart(found: list[tuple[str, int, dict[str, Any]]]) -> None:
    """Batch 32 on two cores: how many times faster than plain as PyTorch runs it, with the ideal as a mark."""
    shown = [(name, one) for name, threads, one in found if threads == 2]
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.82 / len(BARS)
    for j, (key, (label, colour)) in enumerate(BARS.items()):
        for i, (_, one) in enumerate(shown):
            rows = {row["name"]: row for batch in one["batches"] if batch["batch"] == 32 for row in batch["rows"]}
            if key not in rows:
                continue
            value, low, high = rows[key]["speedup"]
            x = i + (j - (len(BARS) - 1) / 2) * width
            error = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.bar(x, value, width * 0.92, color=colour, yerr=error, ecolor="#222222", label=label if i == 0 else None)
            axes.annotate(f"{value:.1f}", (x, high), ha="center", va="bottom", fontsize=7)
            if "ideal_ms" in rows[key]:
                ideal = value * rows[key]["ms"][0] / rows[key]["ideal_ms"]
                mark = {"label": "ideal: stage times x shares"} if i == 0 and key == f"exits, {MIXED}" else {}
                axes.plot([x - width / 2, x + width / 2], [ideal, ideal], color="#D55E00", lw=2, **mark)
    axes.axhline(1, color="#222222", lw=0.8)
    axes.set_xticks(range(len(shown)), [NAMES[name] for name, _ in shown])
    axes.set_ylabel("times faster than the plain backbone\nas PyTorch runs it (batch 32)")
    axes.set_title(f"Exit shares {MIXED}, two cores, float32; medians with 95 % intervals", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    with mpl.rc_context({"svg.hashsalt": "exitlens", "font.family": "sans-serif"}):
        figure.savefig(CHART, metadata={"Date": None}, facecolor="white")


def summary(found: list[tuple[str, int, dict[str, Any]]]) -> list[str]:
    """The README's few lines: two cores, mixed exit shares."""
    lines = [
        f"Exit shares {MIXED} forced on three exits placed by time, two cores, float32, heads included; medians with 95 % "
        "intervals. What your network allows is decided by its accuracy at each exit; this is what the engine makes of it.",
        "",
        "| times faster than | plain as PyTorch runs it, batch 1 | batch 32 | plain with the same tuning, batch 1 | batch 32 | earlyon 0.3.0 in the same formats, batch 1 | batch 32 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, threads, one in found:
        if threads != 2:
            continue
        rows = {batch["batch"]: {row["name"]: row for row in batch["rows"]} for batch in one["batches"]}
        one_by_one, many = rows[1][f"exits, {MIXED}"], rows[32][f"exits, {MIXED}"]
        values = [one_by_one["speedup"], many["speedup"], one_by_one["speedup_tuned"], many["speedup_tuned"]]
        cells = [f"**{v[0]:.1f}** ({v[1]:.1f} to {v[2]:.1f})" for v in values]
        for size, ours in ((1, one_by_one), (32, many)):
            cells.append(f"**{rows[size][f'earlyon, {MIXED}, same formats']['ms'][0] / ours['ms'][0]:.1f}**")
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    found = list(parts())
    first = found[0][2]["machine"]
    lines = [
        f"Measured on {first['processor']} ({first['cores']} cores), PyTorch {first['torch']}, Python {first['python']}.",
        "",
    ]
    for name, threads, one in found:
        lines += section(name, threads, one)
    replace(PAGE, "<!-- results: written by benchmarks/performance/page.py -->", lines)
    replace(ROOT / "README.md", "<!-- speed: written by benchmarks/performance/page.py -->", summary(found))
    chart(found)


if __name__ == "__main__":
    main()
